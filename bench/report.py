"""What was measured, as JSON, as a plot and as the table of promises."""

import json
import math
from dataclasses import dataclass
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402  (the backend must be chosen first)

COMMAND = "`make bench`"
SECTION = "measured"

VERDICT = {True: "yes", False: "no", None: "unknown"}

TREE = ("untar", "find", "grep", "rm")


@dataclass
class Promise:
    """One row of the table. `value` and `limit` are in the unit of the plot; None when it was not measured."""

    what: str
    promise: str
    measured: str
    met: bool | None
    value: float | None = None
    limit: float | None = None


def promises(results: dict) -> list[Promise]:
    """Every promise that this benchmark measures."""
    large = f"{results.get('large', {}).get('bytes', 10**10) / 1e9:.3g} GB"
    rows = [
        latency(results, "create to first output, warm pool, p50", ("create", "p50_ms"), 40),
        latency(results, "create to first output, warm pool, p99", ("create", "p99_ms"), 150),
        at_once(results.get("create_at_once", {})),
        latency(results, "exec of `true` through the API, p50", ("exec", "p50_ms"), 5),
        latency(results, "checkpoint with 10 MB, p50", ("small", "checkpoint", "p50_ms"), 50),
        latency(results, f"checkpoint with {large}, p50", ("large", "checkpoint", "p50_ms"), 50),
        latency(results, "restore with 10 MB, p50", ("small", "restore", "p50_ms"), 300),
        latency(results, f"restore with {large}, p50", ("large", "restore", "p50_ms"), 300),
        latency(results, "wake from cold with 10 MB, p50", ("wake_small", "p50_ms"), 400),
        latency(results, f"wake from cold with {large}, p50", ("wake_large", "p50_ms"), 400),
    ]
    disks = results.get("disks", {})
    ratios = [disks[step]["ratio"] for step in TREE if step in disks]
    mean = math.prod(ratios) ** (1 / len(ratios)) if ratios else None
    rows.append(ratio("developer workloads on the volume, geometric mean", mean, 0.9))
    rows += [ratio(f"{step} of 50,000 files", disks.get(step, {}).get("ratio"), 0.7) for step in TREE]
    for step, what in (("fsync", "4 KiB write + fsync"), ("sqlite", "SQLite commit, `synchronous=FULL`")):
        rows.append(ratio(what, disks.get(step, {}).get("ratio"), 0.5))
        rows.append(latency(results, f"{what}, p99", ("disks", step, "volume", "p99_ms"), 5))
    return rows


def latency(results: dict, what: str, path: tuple, limit_ms: float) -> Promise:
    """At most so many milliseconds."""
    value = results
    for key in path:
        value = value.get(key, {}) if isinstance(value, dict) else {}
    if not isinstance(value, float):
        return Promise(what, f"<= {limit_ms} ms", "not measured", None)
    return Promise(what, f"<= {limit_ms} ms", f"{value:.3g} ms", value <= limit_ms, value, limit_ms)


def ratio(what: str, value: float | None, limit: float) -> Promise:
    """At least so fast as a part of native ext4."""
    if value is None:
        return Promise(what, f">= {limit} x native ext4", "not measured", None)
    return Promise(what, f">= {limit} x native ext4", f"{value:.2f} x", value >= limit, value, limit)


def at_once(result: dict, what: str = "creates") -> Promise:
    """All of them, whatever it takes."""
    asked, succeeded = result.get("asked", 50), result.get("succeeded", 0)
    return Promise(f"{asked} {what} at once", "all succeed", f"{succeeded} of {asked}", succeeded == asked)


def save(results: dict, path: Path) -> None:
    """Writes the figures alone, so that none is lost when the rest never ends."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results, indent=2, sort_keys=True) + "\n")


def write(results: dict, path: Path, table: Path | None) -> None:
    """Writes all of it. What is missing was not measured."""
    publish(results, promises(results), path, table, SECTION, COMMAND)


def publish(results: dict, rows: list[Promise], path: Path, table: Path | None, section: str, command: str) -> None:
    """Figures, plot and, between the marks of a section, the table."""
    save(results, path)
    plot(results, rows, path.with_suffix(".png"))
    lines = ["| promise | at most or at least | measured | met | command |", "|---|---|---|---|---|"]
    lines += [f"| {row.what} | {row.promise} | {row.measured} | {verdict(row)} | {command} |" for row in rows]
    print("\n" + "\n".join(lines) + f"\n\n{path}")
    if table:
        begin, end = f"<!-- {section}: begin -->", f"<!-- {section}: end -->"
        head, rest = table.read_text().split(begin)
        _, tail = rest.split(end)
        table.write_text("\n".join([head + begin, conditions(results), "", *lines, end]) + tail)


def verdict(row: Promise) -> str:
    """Whether it is met; a figure without a promise is neither."""
    return "-" if row.met is None and row.measured != "not measured" else VERDICT[row.met]


def conditions(results: dict) -> str:
    """What the figures hold for."""
    machine = results["machine"]
    return (
        f"{machine['cpus']} CPUs, {machine['memory_gib']} GiB, Linux {machine['kernel']}, commit {machine['commit']}, "
        f"load {machine['load_before']:.1f} at the start; bucket in a local directory, `ns` driver."
    )


def plot(results: dict, rows: list[Promise], path: Path) -> None:
    """Latencies and ratios beside what is promised."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(13, 6))
    latencies = [row for row in rows if row.value is not None and row.promise.endswith("ms")]
    bars(left, latencies, "milliseconds")
    if latencies:
        left.set_xscale("log")
    for unit, words in (("ext4", "speed, native ext4 = 1"), ("MB/s", "megabytes per second")):
        if rates := [row for row in rows if row.value is not None and row.promise.endswith(unit)]:
            bars(right, rates, words)
    figure.suptitle(f"Puck, commit {results['machine']['commit']}: measured (bars) and promised (lines)")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def bars(axes, rows: list[Promise], unit: str) -> None:
    """One bar per promise, green when it is met, with a line at its limit."""
    places = range(len(rows))
    axes.barh(places, [row.value for row in rows], color=["#4a9d5b" if row.met else "#c8553d" for row in rows])
    for place, row in zip(places, rows):
        axes.plot([row.limit, row.limit], [place - 0.45, place + 0.45], color="black", linewidth=2)
        axes.annotate(f" {row.measured}", (max(row.value, row.limit), place), va="center", fontsize=8)
    axes.set_yticks(places, [row.what.replace("`", "") for row in rows], fontsize=8)
    axes.invert_yaxis()
    axes.margins(x=0.15)
    axes.set_xlabel(unit)


def brief(result: dict) -> str:
    """The figures that fit on a line."""
    flat = {}

    def walk(prefix: str, value) -> None:
        if isinstance(value, dict):
            for key, inner in value.items():
                walk(f"{prefix}{key}.", inner)
        elif prefix.endswith(("p50_ms.", "p99_ms.", "ratio.", "succeeded.")):
            flat[prefix[:-1]] = value

    walk("", result)
    return "  ".join(f"{key} {value:.3g}" for key, value in flat.items())
