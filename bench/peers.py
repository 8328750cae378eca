"""The four places that the disk's benchmark compares: a sprite, native ext4, JuiceFS, and ext4 on a loop device in JuiceFS."""

import json
import os
import shutil
import subprocess
import time
from contextlib import ExitStack
from pathlib import Path

from places import HOME, ROOT, LoopDisk, run
from wire import Api

HERE = Path(__file__).resolve().parent
PROGRAMS = ("developer.py", "workload.py")
JUICEFS = ROOT / ".venv/bin/juicefs"

MOUNT_SECONDS_MAX = 30
CACHE_MIB = "10240"

# What the steps run that the base image does not have.
PACKAGES = ["fio", "postgresql-15"]


class Place:
    """A directory of the host."""

    def __init__(self, label: str, directory: Path, archive: Path):
        self.label, self.directory = label, directory
        run("tar", "-xf", archive, "-C", directory)
        # Postgres runs as somebody else and has to get there.
        directory.chmod(0o755)

    def step(self, name: str, *arguments: str) -> dict:
        """Runs one step."""
        return json.loads(run("/usr/bin/python3", HERE / "developer.py", name, self.directory, *arguments))


class Sprite:
    """A sprite's home."""

    def __init__(self, api: Api, name: str, archive: Path):
        self.label, self.api, self.name = "volume", api, name
        for program in PROGRAMS:
            api.write(name, f"{HOME}/{program}", (HERE / program).read_bytes())
        api.write(name, f"{HOME}/inputs.tar", archive.read_bytes(), mode="0644")
        api.run(name, "sh", "-c", "tar -xf inputs.tar && rm inputs.tar && sync -f .", directory=HOME)
        # Only what the steps run; Postgres itself is not to be started.
        script = "export DEBIAN_FRONTEND=noninteractive; mkdir -p /etc/postgresql-common && echo 'create_main_cluster = false' "
        script += f"> /etc/postgresql-common/createcluster.conf && apt-get update -qq && apt-get install -yqq --no-install-recommends {' '.join(PACKAGES)}"
        api.run(name, "sudo", "sh", "-c", f"{{ {script}; }} > /tmp/apt.log 2>&1 || {{ tail /tmp/apt.log; exit 1; }}")

    def step(self, name: str, *arguments: str) -> dict:
        """Runs one step."""
        return json.loads(self.api.run(self.name, "python3", f"{HOME}/developer.py", name, HOME, *arguments))


class JuiceFS:
    """A filesystem of JuiceFS: metadata in SQLite, objects in a directory, otherwise as it comes."""

    def __init__(self, directory: Path):
        self.mount = directory / "mount"
        self.mount.mkdir(parents=True)
        self.metadata = f"sqlite3://{directory / 'meta.db'}"
        objects = directory / "objects"
        run(JUICEFS, "format", "--storage", "file", "--bucket", f"{objects}/", "--trash-days", "0", self.metadata, "bench")
        command = [JUICEFS, "mount", "--no-usage-report", "--cache-dir", directory / "cache", "--cache-size", CACHE_MIB]
        self.log = open(directory / "log", "wb")
        self.process = subprocess.Popen([*command, self.metadata, self.mount], stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log)
        deadline = time.monotonic() + MOUNT_SECONDS_MAX
        while not os.path.ismount(self.mount):
            if time.monotonic() > deadline or self.process.poll() is not None:
                self.process.kill()
                raise RuntimeError(f"JuiceFS does not mount: {(directory / 'log').read_text()[-2000:]}")
            time.sleep(0.05)

    def close(self) -> None:
        """Leaves nothing behind."""
        subprocess.run([JUICEFS, "umount", self.mount], capture_output=True, check=False)
        try:
            self.process.wait(MOUNT_SECONDS_MAX)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.log.close()


def all_of(directory: Path, archive: Path, api: Api, name: str, stack: ExitStack, juicefs: bool) -> list:
    """The places, in the order in which each step visits them. What they leave is the stack's to clean."""
    places: list = [Sprite(api, name, archive)]
    native = LoopDisk(directory / "native.img", directory / "native")
    stack.callback(native.close)
    places.append(Place("native", native.mount, archive))
    if juicefs:
        filesystem = JuiceFS(directory / "juicefs")
        stack.callback(filesystem.close)
        (filesystem.mount / "files").mkdir()
        places.append(Place("juicefs", filesystem.mount / "files", archive))
        below = JuiceFS(directory / "juicefs-below")
        stack.callback(below.close)
        image = LoopDisk(below.mount / "disk.img", directory / "juicefs-image", direct=False)
        stack.callback(image.close)
        places.append(Place("juicefs_image", image.mount, archive))
    return places


def missing() -> list[str]:
    """Programs that this host lacks."""
    programs = ["fio", "setpriv", "/usr/lib/postgresql/15/bin/postgres", str(JUICEFS)]
    return [program for program in programs if not shutil.which(program)]
