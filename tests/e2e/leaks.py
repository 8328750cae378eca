#!/usr/bin/env python3
"""What servers leave on a host: mounts, loop devices, namespaces, cgroups, links, packet filter tables, processes.

`leaks.py save FILE` writes down what there is, `leaks.py check FILE` fails if there is more. Tests use `remains`, which looks for
the traces of one server by the name that it gives everything.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

NAME = "puck"


def mounts() -> set[str]:
    """The mount points of this namespace that are a server's."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return {line.split()[4] for line in lines}


def loops() -> set[str]:
    """Loop devices in use, with their files."""
    found = set()
    for backing in Path("/sys/block").glob("loop*/loop/backing_file"):
        try:
            found.add(f"{backing.parts[3]} {backing.read_text().strip()}")
        except OSError:
            pass
    return found


def links() -> set[str]:
    """Network links of the host."""
    return set(os.listdir("/sys/class/net"))


def tables() -> set[str]:
    """Tables of the packet filter."""
    listed = subprocess.run(["nft", "list", "tables"], capture_output=True, text=True, check=False)
    return set(listed.stdout.splitlines())


def network_namespaces() -> set[str]:
    """Network namespaces with a name."""
    path = Path("/run/netns")
    return set(os.listdir(path)) if path.is_dir() else set()


def cgroups() -> set[str]:
    """Control groups, in every hierarchy."""
    found = set()
    for root, directories, _ in os.walk("/sys/fs/cgroup"):
        found.update(os.path.join(root, directory) for directory in directories if NAME in os.path.join(root, directory))
    return found


def processes() -> set[str]:
    """Servers, agents, and whatever runs in a mount or process namespace that is not ours."""
    found = set()
    ours = {kind: os.readlink(f"/proc/self/ns/{kind}") for kind in ("mnt", "pid")}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            command = (entry / "cmdline").read_bytes().split(b"\0")
            program = os.path.basename(command[0].decode(errors="replace"))
            elsewhere = any(os.readlink(entry / "ns" / kind) != name for kind, name in ours.items())
        except OSError:
            continue
        if command[0] and (program.startswith(NAME) or elsewhere):
            found.add(f"{entry.name} {b' '.join(command).decode(errors='replace').strip()}")
    return found


KINDS = {
    "mount": mounts,
    "loop device": loops,
    "link": links,
    "nftables table": tables,
    "network namespace": network_namespaces,
    "cgroup": cgroups,
    "process": processes,
}


def snapshot() -> dict[str, list[str]]:
    """All of it, to be compared later."""
    return {kind: sorted(look()) for kind, look in KINDS.items()}


def remains(*names: str) -> list[str]:
    """Everything that carries one of the names."""
    return [
        f"{kind}: {text}"
        for kind, texts in snapshot().items()
        for text in texts
        if any(name in text for name in names)
    ]


def main(verb: str, path: str) -> int:
    if verb == "save":
        Path(path).write_text(json.dumps(snapshot()))
        return 0
    before = json.loads(Path(path).read_text())
    more = [(kind, text) for kind, texts in snapshot().items() for text in texts if text not in before[kind]]
    for kind, text in more:
        print(f"left behind: {kind}: {text}", file=sys.stderr)
    print(f"leaks: {len(more)} things left behind" if more else "leaks: nothing left behind")
    return 1 if more else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
