#!/usr/bin/env python3
"""Measures the disk of a sprite beside native ext4 and JuiceFS, in one run on this machine.

    make bench-disk                       everything; results/disk.json, a plot beside it, the table of docs/promises.md
    .venv/bin/python bench/disk.py --short    little of everything; results go to bench/out

Every step visits all places before the next round, in an order that turns. Leaves nothing behind but the results.
"""

import argparse
import itertools
import json
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path

import disk_report
import inputs
import peers
import report
from places import HOME, ROOT, Server, drop_caches
from run import machine, median
from stores import BUCKET, DelayingProxy, FaultyProxy, SeaweedFS, agents, environment, memory, parallel_read

STEPS = ("untar", "find", "grep", "rm", "clone", "npm", "pip", "inserts")
FIO = ("randwrite", "randwrite-fsync", "randread", "write", "read")
DELAYS_MS = (0, 5, 20)

# 1,000 files in 50 directories, 8 MB, and what reads all of them.
MAKE_PROJECT = """mkdir project && cd project && for d in $(seq 50); do mkdir $d; for f in $(seq 20); do
head -c 8192 /dev/urandom > $d/$f; done; done; sync"""
READ_PROJECT = "cat project/*/* | wc -c"

SAMPLE_SECONDS = 0.05
LAG_BYTES_PER_SECOND = 100_000_000

# So long after its last write a volume has nothing to ship.
QUIET_SECONDS = 5.0

# So long after its last write the files of its log are merged and freed space is given back: it is idle.
IDLE_AFTER_SECONDS = 330.0
LAG_SECONDS_MAX = 60.0
COLD_SECONDS_MAX = 90.0


class Amount:
    """How much of everything."""

    def __init__(self, short: bool):
        self.rounds = 1 if short else 3
        self.files = 1000 if short else 10_000
        self.seconds = "1" if short else "3"
        self.cold_bytes = (256 if short else 512) << 20
        self.lag_seconds = "5" if short else "30"
        self.idle_after_seconds = QUIET_SECONDS if short else IDLE_AFTER_SECONDS
        self.idle_seconds = 5 if short else 60
        self.trickle_seconds = "10" if short else "180"
        self.scatter_bytes = 100 << 20 if short else 10 * 10**9


