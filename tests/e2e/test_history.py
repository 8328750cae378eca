"""What a disk remembers: forks, instants, differences between checkpoints, and sprites that were destroyed."""

import datetime
import json
import subprocess
import time

import pytest
import sprites

from puck_server import PUCK
from wire import call, execute


@pytest.fixture
def client(server):
    """The official client."""
    with sprites.SpritesClient(server.token, base_url=server.url) as client:
        yield client


def now() -> str:
    """This instant, as the API reads it."""
    return datetime.datetime.now(datetime.UTC).isoformat()


def lines(answer) -> list[dict]:
    """The lines of a stream that must have begun well."""
    assert answer.status_code == 200, answer.text
    return [json.loads(line) for line in answer.text.splitlines()]


def shell(sprite, script: str) -> str:
    """What a script prints."""
    return sprite.run("sh", "-c", script, capture_output=True, check=True).stdout.decode().strip()


def automatic(server, name: str, words: str) -> list[str]:
    """The automatic checkpoints about which the system says so, newest first."""
    told = call(server, "GET", f"/v1/sprites/{name}/checkpoints?includeAuto=true").json()
    return [one["id"] for one in told if one["is_auto"] and words in one["comment"]]


def volume(server, name: str) -> dict:
    """How a disk is doing."""
    return call(server, "GET", f"/v1/sprites/{name}/volume").json()


def test_a_fork_begins_as_its_source_and_goes_its_own_way(server, client, name):
    source = client.create_sprite(name)
    shell(source, "echo first > file; head -c 3M /dev/urandom > data; sha256sum data > sum; sudo rm -rf /usr/share/doc")
    assert list(source.create_checkpoint())[-1].type == "complete"
    shell(source, "echo second > file")

    forked = call(server, "POST", f"/v1/sprites/{name}/fork", json={"name": f"{name}-now"})
    assert forked.status_code == 201 and forked.json()["name"] == f"{name}-now", forked.text
    forked = call(server, "POST", f"/v1/sprites/{name}/fork", json={"name": f"{name}-v1", "checkpoint": "v1"})
    assert forked.status_code == 201, forked.text
    late, early = client.sprite(f"{name}-now"), client.sprite(f"{name}-v1")
    check = "cat file; sha256sum -c sum >/dev/null && test ! -e /usr/share/doc && echo whole"
    assert shell(late, check) == "second\nwhole"
    assert shell(early, check) == "first\nwhole"

    shell(late, "echo mine > file; rm data")
    assert shell(source, check) == "second\nwhole"
    # A fork of a fork reads what its grandparent wrote, also when its parents are gone.
    forked = call(server, "POST", f"/v1/sprites/{name}-v1/fork", json={"name": f"{name}-grandchild"})
    assert forked.status_code == 201, forked.text
    client.delete_sprite(f"{name}-v1")
    client.delete_sprite(name)
    assert shell(client.sprite(f"{name}-grandchild"), check) == "first\nwhole"
    for one in (f"{name}-now", f"{name}-grandchild"):
        client.delete_sprite(one)


