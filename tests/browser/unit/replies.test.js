/**
 * Each answer that a request can get, once, on the row "each answer that a client can get" of the faults: refusals of
 * all codes, closes, silence, answers that come twice or name nobody. After it all goes on within 30 s and a few tries.
 */

import assert from "node:assert/strict";
import { afterEach, beforeEach, test } from "node:test";

import { FakeWebSocket, World, settle } from "./fakes.js";
import { Model, lots } from "./model.js";

let world;
beforeEach(() => (world = new World()));
afterEach(() => world.end());

const CODES = ["bad_message", "unknown_type", "unauthenticated", "forbidden", "invalid_channel", "invalid_position", "not_subscribed", "conflict"];
const LIMITS = ["limit_subscriptions", "limit_snapshot", "limit_connections", "rate_limited", "too_large", "unavailable", "internal", "new_in_v1_9"];
const error = (code, retryable, retry_after_ms) => [`${code}${retryable ? `, again${retry_after_ms ? " later" : ""}` : ""}`, (link, { messageId }) => link.say("error", { code, message: code, retryable, retry_after_ms }, messageId)];
const ANSWERS = [
  ...[...CODES, ...LIMITS].flatMap((code) => [error(code, false), error(code, true), error(code, true, 2_000)]),
  ["nothing at all", () => {}],
  ["a cut", (link) => link.cut()],
  ["a word about a message that it could not read", (link) => link.say("error", { code: "bad_message", message: "not JSON", retryable: false })],
  ["an answer to somebody else", (link, { type }) => link.say({ publish: "published", subscribe: "subscribed" }[type] ?? "pong", { channel: [], refused: [] }, "x1")],
  ...[1001, 1002, 1003, 1007, 1009, 1011, 1012, 4001, 4008, 4009, 4010, 4029, 4510].map((code) => [`the close code ${code}`, (link) => link.end(code)]),
];

for (const kind of ["subscribe", "unsubscribe", "publish", "acknowledge"])
  for (const [what, answer] of ANSWERS.filter(([what]) => !(kind === "unsubscribe" && what.startsWith("not_subscribed")))) // true, or no broker
    test(`${kind} is answered by ${what}`, async () => {
      const chance = lots(1);
      const model = new Model(() => 0.2 + chance() * 0.8); // nothing is unavailable by itself
      FakeWebSocket.onmade = (socket) => queueMicrotask(() => socket.open && model.accept(socket));
      const go = async (ms) => {
        for (let at = 0; at < ms; at += 100) {
          while (model.step()) await settle();
          await world.clock.go(100);
        }
      };
      const client = await world.client({ transports: ["websocket"] });
      const kept = client.subscribe("kept");
      const left = client.subscribe("left");
      const durable = client.subscribe("a.d", { durable: "d" });
      await go(500);
      let spoilt = 0;
      model.spoil = (link, message) => message.type === kind && !spoilt++ && (answer(link, message), true);
      const fresh = client.subscribe("fresh", { last: 1 });
      left.close();
      const settled = [];
      const settles = (promise) => promise.then(() => settled.push("done"), ({ code }) => settled.push(code));
      settles(client.publish("kept", { n: 1 }));
      settles(client.publish("live.a", { n: 2 }));
      settles(durable.acknowledge(durable.position));
      await go(95_000); // three times without an answer, at most
      assert.ok(spoilt);
      assert.equal(client.status.state, "open");
      assert.equal(settled.length, 3, "each is answered or rejected");
      assert.ok(model.events.length <= 1 && model.lives.length <= 1);
      for (const sub of [kept, durable]) assert.equal(sub.state, "live");
      assert.ok(["live", "closed"].includes(fresh.state));
      settles(client.publish("kept", { n: 3 }));
      const again = client.subscribe("again");
      await go(3_000);
      assert.deepEqual([settled.at(-1), again.state], ["done", "live"]);
      const [link] = model.links;
      const wanted = ["a.d", "again", "kept", ...(fresh.state === "live" ? ["fresh"] : [])];
      assert.deepEqual([...link.subs.keys()].sort(), wanted.sort());
    });
