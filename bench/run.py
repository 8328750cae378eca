#!/usr/bin/env python3
"""Measures Puck on this machine, beside native ext4 where there is something to compare with.

Starts a server of its own in a temporary directory, measures, and leaves nothing behind but the results: figures in
`results/first-light.json`, a plot beside it, and the table of `docs/promises.md`.

    make bench                            everything, in less than 15 minutes
    .venv/bin/python bench/run.py --quick     fewer rounds and 1 GB instead of 10; results go to bench/out
"""

import argparse
import concurrent.futures
import itertools
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import report
from places import HOME, ROOT, WORKLOAD, Native, Server, Sprite, drop_caches, run
from wire import Api

COLD_SECONDS_MAX = 60

# How long a create waits for the pool to have a machine again; a create is promised for a warm pool.
POOL_SECONDS = 1.0

SMALL_BYTES = 10 * 10**6
FILL_BYTES = 500 * 10**6

# On a busy disk these end a part early; the figures say what was done until then.
FILL_SECONDS_MAX = 120
TREE_SECONDS_MAX = 240

STEPS_TREE = ("untar", "find", "grep", "rm")
STEPS_DISK = ("fsync", "sqlite")
STEP_SECONDS = "3"


class Rounds:
    """How often everything is done."""

    def __init__(self, quick: bool):
        self.creates = 20 if quick else 100
        self.at_once = 10 if quick else 50
        self.execs = 100 if quick else 500
        self.checkpoints = 5 if quick else 20
        self.restores = 3 if quick else 7
        self.wakes = 3 if quick else 10
        self.trees = 1 if quick else 3
        self.large_bytes = (1 if quick else 10) * 10**9


