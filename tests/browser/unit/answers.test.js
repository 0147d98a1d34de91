/**
 * Each answer that a client can get, once and for a while: it is open again within 30 s after the cause is gone.
 * The wait that is drawn is always the longest.
 */

import assert from "node:assert/strict";
import { afterEach, beforeEach, describe, test } from "node:test";

import { Client } from "../../../broker/web/static/client.js";
import { FakeWebSocket, World, jwt, settle } from "./fakes.js";
import { Site, answer, never, problem } from "./site.js";

const WITHIN_MS = 30_000;
const good = jwt();
const WHILES = [0, 47_000]; // how long the cause lasts; 0: it strikes once

const faults = [];
const uncaught = (error) => faults.push(error);
let world, site;
const begin = () => {
  world = new World();
  site = new Site();
  site.install();
};
const end = () => world.end();
beforeEach(() => {
  for (const type of ["unhandledRejection", "uncaughtException"]) process.on(type, uncaught);
  begin();
});
afterEach(async () => {
  end();
  await new Promise(setImmediate);
  for (const type of ["unhandledRejection", "uncaughtException"]) process.off(type, uncaught);
  assert.deepEqual(faults.splice(0), []);
});

const turn = () => new Promise(setImmediate); // bodies are read in turns of their own
const go = async (ms, step = 1_000) => {
  for (let gone = 0; gone < ms; gone += step) {
    await turn();
    await world.clock.go(step);
  }
};
const assertBack = async (client, what, within = WITHIN_MS) => {
  for (let waited = 0; waited < within && client.status.state !== "open"; waited += 500) await go(500, 500);
  assert.equal(client.status.state, "open", `${what}: ${JSON.stringify(client.status)}`);
};

/** The cause is there when a client connects, or once it is open and cut off (`cut`); then it goes. `shut`: it keeps all out. */
const outlive = async (what, { transports, strike, cut, shut, whiles = WHILES, token = jwt() }) => {
  for (const lasts of whiles)
    for (const open of cut ? [false, true] : [false]) {
      end();
      begin();
      strike(open ? undefined : lasts ? "on" : "once");
      const client = await world.client({ transports, token });
      if (open) {
        await assertBack(client, what);
        strike(lasts ? "on" : "once");
        cut();
      }
      const states = [];
      client.addEventListener("status", ({ detail }) => states.push(detail.state));
      await go(lasts || 500);
      if (shut && lasts) assert.ok(!states.includes("open"), `${what}: it takes that for the broker`);
      strike();
      await assertBack(client, `${what} for ${lasts} ms, over ${transports}${open ? ", once it was open" : ""}`);
    }
};

// --- HTTP --------------------------------------------------------------------------------------------

const PAGE = "<!doctype html>\n<title>Sorry</title>\n\ndata: {}\n\n<h1>Come back later</h1>\n\n";
const ANSWERS = {
  "no network": () => {
    throw new TypeError("Failed to fetch");
  },
  "no answer": (path, { signal }) => never(signal),
  "a login page": () => answer(PAGE),
  "an empty page": () => answer(""),
  "nothing to say": () => answer("", { status: 204 }),
  "a login form in JSON": () => answer('{"login": "/login"}', { type: "application/json" }),
  "null in JSON": () => answer("null", { type: "application/json" }),
  "a list in JSON": () => answer("[]", { type: "application/json" }),
  "a stream of nothing": () => answer(PAGE, { type: "text/event-stream" }),
  "a stream that is no message": () => answer("data: 5\n\n", { type: "text/event-stream" }),
  "a problem that is null": () => answer("null", { status: 500, type: "application/problem+json" }),
  "a problem of somebody else": () => problem(400, 17, { detail: "missing header" }),
  "the words of the broker, from somebody else": () => answer('{"detail": "no", "code": "forbidden"}', { status: 403, type: "application/json" }),
  "an hour of maintenance": () => answer(PAGE, { status: 503, "Retry-After": "3600" }),
  "an hour of maintenance, in JSON": () => answer("{}", { status: 429, type: "application/json", "Retry-After": "3600" }),
  "a token that cannot be judged yet": () => problem(503, "unavailable", { retry_after_ms: 4000 }, { "Retry-After": "4" }),
  "too many connections": () => problem(429, "limit_connections", {}, { "Retry-After": "1" }),
  "an expired token": () => problem(401, "token_expired"),
};
for (let status = 400; status <= 431; status++) ANSWERS[`page ${status}`] = () => answer(PAGE, { status });
for (const status of [401, 403, 404, 413, 414, 431, 500, 502, 503]) ANSWERS[`problem ${status}`] = () => problem(status);
for (const status of [451, 499, 500, 501, 502, 503, 504, 505, 507, 508, 511, 520, 521, 522, 523, 524, 525, 526, 530])
  ANSWERS[`page ${status}`] = () => answer(PAGE, { status });

