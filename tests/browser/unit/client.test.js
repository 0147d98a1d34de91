import assert from "node:assert/strict";
import { afterEach, beforeEach, describe, test } from "node:test";

import { setFlagsFromString } from "node:v8";
import { runInNewContext } from "node:vm";

import { World, jwt, positions, record, settle } from "./fakes.js";

let world;
beforeEach(() => (world = new World()));
afterEach(() => world.end());

const cutAndBack = async () => {
  world.socket.cut();
  await world.again();
  world.socket.welcome();
  await settle();
};

describe("connecting", () => {
  test("offers the protocol and the token beside it, and names the tenant", async () => {
    const client = await world.connected({ tenant: "a&b" });
    assert.equal(world.socket.url, "ws://broker.test/ws?tenant=a%26b");
    assert.deepEqual(world.socket.protocols, ["broker.v1", `bearer.${jwt()}`]);
    assert.equal(client.status.state, "open");
    assert.equal(client.status.transport, "websocket");
  });

  test("waits with full jitter from 0.5 s, doubled up to 20 s, while there is no answer", async () => {
    const waits = [];
    const client = await world.client();
    client.addEventListener("status", ({ detail }) => detail.state === "waiting" && waits.push(detail.retryAt - Date.now()));
    for (let i = 0; i < 8; i++) {
      world.socket.cut();
      await world.again();
    }
    assert.deepEqual(waits, [500, 1000, 2000, 4000, 8000, 16000, 20000, 20000]);
    Math.random = () => 0.25;
    world.socket.cut();
    await settle();
    assert.equal(waits.at(-1), 5000);
  });

  test("begins with short waits again after a connection that lasted", async () => {
    const client = await world.client();
    for (let i = 0; i < 4; i++) {
      world.socket.cut();
      await world.again();
    }
    world.socket.welcome();
    await world.clock.go(6_000);
    world.socket.cut();
    await settle();
    assert.equal(client.status.retryAt - Date.now(), 500);
  });

  test("comes back when a draining broker asked for it, and not before", async () => {
    const client = await world.connected();
    world.socket.say("connection.draining", { reconnect_after_ms: 3000, position: "x-5" });
    world.socket.cut(1012);
    await world.clock.go(2_999);
    assert.equal(world.sockets.length, 1);
    await world.clock.go(1);
    assert.equal(world.sockets.length, 2);
    assert.equal(client.position, "x-5");
  });

  test("leaves a draining broker by itself when its time has come", async () => {
    await world.connected();
    world.socket.say("connection.draining", { reconnect_after_ms: 3000 });
    await world.clock.go(3_000);
    assert.equal(world.sockets.length, 2);
    assert.equal(world.sockets[0].open, false);
  });

  for (const code of [4500, 4501, 4503, 4510, 4999])
    test(`${code} about the same token again stops, and says why; connect() begins anew`, async () => {
      let asked = 0;
      const client = await world.connected({ token: () => (asked++, jwt()) });
      const refuse = () => {
        world.socket.say("error", { code: "forbidden", message: "not for you", retryable: false });
        world.socket.cut(code);
      };
      refuse();
      await world.again();
      assert.equal(asked, 2, "for another one");
      refuse();
      await world.clock.go(60_000);
      assert.equal(world.sockets.length, 2);
      assert.equal(client.status.state, "closed");
      assert.deepEqual(client.status.error, { code, message: "not for you" });
      client.connect();
      await settle();
      refuse();
      await world.again();
      world.socket.welcome();
      assert.equal(client.status.state, "open");
    });

  for (const code of [4500, 4501, 4503, 4510, 4999])
    test(`${code} about one token says nothing of the next ones`, async () => {
      let asked = 0;
      const client = await world.client({ token: () => jwt(`t${++asked}`) });
      for (let i = 1; i < 12; i++) {
        world.socket.cut(code);
        await world.again();
        assert.deepEqual(world.socket.protocols, ["broker.v1", `bearer.${jwt(`t${i + 1}`)}`]);
      }
      world.socket.welcome();
      assert.equal(client.status.state, "open");
    });

  test("a token that was good for a while is refused for the first time after it", async () => {
    const client = await world.client();
    for (let i = 0; i < 4; i++) {
      world.socket.cut(4501);
      await world.again();
      world.socket.welcome();
      await world.clock.go(6_000);
    }
    assert.equal(client.status.state, "open");
  });

  for (const code of [1001, 1006, 1012, 4001, 4008, 4009, 4010, 4029])
    test(`${code} reconnects`, async () => {
      await world.connected();
      world.socket.cut(code);
      await world.again();
      assert.equal(world.sockets.length, 2);
    });

  test("4002 asks for another token, as often as it takes", async () => {
    let asked = 0;
    await world.client({ token: () => (asked++, jwt("out of a cache")) });
    for (let i = 1; i < 12; i++) {
      world.socket.cut(4002);
      await world.again();
      assert.equal(asked, i + 1);
    }
  });

  test("a token callback that fails is asked again, with back-off", async () => {
    let asked = 0;
    await world.client({
      token: () => {
        if (++asked < 3) throw new Error("503");
        return jwt("t3");
      },
    });
    await world.clock.go(5_000);
    assert.equal(asked, 3);
    assert.deepEqual(world.socket.protocols[1], `bearer.${jwt("t3")}`);
  });

  test("does not ask for a token that is still good", async () => {
    let asked = 0;
    await world.connected({ token: () => jwt(`t${++asked}`) });
    await cutAndBack();
    assert.equal(asked, 1);
  });

  test("renews the token when the broker says so", async () => {
    let asked = 0;
    await world.connected({ token: () => jwt(`t${++asked}`) });
    world.socket.say("connection.expiring", { expires_at: "2030-01-01T00:00:00Z" });
    await world.clock.go(5_000);
    assert.deepEqual(world.socket.last("authenticate").payload, { token: jwt("t2") });
  });

  for (const [life, due] of [[300, 270], [60, 30], [40, 20]])
    test(`renews a token of ${life} s after ${due} s when no word comes, wherever the device's clock stands`, async () => {
      for (const ahead of [0, 7_200_000, -7_200_000]) {
        let asked = 0;
        world.clock.ahead = ahead;
        const exp = world.clock.now / 1000 + life; // by the clock of who made it
        const make = () => jwt(`t${++asked}`, { iat: exp - life, exp });
        const client = await world.client({ token: make });
        world.socket.onsent = ({ type }) => type === "ping" && world.socket.say("pong");
        world.socket.welcome({ expires_in: life });
        await world.clock.go(due * 1000 - 100);
        assert.equal(world.socket.last("authenticate"), undefined);
        await world.clock.go(200);
        assert.equal(world.socket.last("authenticate")?.payload.token, jwt("t2", { iat: exp - life, exp }));
        client.close();
      }
    });

  test("asks whether a quiet link lives, and leaves one that does not answer", async () => {
    await world.connected();
    const { socket } = world;
    await world.clock.go(12_500);
    assert.equal(socket.count("ping"), 1);
    socket.say("pong", {});
    await world.clock.go(12_500);
    assert.equal(socket.count("ping"), 2);
    await world.clock.go(10_000);
    assert.equal(socket.open, false);
    await world.clock.go(500);
    assert.equal(world.sockets.length, 2);
  });

  test("a link over which something comes is never asked", async () => {
    await world.connected();
    for (let i = 0; i < 30; i++) {
      world.socket.event("orders.1", `x-${i + 1}`);
      await world.clock.go(5_000);
    }
    assert.equal(world.socket.count("ping"), 0);
  });

  test("leaves a WebSocket that opens and then says nothing", async () => {
    await world.client();
    await world.clock.go(10_000);
    assert.equal(world.sockets[0].open, false);
  });

  test("what a link that was left says afterwards is not heard", async () => {
    const client = await world.connected();
    const sub = client.subscribe("orders.>");
    const items = record(sub);
    await settle();
    world.socket.subscribed("x-1");
    const [old] = world.sockets;
    const { onmessage } = old;
    await world.clock.go(23_000);
    onmessage({ data: JSON.stringify({ type: "event", payload: { channel: "orders.1", position: "x-9", event: 1 } }) });
    assert.deepEqual(items, []);
    assert.equal(client.position, "x-1");
  });

  test("a client that is closed while its token is fetched connects no more", async () => {
    let give;
    const client = await world.client({ token: () => new Promise((resolve) => (give = resolve)) });
    client.close();
    give(jwt());
    await world.clock.go(60_000);
    assert.equal(world.sockets.length, 0);
    assert.equal(client.status.state, "closed");
  });

  test("a client that is closed while it looks for the host tries no other transport", async () => {
    let answer;
    globalThis.fetch = (url) => (world.fetched.push(String(url)), new Promise((resolve) => (answer = resolve)));
    const client = await world.client();
    world.socket.cut();
    await settle();
    client.close();
    answer(new Response(""));
    await world.clock.go(60_000);
    assert.equal(world.sockets.length, 1);
    assert.equal(world.fetched.length, 1);
  });

  test("a client that is closed by who hears that it is open leaves no timer and asks for no token", async () => {
    let asked = 0;
    const client = await world.client({ token: () => jwt(`t${++asked}`) });
    client.addEventListener("status", ({ detail }) => detail.state === "open" && client.close());
    world.socket.welcome();
    await settle();
    assert.equal(world.clock.timers.size, 0);
    await world.clock.go(3_600_000);
    assert.equal(asked, 1);
  });

  test("a client that is closed while it waits leaves no timer", async () => {
    const client = await world.client();
    world.socket.cut();
    await settle();
    assert.equal(client.status.state, "waiting");
    client.close();
    await settle();
    assert.equal(world.clock.timers.size, 0);
  });

  test("a renewal that fails is tried again on the same link, and leaves no stale token behind", async () => {
    const errors = [];
    let asked = 0;
    const client = await world.connected({
      token: () => {
        if (++asked === 2) throw new Error("503");
        return jwt(`t${asked}`);
      },
    });
    client.addEventListener("error", ({ detail }) => errors.push(detail.code));
    world.socket.say("connection.expiring", { expires_at: "2030-01-01T00:00:00Z" });
    await world.clock.go(5_000);
    assert.deepEqual(errors, ["token"]);
    await world.clock.go(500);
    assert.deepEqual(world.socket.last("authenticate").payload, { token: jwt("t3") });
    assert.equal(world.sockets.length, 1);
  });

  test("a token out of a cache, or one that expires at once, is not asked for again and again", async () => {
    let asked = 0;
    await world.connected({ token: () => (asked++, jwt("the same")) });
    world.socket.onsent = ({ type }) => {
      if (type === "ping") world.socket.say("pong");
      if (type === "authenticate") world.socket.say("connection.expiring", { expires_at: "2030-01-01T00:00:00Z" });
    };
    world.socket.say("connection.expiring", { expires_at: "2030-01-01T00:00:00Z" });
    await world.clock.go(20_000);
    assert.equal(asked, 1 + 4);
  });

  test("disconnect keeps what connect goes on with; close ends it", async () => {
    const client = await world.connected();
    const sub = client.subscribe("orders.>");
    await settle();
    world.socket.subscribed("x-7");
    client.disconnect();
    assert.equal(client.status.state, "closed");
    client.connect();
    await settle();
    world.socket.welcome();
    await settle();
    assert.deepEqual(world.socket.last("subscribe").payload, { channel: ["orders.>"], position: "x-7" });
    const publish = client.publish("orders.1", 1);
    client.close();
    await assert.rejects(publish, { code: "closed" });
    assert.equal(sub.state, "closed");
  });
});

