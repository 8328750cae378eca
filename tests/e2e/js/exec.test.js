// Commands and sessions with the official JavaScript client.
import assert from 'node:assert/strict';
import { createHash, randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { test } from 'node:test';
import { ExecError } from '@fly/sprites';
import { collect, eventually, sprite } from './kit.js';

const one = sprite('js-exec');

const text = async (command) => {
  const chunks = [];
  command.stdout.on('data', (chunk) => chunks.push(chunk));
  await once(command, 'exit');
  return Buffer.concat(chunks).toString();
};

test('output, errors and exit codes', async () => {
  const done = await one.it.execFile('sh', ['-c', 'echo out; echo err >&2']);
  assert.deepEqual(done, { stdout: 'out\n', stderr: 'err\n', exitCode: 0 });
  await assert.rejects(one.it.execFile('sh', ['-c', 'echo why >&2; exit 7']), (error) => {
    assert.ok(error instanceof ExecError);
    assert.equal(error.result.exitCode, 7);
    assert.equal(error.result.stderr, 'why\n');
    return true;
  });
  await assert.rejects(one.it.exec('no-such-command'), (error) => error.result.exitCode === 127);
});

test('environment, directory and binary output', async () => {
  const done = await one.it.execFile('sh', ['-c', 'echo "$ONE"; pwd; command -v git'], { env: { ONE: 'a b=c' }, cwd: '/tmp' });
  assert.equal(done.stdout, 'a b=c\n/tmp\n/usr/bin/git\n');
  const bytes = await one.it.execFile('sh', ['-c', "printf '\\000\\377'"], { encoding: 'buffer' });
  assert.deepEqual([...bytes.stdout], [0, 255]);
});

test('standard input arrives whole', async () => {
  const data = randomBytes(4 << 20);
  const command = one.it.spawn('sha256sum');
  const said = text(command);
  await once(command, 'spawn');
  command.stdin.end(data);
  assert.equal((await said).split(' ')[0], createHash('sha256').update(data).digest('hex'));
});

test('quick commands one after the other lose nothing', async () => {
  for (let number = 0; number < 30; number += 1) {
    assert.equal((await one.it.exec(`echo ${number}`)).stdout, `${number}\n`);
  }
});

test('many commands at once', async () => {
  const done = await Promise.all([...Array(30).keys()].map((n) => one.it.execFile('sh', ['-c', `sleep 0.2; echo ${n}`])));
  assert.deepEqual(done.map((result) => result.stdout), [...Array(30).keys()].map((n) => `${n}\n`));
});

test('signals reach the command', async () => {
  const command = one.it.spawn('bash', ['-c', "trap 'exit 4' TERM; echo ready; while :; do sleep 0.05; done"]);
  await once(command.stdout, 'data');
  command.kill('SIGTERM');
  assert.equal((await once(command, 'exit'))[0], 4);
});

test('a terminal has its size, resizes and tells success from failure', async () => {
  const terminal = one.it.spawn('bash', ['--norc'], { tty: true, rows: 24, cols: 80 });
  let screen = '';
  terminal.stdout.on('data', (chunk) => { screen += chunk; });
  await once(terminal, 'spawn');
  terminal.stdin.write('stty size\n');
  await eventually('the first size', () => screen.includes('24 80\r\n'));
  terminal.resize(132, 50);
  terminal.stdin.write("while [ \"$(stty size)\" != '50 132' ]; do :; done; echo resi''zed\n");
  await eventually('the second size', () => screen.includes('resized\r\n'));
  terminal.stdin.write('exit 0\n');
  assert.equal((await once(terminal, 'exit'))[0], 0);
  const failing = one.it.spawn('sh', ['-c', 'exit 3'], { tty: true });
  assert.notEqual((await once(failing, 'exit'))[0], 0);
});

test('sessions are listed, attached and killed', async () => {
  const owner = one.it.createSession('bash', ['--norc']);
  let id;
  owner.on('message', (message) => { if (message.type === 'session_info') id = message.session_id; });
  await once(owner, 'spawn');
  await eventually('the session info', () => id);
  owner.stdin.write("echo mar''ker\n");
  const listed = (await one.it.listSessions()).find((session) => session.id === id);
  assert.ok(listed.tty && listed.isActive && listed.command.includes('bash'));
  const second = one.it.attachSession(id);
  let screen = '';
  second.stdout.on('data', (chunk) => { screen += chunk; });
  await once(second, 'spawn');
  second.stdin.write("echo sec''ond\n");
  await eventually('the second client sees output', () => screen.includes('second'));
  const ended = once(second, 'exit');
  const events = await collect(await one.it.killSession(id, 'SIGKILL', '5s'));
  assert.equal(events.at(-1).type, 'complete');
  await ended;
  await eventually('the session is gone', async () => !(await one.it.listSessions()).some((session) => session.id === id));
});

test('commands over plain HTTP', async () => {
  const done = await one.it.execFileHTTP('sh', ['-c', 'cat; echo err >&2'], { input: 'through\n', env: { A: '1' }, cwd: '/tmp' });
  assert.deepEqual([done.stdout, done.stderr, done.exitCode], ['through\n', 'err\n', 0]);
  await assert.rejects(one.it.execFileHTTP('sh', ['-c', 'exit 9']), (error) => error.result.exitCode === 9);
  const much = await one.it.execFileHTTP('seq', ['1', '20000']);
  assert.equal(much.stdout.split('\n').length, 20_001);
});

test('a quiet terminal is kept alive', { timeout: 70_000 }, async () => {
  const terminal = one.it.spawn('bash', ['-c', 'sleep 48; exit 0'], { tty: true });
  const failed = once(terminal, 'error').then(([error]) => { throw error; });
  const [code] = await Promise.race([once(terminal, 'exit'), failed]);
  assert.equal(code, 0);
});