const TRANSPORTS = [["sse"], ["poll"], ["websocket", "sse", "poll"]];
/** Where WebSocket is blocked, as it is where the others are used. */
const blockSockets = () => (FakeWebSocket.onmade = (socket) => queueMicrotask(() => socket.cut(1006)));

describe("an answer to a request", () => {
  for (const [name, fault] of Object.entries(ANSWERS))
    test(name, async () => {
      const page = name.startsWith("page "); // one like the other
      for (const transports of page ? TRANSPORTS.slice(0, 2) : TRANSPORTS)
        for (const everywhere of page ? [false] : [false, true]) {
          const strike = (how) => {
            blockSockets();
            site.fault = how && ((path, init) => {
              if (path === "/healthz" && !everywhere) return undefined;
              if (how === "once") site.fault = undefined;
              return fault(path, init);
            });
          };
          await outlive(`${name} ${everywhere ? "everywhere" : ""}`, { transports, strike, shut: true, whiles: page ? [0, 7_000] : WHILES, cut: () => site.cutAll() });
        }
    });

  for (const transport of ["sse", "poll"])
    for (const ends of [false, true])
      test(`over ${transport}, ${ends ? "ended" : "cut"} at each byte: nothing missing, nothing twice`, async () => {
        for (const tries of [1, 5])
          for (let at = 0, length = 1; at < length; at += tries === 1 ? 1 : 7) {
            end();
            begin();
            blockSockets();
            const client = await world.client({ transports: [transport] });
            const taken = [];
            site.events = ["e1", "e2"];
            const sub = client.subscribe("a.x", { position: "i-0" }, ({ event }) => taken.push(event));
            await go(1_000);
            assert.equal(sub.state, "live");
            site.events.push("e3");
            ({ length } = site);
            site.cut = at;
            site.ends = ends;
            let left = tries;
            const { body } = site;
            site.body = (...given) => {
              if (left-- <= 0) site.cut = undefined;
              return body.apply(site, given);
            };
            world.clock.ahead += 3_600_000; // the device has slept: it asks anew
            await go(20_000);
            assert.equal(client.status.state, "open", `cut at ${at}`);
            assert.deepEqual(taken, ["e1", "e2", "e3"], `cut at ${at}`);
          }
      });
});

// --- WebSocket ---------------------------------------------------------------------------------------

/** Sockets that go wrong, or are welcomed. */
const sockets = (wrong) => (how) => {
  FakeWebSocket.onmade = (socket) => {
    const now = how;
    if (how === "once") how = undefined;
    queueMicrotask(() => (now ? wrong(socket) : socket.open && socket.welcome()));
  };
};

const WRONGS = {
  "says nothing": () => {},
  "says who it is, and then nothing": (socket) => socket.say("connection.established", { connection_id: "c", heartbeat_seconds: 25 }),
  "sends what is not JSON": (socket) => socket.onmessage({ data: "<html>" }),
  "sends what is no text": (socket) => socket.onmessage({ data: new Blob(["{}"]) }),
  "sends null": (socket) => socket.onmessage({ data: "null" }),
  "sends a message without a payload": (socket) => socket.onmessage({ data: '{"type":"event"}' }),
  "chats on without ever saying that the token is good": (socket) => {
    for (let at = 0; at < 600_000; at += 1_000) setTimeout(() => socket.say("pong"), at);
  },
  "cannot judge the token yet": (socket) => socket.say("error", { code: "unavailable", message: "later", retryable: true, retry_after_ms: 3_000 }),
};

