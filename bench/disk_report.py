"""What the disk's benchmark measured, as the second table of promises."""

import math
from pathlib import Path

import report
from report import Promise

COMMAND = "`make bench-disk`"
SECTION = "measured, disk"

DAY = ("untar", "find", "grep", "rm", "clone", "npm", "pip", "inserts")
NAMES = {
    "untar": "untar of a source tree", "find": "find in it", "grep": "grep in it", "rm": "rm of it", "clone": "git clone",
    "npm": "npm install from a cache", "pip": "pip install of wheels", "inserts": "SQLite, transactions of 100 rows",
}
RATES = {
    "fsync": "4 KiB write + fsync", "sqlite": "SQLite commit, `synchronous=FULL`", "pgbench": "pgbench",
    "fio-randwrite-fsync": "fio, 4 KiB random write + fsync", "fio-randwrite": "fio, 4 KiB random write", "fio-randread": "fio, 4 KiB random read",
    "fio-write": "fio, 1 MiB sequential write", "fio-read": "fio, 1 MiB sequential read",
}
PROMISED_RATES = ("fsync", "sqlite")

MIB = 1 << 20
PEERS = {"native": "native ext4", "juicefs": "JuiceFS", "juicefs_image": "ext4 in JuiceFS"}


def write(results: dict, path: Path, table: Path | None) -> None:
    """Figures, plot and table."""
    report.publish(results, promises(results), path, table, SECTION, COMMAND)


def promises(results: dict) -> list[Promise]:
    """Every promise about the disk, and beside it what is only told."""
    work = results.get("workloads", {})
    rows = [
        of_peer("developer workloads, geometric mean", mean(work, "native"), "native", 0.9),
        of_peer("developer workloads, geometric mean", mean(work, "juicefs"), "juicefs", 10),
        of_peer("developer workloads, geometric mean", mean(work, "juicefs_image"), "juicefs_image", None),
    ]
    rows += [of_peer(NAMES[step], speed(work, step, "native"), "native", 0.7) for step in DAY]
    for step, name in RATES.items():
        promised = step in PROMISED_RATES
        rows.append(of_peer(name, speed(work, step, "native"), "native", 0.5 if promised else None))
        rows.append(of_peer(name, speed(work, step, "juicefs_image"), "juicefs_image", None))
        if promised:
            rows.append(limit(f"{name}, p99", number(work, step, "volume", "p99_ms"), 5, "ms"))
    for delay in ("0", "5", "20"):
        rows.append(cold(delay, results.get("cold_reads", {}).get(delay, {})))
    for delay in ("0", "5", "20"):
        of = results.get("cold_reads", {}).get(delay, {})
        rows.append(limit(f"wake with an empty cache, {delay} ms to the bucket", number(of, "wake_seconds"), 1.5, "s"))
        seconds, first = number(of, "wake_project_seconds"), number(of, "wake_project_first_seconds")
        told = f"{seconds:.2g} s, {first:.2g} s the first time" if seconds and first else "not measured"
        rows.append(Promise(f"the same, and 1,000 files read, {delay} ms", "told only", told, None))
    lag = results.get("lag", {})
    rows.append(limit("bucket behind a stream of 100 MB/s, p99", number(lag, "p99_seconds"), 1, "s"))
    rows.append(limit("bucket behind a stream of 100 MB/s, at most", number(lag, "max_seconds"), 1, "s"))
    rows += requests(results.get("requests", {}))
    used = results.get("agent_memory", {})
    size = number(used, "bytes")
    what = f"{size / 1e9:.3g} GB" if size else "10 GB"
    most = number(used, "most_bytes")
    rows.append(limit(f"memory of the agent, {what} written at random", most and most / MIB, 100, "MiB"))
    return rows


def requests(counted: dict) -> list[Promise]:
    """Writes to the bucket per second, and per gigabyte of each step."""
    idle, steady = counted.get("idle", {}), counted.get("steady", {})
    rows = [Promise("requests to the bucket when idle", "none", "not measured", None)]
    if idle:
        asked = sum(idle.get(method, 0) for method in ("PUT", "POST", "GET", "DELETE", "HEAD"))
        rows = [Promise("requests to the bucket when idle", "none", f"{asked} in {idle['seconds']:.0f} s", asked == 0)]
    rate = steady and (steady.get("PUT", 0) + steady.get("POST", 0)) / steady["seconds"]
    rows.append(limit("PUT per second of steady small writes", rate or None, 2.2, "PUT"))
    for step in DAY:
        of = counted.get(step)
        if of and of.get("bytes put", 0) > MIB:
            gigabytes = of["bytes put"] / 1e9
            told = f"{of.get('PUT', 0) / gigabytes:.0f} PUT, {of.get('GET', 0) / gigabytes:.0f} GET per GB stored"
            rows.append(Promise(f"requests for {NAMES[step]}", "told only", told, None))
    return rows


def number(results: dict, *path: str) -> float | None:
    """A figure, if it was measured."""
    for key in path:
        results = results.get(key, {}) if isinstance(results, dict) else {}
    return results if isinstance(results, int | float) else None


def speed(work: dict, step: str, peer: str) -> float | None:
    """How fast the volume is when the peer is 1."""
    for figure, turned in (("seconds", True), ("per_second", False)):
        ours, theirs = number(work, step, "volume", figure), number(work, step, peer, figure)
        if ours and theirs:
            return theirs / ours if turned else ours / theirs
    return None


def mean(work: dict, peer: str) -> float | None:
    """The geometric mean over the day; only if all of it was measured."""
    ratios = [speed(work, step, peer) for step in DAY]
    return math.prod(ratios) ** (1 / len(ratios)) if all(ratios) else None


def of_peer(what: str, value: float | None, peer: str, least: float | None) -> Promise:
    """A ratio of speeds."""
    promise = f">= {least} x {PEERS[peer]}" if least else f"told only, {PEERS[peer]} = 1"
    if value is None:
        return Promise(what, promise, "not measured", None)
    return Promise(what, promise, f"{value:.3g} x", value >= least if least else None, value if least else None, least)


def cold(delay: str, figures: dict) -> Promise:
    """A read that nothing has cached."""
    what, promise = f"cold sequential read, {delay} ms to the bucket", ">= 0.8 x 16 parallel GETs of 4 MiB"
    ratio = number(figures, "ratio")
    if ratio is None:
        return Promise(what, promise, "not measured", None)
    return Promise(what, promise, f"{ratio:.2f} x, {figures['volume_mb_per_second']:.0f} MB/s", ratio >= 0.8)


def limit(what: str, value: float | None, most: float, unit: str) -> Promise:
    """At most so much."""
    if value is None:
        return Promise(what, f"<= {most} {unit}", "not measured", None)
    return Promise(what, f"<= {most} {unit}", f"{value:.3g} {unit}", value <= most, value, most)
