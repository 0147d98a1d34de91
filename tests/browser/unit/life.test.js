/** Clocks that are set and devices that sleep; pages that go and come back; lists that are too long; few connections. */

import assert from "node:assert/strict";
import { afterEach, beforeEach, describe, test } from "node:test";

import { World, jwt, settle } from "./fakes.js";
import { Site, answer, never } from "./site.js";

const HOUR = 3_600_000;
const JUMPS = [HOUR, -HOUR, 9 * HOUR, -9 * HOUR];

let world, site;
beforeEach(() => (world = new World()));
afterEach(() => {
  world.end();
  delete globalThis.localStorage;
});

/** Time in which what is read gets its turns. */
const go = async (ms) => {
  for (let gone = 0; gone < ms; gone += 500) {
    await new Promise(setImmediate);
    await world.clock.go(Math.min(ms - gone, 500));
  }
  await new Promise(setImmediate);
  await settle();
};

/** The device sleeps: no timer moves, and neither does the clock that nobody sets. */
const sleep = (ms) => (world.clock.ahead += ms);

/** Sockets that answer pings and renew tokens, as the broker does. */
const serve = (life) => {
  const said = { pings: 0, renewals: 0 };
  world.socket.onsent = ({ type }) => {
    if (type === "ping") said.pings++, world.socket.say("pong");
    if (type === "authenticate") said.renewals++, world.socket.say("connection.authenticated", { expires_at: new Date().toISOString() });
  };
  world.socket.welcome({ expires_in: life });
  return said;
};

