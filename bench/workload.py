#!/usr/bin/env python3
"""One step of a developer's day on a filesystem, timed where it runs: the same program on a volume and on native ext4.

    workload.py tree FILE [COUNT]          writes the archive of a source tree, always the same
    workload.py untar ARCHIVE DIRECTORY
    workload.py find|grep|rm DIRECTORY
    workload.py fsync|sqlite DIRECTORY SECONDS

Prints JSON. Writing steps end when the data is on the disk.
"""

import io
import json
import os
import random
import shutil
import sqlite3
import subprocess
import sys
import tarfile
import time

FILES = 50_000
FILES_PER_DIRECTORY = 25
FILE_BYTES_MEDIAN = 2_000
FILE_BYTES_MAX = 60_000
NEEDLE = "needle_in_the_tree"
NEEDLE_EVERY = 500

FSYNC_FILE_BYTES = 64 << 20
BLOCK_BYTES = 4096
ROW_BYTES = 1000


def tree(path: str, files: int = FILES) -> dict:
    """The archive: text that compresses as source code does, in a tree three levels deep."""
    chance = random.Random(1)
    words = ["".join(chance.choices("abcdefghijklmnopqrstuvwxyz_", k=chance.randint(2, 12))) for _ in range(4000)]
    text = " ".join(chance.choices(words, k=200_000)).replace(" x", "\n")
    total = 0
    with tarfile.open(path, "w") as archive:
        for number in range(int(files)):
            directory = number // FILES_PER_DIRECTORY
            length = min(FILE_BYTES_MAX, int(chance.lognormvariate(0, 1) * FILE_BYTES_MEDIAN))
            start = chance.randrange(len(text) - length)
            data = text[start : start + length] + (NEEDLE if number % NEEDLE_EVERY == 0 else "")
            entry = tarfile.TarInfo(f"tree/{directory % 20}/{directory}/file{number}.c")
            entry.size = len(data)
            entry.mtime = 1_700_000_000 + number
            archive.addfile(entry, io.BytesIO(data.encode()))
            total += len(data)
    return {"files": int(files), "bytes": total}


def untar(archive: str, directory: str) -> dict:
    """Unpacks and waits for the disk."""
    os.makedirs(directory, exist_ok=True)
    return timed(["tar", "-xf", archive, "-C", directory], ["sync", "-f", directory])


def find(directory: str) -> dict:
    """Looks at the metadata of every file."""
    return timed(["find", directory, "-type", "f", "-newermt", "2030-01-01"])


def grep(directory: str) -> dict:
    """Reads every file."""
    return timed(["grep", "-rl", NEEDLE, directory], lines=FILES // NEEDLE_EVERY)


def rm(directory: str) -> dict:
    """Removes everything and waits for the disk."""
    parent = os.path.dirname(os.path.abspath(directory))
    return timed(["rm", "-rf", directory], ["sync", "-f", parent])


def timed(*commands: list[str], lines: int | None = None) -> dict:
    """How long the commands take together; how many lines they print must be right."""
    started = time.perf_counter()
    printed = b"".join(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout for command in commands)
    seconds = time.perf_counter() - started
    if lines is not None and printed.count(b"\n") != lines:
        raise SystemExit(f"{commands}: not {lines} lines")
    return {"seconds": seconds}


def fsync(directory: str, seconds: str) -> dict:
    """4 KiB at a random place of a file, then fsync, one after the other."""
    path = os.path.join(directory, "fsync.bin")
    chance = random.Random(2)
    block = chance.randbytes(BLOCK_BYTES)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT)
    try:
        for offset in range(0, FSYNC_FILE_BYTES, len(block) * 256):
            os.pwrite(descriptor, block * 256, offset)
        os.fsync(descriptor)

        def write() -> None:
            os.pwrite(descriptor, block, chance.randrange(FSYNC_FILE_BYTES // BLOCK_BYTES) * BLOCK_BYTES)
            os.fsync(descriptor)

        return repeated(write, float(seconds))
    finally:
        os.close(descriptor)
        os.unlink(path)


def sqlite(directory: str, seconds: str) -> dict:
    """Commits of one row with `synchronous=FULL`, in SQLite's own default journal mode."""
    path = os.path.join(directory, "commits")
    os.makedirs(path)
    try:
        database = sqlite3.connect(os.path.join(path, "a.db"), isolation_level=None)
        database.execute("PRAGMA synchronous = FULL")
        database.execute("CREATE TABLE t (k INTEGER PRIMARY KEY, v BLOB)")
        row = random.Random(3).randbytes(ROW_BYTES)
        return repeated(lambda: database.execute("INSERT INTO t (v) VALUES (?)", (row,)), float(seconds))
    finally:
        shutil.rmtree(path)


def repeated(work, seconds: float) -> dict:
    """How often per second, and how long one takes."""
    times = []
    end = time.perf_counter() + seconds
    while (before := time.perf_counter()) < end:
        work()
        times.append(time.perf_counter() - before)
    times.sort()
    return {
        "per_second": len(times) / sum(times),
        "p50_ms": times[len(times) // 2] * 1e3,
        "p99_ms": times[len(times) * 99 // 100] * 1e3,
    }


STEPS = {step.__name__: step for step in (tree, untar, find, grep, rm, fsync, sqlite)}

if __name__ == "__main__":
    print(json.dumps(STEPS[sys.argv[1]](*sys.argv[2:])))
