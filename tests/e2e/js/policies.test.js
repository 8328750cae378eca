// Policies with the official JavaScript client.
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { sprite } from './kit.js';

const one = sprite('js-policies');

test('the network policy', async () => {
  assert.deepEqual(await one.it.getNetworkPolicy(), { rules: [] });
  const policy = { rules: [{ domain: '*.example.com', action: 'allow' }, { include: 'defaults' }] };
  await one.it.updateNetworkPolicy(policy);
  assert.deepEqual(await one.it.getNetworkPolicy(), policy);
  await assert.rejects(one.it.updateNetworkPolicy({ rules: [{ domain: 'a b', action: 'allow' }] }), /Invalid policy/);
  await assert.rejects(one.it.execFile('curl', ['-sS', 'http://192.0.2.1/']), (error) => error.result.exitCode === 7);
  await one.it.updateNetworkPolicy({ rules: [] });
});

test('the privileges policy', async () => {
  const none = { profile: '', devices: [], noNewPrivileges: false };
  assert.deepEqual(await one.it.getPrivilegesPolicy(), none);
  const policy = { profile: 'minimal', devices: ['null'], noNewPrivileges: true };
  await one.it.updatePrivilegesPolicy(policy);
  assert.deepEqual(await one.it.getPrivilegesPolicy(), policy);
  await assert.rejects(one.it.execFile('sudo', ['true']), (error) => error.result.exitCode === 1);
  await assert.rejects(one.it.updatePrivilegesPolicy({ profile: 'privileged' }), /share its kernel/);
  await one.it.deletePrivilegesPolicy();
  assert.deepEqual(await one.it.getPrivilegesPolicy(), none);
  await one.it.execFile('sudo', ['true']);
});

test('the resources policy', async () => {
  assert.deepEqual(await one.it.getResourcesPolicy(), { memory: undefined });
  await one.it.updateResourcesPolicy({ memory: { limitMB: 256, autoscale: false } });
  assert.deepEqual(await one.it.getResourcesPolicy(), { memory: { limitMB: 256, autoscale: false } });
  await one.it.deleteResourcesPolicy();
  assert.deepEqual(await one.it.getResourcesPolicy(), { memory: undefined });
});
