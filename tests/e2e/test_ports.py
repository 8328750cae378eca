"""Ports of a sprite: what opens and closes, connections into it, and the client's ways to both."""

import json
import os
import signal
import socket
import subprocess
from contextlib import contextmanager

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from puck_server import free_port, wait_for
from wire import call, execute

# Answers each connection with what it was sent up to its end, in upper case.
ECHO = """
import socket, sys, threading
def serve(connection):
    with connection:
        said = b"".join(iter(lambda: connection.recv(65536), b""))
        connection.sendall(said.upper())
address, port = sys.argv[1], int(sys.argv[2])
family = socket.AF_INET6 if ":" in address else socket.AF_INET
listener = socket.socket(family)
listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
if family == socket.AF_INET6:
    listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
listener.bind((address, port))
listener.listen(64)
print("ready", flush=True)
while True:
    threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()
"""


@contextmanager
def upgraded(server, name, path):
    """A WebSocket under a sprite."""
    url = f"{server.url.replace('http', 'ws', 1)}/v1/sprites/{name}/{path}"
    with connect(url, additional_headers={"Authorization": f"Bearer {server.token}"}, open_timeout=30) as opened:
        yield opened


@contextmanager
def tunnel(server, name, port, host="localhost"):
    """A connection to a port."""
    with upgraded(server, name, "proxy") as opened:
        opened.send(json.dumps({"host": host, "port": port}))
        yield opened, json.loads(opened.recv(timeout=30))


@contextmanager
def echo(server, name, port, address="0.0.0.0"):
    """The echo service, running."""
    with execute(server, name, "python3", "-c", ECHO, address, str(port)) as command:
        command.until(b"ready")
        yield command
        command.control(type="signal", signal="KILL")
        command.wait()


def asked(opened, said: bytes) -> bytes:
    """Sends everything, and reads to the end of the answer."""
    opened.send(said)
    opened.send(json.dumps({"type": "eof"}))
    answer = b""
    try:
        while True:
            answer += opened.recv(timeout=30)
    except ConnectionClosed as closed:
        assert closed.rcvd.code == 1000
    return answer


@pytest.mark.parametrize("address", ["127.0.0.1", "0.0.0.0", "::1", "::", "10.0.0.1"])
def test_localhost_finds_whatever_address_a_service_is_bound_to(server, sprite, name, address):
    with echo(server, name, 7000, address), tunnel(server, name, 7000) as (opened, answer):
        assert answer["status"] == "connected" and answer["target"].endswith(":7000")
        assert asked(opened, b"hello") == b"HELLO"


def test_many_megabytes_pass_both_ways(server, sprite, name):
    data = os.urandom(1 << 20).hex().encode() * 8
    with echo(server, name, 7000), tunnel(server, name, 7000) as (opened, _):
        for start in range(0, len(data), 1 << 18):
            opened.send(data[start : start + (1 << 18)])
        assert asked(opened, b"") == data.upper()


def test_nothing_there_is_said(server, sprite, name):
    with tunnel(server, name, 7001) as (opened, answer):
        assert answer["status"] == "error" and "refused" in answer["error"]
        with pytest.raises(ConnectionClosed):
            opened.recv(timeout=30)
    with tunnel(server, name, server.port, "127.0.0.1") as (_, answer):
        assert answer["status"] == "error", "the host's loopback is not the sprite's"
    assert call(server, "GET", f"/v1/sprites/{name}/proxy").status_code == 400


def test_the_host_and_other_sprites_stay_out_of_reach(server, client, sprite, name):
    client.create_sprite(f"{name}-b")
    try:
        mine, other = (client.sprite(one).run("hostname", "-I", capture_output=True).stdout.decode() for one in (name, f"{name}-b"))
        outside = next(address for address in other.split() if address != "10.0.0.1")
        assert outside not in mine
        with echo(server, f"{name}-b", 7000), tunnel(server, name, 7000, outside) as (_, answer):
            assert answer["status"] == "error"
    finally:
        client.destroy_sprite(f"{name}-b")


