import assert from "node:assert/strict";
import { afterEach, beforeEach, test } from "node:test";

import { Store } from "../../../broker/web/static/client.js";
import { World, settle } from "./fakes.js";

let world;
beforeEach(() => (world = new World()));
afterEach(() => world.end());

const START = [["state.a", "x-1", 1], ["state.b", "x-2", 2]];

/** Plays a snapshot to its end. */
const snapshot = async (events, position = "x-2", mark = 1) => {
  world.socket.subscribed(position, { live: false, catch_up: mark });
  for (const [channel, at, event] of events) world.socket.event(channel, at, event, { catch_up: mark });
  world.socket.say("subscription.live", { channel: ["state.>"], position, catch_up: mark });
  await settle();
};

const opened = async (options, events = START) => {
  const client = await world.connected();
  const store = new Store(client, "state.>", options);
  await settle();
  await snapshot(events);
  return store;
};

const shown = (store) => Object.fromEntries(store.value);
const published = (position, payload) => world.socket.published(position, payload);
const refuse = () => world.socket.say("error", { code: "forbidden", message: "no", retryable: false }, world.socket.last("publish").messageId);

test("asks for a snapshot, is ready when it is whole, and goes on with what comes", async () => {
  const client = await world.connected();
  const store = new Store(client, "state.>");
  await settle();
  assert.deepEqual(world.socket.last("subscribe").payload, { channel: ["state.>"], snapshot: true });
  assert.equal(store.ready, false);
  await snapshot(START);
  assert.equal(store.ready, true);
  world.socket.event("state.c", "x-3", 3);
  world.socket.event("state.a", "x-4", null);
  assert.deepEqual(shown(store), { "state.b": 2, "state.c": 3 });
});

test("tells of changes once for all that came together, and gives another Map each time", async () => {
  const store = await opened();
  let told = 0;
  store.addEventListener("change", () => told++);
  const before = store.value;
  assert.equal(store.value, before);
  world.socket.event("state.a", "x-3", 3);
  world.socket.event("state.b", "x-4", 4);
  await settle();
  assert.equal(told, 1);
  assert.notEqual(store.value, before);
  assert.equal(before.get("state.a"), 1);
});

test("a change is shown at once, and confirmed by its event", async () => {
  const store = await opened();
  const put = store.put("state.a", 10);
  assert.deepEqual([store.get("state.a"), store.pending("state.a")], [10, true]);
  published("x-3");
  assert.equal((await put).position, "x-3");
  assert.equal(store.pending("state.a"), true, "its event has not come yet");
  world.socket.event("state.a", "x-3", 10);
  assert.deepEqual([store.get("state.a"), store.pending("state.a")], [10, false]);
});

test("its event may come before the answer", async () => {
  const store = await opened();
  const put = store.put("state.a", 10);
  world.socket.event("state.a", "x-3", 10);
  published("x-3");
  await put;
  assert.deepEqual([store.get("state.a"), store.pending("state.a")], [10, false]);
});

test("it is confirmed by its position alone: not by what looks like it", async () => {
  const store = await opened();
  const put = store.put("state.a", { id: "e1", n: 10 });
  published("x-4");
  await put;
  world.socket.event("state.a", "x-3", { id: "e1", n: 9 });
  assert.deepEqual([store.get("state.a").n, store.pending("state.a")], [10, true]);
  world.socket.event("state.a", "x-4", { id: "e1", n: 10 });
  assert.deepEqual([store.get("state.a").n, store.pending("state.a")], [10, false]);
});

test("changes of one entity, which bears an id of its own, are publishes of their own", async () => {
  const store = await opened();
  const ids = new Set();
  for (const [n, position] of [[1, "x-3"], [2, "x-4"], [3, "x-5"]]) {
    const put = store.put("state.a", { id: "e1", n });
    ids.add(world.socket.last("publish").payload.id);
    published(position);
    assert.equal((await put).position, position);
    world.socket.event("state.a", position, { id: "e1", n });
  }
  assert.deepEqual([ids.size, ids.has("e1"), store.get("state.a").n], [3, false, 3]);
});

test("a change that the broker takes for an old one is rejected and taken back", async () => {
  const store = await opened();
  const put = store.put("state.a", 10, { id: "mine" });
  assert.equal(world.socket.last("publish").payload.id, "mine");
  published("x-1", { duplicate: true });
  await assert.rejects(put, { code: "duplicate", position: "x-1" });
  assert.deepEqual([store.get("state.a"), store.pending("state.a")], [1, false]);
});