describe("clocks", () => {
  for (const ahead of [0, 2 * HOUR, -2 * HOUR])
    for (const [life, most] of [
      [3_600, 4],
      [300, 40],
      [60, 121],
    ])
      test(`a device ${ahead / HOUR} h ahead: tokens of ${life} s are renewed as often as that takes`, async () => {
        world.clock.ahead = ahead;
        let asked = 0;
        // The token service and the broker agree about the time; the device does not.
        const token = () => jwt(`t${++asked}`, { iat: Math.floor(world.clock.now / 1000), exp: Math.floor(world.clock.now / 1000) + life });
        const client = await world.client({ token });
        const said = serve(life);
        await world.clock.go(HOUR);
        assert.ok(asked <= most, `${asked} tokens in an hour`);
        assert.equal(said.renewals, asked - 1);
        assert.ok(asked > 3600 / life - 1, `${asked} tokens in an hour`);
        assert.equal(world.sockets.length, 1);
        assert.equal(client.status.state, "open");
      });

  test("a broker that says again and again that a token of 60 s expires: half of its life has to pass", async () => {
    let asked = 0;
    await world.client({ token: () => jwt(`t${++asked}`, { iat: 0, exp: 60 }) });
    const expires = () => world.socket.say("connection.expiring", { expires_at: "2030-01-01T00:00:00Z" });
    const said = serve(60);
    const { onsent } = world.socket;
    world.socket.onsent = (message) => (onsent(message), message.type === "authenticate" && expires());
    expires();
    await world.clock.go(300_000);
    assert.equal(asked, 11);
    assert.equal(said.renewals, 10);
  });

  for (const jump of JUMPS) {
    test(`set by ${jump / HOUR} h, the link is asked, and all goes on`, async () => {
      let asked = 0;
      const client = await world.client({ token: () => jwt(`t${++asked}`, { iat: 0, exp: 7_200 }) });
      const said = serve(7_200);
      await world.clock.go(3_000);
      world.clock.ahead += jump;
      await world.clock.go(5_000);
      assert.equal(said.pings, 1);
      await world.clock.go(HOUR);
      assert.equal(world.sockets.length, 1);
      assert.equal(asked, 1);
      assert.equal(client.status.state, "open");
    });

    test(`set by ${jump / HOUR} h, a link that dies is left as soon as ever`, async () => {
      const client = await world.connected();
      await world.clock.go(3_000);
      world.clock.ahead += jump;
      await world.clock.go(15_000);
      assert.equal(world.sockets[0].open, false);
      world.socket.welcome();
      // And the next one, with nothing to notice any more.
      await world.clock.go(12_500 + 10_000);
      assert.equal(world.sockets[1].open, false);
      assert.notEqual(client.status.state, "open");
    });

    test(`set by ${jump / HOUR} h, the waits are as long as ever`, async () => {
      await world.client();
      for (let i = 0; i < 6; i++) {
        world.socket.cut();
        await world.again();
      }
      world.socket.cut();
      await settle();
      world.clock.ahead += jump;
      const before = world.sockets.length;
      await world.clock.go(19_999);
      assert.equal(world.sockets.length, before);
      await world.clock.go(1);
      assert.equal(world.sockets.length, before + 1);
    });

    test(`set by ${jump / HOUR} h, what is remembered of a transport is not believed for longer`, async () => {
      const items = new Map([["broker http://broker.test", `poll ${Date.now() + HOUR / 2}`]]);
      globalThis.localStorage = { getItem: (key) => items.get(key) ?? null, setItem: (key, value) => items.set(key, value) };
      world.clock.ahead += jump;
      await world.client();
      assert.equal(world.sockets.length, 1);
    });
  }

  test("after a sleep a link is asked, and left if it does not answer, however little time seems to have passed", async () => {
    await world.connected();
    await world.clock.go(1_000);
    sleep(8 * HOUR);
    await world.clock.go(4_000);
    assert.equal(world.socket.count("ping"), 1);
    await world.clock.go(10_000);
    assert.equal(world.sockets[0].open, false);
  });

  test("after a sleep in which the clock went on, a link that was asked before it is asked once more", async () => {
    await world.connected();
    const { socket } = world;
    await world.clock.go(12_500);
    assert.equal(socket.count("ping"), 1);
    for (const timer of world.clock.timers.values()) timer.at += HOUR; // nothing ran, and it is late
    world.clock.now += HOUR;
    await world.clock.go(5_000);
    assert.equal(socket.count("ping"), 2);
    socket.say("pong", {});
    await world.clock.go(5_000);
    assert.equal(socket.open, true);
  });

  for (const transport of ["sse", "poll"])
    test(`after a sleep ${transport} asks anew, and is left if there is no answer`, async () => {
      (site = new Site()).install();
      const client = await world.client({ transports: [transport] });
      await go(3_000);
      assert.equal(client.status.state, "open");
      const asked = () => site.asked.filter((path) => path === `/${transport}`).length;
      const before = asked();
      sleep(HOUR);
      await go(6_000);
      assert.ok(asked() > before);
      assert.equal(client.status.state, "open");
      site.fault = (path, { signal }) => never(signal);
      sleep(HOUR);
      await go(16_000);
      assert.notEqual(client.status.state, "open");
    });
});

describe("a token that cannot be judged yet", () => {
  const later = (messageId) =>
    world.socket.say("error", { code: "unavailable", message: "the key set is being fetched", retryable: true, retry_after_ms: 4_000 }, messageId);

  test("is shown again when the broker asked for it, and not before", async () => {
    const client = await world.client();
    later();
    await world.clock.go(3_999);
    assert.equal(world.sockets.length, 1);
    assert.deepEqual(client.status.error, { code: 1013, message: "the key set is being fetched" });
    await world.clock.go(1);
    assert.equal(world.sockets.length, 2);
    assert.equal(world.socket.protocols[1], `bearer.${jwt()}`);
  });

  test("at a renewal is shown again on the same link", async () => {
    let asked = 0;
    const client = await world.connected({ token: () => jwt(`t${++asked}`) });
    world.socket.say("connection.expiring", { expires_at: "2030-01-01T00:00:00Z" });
    await world.clock.go(5_000);
    assert.equal(world.socket.count("authenticate"), 1);
    for (let i = 2; i < 4; i++) {
      later(world.socket.last("authenticate").messageId);
      await world.clock.go(3_999);
      assert.equal(world.socket.count("authenticate"), i - 1);
      await world.clock.go(1);
      assert.equal(world.socket.count("authenticate"), i);
    }
    assert.equal(world.sockets.length, 1);
    assert.equal(client.status.state, "open");
  });

  for (const transport of ["sse", "poll"])
    test(`over ${transport} is shown again when the broker asked for it, and not before`, async () => {
      (site = new Site()).install();
      const body = JSON.stringify({ detail: "later", code: "unavailable", retry_after_ms: 4_000 });
      site.token = () => answer(body, { status: 503, type: "application/problem+json", "Retry-After": "4" });
      const client = await world.client({ transports: [transport] });
      await go(3_500);
      assert.equal(site.asked.length, 1);
      site.token = () => {};
      await go(1_500);
      assert.equal(client.status.state, "open");
    });
});

