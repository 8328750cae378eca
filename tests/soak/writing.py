"""Drives the writers of `inside/writers.py` in a sprite, and knows what they have said to be durable."""

import threading
from dataclasses import dataclass
from pathlib import Path

import sprites
from websockets.exceptions import ConnectionClosed, InvalidMessage, InvalidStatus

from puck_server import Server, wait_for
from wire import execute

PROGRAM = Path(__file__).parent / "inside/writers.py"
INSIDE = "/home/sprite/writers.py"

CHECK_SECONDS_MAX = 300


def client_of(server: Server) -> sprites.SpritesClient:
    """The official client, patient: what crashed takes a while to come back."""
    return sprites.SpritesClient(server.token, base_url=server.url, timeout=180)


def install(sprite: sprites.Sprite) -> None:
    """Puts the program into a sprite, on its disk."""
    (sprite.filesystem("/") / INSIDE.lstrip("/")).write_text(PROGRAM.read_text())
    sprite.run("sync", "-f", "/home/sprite", check=True)


@dataclass
class Writer:
    """One writer: its kind, its place, and the last step that it said to be durable."""

    kind: str
    place: str
    durable: int = 0

    def checked(self, sprite: sprites.Sprite) -> int:
        """The last step that the disk has; what is there is as it was written."""
        done = sprite.run("python3", INSIDE, "check", self.kind, self.place, capture_output=True, timeout=CHECK_SECONDS_MAX)
        assert done.returncode == 0, f"{self.kind}: {(done.stdout + done.stderr).decode()[-3000:]}"
        return int(done.stdout)

    def lost_nothing(self, sprite: sprites.Sprite) -> None:
        """What was said to be durable is there."""
        found = self.checked(sprite)
        assert found >= self.durable, f"{self.kind}: step {self.durable} was durable, the last one there is {found}"
        self.durable = found


class Writing:
    """Writers at work until something ends their sprite."""

    def __init__(self, server: Server, name: str, writers: list[Writer]):
        self.writers = writers
        self.steps = 0
        self.said: list[str] = []
        self.threads = [threading.Thread(target=self._follow, args=(server, name, writer)) for writer in writers]

    def __enter__(self) -> "Writing":
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_) -> None:
        for thread in self.threads:
            thread.join(120)
            assert not thread.is_alive(), "a writer goes on after its sprite's end"

    def _follow(self, server: Server, name: str, writer: Writer) -> None:
        try:
            with execute(server, name, "python3", INSIDE, "write", writer.kind, writer.place) as command:
                seen = 0
                while command.read(seconds=120):
                    *whole, rest = command.output[seen:].split(b"\n")
                    seen = len(command.output) - len(rest)
                    if whole:
                        self.steps += len(whole)
                        writer.durable = int(whole[-1])
                self.said.append(f"{writer.kind} ended with {command.exit_code}: {command.output[-2000:]!r}")
        except (ConnectionClosed, InvalidMessage, InvalidStatus, OSError):
            # Its sprite has ended under it.
            pass

    def until(self, steps: int) -> None:
        """Waits until they have done so many steps together, each at least one."""
        before = [writer.durable for writer in self.writers]

        def enough() -> bool:
            assert not self.said, self.said
            return self.steps >= steps and all(writer.durable > was for writer, was in zip(self.writers, before))

        wait_for(f"{steps} steps of {[writer.kind for writer in self.writers]}", enough, seconds=180, pause=0.002)
