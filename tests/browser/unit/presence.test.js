/** Presence: who is there, what is said of oneself, and what becomes of both after a cut. */

import assert from "node:assert/strict";
import { afterEach, beforeEach, describe, test } from "node:test";

import { World, settle } from "./fakes.js";
import { Site } from "./site.js";

/** By default in a session that is sorted after any that is made here. */
const member = (user, session = "~", rest = {}) => ({ user, session, since: "2026-01-31T12:00:00Z", ...rest });
const users = (room) => room.users.map(({ user }) => user);

/** What a tab keeps, and a copy of it does too. */
class Storage {
  items = new Map();
  getItem = (key) => this.items.get(key) ?? null;
  setItem = (key, value) => this.items.set(key, value);
}

/** Web Locks, as far as they are needed here. */
class Locks {
  held = new Set();
  async request(name, { signal }, then) {
    while (this.held.has(name)) {
      if (signal.aborted) throw new Error("aborted");
      await new Promise((resolve) => signal.addEventListener("abort", resolve));
    }
    this.held.add(name);
    await then();
    this.held.delete(name);
  }
}

let world, news;
beforeEach(() => {
  world = new World();
  news = [];
  globalThis.sessionStorage = new Storage();
});
afterEach(() => {
  world.end();
  delete globalThis.sessionStorage;
});

const sent = (...types) => world.socket.sent.filter(({ type }) => types.includes(type)).map(({ payload }) => payload);
const answer = (type, payload, to) => world.socket.say(type, { channel: "a", ...payload }, world.socket.last(to).messageId);
const refuse = (code, rest, to) => world.socket.say("error", { code, message: code, retryable: false, ...rest }, world.socket.last(to).messageId);
const say = (position, set, { gone = [], ...rest } = {}) =>
  world.socket.say("presence", { channel: "a", position, set, gone, users: set.length, sessions: set.length, ...rest });
const whole = (position, set, rest = {}) => say(position, set, { whole: true, complete: true, ...rest });
const watched = (rest = {}) => answer("presence.watched", { position: "e-1", recovered: true, detail: "full", ...rest }, "presence.watch");
const entered = () => answer("presence.entered", { position: "e-2" }, "presence.enter");

/** A room of the channel `a`, of which what it tells is in `news`. */
const open = (client, options) => {
  const room = client.presence("a", options);
  const names = (list) => list.map(({ user }) => user).join();
  room.addEventListener("change", ({ detail: { joined, left, updated } }) => news.push([names(joined), names(left), names(updated)].join("|")));
  for (const type of ["stale", "error"]) room.addEventListener(type, ({ detail }) => news.push(`${type} ${detail.code ?? detail}`));
  return room;
};
/** … that is entered and shown. */
const opened = async (options) => {
  const client = await world.connected();
  const room = open(client, options);
  await settle();
  watched();
  entered();
  whole("e-2", [member("alice", sent("presence.enter")[0].session), member("bob")]);
  await world.clock.go(1_000);
  news.length = 0;
  return [client, room];
};
const again = async () => {
  world.socket.cut();
  await world.again();
  world.socket.welcome();
  await settle();
};

