"""What is full: the disk of a sprite, and the disk of the worker, again and again."""

import shutil

from machines import allocated, check_disk, kill_agent
from scale import scaled
from test_bad_input import small_filesystem
from writing import Writer, Writing, client_of, install

DIED = r"a machine died|did not get through to a sprite|machine=m-"

# Takes all blocks that are left, writes none of them.
FILL = """
size=$((1 << 36))
while [ $size -ge 4096 ]; do
    fallocate -l $size filler-$size 2>/dev/null || size=$((size / 2))
    [ -e filler-$size ] && [ "$(stat -c %b filler-$size)" -gt 0 ] && size=$((size / 2))
done
sync -f .
"""

MIB = 1 << 20


def test_a_full_disk_of_a_sprite_refuses_and_corrupts_nothing(servers, chance):
    server = servers(options=["--idle-timeout", "10m", "--pool", "0"]).start()
    server.expect_log(DIED)
    writers = [Writer(kind, f"/home/sprite/{kind}") for kind in ("sqlite-wal", "sqlite-truncate", "git")]
    with client_of(server) as client:
        sprite = client.create_sprite("brimful")
        install(sprite)
        with Writing(server, "brimful", writers) as writing:
            writing.until(30)
            kill_agent(server)
        for _ in range(scaled(1, 5)):
            sprite.run("bash", "-c", FILL, check=True, timeout=300)
            # Whatever a full disk still takes, it refuses 64 MiB, and says why.
            refused = sprite.run("dd", "if=/dev/urandom", "of=more", "bs=1M", "count=64", "conv=fsync", capture_output=True, timeout=120)
            assert refused.returncode != 0 and b"No space left" in refused.stderr, refused
            for writer in writers:
                writer.lost_nothing(sprite)
            kill_agent(server)
            for writer in writers:
                writer.lost_nothing(sprite)
            check_disk(server)
            sprite.run("sh", "-c", "rm -f filler-* more; sync -f .", check=True, timeout=300)
            with Writing(server, "brimful", writers) as writing:
                writing.until(chance.randint(20, 60))
                kill_agent(server)
            for writer in writers:
                writer.lost_nothing(sprite)
            check_disk(server)
    server.stop()


def test_a_cache_of_fixed_size_holds_what_is_larger(servers):
    """Much more is written and read than the cache may keep, with little room on the worker's disk for anything else."""
    bucket = str(servers.directory / "bucket")
    cache_mib, files, file_mib = 128, scaled(8, 60), 50
    with small_filesystem(servers.directory / "disk", "1200M") as mount:
        server = servers("small", bucket=bucket, options=["--idle-timeout", "10m", "--pool", "0", "--cache", str(cache_mib)])
        server.data = mount / "data"
        server.start()
        # That the disk is full is worth a warning; that a machine died is not to be heard.
        server.expect_log("the local disk is full|machine=m-")
        with client_of(server) as client:
            sprite = client.create_sprite("cramped")
            sums = {}
            for number in range(files):
                script = f"head -c {file_mib}M /dev/urandom > f{number}; sync -f .; sha256sum < f{number}"
                sums[number] = sprite.run("sh", "-c", script, capture_output=True, check=True, timeout=300).stdout
                assert shutil.disk_usage(mount).free > 0
            # What is in the page cache of the machine goes with it.
            kill_agent(server)
            server.expect_log(DIED)
            for number, digest in sums.items():
                assert sprite.run("sh", "-c", f"sha256sum < f{number}", capture_output=True, timeout=300).stdout == digest, number
            cached = sum(allocated(path) for path in (server.data / "volumes").iterdir())
            # Beside the cache there are the journal's files and the map.
            assert cached <= (cache_mib + 600) * MIB, f"{cached / MIB:.0f} MiB"
        server.stop()
        server.wipe_cache()
        server.start()
        with client_of(server) as client:
            for number, digest in sums.items():
                assert client.sprite("cramped").run("sh", "-c", f"sha256sum < f{number}", capture_output=True, timeout=300).stdout == digest
        server.stop()