test("what is no JSON is not shown, and what is shown is the change as it was", async () => {
  const store = await opened();
  for (const event of [undefined, NaN, { at: [Infinity] }, () => 1]) await assert.rejects(store.put("state.a", event), TypeError);
  assert.equal(store.get("state.a"), 1);
  const event = { n: 10, at: new Date(0), no: undefined };
  store.put("state.a", event).catch(() => {});
  event.n = 11;
  assert.deepEqual(store.get("state.a"), { n: 10, at: "1970-01-01T00:00:00.000Z" });
});

test("a change whose stream is no more waits for nothing", async () => {
  const store = await opened();
  store.put("state.a", 10).catch(() => {});
  published("x-3");
  await settle();
  world.socket.say("gap", { channel: "state.>", reason: "reset" });
  await settle();
  await snapshot([["state.b", "y-1", 7]], "y-1", 2);
  assert.deepEqual([shown(store), store.pending("state.a")], [{ "state.b": 7 }, false]);
});

test("a live event of somebody else never covers a change that waits, and is what remains if that is refused", async () => {
  const store = await opened();
  const put = store.put("state.a", 10);
  world.socket.event("state.a", "x-3", 99);
  assert.equal(store.get("state.a"), 10);
  refuse();
  await assert.rejects(put, { code: "forbidden" });
  assert.deepEqual([store.get("state.a"), store.pending("state.a")], [99, false]);
});

test("a later event of somebody else wins over a change that was confirmed", async () => {
  const store = await opened();
  store.put("state.a", 10);
  published("x-3");
  await settle();
  world.socket.event("state.a", "x-3", 10);
  world.socket.event("state.a", "x-4", 99);
  assert.equal(store.get("state.a"), 99);
});

test("a change without an answer is taken back after its time", async () => {
  const store = await opened({ timeout: 400 });
  const rejected = assert.rejects(store.put("state.c", 3), { code: "timeout" });
  assert.equal(store.get("state.c"), 3);
  await world.clock.go(400);
  await rejected;
  assert.deepEqual(shown(store), { "state.a": 1, "state.b": 2 });
});

test("several changes of one channel stand on each other, and only the refused one goes", async () => {
  const store = await opened({ reduce: (value = 0, event) => value + event });
  const first = store.put("state.a", 10);
  store.put("state.a", 100).catch(() => {});
  assert.equal(store.get("state.a"), 111);
  refuse();
  await assert.rejects(first);
  assert.equal(store.get("state.a"), 101);
});

test("a removal is a tombstone, shown at once", async () => {
  const store = await opened();
  store.remove("state.a").catch(() => {});
  assert.equal(store.get("state.a"), undefined);
  assert.equal(world.socket.last("publish").payload.event, null);
});

test("a change of a live channel is confirmed by the answer alone", async () => {
  const client = await world.connected();
  const store = new Store(client, "live.>");
  await settle();
  const put = store.put("live.cursor", 1);
  published(undefined);
  await put;
  assert.deepEqual([store.get("live.cursor"), store.pending("live.cursor")], [1, false]);
});

test("`me` is the user's own room", async () => {
  const client = await world.connected();
  const store = new Store(client, "me.>");
  await settle();
  store.put("me.theme", "dark").catch(() => {});
  assert.equal(store.get("me.theme"), "dark");
  assert.equal(store.get("users.alice.theme"), "dark");
});

test("after a gap it takes another snapshot, keeps showing the old one, and drops what has gone", async () => {
  const store = await opened();
  world.socket.say("gap", { channel: "state.>", reason: "trimmed" });
  await settle();
  assert.deepEqual(world.socket.last("subscribe").payload, { channel: ["state.>"], snapshot: true });
  assert.deepEqual(shown(store), { "state.a": 1, "state.b": 2 });
  await snapshot([["state.b", "x-7", 7]], "x-8", 2);
  assert.deepEqual(shown(store), { "state.b": 7 });
});

test("a snapshot that is cut off is gone on with, and nothing is lost of it", async () => {
  const client = await world.connected();
  const store = new Store(client, "state.>");
  await settle();
  world.socket.subscribed("x-2", { live: false, catch_up: 1 });
  world.socket.event("state.a", "x-1", 1, { catch_up: 1 });
  world.socket.cut();
  await world.again();
  world.socket.welcome();
  await settle();
  assert.deepEqual(world.socket.last("subscribe").payload, { channel: ["state.>"], position: "x-1" });
  world.socket.subscribed("x-1");
  world.socket.event("state.b", "x-2", 2);
  assert.deepEqual(shown(store), { "state.a": 1, "state.b": 2 });
});

