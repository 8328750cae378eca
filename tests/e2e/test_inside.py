"""The sprite from inside: /.sprite, its socket, `sprite-env` and tasks."""

import json

import pytest

from puck_server import wait_for
from wire import call, execute


@pytest.fixture
def curl(sprite):
    """One call over the socket, as a user: its status and its answer."""

    def run(method: str, path: str, body=None, user: str = "sprite"):
        command = ["sudo", "-u", user, "curl", "-sS", "-X", method, "--unix-socket", "/.sprite/api.sock", "-w", "\n%{http_code}", f"http://sprite{path}"]
        if body is not None:
            command += ["-H", "Content-Type: application/json", "-d", json.dumps(body)]
        done = sprite.run(*command, capture_output=True, timeout=60)
        assert done.returncode == 0, done.stderr
        text, _, status = done.stdout.decode().rpartition("\n")
        return int(status), json.loads(text) if text.strip() and "\n" not in text.strip() else text

    return run


def test_the_socket_says_who_the_sprite_is(curl, server, name):
    status, info = curl("GET", "/info")
    shown = call(server, "GET", f"/v1/sprites/{name}").json()
    assert status == 200 and info["version"]
    assert (info["sprite_name"], info["sprite_id"], info["sprite_url"], info["org"]) == (name, shown["id"], shown["url"], shown["organization"])


def test_services_and_checkpoints_are_reached_and_nothing_else(curl, name):
    assert curl("GET", "/v1/services") == (200, [])
    assert curl("PUT", "/v1/services/web?duration=0", {"cmd": "sleep", "args": ["1000"]})[0] == 200
    assert curl("GET", "/v1/services/web")[1]["name"] == "web"
    assert curl("POST", "/v1/services")[0] == 405
    assert "created successfully" in str(curl("POST", "/v1/checkpoint", {"comment": "from inside"})[1])
    assert curl("GET", "/v1/checkpoints/v1")[1]["comment"] == "from inside"
    for path in ("/v1/exec", "/v1/exec?cmd=id", "/v1/fs/list?path=/&workingDir=/", "/v1/policy/network", f"/v1/sprites/{name}", f"/v1/sprites/{name}/exec", "/v1/services/../exec", "/", "/internal/volume", "/v1/organization"):
        assert curl("GET", path)[0] == 404, path
    assert curl("POST", "/internal/sleep")[0] == 404


def test_the_socket_is_for_the_user_and_for_root(curl, sprite):
    assert curl("GET", "/info", user="root")[0] == 200
    done = sprite.run("sudo", "-u", "nobody", "curl", "-sS", "--unix-socket", "/.sprite/api.sock", "http://sprite/info", capture_output=True)
    assert done.returncode == 7, done.stderr
    assert sprite.run("stat", "-c", "%U %a", "/.sprite/api.sock", capture_output=True).stdout == b"sprite 600\n"
    assert sprite.run("sudo", "rm", "/.sprite/api.sock", capture_output=True).returncode != 0


def test_it_is_there_after_a_restart_and_a_flood_of_connections_hurts_nobody(curl, server, name, sprite):
    server.cli("restart", name)
    assert curl("GET", "/info")[0] == 200
    hoard = "import socket,time\ns=[]\nfor _ in range(500):\n c=socket.socket(1); c.setblocking(False)\n try: c.connect('/.sprite/api.sock')\n except OSError: break\n s.append(c)\nprint('ready',flush=True); time.sleep(30)"
    with execute(server, name, "python3", "-c", hoard) as hoarding:
        hoarding.until(b"ready")
        assert sprite.run("echo", "alive", capture_output=True).stdout == b"alive\n"
        hoarding.control(type="signal", signal="KILL")
        hoarding.wait()
    assert curl("GET", "/info")[0] == 200


