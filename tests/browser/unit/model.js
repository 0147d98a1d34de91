/** A broker as PROTOCOL section 3 describes it, made of lists: what it does next is drawn by lot. */

/** Numbers in [0, 1), the same for the same seed (mulberry32). */
export const lots = (seed) => () => {
  seed = (seed + 0x6d2b79f5) | 0;
  let t = Math.imul(seed ^ (seed >>> 15), 1 | seed);
  t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
  return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
};

export const matches = (pattern, channel) => {
  const [p, c] = [pattern.split("."), channel.split(".")];
  if (["live", "users"].some((word) => (c[0] === word) !== (p[0] === word))) return false;
  if (p.at(-1) === ">") return c.length >= p.length && p.slice(0, -1).every((each, i) => each === "*" || each === c[i]);
  return p.length === c.length && p.every((each, i) => each === "*" || each === c[i]);
};

/** PROTOCOL, "Limits". */
export const LIMITS = {
  subscriptions_per_connection: 128,
  requests_per_second: 10,
  requests_burst: 200,
  messages_per_minute: 100,
  messages_burst: 50,
  message_bytes: 65_536,
  publish_bytes: 10_240,
  duplicate_window_seconds: 600,
};

/** So many at once, and so many a second. */
class Bucket {
  at = performance.now();

  constructor(rate, burst) {
    Object.assign(this, { rate, burst, level: burst });
  }

  /** Takes one, or says in how many ms there is one. */
  take() {
    const now = performance.now();
    this.level = Math.min(this.burst, this.level + ((now - this.at) * this.rate) / 1000);
    this.at = now;
    if (this.level < 1) return Math.ceil(((1 - this.level) * 1000) / this.rate);
    this.level--;
    return 0;
  }
}

/** How often something happened within a minute. */
class Window {
  times = [];

  hit() {
    const now = performance.now();
    this.times = [...this.times.filter((at) => at > now - 60_000), now];
    return this.times.length;
  }
}

export class Model {
  incarnation = 1;
  first = 1; // what came before has been trimmed
  events = []; // {sequence, channel, event, id, at}
  lives = []; // events of live channels
  links = new Set();
  closes = []; // the codes with which it ended connections
  spoil; // what takes a message in place of a link, where it gives true
  most = 0; // refusals for their rate within a minute, on one connection

  /** `told`: the limits as clients are told them. */
  constructor(chance, limits = {}, told = limits) {
    this.chance = chance;
    this.limits = { ...LIMITS, ...limits };
    this.told = told;
    this.posts = new Bucket(this.limits.messages_per_minute / 60, this.limits.messages_burst);
  }

  get end() {
    return this.events.length;
  }

  position(sequence) {
    return `i${this.incarnation}-${sequence}`;
  }

  stored(names, above = 0) {
    return this.events.filter(({ sequence, channel }) => sequence > above && sequence >= this.first && names.some((name) => matches(name, channel)));
  }

  publish(channel, event, id) {
    if (channel.startsWith("live.")) {
      this.lives.push(event);
      for (const link of this.links)
        if ([...link.subs.keys()].some((name) => matches(name, channel))) link.say("event", { channel, event });
      return {};
    }
    const at = Date.now();
    const since = at - this.limits.duplicate_window_seconds * 1000;
    const before = id && this.events.find((each) => each.id === id && each.channel === channel && each.at > since);
    if (!before) this.events.push({ sequence: this.end + 1, channel, event, id, at });
    return { position: this.position(before?.sequence ?? this.end), duplicate: !!before };
  }

  /** Another stream, with nothing in it; nobody survives that. */
  reset() {
    for (const link of this.links) link.cut();
    this.incarnation++;
    this.events = [];
    this.first = 1;
  }

  trim() {
    this.first = Math.max(this.first, this.end - 3);
  }

  accept(socket) {
    this.links.add(new Link(this, socket));
  }

  /** One of the things that may happen next; false where there is none. */
  step() {
    const able = [...this.links].flatMap((link) => link.able());
    if (!able.length) return false;
    able[Math.floor(this.chance() * able.length)]();
    return true;
  }
}

class Link {
  inbox = [];
  outbox = [];
  subs = new Map(); // name → {live, floor}
  durables = new Map();
  readings = []; // catch-ups: {mark, names, at, newest?}
  marks = 0;
  behind = false;

