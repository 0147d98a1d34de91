/** Documents over the connection: opened, kept, changed at once, and sent again as they were. */

import assert from "node:assert/strict";
import { afterEach, beforeEach, describe, test } from "node:test";

import { Changes } from "../../../broker/web/static/client/changes.js";
import { World, settle } from "./fakes.js";
import { Site, answer, problem } from "./site.js";

let world;
beforeEach(() => (world = new World()));
afterEach(() => world.end());

const sent = (type) => world.sockets.flatMap((socket) => socket.sent.filter((message) => message.type === type));
const reply = (type, payload, message) => world.socket.say(type, payload, message.messageId);
const opened = (name, position = "s-5", recovered = false) => {
  const message = sent("state.open").findLast(({ payload }) => payload.channel === name);
  reply("state.opened", { channel: [name], refused: [], position, recovered }, message);
};
const ready = (name, position = "s-5") => world.socket.say("state.ready", { channel: name, position });
const state = (channel, revision, rest, position = revision) => world.socket.say("state", { channel, revision, position, ...rest });
const news = (target, ...types) => {
  const heard = [];
  for (const type of types) target.addEventListener(type, ({ detail }) => heard.push([type, detail]));
  return heard;
};
const back = async () => {
  world.socket.cut();
  await world.again();
  world.socket.welcome();
  await settle();
};
/** An order that is here. */
const order = async (client, value = { amount: 1, note: "a" }) => {
  const doc = client.document("orders.7");
  await settle();
  opened("orders.7");
  state("orders.7", "s-5", { value });
  ready("orders.7");
  await settle();
  return doc;
};

describe("a document", () => {
  test("comes, is changed by others as a whole and by differences, and is asked for from where it stands", async () => {
    const client = await world.connected();
    const doc = await order(client);
    assert.deepEqual([doc.state, doc.value, doc.revision, doc.pending], ["live", { amount: 1, note: "a" }, "s-5", 0]);
    state("orders.7", "s-6", { from: "s-5", patch: { amount: 2, note: null } });
    state("orders.7", "s-6", { value: { amount: 99 } }); // another open brings the same
    state("orders.7", "s-4", { value: { amount: 98 } });
    assert.deepEqual(doc.value, { amount: 2 });
    await back();
    assert.deepEqual(sent("state.open").at(-1).payload, { channel: "orders.7", position: "s-6" });
    opened("orders.7", "s-6", true);
    ready("orders.7", "s-6");
    assert.deepEqual(doc.value, { amount: 2 });
    doc.close();
    await settle();
    assert.deepEqual(sent("state.close").at(-1).payload, { channel: "orders.7" });
    client.close();
    assert.equal(world.clock.timers.size, 0);
  });

  test("that a difference does not fit is opened anew", async () => {
    const client = await world.connected();
    const doc = await order(client);
    state("orders.7", "s-8", { from: "s-7", patch: { amount: 2 } });
    await settle();
    assert.deepEqual(sent("state.open").map(({ payload }) => payload), [{ channel: "orders.7" }, { channel: "orders.7" }]);
    opened("orders.7", "s-8");
    state("orders.7", "s-8", { value: { amount: 2 } });
    ready("orders.7", "s-8");
    assert.deepEqual(doc.value, { amount: 2 });
  });

  test("that has gone with its stream is gone, and what comes of another stream counts", async () => {
    const client = await world.connected();
    const doc = await order(client);
    await back();
    opened("orders.7", "s-9", false);
    ready("orders.7", "s-9");
    assert.equal(doc.value, null);
    world.socket.say("state.opened", { channel: ["orders.7"], refused: [], position: "t-1", recovered: false });
    state("orders.7", "t-1", { value: { amount: 3 } });
    ready("orders.7", "t-1");
    assert.deepEqual([doc.value, doc.revision], [{ amount: 3 }, "t-1"]);
  });

  test("is one under both of its names, also where they are used before it is known who asks", async () => {
    const client = await world.client();
    const [mine, full] = [client.document("me.list"), client.document("users.alice.list")];
    mine.change({ a: 1 });
    full.change({ b: 2 });
    world.socket.welcome();
    await settle();
    assert.deepEqual(sent("state.open").map(({ payload }) => payload.channel), ["users.alice.list"]);
    opened("users.alice.list");
    ready("users.alice.list");
    await settle();
    assert.deepEqual(sent("state.change").map(({ payload: { patch, was } }) => [patch, was]), [[{ a: 1, b: 2 }, null]]);
    for (const doc of [mine, full]) assert.deepEqual([doc.state, doc.value, doc.pending], ["live", { a: 1, b: 2 }, 1]);
  });

  test("is refused, or ended, with a reason", async () => {
    const client = await world.connected();
    const doc = client.document("orders.7");
    const heard = news(doc, "error");
    await settle();
    reply("error", { code: "forbidden", message: "no", retryable: false }, sent("state.open")[0]);
    await assert.rejects(doc.opened, { code: "forbidden" });
    assert.deepEqual([doc.state, heard.length, doc.error.code], ["closed", 1, "forbidden"]);
    const other = await order(client);
    world.socket.say("state.closed", { channel: "orders.7", code: "limit_documents" });
    assert.deepEqual([other.state, other.error.code], ["closed", "limit_documents"]);
    assert.throws(() => client.document("live.a"), { code: "invalid_channel" });
    assert.throws(() => client.document("a.*"), { code: "invalid_channel" });
  });
});