describe("over WebSocket", () => {
  for (const [name, wrong] of Object.entries(WRONGS))
    test(`a socket that ${name}`, async () => {
      for (const transports of [["websocket"], ["websocket", "sse", "poll"]])
        await outlive(name, { transports, strike: sockets(wrong), cut: () => world.socket.cut() });
    });

  test("a constructor that throws", async () => {
    const strike = (how) => {
      FakeWebSocket.onmade = (socket) => {
        if (!how) return queueMicrotask(() => socket.welcome());
        if (how === "once") how = undefined;
        throw new DOMException("blocked by the page's policy", "SecurityError");
      };
    };
    await outlive("it throws", { transports: ["websocket"], strike });
  });

  // Those that a broker may have, and some of each range that it has none of.
  const own = [...Array(1000).keys()].filter((i) => i % 500 < 40 || i % 11 === 0 || i % 500 === 499).map((i) => 4000 + i);
  const codes = [...Array(16).keys()].map((i) => 1000 + i).concat([3000, ...own]);
  for (const [name, of] of [
    ["1000 to 3000", (code) => code < 4000],
    ["4000 to 4499", (code) => code >= 4000 && code < 4500],
    ["4500 to 4999", (code) => code >= 4500],
  ])
    test(`closes of ${name}, before it was open and after it, with a token that is never twice the same`, async () => {
      let count = 0;
      const token = () => jwt(`t${++count}`);
      for (const code of codes.filter(of)) {
        for (const welcome of [false, true])
          for (const tries of [1, 6]) {
            end();
            begin();
            let left = tries;
            FakeWebSocket.onmade = (socket) =>
              queueMicrotask(() => {
                if (welcome || left <= 0) socket.welcome();
                if (left-- > 0) socket.cut(code);
              });
            const client = await world.client({ token, transports: ["websocket"] });
            while (left > 0) await world.clock.go(2_000);
            for (let waited = 0; waited < WITHIN_MS && client.status.state !== "open"; waited += 2_000) await world.clock.go(2_000);
            assert.equal(client.status.state, "open", `${code} ${tries} times`);
          }
      }
    });
});

test("what hangs may go at any moment, also at the one that is worst for the waits", async () => {
  for (let lasts = 60_000; lasts < 100_000; lasts += 2_000)
    for (const hangs of ["token", "websocket", "sse", "poll"]) {
      end();
      begin();
      let gone = false;
      sockets(() => {})("on");
      const made = FakeWebSocket.onmade;
      FakeWebSocket.onmade = (socket) => (gone ? queueMicrotask(() => socket.welcome()) : made(socket));
      site.fault = (path, { signal }) => (gone ? undefined : never(signal));
      const token = () => (hangs === "token" && !gone ? new Promise(() => {}) : good);
      const client = await world.client({ transports: [hangs === "token" ? "websocket" : hangs], token });
      await go(lasts);
      gone = true;
      await assertBack(client, `${hangs} for ${lasts} ms`, 25_000); // a real network takes its time too
    }
});

// --- the token callback ------------------------------------------------------------------------------

const LIES = {
  "nothing": () => undefined,
  "null": () => null,
  "an empty text": () => "",
  "an object": () => ({ token: good }),
  "a number": () => 502,
  "an error page": () => "<html><h1>502 Bad Gateway</h1></html>",
  "words": () => "Service Unavailable",
  "three parts that say nothing": () => "www.example.com",
  "a token in quotes": () => JSON.stringify(good),
  "a token with a line end in it": () => good.replace(".", ".\n"),
  "a token that is not ASCII": () => good.replace(/^./, "é"),
  "two parts": () => good.split(".").slice(0, 2).join("."),
  "an error": () => {
    throw new Error("503");
  },
  "an error that is nothing": () => {
    throw undefined; // eslint-disable-line no-throw-literal
  },
  "a rejection": () => Promise.reject(new TypeError("Failed to fetch")),
  "no answer": () => new Promise(() => {}),
  "an answer that never comes, and is no promise": () => ({ then() {} }),
};