class Bench:
    """The measurements; each gives figures for the report."""

    def __init__(self, server: Server, directory: Path, rounds: Rounds):
        self.server, self.api, self.directory, self.rounds = server, server.api, directory, rounds
        self.names = (f"bench-{number}" for number in itertools.count(1))

    def create(self) -> dict:
        """From the create call to the first byte that a command prints."""
        times = []
        for name in itertools.islice(self.names, self.rounds.creates):
            time.sleep(POOL_SECONDS)
            started = time.perf_counter()
            self.api.create(name)
            created = time.perf_counter()
            done = self.api.exec(name, "echo", "hello")
            times.append((created - started, created - started + done.first_output))
            self.api.destroy(name)
        first = summary([first for _, first in times])
        return {**first, "create_call": summary([call for call, _ in times])}

    def create_at_once(self) -> dict:
        """Many creates at the same moment, each with a command."""

        def one(name: str) -> float:
            api = self.server.another_client()
            started = time.perf_counter()
            api.create(name)
            api.run(name, "true")
            return time.perf_counter() - started

        names = list(itertools.islice(self.names, self.rounds.at_once))
        times, failures = [], []
        with concurrent.futures.ThreadPoolExecutor(len(names)) as pool:
            for name, future in [(name, pool.submit(one, name)) for name in names]:
                try:
                    times.append(future.result())
                except Exception as error:
                    failures.append(f"{name}: {error}")
        for name in names:
            self.api.call("DELETE", f"/v1/sprites/{name}", expect=(204, 404))
        return {**summary(times), "asked": len(names), "succeeded": len(times), "failures": failures}

    def exec(self) -> dict:
        """`true` from before the connection to its exit, and a request that the agent answers without a process."""
        name = next(self.names)
        self.api.create(name)
        self.api.run(name, "true")
        times = [self.api.exec(name, "true").ended for _ in range(self.rounds.execs)]
        listed = [clock(lambda: self.api.call("GET", f"/v1/sprites/{name}/exec")) for _ in range(self.rounds.execs)]
        self.api.destroy(name)
        return {**summary(times), "sessions_call": summary(listed)}

    def checkpoints(self, name: str, label: str, size: int) -> dict:
        """Checkpoint and restore with so many bytes on the volume."""
        filled = 0
        started = time.perf_counter()
        while filled < size and time.perf_counter() - started < FILL_SECONDS_MAX:
            self.fill(name, min(size - filled, FILL_BYTES), filled)
            filled += min(size - filled, FILL_BYTES)
        fill_seconds = time.perf_counter() - started
        created, restored, usable = [], [], []
        for number in range(self.rounds.checkpoints):
            self.api.run(name, "sh", "-c", f"echo {number} > {HOME}/number")
            started = time.perf_counter()
            checkpoint = self.api.checkpoint(name)
            created.append(time.perf_counter() - started)
        for number in range(self.rounds.restores):
            self.api.run(name, "sh", "-c", f"echo lost > {HOME}/number; head -c 1M /dev/urandom > {HOME}/more")
            started = time.perf_counter()
            self.api.restore(name, checkpoint)
            restored.append(time.perf_counter() - started)
            there = self.api.run(name, "cat", f"{HOME}/number").strip()
            usable.append(time.perf_counter() - started)
            if there != str(self.rounds.checkpoints - 1):
                raise SystemExit(f"restore with {label}: the file says {there!r}")
        return {
            "bytes": filled,
            "write_mb_per_second": filled / fill_seconds / 1e6,
            "checkpoint": summary(created),
            "restore": summary(restored),
            "restore_to_exec": summary(usable),
        }

    def fill(self, name: str, size: int, offset: int) -> None:
        """Puts bytes that do not compress on the volume."""
        self.api.run(name, "sh", "-c", f"head -c {size} /dev/urandom > {HOME}/filler-{size}-{offset} && sync -f {HOME}")

    def wake(self, name: str) -> dict:
        """A command in a sprite that sleeps, with its cache on this worker."""
        self.api.call("PUT", f"/v1/sprites/{name}", {"idle_timeout_seconds": 1})
        times = []
        for _ in range(self.rounds.wakes):
            deadline = time.monotonic() + COLD_SECONDS_MAX
            while self.api.status(name) != "cold":
                if time.monotonic() > deadline:
                    raise SystemExit("the sprite does not sleep")
                time.sleep(0.05)
            times.append(self.api.exec(name, "true").ended)
        return summary(times)

    def disks(self, archive: Path) -> dict:
        """The workload on the volume and on native ext4, in turn."""
        name = next(self.names)
        self.api.create(name)
        native = Native(self.directory, archive)
        results: dict = {}
        try:
            places = [native, Sprite(self.api, name, archive)]
            started = time.monotonic()
            for number in range(self.rounds.trees):
                if time.monotonic() - started > TREE_SECONDS_MAX:
                    break
                for step, place in itertools.product(STEPS_TREE, places):
                    drop_caches()
                    arguments = (place.archive,) if step == "untar" else ()
                    took = place.step(step, *arguments, f"{place.directory}/tree-{number}")
                    results.setdefault(step, {}).setdefault(place.label, []).append(took["seconds"])
            for step, number, place in itertools.product(STEPS_DISK, range(self.rounds.trees), places):
                took = place.step(step, place.directory, STEP_SECONDS)
                results.setdefault(step, {}).setdefault(place.label, []).append(took)
        finally:
            native.close()
        self.api.destroy(name)
        figures = {step: compare(both["native"], both["volume"]) for step, both in results.items()}
        return {**figures, "caches_dropped": drop_caches.possible}


def compare(native: list, volume: list) -> dict:
    """Medians, and how fast the volume is when native ext4 is 1."""
    if isinstance(native[0], dict):
        both = {label: {key: median([run[key] for run in runs]) for key in runs[0]} for label, runs in (("native", native), ("volume", volume))}
        return {**both, "ratio": both["volume"]["per_second"] / both["native"]["per_second"]}
    return {"native_seconds": native, "volume_seconds": volume, "ratio": median(native) / median(volume)}