def test_checkpoints_are_browsed(server, sprite, name, eventually):
    shell(sprite, "echo first > file; mkdir tree; echo deep > tree/leaf; sudo rm -rf /usr/share/doc; chmod 600 file")
    call(server, "POST", f"/v1/sprites/{name}/checkpoint", json={"comment": "one"})
    shell(sprite, "echo second > file; rm -r tree")
    call(server, "POST", f"/v1/sprites/{name}/checkpoint", json={"comment": "two"})

    assert {"v1", "v2"} <= set(shell(sprite, "ls /.sprite/checkpoints").split())
    # What the disk was then, whose it was then; the base image is below it.
    at = "/.sprite/checkpoints/v1"
    assert shell(sprite, f"cat {at}$HOME/file {at}$HOME/tree/leaf") == "first\ndeep"
    assert shell(sprite, f"stat -c '%U %a' {at}$HOME/file; test ! -e {at}/usr/share/doc && ls {at}/usr/bin/env") == (
        f"sprite 600\n{at}/usr/bin/env"
    )
    assert shell(sprite, "cd /.sprite/checkpoints/v2 && cat .$HOME/file && test ! -e .$HOME/tree && echo gone") == "second\ngone"
    # Nobody writes there, and what it never was is not there.
    assert shell(sprite, f"sudo touch {at}/x 2>&1 || sudo rm {at}$HOME/file 2>&1 || true").count("Read-only") == 2
    assert shell(sprite, "ls /.sprite/checkpoints/v77 2>&1 || true").endswith("No such file or directory")
    # A file comes back by `cp`, and the file calls see the same.
    assert shell(sprite, f"cp -r {at}$HOME/tree . && cat tree/leaf") == "deep"
    assert sprite.filesystem("/").path(f"{at}/home/sprite/file").read_text() == "first\n"
    assert call(server, "GET", f"/v1/sprites/{name}/fs/read", params={"path": "/.sprite/checkpoints/v77/x"}).status_code == 404

    # One that is deleted while somebody is in it stays for them alone.
    with execute(server, name, "sh", "-c", f"cd {at} && echo in && read line && cat .$HOME/file") as inside:
        inside.until(b"in")
        assert call(server, "DELETE", f"/v1/sprites/{name}/checkpoints/v1").status_code in (200, 204)
        inside.send(b"\n")
        inside.until(b"first")
    call(server, "POST", f"/v1/sprites/{name}/checkpoint", json={"comment": "three"})
    eventually("it is gone when nobody is in it", lambda: "v1" not in shell(sprite, "ls /.sprite/checkpoints").split())
    # Also what was browsed keeps nothing from being restored, twice.
    for _ in range(2):
        assert "second" in shell(sprite, "cat /.sprite/checkpoints/v2$HOME/file")
        assert list(sprite.restore_checkpoint("v2"))[-1].type == "complete"
    assert shell(sprite, "cat file; ls /.sprite/checkpoints/v2$HOME/file") == (
        "second\n/.sprite/checkpoints/v2/home/sprite/file"
    )


def test_more_checkpoints_than_may_be_open(server, sprite, name):
    for number in range(10):
        shell(sprite, f"echo {number} > file")
        assert list(sprite.create_checkpoint())[-1].type == "complete"
    read = "for n in 1 2 3 4 5 6 7 8 9 10; do cat /.sprite/checkpoints/v$n$HOME/file; done"
    assert shell(sprite, read).split() == [str(number) for number in range(10)]
    # Whoever stays in as many as can be open is in no more than that, and they are free again afterwards.
    script = """
        mkdir tries
        for n in 1 2 3 4 5 6 7 8 9 10; do
            (if cd /.sprite/checkpoints/v$n; then touch ~/tries/in$n; exec sleep 100; else touch ~/tries/out$n; fi) >/dev/null 2>&1 &
            pids="$pids $!"
        done
        until [ $(ls tries | wc -l) = 10 ]; do sleep 0.05; done
        ls tries | grep -c in
        kill $pids || true
    """
    assert shell(sprite, script) == "8"
    # Nor does it keep the agent busy to ask for what there is not.
    script = "for n in $(seq 500); do (cd /.sprite/checkpoints/none$n) 2>/dev/null & done; wait; ls /.sprite/checkpoints | wc -l"
    assert shell(sprite, script) == "10"
    assert shell(sprite, read).split() == [str(number) for number in range(10)]


def test_forks_that_cannot_be(server, client, name):
    client.create_sprite(name)
    path = f"/v1/sprites/{name}/fork"
    assert call(server, "POST", path, json={"name": name}).status_code == 409
    assert call(server, "POST", path, json={}).status_code == 400
    assert call(server, "POST", path, json={"name": "Not A Name"}).status_code == 400
    missing = call(server, "POST", path, json={"name": f"{name}-x", "checkpoint": "v7"})
    assert missing.status_code == 404 and "v7" in missing.json()["error"]
    assert call(server, "POST", "/v1/sprites/no-such/fork", json={"name": f"{name}-x"}).status_code == 404
    assert call(server, "GET", f"/v1/sprites?prefix={name}-x").json()["sprites"] == []
    client.delete_sprite(name)


