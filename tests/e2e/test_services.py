"""Services: programs that a sprite keeps running."""

import asyncio
import json
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import sprites
from sprites.exceptions import SpriteError

from puck_server import wait_for
from wire import call, execute


class Services:
    """The services of one sprite, over the wire."""

    def __init__(self, server, name):
        self.server, self.path, self.name = server, f"/v1/sprites/{name}/services", name

    def call(self, method: str, path: str = "", status: int = 200, **kwargs):
        """One call; its answer as JSON, or its lines."""
        answer = call(self.server, method, self.path + path, **kwargs)
        assert answer.status_code == status, f"{method} {path}: {answer.status_code} {answer.text}"
        if answer.headers.get("Content-Type") == "application/x-ndjson":
            return [json.loads(line) for line in answer.text.splitlines()]
        return answer.json() if answer.content else None

    def put(self, name: str, *command: str, duration: str = "0", status: int = 200, **more):
        """Defines a service."""
        definition = {"cmd": command[0], "args": list(command[1:]), **more}
        return self.call("PUT", f"/{name}?duration={duration}", status, json=definition)

    def state(self, name: str) -> dict:
        """How one is doing."""
        return self.call("GET", f"/{name}")["state"]

    def until(self, name: str, status: str) -> dict:
        """Waits until it is doing so."""
        return wait_for(f"{name} {status}", lambda: (state := self.state(name))["status"] == status and state)

    def run(self, *command: str) -> str:
        """Runs a command in the sprite."""
        with execute(self.server, self.name, *command) as running:
            code = running.wait(60)
            assert code == 0, f"{command}: {code} {running.output!r}"
            return running.output.decode()


@pytest.fixture
def services(server, sprite, name):
    """The services of a new sprite."""
    return Services(server, name)


def kinds(events: list) -> list:
    """What happened, in order."""
    return [event["type"] for event in events]


def test_a_service_is_started_watched_and_found_again(services):
    events = services.put("web", "sh", "-c", "echo out; echo err >&2; exec sleep 1000", duration="1s")
    assert kinds(events)[0] == "started" and kinds(events)[-1] == "complete"
    assert {(event["type"], event.get("data")) for event in events[1:-1]} == {("stdout", "out\n"), ("stderr", "err\n")}
    assert all(abs(event["timestamp"] / 1e3 - time.time()) < 60 for event in events)
    log = "/.sprite/logs/services/web.log"
    assert events[-1]["log_files"] == {"combined": log, "stdout": log, "stderr": log}
    lines = services.run("cat", log).splitlines()
    assert sorted(line.split(" ", 1)[1] for line in lines) == ["[stderr] err", "[stdout] out"]
    (found,) = services.call("GET")
    assert (found["name"], found["cmd"], found["args"][0], found["needs"], found["http_port"]) == ("web", "sh", "-c", [], None)
    state = found["state"]
    assert (state["name"], state["status"], state["restart_count"]) == ("web", "running", 0)
    assert services.run("cat", f"/proc/{state['pid']}/comm") == "sleep\n"
    assert "next_restart_at" not in state and "error" not in state and state["started_at"].endswith("Z")
    assert kinds(services.call("POST", "/web/start?duration=30s")) == ["complete"], "it runs already"
    services.put("web", "sh", "-c", "echo out; echo err >&2; exec sleep 1000", duration="30s")
    assert services.state("web")["pid"] == state["pid"], "the same definition is no reason to start anew"


def test_stop_is_for_good_and_start_goes_on(services):
    services.put("web", "sleep", "1000")
    services.until("web", "running")
    events = services.call("POST", "/web/stop")
    assert kinds(events) == ["stopping", "stopped", "complete"] and events[1]["exit_code"] == 128 + 15
    assert services.state("web")["status"] == "stopped"
    assert services.call("POST", "/web/stop", 409)["error"] == "service is not running: web"
    services.server.cli("restart", services.name)
    time.sleep(1)
    assert services.state("web")["status"] == "stopped", "also after a restart"
    assert kinds(services.call("POST", "/web/start?duration=1s"))[0] == "started"
    services.until("web", "running")
    assert kinds(services.call("POST", "/web/restart?duration=1s"))[:3] == ["stopping", "stopped", "started"]


