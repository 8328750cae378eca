"""A bucket on a real S3 server, and one that misbehaves."""

import json

import pytest
import sprites

from object_stores import SECRET_KEY, environment
from test_sleep import connect, status
from wire import call


def test_sprites_live_in_an_s3_bucket(servers, seaweed, eventually):
    options = dict(bucket="s3://sprites/whole", env=environment(seaweed.s3_port))
    first = servers("first", options=["--idle-timeout", "2s"], **options).start()
    with connect(first) as client:
        sprite = client.create_sprite("far")
        written = sprite.run(
            "sh", "-c", "head -c 50M /dev/urandom > data; echo one > file; sync -f .; sha256sum data", capture_output=True, check=True
        ).stdout
        list(sprite.create_checkpoint("in the bucket"))
        sprite.run("rm", "file", check=True)
        eventually("asleep", lambda: status(client, "far") == "cold", seconds=60)
        first.wipe_cache()
        assert sprite.run("sha256sum", "data", capture_output=True, check=True).stdout == written
        list(sprite.restore_checkpoint("v1"))
        assert sprite.run("cat", "file", capture_output=True).stdout == b"one\n"
        environ = sprite.run("sh", "-c", "cat /proc/*/environ /proc/*/cmdline 2>/dev/null", capture_output=True).stdout
        assert SECRET_KEY.encode() not in environ
    first.stop()
    second = servers("second", **options).start()
    with connect(second) as client:
        sprite = client.sprite("far")
        assert sprite.run("sh", "-c", "sha256sum data; cat file", capture_output=True).stdout == written + b"one\n"
        sprite.destroy()
        assert client.list_sprites().sprites == []
    second.stop()


@pytest.mark.parametrize("fault", [403, 500, "hang"])
def test_a_bad_bucket_is_refused_at_the_start_with_a_reason(servers, proxy, fault):
    server = servers(bucket="s3://sprites/bad", env=environment(proxy.port))
    proxy.fault = fault
    said = server.refuses_to_start(seconds=60)
    assert "bucket" in said and "s3://sprites/bad" in said, said


@pytest.mark.parametrize("fault", [403, 500, "hang"])
def test_a_bucket_that_fails_later_loses_nothing(servers, proxy, fault, eventually):
    """Work goes on while the bucket fails, what needs the bucket says why it cannot, and all of it is there afterwards."""
    server = servers(
        f"later-{fault}", bucket=f"s3://sprites/later-{fault}", env=environment(proxy.port), options=["--idle-timeout", "10m"]
    ).start()
    server.expect_log(r"WARN|ERROR")
    with connect(server) as client:
        sprite = client.create_sprite("steady")
        sprite.run("sh", "-c", "echo before > file; sync -f .", check=True)
        proxy.fault = fault
        written = sprite.run(
            "sh", "-c", "head -c 8M /dev/urandom > data; echo during > file; sync -f .; sha256sum data", capture_output=True, check=True, timeout=60
        ).stdout
        eventually("the bucket was asked in vain", lambda: proxy.faults, seconds=60)
        assert sprite.run("cat", "file", capture_output=True).stdout == b"during\n"
        refused = call(server, "POST", "/v1/sprites", json={"name": "impossible"}, timeout=100)
        assert 500 <= refused.status_code < 600 and isinstance(refused.json()["error"], str), refused.text
        eventually("the log says so", lambda: "WARN" in server.log() or "ERROR" in server.log(), seconds=60)
        assert "panicked" not in server.log()
        proxy.fault = None
        eventually("checkpoints work again", lambda: works(sprite), seconds=120, pause=1)
        assert client.get_sprite("steady").name == "steady"
    server.stop()
    server.wipe_cache()
    server.start()
    with connect(server) as client:
        done = client.sprite("steady").run("sh", "-c", "sha256sum data; cat file", capture_output=True, check=True)
        assert done.stdout == written + b"during\n"
    server.stop()


def works(sprite) -> bool:
    """Whether a checkpoint succeeds."""
    try:
        return list(sprite.create_checkpoint())[-1].type == "complete"
    except sprites.exceptions.SpriteError:
        return False


def test_what_a_server_had_when_it_was_cut_off_is_a_checkpoint_when_it_comes_back(servers, seaweed, proxy, eventually):
    bucket = "s3://sprites/overtaken"
    first = servers("first", bucket=bucket, env=environment(proxy.port), options=["--idle-timeout", "10m"]).start()
    first.expect_log(r"WARN|ERROR")
    with connect(first) as client:
        sprite = client.create_sprite("twice")
        sprite.run("sh", "-c", "echo both > file; sync -f .", check=True)
        list(sprite.create_checkpoint())
        proxy.fault = 500
        sprite.run("sh", "-c", "echo first > file; echo more > only-here; sync -f .", check=True)
    first.kill()
    second = servers("second", bucket=bucket, env=environment(seaweed.s3_port), options=["--take-over"]).start()
    with connect(second) as client:
        sprite = client.sprite("twice")
        assert sprite.run("cat", "file", capture_output=True).stdout == b"both\n"
        sprite.run("sh", "-c", "echo second > file", check=True)
    second.stop()
    proxy.fault = None
    first.options.append("--take-over")
    first.start()
    with connect(first) as client:
        sprite = client.sprite("twice")
        assert sprite.run("sh", "-c", "cat file; ls", capture_output=True).stdout == b"second\nfile\n"

        def recovered() -> list[str]:
            listed = json.loads(first.cli("checkpoint", "list", "--include-auto", "--json", sprite="twice").stdout)
            return [found["id"] for found in listed if found["comment"].startswith("recovered: ")]

        [kept] = eventually("what the first had is a checkpoint", recovered)
        assert "what another worker overtook is a checkpoint now" in first.log()
        list(sprite.restore_checkpoint(kept))
        assert sprite.run("sh", "-c", "cat file only-here", capture_output=True).stdout == b"first\nmore\n"
    first.stop()