def test_a_disk_goes_back_to_any_second(server, client, name):
    sprite = client.create_sprite(name)
    instants = []
    for number in range(3):
        shell(sprite, f"echo {number} > file; sync -f file")
        time.sleep(2.5)
        instants.append(now())
    shell(sprite, "sudo rm -rf /usr/lib/python3; rm file; sync")
    time.sleep(1.5)
    for number in (1, 0, 2):
        told = lines(call(server, "POST", f"/v1/sprites/{name}/rewind", json={"at": instants[number]}))
        assert told[-1]["type"] == "complete", told
        assert shell(sprite, "cat file; test -e /usr/lib/python3 && echo there") == f"{number}\nthere"
    # What was replaced can be had back like any checkpoint.
    replaced = automatic(server, name, "before the rewind")
    assert len(replaced) == 3
    assert list(sprite.restore_checkpoint(replaced[-1]))[-1].type == "complete"
    assert shell(sprite, "ls file 2>/dev/null; test -e /usr/lib/python3 || echo gone") == "gone"

    oldest = volume(server, name)["oldest_rewind"]
    assert oldest <= instants[0]
    told = lines(call(server, "POST", f"/v1/sprites/{name}/rewind", json={"at": "2020-01-01T00:00:00Z"}))
    assert told[-1]["type"] == "error" and "history" in told[-1]["error"], told
    assert shell(sprite, "echo unharmed") == "unharmed"
    assert call(server, "POST", f"/v1/sprites/{name}/rewind", json={"at": "noon"}).status_code == 400
    assert call(server, "POST", f"/v1/sprites/{name}/rewind", json={"at": "2099-01-01T00:00:00Z"}).status_code == 400
    client.delete_sprite(name)


def test_what_changed_between_two_checkpoints(server, client, name):
    sprite = client.create_sprite(name)
    shell(sprite, "mkdir -p tree/deep; echo 1 > tree/deep/changed; echo 1 > tree/gone; echo 1 > tree/same")
    list(sprite.create_checkpoint())
    shell(sprite, "echo 2 > tree/deep/changed; rm tree/gone; mkdir tree/new; echo 1 > tree/new/file; chmod 600 tree/same")
    shell(sprite, "sudo rm /etc/debian_version; sudo ln -s nowhere /etc/added")
    list(sprite.create_checkpoint())
    told = {line["path"]: line["kind"] for line in lines(call(server, "GET", f"/v1/sprites/{name}/checkpoints/v1/diff/v2"))}
    home = "/home/sprite/tree"
    expected = {
        f"{home}/deep/changed": "changed",
        f"{home}/gone": "removed",
        f"{home}/new": "added",
        f"{home}/new/file": "added",
        f"{home}/same": "changed",
        "/etc/debian_version": "removed",
        "/etc/added": "added",
    }
    assert {path: kind for path, kind in told.items() if path in expected} == expected
    assert not [path for path in told if path not in expected and not path.startswith(("/tmp", "/run", "/var"))], told
    assert lines(call(server, "GET", f"/v1/sprites/{name}/checkpoints/v2/diff/v2")) == []
    assert call(server, "GET", f"/v1/sprites/{name}/checkpoints/v1/diff/v9").status_code == 404
    client.delete_sprite(name)


def test_the_disk_says_how_it_is_doing(server, client, name, eventually):
    sprite = client.create_sprite(name)
    shell(sprite, "head -c 5M /dev/urandom > data; sync -f data")
    settled = eventually("settled", lambda: (told := volume(server, name))["state"] == "settled" and told)
    assert settled["lag_bytes"] == 0 and settled["durability"] == "default"
    assert settled["stored_bytes"] > 5 * 2**20 and settled["logical_bytes"] > 5 * 2**20
    changed = call(server, "PUT", f"/v1/sprites/{name}", json={"durability": "strict"})
    assert changed.status_code == 200 and changed.json()["durability"] == "strict"
    assert volume(server, name)["durability"] == "strict"
    # In strict mode the bucket has what was flushed when the flush returns.
    shell(sprite, "head -c 1M /dev/urandom > more; sync more")
    assert volume(server, name)["lag_seconds"] < 5
    assert call(server, "PUT", f"/v1/sprites/{name}", json={"durability": "hopeful"}).status_code == 400
    client.delete_sprite(name)


