// Ports with the official JavaScript client.
import assert from 'node:assert/strict';
import { once } from 'node:events';
import { connect } from 'node:net';
import { test } from 'node:test';
import { sprite } from './kit.js';

const one = sprite('js-ports');

test('ports are watched', async () => {
  const watcher = await one.it.watchPorts();
  assert.deepEqual(await watcher.next(), { type: 'port_list', ports: [] });
  const service = one.it.spawn('python3', ['-m', 'http.server', '7001', '--bind', '127.0.0.1']);
  const opened = await watcher.next();
  assert.deepEqual([opened.type, opened.port, opened.address], ['port_opened', 7001, '127.0.0.1']);
  assert.ok(opened.pid > 0);
  service.kill('SIGKILL');
  const closed = await watcher.next();
  assert.deepEqual([closed.type, closed.port], ['port_closed', 7001]);
  watcher.close();
  assert.equal(await watcher.next(), null);
});

test('a port of this host leads into the sprite', async () => {
  const service = one.it.spawn('python3', ['-m', 'http.server', '7002', '--bind', '127.0.0.1', '--directory', '/etc']);
  const watcher = await one.it.watchPorts();
  for (let known = (await watcher.next()).ports; !known.some((port) => port.port === 7002); known = [await watcher.next()]);
  watcher.close();
  const proxy = await one.it.proxyPort(0, 7002);
  const [, port] = proxy.localAddr().split(':');
  const here = `http://localhost:${port}/hostname`;
  const texts = await Promise.all(Array.from({ length: 10 }, async () => (await fetch(here)).text()));
  assert.deepEqual(new Set(texts), new Set(['js-ports\n']));
  proxy.close();
  service.kill('SIGKILL');
  await once(service, 'exit');
});

test('nothing behind the port ends the connection', async () => {
  const proxy = await one.it.proxyPort(0, 7003);
  const [, port] = proxy.localAddr().split(':');
  const socket = connect(Number(port), 'localhost');
  await once(socket, 'close');
  proxy.close();
});