def test_one_that_does_not_listen_is_killed(services):
    services.put("deaf", "bash", "-c", "trap '' TERM; echo ready; while :; do sleep 0.1; done", duration="1s")
    started = time.monotonic()
    events = services.call("POST", "/deaf/stop?timeout=1s")
    assert events[-2] == {"type": "stopped", "exit_code": 128 + 9, "timestamp": events[-2]["timestamp"]}
    assert 0.9 < time.monotonic() - started < 8


def test_a_crash_is_followed_by_a_pause_and_another_start(services):
    events = services.put("broken", "sh", "-c", "echo once; exit 3", duration="2500ms")
    assert kinds(events).count("started") >= 2 and [event["exit_code"] for event in events if event["type"] == "exit"][0] == 3
    state = services.until("broken", "failed")
    assert state["restart_count"] >= 1 and state["error"] == "exited with code 3" and state["next_restart_at"].endswith("Z")
    events = services.call("POST", "/broken/start?duration=0.5s")
    assert kinds(events)[0] == "started", "a start does not wait for the pause"
    services.call("POST", "/broken/stop")
    assert services.state("broken") == {"name": "broken", "status": "stopped", "restart_count": 0}


def test_one_that_is_killed_comes_back_and_one_that_is_done_does_not(services):
    services.put("web", "sleep", "1000")
    pid = services.until("web", "running")["pid"]
    services.call("POST", "/signal", 204, json={"name": "web", "signal": "kill"})
    wait_for("another process", lambda: services.state("web").get("pid") not in (None, pid))
    services.put("done", "true")
    assert services.until("done", "stopped")["restart_count"] == 0


def test_what_cannot_be_started_says_why(services):
    events = services.put("none", "no-such-program", duration="0.5s")
    assert [event for event in events if event["type"] in ("stderr", "exit")][:2] == [
        {"type": "stderr", "data": 'exec: "no-such-program": executable file not found in $PATH\n', "timestamp": events[0]["timestamp"]},
        {"type": "exit", "exit_code": 127, "timestamp": events[1]["timestamp"]},
    ]
    assert "executable file not found" in services.run("cat", "/.sprite/logs/services/none.log")


def test_environment_directory_and_user(services):
    events = services.put("env", "sh", "-c", "echo $A $HOME; pwd; id -un", duration="1s", env={"A": "b c"}, dir="/tmp")
    assert "".join(event.get("data", "") for event in events) == "b c /home/sprite\n/tmp\nsprite\n"


def test_needs_are_started_first_and_waited_for(services):
    slow = "import time,http.server; time.sleep(2); http.server.test(http.server.SimpleHTTPRequestHandler, port=8000)"
    services.put("db", "python3", "-c", slow, http_port=8000)
    services.call("POST", "/db/stop?timeout=1s")
    check = "import urllib.request; urllib.request.urlopen('http://localhost:8000/'); print('found', flush=True); import time; time.sleep(1000)"
    events = services.put("web", "python3", "-c", check, needs=["db"], duration="6s")
    assert kinds(events)[:2] == ["started", "stdout"], events
    assert services.state("db")["status"] == "running"
    assert services.call("DELETE", "/db", 409)["error"] == "service db is needed by web"
    assert services.put("db2", "true", needs=["missing"], status=400)["error"] == "needed service not found: missing"
    assert "need itself" in services.put("db", "true", needs=["web"], status=400)["error"]
    assert "need itself" in services.put("own", "true", needs=["own"], status=400)["error"]


def test_one_service_has_the_http_port(services):
    services.put("web", "sleep", "1000", http_port=8080)
    assert services.put("other", "sleep", "1000", http_port=8081, status=409)["error"] == "another service already has an HTTP port configured"
    services.put("web", "sleep", "1001", http_port=8081)
    assert services.call("GET", "/web")["http_port"] == 8081


