"""What people, programs and hosts do wrong: an error of the API, a clear log line, no panic, nothing lost."""

import json
import os
import shutil
import socket
import subprocess
import time
from contextlib import contextmanager
from urllib.parse import quote

import pytest
import sprites

from test_sleep import connect
from wire import call, execute


def is_error(response, *statuses: int) -> dict:
    """Checks the shape that every client reads: a status and a string."""
    assert response.status_code in statuses, (response.status_code, response.text)
    body = response.json()
    assert isinstance(body.get("error"), str) and body["error"], body
    return body


@pytest.mark.parametrize("token", ["", "x", "local/local/x/y", "Bearer", "a" * 9000, "ünï"])
def test_bad_tokens(server, token):
    headers = {"Authorization": b"Bearer " + token.encode() if token else "Bearer"}
    for method, path in [("GET", "/v1/sprites"), ("POST", "/v1/sprites"), ("DELETE", "/v1/sprites/x"), ("GET", "/v1/sprites/x/exec")]:
        response = call(server, method, path, headers=headers)
        if len(token) > 8000 and response.status_code == 431:
            continue
        assert is_error(response, 401)["error"] == "authentication failed"


def test_no_token_at_all(server):
    assert is_error(call(server, "GET", "/v1/sprites", headers={"Authorization": ""}), 401)


@pytest.mark.parametrize(
    "method, path",
    [
        ("GET", ""), ("DELETE", ""), ("PUT", ""), ("GET", "/exec"), ("POST", "/exec?cmd=true"), ("POST", "/exec/1/kill"),
        ("POST", "/checkpoint"), ("GET", "/checkpoints"), ("GET", "/checkpoints/v1"), ("POST", "/checkpoints/v1/restore"),
        ("GET", "/fs/read?path=/etc/passwd&workingDir=/"), ("PUT", "/fs/write?path=x&workingDir=/"), ("GET", "/fs/list?path=/&workingDir=/"),
    ],
)
def test_unknown_sprites(server, method, path):
    kwargs = {"json": {}} if method in ("PUT", "POST") else {}
    is_error(call(server, method, "/v1/sprites/no-such-sprite" + path, **kwargs), 404)


BAD_NAMES = [
    "", "UPPER", "under_score", "-lead", "trail-", "dot.dot", "..", "../x", "a/b", "a b", "ü", "a\0b", "a\nb", "x" * 64, "%2e%2e", "a'b", "a;b",
]


@pytest.mark.parametrize("bad", BAD_NAMES)
def test_bad_names_are_refused(server, bad):
    is_error(call(server, "POST", "/v1/sprites", json={"name": bad}), 400)
    if bad:
        assert call(server, "GET", f"/v1/sprites/{quote(bad, safe='')}").status_code in (400, 404)
        assert call(server, "GET", f"/v1/sprites/{quote(bad, safe='')}/exec").status_code in (400, 404)


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"[]", b"null", b'"x"', b"{}", b'{"name": 7}', b'{"name": null}', b'{"name": ["x"]}', b'{"name": {"x": 1}}',
        b'{"name": "ok", "labels": "x"}', b'{"name": "ok", "labels": [1]}', b'{"name": "ok", "url_settings": 1}',
        b'{"name": "ok", "url_settings": {"auth": "everyone"}}', b'{"name": "ok", "environment": {"A": 1}}', b"\xff\xfe", b"[" * 20_000,
    ],
)
def test_bad_bodies_are_refused(server, body):
    response = call(server, "POST", "/v1/sprites", content=body, headers={"Content-Type": "application/json"})
    is_error(response, 400, 415, 422)
    assert call(server, "GET", "/v1/sprites?prefix=ok").json()["sprites"] == []


@pytest.mark.parametrize("query", ["max_results=x", "max_results=-1", "max_results=1000000", "continuation_token=%00", "prefix=%00", "bulk_load=x"])
def test_odd_list_queries_get_an_answer(server, query):
    response = call(server, "GET", f"/v1/sprites?{query}")
    assert response.status_code in (200, 400), response.text
    response.json()


