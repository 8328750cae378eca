// Files with the official JavaScript client.
import assert from 'node:assert/strict';
import { randomBytes } from 'node:crypto';
import { test } from 'node:test';
import { sprite } from './kit.js';

const one = sprite('js-files');
const home = () => one.it.filesystem('/home/sprite');
const hasCode = (code) => (error) => { assert.equal(error.code, code); return true; };

test('text, bytes and JSON come back', async () => {
  const data = randomBytes(2 << 20);
  await home().writeFile('deep/er/bytes', data);
  assert.deepEqual(await home().readFile('deep/er/bytes'), data);
  await home().writeFile('text', 'grün\n', { mode: 0o600 });
  assert.equal(await home().readFile('text', 'utf8'), 'grün\n');
  await home().appendFile('text', 'more');
  assert.equal(await home().readFile('text', 'utf8'), 'grün\nmore');
  await home().writeJSON('json', { a: [1, null] });
  assert.deepEqual(await home().readJSON('json'), { a: [1, null] });
});

test('what a path is', async () => {
  await home().writeFile('stat', '12345', { mode: 0o640 });
  const stats = await home().stat('stat');
  assert.equal(stats.size, 5);
  assert.equal(stats.mode, 0o640);
  assert.ok(stats.isFile() && !stats.isDirectory());
  assert.equal(await home().exists('stat'), true);
  assert.equal(await home().exists('missing'), false);
});

test('directories are made, listed and removed', async () => {
  await home().mkdir('made');
  await home().mkdir('a/b/c', { recursive: true });
  await home().writeFile('made/one', '');
  await home().writeFile('made/two', '');
  assert.deepEqual((await home().readdir('made')).sort(), ['one', 'two']);
  const entries = await home().readdir('a', { withFileTypes: true });
  assert.ok(entries[0].name === 'b' && entries[0].isDirectory());
  await home().rm('made', { recursive: true });
  await home().rm('made', { recursive: true, force: true });
  await assert.rejects(home().readdir('made'), hasCode('ENOENT'));
});

test('errors have codes', async () => {
  await home().mkdir('full');
  await home().writeFile('full/file', 'x');
  await assert.rejects(home().readFile('missing'), hasCode('ENOENT'));
  await assert.rejects(home().readFile('full'), hasCode('EISDIR'));
  await assert.rejects(home().rm('full'), hasCode('ENOTEMPTY'));
  await assert.rejects(home().rm('missing'), hasCode('ENOENT'));
  await assert.rejects(home().writeFile('full/file/below', 'x'), hasCode('ENOTDIR'));
});

test('files get other names, copies, modes and owners', async () => {
  await home().mkdir('own');
  await home().writeFile('own/file', 'x', { mode: 0o640 });
  await home().rename('own/file', 'own/moved');
  await home().copyFile('own', 'twin', { recursive: true });
  assert.equal(await home().readFile('twin/moved', 'utf8'), 'x');
  await home().chmod('twin', 0o700, { recursive: true });
  assert.equal((await home().stat('twin/moved')).mode, 0o700);
  await home().chown('twin/moved', { uid: 'root', gid: 0, asRoot: true });
  await assert.rejects(home().chown('own/moved', { uid: 0 }), hasCode('EPERM'));
  await assert.rejects(home().rename('missing', 'x'), hasCode('ENOENT'));
  await assert.rejects(home().copyFile('own', 'flat'), hasCode('EISDIR'));
});

test('files are watched', { timeout: 30_000 }, async () => {
  await one.it.execFile('mkdir', ['-p', '/home/sprite/watched']);
  const watcher = await one.it.filesystem('/home/sprite').watch(['watched'], { recursive: true });
  assert.deepEqual(await watcher.next(), { type: 'subscribed', paths: ['/home/sprite/watched'] });
  await one.it.execFile('sh', ['-c', 'mkdir watched/sub; echo hi > watched/sub/file']);
  for await (const event of watcher) {
    assert.equal(event.type, 'event');
    if (event.path === '/home/sprite/watched/sub/file') break;
  }
});