describe("the page", () => {
  const happens = async (type, visibility = "visible") => {
    globalThis.document.visibilityState = visibility;
    world.page.dispatchEvent(new Event(type));
    await settle();
  };
  const waiting = async () => {
    await world.client();
    for (let i = 0; i < 6; i++) {
      world.socket.cut();
      if (i < 5) await world.again();
    }
    await settle();
    return world.sockets.length;
  };

  for (const type of ["online", "visibilitychange"])
    test(`${type}: an attempt is made at once`, async () => {
      const before = await waiting();
      await happens(type);
      assert.equal(world.sockets.length, before + 1);
    });

  test("a page that is hidden waits on", async () => {
    const before = await waiting();
    await happens("visibilitychange", "hidden");
    assert.equal(world.sockets.length, before);
  });

  test("a link that may have died while nobody looked is asked", async () => {
    await world.connected();
    await happens("visibilitychange");
    assert.equal(world.socket.count("ping"), 1);
    await world.clock.go(10_000);
    assert.equal(world.sockets[0].open, false);
  });

  test("a client that was closed listens to the page no more", async () => {
    const client = await world.connected();
    client.close();
    await happens("online");
    await world.clock.go(60_000);
    assert.equal(world.sockets.length, 1);
  });
});

describe("choosing a transport", () => {
  const answering = () => {
    globalThis.fetch = async (url) => {
      world.fetched.push(String(url));
      return new Response("", { status: 404 });
    };
  };

  test("stays with WebSocket while the host does not answer at all", async () => {
    await world.client();
    world.socket.cut();
    await settle();
    assert.deepEqual(world.fetched, ["http://broker.test/healthz"]);
    await world.clock.go(500);
    assert.equal(world.sockets.length, 2);
  });

  test("tries the next ones when the host answers and WebSocket does not come about", async () => {
    answering();
    await world.client();
    world.socket.cut();
    await settle();
    assert.equal(world.sockets.length, 2, "once more, since the broker may just have come up");
    world.socket.cut();
    await world.clock.go(0);
    const tried = world.fetched.map((url) => new URL(url).pathname).filter((path) => path !== "/healthz");
    assert.deepEqual(tried, ["/sse", "/sse", "/poll", "/poll"]);
    await world.clock.go(500);
    assert.equal(world.sockets.length, 3, "and begins anew");
  });

  test("stays with WebSocket when the broker was just coming up", async () => {
    answering();
    const client = await world.client();
    world.socket.cut();
    await settle();
    world.socket.welcome();
    await settle();
    assert.equal(client.status.transport, "websocket");
    assert.deepEqual(world.fetched, ["http://broker.test/healthz"]);
  });

  test("leaves WebSocket when it is cut three times shortly after it came about", async () => {
    answering();
    await world.client();
    for (let i = 0; i < 3; i++) {
      world.socket.welcome();
      await settle();
      world.socket.cut();
      await world.clock.go(4_000);
    }
    assert.ok(world.fetched.some((url) => url.includes("/sse")));
  });

  const http = (status, body) => {
    globalThis.fetch = async (url) => {
      world.fetched.push(String(url));
      return new Response(body, { status: url.includes("/sse") ? status : 200 });
    };
  };

  test("a refusal by what stands before the broker is no reason to stay away", async () => {
    http(403, "<h1>Blocked</h1>");
    const client = await world.client({ transports: ["sse"] });
    await world.clock.go(60_000);
    assert.ok(world.fetched.filter((url) => url.includes("/sse")).length > 3);
    assert.notEqual(client.status.state, "closed");
  });

  test("a refusal of the token by the broker itself is one, once it has been said twice", async () => {
    const body = JSON.stringify({ detail: "not for you", code: "forbidden" });
    globalThis.fetch = async () => new Response(body, { status: 403, headers: { "Content-Type": "application/problem+json" } });
    const client = await world.client({ transports: ["sse"] });
    await world.clock.go(1_000);
    assert.deepEqual(client.status.error, { code: 4503, message: "not for you" });
    assert.equal(client.status.state, "closed");
  });

  describe("what is remembered", () => {
    const KEY = "broker http://broker.test";
    let items;
    beforeEach(() => {
      items = new Map();
      globalThis.localStorage = { getItem: (key) => items.get(key) ?? null, setItem: (key, value) => items.set(key, value) };
    });
    afterEach(() => delete globalThis.localStorage);

    for (const garbage of ["", "}{", "sse", "sse soon", "fax 99999999999999"])
      test(`${JSON.stringify(garbage)} is as good as nothing`, async () => {
        items.set(KEY, garbage);
        await world.connected();
        assert.equal(world.sockets.length, 1);
      });

    test("is remembered for an hour, not for an hour after each connection", async () => {
      const until = Date.now() + 1_000_000;
      items.set(KEY, `sse ${until}`);
      const said = (type, payload) => `data: ${JSON.stringify({ type, payload })}\n\n`;
      const welcome = said("connection.authenticated", { tenant: "acme", user: "alice", private: "users.alice" });
      const stream = () =>
        new ReadableStream({
          start(stream) {
            stream.enqueue(new TextEncoder().encode(welcome));
            setTimeout(() => stream.close(), 10_000);
          },
        });
      globalThis.fetch = async () => new Response(stream(), { headers: { "Content-Type": "text/event-stream" } });
      await world.client();
      await world.clock.go(100_000);
      assert.equal(world.sockets.length, 0);
      assert.equal(items.get(KEY), `sse ${until}`);
      globalThis.fetch = async () => {
        throw new TypeError("the network is down");
      };
      await world.clock.go(1_000_000);
      assert.ok(world.sockets.length, "WebSocket has another chance");
    });
  });

  test("resumes and sends again what was not answered, also where there is no other transport", async () => {
    answering();
    const client = await world.client({ transports: ["websocket"] });
    client.subscribe("orders.>");
    client.publish("a", 1).catch(() => {});
    for (let i = 0; i < 5; i++) {
      world.socket.welcome();
      await settle();
      assert.equal(world.socket.count("publish"), 1);
      assert.equal(world.socket.count("subscribe"), 1);
      world.socket.subscribed("x-1");
      world.socket.cut();
      await world.again();
    }
  });
});

