"""The command line client, as a person and a script use it."""

import json
import re
import subprocess

import pytest

from wire import execute


@pytest.fixture
def puck(server, sprite, name):
    """Runs `puck -s SPRITE ...`."""
    return lambda *args, **kwargs: server.cli(*args, sprite=name, **kwargs)


def test_create_list_info_and_destroy(server, name):
    assert server.cli("create", name, "--label", "one").stdout == f"{name}\n"
    assert name in server.cli("list", "--prefix", name).stdout.splitlines()
    listed = json.loads(server.cli("ls", "--json", "--prefix", name).stdout)
    assert [one["name"] for one in listed] == [name] and listed[0]["labels"] == ["one"]
    assert json.loads(server.cli("info", name, "--json").stdout)["url"] in server.cli("info", name).stdout
    assert server.cli("destroy", name, check=False).returncode != 0, "without a terminal nobody can say yes"
    server.cli("destroy", "--force", name)
    gone = server.cli("info", name, check=False)
    assert gone.returncode == 1 and "not found" in gone.stderr and gone.stdout == ""
    picked = server.cli("create", "--skip-console").stdout.strip()
    assert re.fullmatch(r"[a-z0-9-]+", picked)
    server.cli("destroy", "--force", picked)


def test_exec_passes_streams_and_codes_through(puck):
    done = puck("exec", "--", "sh", "-c", "echo out; echo err >&2; exit 7", check=False)
    assert (done.returncode, done.stdout, done.stderr) == (7, "out\n", "err\n")
    assert puck("exec", "--", "sh", "-c", "kill -9 $$", check=False).returncode == 128 + 9
    assert puck("exec", "--", "no-such-command", check=False).returncode == 127
    assert puck("x", "--", "tr", "a-z", "A-Z", input="shout\n").stdout == "SHOUT\n"
    assert puck("exec", "--http-post", "--", "sh", "-c", "echo posted; exit 3", check=False).returncode == 3


def test_exec_takes_directory_environment_and_files(puck, server):
    done = puck("exec", "--dir", "/tmp", "--env", "A=1,B=two", "--env", "C=3", "--", "sh", "-c", "pwd; echo $A $B $C")
    assert done.stdout == "/tmp\n1 two 3\n"
    source = server.data.parent / "upload"
    source.write_text("carried over")
    assert puck("exec", "--file", f"{source}:/home/sprite/dir/copy", "--", "cat", "dir/copy").stdout == "carried over"


def test_binary_streams_are_not_touched(puck):
    data = bytes(range(256)) * 4096
    assert puck("exec", "--", "cat", input=data, text=False).stdout == data


def test_checkpoint_verbs(puck):
    puck("exec", "--", "sh", "-c", "echo one > file")
    assert puck("checkpoint", "create", "--comment", "before").stdout.strip().endswith("v1")
    puck("exec", "--", "rm", "file")
    puck("restore", "v1")
    assert puck("exec", "--", "cat", "file").stdout == "one\n"
    listed = json.loads(puck("checkpoint", "list", "--json").stdout)
    assert "before" in [one.get("comment") for one in listed]
    assert "before" in puck("checkpoint", "info", "v1").stdout
    puck("checkpoint", "create")
    puck("checkpoint", "delete", "v1")
    assert puck("checkpoint", "info", "v1", check=False).returncode == 1
    assert puck("restore", "v9", check=False).returncode == 1


def test_restart_ends_what_runs_and_keeps_the_disk(puck, server, name):
    puck("exec", "--", "sh", "-c", "echo kept > file; mkdir -p /tmp/scratch")
    with execute(server, name, "sleep", "1000") as command:
        assert command.session_id
        assert name in puck("restart").stderr
        assert command.wait() != 0
    assert puck("exec", "--", "cat", "file").stdout == "kept\n"
    assert puck("exec", "--", "pgrep", "-x", "sleep", check=False).returncode == 1
    assert "not found" in server.cli("restart", "no-such-sprite", check=False).stderr


