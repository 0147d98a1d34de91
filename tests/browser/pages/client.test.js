import assert from "node:assert/strict";
import { after, before, describe, test } from "node:test";

import { Broker, openBrowser, openPage, until } from "./support.js";

let broker, browser;
before(async () => {
  broker = await new Broker().start();
  browser = await openBrowser();
});
after(async () => {
  await browser?.close();
  await broker?.remove();
});

const open = async () => openPage(await browser.newContext(), broker.url);

// Beside each other, since they wait much: each has channels of its own.
describe("the client", { concurrency: 3 }, () => {
  test("the token is renewed when the broker says so, on the same connection", async () => {
    // The word comes half-way through the life of a token that is good for 12 s, and it takes a process to make one.
    const page = await open();
    await page.exposeFunction("shortToken", () => broker.token("--tenant", "acme", "--user", "alice", "--ttl", "12s"));
    const [asked, ids] = await page.evaluate(async () => {
      let asked = 0;
      const ids = new Set();
      const client = await open({ token: () => (asked++, shortToken()) });
      client.addEventListener("status", ({ detail }) => ids.add(detail.connectionId));
      ids.add(client.status.connectionId);
      while (asked < 3) await new Promise((resolve) => setTimeout(resolve, 50));
      return [asked, ids.size];
    });
    assert.ok(asked >= 3);
    assert.equal(ids, 1);
    await page.context().close();
  });

  test("a slow reader keeps few events, pauses, and misses none", async () => {
    const page = await open();
    const { positions, paused } = await page.evaluate(async () => {
      const client = await open();
      const sub = client.subscribe("slow.>", { buffer: 5 });
      let paused = 0;
      sub.addEventListener("state", ({ detail }) => (paused += detail === "paused"));
      while (sub.state !== "live") await new Promise((resolve) => sub.addEventListener("state", resolve, { once: true }));
      const reading = (async () => {
        const positions = [];
        for await (const { position, event } of sub) {
          positions.push(event);
          if (positions.length === 200) return positions;
          if (positions.length < 20) await new Promise((resolve) => setTimeout(resolve, 50));
        }
      })();
      const writer = await open({ token: () => token("acme", "writer"), queue: 1000 });
      await Promise.all(Array.from({ length: 200 }, (_, i) => writer.publish("slow.a", i)));
      return { positions: await reading, paused };
    });
    assert.deepEqual(positions, [...Array(200).keys()]);
    assert.ok(paused > 0);
    await page.context().close();
  });

  test("many tabs have one connection, and when its tab goes another one takes over without a loss", async () => {
    const context = await browser.newContext();
    const pages = await Promise.all(Array.from({ length: 4 }, () => openPage(context, broker.url)));
    for (const page of pages)
      await page.evaluate(async () => {
        window.taken = [];
        window.client = await open({ tabs: "alice" });
        window.sub = client.subscribe("tabs.>", { last: 5 }, (item) => taken.push(item.event));
        while (sub.state !== "live") await new Promise((resolve) => sub.addEventListener("state", resolve, { once: true }));
      });
    const transports = () => Promise.all(pages.map((page) => page.evaluate(() => client.status.transport)));
    assert.deepEqual((await transports()).sort(), ["tabs", "tabs", "tabs", "websocket"]);
    const publish = (page, from, to) =>
      page.evaluate(async ([from, to]) => {
        for (let n = from; n < to; n++) await client.publish("tabs.a", n);
      }, [from, to]);
    const arrived = (count) =>
      until(async () => {
        const taken = await Promise.all(pages.map((page) => page.evaluate(() => taken.length)));
        return taken.every((each) => each >= count);
      }, `${count} events have arrived in each tab`);
    await publish(pages[3], 0, 30); // by the connection of another tab
    await arrived(30);
    const leader = (await transports()).indexOf("websocket");
    const [closed] = pages.splice(leader, 1);
    await closed.close();
    const publishing = publish(pages[1], 30, 60);
    await publishing;
    await arrived(60);
    for (const page of pages) assert.deepEqual(await page.evaluate(() => taken), [...Array(60).keys()]);
    assert.deepEqual((await transports()).sort(), ["tabs", "tabs", "websocket"]);
    assert.deepEqual(pages.flatMap((page) => page.faults), []);
    await context.close();
  });

  test("two subscriptions of one name, with starts of their own, each get theirs once", async () => {
    const page = await open();
    const found = await page.evaluate(async () => {
      const client = await open();
      const live = (sub) => new Promise((resolve) => (sub.state === "live" ? resolve() : sub.addEventListener("state", ({ detail }) => detail === "live" && resolve())));
      for (let n = 0; n < 5; n++) await client.publish("same.a", n);
      const taken = [[], [], []];
      const subs = [
        client.subscribe("same.>", ({ event }) => taken[0].push(event)),
        client.subscribe("same.>", { last: 2 }, ({ event }) => taken[1].push(event)),
        client.subscribe("same.>", { snapshot: true }, ({ event }) => taken[2].push(event)),
      ];
      const publishing = (async () => {
        for (let n = 5; n < 30; n++) await client.publish("same.a", n);
      })();
      await Promise.all([publishing, ...subs.map(live)]);
      while (taken.some((each) => each.at(-1) !== 29)) await new Promise((resolve) => setTimeout(resolve, 20));
      return taken;
    });
    for (const taken of found) assert.deepEqual(taken, Array.from({ length: taken.length }, (_, i) => taken[0] + i));
    await page.context().close();
  });

  test("a store follows a snapshot and what comes, also what others change and remove", async () => {
    const page = await open();
    const found = await page.evaluate(async () => {
      const client = await open();
      await client.publish("state.a", { n: 1 });
      await client.publish("state.b", { n: 2 });
      await client.publish("state.gone", { n: 3 });
      // A confirmed event is stored, and may not have been delivered yet: a snapshot is as of what was.
      const removed = new Promise((resolve) => client.subscribe("state.gone", { last: 2 }, ({ event }) => event === null && resolve()));
      await client.publish("state.gone", null);
      await removed;
      const store = new Store(client, "state.>");
      await new Promise((resolve) => store.addEventListener("ready", resolve));
      const first = Object.fromEntries(store.value);
      const put = store.put("state.c", { n: 4 });
      const shown = [store.get("state.c").n, store.pending("state.c")];
      await put;
      await store.remove("state.a");
      while (store.get("state.a") || store.pending("state.c")) await new Promise((resolve) => setTimeout(resolve, 10));
      const refused = await store.put("users.bob.x", 1).catch(({ code }) => code);
      return { first, shown, then: Object.fromEntries(store.value), refused };
    });
    assert.deepEqual(found, {
      first: { "state.a": { n: 1 }, "state.b": { n: 2 } },
      shown: [4, true],
      then: { "state.b": { n: 2 }, "state.c": { n: 4 } },
      refused: "forbidden",
    });
    await page.context().close();
  });

  for (const transport of ["websocket", "sse", "poll"])
    test(`acknowledgements are kept for the user, over ${transport}`, async () => {
      const page = await open();
      const found = await page.evaluate(async (transport) => {
        const jobs = `jobs.${transport}.>`;
        const live = async (sub) => {
          while (sub.state !== "live") await new Promise((resolve) => sub.addEventListener("state", resolve, { once: true }));
        };
        const read = async (sub, count) => {
          const items = [];
          for await (const item of sub) if (items.push(item) === count) return items;
        };
        const client = await open({ transports: [transport] });
        const sub = client.subscribe(jobs, { durable: transport });
        await live(sub);
        const taken = [];
        sub.addEventListener("event", ({ detail }) => taken.push(detail));
        for (const from of [0, 10]) {
          for (let n = from; n < from + 10; n++) await client.publish(`jobs.${transport}.a`, n);
          while (taken.length < from + 10) await new Promise((resolve) => sub.addEventListener("event", resolve, { once: true }));
          client.disconnect(); // it comes back by its name, and what it has seen does not come again
          client.connect();
          await live(sub);
        }
        // All at once, in any order: the highest stands.
        const answers = await Promise.all([4, 2, 9, 17].map((n) => sub.acknowledge(taken[n])));
        sub.close();
        const same = await read(client.subscribe(jobs, { durable: transport }), 2); // the same client once more
        const refused = client.subscribe(jobs, { durable: transport });
        await live(refused);
        const error = await refused.acknowledge("other-1").catch(({ code }) => code);
        client.close();
        const again = await open({ transports: [transport] });
        const other = await read(again.subscribe(jobs, { durable: transport }), 2);
        again.close();
        return { taken: texts(taken), last: answers.at(-1) === taken[17].position, same: texts(same), error, other: texts(other) };
      }, transport);
      assert.deepEqual(found, { taken: [...Array(20).keys()], last: true, same: [18, 19], error: "invalid_position", other: [18, 19] });
      await page.context().close();
    });
});
