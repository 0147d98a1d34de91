/** Requests to services: answered within their time, and never sent again where a service may have heard of them. */

import assert from "node:assert/strict";
import { afterEach, beforeEach, describe, test } from "node:test";

import { Exchange } from "../../../broker/web/static/client/exchange.js";
import { Requests } from "../../../broker/web/static/client/requests.js";
import { World, settle } from "./fakes.js";
import { Site, answer, never, problem } from "./site.js";

let world;
beforeEach(() => (world = new World()));
afterEach(() => world.end());

/** What became of a promise, for which nobody waits here. */
const watch = (promise) => {
  const fate = {};
  promise.then((data) => (fate.data = data), (error) => (fate.error = error));
  return fate;
};
const sent = () => world.sockets.flatMap((socket) => socket.sent.filter(({ type }) => type === "request"));
const say = (type, payload, message = sent().at(-1)) => world.socket.say(type, payload, message.messageId);
const refuse = (code, rest, message) => say("error", { code, message: code, retryable: false, ...rest }, message);
const back = async (limits) => {
  world.socket.cut();
  await world.again();
  world.socket.welcome({ limits });
  await settle();
};

describe("a request", () => {
  test("is answered, in whatever order, and null is what is not given", async () => {
    const client = await world.connected();
    const fates = [client.request("a.b", { n: 1 }, { id: "i-1", timeout: 700 }), client.request("a.c")].map(watch);
    await settle();
    assert.deepEqual(sent().map(({ payload }) => payload), [
      { method: "a.b", data: { n: 1 }, timeout_ms: 700, id: "i-1" },
      { method: "a.c", data: null, timeout_ms: 5000 },
    ]);
    const [first, second] = sent();
    say("reply", { data: null }, second);
    say("reply", { data: [1] }, first);
    await settle();
    assert.deepEqual(fates, [{ data: [1] }, { data: null }]);
    client.close();
    assert.equal(world.clock.timers.size, 0);
  });

  test("is refused as the service or the broker says, and not sent again", async () => {
    const client = await world.connected();
    for (const [code, rest] of [
      ["rejected", { status: 409 }],
      ["unavailable", { retryable: true, retry_after_ms: 10 }],
      ["timeout", {}],
      ["internal", { retryable: true }],
      ["bad_answer", {}],
    ]) {
      const fate = watch(client.request("a"));
      await settle();
      refuse(code, rest);
      await world.clock.go(1_000);
      assert.deepEqual([fate.error.code, fate.error.status, fate.error.retryable], [code, rest.status, !!rest.retryable]);
      assert.equal(fate.error.unknownOutcome, ["timeout", "internal"].includes(code));
    }
    assert.equal(sent().length, 5);
  });

  test("that a service refuses costs nothing of the rate of publishes", async () => {
    const client = await world.connected({ limits: { messages_burst: 2, messages_per_minute: 1 } });
    const fate = watch(client.request("a"));
    await settle();
    refuse("rejected");
    client.publish("b", 1).catch(() => {}); // the one that there is a place for
    await settle();
    assert.equal(fate.error.code, "rejected");
    assert.equal(world.socket.count("publish"), 1);
  });

  test("waits for a connection within its time, of which the broker is told the rest", async () => {
    const client = await world.client();
    const fates = [client.request("a", 1, { timeout: 3_000 }), client.request("b", 1, { timeout: 60_000 })].map(watch);
    await world.clock.go(1_000);
    world.socket.welcome();
    await settle();
    assert.deepEqual(sent().map(({ payload }) => payload.timeout_ms), [2_000, 30_000]);
    await world.clock.go(2_000);
    assert.deepEqual([fates[0].error.code, fates[0].error.unknownOutcome], ["timeout", true]);
    say("reply", { data: "late" }, sent()[0]);
    say("reply", { data: "in time" }, sent()[1]);
    await settle();
    assert.deepEqual([fates[0].data, fates[1].data], [undefined, "in time"]);
  });

  test("for which there is no connection in time is not sent at all", async () => {
    const client = await world.client();
    const fate = watch(client.request("a", 1, { timeout: 500 }));
    await world.clock.go(500);
    assert.deepEqual([fate.error.code, fate.error.unknownOutcome], ["timeout", false]);
    world.socket.welcome();
    await settle();
    assert.deepEqual(sent(), []);
  });

  test("that is lost with its connection is not sent again", async () => {
    const client = await world.connected();
    const fate = watch(client.request("a"));
    await settle();
    await back();
    assert.deepEqual([fate.error.code, fate.error.unknownOutcome, fate.error.retryable], ["timeout", true, false]);
    assert.equal(sent().length, 1);
  });

  test("may take as long as it says: that is no reason to end the connection", async () => {
    const client = await world.connected();
    world.socket.onsent = ({ type }) => type === "ping" && queueMicrotask(() => world.socket.say("pong"));
    const fate = watch(client.request("a", 1, { timeout: 90_000 }));
    await world.clock.go(59_000);
    assert.deepEqual([fate, world.sockets.length, world.socket.open], [{}, 1, true]);
    await world.clock.go(1_000); // twice the 30 s, and the broker has not kept its word
    assert.equal(world.socket.open, false);
    assert.deepEqual([fate.error.code, fate.error.unknownOutcome], ["timeout", true]);
  });

  test("what is in doubt need not wait for it", () => {
    const exchange = new Exchange();
    exchange.opened({ send: () => {}, close: () => {} }, {});
    const reply = { done() {}, refused() {}, lost() {}, doubted() {} };
    exchange.send("request", {}, { ...reply, takes: 5_000 }, exchange.pace.calls);
    assert.ok(exchange.may(exchange.pace.posts, 1));
    exchange.send("subscribe", {}, reply);
    assert.ok(!exchange.may(exchange.pace.posts, 1));
    exchange.lost();
  });

  test("that nobody has heard of for its rate is sent once more, at the pace told and within its time", async () => {
    const client = await world.connected();
    const fates = [1, 2].map((n) => watch(client.request("a", n, { timeout: n * 1_000 })));
    await settle();
    const [one, two] = sent();
    refuse("rate_limited", { retryable: true, retry_after_ms: 1_500 }, one);
    refuse("rate_limited", { retryable: true, retry_after_ms: 1_500 }, two);
    await world.clock.go(1_400);
    assert.deepEqual([fates[0].error.code, fates[0].error.unknownOutcome], ["timeout", false]);
    assert.equal(sent().length, 2);
    await world.clock.go(200);
    assert.deepEqual(sent().at(-1).payload, { method: "a", data: 2, timeout_ms: 500 });
    say("reply", { data: "done" });
    await settle();
    assert.equal(fates[1].data, "done");
  });

  test("one beyond those that may be under way waits for an answer", async () => {
    const client = await world.connected({ limits: { requests_in_flight: 2 } });
    for (let n = 0; n < 3; n++) watch(client.request("a", n));
    client.publish("b", 1).catch(() => {});
    await settle();
    assert.deepEqual([sent().length, world.socket.count("publish")], [2, 1]);
    say("reply", { data: 0 }, sent()[0]);
    await settle();
    assert.equal(sent().length, 3);
  });

  test("the rate is the broker's", async () => {
    const client = await world.connected({ limits: { calls_per_second: 1, calls_burst: 4 } });
    world.socket.onsent = (message) => message.type === "request" && queueMicrotask(() => say("reply", { data: 0 }, message));
    for (let n = 0; n < 5; n++) watch(client.request("a", n));
    await settle();
    assert.equal(sent().length, 3); // a share of the burst
    await world.clock.go(1_200);
    assert.equal(sent().length, 4);
  });

  test("that is aborted is not sent, or its answer is ignored", async () => {
    const client = await world.client();
    const [early, late, before] = [new AbortController(), new AbortController(), AbortSignal.abort("before")];
    const fates = [early, late].map(({ signal }) => watch(client.request("a", 1, { signal })));
    const never = watch(client.request("a", 1, { signal: before }));
    early.abort();
    await settle();
    assert.equal(never.error, "before");
    assert.equal(fates[0].error.name, "AbortError");
    world.socket.welcome();
    await settle();
    assert.equal(sent().length, 1);
    late.abort(null);
    say("reply", { data: 1 });
    await settle();
    assert.deepEqual(fates[1], { error: null });
  });

  test("that cannot be one is refused here", async () => {
    const client = await world.connected({ limits: { message_bytes: 500 }, queue: 1 });
    for (const [code, ...given] of [
      ["invalid_channel", "a.*"],
      ["invalid_channel", "me.a"],
      ["invalid_channel", "live"],
      ["bad_message", "a", 1, { id: "é" }],
      ["bad_message", "a", 1, { timeout: 0 }],
      ["bad_message", "a", 1, { timeout: NaN }],
      ["too_large", "a", "x".repeat(500)],
    ])
      await assert.rejects(client.request(...given), { code, unknownOutcome: false });
    await assert.rejects(client.request("a", NaN), { name: "TypeError", message: /^data / });
    assert.deepEqual(sent(), []);
    const fate = watch(client.request("a"));
    await assert.rejects(client.request("a"), { code: "queue_full" });
    client.close();
    await settle();
    assert.equal(fate.error.unknownOutcome, true);
    await assert.rejects(client.request("a"), { code: "closed", unknownOutcome: false });
  });

  test("that ended the connection by its size was not read by anybody", async () => {
    const client = await world.connected();
    const fate = watch(client.request("a", "x".repeat(5_000)));
    await settle();
    world.socket.cut(1009);
    await settle();
    assert.deepEqual([fate.error.code, fate.error.unknownOutcome], ["too_large", false]);
  });
});

