"""Commands and sessions with the official Python client, and over the wire where it has no call."""

import io
import threading
import time

import pytest
from sprites.exceptions import APIError, ExecError
from sprites.exceptions import TimeoutError as SpriteTimeoutError
from sprites.session import kill_session, list_sessions
from websockets.exceptions import InvalidStatus

from wire import call, execute


def test_output_and_errors_stay_apart(sprite):
    done = sprite.run("sh", "-c", "echo out; echo err >&2; exit 7", capture_output=True)
    assert (done.returncode, done.stdout, done.stderr) == (7, b"out\n", b"err\n")
    with pytest.raises(ExecError) as error:
        sprite.run("sh", "-c", "echo err >&2; exit 9", capture_output=True, check=True)
    assert error.value.exit_code() == 9 and error.value.stderr == b"err\n"
    assert sprite.command("printf", "%s", "a b").output() == b"a b"
    assert sprite.command("sh", "-c", "echo a; echo b >&2").combined_output() == b"a\nb\n"


def test_exit_codes(sprite):
    code = lambda *command: sprite.run(*command, capture_output=True).returncode
    assert code("true") == 0
    assert code("sh", "-c", "exit 255") == 255
    assert code("sh", "-c", "kill -9 $$") == 128 + 9
    assert code("sh", "-c", "kill -TERM $$") == 128 + 15
    assert code("no-such-command") == 127
    assert code("/etc/passwd") == 126


def test_a_command_runs_as_the_user_in_their_home(sh):
    assert sh("id -un; id -u; id -g; pwd; echo $HOME $USER").split() == [
        "sprite", "1001", "1001", "/home/sprite", "/home/sprite", "sprite",
    ]
    assert sh("sudo id -u").strip() == "0"
    assert sh("tty || true").strip() == "not a tty"


def test_environment_and_directory(sprite):
    done = sprite.run(
        "sh", "-c", "echo \"$ONE\"; echo \"$TWO\"; pwd; command -v python3; echo $HOME",
        env={"ONE": "1", "TWO": "a b=c\n$d"}, cwd="/tmp", capture_output=True,
    )
    assert done.stdout.decode() == "1\na b=c\n$d\n/tmp\n/usr/bin/python3\n/home/sprite\n"
    assert sprite.run("pwd", cwd="sub", capture_output=True).returncode != 0
    sprite.run("mkdir", "sub", check=True)
    assert sprite.run("pwd", cwd="sub", capture_output=True).stdout == b"/home/sprite/sub\n"


def test_standard_input_arrives_whole(sprite):
    data = bytes(range(256)) * 40_000
    out = io.BytesIO()
    command = sprite.command("sh", "-c", "sha256sum; wc -c </dev/null", stdin=io.BytesIO(data), stdout=out)
    command.run()
    import hashlib

    assert out.getvalue().decode().split() == [hashlib.sha256(data).hexdigest(), "-", "0"]
    out = io.BytesIO()
    sprite.command("cat", stdin=io.BytesIO(b"some text\n"), stdout=out).run()
    assert out.getvalue() == b"some text\n"


def test_a_command_without_input_sees_its_end(sprite):
    assert sprite.run("cat", capture_output=True, timeout=20).stdout == b""


def test_much_output_arrives_whole_and_in_order(sprite):
    done = sprite.run("seq", "1", "500000", capture_output=True, timeout=60)
    assert done.stdout == "".join(f"{number}\n" for number in range(1, 500_001)).encode()


def test_many_quick_commands_lose_nothing(sprite):
    for number in range(40):
        done = sprite.run("echo", str(number), capture_output=True, timeout=20)
        assert (done.returncode, done.stdout) == (0, f"{number}\n".encode())


def test_a_timeout_ends_the_wait(sprite):
    started = time.monotonic()
    with pytest.raises(SpriteTimeoutError):
        sprite.run("sleep", "60", timeout=1)
    assert time.monotonic() - started < 15


def test_a_terminal_has_its_size_and_takes_input(server, sprite, name):
    done = sprite.run("sh", "-c", "stty size; tty; exit 3", tty=True, tty_rows=33, tty_cols=101, capture_output=True)
    assert done.returncode == 3
    assert b"33 101\r\n/dev/pts/" in done.stdout
    with execute(server, name, "bash", tty=True, rows=24, cols=80) as terminal:
        terminal.send(b"stty size\n")
        terminal.until(b"24 80\r\n")
        terminal.control(type="resize", rows=50, cols=132)
        terminal.send(b"while [ \"$(stty size)\" != '50 132' ]; do :; done; echo resiz''ed\n")
        terminal.until(b"resized\r\n")
        terminal.send(b"exit 5\n")
        assert terminal.wait() == 5


def test_control_c_interrupts_in_a_terminal(server, name, sprite):
    with execute(server, name, "env", "PS1=prompt:", "bash", "--norc", tty=True) as terminal:
        # A shell that does not prompt yet would die of the interrupt.
        terminal.until(b"prompt:")
        # The program itself says that it runs: between two commands the interrupt would be the shell's own.
        terminal.send(b"sh -c \"echo rea''dy; exec sleep 100\"\n")
        terminal.until(b"ready\r\n")
        terminal.forget()
        terminal.send(b"\x03")
        terminal.until(b"prompt:")
        terminal.send(b"echo st''ill here; exit\n")
        terminal.until(b"still here")
        terminal.wait()


def test_signals_reach_the_command(server, sprite, name):
    script = "trap 'echo got it; exit 4' USR1; echo ready; while :; do sleep 0.05; done"
    for signal in ["USR1", "SIGUSR1", "sigusr1"]:
        with execute(server, name, "bash", "-c", script) as command:
            command.until(b"ready")
            command.control(type="signal", signal=signal)
            command.until(b"got it")
            assert command.wait() == 4
    with execute(server, name, "sleep", "100") as command:
        assert command.session_id
        command.control(type="unknown thing")
        command.control(type="signal", signal="KILL")
        assert command.wait() == 128 + 9