def test_bad_updates_change_nothing(server, sprite, name):
    for body in [{"labels": "x"}, {"labels": [1]}, {"url_settings": {"auth": "nobody"}}, [], "x"]:
        is_error(call(server, "PUT", f"/v1/sprites/{name}", json=body), 400, 422)
    assert call(server, "GET", f"/v1/sprites/{name}").json()["labels"] == []


@pytest.mark.parametrize(
    "path", ["../../../../etc/shadow", "/etc/../../../../root/x", "/proc/1/root/etc/passwd", "/home/sprite/link/../../../x"]
)
def test_paths_do_not_leave_the_sprite(server, sprite, name, sh, path):
    sh("ln -sfn / link; ln -sfn ../../../../../../.. up")
    response = call(server, "GET", f"/v1/sprites/{name}/fs/read", params={"path": path, "workingDir": "/home/sprite"})
    if response.status_code == 200:
        # What a path that goes up and up reads is the sprite's own file.
        assert b"sprite:" in response.content
    else:
        is_error(response, 400, 403, 404)


def test_links_out_of_the_sprite_lead_nowhere(server, sprite, name, sh):
    marker = server.data.parent / "host-marker"
    marker.write_text("the host's")
    sh(f"ln -s /proc/1/root{marker} a; ln -s {marker} b; ln -s ../../../../../../../..{marker} c")
    for link in "abc":
        response = call(server, "GET", f"/v1/sprites/{name}/fs/read", params={"path": link, "workingDir": "/home/sprite"})
        is_error(response, 403, 404)
        written = call(server, "PUT", f"/v1/sprites/{name}/fs/write", params={"path": link, "workingDir": "/home/sprite"}, content=b"overwritten")
        assert written.status_code < 500
    assert marker.read_text() == "the host's"


@pytest.mark.parametrize("path", ["a%00b", "%00", "", "x%2F..%2F%00", "a" * 5000, "%FF%FE"])
@pytest.mark.parametrize("method, verb", [("GET", "read"), ("PUT", "write"), ("GET", "list"), ("DELETE", "delete")])
def test_paths_that_are_none(server, sprite, name, method, verb, path):
    response = call(server, method, f"/v1/sprites/{name}/fs/{verb}?workingDir=%2Fhome%2Fsprite&path={path}")
    if not path and verb == "list":
        assert response.status_code in (200, 400)
    elif path == "%FF%FE":
        assert response.status_code in (200, 201, 400, 404)
    else:
        is_error(response, 400, 403, 404, 409, 414)


@pytest.mark.parametrize(
    "query", ["cmd=true&rows=x&tty=true", "cmd=true&cols=99999999999", "cmd=a%00b", "cmd=true&env=NOEQUALS", "cmd=true&env=A%00=1",
              "cmd=true&max_run_after_disconnect=soon", "cmd=true&tty=perhaps", "cmd="]
)
def test_bad_exec_queries(server, sprite, name, query):
    response = call(server, "POST", f"/v1/sprites/{name}/exec?{query}")
    assert response.status_code < 500, response.text
    if response.status_code != 200:
        is_error(response, 400, 404)


def test_a_directory_that_is_not_there(sprite):
    done = sprite.run("pwd", cwd="/no/such/place", capture_output=True)
    assert done.returncode != 0


def test_long_queries_are_taken_or_refused_but_never_hang(server, sprite):
    script = "true #" + "x" * 60_000
    assert sprite.run("sh", "-c", script, timeout=30).returncode == 0
    response = call(server, "GET", "/v1/sprites?prefix=" + "x" * 60_000)
    assert response.status_code in (200, 400)
    response = call(server, "GET", "/v1/sprites?prefix=" + "x" * 400_000)
    assert response.status_code in (200, 400, 414, 431)


@pytest.mark.parametrize("identifier", ["v9", "9", "Current", "..", "v-1", "v99999999999999999999", "%00", "v1%2F..%2Fv1", "auto-x"])
def test_checkpoints_that_are_not_there(server, sprite, name, identifier):
    base = f"/v1/sprites/{name}/checkpoints/{identifier}"
    if identifier != "Current":
        is_error(call(server, "GET", base), 400, 404)
    is_error(call(server, "DELETE", base), 400, 404, 409)
    restored = call(server, "POST", base + "/restore")
    if restored.status_code == 200:
        assert json.loads(restored.text.splitlines()[-1])["type"] == "error"
    else:
        is_error(restored, 400, 404, 409)