test("after a cut it stays as it was, and goes on", async () => {
  const store = await opened();
  world.socket.cut();
  await world.again();
  world.socket.welcome();
  await settle();
  assert.deepEqual(world.socket.last("subscribe").payload, { channel: ["state.>"], position: "x-2" });
  world.socket.subscribed("x-2");
  world.socket.event("state.a", "x-3", 3);
  assert.deepEqual(shown(store), { "state.a": 3, "state.b": 2 });
});

test("a change before there is a connection is of `me` all the same", async () => {
  const client = await world.client();
  const store = new Store(client, "me.>", { timeout: 60_000 });
  store.put("me.theme", "dark").catch(() => {});
  assert.equal(store.get("me.theme"), "dark");
  world.socket.welcome();
  await settle();
  await snapshot([], "x-2");
  published("x-3");
  await settle();
  assert.equal(store.pending("me.theme"), true);
  world.socket.event("users.alice.theme", "x-3", "dark");
  assert.equal(store.pending("me.theme"), false);
  assert.deepEqual(shown(store), { "users.alice.theme": "dark" });
});

test("a change of a channel that the store does not follow waits for no event", async () => {
  const store = await opened();
  const put = store.put("other.a", 1);
  published("x-3");
  await put;
  assert.deepEqual([store.pending("other.a"), store.get("other.a")], [false, undefined]);
});

test("a change whose store is refused or closed waits for no event", async () => {
  const store = await opened();
  const put = store.put("state.a", 10);
  published("x-3");
  await put;
  assert.equal(store.pending("state.a"), true);
  store.close();
  assert.equal(store.pending("state.a"), false);
  const late = store.put("state.a", 11);
  published("x-4");
  await late;
  assert.equal(store.pending("state.a"), false);
});

test("a removal that a new snapshot leaves out is confirmed by it", async () => {
  const store = await opened();
  store.remove("state.a").catch(() => {});
  world.socket.say("gap", { channel: "state.>", reason: "trimmed" });
  published("x-3");
  await settle();
  await snapshot([["state.b", "x-2", 2]], "x-3", 2);
  assert.equal(store.pending("state.a"), false);
});

test("the event of a change that was taken back counts when it comes after all", async () => {
  const store = await opened({ timeout: 400 });
  const rejected = assert.rejects(store.put("state.c", 3, { id: "e1" }), { code: "timeout" });
  await world.clock.go(400);
  await rejected;
  world.socket.event("state.c", "x-3", 3);
  assert.deepEqual([store.get("state.c"), store.pending("state.c")], [3, false]);
});

test("the same change twice, under one id, is published once, and both are settled", async () => {
  const store = await opened();
  const puts = [store.put("state.a", 5, { id: "e1" }), store.put("state.a", 5, { id: "e1" })];
  await assert.rejects(store.put("state.a", 6, { id: "e1" }), { code: "conflict" });
  assert.equal(world.socket.count("publish"), 1);
  published("x-3");
  await Promise.all(puts);
  world.socket.event("state.a", "x-3", 5);
  assert.equal(store.pending("state.a"), false);
});

test("a `reduce` that throws is reported, changes nothing, and holds nothing up", async () => {
  const reported = [];
  const listen = (error) => reported.push(error.message);
  const before = process.listeners("uncaughtException");
  process.removeAllListeners("uncaughtException");
  process.on("uncaughtException", listen);
  const reduce = (_, event) => {
    if (event === "bad") throw new Error("bad");
    return event;
  };
  const store = await opened({ reduce });
  const put = store.put("state.a", "bad", { id: "e1" });
  assert.equal(store.get("state.a"), 1);
  published("x-3");
  await put;
  world.socket.event("state.a", "x-3", "bad");
  world.socket.event("state.b", "x-4", 9);
  assert.deepEqual([store.pending("state.a"), shown(store)], [false, { "state.a": 1, "state.b": 9 }]);
  await new Promise((resolve) => world.clock.real.setTimeout(resolve, 0));
  process.off("uncaughtException", listen);
  for (const each of before) process.on("uncaughtException", each);
  assert.ok(reported.includes("bad"));
});