describe("who is there", () => {
  test("by users, in as many messages as it takes; away only if all their sessions are", async () => {
    const client = await world.connected();
    const room = open(client, { enter: false });
    await settle();
    assert.deepEqual([sent("presence.enter", "presence.watch"), room.stale, room.users], [[{ channel: "a" }], true, []]);
    watched();
    const late = { since: "2026-01-31T12:00:01Z" };
    say("e-5", [member("bob", "2", { ...late, away: "hidden" }), member("bob", "1", { info: { name: "Bob" }, state: 1 })], { whole: true });
    assert.deepEqual([room.users, news], [[], []]);
    whole("e-5", [member("cy", "1", { ...late, away: "lost" })], { users: 2, sessions: 3 });
    assert.deepEqual(news, ["bob,cy||", "stale false"]);
    const [first, { since }] = [member("bob", "1").since, member("", "", late)];
    assert.deepEqual(room.users, [
      { user: "bob", since: first, sessions: [{ session: "1", state: 1, since: first }, { session: "2", away: "hidden", since }] },
      { user: "cy", away: "lost", since, sessions: [{ session: "1", away: "lost", since }] },
    ].map((each) => (each.user === "bob" ? { ...each, info: { name: "Bob" } } : each)));
    assert.deepEqual([room.members.length, room.count, room.detail], [3, { users: 2, sessions: 3 }, "full"]);
    say("e-7", [member("bob", "1", { away: "lost" })], { gone: [{ user: "cy", session: "1" }] });
    assert.equal(room.users[0].away, "lost");
    assert.deepEqual(news.slice(2), ["|cy|bob"]);
  });

  test("after a cut what is shown stays, and only what is another is told", async () => {
    const [, room] = await opened();
    const [{ session }] = sent("presence.enter");
    world.socket.cut();
    await settle();
    assert.deepEqual([users(room), room.stale, news], [["alice", "bob"], true, ["stale true"]]);
    await world.again();
    world.socket.welcome();
    await settle();
    assert.deepEqual(sent("presence.watch", "presence.enter"), [{ channel: "a", position: "e-2" }, { channel: "a", session }]);
    watched();
    say("e-9", [member("bob")], { users: 2, sessions: 2 });
    assert.deepEqual(news, ["stale true", "stale false"]);
    await again();
    assert.equal(sent("presence.watch")[0].position, "e-9");
    watched({ recovered: false });
    whole("f-1", [member("bob"), member("dan")]); // of another stream
    assert.deepEqual(news.slice(2), ["stale true", "dan|alice|", "stale false"]);
  });

  test("a position that is none is given up, and a set that was cut off forgotten", async () => {
    const [, room] = await opened();
    await again();
    refuse("invalid_position", {}, "presence.watch");
    await world.clock.go(10_000);
    assert.deepEqual(sent("presence.watch").at(-1), { channel: "a" });
    watched();
    say("e-9", [member("eve")], { whole: true });
    await again();
    watched();
    whole("e-9", [member("bob")]);
    assert.deepEqual(users(room), ["bob"]);
  });
});

describe("what is said of oneself", () => {
  test("the newest state, five times a second at most, and again after a cut", async () => {
    const [, room] = await opened({ state: { n: 0 } });
    assert.deepEqual(sent("presence.enter")[0].state, { n: 0 });
    for (let n = 1; n < 4; n++) room.set({ n });
    await settle();
    answer("presence.updated", {}, "presence.update");
    room.set({ n: 4 });
    room.set({ n: 5 });
    await world.clock.go(199);
    assert.deepEqual(sent("presence.update"), [{ channel: "a", state: { n: 3 } }]);
    await world.clock.go(1);
    assert.deepEqual(sent("presence.update").at(-1), { channel: "a", state: { n: 5 } });
    await again();
    assert.deepEqual(sent("presence.enter")[0].state, { n: 5 });
    assert.throws(() => room.set("x".repeat(2_000)), { code: "bad_message" });
    assert.throws(() => room.set(() => {}), TypeError);
  });

  test("typing for three seconds beside the state, said once a second at most", async () => {
    const [, room] = await opened({ state: { n: 1 } });
    room.typing("note");
    for (let n = 0; n < 9; n++) {
      await world.clock.go(100);
      if (!n) answer("presence.updated", {}, "presence.update");
      room.typing("note");
    }
    assert.deepEqual(sent("presence.update"), [{ channel: "a", state: { n: 1, typing: "note" }, for_ms: 3_000 }]);
    await world.clock.go(100);
    room.typing("note");
    room.set(null); // which ends it
    await settle();
    assert.deepEqual(sent("presence.update").slice(1), [{ channel: "a", state: null }]);
  });

  test("that the page is hidden, by itself", async () => {
    const [, room] = await opened();
    const turn = async (state) => {
      globalThis.document.visibilityState = state;
      world.page.dispatchEvent(new Event("visibilitychange"));
      await world.clock.go(300);
      answer("presence.updated", {}, "presence.update");
    };
    await turn("hidden");
    await turn("visible");
    room.away(true);
    await world.clock.go(300);
    assert.deepEqual(sent("presence.update").map(({ away }) => away), [true, null, true]);
    await again();
    assert.equal(sent("presence.enter")[0].away, true);
  });

  test("who closes leaves, the client with all rooms, the last room with its channel", async () => {
    const [client, room] = await opened();
    const other = client.presence("a", { enter: false });
    await settle();
    assert.deepEqual([users(other), sent("presence.watch").length], [["alice", "bob"], 1]);
    room.close();
    room.close();
    assert.deepEqual([sent("presence.leave"), sent("presence.unwatch")], [[{ channel: "a" }], []]);
    room.set(1);
    client.close();
    assert.deepEqual([sent("presence.leave").length, sent("presence.unwatch")], [1, [{ channel: "a" }]]);
    assert.equal(world.clock.timers.size, 0);
  });

  test("`me` is written out once it is known", async () => {
    const client = await world.client();
    const room = client.presence("me.desk");
    const same = client.presence("users.alice.desk");
    world.socket.welcome();
    await settle();
    const channel = "users.alice.desk";
    assert.deepEqual(sent("presence.watch"), [{ channel }]);
    say("e-1", [member("alice")], { channel, whole: true, complete: true });
    assert.deepEqual([users(room), users(same)], [["alice"], ["alice"]]);
    assert.throws(() => client.presence("a.*"), { code: "invalid_channel" });
  });
});