def test_sessions_that_are_not_there(server, sprite, name):
    for identifier in ["999999", "x", "%00", "-1"]:
        assert call(server, "GET", f"/v1/sprites/{name}/exec/{identifier}").status_code in (400, 404)
        assert call(server, "POST", f"/v1/sprites/{name}/exec/{identifier}/kill").status_code in (400, 404)


def test_unknown_routes_and_methods(server, sprite, name):
    for method, path in [
        ("GET", "/"), ("GET", "/v1"), ("GET", "/v2/sprites"), ("PATCH", "/v1/sprites"), ("DELETE", "/v1/sprites"),
        ("GET", f"/v1/sprites/{name}/nothing"), ("GET", f"/v1/sprites/{name}/internal/activity"), ("POST", f"/v1/sprites/{name}/../internal/sleep"),
        ("POST", f"/v1/sprites/{name}/%2e%2e/internal/sleep"), ("POST", "/internal/sleep"), ("GET", f"/v1/sprites/{name}/fs/nothing"),
    ]:
        assert call(server, method, path).status_code in (400, 401, 404, 405), (method, path)
    assert sprite.run("true").returncode == 0


def test_bytes_that_are_not_http(server, sprite):
    for garbage in [b"\0" * 1000, b"GET / HTTP/9.9\r\n\r\n", b"GET /v1/sprites HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n", os.urandom(4096),
                    b"POST /v1/sprites HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n"]:
        with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
            connection.sendall(garbage)
            connection.shutdown(socket.SHUT_WR)
            connection.settimeout(20)
            try:
                while connection.recv(4096):
                    pass
            except ConnectionResetError:
                pass
    assert sprite.run("true").returncode == 0


def test_websocket_garbage_ends_that_socket_only(server, sprite, name):
    with execute(server, name, "cat") as command:
        assert command.session_id
        command.socket.send("not json")
        command.socket.send(json.dumps({"type": 7}))
        command.socket.send(json.dumps([1, 2]))
        command.socket.send(bytes([77]) + b"unknown stream")
        command.socket.send(b"")
        command.send(b"still here")
        command.until(b"still here")
        command.close_stdin()
        command.close_stdin()
        assert command.wait() == 0


def test_a_client_that_vanishes(server, sprite, name, eventually):
    """No goodbye: the connection is just gone, in the middle of output."""
    from websockets.sync.client import connect as websocket

    url = server.url.replace("http", "ws", 1) + f"/v1/sprites/{name}/exec?cmd=sh&cmd=-c&cmd=yes&max_run_after_disconnect=1s"
    gone = websocket(url, additional_headers={"Authorization": f"Bearer {server.token}"})
    gone.recv()
    gone.recv()
    gone.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    gone.socket.close()
    eventually("its command ended", lambda: sprite.run("pgrep", "-x", "yes").returncode == 1, seconds=30)
    server.expect_log("a call did not get through to a sprite.*end of file")
    half = socket.create_connection(("127.0.0.1", server.port))
    half.sendall(f"PUT /v1/sprites/{name}/fs/write?path=half&workingDir=/home/sprite HTTP/1.1\r\nHost: x\r\n".encode())
    half.sendall(f"Authorization: Bearer {server.token}\r\nContent-Length: 1000000\r\n\r\nonly this".encode())
    half.close()
    assert sprite.run("sh", "-c", "ls half 2>/dev/null | wc -l", capture_output=True).stdout.strip() == b"0"
    assert sprite.list_sessions() == []


def test_a_full_disk_in_the_sprite_is_an_error_of_the_sprite(server, sprite, name):
    done = sprite.run("sh", "-c", "fallocate -l 200G big", capture_output=True)
    assert done.returncode != 0 and b"No space left" in done.stderr
    assert sprite.run("sh", "-c", "rm -f big; echo fine", capture_output=True).stdout == b"fine\n"


