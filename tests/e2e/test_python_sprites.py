"""Create, get, list, update and destroy with the official Python client."""

from datetime import datetime, timedelta, timezone

import pytest
import sprites
from sprites.exceptions import APIError, AuthenticationError, NotFoundError, SpriteError
from sprites.types import ListOptions, SpriteConfig, URLSettings


def test_a_new_sprite_is_usable_at_once_and_says_who_it_is(client, sprite, name):
    assert sprite.run("echo", "hello", capture_output=True).stdout == b"hello\n"
    found = client.get_sprite(name)
    assert found.name == name
    assert found.id.startswith("sprite-")
    assert found.organization_name == "local"
    assert found.status in ("cold", "warm", "running")
    assert name in found.url
    assert found.url_settings.auth == "sprite"
    assert found.labels == []
    assert abs(found.created_at - datetime.now(timezone.utc)) < timedelta(minutes=5)


def test_labels_and_url_settings_are_kept_and_updated(client, name):
    config = SpriteConfig(ram_mb=512, cpus=1, region="ord", storage_gb=10)
    created = client.create_sprite(
        name, config=config, url_settings=URLSettings(auth="public"), labels=["one", "two"], wait_for_capacity=True
    )
    try:
        assert client.get_sprite(name).labels == ["one", "two"]
        assert client.get_sprite(name).url_settings.auth == "public"
        updated = created.update(labels=["three"])
        assert updated.labels == ["three"]
        assert updated.url_settings.auth == "public"
        created.update_url_settings(URLSettings(auth="sprite"))
        assert client.get_sprite(name).url_settings.auth == "sprite"
        assert client.get_sprite(name).labels == ["three"]
        assert created.update(labels=[]).labels == []
    finally:
        created.destroy()


def test_the_list_is_paged_filtered_and_counted(client, name):
    names = [f"{name}-{letter}" for letter in "abc"]
    for one in names:
        client.create_sprite(one)
    try:
        first = client.list_sprites(ListOptions(prefix=name, max_results=2))
        assert [one.name for one in first.sprites] == names[:2]
        assert first.has_more and first.next_continuation_token
        rest = ListOptions(prefix=name, max_results=2, continuation_token=first.next_continuation_token)
        second = client.list_sprites(rest)
        assert [one.name for one in second.sprites] == names[2:]
        assert not second.has_more
        assert [one.name for one in client.list_all_sprites(prefix=name)] == names
        everything = client.list_sprites(ListOptions(max_results=100, bulk_load=True))
        assert everything.running + everything.warm + everything.cold >= 3
    finally:
        for one in names:
            client.destroy_sprite(one)
    assert client.list_all_sprites(prefix=name) == []


def test_a_destroyed_sprite_is_gone_and_its_name_is_free(client, sprite, name):
    (sprite.filesystem("/home/sprite") / "mine").write_text("old")
    identity = client.get_sprite(name).id
    sprite.destroy()
    with pytest.raises(NotFoundError):
        client.get_sprite(name)
    with pytest.raises(NotFoundError):
        client.destroy_sprite(name)
    with pytest.raises((SpriteError, APIError)):
        sprite.run("true")
    again = client.create_sprite(name)
    assert client.get_sprite(name).id != identity
    assert not (again.filesystem("/home/sprite") / "mine").exists()


def test_a_taken_name_is_refused(client, sprite, name):
    with pytest.raises(SpriteError, match="already exists"):
        client.create_sprite(name)


def test_a_wrong_token_is_refused(server):
    for token in ["", "x", "local/local/x/y", server.token[:-1], server.token + "x"]:
        if not token:
            continue
        with sprites.SpritesClient(token, base_url=server.url) as stranger:
            with pytest.raises((AuthenticationError, SpriteError)):
                stranger.list_sprites()
