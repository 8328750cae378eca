"""Watching files."""

import json
from contextlib import contextmanager

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from wire import execute


class Watch:
    """One watch."""

    def __init__(self, socket):
        self.socket = socket

    def say(self, **message) -> None:
        """Says something."""
        self.socket.send(json.dumps(message))

    def hear(self, seconds: float = 20) -> dict:
        """The next message."""
        while True:
            message = self.socket.recv(timeout=seconds)
            if isinstance(message, str):
                return json.loads(message)

    def subscribe(self, *paths: str, recursive: bool = False, **more) -> dict:
        """Subscribes; the answer."""
        self.say(type="subscribe", paths=list(paths), recursive=recursive, **more)
        return self.hear()

    def until_seen(self, path: str) -> list[dict]:
        """Hears up to anything about one path: what is in a directory before it is watched is only told to be there."""
        heard = []
        while not heard or heard[-1].get("path") != path:
            heard.append(self.hear())
        return heard

    def until(self, event: str, path: str) -> list[dict]:
        """Hears up to one event; everything that was heard."""
        heard = []
        while not heard or (heard[-1].get("event"), heard[-1].get("path")) != (event, path):
            heard.append(self.hear())
        return heard


@contextmanager
def watching(server, name):
    """A watch."""
    url = f"{server.url.replace('http', 'ws', 1)}/v1/sprites/{name}/fs/watch"
    with connect(url, additional_headers={"Authorization": f"Bearer {server.token}"}, open_timeout=30) as socket:
        yield Watch(socket)


def kinds(heard: list[dict]) -> list[tuple]:
    """What was heard, in short."""
    return [(one["event"], one["path"].rsplit("/", 1)[1]) for one in heard]


def test_what_happens_to_files_is_told(server, sprite, name, sh):
    with watching(server, name) as watch:
        assert watch.subscribe(".", workingDir="/home/sprite") == {"type": "subscribed", "paths": ["/home/sprite"]}
        sh("echo hello > one; chmod 600 one; mv one two; rm two; mkdir dir")
        heard = watch.until("create", "/home/sprite/dir")
        assert [one for one in kinds(heard) if one[0] != "chmod"] == [
            ("create", "one"), ("write", "one"), ("rename", "one"), ("create", "two"), ("remove", "two"), ("create", "dir"),
        ]
        assert ("chmod", "one") in kinds(heard)
        write = next(one for one in heard if one["event"] == "write")
        assert write["type"] == "event" and not write["isDir"] and write["timestamp"].endswith("Z") and heard[-1]["isDir"]
        sh("echo deep > dir/file; echo end > end")
        assert "file" not in [path for _, path in kinds(watch.until("write", "/home/sprite/end"))], "not recursive"


def test_a_recursive_watch_follows_what_appears_and_what_moves(server, sprite, name, sh):
    sh("mkdir -p top/old/deep outside")
    with watching(server, name) as watch:
        assert watch.subscribe("/home/sprite/top", recursive=True)["type"] == "subscribed"
        sh("echo a > top/old/deep/a; mkdir -p top/new/er/est; echo b > top/new/er/est/b")
        watch.until("write", "/home/sprite/top/old/deep/a")
        watch.until("create", "/home/sprite/top/new/er/est/b")
        sh("echo c > top/new/er/est/c")
        watch.until("write", "/home/sprite/top/new/er/est/c")
        sh("mv top/new top/moved; echo d > top/moved/er/d")
        assert ("rename", "new") in kinds(watch.until_seen("/home/sprite/top/moved/er/d"))
        sh("mv top/moved outside/; echo e > outside/moved/er/e; echo end > top/end")
        assert "e" not in [path for _, path in kinds(watch.until("write", "/home/sprite/top/end"))]
        sh("rm -r top")
        watch.until("remove", "/home/sprite/top")


def test_one_file_is_watched_and_a_subscription_ends(server, sprite, name, sh):
    sh("echo a > file; mkdir dir")
    with watching(server, name) as watch:
        assert watch.subscribe("file", "dir")["paths"] == ["/home/sprite/file", "/home/sprite/dir"]
        sh("echo b >> file")
        (heard,) = watch.until("write", "/home/sprite/file")
        assert heard["size"] == 4
        watch.say(type="unsubscribe", paths=["/home/sprite/file"])
        assert watch.subscribe("/tmp")["type"] == "subscribed"
        sh("echo c >> file; echo d > dir/d")
        assert "file" not in [path for _, path in kinds(watch.until("write", "/home/sprite/dir/d"))]


def test_what_cannot_be_watched_is_said(server, sprite, name, sh):
    sh("ln -s /etc link; mkfifo fifo; sudo mkdir -m 700 /secret")
    with watching(server, name) as watch:
        for path, wanted in (("missing", "no such file"), ("fifo", "invalid argument"), ("/secret", "permission denied"), ("a\0b", "NUL"), ("", "required")):
            answer = watch.subscribe(path)
            assert answer["type"] == "error" and wanted in answer["message"], answer
        watch.socket.send("{")
        assert watch.hear()["type"] == "error"
        watch.say(type="dance")
        assert watch.hear()["type"] == "error"
        watch.say(type="subscribe", paths=[], recursive=True)
        assert watch.hear()["type"] == "error"
        watch.say(type="subscribe", paths=["missing", "/tmp"])
        assert watch.hear() == {"type": "subscribed", "paths": ["/tmp"]} and watch.hear()["type"] == "error"
        assert watch.subscribe("link")["paths"] == ["/home/sprite/link"]
        sh("sudo touch /etc/new")
        watch.until("create", "/home/sprite/link/new")


def test_links_do_not_lead_out(server, sprite, name, sh):
    sh("ln -s ../../../../../../proc/1/root/base top; ln -s / root")
    with watching(server, name) as watch:
        assert watch.subscribe("top")["type"] == "error"
        assert watch.subscribe("root")["type"] == "subscribed", "the sprite's own root"


def test_a_flood_is_survived_and_told(server, sprite, name, sh):
    with watching(server, name) as watch:
        assert watch.subscribe("/home/sprite", recursive=True)["type"] == "subscribed"
        with execute(server, name, "python3", "-c", "for n in range(60000): open(f'f{n}','w').close()") as command:
            assert command.wait(60) == 0
        heard = 0
        while True:
            message = watch.hear()
            heard += 1
            if message["type"] == "error":
                assert "dropped" in message["message"]
                break
            if message["path"].endswith("/f59999"):
                break
        assert heard > 100
        sh("echo end > end")
        watch.until("write", "/home/sprite/end")


def test_a_restart_ends_a_watch_with_a_reason_and_the_disk_is_restored_under_it(server, sprite, name, sh):
    server.cli("checkpoint", "create", sprite=name)
    with watching(server, name) as watch:
        assert watch.subscribe("/home/sprite", recursive=True)["type"] == "subscribed"
        server.cli("restore", "v1", sprite=name)
        assert watch.hear()["type"] == "error"
        with pytest.raises(ConnectionClosed):
            watch.hear()


def test_watchers_have_a_bound(server, sprite, name):
    opened = []
    with pytest.raises(InvalidStatus) as refused:
        for _ in range(9):
            opened.append(watching(server, name))
            opened[-1].__enter__()
    assert refused.value.response.status_code == 429 and len(opened) == 9
    for one in opened[:8]:
        one.__exit__(None, None, None)
