import assert from "node:assert/strict";
import { after, before, test } from "node:test";

import { Broker, openBrowser, openPage } from "./support.js";

let broker, browser;
before(async () => {
  broker = await new Broker().start();
  browser = await openBrowser();
});
after(async () => {
  await browser?.close();
  await broker?.remove();
});

/** Reads back to the beginning in the page, then joins; what was found, and what came. */
const walk = (page, channel) =>
  page.evaluate(async (channel) => {
    const newest = await client.history([channel, "me.>"], { limit: 3 });
    const pages = [newest];
    while (pages.at(-1).more) pages.push(await pages.at(-1).older());
    const after = await pages.at(-1).newer();
    const sub = client.subscribe(channel, { position: newest.last });
    const joining = sub[Symbol.asyncIterator]().next(); // nothing is kept for who begins later
    await client.publish(channel, "joined");
    const { value: joined } = await joining;
    sub.close();
    const { events: filtered } = await client.history(channel, { filter: { "": { gt: 4 } } });
    const { code } = await client.history("users.somebody.a").catch((error) => error);
    return {
      found: pages.map(({ events }) => events.map(({ event }) => event)),
      channels: newest.channels,
      times: newest.events.every(({ storedAt }) => Date.parse(storedAt) > 0),
      first: after.events[0]?.event,
      joined: joined.event,
      filtered: filtered.map(({ event }) => event),
      code,
    };
  }, channel);

test("over each transport, and by the leading tab", async () => {
  const context = await browser.newContext();
  const leader = await openPage(context, broker.url);
  const page = await openPage(context, broker.url);
  await leader.evaluate(async () => {
    window.client = await open({ tabs: "shared" });
  });
  for (const options of [{ transports: ["websocket"] }, { transports: ["sse"] }, { transports: ["poll"] }, { tabs: "shared" }]) {
    const channel = `past.${options.tabs ?? options.transports[0]}`;
    await page.evaluate(
      async ([options, channel]) => {
        window.client = await open(options);
        let last;
        for (let n = 0; n < 7; n++) last = await client.publish(channel, n);
        await client.history(channel, { after: last.position }); // what is stored, the broker may yet have to read
      },
      [options, channel],
    );
    const { channels, found, ...rest } = await walk(page, channel);
    assert.equal(channels[0], channel);
    assert.deepEqual(found.flat().sort(), [0, 1, 2, 3, 4, 5, 6], channel);
    assert.deepEqual(found.slice(0, 2), [[4, 5, 6], [1, 2, 3]]);
    assert.deepEqual(rest, { times: true, first: 1, joined: "joined", filtered: [5, 6], code: "forbidden" }, channel);
    await page.evaluate(() => client.close());
  }
  assert.deepEqual(page.faults, []);
  await context.close();
});
