"""Suites that others wrote for filesystems, on a sprite's root and home."""

import json
import os
import random
import shutil
import subprocess
import tempfile
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from machines import agent, descendants
from scale import SEED
from tools import tool
from writing import client_of

pytestmark = pytest.mark.long

# Every operation that the exerciser knows on Linux, weighed so that none is rare.
FSX_CONFIG = """
flen = 4194304
[opsize]
max = 262144
[weights]
close_open = 1
read = 10
write = 10
mapread = 5
mapwrite = 5
truncate = 3
fsync = 1
fdatasync = 1
posix_fallocate = 2
punch_hole = 3
sendfile = 2
posix_fadvise = 1
copy_file_range = 3
"""
FSX_OPERATIONS = 20_000
FSX_SEEDS = 2

PJDFSTEST_CONFIG = """
[features]
posix_fallocate = {}
utime_now = {}
utimensat = {}
[settings]
naptime = 0.01
[dummy_auth]
entries = [["nobody", "nogroup"], ["games", "games"], ["mail", "mail"]]
"""

PLACES = {"root": "/srv/suite", "home": "/home/sprite/suite"}


@pytest.fixture(scope="module")
def fsx() -> Path:
    return tool("fsx", "0.3.2")


@pytest.fixture(scope="module")
def pjdfstest() -> Path:
    return tool("pjdfstest", "0.2.2")


@pytest.fixture
def server(servers):
    return servers(options=["--idle-timeout", "1h", "--pool", "0"]).start()


def put(sprite, path: str, content: bytes, mode: int) -> None:
    """A file in a sprite."""
    (sprite.filesystem("/") / path.lstrip("/")).write_bytes(content, mode=mode)


@pytest.mark.parametrize("place", PLACES)
def test_fsx(server, fsx, place):
    with client_of(server) as client:
        sprite = client.create_sprite("exercised")
        put(sprite, "/home/sprite/fsx", fsx.read_bytes(), 0o755)
        put(sprite, "/home/sprite/fsx.toml", FSX_CONFIG.encode(), 0o644)
        sprite.run("sudo", "mkdir", "-p", PLACES[place], check=True)
        chance = random.Random(SEED)
        for seed in (str(chance.randrange(2**32)) for _ in range(FSX_SEEDS)):
            command = ["sudo", "/home/sprite/fsx", "-f", "/home/sprite/fsx.toml", "-N", str(FSX_OPERATIONS), "-S", seed]
            done = sprite.run(*command, f"{PLACES[place]}/file", capture_output=True, timeout=900)
            assert done.returncode == 0, f"seed {seed}: {(done.stdout + done.stderr).decode(errors='replace')[-4000:]}"


@contextmanager
def native_disks():
    """ext4 on a plain loop file, and an overlay on another directory of it, as a sprite's root is one; everybody may enter."""
    directory = Path(tempfile.mkdtemp(prefix="puck-native-", dir="/var/tmp"))
    directory.chmod(0o755)
    image, ext4, overlay = directory / "image", directory / "ext4", directory / "overlay"
    ext4.mkdir()
    overlay.mkdir()
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, directory)
        subprocess.run(["truncate", "-s", "2G", image], check=True)
        subprocess.run(["mkfs.ext4", "-q", "-F", image], check=True)
        subprocess.run(["mount", "-o", "loop,noatime", image, ext4], check=True)
        stack.callback(subprocess.run, ["umount", ext4], check=True)
        for part in ("lower", "upper", "work"):
            (ext4 / part).mkdir()
        options = f"lowerdir={ext4}/lower,upperdir={ext4}/upper,workdir={ext4}/work,redirect_dir=on,metacopy=off,xino=auto"
        subprocess.run(["mount", "-t", "overlay", "overlay", "-o", options, overlay], check=True)
        stack.callback(subprocess.run, ["umount", overlay], check=True)
        yield {"ext4": ext4, "overlay": overlay}


def as_in_the_sprite(server, sprite) -> tuple[list[str], int]:
    """A command that runs another with the sprite's user namespace and capabilities but with the host's files, and who the
    sprite's root is on the host.
    """
    inside = next(pid for pid in descendants(agent(server)) if os.readlink(f"/proc/{pid}/ns/user") != os.readlink("/proc/self/ns/user"))
    status = sprite.run("sudo", "grep", "CapBnd", "/proc/self/status", capture_output=True, check=True).stdout
    bounding = int(status.split()[1], 16)
    capabilities = ",".join(["-all", *(f"+cap_{bit}" for bit in range(41) if bounding >> bit & 1)])
    command = ["nsenter", "--target", str(inside), "--user", "--setuid", "0", "--setgid", "0", "setpriv", f"--bounding-set={capabilities}"]
    return command, int(Path(f"/proc/{inside}/uid_map").read_text().split()[1])


def outcomes(text: str) -> dict[str, str]:
    """What became of each case."""
    found = {}
    for line in text.splitlines():
        words = line.split()
        if len(words) >= 2 and "::" in words[0]:
            found[words[0]] = words[-1]
    return found


def test_pjdfstest_passes_what_it_passes_on_native_ext4(server, pjdfstest):
    """But for what an overlay on native ext4 does not pass either: it refuses the device 0:0, by which it marks what was deleted."""
    with client_of(server) as client, native_disks() as disks:
        sprite = client.create_sprite("posix")
        put(sprite, "/home/sprite/pjdfstest", pjdfstest.read_bytes(), 0o755)
        put(sprite, "/home/sprite/pjdfstest.toml", PJDFSTEST_CONFIG.encode(), 0o644)
        prefix, owner = as_in_the_sprite(server, sprite)
        found = {}
        for place, path in PLACES.items():
            sprite.run("sudo", "mkdir", "-m", "755", "-p", path, check=True)
            command = ["sudo", "/home/sprite/pjdfstest", "-c", "/home/sprite/pjdfstest.toml", "-p", path]
            done = sprite.run(*command, capture_output=True, timeout=600)
            found[place] = outcomes((done.stdout + done.stderr).decode(errors="replace"))
        program, config = disks["ext4"] / "pjdfstest", disks["ext4"] / "pjdfstest.toml"
        shutil.copy(pjdfstest, program)
        config.write_text(PJDFSTEST_CONFIG)
        for place, disk in disks.items():
            (disk / "suite").mkdir()
            os.chown(disk / "suite", owner, owner)
            command = [*prefix, program, "-c", config, "-p", disk / "suite"]
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
            found[place] = outcomes(done.stdout + done.stderr)
    print(json.dumps({place: count_of(of) for place, of in found.items()}))
    ext4, overlay = found["ext4"], found["overlay"]
    assert list(ext4.values()).count("ok") > 300, count_of(ext4)
    for place in PLACES:
        less = {case: found[place].get(case) for case, native in ext4.items() if native == "ok" and found[place].get(case) != "ok"}
        unexplained = {case: outcome for case, outcome in less.items() if overlay.get(case) == "ok"}
        assert not unexplained, f"{place}: {json.dumps(unexplained, indent=1)}"


def count_of(of: dict[str, str]) -> dict[str, int]:
    """How many of each outcome."""
    return {outcome: list(of.values()).count(outcome) for outcome in sorted(set(of.values()))}
