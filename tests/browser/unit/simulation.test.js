/**
 * Whole lives of a client, drawn by lot, against a model of the broker: starts of all kinds, shared names, pauses,
 * restarts, cuts, trimmed and new streams, all in any order. `SIMULATION_SEEDS=1000` or `SEED=17` for more, or for one.
 */

import assert from "node:assert/strict";
import { test } from "node:test";

import { FakeWebSocket, World, settle } from "./fakes.js";
import { Model, lots, matches } from "./model.js";

const NAMES = ["a.1", "a.2", "a.*", "a.>", "b.1", "b.>", ">", "live.>", "me.x"];
const CHANNELS = ["a.d1", "a.d2", "a.1", "a.2", "b.1", "b.2", "a.1.x", "users.alice.x"];
const STEPS = 150;

/** One subscription and what it has brought since its start. */
class Reader {
  constructor(life, names, options, iterates) {
    Object.assign(this, { life, options, iterates });
    this.names = names.map((name) => name.replace(/^me\./, "users.alice."));
    this.sub = life.client.subscribe(names, options);
    this.begin();
    this.sub.addEventListener("state", ({ detail }) => (this.liveAt ??= detail === "live" ? life.model.end : undefined));
    this.sub.addEventListener("error", ({ detail }) => life.faults.push(`seed ${life.seed}: ${names} ${JSON.stringify(options)}: ${detail.code}`));
    if (iterates) this.iterate();
    else for (const type of ["event", "gap"]) this.sub.addEventListener(type, ({ detail }) => this.take(detail));
  }

  begin() {
    const { model } = this.life;
    this.items = [];
    this.liveAt = undefined;
    this.incarnation = model.incarnation;
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
    const sequence = (position) => Number(position.split("-")[1]);
    const reset = this.items.findLast(({ reason }) => reason === "reset");
    const gap = this.items.findLast(({ type }) => type === "gap");
    const here = this.items.filter(({ type, position }) => type === "event" && position.startsWith(`i${model.incarnation}-`));
    const taken = here.map(({ position }) => sequence(position));
    assert.deepEqual(taken, [...new Set(taken)].sort((a, b) => a - b), `${what}: in order, nothing twice`);
    const all = model.events.filter(({ channel }) => this.names.some((name) => matches(name, channel))).map(({ sequence }) => sequence);
    if (this.options.snapshot) {
      const newest = new Map(model.stored(this.names).map(({ channel, sequence }) => [channel, sequence]));
      if (!gap) for (const sequence of newest.values()) assert.ok(taken.includes(sequence), `${what}: the newest of each`);
    } else if (gap === reset) {
      const from = reset ? sequence(reset.to) + 1 : taken[0];
      assert.deepEqual(taken, all.filter((each) => each >= from), `${what}: nothing missing`);
    }
    if (gap || this.incarnation !== model.incarnation) return;
    if (this.liveAt) {
      const since = (sequences) => sequences.filter((each) => each > this.liveAt);
      assert.deepEqual(since(taken), since(all), `${what}: all since it was live`);
    }
    const { position } = this.options;
    if (position) assert.deepEqual(taken, all.filter((each) => each > sequence(position)), `${what}: all after its position`);
  }
}

class Life {
  readers = [];
  published = [];
  faults = [];
  durables = 0;

  constructor(world, seed) {
    this.world = world;
    this.seed = seed;
    this.chance = lots(seed);
    this.model = new Model(this.chance);
    Math.random = this.chance;
    FakeWebSocket.onmade = (socket) => queueMicrotask(() => socket.open && this.model.accept(socket));
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
    else await this.world.clock.go(this.chance() * 600);
    await settle();
  }

  async live() {
    this.client = await this.world.client({ transports: ["websocket"] });
    this.client.addEventListener("error", ({ detail }) => this.faults.push(`seed ${this.seed}: ${detail.code}`));
    for (let i = 0; i < STEPS; i++) await this.act();
    this.quiet = true;
    const chance = this.chance;
    this.model.chance = () => 0.1 + chance() * 0.9;
    for (let idle = 0; idle < 20; ) {
      if (this.model.step()) await settle();
      else idle++, await this.world.clock.go(1_000);
    }
    assert.deepEqual(this.faults, [], this.faults[0]);
    for (const reader of this.readers) reader.check();
    assert.equal(this.client.queued, 0, `seed ${this.seed}: every publish is answered`);
    for (const { done, n } of this.published) assert.ok(done, `seed ${this.seed}: publish ${n}`);
    this.client.close();
    await settle();
    assert.equal(this.world.clock.timers.size, 0, `seed ${this.seed}: timers are left`);
  }
}

test("every stored event once and in order, whatever happens", async () => {
  const { SEED, SIMULATION_SEEDS: SEEDS = 50 } = process.env;
  const faults = [];
  for (const seed of SEED ? [Number(SEED)] : [...Array(Number(SEEDS)).keys()]) {
    const world = new World();
    const uncaught = (error) => faults.push(`seed ${seed}: ${error.message}`);
    for (const type of ["unhandledRejection", "uncaughtException"]) process.on(type, uncaught);
    try {
      await new Life(world, seed).live();
    } catch (error) {
      faults.push(SEED ? error.stack : error.message.split("\n")[0]);
    } finally {
      world.end();
      await settle();
      for (const type of ["unhandledRejection", "uncaughtException"]) process.off(type, uncaught);
    }
  }
  assert.deepEqual(faults, []);
});