def test_tasks(curl, server, name):
    status, task = curl("POST", "/v1/tasks", {"name": "build", "expire": "10m"})
    assert status == 201 and task["name"] == "build" and task["expires_at"] > task["started_at"]
    assert curl("POST", "/v1/tasks", {"name": "build", "expire": 60})[0] == 409
    status, renewed = curl("PUT", "/v1/tasks/build", {"expire": 3600})
    assert status == 200 and renewed["expires_at"] > task["expires_at"] and renewed["started_at"] == task["started_at"]
    assert curl("PUT", "/v1/tasks", {"name": "other", "expire": "30s"})[0] == 200
    assert [one["name"] for one in curl("GET", "/v1/tasks")[1]["tasks"]] == ["build", "other"]
    assert curl("GET", "/v1/tasks/other")[1]["name"] == "other"
    assert curl("DELETE", "/v1/tasks/other")[0] == 204 and curl("DELETE", "/v1/tasks/other")[0] == 404
    for body in ({}, {"name": "a"}, {"name": "", "expire": 1}, {"name": "a", "expire": 0}, {"name": "a", "expire": 3601}, {"name": "a", "expire": "soon"}, {"name": "a\n", "expire": 1}, {"name": "a" * 129, "expire": 1}):
        assert curl("POST", "/v1/tasks", body)[0] == 400, body
    for number in range(63):
        assert curl("POST", "/v1/tasks", {"name": f"t{number}", "expire": 60})[0] == 201
    assert curl("POST", "/v1/tasks", {"name": "more", "expire": 60})[0] == 429


def test_a_task_keeps_the_sprite_awake_until_its_end(servers):
    server = servers(options=["--idle-timeout", "1s"])
    server.start()
    call(server, "POST", "/v1/sprites", json={"name": "one"})
    with execute(server, "one", "sprite-env", "tasks", "create", "work", "--expire", "6s") as command:
        assert command.wait() == 0
    status = lambda: call(server, "GET", "/v1/sprites/one").json()["status"]
    with pytest.raises(AssertionError, match="sleep"):
        wait_for("sleep", lambda: status() == "cold", 4)
    wait_for("sleep", lambda: status() == "cold", 60)


def test_sprite_env(sh, server, name):
    assert json.loads(sh("sprite-env info"))["sprite_name"] == name
    assert sh("sprite-env version").strip() == sh("cat /.sprite/version.txt").strip()
    created = sh("sprite-env services create web --cmd sh --args '-c,echo $A; exec sleep 1000' --env A=b,C=d --dir /tmp --http-port 8080 --duration 1s")
    assert [json.loads(line)["type"] for line in created.splitlines()] == ["started", "stdout", "complete"]
    assert json.loads(sh("sprite-env services get web"))["env"] == {"A": "b", "C": "d"}
    sh("sprite-env services signal web USR1; sprite-env services restart web --duration 0.5s; sprite-env services stop web --timeout 1s")
    assert json.loads(sh("sprite-env services list"))[0]["state"]["status"] == "stopped"
    sh("sprite-env services start web --duration 0; sprite-env services stop web; sprite-env services delete web")
    assert "not found" in sh("sprite-env services get web 2>&1 || true")
    sh("sprite-env services create m --cmd python3 --args -m,http.server,8081 --no-stream")
    assert json.loads(sh("sprite-env services get m"))["args"] == ["-m", "http.server", "8081"]
    sh("sprite-env services get web >/dev/null 2>&1 && exit 1 || exit 0")
    assert "created successfully" in sh("sprite-env checkpoints create --comment before")
    assert any(one.get("comment") == "before" for one in json.loads(sh("sprite-env checkpoints list")))
    assert json.loads(sh("sprite-env curl /v1/tasks")) == {"tasks": []}
    sh("echo now > file")
    with execute(server, name, "sprite-env", "checkpoints", "restore", "v1") as command:
        command.wait()
    wait_for("the restore", lambda: sh("cat file 2>/dev/null || echo gone") == "gone\n")


def test_what_is_in_dot_sprite(sh, server, name):
    assert "sprite-env" in sh("cat /.sprite/llm.txt") and sh("ls /.sprite/bin").split() == ["dockerd", "sprite-browser", "sprite-console", "sprite-env"]
    assert "shares with other sprites" in sh("dockerd 2>&1 || echo $?") and sh("dockerd >/dev/null 2>&1 || echo $?") == "1\n"
    assert sh("echo $BROWSER") == "/.sprite/bin/sprite-browser\n"
    with execute(server, name, "sprite-browser", "http://localhost:3000/", "3000", "3001", tty=True) as command:
        command.wait()
        assert b"\x1b]9999;browser-open;http://localhost:3000/;3000,3001\x1b\\" in command.output
    for attempt in ("touch /.sprite/x", "rm /.sprite/bin/sprite-env", "sh -c 'echo x > /.sprite/llm.txt'", "sh -c 'echo x > /.sprite/logs/services/x.log'"):
        assert "rc=0" not in sh(f"sudo {attempt} 2>/dev/null; echo rc=$?"), attempt
