/** A pace, by the cases that Python is held to as well: tests/client/windows.json; and how it is asked for. */

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { afterEach, beforeEach, describe, test } from "node:test";

import { Windows, finest } from "../../../broker/web/static/client/windows.js";
import { World, positions, record, settle } from "./fakes.js";

const { cases, finest: unions } = JSON.parse(readFileSync(new URL("../../client/windows.json", import.meta.url), "utf8"));

describe("what is handed over, and when", () => {
  for (const { about, every, arrive, given } of cases)
    test(about, () => {
      const windows = new Windows(every);
      const found = [];
      const until = (at) => {
        while (windows.next <= at) {
          const end = windows.next;
          for (const { position } of windows.due(end)) found.push([end, position ?? null]);
        }
      };
      for (const [at, channel, position] of arrive) {
        until(at);
        const item = { type: "event", channel, event: at, position: position ?? undefined };
        if (windows.take(item, at)) found.push([at, position]);
      }
      until(1e9);
      assert.deepEqual(found, given);
      assert.equal(windows.next, Infinity);
    });
});

describe("what is asked for", () => {
  for (const { about, wanted, asked } of unions)
    test(about, () => {
      const records = wanted.map(([filter, every]) => ({ filter: filter ? { text: JSON.stringify(filter) } : undefined, every: every ?? undefined }));
      assert.equal(finest(records) ?? null, asked);
    });
});

test("beyond what is held, events come at once", () => {
  const windows = new Windows(1000);
  const take = (i, at) => windows.take({ type: "event", channel: `c${i}`, event: at, position: `x-${at}` }, at);
  for (let i = 0; i < 1_000; i++) assert.ok(take(i, 1));
  assert.deepEqual([take(1_000, 2), take(1_000, 3), take(0, 4)], [true, true, false]);
});

describe("subscriptions with a pace", () => {
  let world;
  beforeEach(() => (world = new World()));
  afterEach(() => world.end());

  const limits = { paced_channels: 1000, filters_per_connection: 4 };
  const asked = () => world.socket.sent.filter(({ type }) => type === "subscribe").map(({ payload }) => payload);
  const event = (channel, position, more = {}) =>
    world.socket.say("event", { channel, position, event: 1, ...more });
  const paced = (channel, position, more = {}) => event(channel, position, { paced: true, ...more });

  test("it is asked for, also after a cut; what is paced moves no position, and what has come does not come again", async () => {
    const client = await world.connected({ limits });
    const items = record(client.subscribe("a.>", { everyMs: 1000 }));
    await settle();
    assert.deepEqual(asked(), [{ channel: ["a.>"], every_ms: 1000 }]);
    world.socket.subscribed("x-1");
    paced("a.b", "x-5");
    paced("a.c", "x-3");
    assert.deepEqual(positions(items), ["x-5", "x-3"]);
    world.socket.say("pong", { position: "x-4" });
    world.socket.cut();
    await world.again();
    world.socket.welcome({ limits });
    await settle();
    assert.deepEqual(asked(), [{ channel: ["a.>"], position: "x-4", every_ms: 1000 }]);
    world.socket.subscribed("x-4");
    paced("a.c", "x-3");
    paced("a.b", "x-5");
    paced("a.d", "x-2");
    assert.deepEqual(positions(items), ["x-5", "x-3", "x-2"]);
  });

  test("two of one channel: the finer is asked for, and each has its own", async () => {
    const client = await world.connected({ limits });
    const slow = record(client.subscribe("a", { everyMs: 1000 }));
    const quick = record(client.subscribe("a", { everyMs: 200 }));
    await settle();
    assert.deepEqual(asked(), [{ channel: ["a"], every_ms: 200 }]);
    world.socket.subscribed("x-1");
    for (const i of [2, 3, 4, 5, 6, 7]) {
      paced("a", `x-${i}`);
      await world.clock.go(200);
    }
    assert.deepEqual(positions(quick), ["x-2", "x-3", "x-4", "x-5", "x-6", "x-7"]);
    assert.deepEqual(positions(slow), ["x-2", "x-6"]);
    await world.clock.go(1000);
    assert.deepEqual(positions(slow), ["x-2", "x-6", "x-7"]);
  });

  test("who wants all shares a channel with who has a pace: nothing is lost to either", async () => {
    const client = await world.connected({ limits });
    const slow = record(client.subscribe("a", { everyMs: 1000 }));
    await settle();
    world.socket.subscribed("x-1");
    paced("a", "x-2");
    const all = record(client.subscribe("a"));
    await settle();
    assert.deepEqual(asked().slice(1), [{ channel: ["a"], position: "x-1" }]);
    paced("a", "x-3"); // what had been held for it
    world.socket.subscribed("x-3");
    for (const i of [4, 5]) event("a", `x-${i}`);
    assert.deepEqual(positions(all), ["x-4", "x-5"]);
    await world.clock.go(1000);
    assert.deepEqual(positions(slow), ["x-2", "x-5"]);
    assert.equal(client.position, "x-5");
  });

  test("where patterns overlap, what is paced is for who has a pace", async () => {
    const client = await world.connected({ limits });
    const slow = record(client.subscribe("a.>", { everyMs: 1000 }));
    await settle();
    world.socket.subscribed("x-1");
    const all = record(client.subscribe("a.b"));
    await settle();
    world.socket.subscribed("x-1");
    paced("a.c", "x-4");
    paced("a.b", "x-2");
    event("a.b", "x-3");
    assert.deepEqual([positions(all), client.position], [["x-3"], "x-3"]);
    await world.clock.go(1000);
    assert.deepEqual(positions(slow), ["x-4", "x-2", "x-3"]);
  });

  test("with filters that differ, or a broker that has no pace, all is asked for and paced here", async () => {
    const client = await world.connected({ limits });
    client.subscribe("a", { everyMs: 1000, filter: { "/n": 1 } });
    client.subscribe("a", { everyMs: 1000 });
    client.subscribe("b", { everyMs: 1000, filter: { "/n": 1 } });
    await settle();
    assert.deepEqual(asked(), [{ channel: ["a"] }, { channel: ["b"], filter: { "/n": 1 }, every_ms: 1000 }]);
    world.socket.cut();
    await world.again();
    world.socket.welcome();
    await settle();
    assert.ok(asked().length && asked().every((each) => !("every_ms" in each)));
  });

  test("what is held is dropped with its subscription, and a snapshot begins anew", async () => {
    const client = await world.connected({ limits });
    const sub = client.subscribe("a", { snapshot: true, everyMs: 1000 });
    const items = record(sub);
    await settle();
    assert.deepEqual(asked(), [{ channel: ["a"], snapshot: true, every_ms: 1000 }]);
    world.socket.subscribed("x-1");
    paced("a", "x-2");
    sub.restart();
    await settle();
    world.socket.subscribed("x-2");
    paced("a", "x-2");
    paced("a", "x-3");
    sub.close();
    await world.clock.go(2000);
    assert.deepEqual(positions(items), ["x-2", "x-2"]);
  });

  test("a pace that is none", async () => {
    const client = await world.connected({ limits });
    for (const everyMs of [99, 60_001, 1.5, "1000", true, -100, NaN, null]) {
      const ended = new Promise((resolve) => client.subscribe("a", { everyMs }).addEventListener("end", ({ detail }) => resolve(detail)));
      const error = await ended;
      assert.equal(error.code, "bad_message");
      assert.match(error.message, /everyMs/);
    }
    assert.deepEqual(asked(), []);
  });
});
