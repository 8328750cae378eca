"""A sprite's URL: the web server inside, for whom it is meant."""

import base64
import http.client
import json
import re
import socket
import threading
import time

import pytest
import sprites
from websockets.sync.client import connect

from wire import call

# Answers with what it was asked; a POST with its body; /stream in pieces; a WebSocket with an echo.
SERVER = r"""
import base64, hashlib, http.server, json, time
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        if self.headers.get("Upgrade", "").lower() == "websocket":
            key = self.headers["Sec-WebSocket-Key"] + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
            self.send_response(101)
            self.send_header("Upgrade", "websocket")
            self.send_header("Connection", "Upgrade")
            self.send_header("Sec-WebSocket-Accept", base64.b64encode(hashlib.sha1(key.encode()).digest()).decode())
            self.end_headers()
            head = self.rfile.read(2); mask = self.rfile.read(4)
            text = bytes(byte ^ mask[i % 4] for i, byte in enumerate(self.rfile.read(head[1] & 127)))
            self.wfile.write(bytes([0x81, len(text)]) + text + b"\x88\x00")
            return
        if self.path == "/stream":
            self.send_response(200)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            for piece in (b"one", b"two"):
                self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece)); self.wfile.flush()
                time.sleep(0.5)
            self.wfile.write(b"0\r\n\r\n")
            return
        if self.path == "/rude":
            self.close_connection = True
            self.connection.shutdown(2)
            return
        self.answer(json.dumps({"path": self.path, "method": self.command, "headers": [[k.lower(), v] for k, v in self.headers.items()]}).encode())
    def do_POST(self):
        self.answer(self.rfile.read(int(self.headers["Content-Length"])))
    do_DELETE = do_GET
    def answer(self, body):
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Set-Cookie", "a=b")
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *_): pass
http.server.ThreadingHTTPServer(("127.0.0.1", PORT), Handler).serve_forever()
"""


class Site:
    """A sprite with a web server, by its URL."""

    def __init__(self, server, sprite, port: int = 8080, says_port: bool = True):
        self.server, self.sprite = server, sprite
        self.host = re.fullmatch(r"http://([^/]+)", call(server, "GET", f"/v1/sprites/{sprite.name}").json()["url"])[1]
        body = {"cmd": "python3", "args": ["-c", SERVER.replace("PORT", str(port))], "http_port": port if says_port else None}
        assert call(server, "PUT", f"/v1/sprites/{sprite.name}/services/web?duration=0s", json=body).status_code == 200

    def ask(self, method: str, path: str, *, token: str | None = None, host: str | None = None, **kwargs):
        headers = {"Host": host or self.host, "Authorization": token, **kwargs.pop("headers", {})}
        connection = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=60)
        try:
            connection.request(method, path, headers={key: value for key, value in headers.items() if value is not None}, **kwargs)
            answer = connection.getresponse()
            return answer.status, answer.headers, answer.read()
        finally:
            connection.close()

    @property
    def bearer(self) -> str:
        return f"Bearer {self.server.token}"

    def auth(self, who: str) -> None:
        assert call(self.server, "PUT", f"/v1/sprites/{self.sprite.name}", json={"url_settings": {"auth": who}}).status_code == 200


@pytest.fixture
def site(server, sprite):
    return Site(server, sprite)


def test_the_url_is_for_holders_of_a_token(site):
    for token in (None, "Bearer local/ab2c/1/wrong", "Bearer", "Basic x", "Basic " + base64.b64encode(b"a:b").decode()):
        status, headers, body = site.ask("GET", "/", token=token)
        assert status == 401 and json.loads(body)["error"] == "authentication failed"
        assert [value.split()[0] for value in headers.get_all("WWW-Authenticate")] == ["Bearer", "Basic"]
    login = "Basic " + base64.b64encode(f"anybody:{site.server.token}".encode()).decode()
    for token in (site.bearer, login):
        status, headers, body = site.ask("GET", "/a%2Fb/../c?x=1", token=token, headers={"Cookie": "own=1"})
        seen = json.loads(body)
        assert status == 200 and seen["path"] == "/a%2Fb/../c?x=1" and headers["Set-Cookie"] == "a=b"
        headers = dict(seen["headers"])
        assert "authorization" not in headers and headers["cookie"] == "own=1" and headers["host"] == site.host
    status, _, body = site.ask("POST", "/", token=site.bearer, body=b"x" * (5 << 20))
    assert status == 200 and body == b"x" * (5 << 20)


def test_a_public_url_is_for_everybody(site):
    site.auth("public")
    status, _, body = site.ask("DELETE", "/", token="Bearer of-the-app", headers={"X-Forwarded-For": "192.0.2.1", "Sprite-Client-Ip": "192.0.2.2"})
    seen = json.loads(body)
    assert (status, seen["method"]) == (200, "DELETE")
    headers = dict(seen["headers"])
    assert headers["authorization"] == "Bearer of-the-app"
    assert (headers["x-forwarded-for"], headers["sprite-client-ip"], headers["x-forwarded-proto"]) == ("192.0.2.1, 127.0.0.1", "127.0.0.1", "http")
    site.auth("sprite")
    assert site.ask("GET", "/")[0] == 401


def test_a_visitor_cannot_hide(site):
    site.auth("public")
    names = "sprite-client-ip, x-forwarded-for, x-forwarded-host, x-forwarded-proto, host, x-own"
    headers = dict(json.loads(site.ask("GET", "/", headers={"Connection": names, "X-Own": "1"})[2])["headers"])
    assert (headers["sprite-client-ip"], headers["x-forwarded-for"], headers["x-forwarded-proto"]) == ("127.0.0.1", "127.0.0.1", "http")
    assert headers["host"] == headers["x-forwarded-host"] == site.host, "with its port, as a page's origin has it"
    assert "x-own" not in headers


