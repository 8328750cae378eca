"""Which buckets a server takes at its start: those that keep the promise of a conditional write, also in a race."""

import subprocess
import urllib.request

import pytest

from memory_store import MemoryStore
from object_stores import BUCKET, environment
from puck_server import ROOT, free_port, wait_for
from test_sleep import connect

MOTO = ROOT / ".venv/bin/moto_server"


@pytest.fixture
def store():
    made: list[MemoryStore] = []

    def make(fault: str | None = None) -> MemoryStore:
        made.append(MemoryStore(fault))
        return made[-1]

    yield make
    for one in made:
        one.close()


def holds_a_sprite(server) -> None:
    """The whole way: create, checkpoint, sleep at the end of the server, and the bucket alone for the next."""
    server.start()
    with connect(server) as client:
        sprite = client.create_sprite("kept")
        sprite.run("sh", "-c", "echo one > file", check=True)
        list(sprite.create_checkpoint())
    server.stop()
    server.wipe_cache()
    server.start()
    with connect(server) as client:
        assert client.sprite("kept").run("cat", "file", capture_output=True).stdout == b"one\n"
        client.destroy_sprite("kept")
    server.stop()


def test_a_bucket_that_keeps_its_promises_is_taken(servers, store):
    holds_a_sprite(servers(bucket="s3://sprites/kept", env=environment(store().port)))


def test_moto_is_taken(servers):
    port = free_port()
    with open(servers.directory / "moto.log", "wb") as log:
        process = subprocess.Popen([MOTO, "-H", "127.0.0.1", "-p", str(port)], stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        wait_for("moto makes a bucket", lambda: made_bucket(port), seconds=60, pause=0.2)
        holds_a_sprite(servers(bucket=f"s3://{BUCKET}/kept", env=environment(port)))
    finally:
        process.terminate()
        process.wait(20)


def made_bucket(port: int) -> bool:
    """Whether the bucket is there now."""
    request = urllib.request.Request(f"http://127.0.0.1:{port}/{BUCKET}", method="PUT", data=b"")
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status == 200
    except OSError:
        return False


@pytest.mark.parametrize("fault", ["ignores conditions", "checks then writes", "serves others' bytes"])
def test_a_bucket_that_breaks_its_promises_is_refused_and_left_as_it_was(servers, store, fault):
    broken = store(fault)
    server = servers(bucket="s3://sprites/refused", env=environment(broken.port))
    said = server.refuses_to_start()
    assert "s3://sprites/refused" in said and "bucket" in said, said
    assert not broken.objects, broken.objects.keys()
