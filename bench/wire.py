"""A client of the API with nothing between the clock and the socket."""

import base64
import http.client
import json
import os
import socket
import struct
import time
from dataclasses import dataclass
from urllib.parse import urlencode, urlsplit

TIMEOUT_SECONDS = 300

STDOUT, STDERR, EXIT, STDIN_EOF = 1, 2, 3, 4


class Refused(Exception):
    """The server answered with an error."""


@dataclass
class Done:
    """A command that ended. Times are in seconds since before the connection was opened."""

    code: int
    output: bytes
    first_output: float | None
    ended: float


# The server closes a connection on which nothing was asked for longer.
IDLE_SECONDS_MAX = 20


class Api:
    """One connection that is kept alive, and one more per command, as the official clients do it."""

    def __init__(self, url: str, token: str):
        self.address = (urlsplit(url).hostname, urlsplit(url).port)
        self.token = token
        self.connection = http.client.HTTPConnection(*self.address, timeout=TIMEOUT_SECONDS)
        self.used = time.monotonic()

    def call(self, method: str, path: str, body: dict | bytes | None = None, expect: tuple = (200, 201, 204)) -> bytes:
        """One request; the whole body of the answer."""
        headers = {"Authorization": f"Bearer {self.token}"}
        data = json.dumps(body).encode() if isinstance(body, dict) else body
        if isinstance(body, dict):
            headers["Content-Type"] = "application/json"
        if time.monotonic() - self.used > IDLE_SECONDS_MAX:
            self.connection.close()
        self.connection.request(method, path, data, headers)
        if self.connection.sock:
            self.connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        answer = self.connection.getresponse()
        text = answer.read()
        self.used = time.monotonic()
        if answer.status not in expect:
            raise Refused(f"{method} {path}: {answer.status} {text[:500]!r}")
        return text

    def create(self, name: str, **settings) -> dict:
        """Creates a sprite."""
        return json.loads(self.call("POST", "/v1/sprites", {"name": name, **settings}))

    def destroy(self, name: str) -> None:
        """Destroys a sprite."""
        self.call("DELETE", f"/v1/sprites/{name}")

    def status(self, name: str) -> str:
        """`cold`, `warm` or `running`; does not wake it."""
        return json.loads(self.call("GET", f"/v1/sprites/{name}"))["status"]

    def write(self, name: str, path: str, data: bytes, mode: str = "0755") -> None:
        """Writes a file in a sprite."""
        query = urlencode({"path": path, "workingDir": "/", "mode": mode, "mkdirParents": "true"})
        self.call("PUT", f"/v1/sprites/{name}/fs/write?{query}", data)

    def checkpoint(self, name: str) -> str:
        """Takes a checkpoint; gives its id."""
        last = self._stream(f"/v1/sprites/{name}/checkpoint", {})
        return next(word for word in last["data"].split() if word.startswith("v") and word[1:].isdigit())

    def restore(self, name: str, checkpoint: str) -> None:
        """Goes back to a checkpoint."""
        self._stream(f"/v1/sprites/{name}/checkpoints/{checkpoint}/restore", None)

    def _stream(self, path: str, body: dict | None) -> dict:
        lines = [json.loads(line) for line in self.call("POST", path, body).splitlines()]
        if lines[-1]["type"] != "complete":
            raise Refused(f"{path}: {lines[-1]}")
        return lines[-1]

    def exec(self, name: str, *argv: str, directory: str | None = None) -> Done:
        """Runs a command without a terminal and without input."""
        query = [("cmd", word) for word in argv] + [("path", argv[0]), ("stdin", "false")]
        query += [("dir", directory)] if directory else []
        started = time.perf_counter()
        with socket.create_connection(self.address, timeout=TIMEOUT_SECONDS) as connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            stream = WebSocket(connection, f"/v1/sprites/{name}/exec?{urlencode(query)}", self.address, self.token)
            output, first = [], None
            while True:
                kind, payload = stream.receive()
                if kind != WebSocket.BINARY or not payload:
                    continue
                if payload[0] in (STDOUT, STDERR):
                    first = first or time.perf_counter() - started
                    output.append(payload[1:])
                elif payload[0] == EXIT:
                    return Done(payload[1], b"".join(output), first, time.perf_counter() - started)

    def run(self, name: str, *argv: str, **options) -> str:
        """Runs a command that must succeed; gives what it printed."""
        done = self.exec(name, *argv, **options)
        if done.code:
            raise Refused(f"{argv} in {name}: status {done.code}: {done.output[-2000:]!r}")
        return done.output.decode()


class WebSocket:
    """The client's side of RFC 6455, as far as an exec needs it."""

    TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10

    def __init__(self, connection: socket.socket, path: str, address: tuple, token: str):
        self.connection = connection
        key = base64.b64encode(os.urandom(16)).decode()
        lines = [
            f"GET {path} HTTP/1.1",
            f"Host: {address[0]}:{address[1]}",
            f"Authorization: Bearer {token}",
            "Connection: Upgrade",
            "Upgrade: websocket",
            "Sec-WebSocket-Version: 13",
            f"Sec-WebSocket-Key: {key}",
        ]
        connection.sendall("\r\n".join([*lines, "", ""]).encode())
        self.buffer = b""
        while b"\r\n\r\n" not in self.buffer:
            self._fill()
        head, self.buffer = self.buffer.split(b"\r\n\r\n", 1)
        if not head.startswith(b"HTTP/1.1 101"):
            raise Refused(f"exec: {head.splitlines()[0]!r} {self.buffer[:500]!r}")

    def _fill(self) -> None:
        data = self.connection.recv(1 << 16)
        if not data:
            raise Refused("exec: the connection ended without an exit")
        self.buffer += data

    def _take(self, length: int) -> bytes:
        while len(self.buffer) < length:
            self._fill()
        taken, self.buffer = self.buffer[:length], self.buffer[length:]
        return taken

    def receive(self) -> tuple[int, bytes]:
        """The next message; messages of a server that splits them are not expected."""
        first, second = self._take(2)
        length = second & 0x7F
        if length == 126:
            (length,) = struct.unpack(">H", self._take(2))
        elif length == 127:
            (length,) = struct.unpack(">Q", self._take(8))
        payload = self._take(length)
        kind = first & 0x0F
        if kind == self.PING:
            self.send(self.PONG, payload)
        if kind == self.CLOSE:
            raise Refused(f"exec: closed without an exit: {payload!r}")
        return kind, payload

    def send(self, kind: int, payload: bytes) -> None:
        """Sends a short message; the mask of zeros is allowed and changes nothing."""
        self.connection.sendall(bytes([0x80 | kind, 0x80 | len(payload)]) + bytes(4) + payload)