  constructor(model, socket) {
    this.model = model;
    this.requests = new Bucket(model.limits.requests_per_second, model.limits.requests_burst);
    this.refusals = new Window();
    this.bad = new Window();
    this.socket = socket;
    this.at = model.end;
    socket.onsent = (message) => this.inbox.push(structuredClone(message));
    this.say("connection.established", { connection_id: "c", heartbeat_seconds: 25, features: [], limits: model.told });
    const expires_at = new Date(Date.now() + 3.6e6).toISOString();
    this.say("connection.authenticated", { tenant: "acme", user: "alice", private: "users.alice", expires_at });
  }

  say(type, payload, messageId) {
    this.outbox.push({ type, payload: structuredClone(payload), messageId });
  }

  cut() {
    this.model.links.delete(this);
    this.socket.cut();
  }

  end(code) {
    this.model.closes.push(code);
    this.model.links.delete(this);
    while (this.outbox.length) this.deliver();
    this.socket.cut(code);
  }

  /** Takes a right away, as a renewed token may. */
  revoke(name) {
    this.leave([name]);
    this.say("unsubscribed", { channel: name, code: "forbidden" });
  }

  get live() {
    return [...this.subs].filter(([name, { live }]) => live && !name.startsWith("live.")).map(([name]) => name);
  }

  /** What "now" is for a start. */
  get reached() {
    return this.live.length ? this.at : this.model.end;
  }

  able() {
    if (!this.socket.open) {
      this.model.links.delete(this);
      return [];
    }
    const able = [];
    if (this.outbox.length) able.push(() => this.deliver(), () => this.deliver());
    if (this.inbox.length) able.push(() => this.take(this.inbox.shift()));
    if (this.at < this.model.end) able.push(() => this.advance());
    for (const reading of this.readings) able.push(() => this.read(reading));
    return able;
  }

  deliver() {
    const { type, payload, messageId } = this.outbox.shift();
    this.socket.say(type, payload, messageId);
  }

  advance() {
    const { model } = this;
    if (this.at + 1 < model.first) {
      const gap = { channel: this.live, reason: "trimmed", from: model.position(this.at), to: model.position(model.first - 1) };
      this.at = model.first - 1;
      if (gap.channel.length) this.say("gap", gap);
    } else {
      const { channel, event, sequence } = model.events[this.at++];
      const due = this.live.some((name) => matches(name, channel) && sequence > this.subs.get(name).floor);
      if (due) this.say("event", { channel, event, position: model.position(sequence) });
    }
    if (this.behind && this.at === model.end) {
      this.behind = false;
      this.say("subscription.live", { channel: this.live, position: model.position(this.at) });
    }
  }

  read(reading) {
    const { model } = this;
    const { mark, names } = reading;
    const catch_up = mark;
    if (reading.newest?.length) {
      const { channel, event, sequence } = reading.newest.shift();
      return this.say("event", { channel, event, position: model.position(sequence), catch_up });
    }
    if (reading.at >= this.at) {
      this.readings = this.readings.filter((each) => each !== reading);
      for (const name of names) this.subs.set(name, { live: true, floor: reading.at });
      return this.say("subscription.live", { channel: names, position: model.position(this.at), catch_up });
    }
    if (reading.at + 1 < model.first) {
      const to = Math.min(model.first - 1, this.at);
      this.say("gap", { channel: names, reason: "trimmed", from: model.position(reading.at), to: model.position(to), catch_up });
      reading.at = to;
      return;
    }
    const { channel, event, sequence } = model.events[reading.at++];
    if (names.some((name) => matches(name, channel))) this.say("event", { channel, event, position: model.position(sequence), catch_up });
  }

  leave(names) {
    for (const name of names) this.subs.delete(name);
    for (const reading of this.readings) reading.names = reading.names.filter((name) => !names.includes(name));
    this.readings = this.readings.filter(({ names }) => names.length);
    for (const [durable, held] of this.durables) if (!held.some((name) => this.subs.has(name))) this.durables.delete(durable);
  }

