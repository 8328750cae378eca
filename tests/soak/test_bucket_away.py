"""The bucket is away for long while a sprite writes as fast as it can: bounded memory, a bounded tail, nothing lost."""

import threading
import time
from pathlib import Path

import pytest

from machines import agent, allocated, memory
from object_stores import environment
from puck_server import wait_for
from scale import scaled
from wire import execute
from writing import client_of

PROGRAM = Path(__file__).parent / "inside/steady.py"
INSIDE = "/home/sprite/steady.py"
FILE = "/home/sprite/steady.bin"

AWAY_SECONDS = scaled(30, 600)
MEGABYTES_PER_SECOND = "100"

MIB = 1 << 20
MEMORY_BYTES_MAX = 150 * MIB
TAIL_BYTES_MAX = 1024 * MIB

# Beside the tail, the journal holds headers, files that are ready for use, and the file that is written.
JOURNAL_SLACK_BYTES = 96 * MIB

RETURN_SECONDS_MAX = 180
SAMPLE_SECONDS = 0.25


class Steady:
    """The writer in its sprite; `durable` counts the blocks that it said to be."""

    def __init__(self, server, name: str):
        self.durable, self.code, self.said = 0, None, ""
        self.thread = threading.Thread(target=self._follow, args=(server, name))
        self.thread.start()

    def _follow(self, server, name: str) -> None:
        with execute(server, name, "python3", INSIDE, "write", FILE, MEGABYTES_PER_SECOND) as command:
            while command.read(seconds=AWAY_SECONDS + RETURN_SECONDS_MAX):
                self.said = command.output.decode()
                lines = self.said.rpartition("\n")[0].splitlines()
                if lines:
                    self.durable = int(lines[-1])
            self.code = command.exit_code


class Watch:
    """The memory of the agent in each phase, and the most of its journal on the disk."""

    def __init__(self, pid: int, journal: Path):
        self.phase, self.memory, self.journal = "before", {}, 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look, args=(pid, journal))
        self._thread.start()

    def _look(self, pid: int, journal: Path) -> None:
        while not self._ended.wait(SAMPLE_SECONDS):
            self.memory.setdefault(self.phase, []).append(memory(pid))
            self.journal = max(self.journal, allocated(journal))

    def most(self, kind: str, phase: str | None = None) -> int:
        """The most memory, in one phase or ever."""
        return max(sample[kind] for name, samples in self.memory.items() for sample in samples if phase in (None, name))

    def told(self) -> str:
        """All of it, in MiB."""
        phases = [f"{phase} {self.most('resident', phase) / MIB:.0f} (own {self.most('own', phase) / MIB:.0f})" for phase in self.memory]
        return f"memory of the agent at most {', '.join(phases)} MiB, journal at most {self.journal / MIB:.0f} MiB"

    def end(self) -> None:
        """Stops looking."""
        self._ended.set()
        self._thread.join()


@pytest.mark.parametrize("fault", ["hang", pytest.param("drop", marks=pytest.mark.long), pytest.param(503, marks=pytest.mark.long)])
def test_a_bucket_that_is_away_for_long(servers, proxy, fault):
    where = dict(bucket=f"s3://sprites/away-{fault}", env=environment(proxy.port))
    server = servers(options=["--idle-timeout", "1h", "--pool", "0"], **where).start()
    # A bucket that is away is worth many warnings; a machine that dies of it is not expected.
    server.expect_log(r"WARN|ERROR")
    with client_of(server) as client:
        sprite = client.create_sprite("steady")
        (sprite.filesystem("/") / INSIDE.lstrip("/")).write_text(PROGRAM.read_text())
        journal = next((server.data / "volumes").glob("*/journal"))
        steady, watch = Steady(server, "steady"), Watch(agent(server), journal)
        wait_for("it writes", lambda: steady.durable > 100, seconds=60)
        proxy.fault, watch.phase = fault, "away"
        gone = time.monotonic()
        before = steady.durable
        while time.monotonic() < gone + AWAY_SECONDS:
            assert steady.code is None, steady.said
            time.sleep(SAMPLE_SECONDS)
        away = steady.durable
        proxy.fault, watch.phase = None, "back"
        wait_for("it writes on", lambda: steady.durable > away + 100, seconds=RETURN_SECONDS_MAX)
        assert sprite.run("pkill", "-TERM", "-f", INSIDE, timeout=60).returncode == 0
        steady.thread.join(RETURN_SECONDS_MAX)
        watch.end()
        assert steady.code == 0, steady.said
        print(f"\n{fault} for {AWAY_SECONDS} s: {away - before} MiB written meanwhile, {steady.durable} in all; {watch.told()}")
        assert watch.most("resident") <= MEMORY_BYTES_MAX, watch.told()
        assert watch.journal <= TAIL_BYTES_MAX + JOURNAL_SLACK_BYTES, f"{watch.journal / MIB:.0f} MiB of journal"
        checked = sprite.run("python3", INSIDE, "check", FILE, str(steady.durable), capture_output=True, timeout=300)
        assert checked.returncode == 0, checked.stdout + checked.stderr
        assert proxy.faults and ("bucket" in server.log() or "until it succeeds" in server.log())
        assert "machine died" not in server.log() and "panicked" not in server.log()
    server.stop()
    server.wipe_cache()
    server.start()
    with client_of(server) as client:
        checked = client.sprite("steady").run("python3", INSIDE, "check", FILE, str(steady.durable), capture_output=True, timeout=300)
        assert checked.returncode == 0, checked.stdout + checked.stderr
        client.destroy_sprite("steady")
    server.stop()
