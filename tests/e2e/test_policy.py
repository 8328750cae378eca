"""Policies: what a sprite may reach and use, whatever it and its root try, and whatever happens to it."""

import asyncio
import json
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import sprites
from sprites.exceptions import SpriteError
from sprites.types import NetworkPolicy, PolicyRule

from outside import FIRST, GATEWAY, SECOND, Outside
from puck_server import wait_for
from wire import call, execute

# Exit codes of curl.
NO_NAME, NO_CONNECTION = 6, 7

# One query for the address of a name, and the response code of the answer.
RCODE = """
import socket, sys
name = b"".join(bytes([len(label)]) + label.encode() for label in sys.argv[1].split(".")) + b"\\0"
query = b"\\x12\\x34\\1\\0\\0\\1\\0\\0\\0\\0\\0\\0" + name + b"\\0\\1\\0\\1"
over_tcp = sys.argv[2] == "tcp"
s = socket.socket(type=socket.SOCK_STREAM if over_tcp else socket.SOCK_DGRAM)
s.settimeout(15)
s.connect((sys.argv[3] if len(sys.argv) > 3 else "10.0.0.2", 53))
s.sendall(len(query).to_bytes(2, "big") + query if over_tcp else query)
print(s.recv(4096)[5 if over_tcp else 3] & 15)
"""


@pytest.fixture(scope="module")
def outside():
    """The world that the sprites of this file see."""
    made = Outside()
    made.names.names = {
        "one.test": [FIRST],
        "two.test": [SECOND],
        "www.one.test": [FIRST],
        "alias.test": ["www.one.test"],
        "rebound.test": ["10.0.0.1"],
        "metadata.test": ["169.254.169.254"],
        "loopback.test": ["127.0.0.1"],
        "mixed.test": ["192.168.0.1", SECOND],
    }
    yield made
    made.close()


@pytest.fixture
def restricted(servers, outside):
    """A server whose name server is the outside's, with one sprite, and calls about it."""
    server = servers(options=["--idle-timeout", "10m", "--dns", outside.names.address])
    server.start()
    call(server, "POST", "/v1/sprites", json={"name": "one"})
    return Restricted(server, "one")


class Restricted:
    """A sprite and its policy."""

    def __init__(self, server, name):
        self.server, self.name = server, name

    def allow(self, *domains: str, **others: str) -> None:
        """Sets the rules: what is allowed, and `deny=` one more."""
        rules = [{"domain": domain, "action": "allow"} for domain in domains]
        rules += [{"domain": domain, "action": action} for action, domain in others.items()]
        self.set(rules)

    def set(self, rules: list) -> None:
        """Sets the rules as they are."""
        answer = call(self.server, "POST", f"/v1/sprites/{self.name}/policy/network", json={"rules": rules})
        assert answer.status_code == 204, answer.text

    def run(self, *command: str, code: int | None = 0) -> str:
        """Runs a command."""
        with execute(self.server, self.name, *command) as running:
            ended = running.wait(60)
            assert code is None or ended == code, f"{command}: {ended}, {running.output!r}"
            return running.output.decode()

    def curl(self, host: str, code: int = 0) -> str:
        """Asks a host for its address."""
        return self.run("curl", "-sS", "--max-time", "10", f"http://{host}/", code=code).strip()

    def rcode(self, name: str, transport: str = "udp", *server: str) -> int:
        """What the name server says about a name: 0 is an answer, 3 is that there is none, 5 is a refusal."""
        return int(self.run("python3", "-c", RCODE, name, transport, *server))


def test_without_rules_everything_is_reached(restricted):
    assert restricted.curl("one.test") == FIRST and restricted.curl(SECOND) == SECOND
    assert call(restricted.server, "GET", "/v1/sprites/one/policy/network").json() == {"rules": []}
    assert json.loads(restricted.run("cat", "/.sprite/policy/network.json")) == {"rules": []}
    assert restricted.rcode("missing.test") == 3 and restricted.rcode("one.test", "tcp") == 0


