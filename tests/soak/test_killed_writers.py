"""Databases and a repository at work while the agent of their sprite is killed, or the server, or the whole worker is lost."""

import shutil

import pytest

from machines import check_disk, kill_agent
from scale import scaled
from writing import Writer, Writing, client_of, install

STEPS_MAX = 120

# How a machine's end under a call is told.
DIED = r"a machine died|did not get through to a sprite|a sprite did not wake|was set aside|machine=m-"

POSTGRES = """
set -e
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
apt-get install -yqq --no-install-recommends postgresql-common postgresql-client-15 python3-psycopg2 >/dev/null
sed -i 's/#\\?create_main_cluster.*/create_main_cluster = false/' /etc/postgresql-common/createcluster.conf
apt-get install -yqq --no-install-recommends postgresql-15 >/dev/null
pg_createcluster 15 main -- --data-checksums >/dev/null
pg_ctlcluster 15 main start
su postgres -c 'createuser --superuser sprite'
su postgres -c 'createdb --owner sprite steps'
"""


def start(servers, **options):
    """A server with no machine but the sprite's."""
    server = servers(options=["--idle-timeout", "10m", "--pool", "0"], **options).start()
    server.expect_log(DIED)
    return server


def of_kinds(*kinds: str) -> list[Writer]:
    """Writers, each with a place of its own."""
    return [Writer(kind, f"/home/sprite/{kind}") for kind in kinds]


def whole(server, name: str, writers: list[Writer]) -> None:
    """Nothing that was durable is missing, what is there fits together, and ext4 is clean."""
    with client_of(server) as client:
        for writer in writers:
            writer.lost_nothing(client.sprite(name))
    check_disk(server)


def test_what_was_durable_survives_agents_killed_again_and_again(servers, chance):
    server = start(servers)
    with client_of(server) as client:
        install(client.create_sprite("busy"))
    writers = of_kinds("sqlite-wal", "sqlite-truncate", "sqlite-delete", "git")
    for _ in range(scaled(4, 60)):
        with Writing(server, "busy", writers) as writing:
            writing.until(chance.randint(1, STEPS_MAX))
            kill_agent(server)
        whole(server, "busy", writers)
    server.stop()
    server.wipe_cache()
    server.start()
    whole(server, "busy", writers)


@pytest.mark.long
def test_postgres_survives_agents_killed_again_and_again(servers, chance):
    server = start(servers)
    with client_of(server) as client:
        sprite = client.create_sprite("elephant")
        install(sprite)
        made = sprite.run("sudo", "bash", "-c", POSTGRES, capture_output=True, timeout=600)
        assert made.returncode == 0, (made.stdout + made.stderr).decode()[-3000:]
    writers = of_kinds("postgres")
    for _ in range(30):
        with Writing(server, "elephant", writers) as writing:
            writing.until(chance.randint(1, STEPS_MAX))
            kill_agent(server)
        whole(server, "elephant", writers)
    with client_of(server) as client:
        sprite = client.sprite("elephant")
        sprite.run("sudo", "pg_ctlcluster", "15", "main", "stop", check=True)
        checked = sprite.run("sudo", "/usr/lib/postgresql/15/bin/pg_checksums", "--check", "-D", "/var/lib/postgresql/15/main", capture_output=True)
        assert checked.returncode == 0, checked.stdout + checked.stderr


def test_the_bucket_alone_gives_a_disk_of_one_instant(servers, chance):
    """The worker burns in the middle of writes, again and again: another has nothing but the bucket, and what it finds there is
    whole and not newer than what was written. The first worker, not burnt after all, has lost nothing.
    """
    bucket = servers.directory / "bucket"
    first = start(servers, name="first", bucket=str(bucket))
    with client_of(first) as client:
        install(client.create_sprite("burning"))
        list(client.sprite("burning").create_checkpoint("begin"))
    writers = of_kinds("sqlite-wal", "sqlite-truncate", "git")
    shipped = {writer.kind: 0 for writer in writers}
    for number in range(scaled(3, 40)):
        with Writing(first, "burning", writers) as writing:
            writing.until(chance.randint(1, STEPS_MAX))
            first.kill()
        copy = servers.directory / f"copy-{number}"
        shutil.copytree(bucket, copy)
        second = servers(f"second-{number}", bucket=str(copy), options=["--idle-timeout", "10m", "--pool", "0", "--take-over"]).start()
        with client_of(second) as client:
            for writer in writers:
                found = writer.checked(client.sprite("burning"))
                assert shipped[writer.kind] <= found, f"{writer.kind}: the bucket had step {shipped[writer.kind]} and has {found}"
                shipped[writer.kind] = found
        check_disk(second)
        second.stop()
        shutil.rmtree(second.data)
        shutil.rmtree(copy)
        first.start()
        whole(first, "burning", writers)
