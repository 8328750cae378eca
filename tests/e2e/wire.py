"""The wire itself, for what the Python SDK offers no call for."""

import http.client
import json
from contextlib import contextmanager
from json import dumps
from urllib.parse import urlencode

from websockets.sync.client import connect

STDIN, STDOUT, STDERR, EXIT, STDIN_EOF = range(5)


class Exec:
    """One exec over a WebSocket."""

    def __init__(self, socket, tty: bool):
        self.socket = socket
        self.tty = tty
        self.texts: list[dict] = []
        self.output = b""
        self.exit_code: int | None = None

    def send(self, data: bytes) -> None:
        """Writes to the command's standard input."""
        self.socket.send(data if self.tty else bytes([STDIN]) + data)

    def close_stdin(self) -> None:
        """Ends the command's standard input."""
        self.socket.send(bytes([STDIN_EOF]))

    def control(self, **message) -> None:
        """Sends a control message, such as a signal."""
        self.socket.send(json.dumps(message))

    def read(self, seconds: float = 30) -> bool:
        """Takes one message in; False when the exit was seen."""
        message = self.socket.recv(timeout=seconds)
        if isinstance(message, str):
            self.texts.append(json.loads(message))
            if self.texts[-1]["type"] == "exit":
                self.exit_code = self.texts[-1]["exit_code"]
        elif self.tty:
            self.output += message
        elif message and message[0] == EXIT:
            self.exit_code = message[1]
        elif message:
            self.output += message[1:]
        return self.exit_code is None

    def until(self, text: bytes, seconds: float = 30) -> None:
        """Reads until the output holds the text."""
        while text not in self.output:
            assert self.read(seconds), f"ended with {self.exit_code} before {text!r}: {self.output!r}"

    def forget(self) -> None:
        """Lets `until` look only at what comes from now on."""
        self.output = b""

    def wait(self, seconds: float = 30) -> int:
        """Reads to the end and gives the exit code."""
        while self.read(seconds):
            pass
        return self.exit_code

    @property
    def session_id(self) -> str:
        """The session's id, from the first message."""
        while not self.texts:
            self.read()
        assert self.texts[0]["type"] == "session_info", self.texts
        return self.texts[0]["session_id"]


@contextmanager
def execute(server, sprite: str, *command: str, tty: bool = False, attach: str | None = None, **query):
    """Opens an exec, or attaches to one."""
    words = [("cmd", word) for word in command] + [(key, str(value)) for key, value in query.items()]
    words += [("stdin", "true")] + ([("tty", "true")] if tty else [])
    path = f"/v1/sprites/{sprite}/exec" + (f"/{attach}" if attach else "")
    url = server.url.replace("http", "ws", 1) + path + "?" + urlencode(words)
    headers = {"Authorization": f"Bearer {server.token}"}
    with connect(url, additional_headers=headers, max_size=10 << 20, open_timeout=30) as socket:
        yield Exec(socket, tty)


class Response:
    """An answer, read to its end."""

    def __init__(self, answer: http.client.HTTPResponse):
        self.status_code = answer.status
        self.headers = answer.headers
        self.content = answer.read()

    @property
    def text(self) -> str:
        """The body as text."""
        return self.content.decode(errors="replace")

    def json(self):
        """The body as JSON."""
        return json.loads(self.content)


def call(server, method: str, path: str, *, headers=None, params=None, json=None, content=None, timeout=60) -> Response:
    """One request with its path as it is: a client library would tidy away what the server must be able to take."""
    headers = {"Authorization": f"Bearer {server.token}", **(headers or {})}
    if params:
        path += "?" + urlencode(params)
    if json is not None:
        content = dumps(json).encode()
        headers["Content-Type"] = "application/json"
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=timeout)
    try:
        connection.request(method, path, body=content, headers=headers)
        return Response(connection.getresponse())
    finally:
        connection.close()