def test_only_what_is_allowed_is_found_and_reached(restricted, outside):
    restricted.allow("one.test", "alias.test")
    assert restricted.curl("one.test") == FIRST and restricted.curl("ONE.Test") == FIRST
    assert restricted.curl("alias.test") == FIRST
    restricted.curl("two.test", NO_NAME)
    outside.names.asked.clear()
    assert [restricted.rcode("two.test", way) for way in ("udp", "tcp")] == [5, 5]
    assert [restricted.rcode("one.test", way) for way in ("udp", "tcp")] == [0, 0]
    assert "two.test" not in outside.names.asked, "a name is a message too"
    started = time.monotonic()
    restricted.curl(SECOND, NO_CONNECTION)
    assert time.monotonic() - started < 5, "it fails at once"
    assert restricted.curl(FIRST) == FIRST, "an allowed name led there"
    restricted.curl(GATEWAY, NO_CONNECTION)
    shown = restricted.run("cat", "/.sprite/policy/network.json")
    assert [rule["domain"] for rule in json.loads(shown)["rules"]] == ["one.test", "alias.test"]


def test_the_most_specific_rule_counts(restricted):
    restricted.allow("*", deny="two.test")
    assert restricted.curl("one.test") == FIRST and restricted.rcode("two.test") == 5
    restricted.curl(SECOND, NO_CONNECTION)
    restricted.allow("*.one.test")
    assert (restricted.rcode("www.one.test"), restricted.rcode("one.test")) == (0, 5)
    restricted.set([{"include": "defaults"}])
    assert (restricted.rcode("github.com"), restricted.rcode("one.test")) == (3, 5)


def test_names_that_lead_to_private_addresses_are_refused(restricted):
    restricted.allow("*")
    assert [restricted.rcode(name) for name in ("rebound.test", "metadata.test", "loopback.test")] == [5, 5, 5]
    addresses = restricted.run("python3", "-c", "import socket; print(socket.gethostbyname_ex('mixed.test')[2])")
    assert addresses.strip() == f"['{SECOND}']"


@pytest.mark.parametrize(
    "attempt",
    [
        f"ip route add {SECOND} dev spr0",
        f"ip route add default via 169.254.1.1 dev spr0 onlink",
        f"curl -sS --max-time 5 --interface spr0 http://{SECOND}/",
        f"python3 -c 'import socket; s = socket.socket(); s.setsockopt(1, 36, 1); s.connect((\"{SECOND}\", 80))'",
        f"python3 -c 'import socket; s = socket.socket(2, 3, 1); s.sendto(bytes(8), (\"{SECOND}\", 0))'",
        f"ping -c1 -W2 {SECOND}",
        f"unshare -Urn curl -sS --max-time 5 http://{SECOND}/",
        "echo '{\"rules\":[]}' > /.sprite/policy/network.json",
        "mount -o remount,rw /.sprite",
        f"python3 -c '{RCODE.replace(chr(39), chr(34))}' two.test udp {SECOND}",
    ],
    ids=["add a route", "add the default route", "bind to the interface", "mark packets", "raw packets", "ping", "a namespace", "write the policy", "remount", "another name server"],
)
def test_root_in_the_sprite_does_not_get_around_it(restricted, attempt):
    restricted.allow("one.test")
    assert restricted.curl("one.test") == FIRST
    with execute(restricted.server, "one", "sudo", "sh", "-c", attempt) as running:
        assert running.wait(60) != 0, f"{attempt}: {running.output!r}"
    restricted.curl(SECOND, NO_CONNECTION)


def test_a_change_cuts_what_is_no_longer_allowed_and_nothing_else(restricted):
    restricted.allow("one.test", "two.test")
    talk = "import socket,sys\ns=socket.create_connection((sys.argv[1],7)).makefile('rw')\nfor l in sys.stdin:\n s.write(l);s.flush();print(s.readline(),end='',flush=True)"
    with execute(restricted.server, "one", "python3", "-c", talk, "one.test") as kept:
        with execute(restricted.server, "one", "python3", "-c", talk, "two.test") as cut:
            for command in (kept, cut):
                command.send(b"before\n")
                command.until(b"before")
            restricted.allow("one.test", "other.test")
            cut.send(b"after\n")
            assert cut.wait(10) != 0 and b"abort" in cut.output
        kept.send(b"after\n")
        kept.until(b"after")
        restricted.set([])
        kept.send(b"free\n")
        kept.until(b"free")
        kept.close_stdin()
        kept.wait()
    assert restricted.curl(SECOND) == SECOND


