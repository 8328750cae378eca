#!/usr/bin/env python3
"""More steps of a developer's day, timed where they run: the same program in a sprite, on native ext4 and on JuiceFS.

    developer.py STEP PLACE [ARGUMENT]

PLACE is a directory with an `inputs` directory that `inputs.py` has made. Prints JSON. Writing steps end when the data is on the
disk. The steps of `workload.py` are there too.
"""

import json
import os
import random
import shutil
import sqlite3
import subprocess
import sys
import time

import workload

INSERT_TRANSACTIONS = 300
INSERT_ROWS = 100

FIO_BYTES = 256 << 20
STREAM_BYTES = 1 << 20
TRICKLE_BYTES = 16 << 10
TRICKLE_SECONDS = 0.02

POSTGRES = "/usr/lib/postgresql/15/bin"
POSTGRES_SCALE = "2"
POSTGRES_CLIENTS = "4"


def paths(place: str) -> tuple[str, str]:
    """The inputs, and a fresh directory for what a step makes."""
    work = os.path.join(place, "work")
    os.makedirs(work, exist_ok=True)
    return os.path.join(place, "inputs"), work


def untar(place: str) -> dict:
    """A source tree."""
    inputs, work = paths(place)
    return workload.timed(["tar", "-xf", f"{inputs}/tree.tar", "-C", work], ["sync", "-f", work])


def find(place: str) -> dict:
    """The metadata of every file of the tree."""
    return workload.timed(["find", f"{paths(place)[1]}/tree", "-type", "f", "-newermt", "2030-01-01"])


def grep(place: str) -> dict:
    """Every byte of the tree."""
    return workload.timed(["grep", "-rl", workload.NEEDLE, f"{paths(place)[1]}/tree"])


def rm(place: str) -> dict:
    """The tree goes."""
    work = paths(place)[1]
    return workload.timed(["rm", "-rf", f"{work}/tree"], ["sync", "-f", work])


def clone(place: str) -> dict:
    """`git clone` of a repository on the same disk, without links to it."""
    inputs, work = paths(place)
    command = ["git", "-c", "safe.directory=*", "clone", "--quiet", "--no-local", f"{inputs}/repository.git", f"{work}/clone"]
    return cleaned(workload.timed(command, ["sync", "-f", work]), f"{work}/clone")


def npm(place: str) -> dict:
    """`npm ci` from a cache on the same disk."""
    inputs, work = paths(place)
    project = f"{work}/project"
    shutil.copytree(f"{inputs}/npm/project", project)
    command = [f"{inputs}/npm/node", f"{inputs}/npm/npm/bin/npm-cli.js", "ci", "--offline", "--no-audit", "--no-fund", "--ignore-scripts"]
    command += ["--cache", f"{inputs}/npm/cache", "--prefix", project]
    return cleaned(workload.timed(command, ["sync", "-f", work]), project)


def pip(place: str) -> dict:
    """A virtual environment, and wheels on the same disk into it."""
    inputs, work = paths(place)
    environment = f"{work}/environment"
    install = [f"{environment}/bin/pip", "install", "--quiet", "--disable-pip-version-check", "--no-index", "--no-cache-dir"]
    install += ["--find-links", f"{inputs}/wheels", "-r", f"{inputs}/wheels/requirements.txt"]
    return cleaned(workload.timed([sys.executable, "-m", "venv", environment], install, ["sync", "-f", work]), environment)


def inserts(place: str) -> dict:
    """Transactions of many rows, in SQLite's own default modes."""
    work = paths(place)[1]
    path = f"{work}/inserts"
    os.makedirs(path)
    row = random.Random(5).randbytes(200)
    database = sqlite3.connect(f"{path}/a.db", isolation_level=None)
    database.execute("CREATE TABLE t (k INTEGER PRIMARY KEY, v BLOB)")
    started = time.perf_counter()
    for _ in range(INSERT_TRANSACTIONS):
        database.execute("BEGIN")
        database.executemany("INSERT INTO t (v) VALUES (?)", [(row,)] * INSERT_ROWS)
        database.execute("COMMIT")
    seconds = time.perf_counter() - started
    database.close()
    return cleaned({"seconds": seconds}, path)


def pgbench(place: str, seconds: str) -> dict:
    """Postgres with its data on the disk, and its own benchmark."""
    work = paths(place)[1]
    data = f"{work}/postgres"
    os.mkdir(data, 0o700)
    # Postgres does not run as root.
    user = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"] if os.geteuid() == 0 else []
    if user:
        shutil.chown(data, "postgres", "postgres")

    def run(program: str, *arguments: str) -> str:
        done = subprocess.run([*user, f"{POSTGRES}/{program}", *arguments], capture_output=True, text=True, check=False, cwd="/tmp")
        if done.returncode:
            raise SystemExit(f"{program}: {done.stdout}{done.stderr}")
        return done.stdout

    run("initdb", "--no-sync", "--auth=trust", "--username=bench", data)
    options = f"-c listen_addresses='' -c unix_socket_directories={data}"
    run("pg_ctl", "start", "--wait", "--silent", "-D", data, "-l", f"{data}/server.log", "-o", options)
    try:
        target = ["-h", data, "-U", "bench", "postgres"]
        run("pgbench", "-i", "-q", "-s", POSTGRES_SCALE, *target)
        said = run("pgbench", "-c", POSTGRES_CLIENTS, "-T", seconds, "-n", *target)
    finally:
        run("pg_ctl", "stop", "--wait", "--silent", "-D", data, "-m", "fast")
    rate = next(line for line in said.splitlines() if line.startswith("tps"))
    return cleaned({"per_second": float(rate.split()[2])}, data)


