"""Encryption at rest: what the bucket shows to who reads all of it, and what happens to who has the wrong key."""

import os
import re
import secrets
import sqlite3
import subprocess
from contextlib import closing
from pathlib import Path

import pytest

import test_durability
from machines import agents
from puck_server import PUCK, ROOT, Server
from test_sleep import connect, status
from wire import call

LITESTREAM = ROOT / ".venv/bin/litestream"
ZSTD_MAGIC = bytes.fromhex("28b52ffd")

# What neither the bucket nor anything else may show. Names of sprites are in small letters.
MARKER = f"marker-{secrets.token_hex(12)}"
NAME = f"name-{secrets.token_hex(8)}"


class Keys:
    """A file of master keys."""

    def __init__(self, path: Path):
        self.path = path

    @staticmethod
    def generate() -> str:
        """A new key."""
        return puck("key", "generate").stdout.strip()

    def write(self, *keys: str) -> "Keys":
        """Makes these the keys of the file, the first one first."""
        self.path.touch(0o600)
        self.path.write_text("".join(f"{key}\n" for key in keys))
        return self

    @property
    def option(self) -> list[str]:
        """What a command is given."""
        return ["--encryption-key-file", str(self.path)]


@pytest.fixture
def keys(servers, monkeypatch) -> Keys:
    """A file with one key. Nobody is told of it but by the test."""
    monkeypatch.delenv("PUCK_ENCRYPTION_KEY_FILE", raising=False)
    return Keys(servers.directory / "keys").write(Keys.generate())


def puck(*arguments: object, check: bool = True) -> subprocess.CompletedProcess:
    """Runs a command that needs no server."""
    done = subprocess.run([str(PUCK), *map(str, arguments)], capture_output=True, text=True, timeout=120, check=False)
    assert not check or done.returncode == 0, done
    return done


def shell(sprite, script: str) -> str:
    """What a script prints."""
    return sprite.run("sh", "-c", script, capture_output=True, check=True).stdout.decode().strip()


def objects(bucket: Path) -> dict[str, bytes]:
    """Everything in the bucket but the base image, which is public."""
    files = (path for path in bucket.rglob("*") if path.is_file())
    found = {str(path.relative_to(bucket)): path for path in files}
    return {key: path.read_bytes() for key, path in found.items() if not key.startswith("images/")}


def unpacked(data: bytes) -> bytes:
    """Whatever is compressed in it, one after the other."""
    starts = [match.start() for match in re.finditer(re.escape(ZSTD_MAGIC), data)]
    # What follows a frame is no part of it, which is an error only after the frame was written.
    frames = (subprocess.run(["zstd", "-dcq"], input=data[start:], capture_output=True, check=False).stdout for start in starts)
    return b"".join(frames)


def shown(bucket: Path, word: str) -> set[str]:
    """The ways in which the bucket shows a word."""
    ways = set()
    for key, data in objects(bucket).items():
        ways |= {"name"} if word in key else set()
        ways |= {"plain"} if word.encode() in data else set()
        ways |= {"compressed"} if word.encode() in unpacked(data) else set()
    return ways


def kinds(bucket: Path) -> tuple[set[str], set[str]]:
    """Where in the bucket there is something encrypted, and where something that is not."""
    secret, clear = set(), set()
    for key, data in objects(bucket).items():
        whole, segment = data.startswith(b"PUCKENC1"), data.startswith(b"PUCKSEG1" + bytes([2, 0, 0, 0]))
        (secret if whole or segment else clear).add(key.split("/")[0])
    return secret, clear


def live(server: Server) -> None:
    """A sprite's life, with all that reads or writes a bucket: the marker is on the disk at the end, and only there."""
    with connect(server) as client:
        sprite = client.create_sprite(NAME)
        shell(sprite, f"yes {MARKER} | head -n 3000 > file; head -c 3M /dev/urandom > data; sha256sum data > sum; sync -f .")
        whole = f"grep -cx {MARKER} file; sha256sum -c sum"
        assert list(sprite.create_checkpoint(MARKER))[-1].type == "complete"
        shell(sprite, "echo later > file; rm data")
        assert list(sprite.create_checkpoint())[-1].type == "complete"
        assert shell(sprite, f"grep -c {MARKER} /.sprite/checkpoints/v1/home/sprite/file") == "3000"
        changes = call(server, "GET", f"/v1/sprites/{NAME}/checkpoints/v1/diff/v2")
        assert changes.status_code == 200 and "/home/sprite/file" in changes.text, changes.text
        forked = call(server, "POST", f"/v1/sprites/{NAME}/fork", json={"name": f"{NAME}-fork", "checkpoint": "v1"})
        assert forked.status_code == 201, forked.text
        assert shell(client.sprite(f"{NAME}-fork"), whole) == "3000\ndata: OK"
        list(sprite.restore_checkpoint("v1"))
        assert shell(sprite, whole) == "3000\ndata: OK"


