//! The file routes, on a directory whose owners are users of a container.

use super::{Answer, Bench, local::UID_START};
use http::{Method, StatusCode};
use serde_json::{Value, json};
use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt, symlink},
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

impl Bench {
    async fn put(&self, query: &str, body: impl Into<bytes::Bytes>) -> Answer {
        self.call(Method::PUT, &format!("fs/write?{query}"), &[], body).await
    }

    async fn remove(&self, query: &str) -> Answer {
        self.call(Method::DELETE, &format!("fs/delete?{query}"), &[], "").await
    }
}

fn refused(answer: &Answer, status: u16, code: &str, error: &str) {
    assert_eq!(answer.status, status, "{answer:?}");
    let body = answer.json();
    assert_eq!((body["code"].as_str(), body["error"].as_str()), (Some(code), Some(error)));
}

#[tokio::test]
async fn what_is_written_is_read() {
    let bench = Bench::new().await;
    let written = bench.put("path=a.txt&workingDir=/home/sprite&mode=0600", "hello").await;
    assert_eq!(written.status, StatusCode::OK);
    assert_eq!(written.json(), json!({ "path": "/home/sprite/a.txt", "size": 5, "mode": "0600" }));
    let metadata = fs::metadata(bench.local.path("home/sprite/a.txt")).unwrap();
    assert_eq!(
        (metadata.mode() & 0o7777, metadata.uid(), metadata.gid()),
        (0o600, UID_START + 1001, UID_START + 1001)
    );
    let read = bench.get("fs/read?path=/home/sprite/a.txt&workingDir=/").await;
    assert_eq!((read.status, &read.body[..]), (StatusCode::OK, &b"hello"[..]));
    assert_eq!(
        (read.header("content-type"), read.header("content-length")),
        ("application/octet-stream", "5")
    );
    let head = bench.call(Method::HEAD, "fs/read?path=/home/sprite/a.txt", &[], "").await;
    assert_eq!(
        (head.status, head.header("content-length"), head.body.len()),
        (StatusCode::OK, "5", 0)
    );
    // Nothing but the file is left, and a second write keeps mode and owner.
    assert_eq!(bench.put("path=a.txt", "again").await.json()["mode"], "0600");
    assert_eq!(fs::read_dir(bench.local.path("home/sprite")).unwrap().count(), 1);
    assert_eq!(bench.put("path=empty", "").await.json()["size"], 0);
    assert_eq!(bench.get("fs/read?path=empty").await.body.len(), 0);
}

#[tokio::test]
async fn ranges_are_read() {
    let bench = Bench::new().await;
    bench.local.file("home/sprite/r", "0123456789", 0o644, 1001);
    for (range, status, content, content_range) in [
        ("bytes=2-4", 206, "234", "bytes 2-4/10"),
        ("bytes=8-", 206, "89", "bytes 8-9/10"),
        ("bytes=-3", 206, "789", "bytes 7-9/10"),
        ("bytes=10-", 416, "", "bytes */10"),
        ("rows=1-2", 200, "0123456789", ""),
    ] {
        let answer = bench.call(Method::GET, "fs/read?path=r", &[("range", range)], "").await;
        assert_eq!(
            (answer.status.as_u16(), answer.header("content-range")),
            (status, content_range),
            "{range}"
        );
        assert_eq!(answer.body, content, "{range}");
    }
}

#[tokio::test]
async fn large_files_stream_both_ways() {
    let bench = Bench::new().await;
    let content: Vec<u8> = (0..20_000_000_u32).map(|n| n.to_le_bytes()[1]).collect();
    assert_eq!(bench.put("path=big", content.clone()).await.json()["size"], 20_000_000);
    assert!(bench.get("fs/read?path=big").await.body == content);
}

