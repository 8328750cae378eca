use super::{Gateway, Scope};
use crate::testing::{Fault, FaultyStore};
use bytes::Bytes;
use futures::TryStreamExt;
use guest::protocol::{EVENTS, Event, GATEWAY_SOCKET, KEYS, KeyBytes, ObjectList, VolumeKeys};
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use object_store::{
    ObjectStore, ObjectStoreExt, PutPayload, local::LocalFileSystem, path::Path as Key,
};
use std::{path::PathBuf, sync::Arc};
use tokio::{net::UnixStream, sync::mpsc};
use volume::{Keys, SecretKey, VolumeId};

struct Setup {
    store: Arc<dyn ObjectStore>,
    own: VolumeId,
    ancestor: VolumeId,
    other: VolumeId,
    socket: PathBuf,
    events: mpsc::Receiver<Event>,
    gateway: Gateway,
    _directory: tempfile::TempDir,
}

impl Setup {
    fn new(store: Arc<dyn ObjectStore>) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let socket = directory.path().join(GATEWAY_SOCKET);
        let (own, ancestor, other) = (VolumeId::now(), VolumeId::now(), VolumeId::now());
        let scope = Scope::new(own, vec![ancestor]);
        let keys = Keys::none().with(own, key(1)).with(ancestor, key(2));
        let (gateway, events) = Gateway::listen(&socket, store.clone(), scope, &keys, Vec::new())
            .expect("a free socket");
        Self { store, own, ancestor, other, socket, events, gateway, _directory: directory }
    }

    fn healthy() -> Self {
        Self::new(Arc::new(FaultyStore::new(Fault::None)))
    }

    async fn put(&self, key: &str, content: &'static [u8]) {
        self.store
            .put(&Key::from(key), PutPayload::from_static(content))
            .await
            .expect("a healthy store");
    }

    async fn send(
        &self,
        request: http::request::Builder,
        body: impl Into<Bytes>,
    ) -> Response<Bytes> {
        let stream = UnixStream::connect(&self.socket).await.expect("a listener");
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.expect("a handshake");
        let connection = tokio::spawn(connection);
        let request =
            request.header(header::HOST, "worker").body(Full::new(body.into())).expect("a request");
        let (parts, body) = sender.send_request(request).await.expect("an answer").into_parts();
        let body = body.collect().await.expect("a whole body").to_bytes();
        connection.abort();
        Response::from_parts(parts, body)
    }

    async fn call(&self, method: Method, uri: &str) -> Response<Bytes> {
        self.send(Request::builder().method(method).uri(uri), "").await
    }
}

fn create(uri: &str) -> http::request::Builder {
    Request::builder().method(Method::PUT).uri(uri).header(header::IF_NONE_MATCH, "*")
}

fn key(byte: u8) -> SecretKey {
    SecretKey::from_bytes([byte; 32].into())
}