describe("refused", () => {
  test("for good it is told, and not asked again until somebody does; else it is asked in time", async () => {
    const client = await world.connected();
    const room = open(client);
    await settle();
    refuse("limit_presence", { retryable: true, retry_after_ms: 5_000 }, "presence.enter");
    refuse("forbidden", {}, "presence.watch");
    await world.clock.go(4_900);
    assert.deepEqual([news, room.error.code], [["error forbidden"], "forbidden"]);
    assert.deepEqual([sent("presence.enter").length, sent("presence.watch").length], [1, 1]);
    await world.clock.go(200);
    assert.equal(sent("presence.enter").length, 2);
    entered();
    await again();
    assert.deepEqual([sent("presence.enter").length, sent("presence.watch").length], [1, 0]);
    client.presence("a");
    await settle();
    assert.equal(sent("presence.watch").length, 1);
  });

  test("when the token allows it no more; and who is not there any more enters again", async () => {
    const [, room] = await opened();
    world.socket.say("presence.unwatched", { channel: "a", code: "forbidden" });
    assert.deepEqual([news, users(room)], [["error forbidden", "stale true"], ["alice", "bob"]]);
    room.set(1);
    await settle();
    refuse("not_entered", {}, "presence.update");
    await settle();
    assert.deepEqual(sent("presence.enter").map(({ state }) => state), [undefined, 1]);
    world.socket.say("presence.left", { channel: "a", code: "forbidden" });
    await world.clock.go(20_000);
    assert.deepEqual([news.at(-1), sent("presence.enter").length], ["error forbidden", 2]);
  });

  for (const transport of ["sse", "poll"])
    test(`over ${transport}, where there is none`, async () => {
      new Site().install();
      const client = await world.client({ transports: [transport] });
      const room = open(client, { enter: false });
      for (let n = 0; n < 30 && !room.error; n++) await world.clock.go(100);
      assert.deepEqual([news, room.error.code], [["error unavailable"], "unavailable"]);
    });
});

describe("the session", () => {
  test("is the tab's, after a reload too; another client of the page has its own", async () => {
    const [client] = await opened();
    const [{ session }] = sent("presence.enter");
    const enters = async () => {
      const client = await world.connected();
      client.presence("a");
      await settle();
      return [client, sent("presence.enter")[0].session];
    };
    const [second, other] = await enters();
    assert.notEqual(other, session);
    assert.match(other, /^[\w-]{1,64}$/);
    client.close();
    second.close();
    assert.equal((await enters())[1], session);
    assert.equal((await enters())[1], other);
  });

  test("that somebody else enters with is given up, in all channels for the same one", async () => {
    const [client] = await opened();
    client.presence("b");
    await settle();
    const [{ session }] = sent("presence.enter");
    for (const channel of ["a", "b"]) world.socket.say("presence.left", { channel, code: "replaced" });
    await settle();
    const [a, b] = sent("presence.enter").slice(2);
    assert.deepEqual([a.channel, b.channel, a.session], ["a", "b", b.session]);
    assert.notEqual(a.session, session);
    assert.deepEqual(news, []);
  });

  test("is held by a lock: a page that is reloaded waits for it, a copy takes another", async () => {
    const before = Object.getOwnPropertyDescriptor(globalThis, "navigator");
    const locks = new Locks();
    Object.defineProperty(globalThis, "navigator", { value: { locks }, configurable: true });
    try {
      const [client] = await opened();
      const [{ session }] = sent("presence.enter");
      assert.deepEqual([...locks.held], [`broker.v1 session ${session}`]);
      client.close();
      await settle();
      locks.held.add(`broker.v1 session ${session}`); // by the tab that this one is a copy of
      (await world.connected()).presence("a");
      await world.clock.go(900);
      assert.deepEqual(sent("presence.enter"), []);
      await world.clock.go(200);
      assert.notEqual(sent("presence.enter")[0].session, session);
    } finally {
      if (before) Object.defineProperty(globalThis, "navigator", before);
      else delete globalThis.navigator;
    }
  });
});
