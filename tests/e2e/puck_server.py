"""Runs `puck dev` for a test and watches what it says.

A server that ends must end well: status 0, nothing of it left on the host, and no WARN, ERROR or panic in its log that the test
did not announce with `expect_log`.
"""

import os
import re
import select
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import leaks

ROOT = Path(__file__).resolve().parents[2]
PUCK = Path(os.environ.get("PUCK", ROOT / "target/release/puck"))

# Where servers keep their buckets that a test does not choose for them; each gets a prefix of its own. Without it, on their disk.
BUCKETS = os.environ.get("PUCK_TEST_BUCKETS")

START_SECONDS_MAX = 300
STOP_SECONDS_MAX = 120
WAIT_SECONDS_MAX = 30

# What makes a log line one that somebody should have expected.
ALARMING = re.compile(r"\b(WARN|ERROR)\b|panicked at|RUST_BACKTRACE")

# What this host cannot give is said in every log.
CAP_SYS_RESOURCE = 24
CAPABILITIES = int(re.search(r"^CapEff:\s*(\S+)", Path("/proc/self/status").read_text(), re.MULTILINE)[1], 16)
HOST_LACKS = [] if CAPABILITIES >> CAP_SYS_RESOURCE & 1 else [re.compile("cannot mark the threads of the block device")]


def wait_for(what: str, condition: Callable[[], object], seconds: float = WAIT_SECONDS_MAX, pause: float = 0.05):
    """Asks until the answer is true, and gives the answer."""
    deadline = time.monotonic() + seconds
    while True:
        answer = condition()
        if answer:
            return answer
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(pause)