def test_rules_cut_what_was_connected_without_any(restricted):
    wait = f"import socket\ns=socket.create_connection(('{SECOND}',7))\nprint('connected',flush=True)\ns.recv(1)"
    with execute(restricted.server, "one", "python3", "-c", wait) as connected:
        connected.until(b"connected")
        restricted.allow("one.test")
        assert connected.wait(10) != 0


def test_it_is_in_force_after_restart_restore_sleep_fork_and_import(restricted, tmp_path):
    restricted.allow("one.test")
    server = restricted.server

    def holds(name: str = "one") -> bool:
        sprite = Restricted(server, name)
        sprite.curl(SECOND, NO_CONNECTION)
        return sprite.rcode("two.test") == 5 and sprite.curl("one.test") == FIRST

    assert holds()
    server.cli("restart", "one")
    assert holds()
    server.cli("checkpoint", "create", sprite="one")
    server.cli("restore", "v1", sprite="one")
    assert holds()
    server.cli("fork", "one@v1", "fork")
    assert holds("fork")
    archive = tmp_path / "one.tar"
    server.cli("export", "one", str(archive))
    server.cli("import", str(archive), "import")
    assert holds("import")
    server.stop()
    server.start()
    assert holds() and holds("fork")
    server.cli("destroy", "--force", "one")
    server.cli("undelete", "one")
    assert holds()


def test_it_is_changed_while_the_sprite_sleeps_and_does_not_wake_it(servers, outside):
    server = servers(options=["--idle-timeout", "1s", "--dns", outside.names.address])
    server.start()
    call(server, "POST", "/v1/sprites", json={"name": "one"})
    status = lambda: call(server, "GET", "/v1/sprites/one").json()["status"]
    wait_for("sleep", lambda: status() == "cold", 60)
    sprite = Restricted(server, "one")
    sprite.allow("one.test")
    assert status() == "cold"
    sprite.curl(SECOND, NO_CONNECTION)
    assert sprite.curl("one.test") == FIRST


def test_a_flood_of_queries_hurts_nobody(restricted):
    restricted.allow("one.test")
    flood = "import socket,time\ns=socket.socket(2,2)\nend=time.time()+3\nwhile time.time()<end: s.sendto(bytes(range(200)),('10.0.0.2',53))"
    with execute(restricted.server, "one", "python3", "-c", flood) as running:
        assert restricted.run("sh", "-c", "echo alive > file && sync && cat file") == "alive\n"
        running.wait()
    assert restricted.curl("one.test") == FIRST


def test_the_python_client(server, client, sprite, name):
    assert sprite.get_network_policy().rules == []
    rules = [PolicyRule(domain="example.com", action="allow"), PolicyRule(include="defaults")]
    sprite.update_network_policy(NetworkPolicy(rules=rules))
    assert sprite.get_network_policy().rules == rules
    with pytest.raises(SpriteError, match="either `domain`"):
        sprite.update_network_policy(NetworkPolicy(rules=[PolicyRule(domain="example.com")]))
    assert sprite.get_network_policy().rules == rules

    async def asynchronous():
        async with sprites.AsyncSpritesClient(server.token, base_url=server.url) as other:
            await other.sprite(name).update_network_policy(NetworkPolicy(rules=[]))
            return await other.sprite(name).get_network_policy()

    assert asyncio.run(asynchronous()).rules == []


def test_what_is_no_policy_is_refused(server, sprite, name):
    path = f"/v1/sprites/{name}/policy/network"
    rule = {"domain": "example.com", "action": "allow"}
    for body in ({}, {"rules": None}, {"rules": [{}]}, {"rules": [rule], "egress": {}}, {"rules": [{**rule, "domain": "a b"}]}, {"rules": [rule] * 257}):
        answer = call(server, "POST", path, json=body)
        assert answer.status_code == 400 and isinstance(answer.json()["error"], str)
    assert call(server, "POST", path, content=b"[]").status_code == 400
    assert call(server, "GET", path).json() == {"rules": []}
    assert call(server, "GET", "/v1/sprites/no-such/policy/network").status_code == 404
    assert call(server, "DELETE", path).status_code == 405


