"""The asynchronous Python client: the same things, many at once."""

import asyncio

import pytest
import pytest_asyncio
import sprites
from sprites.exceptions import ExecError, FileNotFoundError_, NotFoundError


@pytest_asyncio.fixture
async def aclient(server):
    async with sprites.AsyncSpritesClient(server.token, base_url=server.url) as client:
        yield client


@pytest_asyncio.fixture
async def asprite(aclient, name):
    created = await aclient.create_sprite(name, labels=["async"])
    yield created
    await aclient.destroy_sprite(name)


async def test_sprites(aclient, asprite, name):
    assert (await aclient.get_sprite(name)).labels == ["async"]
    assert name in [one.name for one in (await aclient.list_sprites()).sprites]
    assert [one.name for one in await aclient.list_all_sprites(prefix=name)] == [name]
    assert (await asprite.update(labels=["x"])).labels == ["x"]
    with pytest.raises(NotFoundError):
        await aclient.get_sprite("no-such-sprite")


async def test_commands_run_side_by_side(asprite):
    done = await asyncio.gather(
        *(asprite.run("sh", "-c", f"sleep 0.3; echo {n}", capture_output=True, timeout=30) for n in range(20))
    )
    assert [one.stdout for one in done] == [f"{n}\n".encode() for n in range(20)]
    with pytest.raises(ExecError):
        await asprite.command("false").run()
    assert await asprite.command("cat", "/etc/hostname").output()
    done = await asprite.run("stty", "size", tty=True, tty_rows=30, tty_cols=90, capture_output=True)
    assert done.stdout == b"30 90\r\n"


async def test_sessions(asprite):
    waiting = asyncio.ensure_future(asprite.run("sleep", "2", timeout=30))
    while not (sessions := await asprite.list_sessions()):
        await asyncio.sleep(0.02)
    assert "sleep 2" in sessions[0].command
    assert (await waiting).returncode == 0


async def test_checkpoints(asprite):
    file = asprite.filesystem("/home/sprite") / "file"
    await file.write_text("one")
    created = await collect(await asprite.create_checkpoint("first"))
    assert created[-1].type == "complete"
    await file.write_text("two")
    assert (await asprite.get_checkpoint("v1")).comment == "first"
    assert "v1" in [one.id for one in await asprite.list_checkpoints()]
    restored = await collect(await asprite.restore_checkpoint("v1"))
    assert restored[-1].type == "complete"
    assert await file.read_text() == "one"


async def test_files(asprite):
    home = asprite.filesystem("/home/sprite")
    await asyncio.gather(*((home / f"dir/{n}").write_bytes(bytes([n]) * 1000) for n in range(30)))
    assert len(await (home / "dir").listdir()) == 30
    assert await (home / "dir/7").read_bytes() == bytes([7]) * 1000
    assert (await (home / "dir/7").stat()).size == 1000
    await (home / "dir").rmtree()
    assert not await (home / "dir").exists()
    with pytest.raises(FileNotFoundError_):
        await (home / "dir/7").read_bytes()


async def test_control_mode_falls_back_to_plain_sockets(server, name, asprite):
    async with sprites.AsyncSpritesClient(server.token, base_url=server.url, control_mode=True) as client:
        done = await client.sprite(name).run("echo", "hi", capture_output=True, timeout=30)
        assert done.stdout == b"hi\n"


async def collect(messages):
    """What a checkpoint call said, whichever kind of iterator the client gives."""
    if hasattr(messages, "__aiter__"):
        return [message async for message in messages]
    return list(messages)