def free_port() -> int:
    """A port of the loopback that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


class Server:
    """One `puck dev` on one data directory; may be started again after it ended."""

    def __init__(self, data: Path, *, bucket: str | None = None, options: Iterable[str] = (), env: dict | None = None):
        self.data = data
        self.bucket = bucket
        self.options = list(options)
        self.env = {**os.environ, **(env or {})}
        self.env.pop("RUST_LOG", None)
        self.process: subprocess.Popen | None = None
        self.url = ""
        self.token = ""
        self.port = 0
        self.expected: list[re.Pattern] = list(HOST_LACKS)
        self._logs = 0
        self.log_path = data.parent / f"{data.name}.log"

    def command(self) -> list[str]:
        """What is run. The port stays the same from start to start."""
        self.port = self.port or free_port()
        command = [str(PUCK), "dev", "--data", str(self.data), "--listen", f"127.0.0.1:{self.port}", *self.options]
        if "--undelete" not in self.options:
            # What a test destroys is to be gone, unless it is about having it back.
            command += ["--undelete", "0s"]
        return command + (["--bucket", self.bucket] if self.bucket else [])

    def start(self) -> "Server":
        """Starts it and reads the three lines."""
        assert self.process is None, "already started"
        with open(self.log_path, "ab") as log:
            self._logs = log.tell()
            self.process = subprocess.Popen(
                self.command(), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, env=self.env
            )
        lines = self._read_lines(3)
        match = re.fullmatch(r"SPRITES_API_URL=(\S+)\nSPRITE_TOKEN=(\S+)\nready\n", "".join(lines))
        assert match, f"said {lines}\n{self.log()[-4000:]}"
        self.url, self.token = match.groups()
        return self

    def _read_lines(self, count: int) -> list[str]:
        lines, text = [], ""
        deadline = time.monotonic() + START_SECONDS_MAX
        descriptor = self.process.stdout.fileno()
        while len(lines) < count:
            ready, _, _ = select.select([descriptor], [], [], max(0, deadline - time.monotonic()))
            chunk = os.read(descriptor, 4096).decode() if ready else ""
            if not chunk:
                break
            text += chunk
            *whole, text = text.split("\n")
            lines += [line + "\n" for line in whole]
        return lines

    def refuses_to_start(self, seconds: float = 60) -> str:
        """Starts it, expects that it ends by itself with an error and without `ready`; gives what it said."""
        ended = subprocess.run(
            self.command(), stdin=subprocess.DEVNULL, capture_output=True, text=True, env=self.env, timeout=seconds, check=False
        )
        assert ended.returncode not in (0, 101), ended
        assert "ready" not in ended.stdout.splitlines(), ended
        assert "panicked" not in ended.stderr, ended.stderr
        return ended.stderr

    def log(self) -> str:
        """What it has said on standard error since its last start."""
        with open(self.log_path, "rb") as log:
            log.seek(self._logs)
            return log.read().decode(errors="replace")

    def expect_log(self, pattern: str) -> None:
        """Announces alarming lines that match."""
        self.expected.append(re.compile(pattern))

    def unexpected_log(self) -> list[str]:
        """Alarming lines that nobody announced."""
        lines = (re.sub(r"\x1b\[[0-9;]*m", "", line) for line in self.log().splitlines())
        return [line for line in lines if ALARMING.search(line) and not any(e.search(line) for e in self.expected)]

    def stop(self, sig: int = signal.SIGTERM) -> None:
        """Ends it as an operator would, and looks whether it ended well."""
        process, self.process = self.process, None
        process.send_signal(sig)
        try:
            status = process.wait(STOP_SECONDS_MAX)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise AssertionError(f"did not end within {STOP_SECONDS_MAX} s\n{self.log()[-6000:]}") from None
        finally:
            process.stdout.close()
        assert status == 0, f"status {status}\n{self.log()[-6000:]}"
        assert not self.unexpected_log(), "\n".join(self.unexpected_log())
        assert not self.remains(), "\n".join(self.remains())

    def kill(self) -> None:
        """Kills it without a warning, as a crash would."""
        process, self.process = self.process, None
        process.kill()
        process.wait()
        process.stdout.close()

    def remains(self) -> list[str]:
        """What is left of it on the host."""
        return leaks.remains(self.instance(), str(self.data))

    def instance(self) -> str:
        """What its things on the host are called after."""
        digits = (self.data / "node").read_text().replace("-", "").strip()
        return digits[:8]

    def wipe_cache(self) -> None:
        """Throws away everything local of the volumes."""
        shutil.rmtree(self.data / "volumes")

    def cli(self, *args: str, check: bool = True, sprite: str | None = None, **kwargs) -> subprocess.CompletedProcess:
        """Runs the command line client against it."""
        command, env = self.client(*args, sprite=sprite, env=kwargs.pop("env", {}))
        kwargs.setdefault("timeout", 120)
        if "input" not in kwargs:
            kwargs.setdefault("stdin", subprocess.DEVNULL)
        kwargs.setdefault("text", True)
        kwargs.setdefault("cwd", self.data.parent)
        ended = subprocess.run(command, capture_output=True, env=env, check=False, **kwargs)
        assert not check or ended.returncode == 0, f"{command}: {ended.returncode}\n{ended.stdout}\n{ended.stderr}"
        return ended

    def client(self, *args: str, sprite: str | None = None, env: dict[str, str] | None = None) -> tuple[list[str], dict[str, str]]:
        """The command line client's command and environment."""
        here = {"SPRITES_API_URL": self.url, "SPRITE_TOKEN": self.token}
        return [str(PUCK), *(["-s", sprite] if sprite else []), *args], {**self.env, **here, **(env or {})}


class Servers:
    """Makes servers and ends those that a test left running."""

    def __init__(self):
        self.directory = Path(tempfile.mkdtemp(prefix="puck-e2e-"))
        self.made: list[Server] = []

    def __call__(self, name: str = "data", **kwargs) -> Server:
        if BUCKETS:
            kwargs.setdefault("bucket", f"{BUCKETS}/{self.directory.name}/{name}")
        server = Server(self.directory / name, **kwargs)
        self.made.append(server)
        return server

    def close(self, failed: bool) -> None:
        """Ends all. After a failed test the ends are not judged, but the logs are shown."""
        try:
            for server in self.made:
                if server.process and failed:
                    server.process.send_signal(signal.SIGTERM)
                    try:
                        server.process.wait(STOP_SECONDS_MAX)
                    except subprocess.TimeoutExpired:
                        server.process.kill()
                    print(f"--- the end of {server.log_path.name}\n{server.log()[-6000:]}")
                elif server.process:
                    server.stop()
        finally:
            shutil.rmtree(self.directory, ignore_errors=True)
