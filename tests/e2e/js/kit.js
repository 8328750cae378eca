// The official client, connected to the server that `with_server.py` started, and sprites for the tests.
import { after, before } from 'node:test';
import { SpritesClient } from '@fly/sprites';

const { SPRITES_API_URL: baseURL, SPRITE_TOKEN: token } = process.env;
if (!baseURL || !token) throw new Error('run me with tests/e2e/with_server.py');

export { baseURL, token };
export const client = new SpritesClient(token, { baseURL });

/** A sprite for all tests of a file; `sprite.it` is there when they run. */
export function sprite(name) {
  const holder = {};
  before(async () => {
    holder.it = await client.createSprite(name, { labels: ['js'] });
  });
  after(() => client.deleteSprite(name));
  return holder;
}

/** Waits until the condition holds. */
export async function eventually(what, condition, milliseconds = 30_000) {
  const deadline = Date.now() + milliseconds;
  while (!(await condition())) {
    if (Date.now() > deadline) throw new Error(`not within ${milliseconds} ms: ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
}

/** The messages of a stream. */
export async function collect(stream) {
  const messages = [];
  for await (const message of stream) messages.push(message);
  return messages;
}
