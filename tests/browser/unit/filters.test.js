/** Filters, by the cases that the broker is held to as well: tests/client/filters.json; and how they are asked for. */

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { afterEach, beforeEach, describe, test } from "node:test";

import { Filter, either } from "../../../broker/web/static/client/filters.js";
import { World, positions, record, settle } from "./fakes.js";

const { cases, bad, unions } = JSON.parse(readFileSync(new URL("../../client/filters.json", import.meta.url), "utf8"));

describe("what passes", () => {
  for (const { about, filter, passes, fails } of cases)
    test(about, () => {
      const wanted = new Filter(filter);
      assert.deepEqual(passes.filter((event) => !wanted.passes(JSON.parse(event))), []);
      assert.deepEqual(fails.filter((event) => wanted.passes(JSON.parse(event))), []);
    });
});

describe("what is no filter", () => {
  for (const { filter, names } of bad)
    test(names, () => {
      const named = ({ code, message }) => code === "bad_message" && message.startsWith(`${names}: `);
      assert.throws(() => new Filter(filter), named);
    });

  for (const filter of [{ "/a": "x".repeat(4097) }, { ["/" + "x".repeat(4097)]: 1 }, { ["x".repeat(60_000)]: 1 }])
    test(`too much: ${JSON.stringify(filter).slice(0, 20)}`, () =>
      assert.throws(() => new Filter(filter), ({ code, message }) => code === "bad_message" && message.length < 300));
});

describe("unions", () => {
  for (const { filters, passes, fails, joined } of unions)
    test(JSON.stringify(filters).slice(0, 60), () => {
      const union = either(filters.map((each) => each && new Filter(each)).map((each) => each ?? undefined));
      assert.equal(!!union, joined);
      if (union) for (const event of passes) assert.ok(union.passes(JSON.parse(event)));
      if (union) for (const event of fails) assert.ok(!union.passes(JSON.parse(event)));
    });
});

describe("subscriptions with a filter", () => {
  let world;
  beforeEach(() => (world = new World()));
  afterEach(() => world.end());

  const limits = { filters_per_connection: 4 };
  const asked = () => world.socket.sent.filter(({ type }) => type === "subscribe").map(({ payload }) => payload);
  const big = { "/n": { gte: 10 } };
  const small = { "/n": { lt: 5 } };

  test("it is asked for, also after a cut, and what was sent for another one does not come", async () => {
    const client = await world.connected({ limits });
    const items = record(client.subscribe("a", { filter: big }));
    await settle();
    assert.deepEqual(asked(), [{ channel: ["a"], filter: big }]);
    world.socket.subscribed("x-1");
    world.socket.event("a", "x-2", { n: 1 });
    world.socket.event("a", "x-3", { n: 10 });
    world.socket.event("a", "x-4", null);
    assert.deepEqual(positions(items), ["x-3", "x-4"]);
    world.socket.event("a", "x-5", { n: 2 });
    world.socket.cut();
    await world.again();
    world.socket.welcome({ limits });
    await settle();
    assert.deepEqual(asked(), [{ channel: ["a"], position: "x-5", filter: big }]);
  });

  test("those of different filters go into different messages, those of the same into one", async () => {
    const client = await world.connected({ limits });
    for (const [name, filter] of [["a", big], ["b", small], ["c", big], ["d", undefined]]) client.subscribe(name, { filter });
    await settle();
    assert.deepEqual(asked(), [{ channel: ["a", "c"], filter: big }, { channel: ["b"], filter: small }, { channel: ["d"] }]);
  });

  test("two of one channel: any of both is asked for, each gets its own", async () => {
    const client = await world.connected({ limits });
    const first = record(client.subscribe("a", { filter: big }));
    const second = record(client.subscribe("a", { filter: small }));
    await settle();
    assert.deepEqual(asked(), [{ channel: ["a"], filter: { any: [big, small] } }]);
    world.socket.subscribed("x-1");
    for (const [i, n] of [1, 7, 10].entries()) world.socket.event("a", `x-${i + 2}`, { n });
    assert.deepEqual([positions(first), positions(second)], [["x-4"], ["x-2"]]);
  });

  test("a second one that wants more is asked for together with the first, from where that stands", async () => {
    const client = await world.connected({ limits });
    const first = record(client.subscribe("a", { filter: big }));
    await settle();
    world.socket.subscribed("x-1");
    world.socket.event("a", "x-2", { n: 10 });
    client.subscribe("a", { filter: big });
    await settle();
    assert.equal(asked().length, 1, "the same is had already");
    const all = record(client.subscribe("a"));
    await settle();
    assert.deepEqual(asked().slice(1), [{ channel: ["a"], position: "x-2" }]);
    world.socket.subscribed("x-2");
    world.socket.event("a", "x-3", { n: 1 });
    world.socket.event("a", "x-4", { n: 11 });
    assert.deepEqual([positions(first), positions(all)], [["x-2", "x-4"], ["x-3", "x-4"]]);
  });

  test("beyond what a connection may have, and where the broker has none, all is asked for", async () => {
    const client = await world.connected({ limits: { filters_per_connection: 1 } });
    const items = ["a", "b"].map((name) => record(client.subscribe(name, { filter: name === "a" ? big : small })));
    await settle();
    assert.deepEqual(asked(), [{ channel: ["a"], filter: big }, { channel: ["b"] }]);
    world.socket.subscribed("x-1");
    world.socket.event("b", "x-2", { n: 9 });
    world.socket.event("b", "x-3", { n: 1 });
    assert.deepEqual(positions(items[1]), ["x-3"]);
    world.socket.cut();
    await world.again();
    world.socket.welcome();
    await settle();
    assert.ok(asked().every((each) => !("filter" in each)));
  });

  test("what is none ends with an error that names the node, and a snapshot has none", async () => {
    const client = await world.connected({ limits });
    for (const [options, named] of [[{ filter: { "/a": { gtt: 1 } } }, /gtt/], [{ filter: big, snapshot: true }, /snapshot/]]) {
      const ended = new Promise((resolve) => client.subscribe("a", options).addEventListener("end", ({ detail }) => resolve(detail)));
      const error = await ended;
      assert.equal(error.code, "bad_message");
      assert.match(error.message, named);
    }
    assert.throws(() => client.subscribe("a", { filter: { "/a": NaN } }), TypeError);
    assert.deepEqual(asked(), []);
  });
});