describe("a token callback that gives", () => {
  for (const [name, lie] of Object.entries(LIES))
    test(name, async () => {
      for (const transports of [["websocket"], ["sse"], ["poll"]])
        for (const ms of [500, 3_000, 47_000, 61_000, 600_000]) {
          end();
          begin();
          const shown = new Set();
          FakeWebSocket.onmade = (socket) => {
            shown.add(socket.protocols[1].slice("bearer.".length));
            queueMicrotask(() => socket.welcome());
          };
          site.token = (token) => (shown.add(token), undefined);
          let lies = true;
          const client = await world.client({ transports, token: () => (lies ? lie() : good) });
          await go(ms, Math.min(ms, 1_000));
          assert.ok(["connecting", "waiting"].includes(client.status.state), client.status.state);
          if (ms > 10_000) assert.equal(client.status.error.code, "token");
          assert.equal(shown.size, 0, "the broker has seen none of it");
          lies = false;
          await assertBack(client, `${name} for ${ms} ms`);
          assert.deepEqual([...shown], [good]);
        }
    });

  test("a line end behind it", async () => {
    await world.client({ token: () => `  ${good}\r\n` });
    assert.deepEqual(world.socket.protocols, ["broker.v1", `bearer.${good}`]);
  });

  test("no answer for a while: whoever comes back to the page waits no longer", async () => {
    for (const type of ["online", "visibilitychange", "pageshow"]) {
      let asked = 0;
      const client = await world.client({ token: () => (++asked === 1 ? new Promise(() => {}) : good) });
      await world.clock.go(2_000);
      assert.equal(asked, 1);
      world.page.dispatchEvent(new Event(type));
      await settle();
      assert.equal(asked, 2, type);
      world.socket.welcome();
      assert.equal(client.status.state, "open");
    }
  });

  test("no answer at all, with another patience: `tokenTimeout`", async () => {
    const client = await world.client({ token: () => new Promise(() => {}), tokenTimeout: 2_500 });
    await go(2_500);
    assert.match(client.status.error.message, /nothing within 2500 ms/);
    client.close();
    await settle();
    assert.equal(world.clock.timers.size, 0);
  });

  test("a word that the broker refuses over HTTP, each time another one", async () => {
    for (const [status, code] of [
      [401, "token_invalid"],
      [401, "token_revoked"],
      [401, "token_expired"],
      [403, "forbidden"],
    ])
      for (const transports of [["sse"], ["poll"]]) {
        end();
        begin();
        let count = 0;
        site.token = () => (count < 9 ? problem(status, code) : undefined);
        const client = await world.client({ transports, token: () => jwt(`t${++count}`) });
        for (let i = 0; i < 600 && count < 9; i++) await go(500, 500);
        await assertBack(client, code);
      }
  });

  test("a word that the broker refuses over HTTP, twice the same: that is the end", async () => {
    for (const [status, code, closed] of [
      [401, "token_invalid", 4500],
      [401, "token_revoked", 4501],
      [403, "forbidden", 4503],
    ])
      for (const transports of [["sse"], ["poll"]]) {
        end();
        begin();
        site.token = () => problem(status, code);
        const client = await world.client({ transports, token: () => good });
        await go(5_000);
        assert.equal(client.status.state, "closed");
        assert.deepEqual(client.status.error, { code: closed, message: "it says why" });
        assert.equal(site.asked.filter((path) => path !== "/healthz").length, 2);
      }
  });

  test("none at once, where there can be no other one: that is said at once", () => {
    for (const token of [undefined, "", "Service Unavailable", 5]) assert.throws(() => new Client({ url: "http://broker.test", token }), { code: "token" });
  });
});