describe("for another tab", () => {
  const relayed = () => {
    const exchange = new Exchange();
    const requests = new Requests(exchange, 0); // full, which is no matter of that tab
    exchange.join(requests);
    exchange.wanted = true;
    const messages = [];
    exchange.opened({ send: (message) => messages.push(message), close: () => {} }, {});
    exchange.pace.adopt({ requests_in_flight: 1 });
    return { exchange, messages, request: (n) => watch(requests.request("a", n, {}, true)) };
  };

  test("it is sent at once or not at all: that tab keeps it", async () => {
    const { exchange, messages, request } = relayed();
    const [first, second] = [request(1), request(2)];
    await settle();
    assert.equal(messages.length, 1);
    assert.deepEqual([second.error.code, second.error.retryAfter, second.error.unknownOutcome], ["busy", 100, false]);
    exchange.heard({ type: "error", payload: { code: "rate_limited", message: "", retryable: true }, messageId: messages[0].messageId });
    await world.clock.go(5_000);
    assert.equal(first.error.code, "rate_limited");
    assert.equal(messages.length, 1);
  });

  test("that tab asks again when it was told so", async () => {
    const client = await world.connected();
    const fate = watch(client.request("a"));
    await settle();
    refuse("busy", { retryable: true, retry_after_ms: 100 });
    await world.clock.go(90);
    assert.equal(sent().length, 1);
    await world.clock.go(20);
    assert.equal(sent().length, 2);
    say("reply", { data: 1 });
    await settle();
    assert.equal(fate.data, 1);
  });
});

