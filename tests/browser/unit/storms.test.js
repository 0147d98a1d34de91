/**
 * Pages that ask for far too much: lists of hundreds, scrolled lists, bursts of publishes, with cuts, sleeping devices
 * and rights that are taken away in between, drawn by lot. The model of the broker has its limits, and ends connections
 * that go beyond them. `SIMULATION_SEEDS=1000` or `SEED=17` for more, or for one.
 */

import assert from "node:assert/strict";
import { test } from "node:test";

import { FakeWebSocket, World, settle } from "./fakes.js";
import { LIMITS, Model, lots } from "./model.js";

const ROWS = 400;
const STEPS = 120;
const MINUTE = 60_000;
const CODES = ["limit_subscriptions", "forbidden"]; // with which a subscription may end here
const REFUSALS = ["unknown_outcome", "timeout", "queue_full", "too_large", "invalid_channel"]; // likewise a publish
// A broker as it is, one that has other limits, and one that does not say so.
const BROKERS = [[{}], [{ requests_burst: 20, requests_per_second: 2, messages_burst: 5, message_bytes: 1500, subscriptions_per_connection: 50 }], [{ requests_burst: 30, messages_burst: 8 }, { message_bytes: 65_536, publish_bytes: 10_240 }]];

class Storm {
  rows = new Map(); // row → its subscription
  top = 0;
  publishes = []; // {n, channel, done?, error?}
  faults = [];

  constructor(world, seed) {
    this.world = world;
    this.seed = seed;
    this.chance = lots(seed);
    const [limits, told = { ...LIMITS, ...limits }] = BROKERS[seed % BROKERS.length];
    this.model = new Model(this.chance, limits, told);
    Math.random = this.chance;
    FakeWebSocket.onmade = (socket) => queueMicrotask(() => socket.open && this.model.accept(socket));
  }

  upTo(most) {
    return Math.floor(this.chance() * most);
  }

  open(row) {
    if (this.rows.has(row)) return;
    const starts = [{}, {}, { last: 1 }, { snapshot: true }];
    const sub = this.client.subscribe(`row.${row}`, starts[row % starts.length]);
    this.rows.set(row, sub);
    sub.addEventListener("end", ({ detail }) => {
      if (this.rows.get(row) === sub) this.rows.delete(row);
      if (detail && !CODES.includes(detail.code)) this.faults.push(`row.${row} ended: ${detail.code}`);
    });
    sub.addEventListener("event", ({ detail }) => {
      if (this.rows.get(row) !== sub || detail.channel !== `row.${row}`) this.faults.push(`row.${row} shows what it let go of`);
    });
  }

  shut(row) {
    const sub = this.rows.get(row);
    this.rows.delete(row);
    sub?.close();
  }

  /** A list of 40 rows is scrolled, far and fast. */
  async scroll() {
    for (let i = 0; i < 10; i++) {
      this.top = (this.top + this.upTo(60)) % ROWS;
      const shown = new Set(Array.from({ length: 40 }, (_, i) => (this.top + i) % ROWS));
      for (const row of [...this.rows.keys()]) if (!shown.has(row)) this.shut(row);
      for (const row of shown) this.open(row);
      if (this.chance() < 0.7) await settle();
      if (this.chance() < 0.5) await this.world.clock.go(16);
    }
  }

  publish() {
    const n = this.publishes.length;
    const name = this.chance() < 0.02 ? "no such channel" : `row.${this.upTo(20)}`;
    const channel = this.chance() < 0.3 ? `live.${name}` : name;
    const entry = { n, channel };
    this.publishes.push(entry);
    const event = this.chance() < 0.03 ? { n, text: "x".repeat(this.upTo(80_000)) } : { n };
    const options = { ...(this.chance() < 0.2 && { timeout: this.upTo(5_000) }) };
    this.client.publish(channel, event, options).then(
      (done) => (entry.done = done),
      (error) => (entry.error = error),
    );
  }

  /** A lid is closed: one clock stands still, and the broker gives the connection up. */
  sleep(ms) {
    this.world.clock.ahead += ms;
    for (const link of [...this.model.links]) link.cut();
  }