  take(message) {
    const { model } = this;
    const { limits } = model;
    const { type, payload, messageId } = message;
    const text = JSON.stringify(message);
    const refuse = (code, retryable = false, after = 20) => {
      this.say("error", { code, message: code, retryable, ...(retryable && { retry_after_ms: after }) }, messageId);
      if (code === "rate_limited") {
        const count = this.refusals.hit();
        model.most = Math.max(model.most, count);
        if (count >= 50) this.end(4029);
      } else if (!retryable) model.posts.take();
      if (code === "bad_message" && this.bad.hit() >= 10) this.end(4510);
    };
    if (model.spoil?.(this, message)) return;
    if (new TextEncoder().encode(text).length > limits.message_bytes) return this.end(1009);
    const wait = (type === "publish" ? model.posts : this.requests).take();
    if (wait) return refuse("rate_limited", true, wait);
    if (/\\ud[89a-f]/.test(text)) return refuse("bad_message");
    if (type === "ping") this.say("pong", this.live.length ? { position: model.position(this.at) } : {}, messageId);
    else if (type === "publish") {
      if (JSON.stringify(payload.event).length > limits.publish_bytes) return refuse("too_large");
      const publish = () => model.publish(payload.channel, payload.event, payload.id);
      if (model.chance() < 0.1) {
        // It may be stored all the same: what was late is the answer of NATS.
        if (!payload.channel.startsWith("live.") && model.chance() < 0.3) publish();
        return refuse("unavailable", true);
      }
      this.say("published", { id: payload.id, ...publish() }, messageId);
    } else if (type === "acknowledge") {
      if (!this.durables.has(payload.durable)) return refuse("not_subscribed");
      this.say("acknowledged", payload, messageId);
    } else if (type === "unsubscribe") {
      if (!payload.channel.every((name) => this.subs.has(name))) return refuse("not_subscribed");
      this.leave(payload.channel);
      this.say("unsubscribed", payload, messageId);
    } else if (type === "subscribe") {
      if (this.durables.has(payload.durable)) return refuse("conflict");
      const most = limits.subscriptions_per_connection;
      if (payload.channel.length > most) return refuse("limit_subscriptions");
      if (model.chance() < 0.1) return refuse("unavailable", true);
      const held = new Set(this.subs.keys());
      const fits = payload.channel.filter((name) => held.has(name) || (held.size < most && held.add(name)));
      if (!fits.length) return refuse("limit_subscriptions");
      const refused = payload.channel.filter((name) => !fits.includes(name)).map((channel) => ({ channel, code: "limit_subscriptions" }));
      this.subscribe({ ...payload, channel: fits, refused }, messageId);
    }
  }

  subscribe({ channel: names, refused, position, last, snapshot, durable }, messageId) {
    const { model } = this;
    const answer = { channel: names, refused, recovered: true };
    const stored = names.filter((name) => !name.startsWith("live."));
    const stand = (state) => names.forEach((name) => this.subs.set(name, { ...state, ...(name.startsWith("live.") && { live: true }) }));
    if (!stored.length) {
      stand({});
      this.say("subscribed", { ...answer, position: model.position(this.at), live: true }, messageId);
    } else if (position !== undefined || last || snapshot) {
      this.leave(names);
      let at;
      let gap;
      if (last) at = (model.stored(stored).filter(({ sequence }) => sequence <= this.reached).at(-last)?.sequence ?? model.first) - 1;
      else if (snapshot) at = this.at;
      else {
        const [incarnation, sequence] = position.split("-");
        at = Number(sequence);
        if (incarnation !== `i${model.incarnation}`) {
          gap = { channel: names, reason: "reset", from: position, to: model.position(model.first - 1) };
          at = model.first - 1;
          answer.recovered = false;
        }
      }
      if (snapshot || this.live.length) {
        if (at >= this.at && !snapshot) {
          stand({ live: true, floor: at });
          this.say("subscribed", { ...answer, position: model.position(this.at), live: true }, messageId);
          if (gap) this.say("gap", gap);
        } else {
          const mark = ++this.marks;
          let newest;
          if (snapshot) {
            const of = new Map(model.stored(stored).filter(({ sequence }) => sequence <= at).map((each) => [each.channel, each]));
            newest = [...of.values()].sort((a, b) => a.sequence - b.sequence);
          }
          stand({ live: false });
          this.readings.push({ mark, names, at, newest });
          this.say("subscribed", { ...answer, position: model.position(this.at), live: false, catch_up: mark }, messageId);
          if (gap) this.say("gap", { ...gap, catch_up: mark });
        }
      } else {
        this.at = Math.min(at, model.end);
        this.behind = this.at < model.end;
        stand({ live: true, floor: at });
        this.say("subscribed", { ...answer, position: model.position(this.at), live: !this.behind }, messageId);
        if (gap) this.say("gap", gap);
      }
    } else {
      const fresh = names.filter((name) => !this.subs.has(name));
      if (fresh.length < names.length && names.some((name) => this.subs.has(name) && !this.subs.get(name).live))
        throw new Error("asked for again without a start while it catches up");
      if (!this.live.length) [this.at, this.behind] = [model.end, false];
      for (const name of fresh) this.subs.set(name, { live: true, floor: this.at });
      this.say("subscribed", { ...answer, position: model.position(this.at), live: !this.behind }, messageId);
    }
    if (durable && stored.length) this.durables.set(durable, stored);
  }
}