describe("resuming", () => {
  test("asks for all that was live in one subscribe, from the last unmarked position", async () => {
    const client = await world.connected();
    client.subscribe("orders.>");
    client.subscribe(["me.inbox", "live.cursor"]);
    await settle();
    for (const message of world.socket.sent.filter(({ type }) => type === "subscribe")) {
      const { channel } = message.payload;
      world.socket.say("subscribed", { channel, refused: [], position: "x-3", recovered: true, live: true }, message.messageId);
    }
    world.socket.event("orders.1", "x-4");
    world.socket.say("pong", { position: "x-9" });
    await cutAndBack();
    assert.equal(world.socket.count("subscribe"), 1);
    assert.deepEqual(world.socket.last("subscribe").payload, {
      channel: ["orders.>", "users.alice.inbox", "live.cursor"],
      position: "x-9",
    });
  });

  for (const [type, payload] of [
    ["subscription.live", { channel: "orders.>", position: "x-8" }],
    ["gap", { channel: "orders.>", reason: "lag", to: "x-8" }],
    ["connection.draining", { reconnect_after_ms: 1e6, position: "x-8" }],
  ])
    test(`the position in ${type} counts`, async () => {
      const client = await world.connected();
      client.subscribe("orders.>");
      await settle();
      world.socket.subscribed("x-3");
      world.socket.say(type, payload);
      assert.equal(client.position, "x-8");
    });

  test("a marked position does not count for the connection, but for its own catch-up", async () => {
    const client = await world.connected();
    client.subscribe("orders.>");
    await settle();
    world.socket.subscribed("x-100");
    const items = record(client.subscribe("audit.>", { last: 50 }));
    await settle();
    assert.deepEqual(world.socket.last("subscribe").payload, { channel: ["audit.>"], last: 50 });
    world.socket.subscribed("x-100", { live: false, catch_up: 1 });
    world.socket.event("orders.1", "x-101");
    world.socket.event("audit.1", "x-40", {}, { catch_up: 1 });
    assert.equal(client.position, "x-101");
    await cutAndBack();
    const asked = world.socket.sent.filter(({ type }) => type === "subscribe").map(({ payload }) => payload);
    assert.deepEqual(asked, [
      { channel: ["orders.>"], position: "x-101" },
      { channel: ["audit.>"], position: "x-40" },
    ]);
    assert.deepEqual(positions(items), ["x-40"]);
  });

  test("a start that was never answered is asked for again as it was", async () => {
    const client = await world.connected();
    client.subscribe("orders.>", { last: 5 });
    await settle();
    await cutAndBack();
    assert.deepEqual(world.socket.last("subscribe").payload, { channel: ["orders.>"], last: 5 });
  });

  test("a durable subscription is asked for by its name and its position", async () => {
    const client = await world.connected();
    client.subscribe("orders.>", { durable: "d" });
    await settle();
    world.socket.subscribed("x-3");
    await cutAndBack();
    assert.deepEqual(world.socket.last("subscribe").payload, { channel: ["orders.>"], position: "x-3", durable: "d" });
  });

  test("hands over nothing twice, whatever comes again", async () => {
    const client = await world.connected();
    const items = record(client.subscribe("orders.>"));
    await settle();
    world.socket.subscribed("x-3");
    for (const position of ["x-4", "x-5", "x-5", "x-4"]) world.socket.event("orders.1", position);
    await cutAndBack();
    world.socket.subscribed("x-3");
    for (const position of ["x-4", "x-5", "x-6"]) world.socket.event("orders.1", position);
    assert.deepEqual(positions(items), ["x-4", "x-5", "x-6"]);
  });

  test("positions of a new incarnation are new, however small", async () => {
    const client = await world.connected();
    const items = record(client.subscribe("orders.>"));
    await settle();
    world.socket.subscribed("x-900");
    world.socket.event("orders.1", "x-901");
    world.socket.say("gap", { channel: "orders.>", reason: "reset", to: "y-0" });
    world.socket.event("orders.1", "y-1");
    assert.deepEqual(items.map((item) => item.position ?? item.reason), ["x-901", "reset", "y-1"]);
    assert.equal(items[1].action, "reload");
  });

  test("nothing is subscribed to again that was given up while there was no connection", async () => {
    const client = await world.connected();
    const sub = client.subscribe("orders.>");
    client.subscribe("audit.>");
    await settle();
    world.socket.cut();
    sub.close();
    await world.again();
    world.socket.welcome();
    await settle();
    assert.deepEqual(world.socket.sent.filter(({ type }) => type === "subscribe").map(({ payload }) => payload.channel), [["audit.>"]]);
  });
});

