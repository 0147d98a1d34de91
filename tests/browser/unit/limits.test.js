/** What a page may ask for, and what becomes of it: within the limits, once, and never for ever. */

import assert from "node:assert/strict";
import { afterEach, beforeEach, describe, test } from "node:test";

import { World, settle } from "./fakes.js";

let world;
beforeEach(() => (world = new World()));
afterEach(() => world.end());

const sent = (type) => world.socket.sent.filter((message) => message.type === type);
const channels = (type) => sent(type).map(({ payload }) => payload.channel);
const back = async (code) => {
  world.socket.cut(code);
  await world.again();
  world.socket.welcome({ limits: world.limits });
  await settle();
};
const refuse = ({ messageId }, code, rest = {}) => world.socket.say("error", { code, message: code, retryable: false, ...rest }, messageId);
const later = (message, code, retry_after_ms) => refuse(message, code, { retryable: true, retry_after_ms });
const ended = (sub) => new Promise((resolve) => sub.addEventListener("end", ({ detail }) => resolve(detail)));

describe("what is asked for in one turn", () => {
  test("goes into one message, and what is let go of, too", async () => {
    const client = await world.connected();
    const subs = Array.from({ length: 100 }, (_, i) => client.subscribe(`row.${i}`));
    await settle();
    assert.deepEqual(channels("subscribe"), [subs.map((_, i) => `row.${i}`)]);
    world.socket.subscribed("x-1");
    for (const sub of subs) sub.close();
    await settle();
    assert.deepEqual(channels("unsubscribe"), [subs.map((_, i) => `row.${i}`)]);
  });

  test("and let go of again costs nothing", async () => {
    const client = await world.connected();
    for (let i = 0; i < 300; i++) client.subscribe(`row.${i}`, i % 2 ? { last: 3 } : {}).close();
    await settle();
    assert.equal(world.socket.sent.length, 0);
  });

  test("each kind of start has its own message, and the last N of a list are not those of another", async () => {
    const client = await world.connected();
    for (const name of ["a", "b"]) {
      client.subscribe(name);
      client.subscribe(`${name}.s`, { since: "2026-01-31T12:00:00Z" });
      client.subscribe(`${name}.l`, { last: 5 });
      client.subscribe(`${name}.d`, { lag: "latest" });
    }
    await settle();
    assert.deepEqual(channels("subscribe").map(String).sort(), ["a,b", "a.d,b.d", "a.l", "a.s,b.s", "b.l"]);
  });

  test("is cut where the broker said that a message ends, also what is resumed", async () => {
    world.limits = { message_bytes: 500 };
    const client = await world.connected({ limits: world.limits });
    const names = Array.from({ length: 60 }, (_, i) => `row.${i}.${"x".repeat(20)}`);
    const subs = names.map((name) => client.subscribe(name));
    const answer = async () => {
      for (const message of sent("subscribe")) {
        assert.ok(JSON.stringify(message).length <= 500);
        world.socket.say("subscribed", { channel: message.payload.channel, refused: [], position: "x-1", live: true }, message.messageId);
      }
      await settle();
    };
    await settle();
    await answer();
    assert.deepEqual(channels("subscribe").flat(), names);
    await back();
    await answer();
    assert.deepEqual(channels("subscribe").flat(), names);
    for (const sub of subs) sub.close();
    await settle();
    assert.deepEqual(channels("unsubscribe").flat(), names);
    for (const message of sent("unsubscribe")) assert.ok(JSON.stringify(message).length <= 500);
  });

  test("a single list that no message can hold is refused, and nothing else", async () => {
    const client = await world.connected({ limits: { message_bytes: 500 } });
    const end = ended(client.subscribe(Array.from({ length: 60 }, (_, i) => `row.${i}`)));
    client.subscribe("other");
    await settle();
    assert.equal((await end).code, "too_large");
    assert.deepEqual(channels("subscribe"), [["other"]]);
  });

  test("one that spoils a message for the others is found, and ends alone", async () => {
    const client = await world.connected();
    const [bad, good] = ["bad", "good"].map((name) => client.subscribe(name, { snapshot: true }));
    const end = ended(bad);
    await settle();
    refuse(sent("subscribe")[0], "limit_snapshot");
    await settle();
    assert.deepEqual(channels("subscribe"), [["bad", "good"], ["bad"]]);
    refuse(sent("subscribe")[1], "limit_snapshot");
    await settle();
    assert.equal((await end).code, "limit_snapshot");
    world.socket.subscribed("x-1");
    assert.equal(good.state, "live");
  });
});

