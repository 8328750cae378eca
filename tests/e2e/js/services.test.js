// Services with the official JavaScript client.
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { collect, eventually, sprite } from './kit.js';

const one = sprite('js-services');
const types = (events) => events.map((event) => event.type);

test('a service from its definition to its end', async () => {
  const config = { cmd: 'sh', args: ['-c', 'echo hi; exec sleep 1000'], env: { A: 'b' }, dir: '/tmp', httpPort: 8080 };
  const events = await collect(await one.it.createService('web', config, '1s'));
  assert.deepEqual(types(events), ['started', 'stdout', 'complete']);
  assert.equal(events[2].logFiles.combined, '/.sprite/logs/services/web.log');
  const [listed] = await one.it.listServices();
  assert.deepEqual([listed.name, listed.httpPort, listed.env, listed.needs], ['web', 8080, { A: 'b' }, []]);
  assert.equal((await one.it.getService('web')).state.status, 'running');
  assert.deepEqual(types(await collect(await one.it.restartService('web', '1s'))).slice(0, 3), ['stopping', 'stopped', 'started']);
  const told = await collect(await one.it.getServiceLogs('web', { lines: 1, duration: '0s' }));
  assert.deepEqual(told.map((event) => event.data), ['hi\n', undefined]);
  await one.it.signalService('web', 'SIGKILL');
  await eventually('another start', async () => (await one.it.getService('web')).state.restartCount === 1);
  assert.deepEqual(types(await collect(await one.it.stopService('web', '5s'))).slice(-1), ['complete']);
  await assert.rejects(one.it.stopService('web'));
  await one.it.deleteService('web');
  await assert.rejects(one.it.getService('web'), /not found/);
});