#[tokio::test]
async fn a_machine_gets_the_keys_of_its_volume_and_its_ancestors() {
    let setup = Setup::healthy();
    let answer = setup.call(Method::GET, KEYS).await;
    assert_eq!(answer.status(), StatusCode::OK);
    let given: VolumeKeys = serde_json::from_slice(answer.body()).expect("keys");
    let expected = [(setup.own, [1; 32]), (setup.ancestor, [2; 32])]
        .map(|(volume, bytes)| (volume.to_string(), KeyBytes(bytes.into())));
    assert_eq!(given, VolumeKeys(expected.into()));
    assert_eq!(setup.call(Method::PUT, KEYS).await.status(), StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn a_machine_reads_and_writes_its_own_volume() {
    let setup = Setup::healthy();
    let uri = format!("/objects/volumes/{}/segments/a", setup.own);
    assert_eq!(setup.send(create(&uri), "content").await.status(), StatusCode::CREATED);
    assert_eq!(setup.send(create(&uri), "other").await.status(), StatusCode::PRECONDITION_FAILED);
    let answer = setup.call(Method::GET, &uri).await;
    assert_eq!((answer.status(), &answer.body()[..]), (StatusCode::OK, &b"content"[..]));
    let head = setup.call(Method::HEAD, &uri).await;
    assert_eq!(head.headers()[header::CONTENT_LENGTH], "7");
    let list = setup.call(Method::GET, &format!("/objects?prefix=volumes/{}/", setup.own)).await;
    let list: ObjectList = serde_json::from_slice(list.body()).expect("a list");
    assert_eq!(list.objects.iter().map(|object| object.size).collect::<Vec<_>>(), [7]);
    for (after, count) in [("segments/Z", 1), ("segments/a", 0)] {
        let query = format!("prefix=volumes/{0}/&after=volumes/{0}/{after}", setup.own);
        let list = setup.call(Method::GET, &format!("/objects?{query}")).await;
        let list: ObjectList = serde_json::from_slice(list.body()).expect("a list");
        assert_eq!(list.objects.len(), count, "{after}");
    }
    let query = format!("prefix=volumes/{}/&after=accounts/local/log", setup.own);
    let elsewhere = setup.call(Method::GET, &format!("/objects?{query}")).await;
    assert!(elsewhere.status().is_client_error());
    assert_eq!(setup.call(Method::DELETE, &uri).await.status(), StatusCode::NO_CONTENT);
    assert_eq!(setup.call(Method::GET, &uri).await.status(), StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn ranges_are_those_of_http() {
    let directory = tempfile::tempdir().expect("a directory");
    let local = LocalFileSystem::new_with_prefix(directory.path()).expect("usable");
    for setup in [Setup::healthy(), Setup::new(Arc::new(local))] {
        let key = format!("volumes/{}/a", setup.own);
        setup.put(&key, b"0123456789").await;
        let uri = format!("/objects/{key}");
        let ranges = [
            ("bytes=0-3", "0123", "bytes 0-3/10"),
            ("bytes=7-", "789", "bytes 7-9/10"),
            ("bytes=-2", "89", "bytes 8-9/10"),
            ("bytes=8-99", "89", "bytes 8-9/10"),
        ];
        for (range, content, stated) in ranges {
            let answer = setup.send(Request::get(&uri).header(header::RANGE, range), "").await;
            assert_eq!(
                (answer.status(), answer.body()),
                (StatusCode::PARTIAL_CONTENT, &Bytes::from(content)),
                "{range}"
            );
            assert_eq!(answer.headers()[header::CONTENT_RANGE], stated);
        }
        let beyond = setup.send(Request::get(&uri).header(header::RANGE, "bytes=10-11"), "").await;
        assert_eq!(beyond.status(), StatusCode::RANGE_NOT_SATISFIABLE);
        let malformed = setup.send(Request::get(&uri).header(header::RANGE, "bytes=x"), "").await;
        assert_eq!(malformed.status(), StatusCode::RANGE_NOT_SATISFIABLE);
        let missing = setup
            .send(Request::get(format!("{uri}b")).header(header::RANGE, "bytes=0-3"), "")
            .await;
        assert_eq!(missing.status(), StatusCode::NOT_FOUND);
    }
}

#[tokio::test]
async fn ancestors_are_read_only() {
    let setup = Setup::healthy();
    let key = format!("volumes/{}/segments/a", setup.ancestor);
    setup.put(&key, b"content").await;
    let uri = format!("/objects/{key}");
    assert_eq!(setup.call(Method::GET, &uri).await.status(), StatusCode::OK);
    assert_eq!(setup.call(Method::PUT, &uri).await.status(), StatusCode::FORBIDDEN);
    assert_eq!(setup.send(create(&uri), "other").await.status(), StatusCode::FORBIDDEN);
    assert_eq!(setup.call(Method::DELETE, &uri).await.status(), StatusCode::FORBIDDEN);
    assert_eq!(setup.call(Method::GET, &uri).await.body(), "content");
}

#[tokio::test]
async fn hostile_keys_reach_nothing() {
    let setup = Setup::healthy();
    let secret = format!("volumes/{}/segments/a", setup.other);
    for key in [
        secret.as_str(),
        "owner/0000000000000001",
        "accounts/local/log/a",
        "volumes/x",
        "images/current",
    ] {
        setup.put(key, b"secret").await;
    }
    let before = crate::testing::keys(&setup.store).await;
    let own = setup.own;
    let hostile = [
        secret.clone(),
        "owner/0000000000000001".to_owned(),
        "accounts/local/log/a".to_owned(),
        "images/current".to_owned(),
        format!("volumes/{own}/../{}/segments/a", setup.other),
        format!("volumes/{own}/%2e%2e/{}/segments/a", setup.other),
        format!("volumes/{own}/%2E./{}/segments/a", setup.other),
        format!("volumes%2f{}%2fsegments/a", setup.other),
        format!("/volumes/{}/segments/a", setup.other),
        format!("volumes//{}/segments/a", setup.other),
        format!("volumes/{own}"),
        format!("volumes/{own}/"),
        format!("volumes/{own}/a%00"),
        format!("volumes/{own}/a%ff"),
        format!("volumes/{own}/a%5c..%5cb"),
        format!("volumes/{own}x/a"),
        format!("volumes/{}/a", own.to_string().to_uppercase()),
        format!("volumes/{own}/{}", "a".repeat(600)),
        String::new(),
        "volumes".to_owned(),
        "volumes/x".to_owned(),
    ];
    for key in &hostile {
        for method in [Method::GET, Method::HEAD, Method::PUT, Method::DELETE, Method::POST] {
            let status = setup.call(method.clone(), &format!("/objects/{key}")).await.status();
            let refused = matches!(
                status,
                StatusCode::BAD_REQUEST | StatusCode::FORBIDDEN | StatusCode::NOT_FOUND
            );
            assert!(refused, "{method} {key}: {status}");
        }
        let status = setup.call(Method::GET, &format!("/objects?prefix={key}")).await.status();
        // A whole volume is no key but may be listed when it is the machine's own.
        let own_volume = key.trim_end_matches('/') == format!("volumes/{own}");
        assert_eq!(status.is_success(), own_volume, "list {key}: {status}");
    }
    assert_eq!(setup.call(Method::GET, "/objects").await.status(), StatusCode::BAD_REQUEST);
    assert_eq!(crate::testing::keys(&setup.store).await, before);
}

#[tokio::test]
async fn a_bucket_that_fails_is_no_missing_object() {
    for fault in [Fault::FailWrites, Fault::Refuse] {
        let setup = Setup::new(Arc::new(FaultyStore::new(fault)));
        let uri = format!("/objects/volumes/{}/a", setup.own);
        assert_eq!(
            setup.send(create(&uri), "content").await.status(),
            StatusCode::BAD_GATEWAY,
            "{fault:?}"
        );
    }
}

#[tokio::test]
async fn events_reach_the_worker() {
    let mut setup = Setup::healthy();
    let event = serde_json::to_vec(&Event::Failed { reason: "x".into() }).expect("JSON");
    assert_eq!(setup.send(Request::post(EVENTS), event).await.status(), StatusCode::NO_CONTENT);
    assert_eq!(setup.events.recv().await, Some(Event::Failed { reason: "x".into() }));
    assert_eq!(setup.send(Request::post(EVENTS), "{}").await.status(), StatusCode::BAD_REQUEST);
    assert_eq!(setup.call(Method::GET, EVENTS).await.status(), StatusCode::METHOD_NOT_ALLOWED);
}

#[tokio::test]
async fn a_closed_gateway_answers_nobody() {
    let setup = Setup::healthy();
    let Setup { gateway, socket, store, .. } = setup;
    gateway.close().await;
    assert!(UnixStream::connect(&socket).await.is_err());
    assert!(store.list(None).try_collect::<Vec<_>>().await.expect("a list").is_empty());
}
