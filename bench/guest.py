#!/usr/bin/env python3
"""Measures what passes through the guest agent: commands, their output, files; and whether many commands leave anything behind.

    make bench-guest                            everything, in about three minutes
    .venv/bin/python bench/guest.py --quick     less of each; results go to bench/out

The client of a bulk transfer reads and does not look, so that what is measured is the server; it still shares the processors with it.
"""

import argparse
import concurrent.futures
import json
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from urllib.parse import urlencode

import report
from places import HOME, ROOT, Server
from report import Promise
from run import machine, summary
from wire import Refused, WebSocket

NAME = "guest"
SECTION, COMMAND = "measured-guest", "`make bench-guest`"

RECEIVE_BYTES = 1 << 20
BULK_ROUNDS = 3

# How long a process sleeps that is to be found among all of the host, which nobody else does.
MARK = 10**9 + os.getpid()

# The server's last message: a close with the code 1000.
CLOSED = bytes([0x88, 2, *(1000).to_bytes(2)])

# What an agent may grow by over all the commands: what its allocator keeps, and no more for ten times as many.
GROWTH_BYTES_MAX = 16 << 20
GROWTH_DESCRIPTORS_MAX = 8


class Guest:
    """One sprite, and the measurements of it."""

    def __init__(self, server: Server, quick: bool):
        self.server, self.api = server, server.api
        self.execs = 200 if quick else 1000
        self.many = 1000 if quick else 10_000
        self.at_once = 50 if quick else 200
        self.bulk = 10**8 if quick else 10**9
        self.api.create(NAME)
        self.api.run(NAME, "true")

    def control(self) -> WebSocket:
        """A socket that carries one command after another."""
        connection = socket.create_connection(self.api.address, timeout=60)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return WebSocket(connection, f"/v1/sprites/{NAME}/control", self.api.address, self.api.token)

    def true(self, stream: WebSocket) -> float:
        """`true` over a socket that is open already: until it is told to be complete."""
        ask = b'control:{"type":"op.start","op":"exec","args":{"cmd":["true"]}}'
        started = time.perf_counter()
        stream.send(WebSocket.TEXT, ask)
        while True:
            kind, payload = stream.receive()
            if kind == WebSocket.TEXT and payload.startswith(b"control:"):
                said = json.loads(payload[8:])
                if said != {"type": "op.complete", "args": {"exitCode": 0}}:
                    raise Refused(str(said))
                return time.perf_counter() - started

    def exec(self) -> dict:
        """`true` through the API, on a kept socket and on a new one each, and through `nsenter` into the same container, in turn."""
        inside = self.host_pid()
        enter = ["nsenter", "-t", inside, "-a", "/bin/true"]
        stream = self.control()
        kept, fresh, entered = [], [], []
        for _ in range(self.execs):
            kept.append(self.true(stream))
            fresh.append(self.api.exec(NAME, "true").ended)
            started = time.perf_counter()
            subprocess.run(enter, check=True)
            entered.append(time.perf_counter() - started)
        stream.connection.close()
        result = {"kept": summary(kept), "fresh": summary(fresh), "nsenter": summary(entered)}
        return {**result, "to_nsenter": result["kept"]["p50_ms"] / result["nsenter"]["p50_ms"]}

    def host_pid(self) -> str:
        """A process of the container, as this host numbers it."""
        self.api.run(NAME, "sh", "-c", f"setsid sleep {MARK} >/dev/null 2>&1 &")
        for _ in range(100):
            if found := marked():
                return str(found)
            time.sleep(0.05)
        raise RuntimeError("the command is not among this host's processes")

    def bulk_rate(self, transfer) -> dict:
        """Megabytes per second, the median of some rounds."""
        rates = []
        for _ in range(BULK_ROUNDS):
            started = time.perf_counter()
            moved = transfer()
            rates.append(moved / (time.perf_counter() - started) / 1e6)
            if moved < self.bulk:
                raise RuntimeError(f"{moved} bytes of {self.bulk} came")
        return {"bytes": self.bulk, "mb_per_second": statistics.median(rates), "all": rates}

    def stdout(self) -> dict:
        """What a command prints, over a WebSocket, until the server says that this was all."""
        query = urlencode([("cmd", "head"), ("cmd", "-c"), ("cmd", str(self.bulk)), ("cmd", "/dev/zero"), ("stdin", "false")])

        def transfer() -> int:
            with socket.create_connection(self.api.address, timeout=60) as connection:
                stream = WebSocket(connection, f"/v1/sprites/{NAME}/exec?{query}", self.api.address, self.api.token)
                return len(stream.buffer) + drain(connection, CLOSED)

        return self.bulk_rate(transfer)

    def write(self) -> dict:
        """A file through the API; bytes that do not compress."""
        piece = os.urandom(1 << 20)
        count = -(-self.bulk // len(piece))
        query = urlencode({"path": f"{HOME}/bulk", "workingDir": "/"})

        def transfer() -> int:
            with socket.create_connection(self.api.address, timeout=300) as connection:
                connection.sendall(self.head("PUT", f"/v1/sprites/{NAME}/fs/write?{query}", f"Content-Length: {count * len(piece)}"))
                for _ in range(count):
                    connection.sendall(piece)
                answer = connection.recv(4096)
                if not answer.startswith(b"HTTP/1.1 20"):
                    raise Refused(repr(answer))
            return count * len(piece)

        return self.bulk_rate(transfer)

    def read(self) -> dict:
        """The same file back."""
        query = urlencode({"path": f"{HOME}/bulk", "workingDir": "/"})

        def transfer() -> int:
            with socket.create_connection(self.api.address, timeout=300) as connection:
                connection.sendall(self.head("GET", f"/v1/sprites/{NAME}/fs/read?{query}", "Connection: close"))
                return drain(connection)

        return self.bulk_rate(transfer)

    def head(self, method: str, path: str, *lines: str) -> bytes:
        """The head of a request."""
        host, port = self.api.address
        return "\r\n".join([f"{method} {path} HTTP/1.1", f"Host: {host}:{port}", f"Authorization: Bearer {self.api.token}", *lines, "", ""]).encode()

    def together(self) -> dict:
        """Many commands at once, each with an answer of its own."""

        def one(number: int) -> float:
            done = self.server.another_client().exec(NAME, "sh", "-c", f"sleep 0.2; seq {number} {number + 999}")
            if done.code or done.output != "".join(f"{n}\n" for n in range(number, number + 1000)).encode():
                raise Refused(f"command {number}: {done.code}, {len(done.output)} bytes")
            return done.ended

        times, failures = [], []
        with concurrent.futures.ThreadPoolExecutor(self.at_once) as pool:
            for future in [pool.submit(one, number) for number in range(self.at_once)]:
                try:
                    times.append(future.result())
                except Exception as error:
                    failures.append(str(error))
        return {**summary(times), "asked": self.at_once, "succeeded": len(times), "failures": failures}

    def leak(self) -> dict:
        """What the agent and the container hold before and after many commands."""
        # Orphans of the container belong to its first process, which is the agent's child.
        agent = parent(parent(marked()))
        streams = [self.control() for _ in range(8)]

        def commands(stream: WebSocket) -> None:
            for _ in range(self.many // len(streams)):
                self.true(stream)

        def round_of_all() -> dict:
            with concurrent.futures.ThreadPoolExecutor(len(streams)) as pool:
                list(pool.map(commands, streams))
            time.sleep(1)
            processes = int(self.api.run(NAME, "sh", "-c", "ls -d /proc/[0-9]* | wc -l"))
            return {"descriptors": len(os.listdir(f"/proc/{agent}/fd")), "bytes": private_bytes(agent), "processes": processes}

        # The first round is for what is made once and kept.
        before, after = round_of_all(), round_of_all()
        for stream in streams:
            stream.connection.close()
        return {"commands": self.many, "before": before, "after": after}


def drain(connection: socket.socket, end: bytes | None = None) -> int:
    """Reads to the end, or until what came last is `end`, and looks at nothing else; how much it was."""
    buffer, total = bytearray(RECEIVE_BYTES), 0
    while count := connection.recv_into(buffer):
        total += count
        if end and count >= len(end) and buffer[count - len(end) : count] == end:
            break
    return total


def marked() -> int | None:
    """The process that was started to be found."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if path.read_bytes() == f"sleep\0{MARK}\0".encode():
                return int(path.parent.name)
        except OSError:
            continue
    return None


def parent(pid: int) -> int:
    """Whose child a process is."""
    return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])


def private_bytes(pid: int) -> int:
    """Memory that is the process's alone."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return 1024 * sum(int(line.split()[1]) for line in text.splitlines() if line.startswith(("Private_Clean", "Private_Dirty")))


def rows(results: dict) -> list[Promise]:
    """What is promised, and what was measured of it."""

    def rate(what: str, key: str) -> Promise:
        value = results.get(key, {}).get("mb_per_second")
        return Promise(what, ">= 500 MB/s", "not measured" if value is None else f"{value:.0f} MB/s", None if value is None else value >= 500, value, 500)

    execs = results.get("exec", {})
    nsenter = execs.get("to_nsenter")
    together, leak = results.get("together", {}), results.get("leak", {})
    grown = {key: leak["after"][key] - leak["before"][key] for key in leak["after"]} if "after" in leak else None
    return [
        report.latency(results, "exec of `true` on a kept socket, p50", ("exec", "kept", "p50_ms"), 5),
        report.latency(results, "exec of `true` on a new connection, p50", ("exec", "fresh", "p50_ms"), 5),
        Promise("exec of `true` beside `nsenter`, p50", "<= 3 x", "not measured" if nsenter is None else f"{nsenter:.2f} x", None if nsenter is None else nsenter <= 3),
        rate("1 GB of standard output", "stdout"),
        rate("1 GB written through `fs/write`", "write"),
        rate("1 GB read through `fs/read`", "read"),
        report.at_once(together, "commands"),
        Promise(
            f"{leak.get('commands', 10_000)} commands more",
            "8 descriptors, no process, 16 MiB",
            "not measured" if grown is None else f"{grown['descriptors']:+}, {grown['processes']:+}, {grown['bytes'] / 2**20:+.1f} MiB",
            grown and grown["descriptors"] <= GROWTH_DESCRIPTORS_MAX and grown["processes"] <= 0 and grown["bytes"] <= GROWTH_BYTES_MAX,
        ),
    ]


def main() -> None:
    """Measures and reports."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--quick", action="store_true", help="less of each; results go to bench/out")
    args = parser.parse_args()
    if os.geteuid() != 0:
        raise SystemExit("running sprites needs root")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended"))
    directory = Path(tempfile.mkdtemp(prefix="puck-bench-"))
    path = Path(__file__).parent / ("out" if args.quick else "results") / "guest.json"
    results = {"machine": machine(), "quick": args.quick}
    server = Server(directory, "--idle-timeout", "10m")
    try:
        guest = Guest(server, args.quick)
        for key in ("exec", "stdout", "write", "read", "together", "leak"):
            print(f"  {key} ...", end="", flush=True)
            try:
                results[key] = getattr(guest, key)()
            except Exception as error:
                results[key] = {"failed": str(error)}
            print(f" {results[key]}", flush=True)
        results["complaints"] = server.complaints()
    finally:
        server.stop()
        shutil.rmtree(directory, ignore_errors=True)
    report.publish(results, rows(results), path, None if args.quick else ROOT / "docs/promises.md", SECTION, COMMAND)


if __name__ == "__main__":
    main()
