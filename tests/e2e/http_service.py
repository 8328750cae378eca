"""An HTTP server on loopback, in threads of this process."""

import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class HttpService:
    """Takes every request, of any method, to a function; each instance has a port."""

    def __init__(self, handle: Callable[["Request"], None]):
        methods = {f"do_{method}": lambda request: handle(request) for method in ("GET", "HEAD", "PUT", "POST", "DELETE")}
        handler = type("Handler", (Request,), methods)
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.server.daemon_threads = True
        self.server.block_on_close = False
        self.server.handle_error = lambda *_: None
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self) -> None:
        """Ends it."""
        self.server.shutdown()
        self.server.server_close()


class Request(BaseHTTPRequestHandler):
    """A request that waits for its answer."""

    protocol_version = "HTTP/1.1"

    def body(self) -> bytes:
        """What came with it."""
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def answer(self, status: int, headers: dict, body: bytes, length: str | None = None) -> None:
        """Answers it. A length that is not the body's is that of what a HEAD is about."""
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", length or str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_):
        pass