def clock(work) -> float:
    """How long something takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def median(values: list[float]) -> float:
    """The middle one."""
    return sorted(values)[len(values) // 2]


def summary(times: list[float]) -> dict:
    """Milliseconds."""
    if not times:
        return {"count": 0}
    ordered = sorted(time * 1e3 for time in times)
    return {
        "count": len(ordered),
        "p50_ms": ordered[len(ordered) // 2],
        "p99_ms": ordered[min(len(ordered) - 1, len(ordered) * 99 // 100)],
        "max_ms": ordered[-1],
    }


def measure(directory: Path, rounds: Rounds, only: list, results: dict, save) -> None:
    """Everything, or only some parts, one after the other, into `results`; what fails is reported and does not end the rest."""
    archive = directory / "tree.tar"
    tree = json.loads(run(sys.executable, WORKLOAD, "tree", archive))
    with ExitStack() as stack:
        started = time.monotonic()
        server = Server(directory, "--idle-timeout", "10m")
        results.update(tree=tree, start_seconds=time.monotonic() - started)
        stack.callback(lambda: results.update(stop_seconds=server.stop(), complaints=server.complaints()))
        bench = Bench(server, directory, rounds)
        name = next(bench.names)

        def attempt(key: str, work) -> None:
            if only and key not in only:
                return
            print(f"  {key} ...", end="", flush=True)
            before = time.monotonic()
            try:
                results[key] = work()
                print(f" {time.monotonic() - before:.0f} s  {report.brief(results[key])}", flush=True)
            except Exception as error:
                results[key] = {"failed": str(error)}
                print(f" failed: {error}", flush=True)
            save()

        attempt("exec", bench.exec)
        attempt("create", bench.create)
        attempt("create_at_once", bench.create_at_once)
        server.api.create(name)
        attempt("small", lambda: bench.checkpoints(name, "10 MB", SMALL_BYTES))
        attempt("wake_small", lambda: bench.wake(name))
        server.api.call("PUT", f"/v1/sprites/{name}", {"idle_timeout_seconds": 600})
        attempt("disks", lambda: bench.disks(archive))
        attempt("large", lambda: bench.checkpoints(name, "10 GB", rounds.large_bytes))
        attempt("wake_large", lambda: bench.wake(name))
        server.api.destroy(name)


def machine() -> dict:
    """What it ran on."""
    memory = int(next(line.split()[1] for line in open("/proc/meminfo") if line.startswith("MemTotal")))
    commit = subprocess.run(["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return {
        "cpus": os.cpu_count(),
        "memory_gib": round(memory / 2**20, 1),
        "kernel": platform.release(),
        "commit": commit.stdout.strip(),
        "load_before": os.getloadavg()[0],
    }


def main() -> None:
    """Measures and reports."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--quick", action="store_true", help="fewer rounds; results go to bench/out")
    parser.add_argument("--only", action="append", default=[], metavar="PART", help="measure only this part; the figures of others stay")
    parser.add_argument("--directory", type=Path, help="where the server's data and the native disk are; 60 GB, removed again")
    args = parser.parse_args()
    if os.geteuid() != 0:
        raise SystemExit("running sprites and mounting the native disk needs root")
    # A benchmark that is ended cleans up as one that fails does.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended"))
    directory = Path(tempfile.mkdtemp(prefix="puck-bench-", dir=args.directory))
    here = Path(__file__).parent
    path = here / ("out" if args.quick else "results") / "first-light.json"
    results = json.loads(path.read_text()) if args.only and path.exists() else {}
    results |= {"machine": machine(), "quick": args.quick}
    try:
        measure(directory, Rounds(args.quick), args.only, results, lambda: report.save(results, path))
    finally:
        shutil.rmtree(directory, ignore_errors=True)
        report.write(results, path, None if args.quick else ROOT / "docs/promises.md")


if __name__ == "__main__":
    main()