describe("subscriptions", () => {
  test("gives an event to each that covers it, and to no other", async () => {
    const client = await world.connected();
    const taken = {};
    for (const pattern of ["orders.*", "orders.>", ">", "me.>", "live.>", "orders.1"]) taken[pattern] = record(client.subscribe(pattern));
    await settle();
    for (const message of [...world.socket.sent])
      world.socket.say("subscribed", { channel: [], refused: [], position: "x-0", recovered: true, live: true }, message.messageId);
    let sequence = 0;
    for (const channel of ["orders.1", "orders.1.a", "users.alice.inbox", "users.bob.inbox"]) world.socket.event(channel, `x-${++sequence}`);
    for (const channel of ["live.cursor", "live.users.alice.x"]) world.socket.event(channel, undefined);
    const channels = Object.fromEntries(Object.entries(taken).map(([pattern, items]) => [pattern, items.map((item) => item.channel)]));
    assert.deepEqual(channels, {
      "orders.*": ["orders.1"],
      "orders.>": ["orders.1", "orders.1.a"],
      ">": ["orders.1", "orders.1.a"],
      "me.>": ["users.alice.inbox"],
      "live.>": ["live.cursor"],
      "orders.1": ["orders.1"],
    });
  });

  test("an unmarked event is not for who is still catching up, unless it is live", async () => {
    const client = await world.connected();
    client.subscribe("other");
    await settle();
    world.socket.subscribed("x-10");
    const items = record(client.subscribe(["orders.>", "live.>"], { last: 3 }));
    await settle();
    world.socket.subscribed("x-10", { live: false, catch_up: 4 });
    world.socket.event("orders.1", "x-11");
    world.socket.event("live.a", undefined);
    world.socket.event("orders.1", "x-9", {}, { catch_up: 4 });
    world.socket.event("orders.1", "x-11", {}, { catch_up: 4 });
    world.socket.say("subscription.live", { channel: ["orders.>"], position: "x-11", catch_up: 4 });
    world.socket.event("orders.1", "x-12");
    assert.deepEqual(positions(items), [undefined, "x-9", "x-11", "x-12"]);
  });

  test("two of the same name: the second without a start is live at once and asks nothing", async () => {
    const client = await world.connected();
    client.subscribe("orders.>");
    await settle();
    world.socket.subscribed("x-1");
    const before = world.socket.sent.length;
    const second = client.subscribe("orders.>");
    const items = record(second);
    await settle();
    assert.equal(world.socket.sent.length, before);
    assert.equal(second.state, "live");
    world.socket.event("orders.1", "x-2");
    assert.deepEqual(positions(items), ["x-2"]);
  });

  test("two of the same name: a start of the second costs the first nothing, and gives it nothing twice", async () => {
    const client = await world.connected();
    const first = record(client.subscribe("orders.>"));
    await settle();
    world.socket.subscribed("x-10");
    world.socket.event("orders.1", "x-11");
    const second = record(client.subscribe("orders.>", { last: 2 }));
    await settle();
    assert.deepEqual(world.socket.last("subscribe").payload, { channel: ["orders.>"], last: 2 });
    world.socket.subscribed("x-11", { live: false, catch_up: 1 });
    // x-12 to x-14 were stored meanwhile; the last two of them are what `last: 2` gives.
    world.socket.event("orders.1", "x-13", {}, { catch_up: 1 });
    world.socket.event("orders.1", "x-14", {}, { catch_up: 1 });
    world.socket.say("subscription.live", { channel: ["orders.>"], position: "x-14", catch_up: 1 });
    await settle();
    assert.deepEqual(world.socket.last("subscribe").payload, { channel: ["orders.>"], position: "x-11" });
    world.socket.subscribed("x-14", { live: false, catch_up: 2 });
    for (const position of ["x-12", "x-13", "x-14"]) world.socket.event("orders.1", position, {}, { catch_up: 2 });
    world.socket.say("subscription.live", { channel: ["orders.>"], position: "x-14", catch_up: 2 });
    world.socket.event("orders.1", "x-15");
    assert.deepEqual(positions(first), ["x-11", "x-12", "x-13", "x-14", "x-15"]);
    assert.deepEqual(positions(second), ["x-13", "x-14", "x-15"]);
  });

  test("what is not stored goes on while a subscription of the same name is begun anew", async () => {
    const client = await world.connected();
    const items = record(client.subscribe(["orders.>", "live.>"]));
    await settle();
    world.socket.subscribed("x-1");
    client.subscribe(["orders.>", "live.>"], { last: 2 });
    await settle();
    world.socket.event("live.a", undefined, 1);
    world.socket.subscribed("x-1", { live: false, catch_up: 1 });
    world.socket.event("live.a", undefined, 2);
    assert.deepEqual(items.map(({ event }) => event), [1, 2]);
  });

  test("snapshots are asked for one after the other, those of one turn together", async () => {
    const client = await world.connected();
    for (const names of [["a", "b"], ["c"], ["d"]]) {
      for (const name of names) client.subscribe(name, { snapshot: true });
      await settle();
    }
    const asked = () => world.socket.sent.filter(({ type }) => type === "subscribe").map(({ payload }) => payload.channel);
    for (const mark of [1, 2]) {
      assert.deepEqual(asked(), [["a", "b"], ["c", "d"]].slice(0, mark));
      world.socket.subscribed("x-1", { live: false, catch_up: mark });
      world.socket.say("subscription.live", { channel: "a", position: "x-1", catch_up: mark });
      await settle();
    }
  });

  test("a refused name is told, the others stand", async () => {
    const client = await world.connected();
    const sub = client.subscribe(["orders.>", "secret.>"]);
    const errors = [];
    sub.addEventListener("error", ({ detail }) => errors.push(detail.code));
    await settle();
    world.socket.subscribed("x-1", { channel: ["orders.>"], refused: [{ channel: "secret.>", code: "forbidden", message: "no" }] });
    assert.deepEqual(errors, ["forbidden"]);
    assert.deepEqual(sub.channels, ["orders.>"]);
    assert.equal(sub.state, "live");
  });

  test("a subscription that is refused as a whole ends, and its iteration throws", async () => {
    const client = await world.connected();
    const sub = client.subscribe("secret.>");
    const next = sub[Symbol.asyncIterator]().next();
    await settle();
    world.socket.say("error", { code: "forbidden", message: "no", retryable: false }, world.socket.last("subscribe").messageId);
    await assert.rejects(next, { code: "forbidden" });
    assert.equal(sub.state, "closed");
  });

  test("one that cannot be served now is asked for again when the broker said", async () => {
    const client = await world.connected();
    client.subscribe("orders.>", { last: 5 });
    await settle();
    const { messageId } = world.socket.last("subscribe");
    world.socket.say("error", { code: "unavailable", message: "later", retryable: true, retry_after_ms: 2000 }, messageId);
    await world.clock.go(1_999);
    assert.equal(world.socket.count("subscribe"), 1);
    await world.clock.go(501);
    assert.equal(world.socket.count("subscribe"), 2);
    assert.deepEqual(world.socket.last("subscribe").payload, { channel: ["orders.>"], last: 5 });
  });

  test("closing the last of a name unsubscribes, closing another does not", async () => {
    const client = await world.connected();
    const [one, two] = [client.subscribe("orders.>"), client.subscribe("orders.>")];
    await settle();
    world.socket.subscribed("x-1");
    one.close();
    await settle();
    assert.equal(world.socket.count("unsubscribe"), 0);
    two.close();
    await settle();
    assert.deepEqual(world.socket.last("unsubscribe").payload, { channel: ["orders.>"] });
  });

  test("closed before the answer came, it is unsubscribed from, once", async () => {
    const client = await world.connected();
    const sub = client.subscribe("orders.>");
    await settle();
    sub.close();
    await settle();
    assert.equal(world.socket.count("unsubscribe"), 0, "it may be refused yet, and the broker refuses what it does not know");
    world.socket.subscribed("x-1");
    await settle();
    assert.deepEqual(world.socket.last("unsubscribe").payload, { channel: ["orders.>"] });
    assert.equal(world.socket.count("unsubscribe"), 1);
  });

  test("a right that was taken away ends what stood on it", async () => {
    const client = await world.connected();
    const sub = client.subscribe("orders.>");
    await settle();
    world.socket.subscribed("x-1");
    let fault;
    sub.addEventListener("end", ({ detail }) => (fault = detail.code));
    world.socket.say("unsubscribed", { channel: "orders.>", code: "forbidden" });
    assert.equal(fault, "forbidden");
  });

  test("what is published without echo is dropped on another connection too, and nothing else", async () => {
    const client = await world.connected();
    const items = record(client.subscribe("me.>"));
    await settle();
    world.socket.subscribed("x-1");
    for (const [name, echo] of [["me.a", false], ["me.b", true]]) client.publish(name, 1, { echo }).catch(() => {});
    await settle();
    const [first, second] = world.socket.sent.filter(({ type }) => type === "publish").map(({ payload }) => payload);
    assert.deepEqual([first.echo, "echo" in second], [false, false]);
    await cutAndBack();
    world.socket.subscribed("x-1");
    const publisher = { user: "alice", id: first.id };
    world.socket.event("users.alice.a", "x-2", 1, { publisher });
    world.socket.event("users.alice.b", "x-3", 1, { publisher });
    world.socket.event("users.alice.b", "x-4", 1, { publisher: { user: "alice", id: second.id } });
    assert.deepEqual(positions(items), ["x-3", "x-4"]);
    assert.equal(client.position, "x-4");
  });

  test("who leaves in the middle of an event takes it from nobody", async () => {
    const client = await world.connected();
    const [first, second] = [client.subscribe("orders.>"), client.subscribe("orders.*")];
    const items = record(second);
    await settle();
    for (const { messageId } of world.socket.sent.filter(({ type }) => type === "subscribe"))
      world.socket.say("subscribed", { channel: [], refused: [], position: "x-1", recovered: true, live: true }, messageId);
    first.addEventListener("event", () => {
      client.disconnect();
      client.connect();
    });
    world.socket.event("orders.1", "x-2");
    await settle();
    world.socket.welcome();
    await settle();
    const asked = world.socket.sent.filter(({ type }) => type === "subscribe").map(({ payload }) => payload);
    assert.deepEqual(asked, [{ channel: ["orders.>"], position: "x-2" }, { channel: ["orders.*"], position: "x-1" }]);
    assert.deepEqual(items, []);
  });

  test("a start that cannot be had now holds up nobody of the same name", async () => {
    const client = await world.connected();
    const first = client.subscribe("orders.>");
    await settle();
    world.socket.subscribed("x-1");
    client.subscribe("orders.>", { last: 5 });
    await settle();
    const { messageId } = world.socket.last("subscribe");
    world.socket.say("error", { code: "unavailable", message: "later", retryable: true, retry_after_ms: 1000 }, messageId);
    await settle();
    assert.deepEqual(world.socket.last("subscribe").payload, { channel: ["orders.>"], position: "x-1" });
    world.socket.subscribed("x-1");
    await settle();
    assert.equal(first.state, "live");
    await world.clock.go(1_500);
    assert.deepEqual(world.socket.last("subscribe").payload, { channel: ["orders.>"], last: 5 });
  });

  test("one without a start does not take over the catch-up of another that is closed", async () => {
    const client = await world.connected();
    client.subscribe("other");
    await settle();
    world.socket.subscribed("x-9");
    const first = client.subscribe("orders.>", { last: 5 });
    await settle();
    world.socket.subscribed("x-9", { live: false, catch_up: 1 });
    client.subscribe("orders.>");
    await settle();
    const before = world.socket.sent.length;
    first.close();
    await settle();
    world.socket.unsubscribed();
    await settle();
    assert.deepEqual(world.socket.sent.slice(before).map(({ type, payload }) => [type, payload.channel]), [
      ["unsubscribe", ["orders.>"]],
      ["subscribe", ["orders.>"]],
    ]);
  });

  test("a durable subscription that begins again lets go of its name first", async () => {
    const client = await world.connected();
    const sub = client.subscribe("orders.>", { durable: "d" });
    await settle();
    world.socket.subscribed("x-1");
    const before = world.socket.sent.length;
    sub.restart();
    await settle();
    assert.equal(world.socket.count("subscribe"), 1, "not before that is confirmed");
    world.socket.unsubscribed();
    await settle();
    assert.deepEqual(world.socket.sent.slice(before).map(({ type }) => type), ["unsubscribe", "subscribe"]);
  });

  test("a gap in the catch-up of another neither comes nor sets back who is further", async () => {
    const client = await world.connected();
    const first = client.subscribe("orders.>");
    const items = record(first);
    await settle();
    world.socket.subscribed("x-1");
    world.socket.event("orders.1", "x-20");
    client.subscribe("orders.>", { position: "x-1" });
    await settle();
    world.socket.subscribed("x-20", { live: false, catch_up: 1 });
    world.socket.say("gap", { channel: ["orders.>"], reason: "trimmed", from: "x-1", to: "x-10", catch_up: 1 });
    world.socket.event("orders.1", "x-20", {}, { catch_up: 1 });
    assert.deepEqual(positions(items), ["x-20"]);
  });

  test("positions of two streams in one request: all that there is is asked for", async () => {
    const client = await world.connected();
    client.subscribe("orders.>");
    await settle();
    world.socket.subscribed("y-30");
    client.subscribe("orders.>", { position: "x-900" });
    await settle();
    assert.deepEqual(world.socket.last("subscribe").payload, { channel: ["orders.>"], position: "x-0" });
  });

  test("a thousand that came and went leave nothing behind", async () => {
    const client = await world.connected();
    const gone = [];
    const pass = async (i) => {
      const sub = client.subscribe(`orders.${i}`, { last: 1 }, () => {});
      await Promise.resolve();
      world.socket.subscribed("x-1");
      sub.close();
      gone.push(new WeakRef(sub));
    };
    for (let i = 0; i < 1_000; i++) await pass(i);
    world.socket.sent.length = 0;
    setFlagsFromString("--expose_gc");
    await new Promise((resolve) => world.clock.real.setTimeout(resolve, 0));
    runInNewContext("gc")();
    assert.equal(gone.filter((each) => each.deref()).length, 0);
  });

  test("`__proto__` and its like are names as any other", async () => {
    const client = await world.connected();
    const items = record(client.subscribe(["a.__proto__", "constructor.>"]));
    await settle();
    world.socket.subscribed("x-1");
    world.socket.onmessage({
      data: '{"type":"event","payload":{"channel":"a.__proto__","position":"x-2","event":{"__proto__":{"evil":1}}}}',
    });
    world.socket.event("constructor.prototype", "x-3");
    assert.deepEqual(positions(items), ["x-2", "x-3"]);
    assert.equal({}.evil, undefined);
  });

  test("a list of channels is ours, whatever becomes of the application's", async () => {
    const client = await world.connected();
    const channels = ["orders.>"];
    const sub = client.subscribe(channels);
    channels.push("audit.>");
    assert.deepEqual(sub.channels, ["orders.>"]);
  });

  test("two starts are a mistake", async () => {
    const client = await world.connected();
    assert.throws(() => client.subscribe("a", { last: 1, snapshot: true }), TypeError);
  });
});