def wake_cold(server: Server, eventually) -> None:
    """Both disks are whole when nothing local is left of them."""
    with connect(server) as client:
        for name in (NAME, f"{NAME}-fork"):
            eventually("asleep", lambda: status(client, name) == "cold", seconds=60)
        server.wipe_cache()
        for name in (NAME, f"{NAME}-fork"):
            assert shell(client.sprite(name), f"grep -cx {MARKER} file; sha256sum -c sum") == "3000\ndata: OK"


@pytest.mark.parametrize("encrypted", [True, False], ids=["encrypted", "plain"])
def test_a_bucket_shows_nothing_when_it_is_encrypted(servers, keys, eventually, encrypted):
    """The plain one shows that this test would see it."""
    bucket = servers.directory / "bucket"
    option = keys.option if encrypted else []
    server = servers(bucket=str(bucket), options=["--idle-timeout", "2s", "--pool", "1", *option]).start()
    live(server)
    wake_cold(server, eventually)
    server.stop()
    server.start()
    wake_cold(server, eventually)
    server.stop()
    assert shown(bucket, MARKER) == (set() if encrypted else {"plain", "compressed"})
    assert bool(shown(bucket, NAME)) != encrypted
    secret, clear = kinds(bucket)
    assert secret == ({"accounts", "volumes"} if encrypted else set())
    assert clear == {"bucket-id", "owner"} | (set() if encrypted else {"accounts", "blank", "volumes"})
    checked = puck("fsck", bucket, *option).stdout
    assert f"{NAME}: whole" in checked and f"{NAME}-fork: whole" in checked, checked


def test_no_key_leaves_the_server(servers, keys):
    """Not to its log, a command line, an environment or a file of the machine; and no agent ever has the master key."""
    # In a variable, the name of the file is in the server's environment, and still not in an agent's.
    server = servers(env={"PUCK_ENCRYPTION_KEY_FILE": str(keys.path)}, options=["--pool", "1", "--idle-timeout", "10m"])
    server.env["RUST_LOG"] = "trace"
    server.start()
    with connect(server) as client:
        assert shell(client.create_sprite(NAME), "cat /proc/*/environ /proc/*/cmdline | grep -c '[E]NCRYPTION'; true") == "0"
    key = keys.path.read_text().strip()
    raw = subprocess.run(["base64", "-d"], input=key.encode(), capture_output=True, check=True).stdout
    forms = [key.encode(), raw, raw.hex().encode(), ", ".join(map(str, raw)).encode(), ",".join(map(str, raw)).encode()]
    machines = agents(server)
    assert machines
    seen = [server.log().encode()]
    for pid in machines:
        seen += [Path(f"/proc/{pid}/{name}").read_bytes() for name in ("cmdline", "environ", "root/run/puck/boot.json")]
        assert str(keys.path).encode() not in b"".join(seen)
        seen.append(memory(pid))
    assert not any(form in text for form in forms for text in seen)
    # An agent's own keys are not known here, but how they would look in a log.
    assert not re.search(r"\d{1,3}(, ?\d{1,3}){31}", server.log())
    assert raw in memory(server.process.pid), "where it is, it would be found"
    server.stop()


def memory(pid: int) -> bytes:
    """All that a process may write to."""
    parts = []
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as file:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            span, mode, *_ = line.split()
            start, end = (int(number, 16) for number in span.split("-"))
            if not mode.startswith("rw"):
                continue
            try:
                parts.append(os.pread(file.fileno(), end - start, start))
            except OSError:
                # Some of it goes away meanwhile.
                continue
    return b"".join(parts)


def state(bucket: Path) -> dict[str, tuple[int, int]]:
    """What is in the bucket, and since when."""
    stats = {str(path.relative_to(bucket)): path.stat() for path in bucket.rglob("*") if path.is_file()}
    return {key: (stat.st_size, stat.st_mtime_ns) for key, stat in stats.items()}