describe("a change", () => {
  test("is shown at once, sent with what it replaces, and no faster than a person needs", async () => {
    const client = await world.connected();
    const doc = await order(client);
    const heard = news(doc, "change");
    doc.change({ amount: 2 });
    assert.deepEqual([doc.value, doc.confirmed, doc.pending], [{ amount: 2, note: "a" }, { amount: 1, note: "a" }, 1]);
    await settle();
    doc.change({ amount: 3 });
    doc.change({ note: "b" });
    await settle();
    const [first] = sent("state.change");
    assert.match(first.payload.id, /^[A-Za-z0-9_-]+-1$/);
    assert.deepEqual([first.payload.patch, first.payload.was, sent("state.change").length], [{ amount: 2 }, { amount: 1 }, 1]);
    reply("state.changed", { id: first.payload.id, revisions: { "orders.7": "s-6" } }, first);
    await settle();
    assert.equal(sent("state.change").length, 1, "not yet");
    await world.clock.go(250);
    const [, second] = sent("state.change");
    assert.deepEqual([second.payload.patch, second.payload.was], [{ amount: 3, note: "b" }, { amount: 2, note: "a" }]);
    state("orders.7", "s-6", { from: "s-5", patch: { amount: 2 }, by: [{ user: "alice", id: first.payload.id }] });
    assert.deepEqual([doc.value, doc.pending], [{ amount: 3, note: "b" }, 1]);
    reply("state.changed", { id: second.payload.id, revisions: { "orders.7": "s-7" } }, second);
    assert.deepEqual(doc.value, { amount: 3, note: "b" }, "the reply alone takes nothing away");
    state("orders.7", "s-7", { value: { amount: 3, note: "b" } });
    assert.deepEqual([doc.pending, doc.confirmed], [0, { amount: 3, note: "b" }]);
    assert.ok(heard.length >= 5);
  });

  test("is sent again as it was: after a cut, and where its outcome is not known; then it says since when", async () => {
    const client = await world.connected();
    const doc = await order(client);
    doc.change({ amount: 2 });
    await settle();
    state("orders.7", "s-6", { value: { amount: 1, note: "b" } });
    await back();
    await world.clock.go(250);
    const [first, again] = sent("state.change");
    assert.deepEqual(again.payload, { ...first.payload, revision: "s-5" });
    reply("error", { code: "unknown_outcome", message: "late", retryable: false }, again);
    await world.clock.go(2_000);
    const third = sent("state.change").at(-1);
    assert.deepEqual([third.payload, sent("state.change").length], [again.payload, 3]);
    reply("state.changed", { id: first.payload.id, revisions: { "orders.7": "s-7" } }, third);
    opened("orders.7", "s-7", true);
    state("orders.7", "s-7", { value: { amount: 2, note: "a" } });
    ready("orders.7", "s-7");
    assert.deepEqual([doc.value, doc.pending], [{ amount: 2, note: "a" }, 0]);
  });

  test("that was seen stored is never called refused, and one that may be is of unknown outcome", async () => {
    const client = await world.connected();
    const doc = await order(client);
    const heard = news(doc, "conflict", "rejected");
    doc.change({ amount: 2 });
    await settle();
    state("orders.7", "s-6", { from: "s-5", patch: { amount: 2 }, by: [{ user: "alice", id: sent("state.change")[0].payload.id }] });
    state("orders.7", "s-7", { value: { amount: 3, note: "a" } });
    await back();
    await world.clock.go(250);
    const conflict = [{ channel: "orders.7", revision: "s-7", paths: { "/amount": 3 } }];
    reply("error", { code: "conflict", message: "others", retryable: false, conflict }, sent("state.change").at(-1));
    assert.deepEqual([doc.value, doc.pending, heard], [{ amount: 3, note: "a" }, 0, []]);
    for (const [code, told] of [["forbidden", "unknown_outcome"], ["rejected", "rejected"]]) {
      doc.change({ amount: 4 });
      await world.clock.go(250);
      await back();
      await world.clock.go(250);
      reply("error", { code, message: "no", retryable: false }, sent("state.change").at(-1));
      assert.equal(heard.at(-1)[1].error.code, told);
    }
  });

  test("that makes a document says, when it is sent again, since when there was none", async () => {
    const client = await world.connected();
    const orders = client.collection("orders.*");
    await settle();
    opened("orders.*");
    ready("orders.*");
    orders.change("orders.7", { amount: 1 });
    await settle();
    await back();
    await world.clock.go(250);
    const [first, again] = sent("state.change");
    assert.deepEqual(again.payload, { ...first.payload, revision: "s-0" });
  });

  test("that is stored is forgotten with its document, which begins anew when it is opened again", async () => {
    const client = await world.connected();
    const doc = await order(client);
    doc.change({ amount: 2 });
    await settle();
    doc.close();
    reply("state.changed", { id: "x", revisions: { "orders.7": "s-6" } }, sent("state.change")[0]);
    const again = client.document("orders.7");
    assert.deepEqual([again.value, again.revision, again.pending], [null, undefined, 0]);
  });

  test("is kept from when it is known whose it is until it is stored, and then forgotten", async () => {
    const saved = [];
    const asked = [];
    const exchange = { link: {}, pace: { changes: {}, most: 1e6 }, due: () => true, may: () => true, soon: () => {}, send: (...all) => asked.push(all) };
    const keeping = { take: async () => [], save: async (_, channel, kept) => void saved.push([channel, structuredClone(kept)]) };
    const changes = new Changes(exchange, keeping);
    const user = {};
    changes.edit("a", user).change({ n: 1 });
    changes.typed("a");
    assert.deepEqual(saved, []);
    changes.opened({ tenant: "t", user: "u" });
    await settle();
    assert.deepEqual(saved, [["a", [{ patch: { d: { n: 1 } } }]]]);
    changes.heard("a", { revision: "s-1", value: null });
    changes.leave(user);
    for (let i = 0; i < 3; i++) {
      changes.sync();
      await settle();
    }
    const [[, payload, { done }]] = asked;
    assert.deepEqual([saved.at(-1)[1][0].id, changes.draft("a").pending], [payload.id, 1]);
    done({ revisions: { a: "s-2" } });
    await settle();
    assert.deepEqual([saved.at(-1), changes.draft("a")], [["a", []], undefined]);
  });

  test("is sent although the document was closed before anything had come", async () => {
    const client = await world.connected();
    const doc = client.document("orders.7");
    doc.change({ note: "b" });
    doc.close();
    await settle();
    opened("orders.7");
    state("orders.7", "s-5", { value: { amount: 1 } });
    ready("orders.7");
    await settle();
    const [{ payload }] = sent("state.change");
    assert.deepEqual([payload.patch, payload.was, sent("state.close").length], [{ note: "b" }, { note: null }, 1]);
    reply("state.changed", { id: payload.id, revisions: { "orders.7": "s-6" } }, sent("state.change")[0]);
    client.close();
    assert.equal(world.clock.timers.size, 0);
  });

  test("that conflicts is taken back where it does, and may be kept all the same", async () => {
    const client = await world.connected();
    const doc = await order(client);
    const heard = news(doc, "conflict", "rejected");
    doc.change({ amount: 2, note: "b" });
    await settle();
    state("orders.7", "s-6", { value: { amount: 9, note: "a" } });
    const conflict = [{ channel: "orders.7", revision: "s-6", paths: { "/amount": 9 } }];
    reply("error", { code: "conflict", message: "others", retryable: false, conflict }, sent("state.change")[0]);
    assert.deepEqual(doc.value, { amount: 9, note: "b" });
    const [[type, { keep, ...told }]] = heard;
    assert.deepEqual([type, told], ["conflict", { channel: "orders.7", paths: ["/amount"], mine: { amount: 2 }, theirs: { "/amount": 9 } }]);
    keep("mine");
    assert.deepEqual(doc.value, { amount: 2, note: "b" });
    await world.clock.go(250);
    const { patch, was } = sent("state.change")[1].payload;
    assert.deepEqual([patch, was], [{ note: "b", amount: 2 }, { note: "a", amount: 9 }]);
  });

  test("that adds is shown, and where there is no number may be made once more", async () => {
    const client = await world.connected();
    const doc = await order(client);
    const heard = news(doc, "conflict");
    doc.change(undefined, { add: { "/amount": -3 } });
    assert.deepEqual(doc.value, { amount: -2, note: "a" });
    await settle();
    const [first] = sent("state.change");
    assert.deepEqual(first.payload, { id: first.payload.id, channel: "orders.7", add: { "/amount": -3 }, revision: "s-5" });
    const conflict = [{ channel: "orders.7", revision: "s-6", paths: { "/amount": "x" } }];
    reply("error", { code: "conflict", message: "others", retryable: false, conflict }, first);
    state("orders.7", "s-7", { value: { amount: 9, note: "a" } });
    const [[, { keep, ...told }]] = heard;
    assert.deepEqual(told, { channel: "orders.7", add: { "/amount": -3 }, paths: ["/amount"], theirs: { "/amount": "x" } });
    keep("mine");
    assert.deepEqual(doc.value, { amount: 6, note: "a" });
    assert.throws(() => doc.change(undefined), TypeError);
  });

  test("that a service refuses is taken back", async () => {
    const client = await world.connected();
    const doc = await order(client);
    const heard = news(doc, "rejected");
    doc.change({ amount: -1 });
    await settle();
    reply("error", { code: "rejected", message: "too little", retryable: false, paths: { "/amount": "at least 0" } }, sent("state.change")[0]);
    assert.deepEqual([doc.value, doc.pending], [{ amount: 1, note: "a" }, 0]);
    const [[, { error, mine }]] = heard;
    assert.deepEqual([error.code, error.paths, mine], ["rejected", { "/amount": "at least 0" }, { amount: -1 }]);
  });

  test("waits where the broker says so", async () => {
    const client = await world.connected();
    const doc = await order(client);
    doc.change({ amount: 2 });
    await settle();
    reply("error", { code: "unavailable", message: "away", retryable: true, retry_after_ms: 3_000 }, sent("state.change")[0]);
    await world.clock.go(2_900);
    assert.equal(sent("state.change").length, 1);
    await world.clock.go(200);
    assert.deepEqual(sent("state.change")[1].payload, sent("state.change")[0].payload);
    doc.close();
    reply("state.changed", { id: "x", revisions: { "orders.7": "s-6" } }, sent("state.change")[1]);
  });
});