class Disk:
    """The measurements; each gives figures for the report."""

    def __init__(self, directory: Path, archive: Path, amount: Amount):
        self.directory, self.archive, self.amount = directory, archive, amount
        self.numbers = itertools.count(1)

    @contextmanager
    def server(self, *options: str, env: dict | None = None):
        """A server of its own, with nothing left of it afterwards."""
        directory = self.directory / f"server-{next(self.numbers)}"
        server = Server(directory, "--pool", "0", *options, env=env)
        try:
            yield server
        finally:
            server.stop()
            shutil.rmtree(directory)

    def workloads(self) -> dict:
        """The developer's day in all places."""
        with ExitStack() as stack:
            server = stack.enter_context(self.server("--idle-timeout", "2h"))
            server.api.create("bench")
            places = peers.all_of(self.directory, self.archive, server.api, "bench", stack, juicefs=True)
            figures = self.rounds(places, [(step, ()) for step in STEPS])
            rates = [("fsync", (self.amount.seconds,)), ("sqlite", (self.amount.seconds,)), ("pgbench", (self.amount.seconds,))]
            rates += [("fio", (kind, self.amount.seconds)) for kind in FIO]
            figures |= self.rounds(places, rates)
        return {**figures, "caches_dropped": drop_caches.possible}

    def rounds(self, places: list, steps: list[tuple[str, tuple]]) -> dict:
        """Each step in each place, again and again."""
        found: dict = {}
        for number in range(self.amount.rounds):
            for (step, arguments), shift in itertools.product(steps, range(len(places))):
                place = places[(shift + number) % len(places)]
                key = f"{step}-{arguments[0]}" if step == "fio" else step
                drop_caches()
                try:
                    result = place.step(step, *arguments)
                except Exception as error:
                    result = {"failed": str(error)[-300:]}
                found.setdefault(key, {}).setdefault(place.label, []).append(result)
        return {key: {label: together(runs) for label, runs in of.items()} for key, of in found.items()}

    def cold_reads(self) -> dict:
        """A file that is in no cache, from its begin to its end, beside an object of the same size read in parallel."""
        results = {}
        with ExitStack() as stack:
            seaweed = SeaweedFS(self.directory / "cold-seaweed", everybody_reads=True)
            stack.callback(seaweed.close)
            if not seaweed.put("whole", os.urandom(self.amount.cold_bytes)):
                raise RuntimeError("the store does not take the object")
            for delay in DELAYS_MS:
                proxy = DelayingProxy(seaweed.s3_port, delay / 1e3)
                stack.callback(proxy.close)
                bucket = f"s3://{BUCKET}/cold-{delay}"
                with self.server("--idle-timeout", "2s", "--bucket", bucket, env=environment(proxy.port)) as server:
                    results[str(delay)] = {**self.cold_read(server, proxy.port), **self.cold_wake(server)}
        return results

    def cold_wake(self, server: Server) -> dict:
        """A wake with nothing but the bucket, up to the first output of a command; and of one that reads a small project."""
        server.api.create("far")
        server.api.run("far", "sh", "-c", MAKE_PROJECT)
        found = {}
        for key, command in (("wake", ("echo", "hello")), ("wake_project", ("sh", "-c", READ_PROJECT))):
            times = []
            for _ in range(self.amount.rounds + 2):
                wait_cold(server.api, "far")
                shutil.rmtree(server.data / "volumes")
                drop_caches()
                started = time.perf_counter()
                server.api.run("far", *command)
                times.append(time.perf_counter() - started)
            # What a wake reads first is remembered by the one before.
            found[f"{key}_first_seconds"], found[f"{key}_seconds"] = times[0], median(times[1:])
        return found

    def cold_read(self, server: Server, port: int) -> dict:
        """At one distance."""
        server.api.create("cold")
        upload(server.api, "cold")
        step(server.api, "cold", "fill", str(self.amount.cold_bytes))
        volume, parallel = [], []
        for number in range(self.amount.rounds + 1):
            wait_cold(server.api, "cold")
            shutil.rmtree(server.data / "volumes")
            read = [
                lambda: volume.append(step(server.api, "cold", "cold")["seconds"]),
                lambda: parallel.append(parallel_read(port, f"/{BUCKET}/whole", self.amount.cold_bytes)),
            ]
            for one in read if number % 2 else reversed(read):
                one()
        # The first round made the store and the interpreter warm.
        volume, parallel = median(volume[1:]), median(parallel[1:])
        size = self.amount.cold_bytes
        return {"volume_mb_per_second": size / volume / 1e6, "parallel_mb_per_second": size / parallel / 1e6, "ratio": parallel / volume}

    def lag(self) -> dict:
        """How far the bucket is behind the write calls of a steady stream, seen by what it holds. What the filesystem
        writes beside the stream's bytes makes this seem shorter, by about a thousandth.
        """
        with self.server("--idle-timeout", "2h") as server:
            server.api.create("lag")
            upload(server.api, "lag")
            time.sleep(QUIET_SECONDS)
            bucket, samples, ended = server.data / "bucket/volumes", [], threading.Event()
            before = stored(bucket)

            def watch() -> None:
                while not ended.wait(SAMPLE_SECONDS):
                    samples.append((time.time(), stored(bucket) - before))

            watcher = threading.Thread(target=watch)
            watcher.start()
            try:
                times = step(server.api, "lag", "stream", self.amount.lag_seconds, str(LAG_BYTES_PER_SECOND))["times"]
                deadline = time.monotonic() + LAG_SECONDS_MAX
                while samples[-1][1] < times[-1][1] and time.monotonic() < deadline:
                    time.sleep(SAMPLE_SECONDS)
            finally:
                ended.set()
                watcher.join()
            pids = agents(server)
            behind = lags(times, samples)
            return {
                "mb_per_second": times[-1][1] / (times[-1][0] - times[0][0]) / 1e6,
                "p50_seconds": behind[len(behind) // 2],
                "p99_seconds": behind[len(behind) * 99 // 100],
                "max_seconds": behind[-1],
                "agent_memory_bytes": max(memory(pid)["resident"] for pid in pids),
            }

    def requests(self) -> dict:
        """What is asked of the bucket, when idle, all day long, and for each step of the developer's day."""
        with ExitStack() as stack:
            seaweed = SeaweedFS(self.directory / "counted-seaweed")
            stack.callback(seaweed.close)
            proxy = FaultyProxy(seaweed.s3_port)
            stack.callback(proxy.close)
            where = ("--idle-timeout", "2h", "--bucket", f"s3://{BUCKET}/counted")
            server = stack.enter_context(self.server(*where, env=environment(proxy.port)))
            server.api.create("counted")
            place = peers.Sprite(server.api, "counted", self.archive)

            def counted(work) -> dict:
                time.sleep(QUIET_SECONDS)
                before, started = dict(proxy.counts), time.monotonic()
                work()
                seconds = time.monotonic() - started
                return {"seconds": seconds, **{key: value - before.get(key, 0) for key, value in proxy.counts.items()}}

            time.sleep(self.amount.idle_after_seconds)
            results = {"idle": counted(lambda: time.sleep(self.amount.idle_seconds))}
            results["steady"] = counted(lambda: place.step("trickle", self.amount.trickle_seconds))
            for name in STEPS:
                try:
                    # What a step wrote reaches the bucket while it is still counted.
                    results[name] = counted(lambda: (place.step(name), time.sleep(QUIET_SECONDS)))
                except Exception as error:
                    results[name] = {"failed": str(error)[-300:]}
            return results

    def agent_memory(self) -> dict:
        """The agent's memory while blocks are written at random places."""
        with self.server("--idle-timeout", "2h") as server:
            server.api.create("scatter")
            upload(server.api, "scatter")
            (pid,) = agents(server)
            samples, ended = [], threading.Event()

            def watch() -> None:
                while not ended.wait(SAMPLE_SECONDS):
                    samples.append(memory(pid))

            watcher = threading.Thread(target=watch)
            watcher.start()
            try:
                took = step(server.api, "scatter", "scatter", str(self.amount.scatter_bytes))
            finally:
                ended.set()
                watcher.join()
            time.sleep(QUIET_SECONDS)
            return {
                "bytes": self.amount.scatter_bytes,
                "seconds": took["seconds"],
                "most_bytes": max(sample["resident"] for sample in samples),
                "after_bytes": memory(pid)["resident"],
            }


def together(runs: list[dict]) -> dict:
    """The median of each figure, and all of them."""
    good = [run for run in runs if "failed" not in run]
    if not good:
        return {"failed": runs[0]["failed"]}
    return {**{key: median([run[key] for run in good]) for key in good[0]}, "runs": runs}


def upload(api, name: str) -> None:
    """The programs, without the inputs."""
    for program in peers.PROGRAMS:
        api.write(name, f"{HOME}/{program}", (peers.HERE / program).read_bytes())


def step(api, name: str, what: str, *arguments: str) -> dict:
    """Runs a step in a sprite."""
    return json.loads(api.run(name, "python3", f"{HOME}/developer.py", what, HOME, *arguments))


def wait_cold(api, name: str) -> None:
    """Until nothing of the sprite runs."""
    deadline = time.monotonic() + COLD_SECONDS_MAX
    while api.status(name) != "cold":
        if time.monotonic() > deadline:
            raise RuntimeError("the sprite does not sleep")
        time.sleep(SAMPLE_SECONDS)


def stored(bucket: Path) -> int:
    """Bytes of all segments."""
    return sum(entry.stat().st_size for entry in bucket.glob("*/segments/**/*") if entry.is_file())


def lags(times: list, samples: list) -> list[float]:
    """At each look, how old the oldest write was that the bucket lacked, in order of size."""
    behind, missing = [], 0
    for moment, size in samples:
        while missing < len(times) and times[missing][1] <= size:
            missing += 1
        if times[0][0] <= moment and missing < len(times):
            behind.append(max(0.0, moment - times[missing][0]))
    return sorted(behind)


def main() -> None:
    """Measures and reports."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--short", action="store_true", help="little of everything; results go to bench/out")
    parser.add_argument("--only", action="append", default=[], metavar="PART", help="measure only this part; the figures of others stay")
    parser.add_argument("--directory", type=Path, help="where everything is kept meanwhile; 60 GB, removed again")
    args = parser.parse_args()
    if os.geteuid() != 0:
        raise SystemExit("running sprites and mounting disks needs root")
    if missing := peers.missing():
        raise SystemExit(f"not installed: {', '.join(missing)}; `scripts/setup.sh bench` does it")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended"))
    directory = Path(tempfile.mkdtemp(prefix="puck-bench-", dir=args.directory))
    # Postgres runs as somebody else and has to get through.
    directory.chmod(0o755)
    path = Path(__file__).parent / ("out" if args.short else "results") / "disk.json"
    results = json.loads(path.read_text()) if args.only and path.exists() else {}
    results |= {"machine": machine(), "short": args.short}
    amount = Amount(args.short)
    try:
        archive = inputs.make(directory, amount.files)
        disk = Disk(directory, archive, amount)
        for part in (disk.workloads, disk.cold_reads, disk.lag, disk.requests, disk.agent_memory):
            if not args.only or part.__name__ in args.only:
                attempt(results, part)
                report.save(results, path)
    finally:
        shutil.rmtree(directory, ignore_errors=True)
        disk_report.write(results, path, None if args.short else ROOT / "docs/promises.md")


def attempt(results: dict, part) -> None:
    """What fails is reported and does not end the rest."""
    print(f"  {part.__name__} ...", end="", flush=True)
    before = time.monotonic()
    try:
        results[part.__name__] = part()
        print(f" {time.monotonic() - before:.0f} s", flush=True)
    except Exception as error:
        results[part.__name__] = {"failed": str(error)}
        print(f" failed: {error}", flush=True)


if __name__ == "__main__":
    main()