def test_delete_wants_a_stopped_service_and_keeps_its_log(services):
    services.put("web", "sh", "-c", "echo kept; exec sleep 1000", duration="0.5s")
    assert "stop it first" in services.call("DELETE", "/web", 409)["error"]
    services.call("POST", "/web/stop")
    services.call("DELETE", "/web", 204)
    for method, path in (("GET", "/web"), ("DELETE", "/web"), ("POST", "/web/start"), ("POST", "/web/stop"), ("GET", "/web/logs")):
        assert services.call(method, path, 404)["error"] == "service not found: web"
    assert services.call("GET") == []
    assert "kept" in services.run("cat", "/.sprite/logs/services/web.log")


def test_what_is_wrong_is_refused(services):
    for body in ({}, {"cmd": ""}, {"cmd": 1}, {"cmd": "a\0b"}, {"cmd": "x", "http_port": 0}, {"cmd": "x", "http_port": 70000}, {"cmd": "x", "env": {"A=": "1"}}, {"cmd": "x", "needs": ["/"]}):
        assert isinstance(services.call("PUT", "/web", 400, json=body)["error"], str), body
    assert isinstance(services.call("PUT", "/web", 400, content=b"[")["error"], str)
    services.call("PUT", "/web", 413, json={"cmd": "x" * 70_000})
    for name in (".web", "a%2fb", "a%20b", "x" * 64):
        services.call("PUT", f"/{name}", 400, json={"cmd": "true"})
    services.call("PUT", "/web?duration=soon", 400, json={"cmd": "true"})
    services.call("POST", "/signal", 400, json={"name": "web"})
    services.call("POST", "/signal", 404, json={"name": "web", "signal": "TERM"})
    services.put("signal", "sleep", "1000")
    assert services.until("signal", "running")
    services.call("POST", "/signal", 400, json={"name": "signal", "signal": "NONSENSE"})
    services.call("POST", "/signal", 204, json={"name": "signal", "signal": "SIGUSR1"})
    for number in range(31):
        services.put(f"s{number}", "true")
    assert "at most 32" in services.put("s31", "true", status=409)["error"]


def test_a_flood_of_output_is_bounded_and_told(services):
    flood = "i=0; while [ $i -lt 200000 ]; do echo line $i of a flood that does not end soon; i=$((i+1)); done; exec sleep 1000"
    services.put("loud", "bash", "-c", flood)
    services.until("loud", "running")
    wait_for("the last line", lambda: "line 199999 " in services.run("tail", "-n1", "/.sprite/logs/services/loud.log"), 60)
    assert int(services.run("sh", "-c", "cat /.sprite/logs/services/loud.log* | wc -c")) < 1 << 20
    last = services.call("GET", "/loud/logs?lines=5&duration=0")
    assert [event["data"] for event in last[:-1]] == [f"line {n} of a flood that does not end soon\n" for n in range(199995, 200000)]
    assert services.call("GET", "/loud/logs?lines=x", 400)["error"] == "lines must be a number"


def test_logs_are_followed(services):
    services.put("clock", "sh", "-c", "while :; do echo tick; sleep 0.2; done")
    events = services.call("GET", "/clock/logs?lines=0&duration=1.5s")
    assert 3 <= kinds(events).count("stdout") <= 20 and kinds(events)[-1] == "complete"


def test_they_come_back_after_a_restart_a_restore_and_in_a_fork(services, server, name):
    services.put("web", "sh", "-c", "echo $(hostname) >> ~/runs; exec sleep 1000")
    services.put("not", "sleep", "1000")
    services.call("POST", "/not/stop")
    services.until("web", "running")
    server.cli("checkpoint", "create", sprite=name)
    server.cli("restart", name)
    services.until("web", "running")
    assert services.state("not")["status"] == "stopped"
    assert services.run("cat", "runs") == f"{name}\n" * 2
    services.put("later", "sleep", "1000")
    server.cli("restore", "v1", sprite=name)
    services.until("web", "running")
    assert sorted(one["name"] for one in services.call("GET")) == ["not", "web"], "as the disk was"
    server.cli("fork", f"{name}@v1", f"{name}-fork")
    try:
        fork = Services(server, f"{name}-fork")
        fork.until("web", "running")
        assert fork.run("tail", "-n1", "runs") == f"{name}-fork\n", "it begins when the fork has its name"
        assert fork.state("not")["status"] == "stopped"
    finally:
        server.cli("destroy", "--force", f"{name}-fork")