def test_sessions_verbs(puck, server, name, eventually):

    with execute(server, name, "bash", "--norc", tty=True) as terminal:
        session = terminal.session_id
        assert session in [one["id"] for one in json.loads(puck("sessions", "list", "--json").stdout)]
        puck("sessions", "kill", session, "--signal", "KILL")
        assert terminal.wait() == 128 + 9
    eventually("the session is gone", lambda: session not in puck("sessions", "list").stdout)


def test_the_chosen_sprite_is_remembered_in_the_directory(server, sprite, name, tmp_path):
    server.cli("use", name, cwd=tmp_path)
    below = tmp_path / "below"
    below.mkdir()
    assert server.cli("exec", "--", "hostname", cwd=below).stdout == f"{name}\n"
    server.cli("use", "--unset", cwd=tmp_path)
    assert server.cli("exec", "--", "true", cwd=below, check=False).returncode != 0


def test_mistakes_are_one_line_and_no_stack(server, name):
    for arguments, code in [
        (["-s", "no-such-sprite", "exec", "--", "true"], 1),
        (["-s", "Bad_Name", "exec", "--", "true"], None),
        (["create", "UPPER"], None),
        (["frobnicate"], 2),
        (["exec"], 2),
    ]:
        done = server.cli(*arguments, check=False)
        assert done.returncode == code or (code is None and done.returncode in (1, 2)), (arguments, done)
        assert "panicked" not in done.stderr and done.stderr.strip(), (arguments, done)
        assert done.stdout == "", (arguments, done)
    wrong = server.cli("list", env={"SPRITE_TOKEN": "local/local/x/y"}, check=False)
    assert wrong.returncode == 1 and len(wrong.stderr.strip().splitlines()) == 1
    nobody = server.cli("list", env={"SPRITES_API_URL": "http://127.0.0.1:1"}, check=False)
    assert nobody.returncode == 1 and "server" in nobody.stderr


class Terminal:
    """A terminal of its own for a program, by tmux."""

    def __init__(self, server, cwd):
        self.socket = str(cwd / "tmux.sock")
        environment = {"SPRITES_API_URL": server.url, "SPRITE_TOKEN": server.token}
        options = [word for key, value in environment.items() for word in ("-e", f"{key}={value}")]
        self._tmux("-f", "/dev/null", "new-session", "-d", "-x", "100", "-y", "30", *options, "sh")

    def _tmux(self, *args: str) -> str:
        return subprocess.run(
            ["tmux", "-S", self.socket, *args], capture_output=True, text=True, check=True, timeout=20
        ).stdout

    def type(self, *keys: str) -> None:
        """Types keys, named as tmux names them."""
        self._tmux("send-keys", *keys)

    def resize(self, columns: int, rows: int) -> None:
        """Changes the size of the window."""
        self._tmux("resize-window", "-x", str(columns), "-y", str(rows))

    def screen(self) -> str:
        """What a person would see."""
        return self._tmux("capture-pane", "-p")

    def close(self) -> None:
        """Ends it."""
        subprocess.run(["tmux", "-S", self.socket, "kill-server"], capture_output=True, check=False, timeout=20)


@pytest.fixture
def terminal(server, tmp_path):
    opened = Terminal(server, tmp_path)
    yield opened
    opened.close()


