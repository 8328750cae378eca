#!/usr/bin/env python3
"""Puck at work, for real: a sprite is made, used, broken, restored, put to sleep, robbed of everything local, and woken.

Each step is a call of the `puck` command line against a server started here. Ends with what happened and how long it took; fails
when a proof fails. Nothing is left behind.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

ROOT = Path(__file__).resolve().parents[1]
PUCK = Path(os.environ.get("PUCK", ROOT / "target/release/puck"))
SPRITE = "demo"
PACKAGE = "humanize"

WAIT_SECONDS_MAX = 300

APP = f"""\
from pathlib import Path

import {PACKAGE}

notes = Path(__file__).with_name("notes.txt").read_text().splitlines()
print("the project works, up to its", {PACKAGE}.ordinal(len(notes)), "note")
"""


class Failed(Exception):
    """A step or a proof failed."""


def run(*command: str | Path, **kwargs) -> str:
    """Runs a program and gives what it printed."""
    ended = subprocess.run(command, capture_output=True, text=True, timeout=WAIT_SECONDS_MAX, check=False, stdin=subprocess.DEVNULL, **kwargs)
    if ended.returncode:
        raise Failed(f"{' '.join(map(str, command))} ended with {ended.returncode}\n{ended.stdout}{ended.stderr}")
    return ended.stdout.strip()


class Demo:
    """The server, and the steps with their times."""

    def __init__(self, directory: Path):
        self.directory = directory
        self.data = directory / "data"
        self.log = directory / "server.log"
        self.steps: list[tuple[str, float, str]] = []
        self.server: subprocess.Popen | None = None
        self.env = dict(os.environ)

    def step(self, title: str, work) -> str:
        """Does one step, shows it, remembers its time."""
        print(f"  {title} ...", end="", flush=True)
        started = time.monotonic()
        said = work()
        took = time.monotonic() - started
        self.steps.append((title, took, said))
        print(f" {seconds(took)}", flush=True)
        return said

    def puck(self, *args: str | Path) -> str:
        """The command line, as anyone would use it."""
        return run(PUCK, *args, env=self.env, cwd=self.directory)

    def inside(self, *command: str, options: tuple = ()) -> str:
        """Runs a command in the sprite."""
        return self.puck("exec", *options, "--", *command)

    def start(self) -> str:
        """Starts the server and takes the address and the token from its three lines."""
        command = [PUCK, "dev", "--data", self.data, "--listen", "127.0.0.1:0", "--idle-timeout", "3s"]
        with open(self.log, "wb") as log:
            self.server = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, text=True)
        for line in self.server.stdout:
            if line.strip() == "ready":
                return f"{self.env['SPRITES_API_URL']}, bucket in a local directory"
            name, _, value = line.strip().partition("=")
            self.env[name] = value
        raise Failed(f"the server did not start\n{self.log.read_text()[-3000:]}")

    def stop(self) -> str:
        """Ends the server as Ctrl-C would."""
        server, self.server = self.server, None
        server.send_signal(signal.SIGINT)
        status = server.wait(WAIT_SECONDS_MAX)
        server.stdout.close()
        if status:
            raise Failed(f"the server ended with {status}\n{self.log.read_text()[-3000:]}")
        return "every sprite sealed, nothing left on the host"

    def make_repository(self) -> tuple[Path, str]:
        """A local repository with a history, as one file that can be carried into a sprite."""
        source = self.directory / "project"
        git = lambda *args: run("git", "-C", source, "-c", "user.name=demo", "-c", "user.email=demo@localhost", *args)
        run("git", "init", "--quiet", "--initial-branch=main", source)
        (source / "app.py").write_text(APP)
        for number in range(1, 21):
            (source / "notes.txt").write_text("".join(f"note {n}\n" for n in range(number)))
            git("add", ".")
            git("commit", "--quiet", "-m", f"note {number}")
        bundle = self.directory / "project.bundle"
        git("bundle", "create", "--quiet", bundle, "main")
        return bundle, git("rev-parse", "HEAD")

    def wait_until_cold(self) -> str:
        """Waits until the sprite sleeps, without waking it."""
        deadline = time.monotonic() + WAIT_SECONDS_MAX
        while json.loads(self.puck("info", SPRITE, "--json"))["status"] != "cold":
            if time.monotonic() > deadline:
                raise Failed("the sprite does not sleep")
            time.sleep(0.1)
        return "cold: no process, no memory on this machine"

    def wipe(self) -> str:
        """Throws away everything that this machine has of the sprite's disk."""
        volumes = self.data / "volumes"
        size = sum(path.stat().st_blocks * 512 for path in volumes.rglob("*") if path.is_file())
        shutil.rmtree(volumes)
        return f"rm -rf {volumes.relative_to(self.directory)}: {size / 1e6:.1f} MB gone"

    def proof(self, commit: str) -> str:
        """The project is there, whole, and runs."""
        said = self.inside("sh", "-c", "git -C project fsck --no-progress && git -C project rev-parse HEAD && python3 project/app.py")
        if not said.startswith(commit) or "the project works" not in said:
            raise Failed(f"the project is not what it was: {said}")
        return said.splitlines()[-1]

    def visit(self, url: str) -> str:
        """Has a web server kept running in the sprite, and asks it for the project's notes."""
        self.inside("sprite-env", "services", "create", "site", "--cmd", "python3", "--args", "-m,http.server,8080", "--dir", "project", "--http-port", "8080", "--no-stream")
        return self.ask(url)

    def ask(self, url: str) -> str:
        """A request as a browser would send it, which waits while the sprite wakes."""
        host = urlsplit(url).netloc
        request = Request(f"{self.env['SPRITES_API_URL']}/notes.txt", headers={"Host": host, "Authorization": f"Bearer {self.env['SPRITE_TOKEN']}"})
        try:
            with urlopen(request, timeout=WAIT_SECONDS_MAX) as answer:
                said = answer.read().decode()
        except HTTPError as error:
            raise Failed(f"the URL answers with {error.code}: {error.read().decode()}") from error
        if not said.endswith("note 19\n"):
            raise Failed(f"the URL answers with {said[:200]!r}")
        return f"{answer.status} from {url}/notes.txt"

    def broken(self) -> str:
        """The project is gone."""
        said = self.inside("sh", "-c", "python3 project/app.py 2>&1 || true; ls -a")
        if "works" in said or "project" in said.splitlines():
            raise Failed(f"the project is still there: {said}")
        return said.splitlines()[0]

    def story(self) -> str:
        """All steps; gives the sprite's URL."""
        bundle, commit = self.make_repository()
        self.step("start the server", self.start)
        self.step("create a sprite", lambda: self.puck("create", "--skip-console", SPRITE))
        self.puck("use", SPRITE)
        url = json.loads(self.puck("info", SPRITE, "--json"))["url"]
        self.step("first command in it", lambda: self.inside("uname", "-sr"))
        upload = ("--file", f"{bundle}:/home/sprite/project.bundle")
        self.step("git clone a repository", lambda: self.inside("git", "clone", "--quiet", "-b", "main", "project.bundle", "project", options=upload) or f"commit {commit[:10]}")
        self.step(f"pip install {PACKAGE}", lambda: self.inside("pip", "install", "--quiet", "--no-cache-dir", "--no-warn-script-location", PACKAGE) or "from the configured index")
        self.step("run the project", lambda: self.proof(commit))
        self.step("checkpoint", lambda: self.puck("checkpoint", "create", "--comment", "it works").splitlines()[-1])
        self.step("rm -rf what matters", lambda: self.inside("sh", "-c", "rm -rf project ~/.local && sudo rm -rf /usr/lib/python3") or "the project, its packages, Python's own")
        self.step("it is broken", self.broken)
        self.step("restore", lambda: self.puck("restore", "v1").splitlines()[-1])
        self.step("proof: all of it is back", lambda: self.proof(commit))
        self.step("a web server, at its URL", lambda: self.visit(url))
        self.step("let it sleep (idle time 3 s)", self.wait_until_cold)
        self.step("wipe this machine's cache", self.wipe)
        self.step("wake from the bucket, proof", lambda: self.proof(commit))
        self.step("its URL again", lambda: self.ask(url))
        self.step("stop the server", self.stop)
        return url

    def summary(self, url: str) -> None:
        """The screenful."""
        width = max(len(title) for title, _, _ in self.steps)
        print(f"\n{bold('What happened')}\n")
        for title, took, said in self.steps:
            print(f"  {title:<{width}}  {seconds(took):>8}  {dim(' '.join(said.split())[:78 - width + 20])}")
        print(f"\n  The sprite was {bold(SPRITE)}, its URL {url}.")
        print(f"\n{bold('What to do next')}\n")
        print("  sudo target/release/puck dev --data ./sprites     a server that stays; it prints two variables to export")
        print("  target/release/puck create my-first               a sprite, with a console in it")
        print("  target/release/puck --help                        everything else")


