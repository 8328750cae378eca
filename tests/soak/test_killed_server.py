"""A server that is killed at any moment while it creates, writes, checkpoints, restores, puts to sleep, wakes and destroys."""

import random
import threading
import time
from dataclasses import dataclass, field

import sprites

from scale import scaled
from writing import client_of

SPRITES = 4

# Long enough for a few calls of each sprite, short enough that most kills meet one of them.
LIFE_SECONDS = (0.2, 3.0)

# A pause in which a sprite falls asleep, or is just about to.
IDLE_SECONDS = 1
PAUSE_SECONDS = (0.9, 1.6)

# What a killed server's successor may say of what it finds.
CUT_OFF = r"machine=m-|a machine died|did not get through to a sprite|did not wake|was set aside|is not wholly removed"

# A value and its check, put in place by a rename; durable when the command ends.
WRITE = """
import hashlib, os, sys
value = sys.argv[1]
body = ''.join(hashlib.sha256(f'{value} {n}'.encode()).hexdigest() for n in range(2000))
with open('value.new', 'w') as file:
    file.write(f'{value}\\n{body}\\n{hashlib.sha256(body.encode()).hexdigest()}\\n')
    file.flush()
    os.fsync(file.fileno())
os.rename('value.new', 'value')
directory = os.open('.', os.O_RDONLY)
os.fsync(directory)
"""

READ = """
import hashlib
try:
    value, body, digest = open('value').read().split()
    assert hashlib.sha256(body.encode()).hexdigest() == digest and body.startswith(hashlib.sha256(f'{value} 0'.encode()).hexdigest())
    print(value)
except FileNotFoundError:
    print(0)
"""

ABSENT = None


@dataclass
class Expected:
    """What is known of one sprite: `values` holds everything that its disk may hold, `ABSENT` for a sprite that is not there."""

    name: str
    values: set[int | None] = field(default_factory=lambda: {ABSENT})
    checkpoints: dict[str, int] = field(default_factory=dict)
    calls: int = 0

    def known(self) -> int | None:
        """The only possibility."""
        (value,) = self.values
        return value


class Life:
    """One life of the server: each sprite's calls come one after the other, from a thread of its own, until the kill."""

    def __init__(self, server, expected: list[Expected], numbers, seed: str):
        self.server, self.numbers = server, numbers
        self.killed = threading.Event()
        self.failures: list[str] = []
        self.threads = [
            threading.Thread(target=self._live, args=(one, random.Random(f"{seed} {one.name}"))) for one in expected
        ]
        for thread in self.threads:
            thread.start()

    def end(self) -> None:
        """Kills the server; what was on its way stays undecided."""
        self.killed.set()
        self.server.kill()
        for thread in self.threads:
            thread.join(60)
            assert not thread.is_alive()
        assert not self.failures, "\n".join(self.failures)

    def _live(self, one: Expected, chance: random.Random) -> None:
        with client_of(self.server) as client:
            while not self.killed.is_set():
                call = self._choose(one, chance)
                try:
                    call(client, one, chance)
                    one.calls += 1
                except Exception as error:
                    # Only the kill may make a call fail.
                    if not self.killed.wait(1):
                        self.failures.append(f"{one.name}: {call.__name__}: {error!r}")
                    return

    def _choose(self, one: Expected, chance: random.Random):
        if one.known() is ABSENT:
            return self.create
        calls = [self.write] * 6 + [self.checkpoint] * 3 + [self.pause, self.read] + [self.destroy]
        if one.checkpoints:
            calls += [self.restore] * 2
        return chance.choice(calls)

    def create(self, client, one: Expected, _chance) -> None:
        one.values, one.checkpoints = {ABSENT, 0}, {}
        client.create_sprite(one.name)
        one.values = {0}

    def write(self, client, one: Expected, _chance) -> None:
        value, before = next(self.numbers), one.known()
        one.values = {before, value}
        client.sprite(one.name).run("python3", "-c", WRITE, str(value), check=True, timeout=60)
        one.values = {value}

    def checkpoint(self, client, one: Expected, _chance) -> None:
        value = one.known()
        last = list(client.sprite(one.name).create_checkpoint(str(value)))[-1]
        assert last.type == "complete", last
        identifier = next(word for word in last.data.split() if word.startswith("v") and word[1:].isdigit())
        one.checkpoints[identifier] = value

    def restore(self, client, one: Expected, chance) -> None:
        identifier = chance.choice(sorted(one.checkpoints))
        one.values = {one.known(), one.checkpoints[identifier]}
        last = list(client.sprite(one.name).restore_checkpoint(identifier))[-1]
        assert last.type == "complete", last
        one.values = {one.checkpoints[identifier]}

    def read(self, client, one: Expected, _chance) -> None:
        found = value_of(client, one.name)
        assert found == one.known(), f"holds {found}, not {one.known()}"

    def pause(self, client, one: Expected, chance) -> None:
        self.killed.wait(chance.uniform(*PAUSE_SECONDS))

    def destroy(self, client, one: Expected, _chance) -> None:
        one.values = {one.known(), ABSENT}
        client.destroy_sprite(one.name)
        one.values, one.checkpoints = {ABSENT}, {}


