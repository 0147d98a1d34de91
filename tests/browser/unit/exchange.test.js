/** The port for parts of the client, by a part of a protocol that does not exist. */

import assert from "node:assert/strict";
import { afterEach, beforeEach, test } from "node:test";

import { Exchange } from "../../../broker/web/static/client/exchange.js";
import { World, settle } from "./fakes.js";

const WHO = { tenant: "acme", user: "alice", private: "users.alice" };

/** Asks for pages, one at a time, until it has as many as it wants. */
class Pages {
  wanted = 0;
  got = [];
  said = []; // what else it was told
  busy = false;
  hears = { "page.changed": ({ n }) => this.said.push(`changed ${n}`) };

  constructor(exchange) {
    this.exchange = exchange;
  }

  opened({ user }) {
    this.said.push(`opened ${user}`);
  }

  lost() {
    this.said.push("lost");
  }

  sync() {
    if (!this.exchange.link || this.busy || this.got.length >= this.wanted || !this.exchange.may()) return;
    this.busy = true;
    const after = (note) => (given) => {
      this.busy = false;
      note(given);
    };
    this.exchange.send("page", { n: this.got.length }, {
      done: after(({ text }) => this.got.push(text)),
      refused: after(({ code }) => this.said.push(code)),
      lost: after(() => this.said.push("lost the request")),
      doubted: (code) => this.said.push(`doubted: ${code}`),
    });
  }
}

let world, exchange, pages, sent;
const open = () => {
  exchange.opened({ send: (message) => sent.push(message), close: () => {} }, WHO);
  exchange.sync();
};
const answer = (type, payload) => exchange.heard({ type, payload, messageId: sent.at(-1).messageId });

beforeEach(() => {
  world = new World();
  exchange = new Exchange();
  exchange.join((pages = new Pages(exchange)));
  sent = [];
});
afterEach(() => world.end());

test("an answer of any type goes to who asked, and then the next may be asked", async () => {
  pages.wanted = 2;
  open();
  assert.deepEqual(sent, [{ type: "page", payload: { n: 0 }, messageId: sent[0].messageId }]);
  answer("page.text", { text: "one" });
  await settle();
  answer("page.text", { text: "two" });
  await settle();
  assert.deepEqual([pages.got, sent.length], [["one", "two"], 2]);
  assert.notEqual(sent[0].messageId, sent[1].messageId);
});

test("what it names it hears, and what nobody names is no fault", () => {
  open();
  exchange.heard({ type: "page.changed", payload: { n: 7 } });
  exchange.heard({ type: "new.in.v1.9", payload: {} });
  assert.deepEqual(pages.said, ["opened alice", "changed 7"]);
});

test("a request that is lost with its connection is asked again on the next", () => {
  pages.wanted = 1;
  open();
  exchange.lost();
  assert.deepEqual(pages.said, ["opened alice", "lost", "lost the request"]);
  open();
  answer("page.text", { text: "one" });
  assert.deepEqual([pages.got, sent.length], [["one"], 2]);
});

test("no answer ends the connection, and is held against who asked", async () => {
  pages.wanted = 1;
  const ends = [];
  exchange.cut = (end) => ends.push(end.code);
  open();
  await world.clock.go(30_000);
  assert.deepEqual(ends, [4009]);
  exchange.lost(4009);
  assert.deepEqual(pages.said, ["opened alice", "doubted: timeout", "lost", "lost the request"]);
});

test("refused for its rate, it may ask again when the broker says", async () => {
  pages.wanted = 1;
  open();
  answer("error", { code: "rate_limited", message: "slow", retryable: true, retry_after_ms: 3_000 });
  await world.clock.go(2_900);
  assert.deepEqual([pages.said, sent.length], [["opened alice", "rate_limited"], 1]);
  await world.clock.go(200);
  assert.equal(sent.length, 2);
});