describe("iterating", () => {
  test("gives events and gaps in their order", async () => {
    const client = await world.connected();
    const sub = client.subscribe("orders.>", { lag: "latest" });
    const seen = [];
    (async () => {
      for await (const item of sub) seen.push(`${item.type} ${item.position ?? item.action}`);
    })();
    await settle();
    world.socket.subscribed("x-1");
    world.socket.event("orders.1", "x-2");
    world.socket.say("gap", { channel: "orders.>", reason: "lag", count: 5 });
    world.socket.event("orders.1", "x-8");
    await settle();
    assert.deepEqual(seen, ["event x-2", "gap continue", "event x-8"]);
  });

  test("a full buffer is a pause: the broker keeps the rest, and nothing is missing", async () => {
    const client = await world.connected();
    client.subscribe("other");
    await settle();
    world.socket.subscribed("x-0");
    const sub = client.subscribe("orders.>", { buffer: 4 });
    const iterator = sub[Symbol.asyncIterator]();
    const take = async () => (await iterator.next()).value.position;
    const first = take();
    await settle();
    world.socket.subscribed("x-0");
    for (let i = 1; i <= 6; i++) {
      world.socket.event("orders.1", `x-${i}`);
      if (i === 1) await first;
    }
    assert.equal(sub.state, "paused");
    await settle();
    assert.deepEqual(world.socket.last("unsubscribe").payload, { channel: ["orders.>"] });
    const taken = [await first];
    for (let i = 0; i < 2; i++) taken.push(await take());
    await settle();
    assert.deepEqual(world.socket.last("subscribe").payload, { channel: ["orders.>"], position: "x-5" });
    world.socket.subscribed("x-6", { live: false, catch_up: 1 });
    world.socket.event("orders.1", "x-6", {}, { catch_up: 1 });
    world.socket.say("subscription.live", { channel: ["orders.>"], position: "x-6", catch_up: 1 });
    for (let i = 0; i < 3; i++) taken.push(await take());
    assert.deepEqual(taken, ["x-1", "x-2", "x-3", "x-4", "x-5", "x-6"]);
  });

  test("can be left while it waits", async () => {
    const client = await world.connected();
    const sub = client.subscribe("orders.>");
    const iterator = sub[Symbol.asyncIterator]();
    const next = iterator.next();
    assert.deepEqual(await iterator.return(), { done: true, value: undefined });
    assert.deepEqual(await next, { done: true, value: undefined });
    assert.equal(sub.state, "closed");
  });

  test("two loops share what comes, and both come to their end", async () => {
    const client = await world.connected();
    const sub = client.subscribe("orders.>");
    const taken = [];
    const loop = async () => {
      for await (const { position } of sub) taken.push(position);
    };
    const loops = Promise.all([loop(), loop()]);
    await settle();
    world.socket.subscribed("x-1");
    for (const position of ["x-2", "x-3", "x-4"]) world.socket.event("orders.1", position);
    await settle();
    sub.close();
    await loops;
    assert.deepEqual(taken.sort(), ["x-2", "x-3", "x-4"]);
  });

  test("what ends says so as its state, too", async () => {
    const client = await world.connected();
    const sub = client.subscribe("orders.>");
    const states = [];
    sub.addEventListener("state", ({ detail }) => states.push(detail));
    await settle();
    world.socket.subscribed("x-1");
    sub.close();
    sub.close();
    assert.deepEqual(states, ["live", "closed"]);
  });

  test("one that pauses while it catches up holds up nobody of the same name", async () => {
    const client = await world.connected();
    client.subscribe("orders.>");
    await settle();
    world.socket.subscribed("x-9");
    const sub = client.subscribe("orders.>", { last: 5, buffer: 1 });
    sub[Symbol.asyncIterator]();
    await settle();
    world.socket.subscribed("x-9", { live: false, catch_up: 1 });
    world.socket.event("orders.1", "x-5", {}, { catch_up: 1 });
    await settle();
    assert.equal(sub.state, "paused");
    assert.deepEqual(world.socket.last("subscribe").payload, { channel: ["orders.>"], position: "x-9" });
  });

  test("leaving the loop closes the subscription", async () => {
    const client = await world.connected();
    const sub = client.subscribe("orders.>");
    const loop = (async () => {
      for await (const _ of sub) break;
    })();
    await settle();
    world.socket.subscribed("x-1");
    world.socket.event("orders.1", "x-2");
    await loop;
    assert.equal(sub.state, "closed");
  });
});

