/** Pages of history: asked for until they are answered, at a pace of their own, over each transport and among tabs. */

import assert from "node:assert/strict";
import { afterEach, beforeEach, describe, test } from "node:test";

import { World, settle } from "./fakes.js";
import { Site, answer, problem } from "./site.js";

const EVENT = { channel: "a", position: "i-4", event: null, stored_at: "2026-01-31T12:00:00.000001Z" };
const PAGE = { channel: ["a"], events: [EVENT], first: "i-3", last: "i-9", more: true, recovered: true };

/** What became of a promise, for which nobody waits here. */
const watch = (promise) => {
  const fate = {};
  promise.then((page) => (fate.page = page), (error) => (fate.error = error));
  return fate;
};

describe("a page", () => {
  let world;
  beforeEach(() => (world = new World()));
  afterEach(() => world.end());
  const sent = () => world.sockets.flatMap((socket) => socket.sent.filter(({ type }) => type === "history"));
  const say = (payload = PAGE, message = sent().at(-1)) => world.socket.say("history", payload, message.messageId);
  const refuse = (code, rest, message = sent().at(-1)) =>
    world.socket.say("error", { code, message: code, retryable: false, ...rest }, message.messageId);

  test("leads to the one before it and the one after it", async () => {
    const client = await world.connected();
    const filter = { "/n": { gt: 1 } };
    const fate = watch(client.history("a", { limit: 2, filter }));
    await settle();
    say();
    await settle();
    const { older, newer, ...page } = fate.page;
    assert.deepEqual(page, {
      channels: ["a"],
      events: [{ type: "event", channel: "a", position: "i-4", event: null, catchUp: true, storedAt: EVENT.stored_at }],
      first: "i-3",
      last: "i-9",
      more: true,
      recovered: true,
    });
    watch(older());
    watch(newer({ limit: 7 }));
    await settle();
    assert.deepEqual(sent().map(({ payload }) => payload), [
      { channel: ["a"], limit: 2, filter },
      { channel: ["a"], limit: 2, before: "i-3", filter },
      { channel: ["a"], limit: 7, after: "i-9", filter },
    ]);
  });

  test("is asked for again after a cut, but not for who has given it up", async () => {
    const client = await world.connected();
    const aborted = new AbortController();
    const fates = [client.history(["a", "b.*"], { since: "2026-01-31T12:00:00Z" }), client.history("c", { signal: aborted.signal })].map(watch);
    await settle();
    aborted.abort(new Error("enough"));
    world.socket.cut();
    await world.again();
    world.socket.welcome();
    await settle();
    assert.deepEqual(sent().map(({ payload }) => payload.channel), [["a", "b.*"], ["c"], ["a", "b.*"]]);
    say();
    await settle();
    assert.equal(fates[0].page.events.length, 1);
    assert.equal(fates[1].error.message, "enough");
    client.close();
    assert.equal(world.clock.timers.size, 0);
  });

  test("over its rate waits as it is told, and nothing else does", async () => {
    const client = await world.connected();
    const fate = watch(client.history("a"));
    await settle();
    refuse("rate_limited", { retryable: true, retry_after_ms: 2_000 });
    client.publish("b", 1).catch(() => {});
    await world.clock.go(1_900);
    assert.deepEqual([sent().length, world.socket.count("publish")], [1, 1]);
    await world.clock.go(200);
    say();
    await settle();
    assert.equal(fate.page.last, "i-9");
  });

  test("that is refused for good is not asked for again", async () => {
    const client = await world.connected();
    const fate = watch(client.history("a"));
    await settle();
    refuse("forbidden");
    await world.clock.go(10_000);
    assert.deepEqual([fate.error.code, sent().length], ["forbidden", 1]);
  });

  test("four at a time", async () => {
    const client = await world.connected();
    for (let n = 0; n < 6; n++) watch(client.history("a"));
    await settle();
    assert.equal(sent().length, 4);
    say(PAGE, sent()[0]);
    await settle();
    assert.equal(sent().length, 5);
  });

  test("with something wrong is not asked for", async () => {
    const client = await world.connected();
    for (const [channels, options, code] of [
      ["live.a", {}, "invalid_channel"],
      [["a", "b..c"], {}, "invalid_channel"],
      ["a", { before: "i-1", after: "i-2" }, undefined],
      ["a", { filter: { n: 1 } }, "bad_message"],
    ]) {
      const fate = watch(client.history(channels, options));
      await settle();
      assert.equal(fate.error.code, code);
    }
    assert.deepEqual(sent(), []);
    const fate = watch(client.history("a"));
    await settle();
    client.close();
    await settle();
    assert.equal(fate.error.code, "closed");
    assert.equal(watch(client.history("a")).page, undefined);
  });
});

describe("over SSE and polls", () => {
  let world;
  beforeEach(() => (world = new World()));
  afterEach(() => world.end());

  for (const transport of ["sse", "poll"])
    test(`${transport}: it is a GET, and waits where it is told to`, async () => {
      const site = new Site();
      const queries = [];
      site.fault = (path, { method = "GET" }, url) => {
        if (path !== "/history") return;
        assert.equal(method, "GET");
        queries.push(url.search);
        if (queries.length > 1) return answer(JSON.stringify(PAGE), { type: "application/json" });
        return problem(429, "rate_limited", { retry_after_ms: 1_000 });
      };
      site.install();
      const client = await world.client({ transports: [transport], tenant: "t" });
      for (let n = 0; n < 20 && client.status.state !== "open"; n++) await world.clock.go(100);
      const fate = watch(client.history(["a", "b.>"], { before: "i-9", limit: 3, filter: { "/a": "ü&" } }));
      for (let n = 0; n < 30 && !fate.page; n++) await world.clock.go(100);
      assert.equal(fate.page?.first, "i-3");
      const query = "?channel=a&channel=b.%3E&before=i-9&limit=3&filter=%7B%22%2Fa%22%3A%22%C3%BC%26%22%7D&tenant=t";
      assert.deepEqual(queries, [query, query]);
    });
});