def test_a_console_resizes_detaches_and_comes_back(server, sprite, name, terminal, eventually):
    from puck_server import PUCK

    sees = lambda text: eventually(f"{text!r} on the screen:\n{terminal.screen()}", lambda: text in terminal.screen())
    terminal.type(f"{PUCK} -s {name} console; echo en''ded $?", "Enter")
    sees("sprite@")
    terminal.type("stty size; echo hel''lo", "Enter")
    sees("30 100")
    sees("hello")
    terminal.resize(90, 25)
    terminal.type("clear; while [ \"$(stty size)\" != '25 90' ]; do sleep 0.1; done; echo resi''zed", "Enter")
    sees("resized")
    terminal.type("C-\\")
    sees("ended 0")
    session = json.loads(server.cli("sessions", "list", "--json", sprite=name).stdout)[0]["id"]
    terminal.type(f"clear; {PUCK} -s {name} attach {session}; echo l''eft $?", "Enter")
    sees("resized")
    terminal.type("exit 6", "Enter")
    sees("left 6")


def test_cp_copies_files_and_directories_both_ways(server, puck, name, tmp_path):
    tree = tmp_path / "tree"
    (tree / "sub").mkdir(parents=True)
    (tree / "sub" / "data").write_bytes(bytes(range(256)) * 5000)
    (tree / "run.sh").write_text("#!/bin/sh\necho ran\n")
    (tree / "run.sh").chmod(0o755)
    (tree / "link").symlink_to("run.sh")
    server.cli("cp", str(tree), f"{name}:")
    assert puck("exec", "--", "sh", "-c", "tree/link; wc -c < tree/sub/data; stat -c %U tree/run.sh").stdout == "ran\n1280000\nsprite\n"
    server.cli("cp", f"{name}:tree", str(tmp_path / "back"))
    back = tmp_path / "back"
    assert (back / "sub" / "data").read_bytes() == (tree / "sub" / "data").read_bytes()
    assert (back / "link").readlink().name == "run.sh" and (back / "run.sh").stat().st_mode & 0o777 == 0o755
    one, two = tmp_path / "one", tmp_path / "two words"
    one.write_text("1")
    two.write_text("2")
    puck("cp", str(one), str(two), ":tree/sub")
    puck("cp", str(one), ":renamed")
    assert puck("exec", "--", "sh", "-c", "cat renamed tree/sub/one 'tree/sub/two words'").stdout == "112"
    puck("cp", ":tree/sub/two words", ":renamed", str(back))
    assert ((back / "two words").read_text(), (back / "renamed").read_text()) == ("2", "1")
    (tree / "run.sh").write_text("new")
    server.cli("cp", str(tree), f"{name}:")
    assert puck("exec", "--", "sh", "-c", "cat tree/run.sh tree/sub/one").stdout == "new1", "a directory that is there is filled"
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".puck")] == []
    assert "puck-cp" not in puck("exec", "--", "ls", "-A").stdout


def test_cp_says_what_is_wrong(server, puck, name, tmp_path):
    (tmp_path / "file").write_text("x")
    for code, text, arguments in (
        (1, "no such file or directory", (":missing", str(tmp_path))),
        (1, "No such file", (str(tmp_path / "missing"), ":")),
        (1, "no such directory", (str(tmp_path / "file"), ":no/such/place")),
        (1, "no such directory", (str(tmp_path / "file"), ":nowhere/")),
        (1, "no such directory", (":/etc/hostname", str(tmp_path / "nowhere") + "/")),
        (1, "no such directory", (":/etc/hostname", ":/etc/hosts", str(tmp_path / "file"))),
        (2, "one side must be", (str(tmp_path / "file"), str(tmp_path / "other"))),
        (2, "only one side", (":a", ":b")),
        (1, "not found", (str(tmp_path / "file"), "no-such-sprite:")),
    ):
        done = puck("cp", *arguments, check=False)
        assert done.returncode == code and text in done.stderr, (arguments, done.returncode, done.stderr)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]
    assert "permission denied" in puck("cp", str(tmp_path / "file"), ":/root/x", check=False).stderr
    puck("cp", ":/etc/hostname", str(tmp_path / "file"))
    assert (tmp_path / "file").read_text() == f"{name}\n"


def test_completion_knows_the_commands(server):
    for shell in ("bash", "zsh", "fish"):
        assert "checkpoint" in server.cli("completion", shell).stdout