describe("a page that goes", () => {
  const happens = async (type) => {
    world.page.dispatchEvent(new Event(type));
    await settle();
  };

  test("holds nothing, and goes on when somebody comes back to it", async () => {
    const client = await world.connected();
    const taken = [];
    client.subscribe("orders.>", ({ position }) => taken.push(position));
    await settle();
    world.socket.subscribed("x-3");
    await happens("pagehide");
    assert.equal(world.socket.open, false);
    await world.clock.go(600_000);
    assert.equal(world.sockets.length, 1);
    assert.equal(world.clock.timers.size, 0);
    assert.equal(client.status.state, "waiting");
    globalThis.document.visibilityState = "hidden"; // it may come back behind another one
    await happens("pageshow");
    world.socket.welcome();
    await settle();
    assert.equal(world.sockets.length, 2);
    assert.equal(world.socket.last("subscribe").payload.position, "x-3");
  });

  test("while its token is fetched or it waits, connects only when somebody comes back to it", async () => {
    let give;
    const client = await world.client({ token: () => new Promise((resolve) => (give = resolve)) });
    await happens("pagehide");
    give(jwt());
    await world.clock.go(60_000);
    assert.equal(world.sockets.length, 0);
    await happens("pageshow");
    world.socket.cut();
    await world.clock.go(0);
    await happens("pagehide");
    await world.clock.go(60_000);
    assert.equal(world.sockets.length, 1);
    await happens("pageshow");
    world.socket.welcome();
    assert.equal(client.status.state, "open");
  });

  test("says so to its poll sessions, those that were read beside too", async () => {
    (site = new Site()).install();
    const sent = [];
    globalThis.navigator ??= {};
    globalThis.navigator.sendBeacon = (url, body) => sent.push([url, JSON.parse(body)]);
    const client = await world.client({ transports: ["poll"] });
    client.subscribe("a.x", { last: 1 });
    await go(3_000);
    assert.equal(client.status.state, "open");
    await happens("pagehide");
    assert.deepEqual(sent, ["s1", "s2"].map((session) => ["http://broker.test/poll", { session, leave: true }]));
    delete globalThis.navigator.sendBeacon;
  });
});

