//! The file routes that rename, copy, and change modes and owners.

use super::{Answer, Bench, local::UID_START};
use http::{Method, StatusCode};
use serde_json::{Value, json};
use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt, symlink},
    path::Path,
};

impl Bench {
    async fn change(&self, what: &str, body: Value) -> Answer {
        self.call(Method::POST, &format!("fs/{what}"), &[], body.to_string()).await
    }

    /// A directory in the home directory, with those above it, that is `sprite`'s.
    fn directory(&self, path: &str) {
        let mut whole = "home/sprite".to_owned();
        for part in path.split('/') {
            whole = format!("{whole}/{part}");
            self.local.directory(&whole, 0o755, 1001);
        }
    }

    fn mine(&self, path: &str, content: &str) {
        self.local.file(&format!("home/sprite/{path}"), content, 0o644, 1001);
    }
}

fn read(bench: &Bench, path: &str) -> String {
    fs::read_to_string(bench.local.path(path)).unwrap()
}

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().permissions().mode() & 0o7777
}

fn code(answer: &Answer) -> (u16, String) {
    (answer.status.as_u16(), answer.json()["code"].as_str().unwrap_or("").to_owned())
}

#[tokio::test]
async fn a_rename_replaces_and_says_what_it_did() {
    let bench = Bench::new().await;
    bench.mine("a", "new");
    bench.mine("b", "old");
    let renamed = bench
        .change("rename", json!({ "source": "a", "dest": "b", "workingDir": "/home/sprite" }))
        .await;
    assert_eq!(renamed.status, StatusCode::OK);
    assert_eq!(renamed.json(), json!({ "source": "/home/sprite/a", "dest": "/home/sprite/b" }));
    assert_eq!(read(&bench, "home/sprite/b"), "new");
    bench.directory("full");
    bench.mine("full/x", "");
    bench.directory("other");
    for (source, dest, expected) in [
        ("a", "c", (404, "ENOENT")),
        ("b", "nowhere/c", (404, "ENOENT")),
        ("other", "full", (409, "ENOTEMPTY")),
        ("b", "full", (400, "EISDIR")),
        ("other", "other/below", (400, "EINVAL")),
        ("/", "c", (409, "EBUSY")),
        ("b", "/etc/b", (403, "EACCES")),
    ] {
        let refused = bench.change("rename", json!({ "source": source, "dest": dest })).await;
        assert_eq!(code(&refused), (expected.0, expected.1.to_owned()), "{source} {dest}");
    }
    let as_root = json!({ "source": "b", "dest": "/etc/b", "asRoot": true });
    assert_eq!(bench.change("rename", as_root).await.status, StatusCode::OK);
    assert_eq!(read(&bench, "etc/b"), "new");
    assert_eq!(
        bench.change("rename", json!({ "source": "x" })).await.status,
        StatusCode::BAD_REQUEST
    );
    assert_eq!(bench.change("rename", json!({ "source": "a\0", "dest": "b" })).await.status, 400);
}

#[tokio::test]
async fn a_link_is_renamed_itself() {
    let bench = Bench::new().await;
    symlink("/etc", bench.local.path("home/sprite/link")).unwrap();
    let renamed = bench.change("rename", json!({ "source": "link", "dest": "moved" })).await;
    assert_eq!(renamed.status, StatusCode::OK);
    assert_eq!(fs::read_link(bench.local.path("home/sprite/moved")).unwrap(), Path::new("/etc"));
}

#[tokio::test]
async fn a_tree_is_copied_with_its_links_and_modes() {
    let bench = Bench::new().await;
    bench.directory("tree/deep");
    bench.mine("tree/deep/file", "content");
    fs::set_permissions(
        bench.local.path("home/sprite/tree/deep/file"),
        fs::Permissions::from_mode(0o775),
    )
    .unwrap();
    symlink("/outside", bench.local.path("home/sprite/tree/link")).unwrap();
    fs::set_permissions(
        bench.local.path("home/sprite/tree/deep"),
        fs::Permissions::from_mode(0o555),
    )
    .unwrap();
    let copied =
        bench.change("copy", json!({ "source": "tree", "dest": "twin", "recursive": true })).await;
    assert_eq!(copied.status, StatusCode::OK, "{copied:?}");
    let told = copied.json();
    assert_eq!((&told["count"], &told["totalBytes"]), (&json!(4), &json!(7)));
    assert_eq!(
        told["copied"][0],
        json!({ "source": "/home/sprite/tree", "dest": "/home/sprite/twin" })
    );
    let twin = bench.local.path("home/sprite/twin");
    assert_eq!(read(&bench, "home/sprite/twin/deep/file"), "content");
    assert_eq!((mode(&twin.join("deep/file")), mode(&twin.join("deep"))), (0o755, 0o555));
    assert_eq!(fs::read_link(twin.join("link")).unwrap(), Path::new("/outside"));
    assert_eq!(fs::metadata(twin.join("deep/file")).unwrap().uid(), UID_START + 1001);
    // Into itself: what there was before is copied, once.
    let inside = json!({ "source": "tree", "dest": "tree/again", "recursive": true });
    assert_eq!(bench.change("copy", inside).await.json()["count"], 4);
    // As root everything can be kept.
    let owned = bench.local.file("etc/owned", "x", 0o711, 7);
    // A change of the owner takes the bit away.
    fs::set_permissions(owned, fs::Permissions::from_mode(0o4711)).unwrap();
    let kept = json!({ "source": "/etc/owned", "dest": "/etc/kept", "preserveAttrs": true, "asRoot": true });
    assert_eq!(bench.change("copy", kept).await.status, StatusCode::OK);
    let kept = bench.local.path("etc/kept");
    assert_eq!((mode(&kept), fs::metadata(&kept).unwrap().uid()), (0o4711, UID_START + 7));
}

