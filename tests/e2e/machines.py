"""The machines of a server, seen from the host: for tests that end one without a warning and look at what its disk is then."""

import os
import re
import signal
import subprocess
from contextlib import contextmanager
from pathlib import Path

from puck_server import Server, wait_for

# Where a machine's root namespace has its disk.
MOUNT = "volume"

# How a server says that it noticed the end of an agent.
NOTICED = "a machine died"

CHECK_SECONDS_MAX = 300


def descendants(pid: int) -> list[int]:
    """A process's children, their children, and so on."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        children.setdefault(parent, []).append(int(entry.name))
    found = [pid]
    for one in found:
        found += children.get(one, [])
    return found[1:]


def agents(server: Server) -> list[int]:
    """The guest agents of a server's machines."""
    return [pid for pid in descendants(server.process.pid) if is_agent(pid)]


def is_agent(pid: int) -> bool:
    """Whether it is a guest agent that lives."""
    try:
        program, *arguments = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return os.path.basename(program) == b"puck-guest" and arguments[:1] == [b"agent"]


def agent(server: Server) -> int:
    """The agent of the only machine of a server without a pool."""
    return wait_for("one machine runs", lambda: single(agents(server)))


def single(found: list[int]) -> int | None:
    """The only element, if there is exactly one."""
    return found[0] if len(found) == 1 else None


def kill_agent(server: Server) -> None:
    """Ends the agent of the only machine in the middle of whatever it does, and waits until the server has noticed."""
    pid, deaths = agent(server), server.log().count(NOTICED)
    os.kill(pid, signal.SIGKILL)
    wait_for("the server notices", lambda: server.log().count(NOTICED) > deaths)


def memory(pid: int) -> dict[str, int]:
    """Bytes of memory of a process: all that is resident, and what is its own alone."""
    text = Path(f"/proc/{pid}/status").read_text()
    sizes = {name: int(re.search(rf"^{name}:\s+(\d+) kB", text, re.MULTILINE)[1]) << 10 for name in ("VmRSS", "RssAnon")}
    return {"resident": sizes["VmRSS"], "own": sizes["RssAnon"]}


def allocated(directory: Path) -> int:
    """Bytes that the files of a directory take on the disk."""
    total = 0
    for path in directory.glob("**/*"):
        try:
            total += path.lstat().st_blocks * 512
        except OSError:
            continue
    return total


@contextmanager
def frozen(pid: int):
    """The disk of a machine with nothing in flight, and its block device. A frozen ext4 has written its journal back."""
    mount = f"/proc/{pid}/root/{MOUNT}"
    device = os.stat(mount).st_dev
    name = os.path.basename(os.readlink(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}"))
    subprocess.run(["fsfreeze", "--freeze", mount], check=True, timeout=60)
    try:
        yield Path("/dev") / name
    finally:
        subprocess.run(["fsfreeze", "--unfreeze", mount], check=True, timeout=60)


def check_disk(server: Server) -> None:
    """Has e2fsck look at the disk that the only machine has mounted, after the mount has replayed the journal of a crash."""
    with frozen(agent(server)) as device:
        checked = subprocess.run(
            ["e2fsck", "-f", "-n", device], capture_output=True, text=True, check=False, timeout=CHECK_SECONDS_MAX
        )
    assert checked.returncode == 0, f"{checked.stdout}\n{checked.stderr}"
