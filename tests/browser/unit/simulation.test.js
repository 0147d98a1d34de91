/**
 * Whole lives of a client, drawn by lot, against a model of the broker: starts of all kinds, shared names, pauses,
 * restarts, cuts, trimmed and new streams, all in any order. `SEEDS=1000` or `SEED=17` for more, or for one.
 */

import assert from "node:assert/strict";
import { afterEach, beforeEach, test } from "node:test";

import { FakeWebSocket, World, settle } from "./fakes.js";
import { Model, lots, matches } from "./model.js";

const NAMES = ["a.1", "a.2", "a.*", "a.>", "b.1", "b.>", ">", "live.>", "me.x"];
const CHANNELS = ["a.d1", "a.d2", "a.1", "a.2", "b.1", "b.2", "a.1.x", "users.alice.x"];
const SEEDS = Number(process.env.SEEDS ?? 150);
const STEPS = 150;

let world;
beforeEach(() => (world = new World()));
afterEach(() => world.end());

/** One subscription and what it has brought since its start. */
class Reader {
  constructor(life, names, options, iterates) {
    Object.assign(this, { life, options, iterates });
    this.names = names.map((name) => name.replace(/^me\./, "users.alice."));
    this.sub = life.client.subscribe(names, options);
    this.begin();
    this.sub.addEventListener("state", ({ detail }) => (this.liveAt ??= detail === "live" ? life.now : undefined));
    this.sub.addEventListener("error", ({ detail }) => life.faults.push(`seed ${life.seed}: ${names} ${JSON.stringify(options)}: ${detail.code}`));
    if (iterates) this.iterate();
    else for (const type of ["event", "gap"]) this.sub.addEventListener(type, ({ detail }) => this.take(detail));
  }

  begin() {
    const { model } = this.life;
    this.items = [];
    this.liveAt = undefined;
    this.asked = { incarnation: model.incarnation, end: model.end };
    this.whole = !this.life.faulty;
  }

  async iterate() {
    for await (const item of this.sub) {
      this.take(item);
      if (this.life.chance() < 0.5) await new Promise((resolve) => setTimeout(resolve, this.life.chance() * 200));
    }
  }

  take(item) {
    if (item.type === "event" && !item.position) return;
    this.items.push(item);
    this.life.within(this);
  }

  check() {
    const { model, seed } = this.life;
    const what = `seed ${seed}: ${this.names} ${JSON.stringify(this.options)} ${this.iterates ? "iterated" : ""}`;
    assert.equal(this.sub.state, "live", what);
    const at = this.items.findLastIndex(({ type, reason }) => type === "gap" && reason === "reset");
    const gap = this.items.findLast(({ type }) => type === "gap");
    const taken = this.items.filter(({ type, position }) => type === "event" && position.startsWith(`i${model.incarnation}-`)).map(({ position }) => +position.split("-")[1]);
    assert.deepEqual(taken, [...new Set(taken)].sort((a, b) => a - b), `${what}: in order, nothing twice`);
    const all = model.events.filter(({ channel }) => this.names.some((name) => matches(name, channel))).map(({ sequence }) => sequence);
    if (this.options.snapshot) {
      const newest = new Map(model.stored(this.names).map(({ channel, sequence }) => [channel, sequence]));
      if (!gap) for (const sequence of newest.values()) assert.ok(taken.includes(sequence), `${what}: the newest of each`);
    } else if (!gap || at >= 0) {
      const from = at >= 0 ? +this.items[at].to.split("-")[1] + 1 : taken[0];
      if (gap?.reason !== "trimmed") assert.deepEqual(taken, all.filter((each) => each >= from), `${what}: nothing missing`);
    }
    if (gap || this.asked.incarnation !== model.incarnation) return;
    if (this.liveAt) {
      const after = this.options.snapshot ? this.liveAt.end : this.liveAt.end;
      assert.deepEqual(taken.filter((each) => each > after), all.filter((each) => each > after), `${what}: all since it was live`);
    }
    const { position } = this.options;
    if (position) {
      const from = +position.split("-")[1];
      assert.deepEqual(taken, all.filter((each) => each > from), `${what}: all after its position`);
    }
  }
}

class Life {
  readers = [];
  published = [];
  faults = [];
  durables = 0;

  constructor(seed) {
    this.seed = seed;
    this.chance = lots(seed);
    this.model = new Model(this.chance);
    Math.random = this.chance;
    FakeWebSocket.onmade = (socket) => queueMicrotask(() => socket.open && this.model.accept(socket));
  }

  get now() {
    return { incarnation: this.model.incarnation, end: this.model.end };
  }