def test_a_destroyed_sprite_is_had_back_for_a_while(servers, eventually):
    server = servers(options=["--undelete", "10s"]).start()
    with sprites.SpritesClient(server.token, base_url=server.url) as client:
        sprite = client.create_sprite("lost")
        shell(sprite, "echo kept > file")
        list(sprite.create_checkpoint())
        client.delete_sprite("lost")
        assert call(server, "GET", "/v1/sprites/lost").status_code == 404
        destroyed = call(server, "GET", "/v1/sprites?destroyed=true").json()["sprites"]
        assert [one["name"] for one in destroyed] == ["lost"] and destroyed[0]["destroyed_at"]
        # The name is free meanwhile.
        client.create_sprite("lost")
        assert call(server, "POST", "/v1/sprites/lost/undelete").status_code == 409
        back = call(server, "POST", "/v1/sprites/lost/undelete", json={"name": "found"})
        assert back.status_code == 200 and back.json()["name"] == "found", back.text
        assert shell(client.sprite("found"), "cat file") == "kept"
        assert "v1" in [one.id for one in client.sprite("found").list_checkpoints()]

        for one in ("found", "lost"):
            client.delete_sprite(one)
        eventually("gone for good", lambda: call(server, "GET", "/v1/sprites?destroyed=true").json()["sprites"] == [], seconds=60)
        assert call(server, "POST", "/v1/sprites/found/undelete").status_code == 404


def test_automatic_checkpoints_before_sleep(servers, eventually):
    server = servers(options=["--idle-timeout", "1s"]).start()
    with sprites.SpritesClient(server.token, base_url=server.url) as client:
        sprite = client.create_sprite("kept")
        shell(sprite, "echo one > file")
        eventually("asleep", lambda: client.get_sprite("kept").status == "cold")
        before = automatic(server, "kept", "before sleep")
        assert before
        shell(sprite, "echo two > file")
        assert list(sprite.restore_checkpoint(before[0]))[-1].type == "complete"
        assert shell(sprite, "cat file") == "one"
        assert [one.id for one in sprite.list_checkpoints() if one.id != "Current"] == []


def test_fsck_finds_what_is_missing_or_damaged(servers, eventually):
    server = servers(options=["--idle-timeout", "1s"]).start()
    bucket = server.data / "bucket"

    def fsck(*arguments: str) -> subprocess.CompletedProcess:
        return subprocess.run([str(PUCK), "fsck", str(bucket), *arguments], capture_output=True, text=True, timeout=120, check=False)

    with sprites.SpritesClient(server.token, base_url=server.url) as client:
        sprite = client.create_sprite("checked")
        shell(sprite, "head -c 3M /dev/urandom > data; sync -f data")
        list(sprite.create_checkpoint())
        # Also while it is in use.
        told = fsck("checked")
        assert told.returncode == 0 and "checked: whole" in told.stdout, told
        eventually("asleep", lambda: client.get_sprite("checked").status == "cold")
    server.stop()
    assert fsck().returncode == 0
    assert "no sprite is named" in fsck("nobody").stderr
    segments = [path for path in bucket.glob("volumes/*/segments/*/*") if path.stat().st_size > 2**20]
    whole = segments[0].read_bytes()
    segments[0].chmod(0o600)
    segments[0].write_bytes(whole[:-1000] + bytes(1000))
    told = fsck("checked")
    assert told.returncode == 1 and "checked: DAMAGED" in told.stdout and segments[0].name in told.stdout, told
    segments[0].unlink()
    told = fsck("checked", "--quick")
    assert told.returncode == 1 and "is not in the bucket" in told.stdout, told
    segments[0].write_bytes(whole)
    assert fsck().returncode == 0
