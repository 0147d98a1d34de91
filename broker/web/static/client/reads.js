// @ts-check
/** Messages as the requests that only read bring them: `GET /sse` and `POST /poll`. */

import { tenantQuery } from "./names.js";
import { rest } from "./platform.js";
import { claims } from "./tokens.js";
import { given } from "./values.js";

/** @import { Read } from "./types.js" */

const POLL_S = 25;
const PAUSE_MS = 1_500; // between polls that may hold none
const HEAD = 6_000; // characters of a query
// Characters of an answer that may have left something for the next: the broker ends one at 64 KiB.
const FULL = 20_000;

/**
 * Messages of `GET /sse`: the WebSocket's own, and a `pong` for each heartbeat.
 * @type {Read}
 */
export async function* eventStream(request, { channel, ...start }, signal) {
  const query = new URLSearchParams(channel.map((name) => ["channel", name]));
  for (const [name, value] of Object.entries(given(start))) query.append(name, name === "filter" ? JSON.stringify(value) : String(value));
  // What may be longer is refused by some on the way, and beside a long token by the broker.
  if (`${query}`.length > HEAD) throw { status: 431, reason: "so many channels do not fit into an address" };
  const { body } = await request(`/sse?${query}`, { signal });
  const decoder = /** @type {ReadableWritablePair<string, any>} */ (new TextDecoderStream());
  const reader = /** @type {ReadableStream<Uint8Array>} */ (body).pipeThrough(decoder).getReader();
  let rest = "";
  let data, position;
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      const lines = (rest + value).split("\n");
      rest = lines.pop() ?? "";
      for (const line of lines) {
        if (line.startsWith("data:")) data = line.slice(5);
        else if (line.startsWith("id:")) position = line.slice(3).trim();
        else if (!line.trim() || line[0] === ":") {
          // The position counts only with the blank line: what it belongs to is complete then.
          yield data ? JSON.parse(data) : { type: "pong", payload: { position } };
          data = position = undefined;
        }
      }
    }
  } finally {
    reader.cancel().catch(() => {}); // it has failed, or was aborted: over either way
  }
}

/**
 * Messages of `POST /poll`, as the other transports have them.
 * @param {number} pause between polls that do not wait, in ms; 0: they do wait
 * @returns {Read}
 */
const poll = (pause) => async function* (request, { channel, position, tenant, lag, filter, every_ms, ...start }, signal, token, notes) {
  let begun = false;
  let live = false;
  for (;;) {
    const wait = live && !pause ? POLL_S : 0;
    const ask = { session: notes.session, channels: channel, position, lag, filter, every_ms, wait, ...(!begun && start) };
    const text = await (await request(`/poll${tenantQuery(tenant)}`, { method: "POST", signal, body: JSON.stringify(ask) })).text();
    const answer = JSON.parse(text);
    const { refused = [], recovered, session, events, gaps } = answer;
    if (!session || !events || !gaps) throw new TypeError("no answer to a poll");
    notes.session = session;
    if (answer.limits) yield { type: "connection.established", payload: { limits: answer.limits, heartbeat_seconds: POLL_S } };
    if (!begun) {
      yield { type: "connection.authenticated", payload: claims(token) };
      yield { type: "subscribed", payload: { channel: [], refused, position, recovered, live: false } };
    } else for (const payload of refused) yield { type: "unsubscribed", payload };
    begun = true;
    for (const payload of gaps) yield { type: "gap", payload };
    for (const payload of events) yield { type: "event", payload };
    position = answer.position;
    yield { type: "pong", payload: { position } };
    // Not: an answer without events. Where more come than are asked for, there may never be one.
    if (!live && position && text.length < FULL) {
      live = true;
      yield { type: "subscription.live", payload: { channel, position } };
    }
    if (answer.reconnect_after_ms !== undefined) yield { type: "connection.draining", payload: answer };
    if (pause && live && !events.length) await rest(signal, pause);
  }
};

export const longPoll = poll(0);
/** For who may hold no connection: polls that do not wait, now and then. */
export const glance = poll(PAUSE_MS);
