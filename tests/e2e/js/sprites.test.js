// Create, get, list, update and destroy with the official JavaScript client.
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { SpritesClient } from '@fly/sprites';
import { baseURL, client, sprite } from './kit.js';

const one = sprite('js-sprites');

test('a new sprite is usable at once and says who it is', async () => {
  assert.equal((await one.it.exec('echo hello')).stdout, 'hello\n');
  const found = await client.getSprite('js-sprites');
  assert.equal(found.name, 'js-sprites');
  assert.match(found.id, /^sprite-/);
  assert.equal(found.organizationName, 'local');
  assert.deepEqual(found.labels, ['js']);
  assert.ok(found.url.includes('js-sprites'));
  assert.ok(Math.abs(Date.now() - found.createdAt) < 300_000);
});

test('settings are updated one by one', async () => {
  await one.it.updateURLSettings({ auth: 'public' });
  assert.equal((await client.getSprite('js-sprites')).urlSettings.auth, 'public');
  assert.deepEqual((await one.it.update({ labels: ['a', 'b'] })).labels, ['a', 'b']);
  assert.equal((await client.getSprite('js-sprites')).urlSettings.auth, 'public');
});

test('the list is paged', async () => {
  const names = ['js-list-a', 'js-list-b', 'js-list-c'];
  for (const name of names) await client.createSprite(name);
  const first = await client.listSprites({ prefix: 'js-list-', maxResults: 2 });
  assert.deepEqual(first.sprites.map((found) => found.name), names.slice(0, 2));
  assert.ok(first.hasMore);
  const second = await client.listSprites({ prefix: 'js-list-', maxResults: 2, continuationToken: first.nextContinuationToken });
  assert.deepEqual(second.sprites.map((found) => found.name), names.slice(2));
  assert.equal(second.hasMore, false);
  assert.deepEqual((await client.listAllSprites('js-list-')).map((found) => found.name), names);
  for (const name of names) await client.deleteSprite(name);
  assert.deepEqual(await client.listAllSprites('js-list-'), []);
});

test('errors carry what the server said', async () => {
  await assert.rejects(client.createSprite('js-sprites'), /already exists/);
  await assert.rejects(client.createSprite('Not A Name'), /invalid sprite name/);
  await assert.rejects(client.getSprite('no-such-sprite'), /not found/i);
  await assert.rejects(client.deleteSprite('no-such-sprite'));
  const stranger = new SpritesClient('local/local/x/y', { baseURL });
  await assert.rejects(stranger.listSprites(), /authentication|401/i);
});

test('a check says how a sprite is', async () => {
  const check = await one.it.check();
  assert.equal(check.spriteName, 'js-sprites');
  assert.equal(check.status, 'healthy');
});

test('a watch tells of changes', async () => {
  const stream = await client.watchSprites({ prefix: 'js-watched' });
  const seen = (async () => {
    for (;;) {
      const event = await stream.next();
      if (event === null || event.name === 'js-watched') return event;
    }
  })();
  await client.createSprite('js-watched');
  assert.equal((await seen).name, 'js-watched');
  stream.close();
  await client.deleteSprite('js-watched');
});

test('a restart ends what runs and keeps the disk', async () => {
  const { it } = one;
  await it.exec('touch kept');
  const running = it.spawn('sleep', ['1000']);
  await new Promise((resolve) => running.once('spawn', resolve));
  const ended = new Promise((resolve) => running.once('exit', resolve));
  assert.equal((await it.restart()).spriteName, 'js-sprites');
  assert.notEqual(await ended, 0);
  assert.equal((await it.exec('ls kept')).stdout.trim(), 'kept');
  await assert.rejects(it.exec('pgrep -x sleep'));
  await assert.rejects(client.sprite('no-such-sprite').restart());
});