describe("a change of several documents", () => {
  const all = ["orders.7", "orders.8"];
  const here = (name, revision, value) => {
    opened(name);
    state(name, revision, { value });
    ready(name);
  };
  const moved = [
    { channel: "orders.7", patch: { note: "b" }, add: { "/stock": -1 } },
    { channel: "orders.8", patch: { by: "me" } },
  ];
  const told = (promise) => promise.then((revisions) => ["stored", revisions], (error) => [error.code, error.conflict]);

  test("is one message once all are known, shown in each, and told to its caller", async () => {
    const client = await world.connected();
    const doc = client.document("orders.7");
    await settle();
    here("orders.7", "s-5", { stock: 3, note: "a" });
    const heard = news(doc, "change", "conflict", "rejected");
    const end = told(client.change(moved));
    assert.deepEqual([doc.value, heard.length], [{ stock: 2, note: "b" }, 1]);
    doc.change({ note: "c" });
    await settle();
    assert.equal(sent("state.change").length, 0);
    here("orders.8", "s-6", null);
    await settle();
    const [first] = sent("state.change");
    assert.match(first.payload.id, /-1$/);
    const parts = [
      { channel: "orders.7", patch: { note: "b" }, was: { note: "a" }, add: { "/stock": -1 }, revision: "s-5" },
      { channel: "orders.8", patch: { by: "me" }, was: null },
    ];
    assert.deepEqual(first.payload, { id: first.payload.id, changes: parts });
    await back();
    for (const name of all) here(name, "s-6", name === "orders.7" ? { stock: 3, note: "a" } : null);
    await world.clock.go(250);
    const again = sent("state.change").at(-1);
    assert.deepEqual(again.payload, { id: first.payload.id, changes: [parts[0], { ...parts[1], revision: "s-6" }] });
    const revisions = { "orders.7": "s-8", "orders.8": "s-9" };
    reply("state.changed", { id: first.payload.id, revisions }, again);
    assert.deepEqual(await end, ["stored", revisions]);
    state("orders.7", "s-8", { value: { stock: 2, note: "b" } });
    await world.clock.go(250);
    const { patch, was } = sent("state.change").at(-1).payload;
    assert.deepEqual([patch, was, doc.value], [{ note: "c" }, { note: "b" }, { stock: 2, note: "c" }]);
    assert.deepEqual(sent("state.close").map(({ payload }) => payload.channel), ["orders.8"]);
  });

  test("is taken back in all of them, and what stops it is told", async () => {
    const client = await world.connected();
    const doc = client.document("orders.7");
    await settle();
    here("orders.7", "s-5", { stock: 3, note: "a" });
    const heard = news(doc, "conflict", "rejected");
    const end = told(client.change(moved));
    await settle();
    here("orders.8", "s-6", null);
    await settle();
    const conflict = [{ channel: "orders.8", revision: "s-7", paths: { "": { by: "you" } } }];
    reply("error", { code: "conflict", message: "others", retryable: false, conflict }, sent("state.change")[0]);
    assert.deepEqual([await end, doc.value, doc.pending, heard], [["conflict", conflict], { stock: 3, note: "a" }, 0, []]);
    const refused = told(client.change(moved));
    await settle();
    reply("error", { code: "forbidden", message: "no", retryable: false }, sent("state.open").at(-1));
    assert.deepEqual([await refused, doc.pending], [["forbidden", undefined], 0]);
    for (const wrong of [[], [moved[0], moved[0]], [{ channel: "a" }], [{ channel: "a", add: { a: 1 } }], [{ channel: "a", add: { "/a": "1" } }]])
      await assert.rejects(client.change(wrong), TypeError);
    await assert.rejects(client.change([moved[0], { channel: "a.*", patch: {} }]), { code: "invalid_channel" });
    assert.deepEqual([doc.value, doc.pending], [{ stock: 3, note: "a" }, 0]);
    const last = told(client.change(moved));
    client.close();
    assert.deepEqual(await last, ["closed", undefined]);
    assert.equal(world.clock.timers.size, 0);
  });
});