def test_sessions_are_listed_attached_and_killed(server, sprite, name, eventually):
    with execute(server, name, "bash", "--norc", tty=True) as terminal:
        session = terminal.session_id
        terminal.send(b"echo first''line\n")
        terminal.until(b"firstline")
        listed = {one.id: one for one in sprite.list_sessions()}[session]
        assert listed.tty and listed.is_active and "bash" in listed.command and listed.workdir == "/home/sprite"
        assert session in [one.id for one in list_sessions_with_authentication(sprite)]
        with execute(server, name, attach=session, tty=True) as second:
            assert second.session_id == session
            assert not second.texts[0]["is_owner"]
            second.until(b"firstline")
            second.send(b"echo sec''ond\n")
            second.until(b"second")
            terminal.until(b"second")
    # A terminal outlives its clients.
    assert session in [one.id for one in sprite.list_sessions()]
    attached = sprite.attach_session(session, timeout=60)
    ended = threading.Thread(target=lambda: pytest.raises(ExecError, attached.run))
    ended.start()
    events = list(kill_session(sprite, session, signal="SIGKILL", timeout=5))
    assert events[-1].type == "complete"
    ended.join(30)
    assert attached.exit_code == 128 + 9
    eventually("the session is no longer listed", lambda: session not in [one.id for one in sprite.list_sessions()])
    with pytest.raises(APIError):
        sprite.attach_session(session).run()


def list_sessions_with_authentication(sprite):
    """The module's own function, whose client adds the token by itself."""
    return list_sessions(sprite)


def test_a_stubborn_command_is_killed_after_the_timeout(server, sprite, name):
    with execute(server, name, "bash", "-c", "trap '' TERM; echo ready; while :; do sleep 0.05; done") as command:
        command.until(b"ready")
        events = [event.type for event in kill_session(sprite, command.session_id, timeout=1)]
        assert events[0] == "signal" and "timeout" in events and events[-1] == "complete"
        assert command.wait() == 128 + 9


def test_a_command_without_a_client_ends_after_its_time(server, sprite, name, eventually):
    with execute(server, name, "sleep", "1000", max_run_after_disconnect="1s") as command:
        session = command.session_id
    eventually("the command ended", lambda: session not in [one.id for one in sprite.list_sessions()], seconds=20)
    assert sprite.run("pgrep", "-f", "sleep 1000").returncode == 1


def test_environment_for_a_login_shell(sh):
    assert "/home/sprite/.local/bin" in sh("echo $PATH")
    assert sh("bash -lc 'echo $PATH; locale charmap'").split()[-1] == "UTF-8"


def test_one_hundred_commands_at_once(sprite):
    results = {}

    def one(number: int) -> None:
        results[number] = sprite.run("sh", "-c", f"sleep 0.2; echo {number}", capture_output=True, timeout=60).stdout

    threads = [threading.Thread(target=one, args=(number,)) for number in range(100)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {number: f"{number}\n".encode() for number in range(100)}


def test_who_comes_back_sees_the_screen_and_is_asked_nothing(server, sprite, name):
    script = "for n in $(seq 1 60); do echo line $n; done; printf '\\033[6n\\033[31mprompt$ \\033[m'; cat"
    with execute(server, name, "bash", "-c", script, tty=True, rows=10, cols=40) as owner:
        owner.until(b"prompt$ ")
        session = owner.session_id
        with execute(server, name, tty=True, attach=session) as viewer:
            viewer.until(b"prompt$ ")
            assert b"line 1\x1b[m\r\n" in viewer.output and b"line 60" in viewer.output
            assert b"\x1b[6n" in owner.output and b"\x1b[6n" not in viewer.output
            viewer.send(b"typed\r")
            viewer.until(b"typed\r\ntyped")
            owner.until(b"typed\r\ntyped")
        owner.control(type="signal", signal="KILL")
        owner.wait()


def test_a_client_that_comes_back_goes_on_where_it_left(server, name, sprite):
    script = "for i in 1 2 3; do echo out $i; echo err $i >&2; done; read line; echo $line"
    with execute(server, name, "bash", "-c", script) as first:
        for last in (b"out 3\n", b"err 3\n"):
            first.until(last)
        session, seen = first.session_id, len(first.output)
        assert first.texts[0]["offset"] == 0
        for offset in (0, 5, seen - 1, seen):
            with execute(server, name, attach=session, offset=offset) as again:
                if offset < seen:
                    again.until(first.output[offset:])
                assert again.session_id == session and again.texts[0]["offset"] == offset
                assert again.output == first.output[offset:]
        with execute(server, name, attach=session, offset=10**9) as ahead:
            assert ahead.session_id == session and ahead.texts[0]["offset"] == seen
            first.send(b"last\n")
            assert ahead.wait() == 0 and ahead.output == b"last\n"
    assert call(server, "GET", f"/v1/sprites/{name}/exec/{session}").status_code == 404


def test_a_terminal_too_goes_on_at_a_byte(server, name, sprite):
    with execute(server, name, "sh", "-c", "stty -echo; printf 'a\\033[1mb'; read line", tty=True) as first:
        first.until(b"a\x1b[1mb")
        session = first.session_id
        with execute(server, name, tty=True, attach=session, offset=1) as again:
            again.until(b"b")
            assert again.output == b"\x1b[1mb", "as it was printed, and not as it looks"
        with pytest.raises(InvalidStatus, match="400"), execute(server, name, attach=session, offset="x"):
            pass