def value_of(client, name: str) -> int:
    """What a sprite's disk holds, with its check."""
    done = client.sprite(name).run("python3", "-c", READ, capture_output=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    return int(done.stdout)


def agree(client, expected: list[Expected]) -> None:
    """Every sprite answers and holds what was answered; what was undecided is decided now."""
    there = {one.name for one in client.list_all_sprites()}
    for one in expected:
        found = value_of(client, one.name) if one.name in there else ABSENT
        assert found in one.values, f"{one.name} holds {found}, which is none of {one.values}"
        one.values = {found}
        if found is ABSENT:
            one.checkpoints = {}
            continue
        listed = {taken.id: taken.comment for taken in client.sprite(one.name).list_checkpoints() if is_numbered(taken.id)}
        # A checkpoint whose answer was lost with the server may be there or not; its comment says what it must hold.
        missing = {key: value for key, value in one.checkpoints.items() if listed.get(key) != str(value)}
        assert not missing, f"{one.name}: {missing} of {listed}"
        one.checkpoints = {key: int(comment) for key, comment in listed.items() if comment.isdigit()}
    assert there <= {one.name for one in expected}, there


def is_numbered(identifier: str) -> bool:
    """Whether somebody asked for the checkpoint."""
    return identifier.startswith("v") and identifier[1:].isdigit() and identifier != "v0"


def killed_again_and_again(server, chance: random.Random, rounds: int) -> None:
    """The test itself, on any bucket."""
    server.expect_log(CUT_OFF)
    expected = [Expected(f"mortal-{number}") for number in range(SPRITES)]
    numbers = iter(range(1, 10**9))
    server.start()
    for number in range(rounds):
        life = Life(server, expected, numbers, f"{chance.random()} {number}")
        time.sleep(chance.uniform(*LIFE_SECONDS))
        life.end()
        server.start()
        with client_of(server) as client:
            agree(client, expected)
    assert sum(one.calls for one in expected) >= rounds, "hardly a call got through between the kills"
    # In the end with nothing but the bucket, and back to each checkpoint.
    server.stop()
    if (server.data / "volumes").exists():
        server.wipe_cache()
    server.start()
    with client_of(server) as client:
        agree(client, expected)
        for one in expected:
            for identifier, value in one.checkpoints.items():
                try:
                    last = list(client.sprite(one.name).restore_checkpoint(identifier))[-1]
                except sprites.exceptions.SpriteError as error:
                    raise AssertionError(f"{one.name}: restore {identifier}: {error}") from error
                assert last.type == "complete", last
                assert value_of(client, one.name) == value, f"{one.name} at {identifier}"
        for one in expected:
            if one.known() is not ABSENT:
                client.destroy_sprite(one.name)
        assert client.list_sprites().sprites == []
    server.stop()


def test_whatever_a_server_does_it_may_be_killed(servers, chance):
    server = servers(options=["--idle-timeout", f"{IDLE_SECONDS}s", "--pool", "2"])
    killed_again_and_again(server, chance, scaled(20, 300))