def fio(place: str, kind: str, seconds: str) -> dict:
    """Debian's fio: `randwrite`, `randwrite-fsync`, `randread` of 4 KiB, `write` and `read` of 1 MiB."""
    work = paths(place)[1]
    mode, _, fsync = kind.partition("-")
    size = "1M" if mode in ("read", "write") else "4k"
    command = ["fio", "--name=bench", f"--directory={work}", f"--size={FIO_BYTES}", f"--rw={mode}", f"--bs={size}"]
    command += ["--ioengine=psync", "--time_based", f"--runtime={seconds}", "--output-format=json", "--invalidate=1"]
    command += ["--fsync=1"] if fsync else ["--end_fsync=1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"fio: {done.stdout[-500:]}{done.stderr}")
    report = json.loads(done.stdout[done.stdout.index("{") :])["jobs"][0]
    side = report["write" if "write" in mode else "read"]
    # With the sync at the end in the time, or writes to memory would be counted.
    elapsed = max(report["job_runtime"] / 1e3, float(seconds))
    result = {"per_second": side["total_ios"] / elapsed, "megabytes_per_second": side["io_bytes"] / elapsed / 1e6}
    for name in os.listdir(work):
        if name.startswith("bench."):
            os.unlink(f"{work}/{name}")
    return result


def fsync(place: str, seconds: str) -> dict:
    """4 KiB and fsync."""
    return workload.fsync(paths(place)[1], seconds)


def sqlite(place: str, seconds: str) -> dict:
    """Commits of one row with `synchronous=FULL`."""
    return workload.sqlite(paths(place)[1], seconds)


def stream(place: str, seconds: str, rate: str) -> dict:
    """So many bytes per second to the end of one file, without a sync; when how many bytes had been written."""
    path = f"{paths(place)[1]}/stream"
    body, written, times = os.urandom(STREAM_BYTES), 0, []
    started = time.time()
    with open(path, "wb", buffering=0) as file:
        while (now := time.time()) < started + float(seconds):
            # No run of blocks is like another, or they would compress.
            turn = written // STREAM_BYTES % STREAM_BYTES
            file.write(body[turn:] + body[:turn])
            written += STREAM_BYTES
            times.append((now, written))
            time.sleep(max(0.0, started + written / float(rate) - time.time()))
    return {"times": times}


def trickle(place: str, seconds: str) -> dict:
    """What a small service does all day: a few durable records and a log per second."""
    path = f"{paths(place)[1]}/trickle"
    chance = random.Random(6)
    end = time.monotonic() + float(seconds)
    with open(path, "wb", buffering=0) as file:
        file.truncate(FIO_BYTES)
        while time.monotonic() < end:
            os.pwrite(file.fileno(), chance.randbytes(TRICKLE_BYTES), chance.randrange(FIO_BYTES // TRICKLE_BYTES) * TRICKLE_BYTES)
            os.fsync(file.fileno())
            time.sleep(TRICKLE_SECONDS)
    return cleaned({"seconds": float(seconds)}, path)


def scatter(place: str, size: str) -> dict:
    """So many bytes in blocks of 4 KiB at random places of a file of that size."""
    path = f"{paths(place)[1]}/scatter"
    chance, body = random.Random(7), os.urandom(1 << 20)
    blocks = int(size) // workload.BLOCK_BYTES
    started = time.perf_counter()
    with open(path, "wb", buffering=0) as file:
        file.truncate(int(size))
        for _ in range(blocks):
            start = chance.randrange(len(body) - workload.BLOCK_BYTES)
            os.pwrite(file.fileno(), body[start : start + workload.BLOCK_BYTES], chance.randrange(blocks) * workload.BLOCK_BYTES)
        os.fsync(file.fileno())
    return cleaned({"seconds": time.perf_counter() - started}, path)


def fill(place: str, size: str) -> dict:
    """A file that does not compress, for `cold`."""
    path = f"{paths(place)[1]}/cold"
    with open(path, "wb", buffering=0) as file:
        for _ in range(int(size) // STREAM_BYTES):
            file.write(os.urandom(STREAM_BYTES))
        os.fsync(file.fileno())
    return {}


def cold(place: str) -> dict:
    """That file from its begin to its end."""
    buffer = memoryview(bytearray(STREAM_BYTES))
    started = time.perf_counter()
    with open(f"{paths(place)[1]}/cold", "rb", buffering=0) as file:
        while file.readinto(buffer):
            pass
    return {"seconds": time.perf_counter() - started}


def cleaned(result: dict, path: str) -> dict:
    """Removes what a step made, outside of the time."""
    if os.path.isdir(path):
        shutil.rmtree(path)
    else:
        os.unlink(path)
    return result


ALL = (untar, find, grep, rm, clone, npm, pip, inserts, pgbench, fio, fsync, sqlite, stream, trickle, scatter, fill, cold)
STEPS = {step.__name__: step for step in ALL}

if __name__ == "__main__":
    print(json.dumps(STEPS[sys.argv[1]](*sys.argv[2:])))
