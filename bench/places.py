"""Where a workload runs: in a sprite, or on native ext4 beside it. And the server that is measured."""

import json
import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

from wire import Api

ROOT = Path(__file__).resolve().parents[1]
PUCK = Path(os.environ.get("PUCK", ROOT / "target/release/puck"))
WORKLOAD = Path(__file__).resolve().parent / "workload.py"

START_SECONDS_MAX = 300
STOP_SECONDS_MAX = 120
DROP_SECONDS_MAX = 10

# As the blank volume is formatted and mounted, so that only what is below ext4 differs.
DISK_BYTES = 100 << 30
MKFS_OPTIONS = ["-q", "-F", "-b", "4096", "-m", "0", "-i", "65536", "-J", "size=64"]
MKFS_EXTENDED = ["-E", "lazy_itable_init=0,lazy_journal_init=0,nodiscard"]
MOUNT_OPTIONS = "noatime,nodev,discard"

HOME = "/home/sprite"


class Server:
    """One `puck dev` in a directory of its own."""

    def __init__(self, directory: Path, *options: str, env: dict[str, str] | None = None):
        directory.mkdir(exist_ok=True)
        self.data, self.log = directory / "data", directory / "server.log"
        command = [PUCK, "dev", "--data", self.data, "--listen", "127.0.0.1:0", *options]
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, text=True, env={**os.environ, **(env or {})}
            )
        said = {}
        for line in self.process.stdout:
            if line.strip() == "ready":
                break
            name, _, value = line.strip().partition("=")
            said[name] = value
        else:
            raise RuntimeError(f"the server did not start\n{self.log.read_text()[-3000:]}")
        self.api = Api(said["SPRITES_API_URL"], said["SPRITE_TOKEN"])

    def another_client(self) -> Api:
        """For another thread."""
        host, port = self.api.address
        return Api(f"http://{host}:{port}", self.api.token)

    def complaints(self) -> list[str]:
        """What it warned of."""
        return re.findall(r"^.*\b(?:WARN|ERROR)\b.*$|^.*panicked at.*$", self.log.read_text(errors="replace"), re.M)

    def stop(self) -> float:
        """Ends it; gives how long that took."""
        started = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        try:
            status = self.process.wait(STOP_SECONDS_MAX)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise
        if status:
            raise RuntimeError(f"the server ended with {status}\n{self.log.read_text()[-3000:]}")
        return time.monotonic() - started


class Sprite:
    """A sprite's home."""

    label = "volume"

    def __init__(self, api: Api, name: str, archive: Path):
        self.api, self.name = api, name
        self.archive = f"{HOME}/tree.tar"
        self.directory = HOME
        api.write(name, f"{HOME}/workload.py", WORKLOAD.read_bytes())
        api.write(name, self.archive, archive.read_bytes(), mode="0644")

    def step(self, *arguments: str) -> dict:
        """Runs one step of the workload."""
        return json.loads(self.api.run(self.name, "python3", f"{HOME}/workload.py", *arguments))


class LoopDisk:
    """ext4 in a file, on a loop device. Formatted and mounted as a volume is."""

    def __init__(self, image: Path, mount: Path, direct: bool = True):
        self.image, self.mount, self.loop = image, mount, None
        with open(image, "wb") as sparse:
            sparse.truncate(DISK_BYTES)
        mount.mkdir()
        run("mkfs.ext4", *MKFS_OPTIONS, *MKFS_EXTENDED, image)
        options = ["--direct-io=on"] if direct else []
        self.loop = run("losetup", "--find", "--show", *options, "--sector-size=4096", image).strip()
        run("mount", "-t", "ext4", "-o", MOUNT_OPTIONS, self.loop, mount)

    def close(self) -> None:
        """Leaves nothing behind."""
        if os.path.ismount(self.mount):
            run("umount", self.mount)
        if self.loop:
            run("losetup", "--detach", self.loop)
            self.loop = None


class Native:
    """ext4 on a plain loop file on the disk that holds the server's data."""

    label = "native"

    def __init__(self, directory: Path, archive: Path):
        self.disk = LoopDisk(directory / "native.img", directory / "native")
        self.directory = str(self.disk.mount)
        self.archive = str(self.disk.mount / "tree.tar")
        shutil.copy(archive, self.archive)

    def step(self, *arguments: str) -> dict:
        """Runs one step of the workload."""
        return json.loads(run("python3", WORKLOAD, *arguments))

    def close(self) -> None:
        """Leaves nothing behind."""
        self.disk.close()


def drop_caches() -> bool:
    """What was read is read from the disk again. The steps have synchronized what they wrote; a `sync` of the whole host
    would wait for everybody else. False: the kernel did not do it in time, which it cannot while any filesystem of the
    host hangs; then both places are measured with warm caches.
    """
    if drop_caches.possible:
        child = subprocess.Popen(["sh", "-c", "echo 3 > /proc/sys/vm/drop_caches"], start_new_session=True)
        try:
            child.wait(DROP_SECONDS_MAX)
        except subprocess.TimeoutExpired:
            drop_caches.possible = False
    return drop_caches.possible


drop_caches.possible = True


def run(*command: str | Path) -> str:
    """Runs a program that must succeed; gives what it printed."""
    ended = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)
    if ended.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))}: {ended.stderr}")
    return ended.stdout
