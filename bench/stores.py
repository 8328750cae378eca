"""Buckets that are far away, and what reads from them as fast as can be."""

import http.client
import queue
import socket
import sys
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests/e2e"))

# What the end-to-end tests have too is found by the line above.
from machines import agents, memory  # noqa: E402
from object_stores import BUCKET, FaultyProxy, SeaweedFS, environment  # noqa: E402

__all__ = ["BUCKET", "DelayingProxy", "FaultyProxy", "SeaweedFS", "agents", "environment", "memory", "parallel_read"]

CHUNK_BYTES = 1 << 20
QUEUE_CHUNKS_MAX = 256

READERS = 16
RANGE_BYTES = 4 << 20


class DelayingProxy:
    """Passes connections on. What a client sends arrives `seconds` later, as over a long line; answers are not slowed."""

    def __init__(self, upstream: int, seconds: float):
        self.seconds, self.upstream = seconds, upstream
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            server = socket.create_connection(("127.0.0.1", self.upstream))
            for one in (client, server):
                one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            line: queue.Queue = queue.Queue(QUEUE_CHUNKS_MAX)
            for work in ((self._take, client, line), (self._give, server, line), (self._answer, server, client)):
                threading.Thread(target=work[0], args=work[1:], daemon=True).start()

    def _take(self, client: socket.socket, line: queue.Queue) -> None:
        try:
            while data := client.recv(CHUNK_BYTES):
                line.put((time.monotonic() + self.seconds, data))
        except OSError:
            pass
        line.put((0.0, b""))

    def _give(self, server: socket.socket, line: queue.Queue) -> None:
        try:
            while True:
                due, data = line.get()
                if not data:
                    server.shutdown(socket.SHUT_WR)
                    return
                time.sleep(max(0.0, due - time.monotonic()))
                server.sendall(data)
        except OSError:
            pass

    @staticmethod
    def _answer(server: socket.socket, client: socket.socket) -> None:
        buffer = memoryview(bytearray(CHUNK_BYTES))
        try:
            while size := server.recv_into(buffer):
                client.sendall(buffer[:size])
        except OSError:
            pass
        finally:
            client.close()
            server.close()

    def close(self) -> None:
        """Takes no more connections."""
        self.listener.close()


def parallel_read(port: int, path: str, size: int) -> float:
    """Seconds for an object that everybody may read, in ranges of 4 MiB over 16 connections that are kept."""
    ranges: queue.SimpleQueue = queue.SimpleQueue()
    for start in range(0, size, RANGE_BYTES):
        ranges.put((start, min(start + RANGE_BYTES, size) - 1))
    failures: list[Exception] = []

    def read() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        buffer = memoryview(bytearray(RANGE_BYTES))
        try:
            while True:
                first, last = ranges.get_nowait()
                connection.request("GET", path, headers={"Range": f"bytes={first}-{last}"})
                answer = connection.getresponse()
                got = 0
                while count := answer.readinto(buffer[got:]):
                    got += count
                if answer.status != 206 or got != last - first + 1:
                    raise RuntimeError(f"{path}: status {answer.status}, {got} bytes")
        except queue.Empty:
            pass
        except Exception as error:
            failures.append(error)
        finally:
            connection.close()

    threads = [threading.Thread(target=read) for _ in range(READERS)]
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    return time.perf_counter() - started