describe("a collection", () => {
  test("has what its pattern brings and the user's own changes, and documents of it need no open of their own", async () => {
    const client = await world.connected();
    const board = client.collection("board.7.*");
    const heard = news(board, "change");
    await settle();
    opened("board.7.*");
    state("board.7.a", "s-3", { value: { rank: "b" } });
    state("board.7.b", "s-4", { value: { rank: "c" } });
    ready("board.7.*");
    const before = board.all;
    board.change("board.7.a", { rank: "d" });
    board.change("board.7.new", { rank: "a" });
    assert.deepEqual([[...before.keys()], board.all.get("board.7.a"), board.all.get("board.7.new")], [["board.7.a", "board.7.b"], { rank: "d" }, { rank: "a" }]);
    const card = client.document("board.7.a");
    await settle();
    assert.deepEqual([card.state, card.value, sent("state.open").length], ["live", { rank: "d" }, 1]);
    assert.deepEqual(sent("state.change").map(({ payload: { channel, was } }) => [channel, was]), [["board.7.a", { rank: "b" }], ["board.7.new", null]]);
    state("board.7.b", "s-6", { value: null });
    assert.deepEqual([...board.all.keys()].sort(), ["board.7.a", "board.7.new"]);
    board.close();
    await settle();
    assert.deepEqual(sent("state.open").at(-1).payload, { channel: "board.7.a" }, "what is wanted of it by itself");
    assert.ok(heard.length >= 5);
    client.close();
  });

  test("says why what a service has stored is no document, as a document does", async () => {
    const client = await world.connected();
    const board = client.collection("board.7.*");
    await settle();
    opened("board.7.*");
    state("board.7.a", "s-3", { value: { rank: "b" } });
    state("board.7.b", "s-4", { invalid: "it is a list" });
    ready("board.7.*");
    const before = board.invalid;
    const [card, other] = [client.document("board.7.a"), client.document("board.7.b")];
    assert.deepEqual([[...before], [...board.all.keys()], card.invalid, other.value, other.invalid], [[["board.7.b", "it is a list"]], ["board.7.a"], undefined, null, "it is a list"]);
    const heard = news(card, "change", "rejected");
    state("board.7.a", "s-5", { invalid: "it is 7" });
    assert.deepEqual([heard.at(-1), card.invalid, card.confirmed, board.all.size, board.invalid.size, before.size], [["change", null], "it is 7", null, 0, 2, 1]);
    card.change({ rank: "c" });
    await settle();
    reply("error", { code: "rejected", message: "no document: it is 7", retryable: false }, sent("state.change")[0]);
    assert.deepEqual([heard.at(-1)[1].error.message, card.value], ["no document: it is 7", null]);
    for (const name of ["board.7.a", "board.7.b"]) state(name, "s-6", { value: { rank: "d" } });
    assert.deepEqual([card.invalid, other.invalid, board.invalid.size, board.all.size], [undefined, undefined, 0, 2]);
  });

  test("forgets what has gone meanwhile", async () => {
    const client = await world.connected();
    const board = client.collection("board.7.*");
    await settle();
    opened("board.7.*");
    state("board.7.a", "s-3", { value: { rank: "b" } });
    state("board.7.b", "s-4", { value: { rank: "c" } });
    ready("board.7.*");
    await back();
    opened("board.7.*", "s-9", false);
    state("board.7.b", "s-4", { value: { rank: "c" } });
    ready("board.7.*", "s-9");
    assert.deepEqual([...board.all], [["board.7.b", { rank: "c" }]]);
  });
});

