"""Trees in and out of a sprite as tar archives."""

import http.client
import io
import os
import tarfile

import pytest

from wire import call


def archive(*members: tuple[str, bytes | str | None]) -> bytes:
    """An archive of files (bytes), symbolic links (text) and directories (None)."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.mode = 0o755 if content is None else 0o640
            if content is None:
                info.type = tarfile.DIRTYPE
            elif isinstance(content, str):
                info.type, info.linkname = tarfile.SYMTYPE, content
            else:
                info.size = len(content)
            tar.addfile(info, io.BytesIO(content) if isinstance(content, bytes) else None)
    return packed.getvalue()


@pytest.fixture
def tar(server, sprite, name):
    """Calls the route."""

    def run(method: str, path: str, content: bytes | None = None, **params):
        return call(server, method, f"/v1/sprites/{name}/fs/tar", params={"path": path, "workingDir": "/home/sprite", **params}, content=content)

    return run


def test_a_tree_comes_back_as_it_was(tar, sh):
    sh("mkdir -p tree/deep; echo one > tree/one; head -c 3M /dev/urandom > tree/deep/data; chmod 711 tree/deep; ln -s ../one tree/deep/link; touch -d @1000000000 tree/one")
    packed = tar("GET", "tree")
    assert (packed.status_code, packed.headers["Content-Type"]) == (200, "application/x-tar")
    with tarfile.open(fileobj=io.BytesIO(packed.content)) as opened:
        assert sorted(opened.getnames()) == ["tree", "tree/deep", "tree/deep/data", "tree/deep/link", "tree/one"]
        assert opened.extractfile("tree/one").read() == b"one\n"
    answer = tar("PUT", "copies/here", packed.content, mkdirParents="true")
    assert (answer.status_code, answer.json()) == (200, {"path": "/home/sprite/copies/here", "size": len(packed.content)})
    assert sh("diff -r tree copies/here/tree && stat -c '%a %Y %U' copies/here/tree/deep copies/here/tree/one; readlink copies/here/tree/deep/link").split() == [
        *["711", sh("stat -c %Y tree/deep").strip(), "sprite"],
        *["644", "1000000000", "sprite"],
        "../one",
    ]


def test_one_file_and_a_checkpoint_are_trees_too(tar, sh, sprite):
    sh("echo kept > file")
    for _ in sprite.create_checkpoint("kept"):
        pass
    sh("echo changed > file")
    for path, content in (("file", b"changed\n"), ("/.sprite/checkpoints/v1/home/sprite/file", b"kept\n")):
        packed = tar("GET", path)
        assert packed.status_code == 200, packed.text
        with tarfile.open(fileobj=io.BytesIO(packed.content)) as opened:
            assert opened.extractfile("file").read() == content


def test_what_is_not_there_is_an_error_of_its_own(tar, sh):
    sh("touch file")
    for method, path, status, code in (
        ("GET", "missing", 404, "ENOENT"),
        ("PUT", "missing", 404, "ENOENT"),
        ("PUT", "file", 400, "ENOTDIR"),
        ("GET", "a\0b", 400, "EINVAL"),
        ("GET", "x" * 5000, 400, "ENAMETOOLONG"),
    ):
        answer = tar(method, path, archive(("a", b"1")) if method == "PUT" else None)
        assert (answer.status_code, answer.json()["code"]) == (status, code), (method, path)
    assert tar("GET", "--checkpoint-action=exec=touch $HOME/run").status_code == 404
    sh("mkdir -- --help; test ! -e run")
    assert tar("GET", "--help").status_code == 200, "a name is no option"


def test_what_the_user_may_not_do_fails_and_root_may(tar, sh):
    sh("sudo mkdir -m 700 /srv/closed; sudo touch /srv/closed/file")
    for closed in ("/srv", "/srv/closed"):
        answer = tar("PUT", closed, archive(("a", b"1")))
        assert answer.status_code == 422 and "Permission denied" in answer.json()["error"]
    assert tar("GET", "/srv/closed/file").status_code == 403
    with pytest.raises(http.client.IncompleteRead):
        tar("GET", "/srv")
    assert tar("GET", "/srv", asRoot="true").status_code == 200
    assert tar("PUT", "/srv/closed", archive(("a", b"1")), asRoot="true").status_code == 200
    assert sh("sudo cat /srv/closed/a") == "1"


def test_a_hostile_archive_stays_where_its_user_may_write(tar, sh, tmp_path):
    outside = f"/tmp/puck-tar-{os.getpid()}"
    content = archive(("../../../../.." + outside, b"1"), ("link", "/etc"), ("link/passwd", b"root::0:0::/:/bin/sh\n"))
    answer = tar("PUT", "into", content, mkdirParents="true")
    assert answer.status_code == 422 and "tar ended with" in answer.json()["error"]
    assert not os.path.exists(outside)
    assert "sprite" in sh("cat /etc/passwd") and "root:x:" in sh("cat /etc/passwd")


def test_what_is_no_archive_is_refused(tar, sh):
    sh("mkdir into")
    for content in (b"not an archive" * 1000, archive(("a", b"x" * 100_000))[:50_000], os.urandom(2 << 20)):
        answer = tar("PUT", "into", content)
        assert answer.status_code == 422 and answer.json()["error"].startswith("unpack into /home/sprite/into"), answer.text
    assert tar("PUT", "into", archive(("a", b"1"))).status_code == 200


def test_a_client_that_leaves_leaves_no_tar_behind(server, name, sprite, sh, eventually):
    sh("fallocate -l 2G large")
    for _ in range(3):
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
        connection.request("GET", f"/v1/sprites/{name}/fs/tar?path=large&workingDir=/home/sprite", headers={"Authorization": f"Bearer {server.token}"})
        assert len(connection.getresponse().read(1 << 20)) == 1 << 20
        connection.close()
    eventually("tar has ended", lambda: sh("pgrep -xc tar || true").strip() == "0")


def test_the_root_is_a_tree_without_what_is_mounted_there(tar, sh, sprite):
    for _ in sprite.create_checkpoint("kept"):
        pass
    sh("echo here > file")
    packed = tar("GET", "/", asRoot="true")
    assert packed.status_code == 200
    with tarfile.open(fileobj=io.BytesIO(packed.content)) as opened:
        names = opened.getnames()
    assert "./home/sprite/file" in names and "./etc/passwd" in names
    assert not [name for name in names if name.startswith(("./proc/", "./sys/", "./.sprite/checkpoints/", "./dev/"))]


def test_a_sprite_without_tar_says_so(tar, sh):
    sh("sudo mv /usr/bin/tar /usr/bin/away; mkdir into")
    for method in ("GET", "PUT"):
        answer = tar(method, "into", archive() if method == "PUT" else None)
        assert answer.status_code == 500 and "tar" in answer.json()["error"]