#[tokio::test]
async fn errors_have_codes_and_sentences() {
    let bench = Bench::new().await;
    bench.local.file("home/sprite/f", "x", 0o644, 1001);
    bench.local.file("etc/shadow", "secret", 0o600, 0);
    let missing = bench.get("fs/read?path=missing&workingDir=/app").await;
    refused(&missing, 404, "ENOENT", "open /app/missing: no such file or directory");
    assert_eq!(missing.json()["path"], "/app/missing");
    refused(&bench.get("fs/read?path=/tmp").await, 400, "EISDIR", "open /tmp: is a directory");
    refused(
        &bench.get("fs/read?path=f/x").await,
        400,
        "ENOTDIR",
        "open /home/sprite/f/x: not a directory",
    );
    refused(
        &bench.get("fs/read?path=/etc/shadow").await,
        403,
        "EACCES",
        "open /etc/shadow: permission denied",
    );
    refused(
        &bench.get("fs/list?path=missing&workingDir=/").await,
        404,
        "ENOENT",
        "open /missing: no such file or directory",
    );
    refused(
        &bench.put("path=no/f", "x").await,
        404,
        "ENOENT",
        "open /home/sprite/no/f: no such file or directory",
    );
    refused(&bench.put("path=/tmp", "x").await, 400, "EISDIR", "open /tmp: is a directory");
    refused(&bench.put("path=/", "x").await, 400, "EISDIR", "open /: is a directory");
    refused(
        &bench.remove("path=missing").await,
        404,
        "ENOENT",
        "remove /home/sprite/missing: no such file or directory",
    );
    assert_eq!(bench.put("path=f&mode=0999", "x").await.status, StatusCode::BAD_REQUEST);
    for query in ["", "path=", "path=a%00b", "path=a&workingDir=%00"] {
        let answer = bench.get(&format!("fs/read?{query}")).await;
        assert_eq!(
            (answer.status, &answer.json()["code"]),
            (StatusCode::BAD_REQUEST, &json!("EINVAL")),
            "{query}"
        );
    }
    assert_eq!(bench.get("fs/read?path=%ff").await.status, StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn root_is_only_who_asks_for_it_and_never_the_hosts() {
    let bench = Bench::new().await;
    bench.local.file("etc/shadow", "secret", 0o600, 0);
    assert_eq!(bench.get("fs/read?path=/etc/shadow&asRoot=true").await.body, "secret");
    assert_eq!(bench.put("path=/etc/new&asRoot=true", "x").await.status, StatusCode::OK);
    assert_eq!(fs::metadata(bench.local.path("etc/new")).unwrap().uid(), UID_START);
    assert_eq!(bench.put("path=in-home&asRoot=true", "x").await.status, StatusCode::OK);
    assert_eq!(fs::metadata(bench.local.path("home/sprite/in-home")).unwrap().uid(), UID_START);
    // What belongs to the host's root is not in reach of the container's, except by capability over its own files.
    refused(
        &bench.remove("path=/etc/shadow").await,
        403,
        "EACCES",
        "remove /etc/shadow: permission denied",
    );
    assert_eq!(bench.remove("path=/etc/shadow&asRoot=true").await.status, StatusCode::OK);
}

#[tokio::test]
async fn a_write_that_needs_root_gets_it() {
    let bench = Bench::new().await;
    assert_eq!(
        bench.put("path=/root/a/b/c.txt&workingDir=/&mkdirParents=true", "x").await.status,
        StatusCode::OK
    );
    for path in ["root/a", "root/a/b", "root/a/b/c.txt"] {
        assert_eq!(fs::metadata(bench.local.path(path)).unwrap().uid(), UID_START, "{path}");
    }
    // A file that is replaced keeps its owner; one that is new in the home directory is the user's.
    bench.local.file("etc/motd", "old", 0o640, 5);
    assert_eq!(bench.put("path=/etc/motd", "new").await.json()["mode"], "0640");
    assert_eq!(fs::metadata(bench.local.path("etc/motd")).unwrap().uid(), UID_START + 5);
    bench.local.directory("home/sprite/locked", 0o755, 0);
    assert_eq!(bench.put("path=locked/d/f&mkdir=true", "x").await.status, StatusCode::OK);
    for path in ["home/sprite/locked/d", "home/sprite/locked/d/f"] {
        assert_eq!(fs::metadata(bench.local.path(path)).unwrap().uid(), UID_START + 1001, "{path}");
    }
}

#[tokio::test]
async fn placeholders_make_one_directory() {
    let bench = Bench::new().await;
    assert_eq!(bench.put("path=d/.keep&mkdirParents=false", "").await.status, StatusCode::OK);
    assert_eq!(bench.put("path=x/y/.keep", "").await.status, StatusCode::NOT_FOUND);
    assert_eq!(bench.put("path=x/y/.keep&mkdirParents=true", "").await.status, StatusCode::OK);
    let metadata = fs::metadata(bench.local.path("home/sprite/d")).unwrap();
    assert_eq!((metadata.uid(), metadata.mode() & 0o777), (UID_START + 1001, 0o755));
}

fn names(listing: &Value) -> Vec<&str> {
    listing["entries"]
        .as_array()
        .unwrap()
        .iter()
        .map(|entry| entry["path"].as_str().unwrap())
        .collect()
}

#[tokio::test]
async fn lists_show_children_or_the_file_itself() {
    let bench = Bench::new().await;
    bench.local.directory("home/sprite/d/sub", 0o755, 1001);
    bench.local.directory("home/sprite/d/closed", 0o700, 0);
    bench.local.file("home/sprite/d/b.txt", "bb", 0o640, 1001);
    bench.local.file("home/sprite/d/sub/c.rs", "", 0o644, 1001);
    symlink("b.txt", bench.local.path("home/sprite/d/a-link")).unwrap();
    symlink("d", bench.local.path("home/sprite/link")).unwrap();
    let all = bench.get("fs/list?path=d&workingDir=/home/sprite").await.json();
    assert_eq!((&all["path"], &all["count"]), (&json!("/home/sprite/d"), &json!(4)));
    assert_eq!(
        names(&all),
        [
            "/home/sprite/d/a-link",
            "/home/sprite/d/b.txt",
            "/home/sprite/d/closed",
            "/home/sprite/d/sub"
        ]
    );
    let kinds: Vec<_> = all["entries"]
        .as_array()
        .unwrap()
        .iter()
        .map(|entry| entry["type"].as_str().unwrap())
        .collect();
    assert_eq!(kinds, ["symlink", "file", "directory", "directory"]);
    let file = bench.get("fs/list?path=d/b.txt").await.json();
    assert_eq!(file["count"], 1);
    let entry = &file["entries"][0];
    assert_eq!(
        (&entry["name"], &entry["size"], &entry["mode"]),
        (&json!("b.txt"), &json!(2), &json!("0640"))
    );
    assert_eq!((&entry["type"], &entry["isDir"]), (&json!("file"), &json!(false)));
    assert!(entry["modTime"].as_str().unwrap().ends_with('Z'));
    // A symbolic link is followed when it is what was asked for.
    assert_eq!(bench.get("fs/list?path=d/a-link").await.json()["entries"][0]["size"], 2);
    assert_eq!(names(&bench.get("fs/list?path=link").await.json())[1], "/home/sprite/link/b.txt");
    let deep = bench.get("fs/list?path=d&recursive=true").await.json();
    assert_eq!(names(&deep).last(), Some(&"/home/sprite/d/sub/c.rs"));
    assert_eq!(deep["count"], 5);
    let through = bench.get("fs/list?path=link&recursive=true&pattern=*.rs").await.json();
    assert_eq!(names(&through), ["/home/sprite/link/sub/c.rs"]);
    assert_eq!(
        names(&bench.get("fs/list?path=d&recursive=true&pattern=sub/*").await.json()).len(),
        1
    );
    bench.local.directory("home/sprite/empty", 0o755, 1001);
    assert_eq!(bench.get("fs/list?path=empty").await.json()["entries"], json!([]));
}

#[tokio::test]
async fn deletes_are_exact() {
    let bench = Bench::new().await;
    bench.local.directory("home/sprite/t/a/b", 0o755, 1001);
    bench.local.file("home/sprite/t/a/f", "x", 0o644, 1001);
    bench.local.directory("home/sprite/t/a", 0o755, 1001);
    bench.local.directory("home/sprite/t", 0o755, 1001);
    bench.local.directory("home/sprite/kept", 0o755, 1001);
    bench.local.file("home/sprite/kept/f", "x", 0o644, 1001);
    symlink("../kept", bench.local.path("home/sprite/t/link")).unwrap();
    symlink("kept", bench.local.path("home/sprite/link")).unwrap();
    refused(
        &bench.remove("path=t").await,
        409,
        "ENOTEMPTY",
        "remove /home/sprite/t: directory not empty",
    );
    let removed = bench.remove("path=t&recursive=true&workingDir=/home/sprite").await;
    assert_eq!(removed.status, StatusCode::OK);
    assert_eq!(removed.json(), json!({ "deleted": ["/home/sprite/t"], "count": 1 }));
    assert_eq!(bench.remove("path=link&recursive=true").await.status, StatusCode::OK);
    assert_eq!(fs::read_to_string(bench.local.path("home/sprite/kept/f")).unwrap(), "x");
    bench.local.directory("home/sprite/empty", 0o755, 1001);
    assert_eq!(bench.remove("path=empty").await.status, StatusCode::OK);
    assert_eq!(
        bench.remove("path=/&recursive=true&asRoot=true").await.status,
        StatusCode::CONFLICT
    );
}

#[tokio::test]
async fn deep_trees_are_deleted() {
    let bench = Bench::new().await;
    let mut path = bench.local.directory("home/sprite/deep", 0o777, 1001);
    let mut dir = fs::File::open(&path).unwrap();
    for _ in 0..3000 {
        rustix::fs::mkdirat(&dir, "d", rustix::fs::Mode::from_raw_mode(0o777)).unwrap();
        let flags = rustix::fs::OFlags::RDONLY;
        dir = rustix::fs::openat(&dir, "d", flags, rustix::fs::Mode::empty()).unwrap().into();
    }
    path.push("d");
    assert_eq!(bench.get("fs/list?path=deep&recursive=true").await.status, StatusCode::OK);
    assert_eq!(bench.remove("path=deep&recursive=true&asRoot=true").await.status, StatusCode::OK);
    assert!(!path.exists());
}

#[tokio::test]
async fn nothing_leads_out_of_the_root() {
    let bench = Bench::new().await;
    let outside = tempfile::tempdir().unwrap();
    fs::set_permissions(outside.path(), fs::Permissions::from_mode(0o777)).unwrap();
    fs::write(outside.path().join("secret"), "outside").unwrap();
    let target = outside.path().to_str().unwrap();
    symlink(target, bench.local.path("home/sprite/out")).unwrap();
    symlink(format!("{target}/secret"), bench.local.path("home/sprite/secret")).unwrap();
    symlink("../../../../../../../../../../etc/passwd", bench.local.path("home/sprite/up"))
        .unwrap();
    symlink(format!("{target}/new"), bench.local.path("home/sprite/new")).unwrap();
    symlink("loop", bench.local.path("home/sprite/loop")).unwrap();
    for path in ["out/secret", "secret", "up", "../../../../../../../etc/passwd", "out"] {
        for route in ["read", "list"] {
            let answer = bench.get(&format!("fs/{route}?path={path}&asRoot=true")).await;
            assert_eq!(answer.status, StatusCode::NOT_FOUND, "{route} {path}");
        }
    }
    assert_eq!(bench.get("fs/read?path=loop").await.json()["code"], "ELOOP");
    assert_eq!(bench.put("path=loop", "x").await.json()["code"], "ELOOP");
    assert_eq!(bench.put("path=out/x", "x").await.status, StatusCode::NOT_FOUND);
    assert_eq!(bench.put("path=new", "x").await.status, StatusCode::NOT_FOUND);
    // With parents the link's target is made inside of the root, where the link means it to be.
    let nested = format!("path=..{target}/x&mkdirParents=true");
    assert_eq!(bench.put(&nested, "x").await.status, StatusCode::OK);
    assert_eq!(bench.remove("path=out&recursive=true").await.status, StatusCode::OK);
    assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 1);
}

#[tokio::test]
async fn a_symbolic_link_is_written_through() {
    let bench = Bench::new().await;
    bench.local.directory("home/sprite/d/e", 0o755, 1001);
    bench.local.file("home/sprite/d/f", "old", 0o600, 1001);
    bench.local.directory("home/sprite/d", 0o755, 1001);
    symlink("d/e", bench.local.path("home/sprite/e")).unwrap();
    // `..` after a symbolic link is the parent of where it leads.
    symlink("e/../f", bench.local.path("home/sprite/link")).unwrap();
    assert_eq!(bench.put("path=link", "new").await.json()["mode"], "0600");
    assert_eq!(fs::read_to_string(bench.local.path("home/sprite/d/f")).unwrap(), "new");
    assert!(fs::symlink_metadata(bench.local.path("home/sprite/link")).unwrap().is_symlink());
}

#[tokio::test]
async fn fifos_and_devices_are_refused_without_waiting() {
    let bench = Bench::new().await;
    let mode = rustix::fs::Mode::from_raw_mode(0o666);
    for (name, kind, device) in [
        ("fifo", rustix::fs::FileType::Fifo, 0),
        ("null", rustix::fs::FileType::CharacterDevice, rustix::fs::makedev(1, 3)),
    ] {
        let path = bench.local.path(&format!("home/sprite/{name}"));
        rustix::fs::mknodat(rustix::fs::CWD, &path, kind, mode, device).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).unwrap();
        let query = format!("path={name}");
        let calls = async {
            refused(
                &bench.get(&format!("fs/read?{query}")).await,
                400,
                "EINVAL",
                &format!("open /home/sprite/{name}: invalid argument"),
            );
            refused(
                &bench.put(&query, "x").await,
                400,
                "EINVAL",
                &format!("open /home/sprite/{name}: invalid argument"),
            );
            assert_eq!(
                bench.get(&format!("fs/list?{query}")).await.json()["entries"][0]["type"],
                "file"
            );
            assert_eq!(bench.remove(&query).await.status, StatusCode::OK);
        };
        tokio::time::timeout(Duration::from_secs(5), calls).await.expect("nothing waits");
    }
}

