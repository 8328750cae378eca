// Checkpoints with the official JavaScript client.
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { collect, sprite } from './kit.js';

const one = sprite('js-checkpoints');

test('what was deleted comes back', async () => {
  const home = one.it.filesystem('/home/sprite');
  await home.writeFile('precious', 'one');
  const created = await collect(await one.it.createCheckpoint('before'));
  assert.equal(created.at(-1).type, 'complete');
  assert.match(created.map((message) => message.data).join('\n'), /ID: v1/);
  await home.rm('precious');
  assert.equal(await home.exists('precious'), false);
  const restored = await collect(await one.it.restoreCheckpoint('v1'));
  assert.equal(restored.at(-1).type, 'complete');
  assert.equal(await home.readFile('precious', 'utf8'), 'one');
});

test('checkpoints are listed and described', async () => {
  await collect(await one.it.createCheckpoint('second'));
  const listed = (await one.it.listCheckpoints()).map((checkpoint) => checkpoint.id);
  assert.ok(listed.indexOf('v2') < listed.indexOf('v1') && listed.includes('v2'), String(listed));
  const second = await one.it.getCheckpoint('v2');
  assert.equal(second.comment, 'second');
  assert.ok(second.createTime instanceof Date && Math.abs(Date.now() - second.createTime) < 300_000);
});

test('a missing checkpoint is an error', async () => {
  await assert.rejects(one.it.getCheckpoint('v9'));
  await assert.rejects(async () => {
    const messages = await collect(await one.it.restoreCheckpoint('v9'));
    if (messages.at(-1).type === 'error') throw new Error(messages.at(-1).error);
  }, /not found/i);
});
