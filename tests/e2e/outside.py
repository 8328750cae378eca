"""An outside world for sprites: hosts in a network namespace, and a name server on this host's loopback that knows them."""

import itertools
import os
import socketserver
import struct
import subprocess
import sys
import threading

# Addresses for examples (RFC 5737): no network has them.
GATEWAY, FIRST, SECOND = "198.51.100.1", "198.51.100.10", "198.51.100.11"

_numbers = itertools.count(1)

# Echoes lines on port 7, and answers with its address on port 80.
HOST = """
import http.server, socketserver, sys, threading
class Web(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = self.connection.getsockname()[0].encode() + b"\\n"
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *_):
        pass
class Echo(socketserver.StreamRequestHandler):
    def handle(self):
        for line in self.rfile:
            self.wfile.write(line)
class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = daemon_threads = True
for port, handler in ((80, Web), (7, Echo)):
    threading.Thread(target=Server(("0.0.0.0", port), handler).serve_forever).start()
print("ready", flush=True)
"""


def run(*command: str) -> None:
    """A program that must succeed."""
    subprocess.run(command, check=True, capture_output=True)


class NameServer:
    """Answers queries for addresses from a table of names: each has addresses, or one other name."""

    def __init__(self):
        self.names: dict[str, list[str]] = {}
        self.asked: list[str] = []
        outer = self

        class Udp(socketserver.BaseRequestHandler):
            def handle(self):
                query, socket = self.request
                socket.sendto(outer.answer(query), self.client_address)

        class Tcp(socketserver.BaseRequestHandler):
            def handle(self):
                (length,) = struct.unpack("!H", self.request.recv(2))
                answer = outer.answer(self.request.recv(length))
                self.request.sendall(struct.pack("!H", len(answer)) + answer)

        self.address = f"127.{os.getpid() % 250}.{next(_numbers)}.53"
        self.servers = [socketserver.ThreadingUDPServer((self.address, 53), Udp), socketserver.ThreadingTCPServer((self.address, 53), Tcp)]
        for server in self.servers:
            threading.Thread(target=server.serve_forever, daemon=True).start()

    def close(self) -> None:
        """Ends it."""
        for server in self.servers:
            server.shutdown()
            server.server_close()

    def answer(self, query: bytes) -> bytes:
        """The answer to one query, with every alias on the way."""
        end = query.index(b"\0", 12) + 5
        labels, at = [], 12
        while query[at]:
            labels.append(query[at + 1 : at + 1 + query[at]].decode().lower())
            at += 1 + query[at]
        name, records = ".".join(labels), []
        self.asked.append(name)
        (kind,) = struct.unpack("!H", query[end - 4 : end - 2])
        while True:
            values = self.names.get(name, [])
            alias = next((value for value in values if not value[0].isdigit()), None)
            if alias is None:
                break
            records.append(self.record(name, 5, self.encoded(alias)))
            name = alias
        if kind == 1:
            records += [self.record(name, 1, bytes(map(int, value.split(".")))) for value in values]
        code = 0 if values else 3
        return query[:2] + struct.pack("!HHHHH", 0x8180 | code, 1, len(records), 0, 0) + query[12:end] + b"".join(records)

    @staticmethod
    def encoded(name: str) -> bytes:
        """A name as it is on the wire."""
        return b"".join(bytes([len(label)]) + label.encode() for label in name.split(".")) + b"\0"

    @classmethod
    def record(cls, name: str, kind: int, data: bytes) -> bytes:
        """One record."""
        return cls.encoded(name) + struct.pack("!HHIH", kind, 1, 5, len(data)) + data


class Outside:
    """Hosts at two addresses, and the name server."""

    def __init__(self):
        self.namespace = f"puck-test-{os.getpid()}"
        self.cable = f"pt{os.getpid()}"
        self.names = NameServer()
        run("ip", "netns", "add", self.namespace)
        try:
            run("ip", "link", "add", self.cable, "type", "veth", "peer", "name", "outside", "netns", self.namespace)
            run("ip", "address", "add", f"{GATEWAY}/24", "dev", self.cable)
            run("ip", "link", "set", self.cable, "up")
            inside = ["ip", "-n", self.namespace]
            for address in (FIRST, SECOND):
                run(*inside, "address", "add", f"{address}/24", "dev", "outside")
            run(*inside, "link", "set", "outside", "up")
            run(*inside, "route", "add", "default", "via", GATEWAY)
            command = ["ip", "netns", "exec", self.namespace, sys.executable, "-c", HOST]
            self.host = subprocess.Popen(command, stdout=subprocess.PIPE)
            assert self.host.stdout.readline() == b"ready\n"
        except BaseException:
            run("ip", "netns", "delete", self.namespace)
            raise

    def close(self) -> None:
        """Leaves nothing behind."""
        self.host.kill()
        self.host.wait()
        self.names.close()
        run("ip", "link", "delete", self.cable)
        run("ip", "netns", "delete", self.namespace)
