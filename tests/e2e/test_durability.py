"""What survives: a killed server, a lost cache, both."""

import base64
import shutil
import threading
import time

import sprites

from wire import call

COUNT = 20
MIB = 100

# Writes random bytes whose checksum it knows before they reach the disk, and answers only after fsync.
WRITE = f"""
import hashlib, os
digest = hashlib.sha256()
with open('/home/sprite/data', 'wb') as file:
    for _ in range({MIB}):
        block = os.urandom(1 << 20)
        digest.update(block)
        file.write(block)
    file.flush()
    os.fsync(file.fileno())
directory = os.open('/home/sprite', os.O_RDONLY)
os.fsync(directory)
print(digest.hexdigest(), flush=True)
"""

# A machine that has just come up has nothing in its page cache, so the disk itself answers.
READ = "sha256sum /home/sprite/data"

# Appends the time, a thousand times a second, and syncs nothing.
TICK = """
import time
with open('/home/sprite/ticks', 'a', buffering=1) as file:
    while True:
        file.write(f'{time.time():.3f}\\n')
        time.sleep(0.001)
"""


def at_once(work, count: int = COUNT) -> list:
    """Does the work for each number at the same time."""
    results, errors = [None] * count, []

    def one(number: int) -> None:
        try:
            results[number] = work(number)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=one, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return results


def connect(server) -> sprites.SpritesClient:
    """The official client."""
    return sprites.SpritesClient(server.token, base_url=server.url, timeout=120)


def sums(server, client) -> list[str]:
    """The checksum of each sprite's file, read from its disk."""
    # A client gives the handshake of a WebSocket ten seconds, which so many wakes at once may not have on a busy machine.
    woken = at_once(lambda n: call(server, "GET", f"/v1/sprites/keeper-{n}/exec", timeout=120).status_code)
    assert woken == [200] * COUNT
    return at_once(
        lambda n: client.sprite(f"keeper-{n}").run("sh", "-c", READ, capture_output=True, check=True, timeout=300).stdout.decode().split()[0]
    )


def test_twenty_sprites_survive_a_killed_server_and_then_a_lost_cache(servers):
    server = servers(options=["--idle-timeout", "10m"]).start()
    with connect(server) as client:
        at_once(lambda n: client.create_sprite(f"keeper-{n}"))
        written = at_once(
            lambda n: client.sprite(f"keeper-{n}").run("python3", "-c", WRITE, capture_output=True, check=True, timeout=300).stdout.decode().strip()
        )
        assert len(set(written)) == COUNT
    server.kill()
    server.start()
    with connect(server) as client:
        assert [one.name for one in client.list_all_sprites()] == sorted(f"keeper-{n}" for n in range(COUNT))
        assert sums(server, client) == written
    # The end of a server puts every sprite to sleep, sealed.
    server.stop()
    server.wipe_cache()
    server.start()
    with connect(server) as client:
        assert sums(server, client) == written


def test_without_fsync_at_most_two_seconds_are_lost(servers):
    server = servers(options=["--idle-timeout", "10m"]).start()
    with connect(server) as client:
        sprite = client.create_sprite("ticker")
        script = base64.b64encode(TICK.encode()).decode()
        sprite.run("sh", "-c", f"echo {script} | base64 -d > tick.py; python3 tick.py >/dev/null 2>&1 & sync -f .", check=True)
        ticking = lambda: int(sprite.run("sh", "-c", "cat ticks 2>/dev/null | wc -l", capture_output=True).stdout)
        deadline = time.monotonic() + 60
        while ticking() < 4000:
            assert time.monotonic() < deadline
    killed = time.time()
    server.kill()
    server.start()
    with connect(server) as client:
        # After a crash ext4 may show zeros where the last block of a file was not written back yet: that is what is missing.
        ticks = client.sprite("ticker").run("sh", "-c", "tail -c 8192 ticks | tr -d '\\0'", capture_output=True, check=True).stdout
        last = ticks.decode().splitlines()[-2]
        missing = killed - float(last)
        assert missing <= 2, f"the last {missing:.2f} s are missing"


def test_a_killed_server_leaves_a_host_that_the_next_cleans(servers):
    server = servers(options=["--idle-timeout", "10m"]).start()
    with connect(server) as client:
        for number in range(3):
            client.create_sprite(f"left-{number}").run("sh", "-c", "echo x > file; sync -f .", check=True)
    server.kill()
    server.start()
    with connect(server) as client:
        assert client.sprite("left-1").run("cat", "file", capture_output=True).stdout == b"x\n"
    server.stop()


def test_checkpoints_survive_a_killed_server(servers):
    server = servers(options=["--idle-timeout", "10m"]).start()
    with connect(server) as client:
        sprite = client.create_sprite("kept")
        sprite.run("sh", "-c", "echo one > file", check=True)
        assert list(sprite.create_checkpoint("answered"))[-1].type == "complete"
        sprite.run("sh", "-c", "echo two > file; sync -f .", check=True)
    server.kill()
    server.start()
    with connect(server) as client:
        sprite = client.sprite("kept")
        assert sprite.run("cat", "file", capture_output=True).stdout == b"two\n"
        assert sprite.get_checkpoint("v1").comment == "answered"
        list(sprite.restore_checkpoint("v1"))
        assert sprite.run("cat", "file", capture_output=True).stdout == b"one\n"


def test_what_was_answered_is_in_the_bucket(servers):
    """A create and a checkpoint that were answered are there for a server that has nothing but the bucket."""
    bucket = str(servers.directory / "bucket")
    first = servers("first", bucket=bucket, options=["--idle-timeout", "10m"]).start()
    with connect(first) as client:
        sprite = client.create_sprite("answered")
        sprite.run("sh", "-c", "echo one > file", check=True)
        list(sprite.create_checkpoint())
    first.kill()
    shutil.rmtree(first.data / "volumes")
    second = servers("second", bucket=bucket, options=["--take-over"]).start()
    with connect(second) as client:
        sprite = client.sprite("answered")
        list(sprite.restore_checkpoint("v1"))
        assert sprite.run("cat", "file", capture_output=True).stdout == b"one\n"
    second.stop()
    # What the killed server left on the host is cleaned by a start of its own, which then finds that it lost the bucket.
    first.refuses_to_start()