  pick(list) {
    return list[Math.floor(this.chance() * list.length)];
  }

  reader() {
    let names = [...new Set([this.pick(NAMES), ...(this.chance() < 0.3 ? [this.pick(NAMES)] : [])])];
    const { model } = this;
    const options = this.pick([
      () => ({}),
      () => ({}),
      () => ({ last: 1 + Math.floor(this.chance() * 4) }),
      () => ({ snapshot: true }),
      () => {
        const known = this.client.position?.startsWith(`i${model.incarnation}-`);
        return known ? { position: model.position(Math.max(model.first - 1, Math.floor(this.chance() * (model.end + 1)))) } : {};
      },
      () => ({ durable: `d${++this.durables}` }),
    ])();
    // Who shares a name with a durable subscription is a part of it.
    if (options.durable) names = [`a.${options.durable}`];
    const iterates = this.chance() < 0.3;
    this.readers.push(new Reader(this, names, { ...options, ...(iterates && { buffer: 3 }) }, iterates));
  }

  /** What an application does in the middle of an event. */
  within(reader) {
    if (this.quiet || this.chance() > 0.03) return;
    const other = this.pick(this.readers);
    this.pick([
      () => other !== reader && this.leave(other),
      () => this.restart(other),
      () => (this.client.disconnect(), this.client.connect()),
      () => this.reader(),
      () => reader.options.durable && reader.sub.acknowledge(reader.items.at(-1)),
    ])();
  }

  leave(reader) {
    this.readers = this.readers.filter((each) => each !== reader);
    reader.sub.close();
  }

  restart(reader) {
    if (reader.iterates) return; // what waits in its buffer would come twice
    reader.sub.restart();
    reader.begin();
  }

  async act() {
    const { model } = this;
    const draw = this.chance();
    if (draw < 0.06) this.reader();
    else if (draw < 0.09 && this.readers.length) this.leave(this.pick(this.readers));
    else if (draw < 0.11 && this.readers.length) this.restart(this.pick(this.readers));
    else if (draw < 0.13) for (const link of [...model.links]) link.cut();
    else if (draw < 0.135) this.client.disconnect(), await settle(), this.client.connect();
    else if (draw < 0.137) model.reset();
    else if (draw < 0.14) model.trim();
    else if (draw < 0.18) {
      const channel = this.pick(CHANNELS);
      const entry = { channel, n: this.published.length };
      this.published.push(entry);
      this.client.publish(channel, entry.n, { id: `s${entry.n}` }).then((done) => (entry.done = done));
    } else if (draw < 0.35) model.publish(this.pick(CHANNELS), 0);
    else if (draw < 0.37) model.publish("live.x", 0);
    else if (draw < 0.95) model.step();
    else await world.clock.go(this.chance() * 600);
    await settle();
  }

  async live() {
    this.client = await world.client({ transports: ["websocket"] });
    this.client.addEventListener("error", ({ detail }) => this.faults.push(`seed ${this.seed}: ${detail.code}`));
    for (let i = 0; i < STEPS; i++) await this.act();
    this.quiet = true;
    const chance = this.chance;
    this.model.chance = () => 0.1 + chance() * 0.9;
    for (let idle = 0; idle < 20; ) {
      if (this.model.step()) await settle();
      else idle++, await world.clock.go(1_000);
    }
    assert.deepEqual(this.faults, [], this.faults[0]);
    for (const reader of this.readers) reader.check();
    assert.equal(this.client.queued, 0, `seed ${this.seed}: every publish is answered`);
    for (const { done, n } of this.published) assert.ok(done, `seed ${this.seed}: publish ${n}`);
    this.client.close();
    await settle();
    assert.equal(world.clock.timers.size, 0, `seed ${this.seed}: timers are left`);
  }
}

test("every stored event once and in order, whatever happens", async () => {
  const only = process.env.SEED;
  const seeds = only ? [Number(only)] : [...Array(SEEDS).keys()];
  const before = world;
  const faults = [];
  for (const seed of seeds) {
    world = new World();
    const rejected = (error) => faults.push(`seed ${seed}: ${error.message}`);
    process.on("unhandledRejection", rejected);
    process.on("uncaughtException", rejected);
    try {
      await new Life(seed).live();
    } catch (error) {
      faults.push(error.message.split("\n").slice(0, process.env.SEED ? 40 : 1).join("\n"));
    } finally {
      world.end();
      await settle();
      process.off("unhandledRejection", rejected);
      process.off("uncaughtException", rejected);
    }
  }
  world = before;
  assert.deepEqual(faults, []);
});