for (const transport of ["sse", "poll"])
  describe(`over ${transport}`, () => {
    let site, bodies;
    /** A client for whose requests there is `then`. */
    const asking = async (then) => {
      site = new Site();
      bodies = [];
      site.fault = (path, init) => {
        if (path !== "/request") return;
        bodies.push(JSON.parse(init.body));
        return then(init);
      };
      site.install();
      const client = await world.client({ transports: [transport] });
      for (let n = 0; n < 20 && client.status.state !== "open"; n++) await world.clock.go(100);
      assert.equal(client.status.state, "open");
      return client;
    };
    const json = (data) => answer(JSON.stringify({ data }), { type: "application/json" });
    const go = async (ms) => {
      for (let gone = 0; gone < ms; gone += 500) await world.clock.go(500);
    };

    test("it is answered, however long the service takes, and asked once", async () => {
      let reply;
      const client = await asking(({ signal }) => Promise.race([new Promise((resolve) => (reply = resolve)), never(signal)]));
      const fate = watch(client.request("a.b", { n: 1 }, { timeout: 30_000, id: "i" }));
      await go(29_000);
      assert.deepEqual(fate, {});
      assert.equal(client.status.transport, transport); // it holds its place
      reply(json([2]));
      await go(500);
      assert.deepEqual(fate, { data: [2] });
      assert.deepEqual(bodies, [{ method: "a.b", data: { n: 1 }, timeout_ms: 30_000, id: "i" }]);
    });

    test("no answer, and one of somebody else, leave open what the service has done", async () => {
      const fails = () => {
        throw new TypeError("Failed to fetch");
      };
      for (const then of [({ signal }) => never(signal), fails, () => answer("bad gateway", { status: 502 }), () => problem(500)]) {
        const client = await asking(then);
        const fate = watch(client.request("a", 1, { timeout: 4_000 }));
        await go(4_000);
        assert.deepEqual([fate.error?.code, fate.error?.unknownOutcome], ["timeout", true], String(then));
        await go(30_000);
        assert.equal(bodies.length, 1);
        client.close();
      }
    });

    test("what the broker says of it is passed on, and nothing is asked twice", async () => {
      for (const [status, code, told, open] of [
        [401, "rejected", 401, false],
        [429, "rejected", 429, false],
        [502, "rejected", undefined, false],
        [502, "bad_answer", undefined, false],
        [503, "unavailable", undefined, false],
        [504, "timeout", undefined, true],
      ]) {
        const client = await asking(() => problem(status, code));
        const fate = watch(client.request("a"));
        await go(5_500);
        const { error } = fate;
        assert.deepEqual([error.code, error.status, error.unknownOutcome, bodies.length], [code, told, open, 1], `${status} ${code}`);
        assert.equal(error.retryable, code === "unavailable");
        client.close();
      }
    });

    test("refused for its rate or its token it is asked again", async () => {
      const answers = [() => problem(401, "token_expired"), () => problem(429, "rate_limited", { retry_after_ms: 700 }), () => json("done")];
      const client = await asking(() => answers.shift()());
      const fate = watch(client.request("a"));
      await go(3_000);
      assert.deepEqual(fate, { data: "done" });
      assert.equal(bodies.length, 3);
      assert.ok(bodies[2].timeout_ms <= 3_800, "what is left");
    });
  });