describe("places at the broker", () => {
  const full = async () => {
    const client = await world.connected();
    const subs = Array.from({ length: 128 }, (_, i) => client.subscribe(`row.${i}`));
    await settle();
    world.socket.subscribed("x-1");
    await settle();
    return [client, subs];
  };

  test("beyond them one waits for a place, and gets it", async () => {
    const [client, subs] = await full();
    const next = client.subscribe("next");
    await settle();
    assert.equal(world.socket.count("subscribe"), 1);
    subs[0].close();
    await settle();
    world.socket.unsubscribed();
    await settle();
    assert.deepEqual(channels("subscribe").at(-1), ["next"]);
    world.socket.subscribed("x-1");
    assert.equal(next.state, "live");
  });

  test("beyond them one waits some seconds, and is refused", async () => {
    const [client] = await full();
    const end = ended(client.subscribe("next"));
    await world.clock.go(5_000);
    assert.equal((await end).code, "limit_subscriptions");
    assert.equal(world.socket.count("subscribe"), 1);
  });

  test("of a list that can never fit the rest is refused at once", async () => {
    const client = await world.connected();
    const sub = client.subscribe(Array.from({ length: 200 }, (_, i) => `row.${i}`));
    const codes = [];
    sub.addEventListener("error", ({ detail }) => codes.push(detail.code));
    await settle();
    assert.deepEqual([codes, channels("subscribe")[0].length], [["limit_subscriptions"], 128]);
  });

  test("an unsubscribe is kept until it is confirmed, and what is let go of is not shown", async () => {
    const client = await world.connected();
    const items = [];
    const sub = client.subscribe("a", (item) => items.push(item));
    await settle();
    world.socket.subscribed("x-1");
    sub.close();
    for (let i = 0; i < 5; i++) {
      await settle();
      later(world.socket.last("unsubscribe"), "rate_limited", 300);
      world.socket.event("a", `x-${i + 2}`);
      await world.clock.go(5_000);
    }
    assert.equal(world.socket.count("unsubscribe"), 6);
    world.socket.unsubscribed();
    await world.clock.go(20_000);
    assert.deepEqual([world.socket.count("unsubscribe"), items], [6, []]);
  });

  test("a name that the broker knows no more spoils no unsubscribe of others", async () => {
    const client = await world.connected();
    const subs = ["a", "b", "c"].map((name) => client.subscribe(name));
    await settle();
    world.socket.subscribed("x-1");
    for (const sub of subs) sub.close();
    await settle();
    world.socket.say("unsubscribed", { channel: "b", code: "forbidden" });
    refuse(world.socket.last("unsubscribe"), "not_subscribed");
    await settle();
    assert.deepEqual(channels("unsubscribe"), [["a", "b", "c"], ["a"], ["c"]]);
  });

  test("a refusal for the rate holds everything up, for as long as it said", async () => {
    const client = await world.connected();
    client.subscribe("a", { last: 1 });
    await settle();
    later(world.socket.last("subscribe"), "rate_limited", 4_000);
    client.subscribe("b");
    client.publish("c", 1).catch(() => {});
    await world.clock.go(3_900);
    assert.deepEqual([channels("subscribe"), channels("publish")], [[["a"]], []]);
    await world.clock.go(2_000);
    assert.deepEqual([channels("subscribe").length, channels("publish")], [3, ["c"]]);
  });
});

