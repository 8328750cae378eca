"""Sleep, wake, and a bucket that outlives its server."""

import threading

import sprites

from wire import call, execute


def connect(server) -> sprites.SpritesClient:
    """The official client."""
    return sprites.SpritesClient(server.token, base_url=server.url)


def status(client, name: str) -> str:
    """How a sprite is, without waking it."""
    return client.get_sprite(name).status


def test_an_idle_sprite_sleeps_and_any_call_wakes_it(servers, eventually):
    server = servers(options=["--idle-timeout", "2s"]).start()
    with connect(server) as client:
        sprite = client.create_sprite("sleepy")
        (sprite.filesystem("/home/sprite") / "file").write_text("still here")
        wakes = {
            "exec": lambda: sprite.run("cat", "file", capture_output=True).stdout == b"still here",
            "read": lambda: (sprite.filesystem("/home/sprite") / "file").read_text() == "still here",
            "list sessions": lambda: sprite.list_sessions() == [],
            "list checkpoints": lambda: sprite.list_checkpoints() is not None,
            "checkpoint": lambda: list(sprite.create_checkpoint())[-1].type == "complete",
            "restore": lambda: list(sprite.restore_checkpoint("v1"))[-1].type == "complete",
        }
        for what, wake in wakes.items():
            eventually(f"asleep before {what}", lambda: status(client, "sleepy") == "cold")
            assert wake(), what
            assert status(client, "sleepy") == "running"
        eventually("asleep before twenty calls at once", lambda: status(client, "sleepy") == "cold")
        outputs = []
        calls = [
            threading.Thread(target=lambda: outputs.append(sprite.run("cat", "file", capture_output=True).stdout))
            for _ in range(20)
        ]
        for one in calls:
            one.start()
        for one in calls:
            one.join()
        assert outputs == [b"still here"] * 20


def test_looking_does_not_wake_and_working_does_not_sleep(servers, eventually):
    server = servers(options=["--idle-timeout", "2s"]).start()
    with connect(server) as client:
        sprite = client.create_sprite("busy")
        done = sprite.run("sh", "-c", "for n in 1 2 3 4 5 6 7 8; do sleep 1; echo $n; done", capture_output=True)
        assert done.stdout.split() == [b"%d" % n for n in range(1, 9)]
        with execute(server, "busy", "cat") as command:
            assert command.session_id
            for _ in range(3):
                command.control(type="nothing")
            done = sprite.run("sleep", "4")
            command.send(b"hello")
            command.until(b"hello")
            command.close_stdin()
            assert command.wait() == 0
        eventually("asleep", lambda: status(client, "busy") == "cold")
        for _ in range(10):
            assert client.get_sprite("busy").status == "cold"
            assert client.list_sprites().cold == 1
            assert call(server, "GET", "/v1/sprites?prefix=busy").status_code == 200


def test_the_cache_may_vanish_while_a_sprite_sleeps(servers, eventually):
    server = servers(options=["--idle-timeout", "1s"]).start()
    with connect(server) as client:
        sprite = client.create_sprite("forgetful")
        sum_before = sprite.run(
            "sh", "-c", "head -c 30M /dev/urandom > data; sync -f .; sha256sum data", capture_output=True, check=True
        ).stdout
        list(sprite.create_checkpoint())
        sprite.run("rm", "data", check=True)
        eventually("asleep", lambda: status(client, "forgetful") == "cold")
        server.wipe_cache()
        assert sprite.run("ls", capture_output=True).stdout == b""
        eventually("asleep again", lambda: status(client, "forgetful") == "cold")
        server.wipe_cache()
        list(sprite.restore_checkpoint("v1"))
        assert sprite.run("sha256sum", "data", capture_output=True).stdout == sum_before


def test_a_second_data_directory_takes_the_bucket_over_and_only_after_the_first_ended(servers):
    bucket = str(servers.directory / "bucket")
    first = servers("first", bucket=bucket).start()
    with connect(first) as client:
        sprite = client.create_sprite("traveller", labels=["kept"])
        sprite.run("sh", "-c", "echo luggage > file; sudo touch /etc/mark", check=True)
        list(sprite.create_checkpoint("packed"))
        identity = client.get_sprite("traveller").id
    second = servers("second", bucket=bucket)
    assert "own" in second.refuses_to_start()
    first.stop()
    second.start()
    with connect(second) as client:
        found = client.get_sprite("traveller")
        assert (found.id, found.labels, found.status) == (identity, ["kept"], "cold")
        assert found.run("sh", "-c", "cat file; ls /etc/mark", capture_output=True).stdout == b"luggage\n/etc/mark\n"
        assert found.get_checkpoint("v1").comment == "packed"
        list(found.restore_checkpoint("v1"))
    second.stop()
    # What the first still had is older than the bucket.
    first.expect_log("local database is not the log's and was set aside")
    first.start()
    with connect(first) as client:
        assert client.get_sprite("traveller").run("cat", "file", capture_output=True).stdout == b"luggage\n"


def test_the_token_stays_the_same_from_start_to_start(servers):
    server = servers().start()
    token = server.token
    with connect(server) as client:
        client.create_sprite("here")
    server.stop()
    server.start()
    assert server.token == token
    with connect(server) as client:
        assert client.get_sprite("here").status == "cold"
    server.stop(sig=2)