describe("a list that is too long", () => {
  const LONG = 6_000; // for this site

  beforeEach(() => {
    (site = new Site()).install();
    site.fault = (path, { body }, url) => {
      const { length } = String(url);
      if (path === "/sse" && length > LONG) return answer("URI Too Long", { status: site.status });
      if (path === "/poll" && body.length > site.most) return answer("Too Large", { status: 413 });
    };
    site.most = Infinity;
  });
  const names = (count) => Array.from({ length: count }, (_, i) => `orders.${"long".repeat(12)}.${i}`);

  for (const status of [414, 431])
    test(`for SSE (${status}) goes by long poll, at once and from the next connection on, while it is so long`, async () => {
      site.status = status;
      const client = await world.client({ transports: ["sse", "poll"] });
      await go(1_000);
      assert.equal(client.status.transport, "sse");
      const sub = client.subscribe(names(100));
      await go(2_000);
      assert.equal(client.status.transport, "poll");
      assert.equal(sub.state, "live");
      const tried = site.asked.filter((path) => path === "/sse").length;
      site.cutAll();
      await go(10_000);
      assert.equal(sub.state, "live");
      assert.equal(site.asked.filter((path) => path === "/sse").length, tried, "it is not tried again");
      sub.close();
      client.disconnect();
      client.connect();
      await go(2_000);
      assert.equal(client.status.state, "open");
    });

  test("with a start of its own goes by long poll too", async () => {
    site.status = 414;
    const client = await world.client({ transports: ["sse", "poll"] });
    const sub = client.subscribe(names(100), { last: 3 });
    await go(3_000);
    assert.equal(client.status.transport, "poll");
    assert.equal(sub.state, "live");
  });

  for (const transports of [["sse"], ["sse", "poll"], ["websocket", "sse", "poll"]])
    test(`for all of ${transports} is refused, and the others are live`, async () => {
      site.status = 414;
      site.most = 5_000;
      const client = await world.client({ transports });
      const error = new Promise((resolve) => {
        const long = client.subscribe(names(150));
        long.addEventListener("end", ({ detail }) => resolve(detail));
      });
      const short = client.subscribe("a.x");
      for (let i = 0; i < 40; i++) {
        await go(500);
        if (world.socket?.open) world.socket.cut();
      }
      assert.equal((await error).code, "too_large");
      assert.equal(short.state, "live");
    });

  test("for a connection is refused, and what stood before it stays", async () => {
    const detail = { detail: "payload.channel: too many", code: "limit_subscriptions" };
    site.fault = (path, init, url) =>
      url.searchParams.getAll("channel").length > 20 && answer(JSON.stringify(detail), { status: 429, type: "application/problem+json" });
    const client = await world.client({ transports: ["sse"] });
    const some = client.subscribe(names(10));
    await go(2_000);
    assert.equal(some.state, "live");
    const more = client.subscribe(names(40).slice(10));
    const codes = [];
    more.addEventListener("error", ({ detail: { code } }) => codes.push(code));
    await go(3_000);
    assert.equal(some.state, "live");
    assert.notEqual(more.state, "live");
  });
});

describe("the connections of a browser", () => {
  test("a publish that is not answered for want of one: the stream makes room for it", async () => {
    (site = new Site()).install();
    const client = await world.client({ transports: ["sse"] });
    await go(1_000);
    // Six tabs, of which one lets go: then there is one for this.
    const waiting = [];
    site.fault = (path, init) => {
      if (path === "/publish" && site.open.size) return new Promise((resolve) => waiting.push(resolve));
      if (path === "/sse") return never(init.signal);
    };
    const done = client.publish("a.x", "e1");
    await go(4_000);
    assert.equal(client.status.transport, "sse");
    await go(2_000);
    for (const resolve of waiting) resolve();
    assert.ok((await done).position);
    assert.equal(client.status.transport, "poll");
    assert.equal(client.status.state, "open");
    assert.equal(site.asked.filter((path) => path === "/publish").length, 1, "and it was sent once");
  });

  test("who has made room takes its stream up again a minute later", async () => {
    (site = new Site()).install();
    const client = await world.client({ transports: ["sse"] });
    await go(1_000);
    site.fault = (path, init) => path === "/publish" && never(init.signal);
    client.publish("a.x", "e1").catch(() => {});
    await go(6_000);
    assert.equal(client.status.transport, "poll");
    site.fault = undefined;
    await go(60_000);
    assert.equal(client.status.transport, "sse");
    assert.equal(client.status.state, "open");
    client.close();
    await settle();
    assert.equal(world.clock.timers.size, 0);
  });

  test("where a frame may have no locks, each has its own", async () => {
    (site = new Site()).install();
    const refuse = async () => {
      throw new DOMException("access to the Lock Manager is denied", "SecurityError");
    };
    globalThis.navigator ??= {};
    globalThis.navigator.locks = { request: refuse, query: refuse };
    try {
      const client = await world.client({ transports: ["sse"] });
      await go(1_000);
      assert.equal(client.status.transport, "sse");
      client.close();
    } finally {
      delete globalThis.navigator.locks;
    }
  });

  test("a publish that is never answered is sent again under its id", async () => {
    (site = new Site()).install();
    const client = await world.client({ transports: ["sse"] });
    await go(1_000);
    site.fault = (path, init) => path === "/publish" && never(init.signal);
    const done = client.publish("a.x", "e1");
    await go(70_000);
    site.fault = undefined;
    await go(30_000);
    assert.ok((await done).position);
  });
});