def seconds(took: float) -> str:
    """A time as people read it."""
    return f"{took * 1000:.0f} ms" if took < 1 else f"{took:.1f} s"


def bold(text: str) -> str:
    """Stands out on a terminal."""
    return f"\x1b[1m{text}\x1b[0m" if sys.stdout.isatty() else text


def dim(text: str) -> str:
    """Stands back on a terminal."""
    return f"\x1b[2m{text}\x1b[0m" if sys.stdout.isatty() else text


def main() -> int:
    if os.geteuid() != 0:
        print("the demo starts a sprite, which needs root: sudo make demo", file=sys.stderr)
        return 1
    directory = Path(tempfile.mkdtemp(prefix="puck-demo-"))
    demo = Demo(directory)
    print(f"{bold('Puck')}: one binary, one bucket, one sprite\n")
    try:
        demo.summary(demo.story())
        return 0
    except (Failed, subprocess.TimeoutExpired, KeyboardInterrupt) as error:
        print(f"\nfailed: {re.sub(chr(27), '', str(error)) or 'interrupted'}", file=sys.stderr)
        if demo.server and demo.log.exists():
            print(f"the end of the server's log:\n{demo.log.read_text(errors='replace')[-3000:]}", file=sys.stderr)
        return 1
    finally:
        if demo.server:
            demo.server.terminate()
            try:
                demo.server.wait(WAIT_SECONDS_MAX)
            except subprocess.TimeoutExpired:
                demo.server.kill()
        shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
