/** How the client resumes, by the cases that the Python client is held to as well: tests/client/resume.json. */

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { afterEach, beforeEach, describe, test } from "node:test";

import { World, settle } from "./fakes.js";

const { moves, cases } = JSON.parse(readFileSync(new URL("../../client/resume.json", import.meta.url), "utf8"));

let world;
beforeEach(() => (world = new World()));
afterEach(() => world.end());

const key = (channels) => [...channels].sort().join(" ");
const sorted = (payloads) => payloads.map((each) => ({ ...each, channel: key(each.channel) })).sort((a, b) => (a.channel < b.channel ? -1 : 1));

/** A client whose broker does what a case says. */
class Driver {
  subs = new Map();
  events = new Set(); // positions; an event for several subscriptions is one

  async begin() {
    this.client = await world.connected();
  }

  async want({ want, start, lag, durable }) {
    const sub = this.client.subscribe(want, { ...start, lag, durable });
    this.subs.set(key(want), sub);
    sub.addEventListener("event", ({ detail }) => this.events.add(detail.position));
  }

  get #asked() {
    return world.socket.sent.filter(({ type }) => type === "subscribe");
  }

  #say(type, channels, payload) {
    const message = this.#asked.findLast((each) => key(each.payload.channel) === key(channels));
    assert.ok(message, `${channels} is asked for`);
    world.socket.say(type, payload, message.messageId);
  }

  answer({ answer, payload }) {
    this.#say("subscribed", answer, { channel: answer, refused: [], recovered: true, live: true, ...payload });
  }

  error({ error, payload }) {
    this.#say("error", error, payload);
  }

  hear({ hear, payload }) {
    world.socket.say(hear, payload);
  }

  end({ end }) {
    this.subs.get(key(end)).close();
  }

  async cut() {
    world.socket.cut();
    await world.again();
    world.socket.welcome();
  }

  async asked({ asked }) {
    await world.clock.go(1_000); // what was refused for now comes a little later
    assert.deepEqual(sorted(this.#asked.map(({ payload }) => payload)), sorted(asked));
  }

  taken({ taken }) {
    assert.deepEqual([...this.events], taken);
    this.events.clear();
  }

  position({ position }) {
    assert.equal(this.client.position, position);
  }
}

describe("what moves the live position", () => {
  for (const [type, payload, position] of moves)
    test(`${type} ${JSON.stringify(payload)}`, async () => {
      const driver = new Driver();
      await driver.begin();
      await driver.want({ want: ["z"] });
      await settle();
      driver.answer({ answer: ["z"], payload: { position: "a-1" } });
      driver.hear({ hear: type, payload });
      driver.position({ position });
    });
});

describe("resuming", () => {
  for (const { name, steps } of cases)
    test(name, async () => {
      const driver = new Driver();
      await driver.begin();
      for (const step of steps) {
        await driver[Object.keys(step)[0]](step);
        await settle();
      }
    });
});