def test_ports_are_watched(server, sprite, name):
    with echo(server, name, 7000, "127.0.0.1"), upgraded(server, name, "ports/watch") as watch:
        listed = json.loads(watch.recv(timeout=30))
        assert listed["type"] == "port_list"
        (first,) = listed["ports"]
        assert (first["port"], first["address"]) == (7000, "127.0.0.1")
        known = sprite.run("pgrep", "-f", "import socket", capture_output=True).stdout.decode().split()
        assert str(first["pid"]) in known, "the process as the sprite knows it"
        with echo(server, name, 7001, "::1"):
            opened = json.loads(watch.recv(timeout=30))
            assert (opened["type"], opened["port"], opened["address"]) == ("port_opened", 7001, "::1")
        closed = json.loads(watch.recv(timeout=30))
        assert (closed["type"], closed["port"]) == ("port_closed", 7001)


def test_an_open_connection_keeps_a_sprite_awake_and_a_new_one_wakes_it(servers):
    server = servers(options=["--idle-timeout", "2s"])
    server.start()
    call(server, "POST", "/v1/sprites", json={"name": "held"})

    def status():
        return call(server, "GET", "/v1/sprites/held").json()["status"]

    with upgraded(server, "held", "proxy") as opened:
        opened.send(json.dumps({"host": "localhost", "port": 1}))
        assert json.loads(opened.recv(timeout=30))["status"] == "error"
    wait_for("sleep", lambda: status() == "cold", 60)
    with tunnel(server, "held", 1) as (_, answer):
        assert "refused" in answer["error"], "it was woken for this"
    with upgraded(server, "held", "ports/watch") as watch:
        watch.recv(timeout=30)
        with pytest.raises(TimeoutError):
            watch.recv(timeout=6)
        assert status() == "running"
    wait_for("sleep", lambda: status() == "cold", 60)


@contextmanager
def client_process(server, *arguments, **kwargs):
    """The command line client in the background; ends with the block."""
    command, env = server.client(*arguments, **kwargs)
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, env=env, cwd=server.data.parent, stdin=pipe, stdout=pipe, stderr=pipe)
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=30)


def ask(port: int, said: bytes) -> bytes:
    """One question to a port of this host."""
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        connection.sendall(said)
        connection.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: connection.recv(65536), b""))


def test_puck_proxy_listens_on_loopback_and_connects(server, sprite, name):
    with echo(server, name, 7000), client_process(server, "proxy", "0:7000", "0:10.0.0.1:7000", sprite=name) as proxy:
        ports = []
        for _ in range(2):
            local, arrow, remote = proxy.stdout.readline().decode().split()
            assert arrow == "->" and remote == f"{name}:7000" and local.startswith("127.0.0.1:")
            ports.append(int(local.rsplit(":", 1)[1]))
        for port in ports:
            assert ask(port, b"many questions" * 1000) == b"MANY QUESTIONS" * 1000
        taken = server.cli("proxy", f"{ports[0]}:7000", sprite=name, check=False)
        assert taken.returncode == 1 and f"listen on port {ports[0]}" in taken.stderr
    assert server.cli("proxy", sprite=name, check=False).returncode == 2
    assert server.cli("proxy", "70000", sprite=name, check=False).returncode == 2


def test_puck_proxy_connects_standard_input_and_output(server, sprite, name):
    with echo(server, name, 7000):
        for place in (":7000", "localhost:7000", "10.0.0.1:7000"):
            done = server.cli("proxy", "-W", place, sprite=name, input="over a pipe\n")
            assert done.stdout == "OVER A PIPE\n"
    refused = server.cli("proxy", "-W", ":7001", sprite=name, check=False, input="")
    assert refused.returncode == 1 and "refused" in refused.stderr and refused.stdout == ""


def test_a_port_that_opens_under_puck_exec_is_reached_at_the_same_number_here(server, sprite, name):
    port = free_port()
    command = ["exec", "--", "python3", "-c", ECHO, "127.0.0.1", str(port)]
    with client_process(server, *command, sprite=name) as running:
        assert running.stdout.readline() == b"ready\n"

        def answers():
            try:
                return ask(port, b"from here") == b"FROM HERE"
            except OSError:
                return False

        wait_for("an answer", answers)
    with client_process(server, "exec", "--no-port-forward", *command[1:], sprite=name) as running:
        assert running.stdout.readline() == b"ready\n"
        with upgraded(server, name, "ports/watch") as watch:
            assert [one["port"] for one in json.loads(watch.recv(timeout=30))["ports"]] == [port]
        with pytest.raises(OSError):
            ask(port, b"from here")