def test_they_let_the_sprite_sleep_and_answer_the_first_connection_after_a_wake(servers):
    server = servers(options=["--idle-timeout", "1s"])
    server.start()
    call(server, "POST", "/v1/sprites", json={"name": "one"})
    services = Services(server, "one")
    web = "import http.server,time; time.sleep(1); http.server.test(http.server.SimpleHTTPRequestHandler, port=8080)"
    services.put("web", "python3", "-c", web, http_port=8080)
    status = lambda: call(server, "GET", "/v1/sprites/one").json()["status"]
    wait_for("sleep", lambda: status() == "cold", 60)
    done = server.cli("proxy", "-W", ":8080", sprite="one", input="GET / HTTP/1.0\r\n\r\n")
    assert done.stdout.startswith("HTTP/1.0 200")


def test_the_python_client(client, sprite):
    events = list(sprite.create_service("web", "sh", ["-c", "echo hi; exec sleep 1000"], duration=1, env={"A": "b"}, dir="/tmp"))
    assert [event.type for event in events] == ["started", "stdout", "complete"] and events[1].data == "hi\n"
    (listed,) = sprite.list_services()
    assert (listed.name, listed.env, listed.dir, listed.state.status) == ("web", {"A": "b"}, "/tmp", "running")
    sprite.signal_service("web", "SIGUSR1")
    assert [event.type for event in sprite.stop_service("web", timeout=5)][-1] == "complete"
    assert [event.type for event in sprite.start_service("web", duration=1)][0] == "started"
    list(sprite.stop_service("web"))
    sprite.delete_service("web")
    with pytest.raises((SpriteError, sprites.SpriteError)):
        sprite.get_service("web")


def test_the_asynchronous_python_client(server, sprite, name):
    async def work():
        async with sprites.AsyncSpritesClient(server.token, base_url=server.url) as client:
            return await client.sprite(name).list_services()

    assert asyncio.run(work()) == []


def test_definitions_while_the_disk_is_restored_again_and_again(services, server, name):
    server.cli("checkpoint", "create", sprite=name)
    stop = []

    def define():
        number = 0
        while not stop:
            number += 1
            answer = call(server, "PUT", f"{services.path}/s{number % 4}?duration=0", json={"cmd": "sleep", "args": [str(1000 + number)]})
            assert answer.status_code in (200, 503), answer.text

    with ThreadPoolExecutor(4) as pool:
        defining = [pool.submit(define) for _ in range(4)]
        for _ in range(8):
            server.cli("restore", "v1", sprite=name)
        stop.append(True)
        for one in defining:
            one.result(60)
    services.put("last", "sleep", "1000")
    services.until("last", "running")


def test_a_start_ends_a_stop_that_still_waits(services):
    services.put("slow", "sh", "-c", "trap 'sleep 2; exit 0' TERM; echo up; while :; do sleep 0.1; done", duration="1s")
    services.until("slow", "running")
    with ThreadPoolExecutor(1) as pool:
        stop = pool.submit(services.call, "POST", "/slow/stop?timeout=10s")
        services.until("slow", "stopping")
        services.call("POST", "/slow/start?duration=0")
        assert stop.result(30)[-1]["type"] == "complete"
    services.until("slow", "running")
    awake = services.server.cli("info", services.name, "--json").stdout
    assert "stop of service" not in awake


def test_one_that_waits_hears_of_a_new_definition(services):
    services.put("broken", "/no/such")
    services.until("broken", "failed")
    services.put("waits", "sleep", "1000", needs=["broken"])
    assert services.state("waits")["status"] == "starting"
    services.put("broken", "sleep", "1000")
    services.until("broken", "running")
    services.until("waits", "running")


def test_a_pipe_in_place_of_the_accounts_holds_nothing_up(services):
    services.run("sudo", "sh", "-c", "mv /etc/passwd /etc/away; mv /etc/group /etc/away-too; mkfifo -m 666 /etc/passwd /etc/group")
    for number in range(3):
        services.put("one", "sleep", str(1000 + number))
    services.until("one", "running")
    assert services.run("id", "-u") == "1001\n"
    services.call("POST", "/one/stop")