def test_a_slow_change_of_another_setting_does_not_open_it_again(site):
    site.auth("public")
    body = b'{"url_settings":{"private_access":"admins"}}'
    with socket.create_connection(("127.0.0.1", site.server.port)) as slow:
        head = f"PUT /v1/sprites/{site.sprite.name} HTTP/1.1\r\nHost: localhost\r\nAuthorization: {site.bearer}\r\nContent-Length: {len(body)}\r\n\r\n"
        slow.sendall(head.encode() + body[:10])
        time.sleep(0.3)
        site.auth("sprite")
        slow.sendall(body[10:])
        assert slow.recv(4096).startswith(b"HTTP/1.1 200 ")
    assert site.ask("GET", "/")[0] == 401
    assert call(site.server, "GET", f"/v1/sprites/{site.sprite.name}").json()["url_settings"] == {"auth": "sprite", "private_access": "admins"}


def test_who_waits_for_a_service_is_not_kept_for_ever(server, sprite, site):
    site.auth("public")
    path = f"/v1/sprites/{sprite.name}/services"
    assert call(server, "PUT", f"{path}/never?duration=0s", json={"cmd": "/no/such"}).status_code == 200
    body = {"cmd": "sleep", "args": ["1000"], "needs": ["never"]}
    assert call(server, "PUT", f"{path}/waits?duration=0s", json=body).status_code == 200
    assert call(server, "POST", f"{path}/web/stop").status_code == 200
    started = time.monotonic()
    assert site.ask("GET", "/")[0] == 502
    assert time.monotonic() - started < 30


def test_answers_stream_and_websockets_pass(site):
    site.auth("public")
    connection = http.client.HTTPConnection("127.0.0.1", site.server.port, timeout=30)
    connection.request("GET", "/stream", headers={"Host": site.host})
    answer = connection.getresponse()
    assert answer.read(3) == b"one"
    assert answer.read() == b"two"
    connection.close()
    raw = socket.create_connection(("127.0.0.1", site.server.port))
    with connect(f"ws://{site.host}/socket", sock=raw, open_timeout=30) as websocket:
        websocket.send("héllo")
        assert websocket.recv(timeout=10) == "héllo"


def test_a_host_is_a_sprites_or_the_apis_and_never_both(site):
    site.auth("public")
    status, _, body = site.ask("GET", "/v1/sprites", token=site.bearer)
    assert status == 200 and json.loads(body)["path"] == "/v1/sprites", "the API is not to be had at a sprite's host"
    _, org = site.host.split(":")[0].rsplit(".", 1)[0].rsplit("-", 1)
    for host in (f"no-such-{org}.localhost", f"{site.sprite.name}-other.localhost", f"x.{site.host}", ".localhost", f"{org}.localhost"):
        assert site.ask("GET", "/v1/sprites", host=host)[0] == 401
        assert site.ask("GET", "/v1/sprites", host=host, token=site.bearer)[0] == 404
    for host in ("localhost", "127.0.0.1:1", "example.com"):
        assert "sprites" in json.loads(site.ask("GET", "/v1/sprites", host=host, token=site.bearer)[2])
    raw = b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: %s\r\n\r\n" % site.host.encode()
    with socket.create_connection(("127.0.0.1", site.server.port)) as two:
        two.sendall(raw)
        assert two.recv(100).startswith(b"HTTP/1.1 400 ")
    name, port = site.host.split(":")
    assert site.ask("GET", "/", host=f"{name.upper()}.:{port}")[0] == 200


def test_what_does_not_answer_says_so(server, sprite, site, sh):
    site.auth("public")
    assert site.ask("GET", "/rude")[0] == 502
    assert call(server, "POST", f"/v1/sprites/{sprite.name}/services/web/stop").status_code == 200
    status, _, body = site.ask("GET", "/")
    assert status == 502 and "port 8080" in json.loads(body)["error"]
    assert site.ask("CONNECT", site.host)[0] == 405
    sprite.run("sh", "-c", "cd /tmp; echo plain > index.html; setsid python3 -m http.server 8080 >/dev/null 2>&1 &", check=True)
    assert call(server, "DELETE", f"/v1/sprites/{sprite.name}/services/web").status_code == 204
    for _ in range(100):
        status, _, body = site.ask("GET", "/index.html")
        if status == 200:
            break
        sprite.run("sleep", "0.1")
    assert body == b"plain\n", "whatever listens on port 8080"


def test_a_request_wakes_its_sprite_and_waits(servers, eventually):
    server = servers(options=["--idle-timeout", "1s"])
    server.start()
    client = sprites.SpritesClient(server.token, base_url=server.url)
    site = Site(server, client.create_sprite("one"), port=3000)
    site.auth("public")
    for _ in range(2):
        eventually("asleep", lambda: client.get_sprite("one").status == "cold")
        assert site.ask("GET", "/", token=None)[0] == 200
    eventually("asleep", lambda: client.get_sprite("one").status == "cold")
    answers: list[int] = []
    threads = [threading.Thread(target=lambda: answers.append(site.ask("GET", "/")[0])) for _ in range(30)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [200] * 30
    # One that has not said which port it will open is waited for as well.
    other = Site(server, client.create_sprite("two"), says_port=False)
    other.auth("public")
    eventually("asleep", lambda: client.get_sprite("two").status == "cold")
    assert other.ask("GET", "/")[0] == 200
    site.auth("sprite")
    eventually("asleep", lambda: client.get_sprite("one").status == "cold")
    assert site.ask("GET", "/")[0] == 401
    assert client.get_sprite("one").status == "cold", "who may not see it does not wake it"