describe("over HTTP", () => {
  test("documents are read again and again, and changes are posted", async () => {
    const site = new Site();
    site.install();
    const stored = { revision: "s-5", value: { amount: 1 } };
    const asked = [];
    site.fault = (pathname, init, { searchParams }) => {
      if (pathname !== "/state") return undefined;
      if (init.method === "POST") {
        const { id, channel, patch, was } = JSON.parse(init.body);
        asked.push({ channel, patch, was });
        if (patch.amount < 0) return problem(422, "rejected", { paths: { "/amount": "at least 0" } });
        Object.assign(stored, { revision: "s-6", value: { amount: 2 } });
        return answer(JSON.stringify({ id, revisions: { [channel]: "s-6" } }));
      }
      const position = searchParams.get("position");
      const documents = position === stored.revision ? [] : [{ channel: "orders.7", ...stored }];
      return answer(JSON.stringify({ documents, refused: [], position: stored.revision, recovered: !!position }));
    };
    const client = await world.client({ transports: ["poll"] });
    for (let i = 0; i < 20 && client.status.state !== "open"; i++) await world.clock.go(500);
    const doc = client.document("orders.7");
    for (let i = 0; i < 20 && doc.state !== "live"; i++) await world.clock.go(100);
    assert.deepEqual(doc.value, { amount: 1 });
    doc.change({ amount: 2 });
    for (let i = 0; i < 20 && doc.pending; i++) await world.clock.go(500);
    assert.deepEqual([doc.confirmed, asked], [{ amount: 2 }, [{ channel: "orders.7", patch: { amount: 2 }, was: { amount: 1 } }]]);
    Object.assign(stored, { revision: "s-7", value: { amount: 7 } });
    for (let i = 0; i < 20 && doc.value.amount !== 7; i++) await world.clock.go(500);
    assert.deepEqual(doc.value, { amount: 7 });
    const heard = news(doc, "rejected");
    doc.change({ amount: -1 });
    for (let i = 0; i < 20 && doc.pending; i++) await world.clock.go(500);
    assert.deepEqual([doc.value, heard[0][1].error.paths], [{ amount: 7 }, { "/amount": "at least 0" }]);
    client.close();
  });
});
