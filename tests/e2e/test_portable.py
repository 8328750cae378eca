"""A sprite as one file, and out of any bucket: the same elsewhere, and nothing of it when anything is wrong."""

import hashlib
import io
import json
import os
import random
import tarfile
import threading
from http.client import HTTPConnection, IncompleteRead
from pathlib import Path

import pytest

import craft
from puck_server import Server
from test_encryption import keys  # noqa: F401
from test_sleep import connect, status
from wire import call

# The most that a server exports and imports at once.
TRANSFERS_MAX = 8

FILL = """set -e
mkdir -p tree/deep/er && head -c 9M /dev/urandom > tree/random && seq 200000 > tree/deep/numbers
ln -s ../random tree/deep/link && setfattr -n user.mark -v yes tree/random && chmod 4711 tree/deep/numbers
truncate -s 5G tree/sparse && echo end >> tree/sparse
sudo sh -c 'echo system > /etc/mark && chown 33:33 /etc/mark'"""

# Everything that a file has, but for times of the directories above.
LOOK = """cd /home/sprite && find tree /etc/mark -printf '%p %y %m %U:%G %s %l\\n' | sort
sha256sum tree/random tree/deep/numbers && tail -c 4 tree/sparse && cat /etc/mark"""


def objects(server: Server) -> dict[str, str]:
    """Everything in the bucket of a server, a local directory, with its digest."""
    bucket = Path(server.bucket or server.data / "bucket")
    files = (path for path in bucket.rglob("*") if path.is_file())
    return {str(path.relative_to(bucket)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def volumes(server: Server) -> set[str]:
    """The volumes in the bucket."""
    return {key.split("/")[1] for key in objects(server) if key.startswith("volumes/")}


def filled(client, name: str):
    """A sprite with a history: v1 is empty, v2 is full, and later there is one file more."""
    sprite = client.create_sprite(name)
    list(sprite.create_checkpoint("nothing yet"))
    sprite.run("sh", "-c", FILL, check=True)
    list(sprite.create_checkpoint("full"))
    sprite.run("sh", "-c", "echo late > late", check=True)
    return sprite


def look(sprite) -> bytes:
    """What there is."""
    return sprite.run("sh", "-c", LOOK, capture_output=True, check=True).stdout


def check_copy(sprite, seen: bytes, foreign: bool = False) -> None:
    """The sprite is a copy of a filled one and goes on, with its checkpoints if the same account wrote the archive."""
    assert look(sprite) == seen
    assert sprite.run("cat", "late", capture_output=True).stdout == b"late\n"
    if foreign:
        assert "v1" not in {checkpoint.id for checkpoint in sprite.list_checkpoints()}
        list(sprite.create_checkpoint("here"))
        sprite.run("rm", "late", check=True)
        [kept] = [checkpoint.id for checkpoint in sprite.list_checkpoints() if checkpoint.comment == "here"]
        list(sprite.restore_checkpoint(kept))
        assert sprite.run("cat", "late", capture_output=True).stdout == b"late\n"
        return
    comments = {checkpoint.id: checkpoint.comment for checkpoint in sprite.list_checkpoints()}
    assert (comments["v1"], comments["v2"]) == ("nothing yet", "full")
    list(sprite.restore_checkpoint("v2"))
    assert look(sprite) == seen and sprite.run("ls", "late").returncode != 0
    sprite.run("sh", "-c", "echo more > more && sync -f .", check=True)
    list(sprite.restore_checkpoint("v1"))
    assert sprite.run("ls", capture_output=True).stdout == b""


def test_a_sprite_goes_through_a_file_awake_and_asleep_here_and_elsewhere(servers, eventually):
    first = servers("first", options=["--idle-timeout", "10m"]).start()
    second = servers("second", options=["--idle-timeout", "10m"]).start()
    with connect(first) as client:
        sprite = filled(client, "origin")
        call(first, "PUT", "/v1/sprites/origin", json={"labels": ["kept"], "idle_timeout_seconds": 700, "durability": "strict"})
        seen = look(sprite)
        first.cli("export", "origin", "awake.tar")
        assert sprite.run("cat", "late", capture_output=True).stdout == b"late\n"
        assert "is there already" in first.cli("export", "origin", "awake.tar", check=False).stderr
        call(first, "PUT", "/v1/sprites/origin", json={"idle_timeout_seconds": 1})
        eventually("asleep", lambda: status(client, "origin") == "cold")
        first.cli("export", "origin", "asleep.tar")
        assert status(client, "origin") == "cold", "an export needs no machine"
        for archive in ("awake.tar", "asleep.tar"):
            name = archive.split(".", 1)[0]
            # Its own archives are known by their seal.
            assert first.cli("import", archive, name).stdout == f"{name}\n"
            check_copy(client.sprite(name), seen)
        copy = call(first, "GET", "/v1/sprites/awake").json()
        assert (copy["labels"], copy["idle_timeout_seconds"], copy["durability"]) == (["kept"], 700, "strict")
        taken = first.cli("import", "awake.tar", "origin", check=False)
        assert taken.returncode and "already exists" in taken.stderr
        whole = first.data.parent / "awake.tar"
        with open(whole, "rb") as archive:
            through = first.cli("import", "-", "piped", stdin=archive)
        assert through.stdout == "piped\n"
        # The copy is whole without its origin.
        call(first, "DELETE", "/v1/sprites/origin")
        eventually("the origin is gone", lambda: first.cli("list", "--json").stdout and "origin" not in first.cli("list", "--json").stdout)
        check_copy(client.sprite("piped"), seen)
    with connect(second) as client:
        refused = second.cli("import", str(whole), "foreign", check=False)
        assert refused.returncode and "--trust" in refused.stderr, refused
        assert second.cli("import", str(whole), "foreign", "--trust").stdout == "foreign\n"
        assert "the filesystem is sound" in second.log()
        check_copy(client.sprite("foreign"), seen, foreign=True)
    for server in (first, second):
        bucket = str(server.bucket or server.data / "bucket")
        server.stop()
        done = server.cli("fsck", bucket, check=False)
        assert done.returncode == 0, done.stdout


def test_a_file_that_is_not_whole_leaves_nothing_behind(servers):
    server = servers(options=["--idle-timeout", "10m", "--pool", "0"]).start()
    with connect(server) as client:
        sprite = client.create_sprite("origin")
        sprite.run("sh", "-c", "head -c 20M /dev/urandom > data; echo text > text", check=True)
    server.cli("export", "origin", "whole.tar")
    content = (server.data.parent / "whole.tar").read_bytes()
    members = [member.name for member in tarfile.open(server.data.parent / "whole.tar")]
    assert members[:2] == ["sprite.json", "sprite.seal"] and members[-1] == "end.seal", members
    before = volumes(server)
    seed = random.randrange(1 << 32)
    chance = random.Random(seed)
    damaged = {f"cut at {at}": content[:at] for at in (0, 100, 512, 3000, len(content) // 2, len(content) - 1600)}
    flips = [chance.randrange(len(content) - 4096) for _ in range(4)]
    damaged |= {f"bit {at}": content[:at] + bytes([content[at] ^ 4]) + content[at + 1:] for at in flips}
    damaged["something else"] = os.urandom(100_000)
    damaged["another tar"] = pack({"hello": b"x"})
    for what, archive in damaged.items():
        answer = call(server, "POST", "/v1/sprites/broken/import?trust=true", content=archive, timeout=120)
        # What a tar has for owners and times may change without anybody noticing.
        if what.startswith("bit") and answer.status_code == 201:
            assert call(server, "DELETE", "/v1/sprites/broken").status_code == 204
            continue
        assert answer.status_code == 400 and answer.json()["error"], (what, seed, answer.text)
        assert call(server, "GET", "/v1/sprites/broken").status_code == 404
    assert volumes(server) == before, f"nothing is left in the bucket (seed {seed})"
    assert not list((server.data / "pool").glob("volume*")) and not list((server.data / "pool").glob("export*"))
    assert server.cli("import", "whole.tar", "broken").stdout == "broken\n"
    server.stop()


def pack(members: dict[str, bytes]) -> bytes:
    """A tar archive."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return out.getvalue()


def test_a_large_sprite_takes_no_more_memory_than_a_small_one(servers):
    server = servers(options=["--idle-timeout", "10m"]).start()
    with connect(server) as client:
        sprite = client.create_sprite("large")
        sprite.run("sh", "-c", "head -c 400M /dev/urandom > data; sync -f .", check=True)
        digest = sprite.run("sha256sum", "data", capture_output=True, check=True).stdout
        before = peak(server.process.pid)
        server.cli("export", "large", "large.tar")
        server.cli("import", "large.tar", "again", timeout=300)
        grown = peak(server.process.pid) - before
        assert grown < 256 << 20, f"{grown >> 20} MiB"
        assert client.sprite("again").run("sha256sum", "data", capture_output=True).stdout == digest
    server.stop()


def peak(pid: int) -> int:
    """The most memory that a process ever had, in bytes."""
    [line] = [line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) << 10


def test_a_sprite_is_opened_out_of_another_bucket_which_stays_as_it_is(servers, eventually):
    first = servers("first", options=["--idle-timeout", "10m"]).start()
    second = servers("second", options=["--idle-timeout", "10m"]).start()
    with connect(first) as client:
        sprite = filled(client, "origin")
        seen = look(sprite)
        url = json.loads(first.cli("info", "origin", "--json").stdout)["disk_url"]
        assert url in first.cli("info", "origin").stdout
    refused = second.cli("open", url, "opened", check=False)
    assert refused.returncode and "--trust" in refused.stderr, refused
    # Of a sprite that runs, the bucket has an instant of the last second.
    eventually("the bucket has it", lambda: json.loads(first.cli("volume", "stats", "--json", sprite="origin").stdout)["lag_bytes"] == 0)
    assert second.cli("open", url, "while-it-runs", "--trust").stdout == "while-it-runs\n"
    first.stop()
    before = objects(first)
    assert second.cli("open", url, "opened", "--trust").stdout == "opened\n"
    with connect(second) as client:
        check_copy(client.sprite("opened"), seen, foreign=True)
        check_copy(client.sprite("while-it-runs"), seen, foreign=True)
    missing = second.cli("open", url.replace("#origin", "#nobody"), "x", "--trust", check=False)
    assert missing.returncode and "no sprite is named nobody" in missing.stderr
    second.stop()
    assert objects(first) == before, "the source is only read"


def test_a_plain_sprite_moves_to_an_encrypted_bucket_and_back(servers, keys):
    plain = servers("plain", options=["--idle-timeout", "10m"]).start()
    sealed = servers("sealed", options=["--idle-timeout", "10m", *keys.option]).start()
    with connect(plain) as client:
        seen = look(filled(client, "origin"))
    plain.cli("export", "origin", "plain.tar")
    sealed.cli("import", "plain.tar", "moved", "--trust")
    with connect(sealed) as client:
        assert look(client.sprite("moved")) == seen
    sealed.cli("export", "moved", "again.tar")
    url = json.loads(sealed.cli("info", "moved", "--json").stdout)["disk_url"]
    locked = plain.cli("open", url, "opened", "--trust", check=False)
    assert locked.returncode and "--encryption-key-file" in locked.stderr, locked
    plain.cli("open", url, "opened", "--trust", *keys.option)
    plain.cli("import", "again.tar", "back", "--trust")
    with connect(plain) as client:
        check_copy(client.sprite("opened"), seen, foreign=True)
        check_copy(client.sprite("back"), seen, foreign=True)
    plain.stop()
    sealed.stop()


def test_a_filesystem_that_is_made_up_is_not_mounted(servers):
    """What e2fsck would repair is refused, though every checksum of the archive is right."""
    first = servers("first", options=["--idle-timeout", "10m"]).start()
    second = servers("second", options=["--idle-timeout", "10m", "--pool", "0"]).start()
    with connect(first) as client:
        sprite = client.create_sprite("origin")
        sprite.run("sh", "-c", "echo content > victim; sync -f .", check=True)
    first.cli("export", "origin", "sound.tar")
    first.stop()
    crafted = second.data.parent / "crafted.tar"
    crafted.write_bytes(craft.archive(second.data.parent / "sound.tar"))
    before = volumes(second)
    refused = call(second, "POST", "/v1/sprites/crafted/import?trust=true", content=crafted.read_bytes(), timeout=120)
    assert refused.status_code == 422 and "not sound" in refused.json()["error"], refused.text
    assert volumes(second) == before
    assert second.cli("import", str(second.data.parent / "sound.tar"), "sound", "--trust").stdout == "sound\n"
    second.expect_log("boot|came? up|not sound")
    second.stop()


def test_archives_on_their_way_are_bounded_and_end_with_the_server(servers, eventually):
    server = servers().start()
    waiting = [HTTPConnection("127.0.0.1", server.port, timeout=60) for _ in range(TRANSFERS_MAX)]
    for number, connection in enumerate(waiting):
        connection.putrequest("POST", f"/v1/sprites/slow-{number}/import")
        connection.putheader("Authorization", f"Bearer {server.token}")
        connection.putheader("Content-Length", str(1 << 20))
        connection.endheaders(b"begun")

    def one_more():
        return call(server, "POST", "/v1/sprites/one-more/import", content=b"no archive")

    eventually("all have begun", lambda: server.log().count("an import begins") == TRANSFERS_MAX)
    full = one_more()
    assert full.status_code == 429 and full.json()["limit"] == TRANSFERS_MAX and full.headers["Retry-After"], full.text
    # One that goes away makes room.
    waiting.pop().close()
    eventually("there is room", lambda: one_more().status_code == 400)
    server.stop()
    for connection in waiting:
        answer = connection.getresponse()
        assert answer.status == 503, answer.read()
        connection.close()


def test_an_export_that_is_cut_off_does_not_look_whole(servers, eventually):
    server = servers(options=["--idle-timeout", "10m"]).start()
    with connect(server) as client:
        client.create_sprite("origin").run("sh", "-c", "head -c 60M /dev/urandom > data; sync -f .", check=True)
    connection = HTTPConnection("127.0.0.1", server.port, timeout=60)
    connection.request("GET", "/v1/sprites/origin/export", headers={"Authorization": f"Bearer {server.token}"})
    answer = connection.getresponse()
    assert answer.status == 200 and answer.read(1)
    server.expect_log("an export ends early")
    stopping = threading.Thread(target=server.stop)
    stopping.start()
    # While the server still serves what it has begun, the client takes everything that there is.
    eventually("it ends early", lambda: "an export ends early" in server.log())
    with pytest.raises((IncompleteRead, ConnectionError)):
        answer.read()
    connection.close()
    stopping.join()


@pytest.mark.parametrize("what", ["export", "import"])
def test_calls_without_a_token_are_refused(server, what):
    method = "GET" if what == "export" else "POST"
    answer = call(server, method, f"/v1/sprites/any/{what}", headers={"Authorization": "Bearer no"})
    assert answer.status_code == 401
