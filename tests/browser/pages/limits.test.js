/** Pages that ask for too much, against a broker with its default limits: none is met, whatever the transport. */

import assert from "node:assert/strict";
import { after, before, describe, test } from "node:test";

import { Broker, openBrowser, openPage } from "./support.js";

let broker, browser;
before(async () => {
  const defaults = { MESSAGES_PER_MINUTE: "100", MESSAGES_BURST: "50", CONNECTIONS_PER_USER: "10" };
  broker = await new Broker(Object.fromEntries(Object.entries(defaults).map(([key, value]) => [`BROKER_LIMITS__${key}`, value]))).start();
  browser = await openBrowser();
});
after(async () => {
  await browser?.close();
  await broker?.remove();
});

/** A page that notes the codes with which links are closed, refused or answered. */
const open = async (user) => {
  const page = await openPage(await browser.newContext(), broker.url);
  await page.evaluate((user) => {
    window.met = [];
    const { fetch, WebSocket } = window;
    window.fetch = async (...args) => {
      const answer = await fetch(...args);
      // A poll that is broken off while its list changes ends its session: the next one may be told so, by 503.
      if (answer.status >= 400 && answer.status !== 503) met.push(answer.status);
      return answer;
    };
    window.WebSocket = class extends WebSocket {
      constructor(...args) {
        super(...args);
        this.addEventListener("close", ({ code }) => met.push(code));
        this.addEventListener("message", ({ data }) => {
          const { type, payload } = JSON.parse(data);
          if (type === "error" || payload.refused?.length) met.push(payload.code ?? payload.refused[0].code);
        });
      }
      send(text) {
        sent.push(JSON.parse(text));
        super.send(text);
      }
    };
    window.sent = [];
    window.pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
    window.until = async (condition) => {
      for (let i = 0; i < 3000 && !condition(); i++) await pause(20);
      if (!condition()) throw new Error(`in vain: ${condition}`);
    };
    window.connect = (options) => open({ token: () => token("acme", user), ...options });
    /** Whether all places of the connection are free: nobody has left something behind. */
    window.allFree = async (client) => {
      const subs = Array.from({ length: 128 }, (_, i) => client.subscribe(`free.${i}`));
      await until(() => subs.every(({ state }) => state === "live" || state === "closed"));
      const live = subs.filter(({ state }) => state === "live").length;
      for (const sub of subs) sub.close();
      return live;
    };
  }, user);
  return page;
};

// At once, since they wait for their rates: each is a user of its own, on channels of its own.
describe("limits", { concurrency: true }, () => {
  for (const transport of ["websocket", "sse", "poll"]) {
    test(`300 subscriptions in one turn, over ${transport}: as many as there is room for, in one message`, async () => {
      const page = await open(`many-${transport}`);
      const found = await page.evaluate(async (transport) => {
        const client = await connect({ transports: [transport] });
        sent.length = 0;
        const began = performance.now();
        const subs = Array.from({ length: 300 }, (_, i) => client.subscribe(`many.${i}`));
        const codes = [];
        for (const sub of subs) sub.addEventListener("error", ({ detail }) => codes.push(detail.code));
        await until(() => subs.slice(0, 128).every(({ state }) => state === "live"));
        const live = performance.now() - began;
        await until(() => codes.length === 172);
        const asked = sent.length;
        for (const sub of subs) sub.close();
        const free = await allFree(client);
        client.close();
        return { codes: [...new Set(codes)], asked, free, live, met };
      }, transport);
      console.log(`300 subscriptions over ${transport}: 128 of them live after ${Math.round(found.live)} ms`);
      delete found.live;
      assert.deepEqual(found, { codes: ["limit_subscriptions"], asked: transport === "websocket" ? 1 : 0, free: 128, met: [] });
      await page.context().close();
    });

    test(`a list that is scrolled far and fast, over ${transport}: what is shown is live`, async () => {
      const page = await open(`list-${transport}`);
      const found = await page.evaluate(async (transport) => {
        const client = await connect({ transports: [transport] });
        const rows = new Map();
        const faults = [];
        let frames = 0;
        for (let top = 0; top < 4000; top += 23) {
          for (const [row, sub] of [...rows]) if (row < top || row >= top + 40) rows.delete(row), sub.close();
          for (let row = top; row < top + 40; row++) {
            if (rows.has(row)) continue;
            const sub = client.subscribe(`list.${row}`, ({ channel }) => rows.get(row) === sub || faults.push(channel));
            rows.set(row, sub);
            sub.addEventListener("error", ({ detail }) => faults.push(detail.code));
          }
          frames++;
          await pause(16);
        }
        await until(() => [...rows.values()].every(({ state }) => state === "live"));
        for (const sub of rows.values()) sub.close();
        const free = await allFree(client);
        client.close();
        return { frames, free, faults, met };
      }, transport);
      assert.deepEqual(found, { frames: 174, free: 128, faults: [], met: [] });
      await page.context().close();
    });
  }

  test("a row for each of 100 that begins with its last events, and a hundred publishes at once", async () => {
    const page = await open("starts");
    const found = await page.evaluate(async () => {
      const client = await connect();
      const subs = Array.from({ length: 100 }, (_, i) => client.subscribe(`starts.${i}`, { last: 1 }));
      await until(() => subs.every(({ state }) => state === "live"));
      const done = Array.from({ length: 60 }, (_, i) => client.publish(`starts.${i}`, i));
      await Promise.all(done);
      client.close();
      return met;
    });
    assert.deepEqual(found, []);
    await page.context().close();
  });

  test("half an emoji, a thousand times: each is rejected, and the others go through", async () => {
    const page = await open("torn");
    const found = await page.evaluate(async () => {
      const client = await connect();
      const torn = "😀".slice(0, 1);
      const names = new Set();
      for (let i = 0; i < 1000; i++) await client.publish("torn.a", { text: [torn, i] }).catch(({ name }) => names.add(name));
      await client.publish(`torn.${torn}`, 1).catch(({ code }) => names.add(code));
      const ended = new Promise((resolve) => client.subscribe(`torn.${torn}`).addEventListener("end", ({ detail }) => resolve(detail.code)));
      names.add(await ended);
      const { position } = await client.publish("torn.a", "😀");
      const { state } = client.status;
      client.close();
      return { names: [...names], position: !!position, state, met };
    });
    assert.deepEqual(found, { names: ["TypeError", "invalid_channel"], position: true, state: "open", met: [] });
    await page.context().close();
  });
});