def test_a_busy_port(servers):
    server = servers()
    server.command()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", server.port))
        taken.listen()
        said = server.refuses_to_start()
        assert f"127.0.0.1:{server.port}" in said and "Address already in use" in said
    server.start()
    server.stop()


def test_one_data_directory_has_one_server(servers):
    first = servers().start()
    second = servers()
    assert str(second.data) in second.refuses_to_start()
    with connect(first) as client:
        assert client.list_sprites().sprites == []


@contextmanager
def small_filesystem(directory, size: str):
    """A filesystem of its own, soon full."""
    image = directory / "small.img"
    directory.mkdir(parents=True, exist_ok=True)
    subprocess.run(["truncate", "-s", size, image], check=True)
    subprocess.run(["mkfs.ext4", "-q", "-F", image], check=True)
    mount = directory / "small"
    mount.mkdir()
    subprocess.run(["mount", "-o", "loop", image, mount], check=True)
    try:
        yield mount
    finally:
        subprocess.run(["umount", mount], check=True)


def test_a_full_data_disk_loses_nothing_that_was_flushed(servers, eventually):
    """The worker's disk fills up under a sprite: writes fail or wait, the server says why, and with room again all is well."""
    bucket = str(servers.directory / "bucket")
    with small_filesystem(servers.directory / "disk", "1200M") as mount:
        from puck_server import Server

        server = Server(mount / "data", bucket=bucket, options=["--idle-timeout", "10m", "--pool", "1"])
        server.log_path = servers.directory / "full.log"
        servers.made.append(server)
        server.start()
        server.expect_log("WARN|ERROR")
        with connect(server) as client:
            sprite = client.create_sprite("cramped")
            written = sprite.run(
                "sh", "-c", "head -c 20M /dev/urandom > first; sync -f .; sha256sum first", capture_output=True, check=True
            ).stdout
            free = shutil.disk_usage(mount).free
            filler = mount / "filler"
            subprocess.run(["fallocate", "-l", str(max(free - (2 << 20), 1 << 20)), filler], check=True)
            # What it writes waits for room, so it writes behind our back.
            sprite.run("sh", "-c", "bash -c '(head -c 60M /dev/urandom > second && sync -f . && touch done) >/dev/null 2>&1 </dev/null & disown'", check=True)
            eventually("the disk is full", lambda: shutil.disk_usage(mount).free < 4 << 20, seconds=60)
            assert server.process.poll() is None, server.log()[-3000:]
            filler.unlink()
            eventually("the sprite answers", lambda: answers(sprite, written), seconds=90, pause=1)
        server.stop()
        server.start()
        server.expect_log("WARN|ERROR")
        with connect(server) as client:
            assert client.sprite("cramped").run("sha256sum", "first", capture_output=True, check=True).stdout == written
        server.stop()


def answers(sprite, written: bytes) -> bool:
    """Whether the sprite can be used, and has what it had."""
    try:
        return sprite.run("sha256sum", "first", capture_output=True, timeout=20).stdout == written
    except (sprites.exceptions.SpriteError, TimeoutError):
        return False


def test_an_unusable_data_directory(servers):
    server = servers()
    server.data.write_text("a file")
    assert str(server.data) in server.refuses_to_start()


def test_bad_flags(servers):
    from puck_server import PUCK

    for flags in [["--listen", "nowhere"], ["--bucket", "ftp://x"], ["--bucket", "s3://"], ["--idle-timeout", "never"], ["--pool", "-1"], ["--organization", "A B"]]:
        done = subprocess.run([PUCK, "dev", "--data", servers.directory / "d", *flags], capture_output=True, text=True, check=False, timeout=30)
        assert done.returncode in (1, 2) and done.stderr and "panicked" not in done.stderr, (flags, done)


def test_many_half_open_connections_do_not_stop_others(server, sprite):
    held = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(300)]
    try:
        for one in held:
            one.sendall(b"GET /v1/sprites HTTP/1.1\r\nHo")
        started = time.monotonic()
        assert sprite.run("echo", "through", capture_output=True).stdout == b"through\n"
        assert time.monotonic() - started < 10
    finally:
        for one in held:
            one.close()
