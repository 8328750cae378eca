"""Checkpoints with the official Python client."""

import time

import pytest
from sprites.exceptions import NotFoundError, SpriteError

from wire import call


def numbered(sprite) -> list[str]:
    """The ids of the checkpoints that were asked for, newest first."""
    return [one.id for one in sprite.list_checkpoints() if one.id.startswith("v") and one.id != "v0"]


def test_what_was_deleted_comes_back(sprite, sh):
    sh("mkdir -p work/deep; echo precious > work/deep/file; ln -s deep/file work/link; sudo touch /etc/marker")
    created = list(sprite.create_checkpoint("before the mistake"))
    assert created[-1].type == "complete" and "v1" in created[-1].data
    assert any("ID: v1" in (message.data or "") for message in created)
    sh("rm -rf work; echo later > later; sudo rm /etc/marker; sudo rm -rf /usr/share/git-core")
    assert sprite.run("ls", "work").returncode != 0
    restored = list(sprite.restore_checkpoint("v1"))
    assert restored[-1].type == "complete", restored
    assert sh("cat work/link; ls -d work/deep /etc/marker /usr/share/git-core").split()[0] == "precious"
    assert sprite.run("ls", "later").returncode != 0


def test_checkpoints_are_numbered_described_and_listed(sprite, sh):
    for number in (1, 2, 3):
        sh(f"echo {number} > file")
        list(sprite.create_checkpoint(f"number {number}"))
    assert numbered(sprite) == ["v3", "v2", "v1"]
    assert sprite.list_checkpoints()[0].id in ("Current", "v3")
    second = sprite.get_checkpoint("v2")
    assert second.id == "v2" and second.comment == "number 2"
    for wanted in (1, 3, 2):
        list(sprite.restore_checkpoint(f"v{wanted}"))
        assert sh("cat file").strip() == str(wanted)
    list(sprite.create_checkpoint())
    assert numbered(sprite)[0] == "v4"


def test_a_restore_can_be_undone(server, sprite, name, sh):
    sh("echo one > file")
    list(sprite.create_checkpoint())
    sh("echo two > file")
    list(sprite.restore_checkpoint("v1"))
    assert sh("cat file") == "one\n"
    listed = call(server, "GET", f"/v1/sprites/{name}/checkpoints?includeAuto=true").json()
    automatic = [one for one in listed if one.get("is_auto")]
    assert automatic, listed
    list(sprite.restore_checkpoint(automatic[0]["id"]))
    assert sh("cat file") == "two\n"


def test_deleting_checkpoints(server, sprite, name, sh):
    sh("head -c 10M /dev/urandom > big")
    list(sprite.create_checkpoint())
    sh("rm big")
    list(sprite.create_checkpoint())
    assert call(server, "DELETE", f"/v1/sprites/{name}/checkpoints/v1").status_code == 204
    assert numbered(sprite) == ["v2"]
    assert call(server, "DELETE", f"/v1/sprites/{name}/checkpoints/v1").status_code == 404
    assert call(server, "DELETE", f"/v1/sprites/{name}/checkpoints/Current").status_code == 409
    list(sprite.restore_checkpoint("v2"))
    assert sprite.run("ls", "big").returncode != 0


def test_a_missing_checkpoint_is_an_error_and_changes_nothing(sprite, sh):
    sh("echo here > file")
    with pytest.raises(NotFoundError):
        sprite.get_checkpoint("v9")
    try:
        messages = list(sprite.restore_checkpoint("v9"))
    except SpriteError:
        pass
    else:
        assert messages[-1].type == "error" and "not found" in messages[-1].error
    assert sh("cat file") == "here\n"


def test_running_programs_see_no_pause_and_open_files_are_in_the_checkpoint(sprite, sh):
    sh("(while date +%s%N >> ticks; do sleep 0.01; done) >/dev/null 2>&1 </dev/null & disown")
    sh("python3 - <<'EOF'\nimport sqlite3\nd = sqlite3.connect('db')\nd.execute('create table t(a)')\n"
       "d.executemany('insert into t values (?)', [(n,) for n in range(1000)])\nd.commit()\nEOF")
    started = time.monotonic()
    list(sprite.create_checkpoint())
    took = time.monotonic() - started
    sh("rm -f db")
    list(sprite.restore_checkpoint("v1"))
    count = "import sqlite3; print(sqlite3.connect('db').execute('select count(*) from t').fetchone()[0])"
    assert sh(f'python3 -c "{count}"').strip() == "1000"
    assert sh("wc -l < ticks").strip() != "0"
    assert took < 5, f"a checkpoint took {took} s"


def test_a_restore_ends_what_runs(server, sprite, sh, eventually):
    list(sprite.create_checkpoint())
    sh("sleep 1234 >/dev/null 2>&1 </dev/null & disown")
    assert sprite.run("pgrep", "-f", "sleep 1234").returncode == 0
    list(sprite.restore_checkpoint("v1"))
    assert sprite.run("pgrep", "-f", "sleep 1234").returncode == 1
    assert sprite.list_sessions() == []