def test_memory_is_limited_live(server, sprite, name):
    path = f"/v1/sprites/{name}/policy/resources"
    assert call(server, "GET", path).json() == {}
    use = lambda: sprite.run("python3", "-c", "len(b'x' * (300 << 20))", capture_output=True).returncode
    assert use() == 0
    assert call(server, "POST", path, json={"memory": {"limit_mb": 128}}).status_code == 204
    assert call(server, "GET", path).json() == {"memory": {"limit_mb": 128, "autoscale": False}}
    assert use() != 0
    assert json.loads(sprite.run("cat", "/.sprite/policy/resources.json", capture_output=True).stdout)["memory"]["limit_mb"] == 128
    assert call(server, "POST", path, json={"memory": {"limit_mb": 128, "autoscale": True}}).status_code == 204
    assert use() == 0, "it may grow"
    for limit in (0, 63, 1 << 30, -1, "128"):
        assert call(server, "POST", path, json={"memory": {"limit_mb": limit}}).status_code == 400
    assert call(server, "DELETE", path).status_code == 204
    assert call(server, "GET", path).json() == {}


def status(sprite, *command: str) -> dict[str, str]:
    text = sprite.run(*command, "cat", "/proc/self/status", capture_output=True, check=True).stdout.decode()
    return dict(line.split(":\t", 1) for line in text.splitlines())


def test_privileges_count_from_the_next_start(servers):
    server = servers()
    server.start()
    name = "one"
    client = sprites.SpritesClient(server.token, base_url=server.url)
    sprite = client.create_sprite(name)
    path = f"/v1/sprites/{name}/policy/privileges"
    none = {"profile": "", "devices": [], "noNewPrivileges": False}
    assert call(server, "GET", path).json() == none
    assert status(sprite, "sudo")["CapEff"].strip("0") != ""

    assert call(server, "POST", path, json={"noNewPrivileges": True}).status_code == 204
    assert call(server, "GET", path).json() == {**none, "noNewPrivileges": True}
    now = status(sprite)
    assert now["NoNewPrivs"] == "1" and now["CapBnd"].strip("0") != ""
    assert sprite.run("sudo", "true", capture_output=True).returncode != 0
    assert sprite.run("ping", "-h", capture_output=True).returncode != 126, "a program with a file capability starts"

    assert call(server, "POST", path, json={"profile": "minimal"}).status_code == 204
    now = status(sprite)
    assert now["NoNewPrivs"] == "1" and not now["CapBnd"].strip("0") and not now["CapEff"].strip("0")
    assert sprite.run("sudo", "true", capture_output=True).returncode != 0
    assert json.loads(sprite.run("cat", "/.sprite/policy/privileges.json", capture_output=True).stdout)["profile"] == "minimal"

    # Neither a new container nor a new machine forgets it.
    server.cli("restart", sprite=name)
    assert sprite.run("sudo", "true", capture_output=True).returncode != 0
    server.stop()
    server.start()
    client = sprites.SpritesClient(server.token, base_url=server.url)
    sprite = client.sprite(name)
    assert sprite.run("sudo", "true", capture_output=True).returncode != 0

    assert call(server, "DELETE", path).status_code == 204
    assert call(server, "GET", path).json() == none
    assert sprite.run("sudo", "true", capture_output=True).returncode == 0


def test_changes_at_once_end_as_the_account_has_them(server, sprite, name):
    path = f"/v1/sprites/{name}"
    for number in range(15):
        rules = {"rules": [{"domain": f"n{number}.test", "action": "allow"}]}
        privileges = {"profile": "minimal" if number % 2 else "", "noNewPrivileges": bool(number % 3)}
        calls = (
            ("POST", f"{path}/policy/network", rules),
            ("PUT", path, {"idle_timeout_seconds": 600 + number}),
            ("POST", f"{path}/policy/privileges", privileges),
            ("PUT", path, {"labels": [f"l{number}"]}),
        )
        with ThreadPoolExecutor(len(calls)) as pool:
            answers = list(pool.map(lambda asked: call(server, asked[0], asked[1], json=asked[2]).status_code, calls))
        assert answers == [204, 200, 204, 200]
        for kind in ("network", "privileges"):
            inside = sprite.run("cat", f"/.sprite/policy/{kind}.json", capture_output=True).stdout
            assert json.loads(inside) == call(server, "GET", f"{path}/policy/{kind}").json(), number
        bounded = status(sprite)["NoNewPrivs"] == "1"
        assert bounded == bool(number % 2 or number % 3), number