describe("what cannot succeed", () => {
  const torn = "😀".slice(0, 1);
  const loop = { a: [{}] };
  loop.a[0].b = loop;

  for (const [what, event, where] of [
    ["undefined", undefined, /^event is undefined.*tombstone/],
    ["a function", { a: () => 1 }, /^event\.a is a function/],
    ["a symbol", [Symbol("s")], /^event\[0\] is a symbol/],
    ["a big integer", { a: { b: 1n } }, /^event\.a\.b is a bigint/],
    ["NaN", { a: [1, NaN] }, /^event\.a\[1\] is NaN/],
    ["Infinity", -Infinity, /^event is -Infinity/],
    ["an invalid date", { at: new Date(NaN) }, /^event\.at is an invalid date/],
    ["a hole in a list", { a: [, 1] }, /^event\.a\[0\] is undefined/],
    ["a map", { a: new Map([[1, 2]]) }, /^event\.a is a Map/],
    ["itself", loop, /^event\.a\[0\]\.b holds itself/],
    ["half an emoji", { text: `cut ${torn}` }, /^event\.text holds half a character/],
    ["half an emoji in a name", { a: { [torn]: 1 } }, /^event\.a has a name that holds half a character/],
    ["an integer of more than 64 bits", { id: 1e20 }, /^event\.id is an integer of more than 64 bits/],
    ["what is nested too deeply", JSON.parse("[".repeat(1025) + "]".repeat(1025)), /nested deeper than 1024/],
  ])
    test(`${what}: a publish is a TypeError that says where, and nothing is sent`, async () => {
      const client = await world.connected();
      await assert.rejects(client.publish("a", event), { name: "TypeError", message: where });
      assert.equal(world.socket.sent.length, 0);
    });

  test("all else that JSON has is sent as it is", async () => {
    const client = await world.connected({ limits: { messages_burst: 100 } });
    const at = new Date(0);
    for (const event of [null, 0, -0.5, 1e300, 2 ** 63, "😀", [], {}, [[null]], { "": 1, n: null }, Object.create(null)]) {
      client.publish("a", event).catch(() => {});
      assert.deepEqual(world.socket.last("publish").payload.event, JSON.parse(JSON.stringify(event)));
      world.socket.published("x-1");
    }
    client.publish("a", { at, not: undefined, s: new String("ab") }).catch(() => {});
    assert.deepEqual(world.socket.last("publish").payload.event, { at: "1970-01-01T00:00:00.000Z", s: "ab" });
    client.publish("b", JSON.parse('{"__proto__": 1}')).catch(() => {});
    assert.deepEqual(Object.keys(world.socket.last("publish").payload.event), ["__proto__"]);
  });

  for (const channel of ["", "a..b", "a b", "a.*", "a.>", "@a", "_a", "$a", "live", `a.${torn}`, "a".repeat(257), "é".repeat(129), Array(17).fill("a").join("."), undefined, 7])
    test(`${JSON.stringify(channel)?.slice(0, 20)} is no channel to publish into`, async () => {
      const client = await world.connected();
      await assert.rejects(client.publish(channel, 1), { code: "invalid_channel" });
      assert.equal(world.socket.sent.length, 0);
    });

  test("the limits are of bytes as they are sent, not as JSON writes them", async () => {
    const client = await world.connected();
    client.publish('"'.repeat(256), 1, { id: "\\".repeat(64) }).catch(() => {});
    assert.equal(world.socket.count("publish"), 1);
  });

  for (const [options, code] of [
    [{ last: 0 }, "bad_message"],
    [{ last: 1.5 }, "bad_message"],
    [{ last: 1001 }, "bad_message"],
    [{ since: "yesterday" }, "bad_message"],
    [{ durable: torn }, "bad_message"],
    [{ lag: "soon" }, "bad_message"],
    [{ position: 7 }, "bad_message"],
  ])
    test(`a subscription with ${JSON.stringify(options)} ends, and is not asked for`, async () => {
      const client = await world.connected({ limits: { last_events: 1000 } });
      const end = ended(client.subscribe("a", options));
      await settle();
      assert.equal((await end).code, code);
      assert.equal(world.socket.sent.length, 0);
    });

  test("of a list the names that are none are refused, also without a connection; the others stand", async () => {
    const client = await world.client();
    const sub = client.subscribe(["a", `b.${torn}`, "c..d", ">", "a.>.b"]);
    const codes = [];
    sub.addEventListener("error", ({ detail }) => codes.push(detail.code));
    await settle();
    assert.deepEqual([codes, sub.channels], [Array(3).fill("invalid_channel"), ["a", ">"]]);
  });

  for (const id of ["", "x".repeat(65), "é".repeat(33), torn, 7, null])
    test(`${JSON.stringify(id)?.slice(0, 10)} is no id`, async () => {
      const client = await world.connected();
      await assert.rejects(client.publish("a", 1, { id }), { code: "bad_message" });
      assert.equal(world.socket.sent.length, 0);
    });

  test("what is larger than the broker said is not sent, also when it was queued before it could be known", async () => {
    const client = await world.client();
    const large = assert.rejects(client.publish("a", "x".repeat(10_240)), { code: "too_large" });
    client.publish("a", "x".repeat(10_238)).catch(() => {});
    world.socket.welcome({ limits: { publish_bytes: 10_240 } });
    await large;
    assert.deepEqual(sent("publish").map(({ payload }) => payload.event.length), [10_238]);
  });

  test("where something between us and the broker takes less, the one that was too large is given up, and no other", async () => {
    const client = await world.connected();
    const large = assert.rejects(client.publish("a", "x".repeat(5_000)), { code: "too_large" });
    client.publish("b", "small").catch(() => {});
    const subs = Array.from({ length: 50 }, (_, i) => client.subscribe(`row.${i}.${"x".repeat(20)}`));
    await settle();
    await back(1009);
    await large;
    await back(1009);
    assert.deepEqual(sent("publish").map(({ payload }) => payload.event), ["small"]);
    const lists = channels("subscribe");
    assert.deepEqual([lists.length > 1, lists.flat().length], [true, subs.length], "the list is cut");
  });

  test("what ends the connection again and again is found and given up; nothing else is", async () => {
    const client = await world.connected();
    const bad = assert.rejects(client.publish("bad", 1), { code: "bad_message", unknownOutcome: true });
    const good = [2, 3, 4].map((n) => client.publish("good", n));
    client.subscribe("rows");
    for (let i = 0; i < 20; i++) {
      await settle();
      if (!client.queued) break;
      const spoilt = sent("publish").find(({ payload }) => payload.channel === "bad");
      if (spoilt) await back(1007);
      else
        for (const { payload, messageId } of world.socket.sent.splice(0))
          world.socket.say(payload.event ? "published" : "subscribed", { channel: [], refused: [], position: "x-1", live: true }, messageId);
    }
    await bad;
    assert.equal((await Promise.all(good)).length, 3);
    assert.equal(client.status.state, "open");
  });

  test("what is never answered is not waited for, nor sent for ever", async () => {
    const client = await world.connected();
    const bad = assert.rejects(client.publish("bad", 1), { code: "timeout", unknownOutcome: true });
    let tries = 0;
    const { onmade } = world;
    const silent = (socket) => {
      socket.onsent = ({ type, messageId }) => {
        if (type === "ping") socket.say("pong");
        if (type === "publish") tries++, socket.say("error", { code: "bad_message", message: "not JSON", retryable: false });
      };
    };
    tries++;
    for (let i = 0; i < 3; i++) {
      silent(world.socket);
      await world.clock.go(30_000);
      await world.again();
      silent(world.socket);
      world.socket.welcome();
      await settle();
    }
    await bad;
    assert.equal(tries, 3);
    const good = client.publish("good", 2);
    world.socket.published("x-1");
    await good;
  });
});

