import assert from "node:assert/strict";
import { test } from "node:test";

import { longPoll } from "../../../broker/web/static/client/reads.js";
import { jwt } from "./fakes.js";

/** The types of messages that these answers to polls make, each a list of events with so many characters. */
const messages = async (...answers) => {
  let count = 0;
  const request = async () => {
    const events = answers[count++].map((size) => ({ channel: "a", event: "x".repeat(size), position: `i-${count}` }));
    return new Response(JSON.stringify({ session: "s", events, gaps: [], position: `i-${count}`, recovered: true }));
  };
  const found = [];
  const signal = new AbortController().signal;
  for await (const { type } of longPoll(request, { channel: ["a"] }, signal, jwt(), {})) {
    if (!["pong", "connection.authenticated"].includes(type)) found.push(type);
    if (type === "subscription.live") break;
  }
  return found;
};

test("a channel on which something comes with each poll is live as well", async () => {
  assert.deepEqual(await messages([1]), ["subscribed", "event", "subscription.live"]);
});

test("it is live once an answer has room for more", async () => {
  const full = [40_000, 40_000];
  assert.deepEqual(await messages(full, full, [1, 1]), [
    "subscribed",
    ...Array(6).fill("event"),
    "subscription.live",
  ]);
});
