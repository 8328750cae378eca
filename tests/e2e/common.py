"""Fixtures of the end-to-end and the soak tests: one server that most of them share, and servers of their own for those that end one."""

import itertools
import re

import pytest
import sprites

from object_stores import FaultyProxy, SeaweedFS
from puck_server import Server, Servers, wait_for

_numbers = itertools.count(1)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if report.failed:
        item.failed = True
    return report


@pytest.fixture(scope="session")
def shared() -> Server:
    """A server that all tests may use and none may end. Sprites sleep late, so that no test meets a sleeping one by chance."""
    servers = Servers()
    server = servers(options=["--idle-timeout", "10m"])
    try:
        server.start()
    except BaseException:
        servers.close(failed=True)
        raise
    yield server
    servers.close(failed=False)


@pytest.fixture
def server(shared) -> Server:
    """The shared server; the test fails if it made the server say something alarming."""
    expected = len(shared.expected)
    before = len(shared.log())
    yield shared
    lines = shared.log()[before:]
    assert shared.process.poll() is None, f"the server ended\n{lines[-4000:]}"
    alarming = [line for line in shared.unexpected_log() if line in lines]
    # What a test announced is announced for good, since the log is looked at again when the server ends.
    assert not alarming, "\n".join(alarming)
    assert len(shared.expected) >= expected


@pytest.fixture
def servers(request) -> Servers:
    """Makes servers for this test alone."""
    made = Servers()
    yield made
    made.close(failed=getattr(request.node, "failed", False))


@pytest.fixture(scope="module")
def seaweed(tmp_path_factory) -> SeaweedFS:
    """A real S3 server for the tests of one file."""
    server = SeaweedFS(tmp_path_factory.mktemp("seaweed") / "data")
    yield server
    server.close()


@pytest.fixture
def proxy(seaweed) -> FaultyProxy:
    """The way to it, which can be made bad."""
    opened = FaultyProxy(seaweed.s3_port)
    yield opened
    opened.close()


@pytest.fixture
def client(server) -> sprites.SpritesClient:
    """The official client, connected to the shared server."""
    with sprites.SpritesClient(server.token, base_url=server.url) as client:
        yield client


@pytest.fixture
def name(request) -> str:
    """A name for a sprite that no other test uses."""
    text = re.sub(r"[^a-z0-9]+", "-", request.node.name.lower()).strip("-")
    return f"{text[:40].strip('-')}-{next(_numbers)}"


@pytest.fixture
def sprite(client, name) -> sprites.Sprite:
    """A new sprite, destroyed after the test."""
    created = client.create_sprite(name)
    yield created
    if any(listed.name == name for listed in client.list_all_sprites(prefix=name)):
        client.destroy_sprite(name)


@pytest.fixture
def sh(sprite):
    """Runs a shell script in the sprite and gives what it printed; fails if it fails."""

    def run(script: str, **kwargs) -> str:
        done = sprite.run("bash", "-c", script, capture_output=True, timeout=kwargs.pop("timeout", 60), **kwargs)
        assert done.returncode == 0, f"{script!r}: {done.returncode}\n{done.stdout!r}\n{done.stderr!r}"
        return done.stdout.decode()

    return run


@pytest.fixture
def eventually():
    """Waits for a condition."""
    return wait_for