#[tokio::test]
async fn transfers_end_with_their_container() {
    let bench = Bench::new().await;
    let path = bench.local.file("home/sprite/big", vec![7; 50_000_000], 0o644, 1001);
    let open = || {
        let links = fs::read_dir("/proc/self/fd").unwrap().flatten();
        links
            .filter(|link| {
                fs::read_link(link.path())
                    .is_ok_and(|target| target.starts_with(path.parent().unwrap()))
            })
            .count()
    };
    let mut reader = TcpStream::connect(bench.address).await.unwrap();
    reader
        .write_all(b"GET /v1/sprites/s1/fs/read?path=big HTTP/1.1\r\nhost: x\r\n\r\n")
        .await
        .unwrap();
    let mut writer = TcpStream::connect(bench.address).await.unwrap();
    let head =
        "PUT /v1/sprites/s1/fs/write?path=new HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n123";
    writer.write_all(head.as_bytes()).await.unwrap();
    bench.until("both transfers", |_| open() >= 3).await;
    bench.sandbox.send_replace(None);
    bench.until("their end", |_| open() == 0).await;
    let mut answer = String::new();
    super::within(writer.read_to_string(&mut answer)).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
    let mut received = Vec::new();
    let end = super::within(reader.read_to_end(&mut received)).await;
    assert!(received.len() < 50_000_000, "{end:?}");
    assert!(!bench.local.path("home/sprite/new").exists());
}