  async act() {
    const { model, world } = this;
    const draw = this.chance();
    if (draw < 0.08) for (let n = this.upTo(300); n--; ) this.open(this.upTo(ROWS));
    else if (draw < 0.14) for (const row of [...this.rows.keys()]) this.chance() < 0.8 && this.shut(row);
    else if (draw < 0.2) await this.scroll();
    else if (draw < 0.3) for (let n = this.upTo(40); n--; ) this.publish();
    else if (draw < 0.33) for (const link of [...model.links]) link.cut();
    else if (draw < 0.34) this.client.disconnect(), await settle(), this.client.connect();
    else if (draw < 0.35) this.sleep(this.upTo(20 * MINUTE));
    else if (draw < 0.38) for (let n = this.upTo(50); n--; ) model.posts.take(); // another tab of the user publishes
    else if (draw < 0.4) for (const link of model.links) link.subs.size && link.revoke([...link.subs.keys()][this.upTo(link.subs.size)]);
    else if (draw < 0.5) model.publish(`row.${this.upTo(ROWS)}`, {});
    else if (draw < 0.8) for (let n = this.upTo(60); n--; ) model.step() && (await settle());
    else await world.clock.go(this.upTo(3_000));
    await settle();
  }

  async live() {
    this.client = await this.world.client({ transports: ["websocket"] });
    for (let i = 0; i < STEPS; i++) await this.act();
    const { model } = this;
    const { chance } = model;
    model.chance = () => 0.1 + chance() * 0.9; // nothing is unavailable any more
    for (let idle = 0; idle < 300; ) {
      if (model.step()) await settle();
      else idle++, await this.world.clock.go(1_000);
    }
    this.check();
    this.client.close();
    await settle();
    assert.equal(this.world.clock.timers.size, 0, "timers are left");
  }

  check() {
    const { model } = this;
    assert.deepEqual(this.faults, []);
    assert.deepEqual(model.closes, [], "the broker has ended no connection");
    assert.ok(model.most < 50, `${model.most} refusals within a minute`);
    assert.equal(model.links.size, 1);
    const [link] = model.links;
    assert.deepEqual([...link.subs.keys()].sort(), [...this.rows.keys()].map((row) => `row.${row}`).sort(), "what it has is what is wanted");
    for (const [row, sub] of this.rows) assert.equal(sub.state, "live", `row.${row}`);
    for (const { n, channel, done, error } of this.publishes) {
      const live = channel.startsWith("live.");
      const stored = model.events.filter(({ event }) => event.n === n);
      const count = live ? model.lives.filter((event) => event.n === n).length : stored.length;
      const what = `publish ${n} into ${channel}: ${count} times, ${done ? "resolved" : error?.message}`;
      assert.ok(done || error, what);
      assert.ok(count < 2, what);
      if (done) assert.ok(count === 1 && (live || done.position === model.position(stored[0].sequence)), what);
      else assert.ok(REFUSALS.includes(error.code) && (!count || error.unknownOutcome), what);
    }
  }
}

test("whatever a page does: no limit is met, nothing is lost or doubled, and the broker has what is wanted", async () => {
  const { SEED, SIMULATION_SEEDS: SEEDS = 15 } = process.env;
  const faults = [];
  for (const seed of SEED ? [Number(SEED)] : [...Array(Number(SEEDS)).keys()]) {
    const world = new World();
    const uncaught = (error) => faults.push(`seed ${seed}: ${error.stack}`);
    for (const type of ["unhandledRejection", "uncaughtException"]) process.on(type, uncaught);
    try {
      await new Storm(world, seed).live();
    } catch (error) {
      faults.push(`seed ${seed}: ${SEED ? error.stack : error.message.split("\n").slice(0, 1)}`);
    } finally {
      world.end();
      await settle();
      for (const type of ["unhandledRejection", "uncaughtException"]) process.off(type, uncaught);
    }
  }
  assert.deepEqual(faults, []);
});