def test_a_machine_that_cannot_take_a_policy_ends_and_wakes_with_it(servers):
    server = servers(options=["--idle-timeout", "10m"])
    server.start()
    # With version 1 of control groups the kernel refuses a limit below what is in use; with version 2 it kills.
    server.expect_log("does not take its settings|assign an identity|runtime::log")
    sprite = sprites.SpritesClient(server.token, base_url=server.url).create_sprite("one")
    sprite.run("sh", "-c", "setsid python3 -c 'x = bytearray(300 << 20); import time; print(1, flush=True); time.sleep(1000)' > /tmp/up 2>&1 & until [ -s /tmp/up ]; do sleep 0.1; done", check=True)
    assert call(server, "POST", "/v1/sprites/one/policy/privileges", json={"profile": "minimal"}).status_code == 204
    assert call(server, "POST", "/v1/sprites/one/policy/resources", json={"memory": {"limit_mb": 128}}).status_code == 204
    assert sprite.run("python3", "-c", "len(b'x' * (200 << 20))", capture_output=True).returncode != 0
    assert sprite.run("pgrep", "-f", "300 <<", capture_output=True).returncode != 0
    assert status(sprite)["NoNewPrivs"] == "1"
    server.cli("restart", sprite="one")
    assert status(sprite)["NoNewPrivs"] == "1"


def test_privileges_that_cannot_be_given_are_refused(server, sprite, name):
    path = f"/v1/sprites/{name}/policy/privileges"
    refused = ({"profile": "privileged"}, {"profile": "root"}, {"devices": ["kvm"]}, {"devices": ["../null"]}, {"devices": ["null"] * 7}, {"noNewPrivileges": "yes"}, {"more": 1})
    for body in refused:
        answer = call(server, "POST", path, json=body)
        assert answer.status_code == 400 and isinstance(answer.json()["error"], str), body
    assert call(server, "POST", path, json={"profile": "standard", "devices": ["null", "tty"]}).status_code == 204
    assert sprite.run("sudo", "true", capture_output=True).returncode == 0
    assert call(server, "DELETE", path).status_code == 204


def test_the_command_line(server, sprite, name):
    def policy(*arguments: str) -> str:
        return server.cli("policy", *arguments, sprite=name).stdout

    assert json.loads(policy("network")) == {"rules": []}
    policy("network", "--defaults", "--allow", "*.Example.com", "--allow", "a.test", "--deny", "b.example.com")
    assert json.loads(policy("network"))["rules"] == [
        {"include": "defaults"},
        {"domain": "*.example.com", "action": "allow"},
        {"domain": "a.test", "action": "allow"},
        {"domain": "b.example.com", "action": "deny"},
    ]
    policy("network", "--unrestricted")
    assert json.loads(policy("network")) == {"rules": []}
    policy("memory", "--limit-mb", "256", "--autoscale")
    assert json.loads(policy("memory")) == {"memory": {"limit_mb": 256, "autoscale": True}}
    policy("memory", "--reset")
    assert json.loads(policy("memory")) == {}
    policy("privileges", "--minimal")
    assert json.loads(policy("privileges"))["profile"] == "minimal"
    policy("privileges", "--reset")
    assert json.loads(policy("privileges")) == {"profile": "", "devices": [], "noNewPrivileges": False}
    for code, arguments in ((2, ("network", "--allow", "a b")), (2, ("network", "--allow", "a.test", "--unrestricted")), (1, ("memory", "--limit-mb", "1"))):
        assert server.cli("policy", *arguments, sprite=name, check=False).returncode == code