describe("publishing", () => {
  test("is queued while offline, sent in order, and answered with the position", async () => {
    const client = await world.client();
    const answers = [client.publish("a", 1), client.publish("b", 2, { id: "mine" })];
    assert.equal(client.queued, 2);
    world.socket.welcome();
    await settle();
    const sent = world.socket.sent.filter(({ type }) => type === "publish");
    assert.deepEqual(sent.map(({ payload }) => [payload.channel, payload.event]), [["a", 1], ["b", 2]]);
    for (const [i, { payload, messageId }] of sent.entries())
      world.socket.say("published", { id: payload.id, position: `x-${i}` }, messageId);
    assert.deepEqual(await answers[1], { id: "mine", position: "x-1", duplicate: false });
  });

  test("goes out again with the same id after a cut that left it unanswered", async () => {
    const client = await world.connected();
    client.publish("a", 1).catch(() => {});
    const { id } = world.socket.last("publish").payload;
    await cutAndBack();
    assert.equal(world.socket.last("publish").payload.id, id);
    assert.equal(world.socket.count("publish"), 1);
  });

  test("those of one channel go one after the other, in order, whatever else goes meanwhile", async () => {
    const client = await world.connected();
    const sent = () => world.socket.sent.filter(({ type }) => type === "publish").map(({ payload }) => payload.event);
    for (const [channel, event] of [["a", 1], ["a", 2], ["b", 3], ["a", 4]]) client.publish(channel, event).catch(() => {});
    assert.deepEqual(sent(), [1, 3]);
    const { messageId } = world.socket.sent.find(({ payload }) => payload.event === 1);
    world.socket.say("error", { code: "unavailable", message: "", retryable: true, retry_after_ms: 100 }, messageId);
    await world.clock.go(100);
    assert.deepEqual(sent(), [1, 3, 1]);
    world.socket.published("x-1");
    assert.deepEqual(sent(), [1, 3, 1, 2]);
  });

  test("the queue is bounded", async () => {
    const client = await world.client({ queue: 2 });
    for (const channel of ["a", "b"]) client.publish(channel, 1).catch(() => {});
    await assert.rejects(client.publish("c", 1), { code: "queue_full" });
  });

  test("goes at the pace that the broker allows, and is never refused for it", async () => {
    const client = await world.connected();
    const { socket } = world;
    for (let i = 0; i < 100; i++) client.publish(`a.${i}`, i).catch(() => {});
    assert.equal(socket.count("publish"), 16);
    const bucket = { level: 50, at: Date.now() };
    const taken = [];
    const take = ({ type, payload, messageId }) => {
      if (type === "ping") return socket.say("pong");
      bucket.level = Math.min(50, bucket.level + ((Date.now() - bucket.at) * 100) / 60_000) - 1;
      bucket.at = Date.now();
      assert.ok(bucket.level >= 0, `the ${taken.length}. publish is too many`);
      taken.push(payload.event);
      queueMicrotask(() => socket.say("published", { id: payload.id, position: "x-1" }, messageId));
    };
    for (const message of socket.sent) take(message);
    socket.onsent = take;
    await world.clock.go(60_000);
    assert.deepEqual(taken, [...Array(100).keys()]);
  });

  test("where others of the user reach the limit too, refusals stay far below those that end a connection", async () => {
    const client = await world.connected();
    const { socket } = world;
    for (let i = 0; i < 40; i++) client.publish(`a.${i}`, i).catch(() => {});
    const refused = [];
    const refuse = ({ type, messageId }) => {
      if (type === "ping") return socket.say("pong");
      refused.push(Date.now());
      socket.say("error", { code: "rate_limited", message: "", retryable: true, retry_after_ms: 600 }, messageId);
    };
    for (const message of [...socket.sent]) refuse(message);
    socket.onsent = refuse;
    await world.clock.go(600_000);
    assert.ok(refused.length > 50, "it goes on trying");
    for (const at of refused) assert.ok(refused.filter((each) => each >= at && each < at + 60_000).length < 50);
    const taken = [];
    socket.onsent = ({ type, payload, messageId }) => {
      if (type === "ping") return socket.say("pong");
      taken.push(payload.event);
      queueMicrotask(() => socket.say("published", { id: payload.id, position: "x-1" }, messageId));
    };
    await world.clock.go(120_000);
    assert.deepEqual(taken, [...Array(40).keys()]);
  });

  test("while the broker cannot, it waits once, and then goes on at full speed", async () => {
    const client = await world.connected({ limits: { messages_burst: 1000 } });
    const { socket } = world;
    for (let i = 0; i < 100; i++) client.publish(`a.${i}`, i).catch(() => {});
    for (const { messageId } of socket.sent.splice(0))
      socket.say("error", { code: "unavailable", message: "", retryable: true, retry_after_ms: 1000 }, messageId);
    assert.equal(socket.count("publish"), 0);
    const taken = [];
    socket.onsent = (message) => {
      if (message.type !== "publish") return;
      taken.push(message.payload.event);
      queueMicrotask(() => socket.say("published", { id: message.payload.id, position: "x-1" }, message.messageId));
    };
    await world.clock.go(1_000);
    for (let i = 0; i < 20; i++) await settle();
    assert.deepEqual(taken, [...Array(100).keys()]);
  });

  test("a refusal for good rejects with the broker's word", async () => {
    const client = await world.connected();
    const answer = client.publish("a", 1);
    world.socket.say("error", { code: "forbidden", message: "no", retryable: false }, world.socket.last("publish").messageId);
    await assert.rejects(answer, { name: "BrokerError", code: "forbidden", message: "no" });
  });

  test("an id of the application is never taken for one of ours", async () => {
    const client = await world.connected();
    const sub = client.subscribe("orders.>");
    await settle();
    const { messageId } = world.socket.last("subscribe");
    const answer = client.publish("a", 1, { id: messageId });
    const sent = world.socket.last("publish");
    assert.notEqual(sent.messageId, messageId);
    world.socket.say("error", { code: "forbidden", message: "no", retryable: false }, sent.messageId);
    await assert.rejects(answer, { code: "forbidden" });
    assert.equal(sub.state, "pending");
  });

  test("a refusal that comes after the time-out is nobody's", async () => {
    const client = await world.connected();
    const errors = [];
    client.addEventListener("error", ({ detail }) => errors.push(detail));
    const rejected = assert.rejects(client.publish("a", 1, { timeout: 300 }), { code: "timeout" });
    const { messageId } = world.socket.last("publish");
    await world.clock.go(300);
    await rejected;
    world.socket.say("error", { code: "forbidden", message: "no", retryable: false }, messageId);
    assert.deepEqual(errors, []);
  });

  test("one that is too large for the broker is given up; the others go out again", async () => {
    const client = await world.connected();
    const large = assert.rejects(client.publish("a", "x".repeat(70_000)), { code: "too_large" });
    client.publish("b", "small").catch(() => {});
    world.socket.cut(1009);
    await large;
    await world.again();
    world.socket.welcome();
    await settle();
    assert.deepEqual(world.socket.sent.map(({ payload }) => payload.event), ["small"]);
  });

  test("takes an event as it is, and refuses what is no JSON", async () => {
    const client = await world.client();
    const event = { n: 1 };
    client.publish("a", event).catch(() => {});
    event.n = 2;
    event.self = event;
    await assert.rejects(client.publish("a", event), TypeError);
    world.socket.welcome();
    await settle();
    assert.deepEqual(world.socket.sent.map(({ payload }) => payload.event), [{ n: 1 }]);
  });

  test("a time-out rejects, and what was not sent by then is not sent any more", async () => {
    const client = await world.client();
    const answer = client.publish("a", 1, { timeout: 300 });
    const rejected = assert.rejects(answer, { code: "timeout" });
    await world.clock.go(300);
    await rejected;
    world.socket.welcome();
    await settle();
    assert.equal(world.socket.count("publish"), 0);
  });
});