#[tokio::test]
async fn a_copy_that_cannot_be_is_refused() {
    let bench = Bench::new().await;
    bench.directory("dir");
    bench.mine("file", "1");
    rustix::fs::mknodat(
        rustix::fs::CWD,
        bench.local.path("home/sprite/dir/fifo"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::from_raw_mode(0o666),
        0,
    )
    .unwrap();
    for (body, expected) in [
        (json!({ "source": "dir", "dest": "other" }), (400, "EISDIR")),
        (json!({ "source": "dir", "dest": "other", "recursive": true }), (400, "EINVAL")),
        (json!({ "source": "dir/fifo", "dest": "other" }), (400, "EINVAL")),
        (json!({ "source": "file", "dest": "dir" }), (400, "EISDIR")),
        (json!({ "source": "none", "dest": "x" }), (404, "ENOENT")),
        (json!({ "source": "file", "dest": "none/x" }), (404, "ENOENT")),
        (json!({ "source": "file", "dest": "/etc/x" }), (403, "EACCES")),
    ] {
        let refused = bench.change("copy", body.clone()).await;
        assert_eq!(code(&refused), (expected.0, expected.1.to_owned()), "{body}");
    }
    // Onto itself, also by another name: nothing happens to it.
    symlink("file", bench.local.path("home/sprite/alias")).unwrap();
    let copied = bench.change("copy", json!({ "source": "file", "dest": "alias" })).await;
    assert_eq!((copied.status, read(&bench, "home/sprite/file")), (StatusCode::OK, "1".to_owned()));
    let left = fs::read_dir(bench.local.path("home/sprite")).unwrap().count();
    assert_eq!(left, 4, "nothing half made stays");
}

#[tokio::test]
async fn modes_change_below_and_never_through_links() {
    let bench = Bench::new().await;
    bench.local.file("etc/target", "", 0o600, 1001);
    bench.directory("tree/deep");
    bench.mine("tree/deep/file", "");
    symlink("/etc/target", bench.local.path("home/sprite/tree/link")).unwrap();
    let changed =
        bench.change("chmod", json!({ "path": "tree", "mode": "0700", "recursive": true })).await;
    assert_eq!(changed.status, StatusCode::OK, "{changed:?}");
    assert_eq!(changed.json()["count"], 3);
    assert_eq!(
        changed.json()["affected"][0],
        json!({ "path": "/home/sprite/tree", "mode": "0700" })
    );
    let home = bench.local.path("home/sprite");
    assert_eq!(
        (mode(&home.join("tree/deep/file")), mode(&bench.local.path("etc/target"))),
        (0o700, 0o600)
    );
    // The path itself is followed.
    let changed = bench.change("chmod", json!({ "path": "tree/link", "mode": "640" })).await;
    assert_eq!((changed.status, mode(&bench.local.path("etc/target"))), (StatusCode::OK, 0o640));
    bench.local.file("etc/theirs", "", 0o600, 0);
    let refused = bench.change("chmod", json!({ "path": "/etc/theirs", "mode": "0666" })).await;
    assert_eq!(code(&refused), (403, "EPERM".to_owned()));
    for mode in ["0888", "", "u+x"] {
        let refused = bench.change("chmod", json!({ "path": "tree", "mode": mode })).await;
        assert_eq!(refused.status, StatusCode::BAD_REQUEST);
    }
}

#[tokio::test]
async fn owners_change_by_number_and_name() {
    let bench = Bench::new().await;
    bench.local.file("etc/passwd", "root:x:0:0::/:\nalice:x:1005:1006::/:\n", 0o644, 0);
    bench.local.file("etc/group", "staff:x:50:\n", 0o644, 0);
    bench.directory("tree");
    bench.mine("tree/file", "");
    symlink("/etc/passwd", bench.local.path("home/sprite/tree/link")).unwrap();
    let all = json!({ "path": "tree", "uid": "alice", "gid": "staff", "recursive": true, "asRoot": true });
    let changed = bench.change("chown", all).await;
    assert_eq!(changed.status, StatusCode::OK, "{changed:?}");
    assert_eq!(changed.json()["count"], 3);
    assert_eq!(
        changed.json()["affected"][0],
        json!({ "path": "/home/sprite/tree", "uid": 1005, "gid": 50 })
    );
    for (path, uid) in
        [("home/sprite/tree/file", 1005), ("home/sprite/tree/link", 1005), ("etc/passwd", 0)]
    {
        let metadata = fs::symlink_metadata(bench.local.path(path)).unwrap();
        assert_eq!(metadata.uid(), UID_START + uid, "{path}");
    }
    let changed =
        bench.change("chown", json!({ "path": "tree/file", "uid": 0, "asRoot": true })).await;
    assert_eq!(
        changed.json()["affected"][0],
        json!({ "path": "/home/sprite/tree/file", "uid": 0, "gid": 50 })
    );
    for (uid, expected) in [
        (json!("nobody-here"), (400, "EINVAL")),
        (json!(65536), (400, "EINVAL")),
        (json!("4294967295"), (400, "EINVAL")),
        (json!(0), (403, "EPERM")),
    ] {
        let refused = bench.change("chown", json!({ "path": "tree", "uid": uid })).await;
        assert_eq!(code(&refused), (expected.0, expected.1.to_owned()), "{uid}");
    }
    let refused = bench.change("chown", json!({ "path": "tree", "uid": -1 })).await;
    assert_eq!(refused.status, StatusCode::BAD_REQUEST);
}