describe("a publish whose answer was lost", () => {
  const MINUTE = 60_000;
  const away = async (ms, asleep) => {
    if (asleep) world.clock.ahead += ms;
    else await world.clock.go(ms);
  };

  test("is sent again, and a duplicate of our own is told as one", async () => {
    const client = await world.connected();
    const answer = client.publish("a", 1);
    const { id } = world.socket.last("publish").payload;
    await back();
    assert.equal(world.socket.last("publish").payload.id, id);
    world.socket.published("x-7", { duplicate: true });
    assert.deepEqual(await answer, { id, position: "x-7", duplicate: true });
  });

  test("a duplicate that no try of ours can have made rejects, and says what stands there", async () => {
    const client = await world.connected();
    const answer = client.publish("a", 1, { id: "mine" });
    world.socket.published("x-7", { duplicate: true });
    await assert.rejects(answer, { code: "duplicate", position: "x-7", unknownOutcome: false });
  });

  test("a try that was refused for its rate made none", async () => {
    const client = await world.connected();
    const answer = assert.rejects(client.publish("a", 1, { id: "mine" }), { code: "duplicate" });
    later(world.socket.last("publish"), "rate_limited", 100);
    await world.clock.go(5_000);
    world.socket.published("x-7", { duplicate: true });
    await answer;
  });

  test("one that may be stored though it was unavailable is known again", async () => {
    const client = await world.connected();
    const answer = client.publish("a", 1);
    later(world.socket.last("publish"), "unavailable", 100);
    await world.clock.go(100);
    world.socket.published("x-7", { duplicate: true });
    assert.equal((await answer).duplicate, true);
  });

  test("of a live channel is not sent again: perhaps it was sent", async () => {
    const client = await world.connected();
    const answers = [client.publish("live.a", 1), client.publish("live.a", 2)];
    world.socket.cut();
    await assert.rejects(answers[0], { name: "BrokerError", code: "unknown_outcome", unknownOutcome: true });
    await world.again();
    world.socket.welcome();
    await settle();
    assert.deepEqual(sent("publish").map(({ payload }) => payload.event), [2], "this one was never sent");
    world.socket.published();
    await answers[1];
  });

  for (const [what, asleep] of [["with the lid closed, when one clock stands still", true], ["with the page open", false]]) {
    test(`is sent again within the window, ${what}`, async () => {
      const client = await world.connected();
      client.publish("a", 1).catch(() => {});
      world.socket.cut();
      await away(8 * MINUTE, asleep);
      await world.again();
      world.socket.welcome();
      await settle();
      assert.equal(world.socket.count("publish"), 1);
    });

    test(`is not sent again beyond it, ${what}`, async () => {
      const client = await world.connected();
      const answer = assert.rejects(client.publish("a", 1), { code: "unknown_outcome", unknownOutcome: true });
      world.socket.cut();
      await away(11 * MINUTE, asleep);
      await world.again();
      world.socket.welcome();
      await settle();
      await answer;
      assert.equal(world.socket.count("publish"), 0);
    });
  }

  test("counts from the first try, by a clock that nobody can set back, and by the window that the broker said", async () => {
    const client = await world.connected();
    const answer = assert.rejects(client.publish("a", 1), { code: "unknown_outcome" });
    for (let i = 0; i < 2; i++) {
      world.socket.cut();
      world.clock.ahead -= 60 * MINUTE;
      await away(MINUTE, false);
      await world.again();
      world.socket.welcome({ limits: { duplicate_window_seconds: 120 } });
      await settle();
      assert.equal(world.socket.count("publish"), i ? 0 : 1);
    }
    await answer;
  });

  test("that was never sent is sent, however late", async () => {
    const client = await world.client();
    client.publish("a", 1).catch(() => {});
    world.clock.ahead += 60 * MINUTE;
    world.socket.welcome();
    await settle();
    assert.equal(world.socket.count("publish"), 1);
  });

  for (const [what, give] of [["a time-out", () => world.clock.go(300)], ["the end of the client", (client) => client.close()]])
    test(`${what} says whether it may have been sent`, async () => {
      const client = await world.connected();
      const answers = [1, 2].map((n) => client.publish("a", n, { timeout: 400 - 100 * n }).catch(({ unknownOutcome }) => unknownOutcome));
      await give(client);
      assert.deepEqual(await Promise.all(answers), [true, false]);
    });

  test("one id is one event: the same again is the same publish, another is refused, another channel has its own", async () => {
    const client = await world.connected();
    const [one, same] = [client.publish("a", { n: 1 }, { id: "i" }), client.publish("a", { n: 1 }, { id: "i" })];
    await assert.rejects(client.publish("a", { n: 2 }, { id: "i" }), { code: "conflict" });
    client.publish("b", { n: 2 }, { id: "i" }).catch(() => {});
    assert.equal(world.socket.count("publish"), 2);
    world.socket.say("published", { position: "x-1" }, sent("publish")[0].messageId);
    assert.deepEqual(await one, await same);
  });
});