def test_a_key_that_does_not_fit_is_refused_and_changes_nothing(servers, keys):
    other = Keys(servers.directory / "other").write(Keys.generate())
    bucket, plain = servers.directory / "bucket", servers.directory / "plain"
    for path, option in ((bucket, keys.option), (plain, [])):
        server = servers(f"made-{path.name}", bucket=str(path), options=["--pool", "0", *option]).start()
        with connect(server) as client:
            client.create_sprite(NAME)
        server.stop()
    for path, option, fix in (
        (bucket, [], "name the file that holds it with --encryption-key-file"),
        (bucket, other.option, "name the file that holds the right one with --encryption-key-file"),
        (plain, keys.option, "leave --encryption-key-file out"),
    ):
        before = state(path)
        said = servers("refused", bucket=str(path), options=["--pool", "0", *option]).refuses_to_start()
        assert fix in said and "account local" in said, said
        assert state(path) == before
        for command in (["fsck", path], ["log", "decrypt", path, servers.directory / "copy"]):
            refused = puck(*command, *option, check=False)
            assert refused.returncode == 1 and fix in refused.stderr, refused
        assert state(path) == before and not (servers.directory / "copy").exists()
    keys.path.chmod(0o644)
    said = servers("open", bucket=str(bucket), options=keys.option).refuses_to_start()
    assert f"chmod 600 {keys.path}" in said, said


def test_a_master_key_is_replaced_and_retired(servers, keys):
    bucket = servers.directory / "bucket"
    old, new = keys.path.read_text().strip(), Keys.generate()
    server = servers(bucket=str(bucket), options=["--pool", "0", *keys.option])

    def wraps() -> set[str]:
        return {path.name for path in bucket.glob("accounts/local/keys/*")}

    def reads() -> None:
        server.start()
        with connect(server) as client:
            assert shell(client.sprite(NAME), "cat file") == MARKER
        server.stop()
        server.wipe_cache()

    server.start()
    with connect(server) as client:
        shell(client.create_sprite(NAME), f"echo {MARKER} > file")
    server.stop()
    first = wraps()
    segments = {key for key in state(bucket) if "/segments/" in key}
    keys.write(new, old)
    reads()
    assert len(first) == 1 and wraps() > first
    assert puck("key", "retire", bucket, *keys.option).stdout == "", "both are in the file"
    keys.write(new)
    assert puck("key", "retire", bucket, *keys.option).stdout.split() == list(first)
    reads()
    assert len(wraps()) == 1 and not wraps() & first
    assert segments <= set(state(bucket)), "nothing was encrypted anew"
    keys.write(old)
    assert "name the file that holds the right one" in server.refuses_to_start()
    assert "leave" in puck("key", "retire", servers.directory / "nothing", check=False).stderr


def test_the_stock_litestream_restores_what_log_decrypt_writes(servers, keys):
    bucket = servers.directory / "bucket"
    server = servers(bucket=str(bucket), options=["--pool", "0", *keys.option]).start()
    with connect(server) as client:
        sprite = client.create_sprite(NAME)
        shell(sprite, f"echo {MARKER} > file; sync -f .")
        assert list(sprite.create_checkpoint(MARKER))[-1].type == "complete"
    server.stop()
    for what, sql, answer in (([], "SELECT name FROM sprite", NAME), ([NAME], "SELECT comment FROM checkpoint WHERE auto = 0", MARKER)):
        copy, database = servers.directory / f"copy-{len(what)}", servers.directory / f"{len(what)}.db"
        command = ["log", "decrypt", bucket, copy, *what, *keys.option]
        assert puck(*command).stdout.endswith(" files\n")
        env = {name: value for name, value in os.environ.items() if name != "AWS_CA_BUNDLE"}
        restored = subprocess.run(
            [LITESTREAM, "restore", "-integrity-check", "full", "-o", database, f"file://{copy}"],
            capture_output=True, text=True, env=env, check=False, timeout=120,
        )
        assert restored.returncode == 0, restored.stderr
        with closing(sqlite3.connect(database)) as opened:
            assert opened.execute(sql).fetchall() == [(answer,)]
        assert "not empty" in puck(*command, check=False).stderr
    refused = puck("log", "decrypt", bucket, servers.directory / "nobody", "nobody", *keys.option, check=False)
    assert "no sprite is named nobody" in refused.stderr, refused


@pytest.mark.parametrize(
    "durable", [test_durability.test_what_was_answered_is_in_the_bucket, test_durability.test_checkpoints_survive_a_killed_server]
)
def test_what_is_durable_is_so_with_encryption(servers, keys, monkeypatch, durable):
    monkeypatch.setenv("PUCK_ENCRYPTION_KEY_FILE", str(keys.path))
    durable(servers)
