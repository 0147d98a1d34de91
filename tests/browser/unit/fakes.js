/** A clock that goes when it is told, a WebSocket that is a script, and what a page has else. */

import { webcrypto } from "node:crypto";

import { Client } from "../../../broker/web/static/client.js";

// Node 18 has these, but not as browsers do.
globalThis.crypto ??= webcrypto;
globalThis.CustomEvent ??= class extends Event {
  constructor(type, { detail = null } = {}) {
    super(type);
    this.detail = detail;
  }
};

/** Lets everything run that waits for a promise: they are all settled before the next turn. */
export const settle = () => new Promise(setImmediate);

const part = (value) => Buffer.from(JSON.stringify(value)).toString("base64url");
/** A token as far as a client can tell; by its name, and another one for each. */
export const jwt = (name = "t", claims = {}) => `${part({ alg: "none" })}.${part({ sub: "alice", tenant: "acme", jti: name, ...claims })}.${part(name)}`;

/** `now` is the one that nobody sets; the wall clock is `ahead` of it, by as much as somebody likes. */
export class Clock {
  now = 1_700_000_000_000;
  ahead = 0;
  timers = new Map();
  count = 0;
  real = { setTimeout, clearTimeout, setInterval, clearInterval };
  before = { date: Date.now, performance: performance.now };

  install() {
    globalThis.setTimeout = (then, ms = 0) => this.add(then, ms);
    globalThis.clearTimeout = globalThis.clearInterval = (id) => this.timers.delete(id);
    globalThis.setInterval = (then, ms) => this.add(then, ms, ms);
    Date.now = () => Math.floor(this.now + this.ahead);
    performance.now = () => this.now;
  }

  uninstall() {
    Object.assign(globalThis, this.real);
    Date.now = this.before.date;
    performance.now = this.before.performance;
  }

  /** Whole milliseconds, as in a browser: a timer may fire before the fraction has passed. */
  add(then, ms, every) {
    this.timers.set(++this.count, { at: this.now + (Number.isFinite(ms) ? Math.max(Math.trunc(ms), 0) : 0), then, every });
    return this.count;
  }

  /** Goes on by so many ms, and does what is due, each in its turn. */
  async go(ms) {
    const end = this.now + ms;
    await settle();
    for (;;) {
      const due = [...this.timers].filter(([, { at }]) => at <= end).sort(([a, x], [b, y]) => x.at - y.at || a - b)[0];
      if (!due) break;
      const [id, timer] = due;
      this.now = Math.max(this.now, timer.at);
      if (timer.every) timer.at += timer.every;
      else this.timers.delete(id);
      timer.then();
      await settle();
    }
    this.now = end;
    await settle();
  }
}

export class FakeWebSocket {
  static made = [];
  static onmade = undefined; // what the broker does with a new one
  sent = [];
  open = true;

  constructor(url, protocols) {
    this.url = url;
    this.protocols = protocols;
    FakeWebSocket.made.push(this);
    FakeWebSocket.onmade?.(this);
  }

  send(text) {
    this.sent.push(JSON.parse(text));
    this.onsent?.(this.sent.at(-1));
  }

  close() {
    this.open = false;
  }

  // What the broker does.

  say(type, payload = {}, messageId = undefined) {
    this.onmessage?.({ data: JSON.stringify({ type, payload, messageId }) });
  }

  cut(code = 1006, reason = "") {
    this.open = false;
    this.onclose?.({ code, reason });
  }

  welcome({ expires_in = 3600, user = "alice", limits = {} } = {}) {
    this.say("connection.established", { connection_id: "c1", heartbeat_seconds: 25, features: [], limits });
    const expires_at = new Date(Date.now() + expires_in * 1000).toISOString();
    this.say("connection.authenticated", { tenant: "acme", user, private: `users.${user}`, expires_at });
  }

  /** The newest message of a type that the client sent. */
  last(type) {
    return this.sent.findLast((message) => message.type === type);
  }

  count(type) {
    return this.sent.filter((message) => message.type === type).length;
  }

  /** Answers the newest `subscribe`. */
  subscribed(position, payload = {}) {
    const { messageId, payload: asked } = this.last("subscribe");
    const channel = asked.channel.map((name) => name.replace(/^me\./, "users.alice."));
    this.say("subscribed", { channel, refused: [], position, recovered: true, live: true, ...payload }, messageId);
  }

  /** Answers the newest `unsubscribe`. */
  unsubscribed() {
    const { messageId, payload } = this.last("unsubscribe");
    this.say("unsubscribed", payload, messageId);
  }

  /** Answers the newest `publish`. */
  published(position, payload = {}) {
    const { messageId, payload: asked } = this.last("publish");
    this.say("published", { id: asked.id, position, ...payload }, messageId);
  }

  event(channel, position, event = {}, rest = {}) {
    this.say("event", { channel, position, event, ...rest });
  }
}

/** A test's world: a clock, sockets, and clients that end with it. */
export class World {
  clock = new Clock();
  clients = [];
  fetched = [];

  constructor() {
    this.clock.install();
    FakeWebSocket.made = [];
    FakeWebSocket.onmade = undefined;
    this.before = { WebSocket: globalThis.WebSocket, fetch: globalThis.fetch, random: Math.random };
    globalThis.WebSocket = FakeWebSocket;
    const page = (this.page = new EventTarget());
    for (const name of ["addEventListener", "removeEventListener"]) globalThis[name] = page[name].bind(page);
    globalThis.document = { visibilityState: "visible" };
    globalThis.fetch = async (url) => {
      this.fetched.push(String(url));
      throw new TypeError("the network is down");
    };
    Math.random = () => 1; // the longest that the jitter allows
  }

  get sockets() {
    return FakeWebSocket.made;
  }

  get socket() {
    return FakeWebSocket.made.at(-1);
  }

  async client(options = {}) {
    const client = new Client({ url: "http://broker.test", token: jwt(), ...options });
    this.clients.push(client);
    await settle();
    return client;
  }

  /** Goes on until the client tries again, 20 s at most. */
  async again() {
    const before = this.sockets.length;
    for (let waited = 0; waited < 20_000 && this.sockets.length === before; waited += 100) await this.clock.go(100);
  }

  /** A client that is connected. */
  async connected({ limits, ...options } = {}) {
    const client = await this.client(options);
    this.socket.welcome({ limits });
    await settle();
    return client;
  }

  end() {
    for (const client of this.clients) client.close();
    this.clock.uninstall();
    const { random, ...rest } = this.before;
    Math.random = random;
    Object.assign(globalThis, rest);
    for (const name of ["addEventListener", "removeEventListener", "document"]) delete globalThis[name];
  }
}

/** What a subscription hands over, as it comes. */
export const record = (sub) => {
  const items = [];
  for (const type of ["event", "gap"]) sub.addEventListener(type, ({ detail }) => items.push(detail));
  return items;
};

export const positions = (items) => items.map((item) => item.position);