describe("acknowledging", () => {
  const durable = async () => {
    const client = await world.connected();
    const sub = client.subscribe("orders.>", { durable: "d" });
    await settle();
    world.socket.subscribed("x-3");
    return sub;
  };

  test("is answered once it is stored", async () => {
    const sub = await durable();
    world.socket.event("orders.1", "x-4");
    const answer = sub.acknowledge({ position: "x-4" });
    await settle();
    const { payload, messageId } = world.socket.last("acknowledge");
    assert.deepEqual(payload, { durable: "d", position: "x-4" });
    world.socket.say("acknowledged", payload, messageId);
    assert.equal(await answer, "x-4");
  });

  test("is sent again after a cut, when the broker has sent that far once more", async () => {
    const sub = await durable();
    world.socket.event("orders.1", "x-4");
    const answer = sub.acknowledge("x-4");
    await cutAndBack();
    assert.equal(world.socket.count("acknowledge"), 0);
    world.socket.subscribed("x-4");
    await settle();
    const { payload, messageId } = world.socket.last("acknowledge");
    world.socket.say("acknowledged", payload, messageId);
    assert.equal(await answer, "x-4");
  });

  test("one at a time is under way, the newest stands for all that wait, and each is answered", async () => {
    const sub = await durable();
    for (const position of ["x-4", "x-5", "x-6"]) world.socket.event("orders.1", position);
    const answers = ["x-4", "x-6", "x-5"].map((position) => sub.acknowledge(position));
    await settle();
    const sent = () => world.socket.sent.filter(({ type }) => type === "acknowledge");
    assert.deepEqual(sent().map(({ payload }) => payload.position), ["x-4"]);
    world.socket.say("acknowledged", sent()[0].payload, sent()[0].messageId);
    assert.deepEqual(sent().map(({ payload }) => payload.position), ["x-4", "x-6"]);
    world.socket.say("acknowledged", sent()[1].payload, sent()[1].messageId);
    assert.deepEqual(await Promise.all(answers), ["x-4", "x-6", "x-6"]);
  });

  test("those that a cut left unanswered are all settled by the next", async () => {
    const sub = await durable();
    world.socket.event("orders.1", "x-4");
    world.socket.event("orders.1", "x-5");
    const answers = [sub.acknowledge("x-4"), sub.acknowledge("x-5")];
    await cutAndBack();
    world.socket.subscribed("x-5");
    await settle();
    const { payload, messageId } = world.socket.last("acknowledge");
    assert.equal(payload.position, "x-5");
    world.socket.say("acknowledged", payload, messageId);
    assert.deepEqual(await Promise.all(answers), ["x-5", "x-5"]);
  });

  test("one that cannot be stored now is sent again, with what came meanwhile", async () => {
    const sub = await durable();
    const first = sub.acknowledge("x-2");
    const { messageId } = world.socket.last("acknowledge");
    world.socket.say("error", { code: "unavailable", message: "", retryable: true, retry_after_ms: 1000 }, messageId);
    const second = sub.acknowledge("x-3");
    await world.clock.go(1_000);
    const { payload, messageId: again } = world.socket.last("acknowledge");
    assert.equal(payload.position, "x-3");
    world.socket.say("acknowledged", payload, again);
    assert.deepEqual(await Promise.all([first, second]), ["x-3", "x-3"]);
  });

  test("one that can no longer be sent is rejected, not left waiting", async () => {
    const sub = await durable();
    world.socket.cut();
    await settle();
    const answer = sub.acknowledge("x-3");
    sub.close();
    await assert.rejects(answer, { code: "closed" });
  });

  test("needs a durable subscription", async () => {
    const client = await world.connected();
    await assert.rejects(client.subscribe("a").acknowledge("x-1"), { code: "not_subscribed" });
  });
});
