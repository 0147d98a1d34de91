/**
 * The browser client of the broker: live events that survive a tunnel, a laptop lid and a deploy.
 *
 *     import { Client } from "https://events.example.com/client.js";
 *
 *     const client = new Client({
 *       token: async () => {
 *         const answer = await fetch("/token");
 *         if (!answer.ok) throw new Error(`no token: ${answer.status}`); // it is asked again, with back-off
 *         return answer.text();
 *       },
 *     });
 *     client.subscribe("orders.>", { last: 10 }, (event) => console.log(event.channel, event.event));
 *     await client.publish("orders.7", { state: "new" });
 *
 * One ES module without dependencies; types are in client.d.ts. It speaks `broker.v1` over WebSocket, else
 * over Server-Sent Events, else by long polling.
 *
 * How it stays complete. `#position` is the live position of the connection: everything up to it has been
 * handed to the records (subscriptions) that are LIVE. A record that is not LIVE knows by itself, in `seen`,
 * up to where it is complete. A lost connection makes all records NEW, and each is asked for from `seen`;
 * those that were LIVE stand at the same position and so go into one `subscribe`. Whatever a record has
 * `seen` is not handed to it again, so a start may always lie further back than needed.
 *
 * How it stays connected. Only the broker's word about a real token, said twice about the same one, ends it: all
 * else passes, and is tried again. Time is measured by `now()`, which nobody sets; the wall clock only tells
 * that the device has slept, when the other one may have stood still.
 */

const OPEN_MS = 10_000; // for a transport to show that it works
const PONG_MS = 10_000;
const SHORT_MS = 5_000; // a connection that was cut before this has not proved anything
const SHORTS = 3; // so many of them in a row, and the next transport is tried
const REMEMBER_MS = 3_600_000; // then WebSocket gets another chance
const BACKOFF_MS = 500;
const BACKOFF_MOST_MS = 20_000;
const POLL_S = 25;
const SLOW_MS = 5_000; // a request that takes longer waits for a connection, over HTTP/1.1
const ANSWER_MS = 20_000; // then it is given up, and made again
const HELD = 3; // of the six connections that a browser has to a host over HTTP/1.1, for all tabs together
const PAUSE_MS = 1_500; // between polls that may hold none
const ASIDE_MS = 60_000; // for which who holds one lets others have it
const NOTHING = ["me.-"]; // a list is never empty; nobody publishes there
const HEAD = 6_000; // characters of a query
const HELLO_MS = 3_000;
const TICK_MS = 5_000; // how soon it is noticed that the device has slept
const JUMP_MS = 2_000; // by which the clocks must differ for that
const TOKEN_MS = 10_000; // for the token callback; `tokenTimeout`
const IMPATIENT_MS = 1_000; // a callback that takes longer is called once more when the page is shown
const RENEW_MS = 30_000; // before the expiry, or at half of a life that is shorter than twice that
const BRIEF_MS = 120_000; // a token that lives no longer may be said to expire from its beginning on
const SMALL = 1_024; // bytes of channels that everybody lets through
const REPLY_MS = 30_000; // for what was asked for; then the two sides no longer agree, and begin anew
const TRIES = 3; // so many times what ends a connection, or has no answer, is sent
const ROOM_MS = 5_000; // for a place, where the connection has no more
const REFUSALS = 16; // for their rate, within REFUSALS_MS: 50 end a connection
const REFUSALS_MS = 60_000;
const IN_FLIGHT = 16; // without an answer, of publishes and of the rest: with those below the 50
const SHARE = 0.75; // of a burst: the network bunches up what was apart
const PACE = 0.9; // of a rate
const WINDOW = 0.9; // of the one in which the broker knows an id again
const DEPTH = 1024; // of an event
const FAULTY = [1002, 1003, 1007, 1009, 4510]; // the broker could not read something, and does not say what
const LEAST = 1_000; // bytes that a message may always have

// Until the broker says its own (the protocol page, "Limits"). Sizes are not known before.
const LIMITS = {
  subscriptions_per_connection: 128,
  requests_per_second: 10,
  requests_burst: 200,
  messages_per_minute: 100,
  messages_burst: 50,
  duplicate_window_seconds: 600,
};

// The states of a record, in this order.
const NEW = 0; // to be asked for, once no other of the same channel is under way
const ASKED = 1;
const CATCHING = 2; // takes the frames that are marked with its number
const LIVE = 3; // takes the unmarked ones
const PAUSED = 4; // whoever iterates has not kept up
const CLOSED = "it was closed";
const TOO_LONG = [413, 414, 431]; // for this transport: another one may carry it
const VERDICTS = { token_expired: 4002, token_invalid: 4500, token_revoked: 4501, forbidden: 4503 }; // as WebSocket says it
const WAKERS = ["online", "offline", "visibilitychange", "pageshow", "pagehide"];
const STATES = ["pending", "pending", "catching-up", "live", "paused"];

/** Something that was refused or could not be done; `code` is the protocol's, or the client's own. */
export class BrokerError extends Error {
  /** @param {{code: string, message: string, retryable?: boolean, retry_after_ms?: number, unknown?: boolean, position?: string}} payload */
  constructor({ code, message, retryable, retry_after_ms, unknown, position }) {
    super(message || code);
    this.name = "BrokerError";
    this.code = code;
    this.retryable = !!retryable;
    this.retryAfter = retry_after_ms;
    this.unknownOutcome = !!unknown;
    this.position = position;
  }
}

const now = () => performance.now();
const failure = (code, message) => new BrokerError({ code, message });
const emit = (target, type, detail) => target.dispatchEvent(new CustomEvent(type, { detail }));
const many = (value) => [value].flat(); // a list of our own
const utf8 = (text) => new TextEncoder().encode(text).length;
const bytes = (value) => utf8(JSON.stringify(value));
const settleAll = (calls, error, value) => calls.forEach(({ resolve, reject }) => (error ? reject(error) : resolve(value)));
/** What is not undefined of an object. */
const given = (object) => Object.fromEntries(Object.entries(object).filter(([, value]) => value !== undefined));
const random = () => Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(36)).join("");

/** A channel as the broker names it: `me.…` written out. */
const expand = (name, room) => name.replace(/^(live\.)?me\./, (all, live = "") => (room ? `${live}${room}.` : all));

const torn = (text) => /\p{Cs}/u.test(text); // holds half of a surrogate pair, as a text that was cut in an emoji
const TORN = "holds half a character: the text was cut in the middle of one";

/**
 * A copy of a value as JSON has it. Throws a `TypeError` that says where there is something that JSON has not, or
 * that the broker would refuse. As with `JSON.stringify` a property that is `undefined` is left out.
 */
const json = (value, path = "event", above = []) => {
  const wrong = (what) => {
    throw new TypeError(`${path} ${what}`);
  };
  if (value instanceof Date && Number.isNaN(+value)) wrong("is an invalid date");
  if (typeof value?.toJSON === "function") value = value.toJSON();
  if ([String, Number, Boolean].some((kind) => value instanceof kind)) value = value.valueOf();
  if (value === null || typeof value === "boolean") return value;
  if (typeof value === "string") return torn(value) ? wrong(TORN) : value;
  if (typeof value === "number") {
    if (!Number.isFinite(value)) wrong(`is ${value}, which JSON has not`);
    // From 1e21 on it is written with an exponent, and no integer any more.
    const huge = Number.isInteger(value) && Math.abs(value) < 1e21 && !(value >= -(2 ** 63) && value < 2 ** 64);
    if (huge) wrong("is an integer of more than 64 bits: send it as a string");
    return value;
  }
  if (value === undefined) wrong("is undefined, which JSON has not; null is a tombstone, or a value that is none");
  if (typeof value !== "object") wrong(`is a ${typeof value}, which JSON has not`);
  if (above.includes(value)) wrong("holds itself");
  if (above.length === DEPTH) wrong(`is nested deeper than ${DEPTH}`);
  const within = [...above, value];
  if (Array.isArray(value)) return Array.from(value, (each, i) => json(each, `${path}[${i}]`, within));
  const made = Object.getPrototypeOf(value);
  const keys = Object.keys(value).filter((key) => value[key] !== undefined);
  if (!keys.length && made && Object.getPrototypeOf(made)) wrong(`is a ${made.constructor?.name}, of which JSON keeps nothing`);
  const found = keys.find(torn);
  if (found !== undefined) wrong(`has a name that ${TORN}`);
  return Object.fromEntries(keys.map((key) => [key, json(value[key], `${path}.${key}`, within)]));
};

/** What is wrong with the name of a channel, or of a pattern (the protocol page, "Names"). */
const misnamed = (name, pattern) => {
  if (typeof name !== "string") return "a channel is a string";
  if (torn(name)) return TORN;
  const tokens = name.split(".");
  const wild = (token, i) => pattern && (token === "*" || (token === ">" && i === tokens.length - 1));
  if (utf8(name) > 256) return "a channel has 256 bytes at most";
  if (tokens.length > 16) return "a channel has 16 tokens at most";
  if (/^[@_$]/.test(name)) return "a channel does not begin with @, _ or $";
  if (tokens.some((token) => !token)) return "a token is empty";
  const odd = tokens.some((token, i) => /[*>\p{Z}\p{Cc}]/u.test(token) && !wild(token, i));
  if (odd && pattern) return "* and > stand for whole tokens, > at the end; white space does not belong there";
  if (odd) return "a channel has no *, > or white space";
  if (name === "live") return "a live channel is live.<name>";
};

const TIME = /^\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d(:\d\d(\.\d+)?)?([Zz]|[+-]\d\d:?\d\d)$/;

/**
 * What the broker would say to the options of a subscription.
 * @param {any} record
 * @param {any} limits
 */
const mistaken = ({ names, start: { position, since, last, durable }, lag }, { last_events = Infinity }) => {
  if (!names.length) return "there is no channel";
  if (position !== undefined && typeof position !== "string") return "position: send one back as it was received";
  if (since !== undefined && !TIME.test(since)) return "since: a time as 2026-01-31T12:00:00Z";
  if (last !== undefined && !(Number.isInteger(last) && last > 0 && last <= last_events)) return `last: 1 to ${last_events}`;
  if (durable !== undefined && !/^[\w-]{1,64}$/.test(durable)) return "durable: 1 to 64 of the characters A-Z a-z 0-9 _ -";
  if (lag !== undefined && !["replay", "latest", "drop", "close"].includes(lag)) return "lag: replay, latest, drop or close";
  if (lag === "replay" && names.some((name) => /^live\./.test(name))) return "lag: what is live is not stored, and cannot be replayed";
};

/** What may be spent: so much at once, and so much a second; less for a while, where others spend it too. */
class Bucket {
  #spent = 0;
  #at = now();
  #most; // at once
  #share = 1; // of the rate

  adopt(rate, burst) {
    this.rate = (rate * PACE) / 1000;
    this.burst = Math.max(1, burst * SHARE);
    this.#most = Math.min(this.#most ?? this.burst, this.burst);
  }

  /** In how many ms one more may be spent. */
  wait() {
    const at = now();
    const rate = this.rate * this.#share;
    this.#spent = Math.max(0, this.#spent - (at - this.#at) * rate);
    this.#at = at;
    return Math.max(0, Math.ceil((this.#spent + 1 - this.#most) / rate));
  }

  spend() {
    this.#spent++;
  }

  /** Spends one as soon as there is one. Throws once `signal` says that it is not wanted any more. */
  async turn(signal) {
    for (let ms; (ms = this.wait()); signal.throwIfAborted()) await rest(signal, ms);
    this.spend();
  }

  /** The broker has taken what was sent. */
  taken() {
    this.#most = Math.min(this.burst, this.#most + 1);
    this.#share = Math.min(1, this.#share + 1 / 16);
  }

  /** The broker says that there is nothing left. */
  drain() {
    this.wait();
    this.#most = 1;
    this.#share = Math.max(1 / 4, this.#share / 2);
    this.#spent = Math.max(this.#spent, 1);
  }
}

/** The incarnation of a position and its sequence. */
const parts = (position) => {
  const at = position.lastIndexOf("-");
  return [position.slice(0, at), +position.slice(at + 1)];
};

/** Whether `position` is at or below `seen`, in the same incarnation of the stream. */
const passed = (position, seen) => {
  if (!seen) return false;
  const [incarnation, sequence] = parts(position);
  const [other, reached] = parts(seen);
  return incarnation === other && sequence <= reached;
};

/** Whether a pattern covers a channel, both as lists of tokens. No wildcard reaches into `live` or `users`. */
const covers = (pattern, channel) => {
  const live = channel[0] === "live";
  const closed = live ? [0, channel[1] === "users" && 1] : [channel[0] === "users" && 0];
  const takes = (token, i) => token === channel[i] || (/^[*>]$/.test(token) && i < channel.length && !closed.includes(i));
  return pattern.every(takes) && (pattern.length === channel.length || pattern.at(-1) === ">");
};

const covered = ({ patterns }, channel) => patterns.some((pattern) => covers(pattern, channel));

/** What the browser remembers for us, where it lets us. */
const memory = (key, value) => {
  try {
    if (value === undefined) return localStorage.getItem(key);
    localStorage.setItem(key, value);
  } catch {} // private windows, sandboxed frames, no window at all
};

// --- transports --------------------------------------------------------------------------------------
// Each is a function of where to connect, what hears messages, and what hears the end; it gives
// `{send, close, passive?}`. A `passive` link cannot be asked whether it lives.

const suffix = (tenant) => (tenant ? `?tenant=${encodeURIComponent(tenant)}` : "");

const websocket = ({ url, token, tenant }, heard, over) => {
  const socket = new WebSocket(
    `${url.replace(/^http/, "ws")}/ws${suffix(tenant)}`,
    ["broker.v1", `bearer.${token}`],
  );
  socket.onmessage = ({ data }) => {
    try {
      heard(JSON.parse(data));
    } catch (error) {
      over({ code: 1002, reason: error.message });
    }
  };
  socket.onclose = ({ code, reason }) => over({ code, reason });
  return {
    send: (message) => socket.send(JSON.stringify(message)),
    close: () => {
      socket.onmessage = socket.onclose = null;
      socket.close();
    },
  };
};

/**
 * Emulates a connection by requests that only read. `read` makes messages of one such request, for a list of
 * channels and a start. There is one request for all that is live, made anew from its position when the list
 * changes; what has a start of its own is read beside it until it is live, and then joins.
 *
 * Only so many tabs of a browser hold a connection open, see `HELD`: the others ask now and then (`glance`).
 */
const http = (read, rate, burst) => ({ url, token, tenant, became }, heard, over) => {
  const channels = new Set();
  const closing = new AbortController();
  let main, position, stood; // `stood`: as the broker has said it, and not who joins
  let marks = 0;
  let joining = []; // who hears once the list with the newcomers is followed, or is refused
  const beside = new Set(); // lists that are read beside it
  const request = async (path, init) => {
    const headers = { Authorization: `Bearer ${token}`, ...(init.body && { "Content-Type": "application/json" }) };
    const common = { cache: /** @type {const} */ ("no-store"), redirect: /** @type {const} */ ("error") }; // to a login page
    const answer = await fetch(url + path, { ...common, signal: closing.signal, ...init, headers });
    if (answer.ok) return answer;
    const { status } = answer;
    const own = /problem\+json/.test(answer.headers.get("Content-Type") ?? ""); // the broker's, and not of what stands before it
    const { detail, code, retry_after_ms } = (own && (await answer.json().catch(() => {}))) || {};
    const after = retry_after_ms ?? (1000 * Number(answer.headers.get("Retry-After")) || undefined);
    throw { status, code: VERDICTS[code], reason: detail ?? `HTTP ${status}`, problem: code, after, own: !!detail };
  };
  let reading, aside;
  let own = {}; // what `reading` remembers from one request to the next
  const spare = []; // the same for what is read beside, for whoever is next
  // A connection that was left may count as one for a moment yet, and polls have a rate: lists change as often as that
  // allows. What is read beside is read one after the other.
  const [changes, starts] = [new Bucket(), new Bucket()];
  changes.adopt(rate, burst);
  starts.adopt(10, 10);
  const source = (bucket, start, signal, notes) => {
    const paced = async (path, init) => {
      await bucket.turn(signal);
      return request(path, init);
    };
    return reading(paced, { ...start, tenant }, signal, token, notes);
  };
  let before = Promise.resolve();
  /** The broker need not keep what nobody will ask for. */
  const leave = (...notes) => {
    for (const { session } of notes)
      if (session) globalThis.navigator?.sendBeacon?.(`${url}/poll`, JSON.stringify({ session, leave: true }));
  };
  const turn = (to) => {
    if (reading === to) return;
    leave(own, ...spare.splice(0));
    own = {};
    reading = to;
    became(to === glance ? "poll" : undefined);
    main?.abort();
  };
  // Again with another token, if there is one; and wherever it was not the broker who refused.
  const fault = ({ status = 503, reason, problem, after, own }) => ({
    code: problem ?? (status === 413 ? "too_large" : "unavailable"),
    message: reason,
    retryable: status !== 413 && (!own || status === 401 || status === 429 || status >= 500),
    retry_after_ms: after,
    unknown: !own && status !== 413, // what became of it
  });
  const failed = (error) => {
    const { status, own, reason = error.message, after } = error;
    // What stands before the broker has no say in whether we come again, and little in when.
    if (!own) return over({ status, code: 1006, reason, after: after && Math.min(after, BACKOFF_MOST_MS) });
    // No use in another transport.
    over({ ...error, answered: [401, 403, 429, 503].includes(status) });
  };

  const follow = async () => {
    while (!closing.signal.aborted) {
      const { signal } = (main = new AbortController());
      const said = [...joining];
      const settled = () => {
        joining = joining.filter((each) => !said.includes(each));
        return said.splice(0);
      };
      try {
        for await (const message of source(changes, { channel: channels.size ? [...channels] : NOTHING, position }, signal, own)) {
          if (signal.aborted) break;
          const { type, payload } = message;
          delete payload.catch_up; // a list that changed is caught up with as a whole
          position = stood = payload.position ?? (type === "gap" ? payload.to : undefined) ?? position;
          if (type === "subscribed") {
            for (const { channel } of payload.refused) channels.delete(channel);
            for (const { say } of settled()) say(payload);
          } else heard(message);
        }
        if (!signal.aborted) return over({ code: 1006, reason: "the stream ended" });
      } catch (error) {
        if (signal.aborted) continue;
        const { problem: code, reason: message } = error;
        // What is wrong with the newcomers is no reason for the others to go.
        if (!said.length || !["limit_subscriptions", "bad_message", "invalid_position"].includes(code)) return failed(error);
        position = stood;
        for (const { names, say } of settled()) {
          for (const name of names) channels.delete(name);
          say({ refused: names.map((channel) => ({ channel, code, message })), recovered: true });
        }
      }
    }
  };
  const join = (names, from, say) => {
    for (const name of names) channels.add(name);
    if (from) position = !position || passed(from, position) ? from : position;
    joining.push({ names, say });
    main?.abort();
  };
  const begin = async (names, start, messageId) => {
    const mark = ++marks;
    const notes = spare.pop() ?? {};
    const list = new Set(names);
    let reached;
    /** @type {any} */
    let wrong = {};
    beside.add(list);
    try {
      for await (const { type, payload } of source(starts, { channel: names, ...start }, closing.signal, notes)) {
        reached = payload.position ?? (type === "gap" ? payload.to : undefined) ?? reached;
        if (type === "subscribed") {
          for (const { channel } of payload.refused) list.delete(channel);
          heard({ type, messageId, payload: { ...payload, channel: [], live: false, catch_up: mark, position } });
        } else if (type === "event" || type === "gap") heard({ type, payload: { ...payload, catch_up: mark } });
        if (type === "subscription.live" || payload.live || !list.size) break;
      }
      spare.push(notes);
    } catch (error) {
      wrong = error;
      leave(notes);
    }
    beside.delete(list);
    if (TOO_LONG.includes(wrong.status)) return failed(wrong);
    // Cut off on its way, it is gone on with in the list.
    if (!reached) heard({ type: "error", messageId, payload: fault(wrong) });
    else if (list.size) join(list, reached, () => heard({ type: "subscription.live", payload: { catch_up: mark, position } }));
  };

  const post = async (type, payload, messageId) => {
    const slow = setTimeout(giveWay, SLOW_MS);
    const late = new AbortController();
    const stop = () => late.abort();
    const timer = setTimeout(stop, ANSWER_MS);
    closing.signal.addEventListener("abort", stop);
    try {
      const init = { method: "POST", body: JSON.stringify(payload), signal: late.signal };
      const answer = await request(`/${type}${suffix(tenant)}`, init);
      const [said, status] = { publish: ["published", 202], acknowledge: ["acknowledged", 200] }[type];
      if (answer.status !== status) throw new TypeError(`HTTP ${answer.status}`); // whoever that was
      heard({ type: said, messageId, payload: { id: payload.id, ...(await answer.json()) } });
    } catch (error) {
      heard({ type: "error", messageId, payload: fault(error) });
    }
    closing.signal.removeEventListener("abort", stop);
    clearTimeout(slow);
    clearTimeout(timer);
  };

  const send = ({ type, payload, messageId }) => {
    if (type === "subscribe") {
      const { channel, position: from, lag, ...start } = payload;
      if (Object.keys(given(start)).length) return (before = before.then(() => begin(channel, { ...start, lag, position: from }, messageId)));
      join(channel, from, ({ refused, ...rest }) => {
        refused = refused.filter((each) => channel.includes(each.channel));
        heard({ type: "subscribed", messageId, payload: { ...rest, channel: [], refused, live: true, position } });
      });
    } else if (type === "unsubscribe") {
      for (const name of payload.channel) for (const list of [channels, ...beside]) list.delete(name);
      main?.abort();
      heard({ type: "unsubscribed", messageId, payload });
    } else if (type === "authenticate") {
      token = payload.token;
      main?.abort();
    } else post(type, payload, messageId);
  };
  const held = () => turn(read);
  // Something waits, perhaps for the connection that this one holds.
  const giveWay = () => {
    if (reading !== read || !scarce(url)) return;
    turn(glance);
    aside = setTimeout(held, ASIDE_MS);
  };
  hold(url, closing.signal, held).then(() => {
    if (!reading) turn(glance);
    follow();
  });
  const close = () => {
    clearTimeout(aside);
    closing.abort();
    main?.abort();
    leave(own, ...spare);
  };
  return { send, close, passive: true, refresh: () => main?.abort() };
};

/** Whether the connections to there can be spent: over HTTP/2 and 3, as far as we may know, they cannot. */
const scarce = (url) => {
  const entries = /** @type {PerformanceResourceTiming[]} */ (performance.getEntriesByType("resource"));
  return !entries.some(({ name, nextHopProtocol }) => name.startsWith(url) && /^h[23]/.test(nextHopProtocol));
};

/**
 * Calls `then` once we may hold a connection, which is ours until `signal`: at once, where it is known at once.
 * Each place is a lock, for which the tabs of this origin wait; where there are no locks, everybody may.
 */
const hold = async (url, signal, then) => {
  const { locks } = globalThis.navigator ?? {};
  if (!locks || !scarce(url)) return then();
  const left = new Promise((resolve) => signal.addEventListener("abort", resolve));
  const waiting = new AbortController(); // for the places that we need no more
  left.then(() => waiting.abort());
  let held;
  const take = () => {
    if (held || signal.aborted) return;
    held = true;
    waiting.abort();
    then();
    return left;
  };
  for (let i = 0; i < HELD; i++) locks.request(`broker.v1 ${url} ${i}`, { signal: waiting.signal }, take).catch(() => {});
  await locks.query().catch(() => void take()); // answered once it is clear which of them are free; frames without an origin have none
};

/** Messages of `GET /sse`: the WebSocket's own, and a `pong` for each heartbeat. */
async function* eventStream(request, { channel, ...start }, signal) {
  const query = new URLSearchParams(channel.map((name) => ["channel", name]));
  for (const [name, value] of Object.entries(given(start))) query.append(name, value);
  // What may be longer is refused by some on the way, and beside a long token by the broker.
  if (`${query}`.length > HEAD) throw { status: 431, reason: "so many channels do not fit into an address" };
  const { body } = await request(`/sse?${query}`, { signal });
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  let data, position;
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      const lines = (rest + value).split("\n");
      rest = lines.pop();
      for (const line of lines) {
        if (line.startsWith("data:")) data = line.slice(5);
        else if (line.startsWith("id:")) position = line.slice(3).trim();
        else if (!line.trim() || line[0] === ":") {
          // The position counts only with the blank line: what it belongs to is complete then.
          yield data ? JSON.parse(data) : { type: "pong", payload: { position } };
          data = position = undefined;
        }
      }
    }
  } finally {
    reader.cancel().catch(() => {}); // it has failed, or was aborted: over either way
  }
}

/** Messages of `POST /poll`, as the other transports have them. `pause`: between polls that do not wait, in ms. */
const poll = (pause) => async function* (request, { channel, position, tenant, lag, ...start }, signal, token, notes) {
  let begun = false;
  let live = false;
  for (;;) {
    const wait = live && !pause ? POLL_S : 0;
    const ask = { session: notes.session, channels: channel, position, lag, wait, ...(!begun && start) };
    const answer = await (await request(`/poll${suffix(tenant)}`, { method: "POST", signal, body: JSON.stringify(ask) })).json();
    const { refused = [], recovered, session, events, gaps } = answer;
    if (!session || !events || !gaps) throw new TypeError("no answer to a poll");
    notes.session = session;
    if (answer.limits) yield { type: "connection.established", payload: { limits: answer.limits, heartbeat_seconds: POLL_S } };
    if (!begun) {
      yield { type: "connection.authenticated", payload: claims(token) };
      yield { type: "subscribed", payload: { channel: [], refused, position, recovered, live: false } };
    } else for (const payload of refused) yield { type: "unsubscribed", payload };
    begun = true;
    for (const payload of gaps) yield { type: "gap", payload };
    for (const payload of events) yield { type: "event", payload };
    position = answer.position;
    yield { type: "pong", payload: { position } };
    if (!live && position && !events.length) {
      live = true;
      yield { type: "subscription.live", payload: { channel, position } };
    }
    if (answer.reconnect_after_ms !== undefined) yield { type: "connection.draining", payload: answer };
    if (pause && live && !events.length) await rest(signal, pause);
  }
};
const longPoll = poll(0);
const glance = poll(PAUSE_MS);

/** So many ms, or until `signal` says so. */
const rest = (signal, ms) =>
  new Promise((resolve) => {
    const done = () => {
      clearTimeout(timer);
      signal.removeEventListener("abort", done);
      resolve();
    };
    const timer = setTimeout(done, ms);
    signal.addEventListener("abort", done);
  });

/** What a token says; throws where it is none. */
const decode = (token) => {
  const bytes = Uint8Array.from(atob(token.split(".")[1].replace(/-/g, "+").replace(/_/g, "/")), (c) => c.charCodeAt(0));
  return JSON.parse(new TextDecoder().decode(bytes));
};

/** A token as the broker can read it; throws where it is none, for what the broker says of it would be final. */
const checked = (given) => {
  try {
    const token = given.trim();
    if (/^[\w-]+\.[\w-]+\.[\w-]+$/.test(token) && decode(token)) return token;
  } catch {}
  const what = typeof given === "string" ? JSON.stringify(given.slice(0, 20)) : String(given);
  throw failure("token", `no token but ${what}; does the callback look at answer.ok?`);
};

/** The token, and whoever gives it: asked again for as long as it takes, and never waited for without end. */
class Tokens {
  fixed; // there is no other
  refused; // the last one that the broker refused for good
  gotAt = 0;
  life; // in ms, by the token itself: a device's clock may be hours off; NaN where it does not say
  #source;
  #timeout;
  #token;
  #asking;
  #wake;
  #leave;

  constructor(source, timeout = TOKEN_MS) {
    this.fixed = typeof source !== "function";
    if (this.fixed) checked(source);
    this.#source = this.fixed ? () => source : source;
    this.#timeout = timeout;
  }

  /** When another one is needed, where that is known. */
  get due() {
    return this.gotAt + Math.max(this.life - RENEW_MS, this.life / 2);
  }

  /** One that is as good as new, or still good enough. */
  async get() {
    return now() > this.due ? this.next() : (this.#token ?? this.next());
  }

  /** Another one, unless the callback gives the same again. Throws when it gives none. */
  async next() {
    this.#token = undefined; // a callback that fails leaves none
    const asking = (this.#asking ??= this.#ask());
    const token = await asking.finally(() => {
      if (this.#asking === asking) this.#asking = undefined;
    });
    const { iat, exp } = decode(token);
    this.gotAt = now();
    this.life = (exp - iat) * 1000;
    return (this.#token = token);
  }

  /** The broker has refused it, for good or not; whether for good, and that for the second time. */
  reject(final) {
    const token = this.#token;
    this.#token = undefined;
    const again = final && !!token && this.refused === token;
    if (final) this.refused = token;
    return again;
  }

  /** Who has been asked for long may have been asleep, or without a network. */
  wake() {
    if (this.#asking) this.#wake();
  }

  /** Nobody waits any more. */
  leave() {
    if (this.#asking) this.#leave();
    this.#asking = undefined;
  }

  async #ask() {
    let timer;
    try {
      return await new Promise((resolve, reject) => {
        let began;
        const fail = (why) => reject(failure("token", `the token callback ${why}`));
        const call = () => {
          began = now();
          clearTimeout(timer);
          timer = setTimeout(() => fail(`gave nothing within ${this.#timeout} ms`), this.#timeout);
          Promise.resolve()
            .then(this.#source)
            .then(
              (given) => resolve(checked(given)),
              (error) => fail(`failed: ${error?.message ?? error}`),
            )
            .catch(reject);
        };
        this.#wake = () => now() - began >= IMPATIENT_MS && call();
        this.#leave = () => fail("is needed no more");
        call();
      });
    } finally {
      clearTimeout(timer);
    }
  }
}

/** What the broker would make of a token, for us to know by which name it calls `me`. */
const claims = (token) => {
  const { sub, tenant, exp } = decode(token);
  const encode = (c) => ({ ".": "%2E", "*": "%2A" })[c] ?? encodeURIComponent(c);
  const user = sub.replace(/[.*>%$\s\p{Cc}\p{Cf}\p{Z}]/gu, encode);
  return { tenant, user: sub, private: `users.${user}`, expires_at: exp };
};

/** Another tab has the connection, and plays the broker for us. */
const otherTab = ({ hub }, heard, over) => {
  if (hub.leads) return over({ at_once: true }); // since a moment ago
  const hello = () => hub.ready?.then(() => hub.post("leader", { type: "tab.hello" }));
  const again = setInterval(hello, HELLO_MS);
  hub.heard = (message) => {
    if (message.type !== "tab.wait") clearInterval(again);
    heard(message);
  };
  hub.over = over;
  hello();
  return {
    patient: true, // it answers when the broker has answered it
    send: (message) => hub.post("leader", message),
    close: () => {
      clearInterval(again);
      hub.post("leader", { type: "tab.bye" });
    },
  };
};

const TRANSPORTS = { websocket, sse: http(eventStream, 4, 4), poll: http(longPoll, 4, 40), tabs: otherTab };

// --- the client --------------------------------------------------------------------------------------

/** One connection to the broker, made anew whenever it is lost; client.d.ts says what everything means. */
export class Client extends EventTarget {
  /** @type {any} */ #options;
  #url;
  /** @type {any} */ #status = {};
  #running; // the loop that may connect; another object for each connect()
  #link; // once it is authenticated
  #over; // ends the present attempt
  #wake; // ends the wait between attempts
  #probe; // asks whether the link lives
  #position;
  #private;
  #records = new Set();
  #names = new Map(); // what the broker has, or is being asked for: {held, asked, leaving}, the latter by message
  #calls = new Map(); // messageId → what was asked for and has no answer
  #outbox = new Map(); // channel and id → a publish that has no answer yet
  #limits = LIMITS;
  #largest = Infinity; // bytes of a message, as far as we had to learn
  #requests = new Bucket();
  #posts = new Bucket();
  #refusals = []; // when something was refused for its rate
  #holdUntil = 0; // nothing is sent before
  #postAt = 0; // nothing is published before
  #syncTimer;
  #syncAt = Infinity;
  #syncs; // at the end of this turn
  #count = 0;
  /** @type {Tokens} */ #tokens;
  #renewTimer;
  #renewing; // the message that renews the token
  #away; // the page is gone, and may come back
  #narrow = new Map(); // transport → how much to subscribe to is too much for it
  #failures = 0;
  #shorts = 0;
  #hub; // the other tabs, where they share our connection
  #first; // the transport to begin with, for as long as it is remembered

  constructor(options = {}) {
    super();
    this.#options = { transports: ["websocket", "sse", "poll"], queue: 100, ...options };
    this.#tokens = new Tokens(options.token, options.tokenTimeout);
    this.#adopt();
    this.#url = String(options.url ?? new URL(".", import.meta.url)).replace(/^ws/, "http").replace(/\/$/, "");
    this.#say({ state: "connecting" });
    for (const type of WAKERS) globalThis.addEventListener?.(type, this.#hurry);
    const { tabs, tenant } = this.#options;
    if (tabs && globalThis.navigator?.locks) this.#hub = new Hub(`${this.#url} ${tenant} ${tabs}`, this.#heed, this.#lead);
    this.connect();
  }

  get status() {
    return this.#status;
  }

  get position() {
    return this.#position;
  }

  /** How many publishes wait for their answer. */
  get queued() {
    return this.#outbox.size;
  }

  connect() {
    if (this.#running) return;
    this.#run((this.#running = {}));
  }

  /** Leaves, and keeps subscriptions, their positions and queued publishes for `connect`. */
  disconnect(error) {
    this.#running = undefined;
    this.#tokens.refused = undefined; // who connects again has a reason
    this.#tokens.leave();
    this.#over?.({});
    this.#wake?.();
    this.#lost();
    this.#hub?.leave();
    this.#say({ state: "closed", error });
  }

  /** Leaves for good: subscriptions end, publishes without an answer are rejected. */
  close() {
    this.disconnect();
    for (const type of WAKERS) globalThis.removeEventListener?.(type, this.#hurry);
    for (const record of [...this.#records]) this.#end(record);
    for (const entry of [...this.#outbox.values()]) this.#settle(entry, failure("closed", CLOSED));
  }

  /**
   * Asks for the events of channels and patterns, now and after each cut.
   * @param {string | string[]} channels
   * @param {any} options where to start, what may be left out; or `onEvent` at once
   * @param {(item: any) => void} [onEvent]
   */
  subscribe(channels, options = {}, onEvent) {
    if (typeof options === "function") [options, onEvent] = [{}, options];
    const { position, since, last, snapshot, durable, lag, buffer = 1000 } = options;
    const start = given({ position, since, last, snapshot: snapshot || undefined });
    if (Object.keys(start).length > 1) throw new TypeError("at most one of position, since, last and snapshot");
    /** @type {any} */
    const record = { names: many(channels), start: given({ ...start, durable }), seen: position, lag, durable, buffer };
    record.sub = new Subscription(record, {
      reached: () => this.#reached(record),
      end: () => this.#end(record),
      pause: () => this.#pause(record),
      resume: () => this.#resume(record),
      restart: () => this.#restart(record),
      acknowledge: (position) => this.#acknowledge(record, position),
    });
    if (onEvent) record.sub.addEventListener("event", ({ detail }) => onEvent(detail));
    this.#add(record);
    return record.sub;
  }

  /**
   * Publishes as soon as there is a connection; resolves with `{id, position, duplicate}`.
   * @param {string} channel
   * @param {any} event any JSON
   * @param {{id?: string, timeout?: number}} options `id` makes a retry harmless, `timeout` is in ms
   */
  async publish(channel, event, options = {}) {
    return this.#publish(channel, json(event), options);
  }

  // --- connecting ------------------------------------------------------------------------------------

  async #run(run) {
    while (run === this.#running) {
      if (this.#away) {
        this.#say({ state: "waiting", retryAt: undefined });
        await this.#sleep();
        continue;
      }
      const began = now();
      /** @type {any} */
      let end;
      try {
        end = await this.#round();
      } catch (error) {
        end = { code: error.code, reason: error.message };
      }
      if (run !== this.#running) return;
      const code = end.code ?? end.status;
      const error = { code, message: end.error?.message ?? end.reason ?? `closed with ${code}` };
      if (end.lived >= SHORT_MS) this.#tokens.refused = undefined; // it was good for a while
      // The callback is asked for another one, which has a chance of its own.
      if ((code >= 4500 || code === 4002 || code === 401) && this.#tokens.reject(code >= 4500)) return this.disconnect(error);
      if (end.lived >= SHORT_MS || end.at_once) this.#failures = 0;
      if (end.at_once) continue;
      const most = Math.min(BACKOFF_MOST_MS, BACKOFF_MS * 2 ** this.#failures);
      const spent = end.opened ? 0 : now() - began; // who has waited for an answer need not wait as long again
      const after = Math.max(end.asked ?? Math.random() * most - spent, end.after ?? 0, 0);
      this.#failures++;
      this.#say({ state: "waiting", error, retryAt: Date.now() + after });
      await this.#sleep(after);
    }
  }

  /** So many ms, or until it is woken. */
  async #sleep(ms) {
    let timer;
    await new Promise((resolve) => {
      this.#wake = resolve;
      if (ms !== undefined) timer = setTimeout(resolve, ms);
    });
    clearTimeout(timer);
  }

  /** Tries the transports in turn until one works, and stays with it to its end. */
  async #round() {
    this.#say({ state: "connecting", retryAt: undefined });
    const run = this.#running;
    const hub = this.#hub;
    if (hub && !hub.ready) {
      const token = await this.#tokens.get();
      if (run !== this.#running || this.#away) return { at_once: true };
      hub.join(token);
    }
    let names = this.#carriers.length ? this.#carriers : this.#options.transports;
    const first = names.indexOf(this.#remembered());
    if (first > 0) names = [...names.slice(first), ...names.slice(0, first)];
    if (hub && !hub.leads) names = ["tabs", ...names];
    /** @type {any} */
    let end;
    const fails = async (name) => {
      const token = await this.#tokens.get();
      if (run !== this.#running || this.#away) return false;
      end = await this.#attempt(name, token);
      if (run !== this.#running) return false;
      this.#blame(end.code);
      if (end.opened) this.#lost();
      if (this.#away || this.#tooLong(name, end)) return false;
      // Cut again and again without a word: something between us and the broker does not like it.
      this.#shorts = end.lived && (end.lived >= SHORT_MS || end.code !== 1006) ? 0 : this.#shorts + (end.opened ? 1 : 0);
      const works = end.opened && this.#shorts < SHORTS;
      return !works && !end.at_once && !end.answered && !(end.code >= 4000) && this.#reachable();
    };
    for (const [at, name] of names.entries()) {
      const began = now();
      if (!(await fails(name))) break;
      // A broker that is just coming up refuses one moment and answers the next: no reason to leave WebSocket.
      if (!end.opened && now() - began < SHORT_MS && !(await fails(name))) break;
      if (end.opened && names[at + 1]) this.#remember(names[at + 1]);
      this.#shorts = 0;
    }
    return end ?? { at_once: true };
  }

  /** How much there is to subscribe to. */
  get #load() {
    return [...this.#records].reduce((sum, { full }) => sum + full.join("&channel=").length, 0);
  }

  /** The transports that may carry that. */
  get #carriers() {
    return this.#options.transports.filter((name) => !(this.#narrow.get(name) <= this.#load));
  }

  /** Whether the list was too long for the transport: then another one may carry it, and at once. */
  #tooLong(name, end) {
    const { status } = end;
    if (!TOO_LONG.includes(status) || this.#load <= SMALL || (name === "poll" && status !== 413)) return false;
    end.at_once = true;
    this.#narrow.set(name, this.#load);
    // It stood in a body, or there is no other way, unless the first one is free again: the longest part has to go.
    if (status === 413 || this.#carriers.every((each) => each === "websocket")) {
      const length = ({ full }) => full.join().length;
      const [longest] = [...this.#records].sort((a, b) => length(b) - length(a));
      this.#end(longest, failure("too_large", "so many channels are too much for what stands before the broker"));
    }
    return true;
  }

  /** The transport to begin with, unless the time has come to try another one. */
  #remembered() {
    const [known, until] = (memory(`broker ${this.#url}`) || this.#first || "").split(" ");
    const left = until - Date.now();
    return left > 0 && left <= REMEMBER_MS ? known : undefined; // a clock that was set back makes it no longer
  }

  #remember(name) {
    if (name === "tabs" || name === this.#remembered()) return;
    this.#first = name === this.#options.transports[0] ? " 0" : `${name} ${Date.now() + REMEMBER_MS}`;
    memory(`broker ${this.#url}`, this.#first);
  }

  /** Whether the broker's host answers at all: then it is the transport that is in the way. */
  async #reachable() {
    const late = new AbortController();
    const timer = setTimeout(() => late.abort(), PONG_MS);
    try {
      await fetch(`${this.#url}/healthz`, { mode: "no-cors", cache: "no-store", signal: late.signal });
      return true;
    } catch {
      return false;
    } finally {
      clearTimeout(timer);
    }
  }

  /** One connection, from its first byte to its end: `{code?, status?, reason, opened, lived, after?}`. */
  #attempt(name, token) {
    return new Promise((resolve) => {
      let link, timer, leaving, resumeAt, opened, heartbeat, problem, pinged, before;
      let shown = name;
      let deadline = now() + OPEN_MS; // by which something must be heard, or asked
      /** @param {{code?: number, reason?: string, status?: number, after?: number, answered?: boolean, at_once?: boolean}} end */
      const over = (end) => {
        if (this.#over !== over) return;
        this.#over = this.#probe = undefined;
        clearTimeout(timer);
        clearTimeout(leaving);
        link?.close();
        const at = now();
        const asked = resumeAt && resumeAt - at; // a draining broker has asked us back, then and not before
        const after = end.after ?? problem?.retry_after_ms;
        resolve({ ...end, after, asked, opened, lived: opened && at - opened, error: problem });
      };
      const arm = () => {
        clearTimeout(timer);
        before = { at: now(), wall: Date.now(), due: Math.min(Math.max(Math.ceil(deadline - now()), 0), TICK_MS) };
        timer = setTimeout(check, before.due);
      };
      const check = () => {
        const at = now();
        const elapsed = at - before.at;
        // The device has slept, or somebody has set its clock: what either clock says of the link is worth nothing.
        const slept = Math.abs(Date.now() - before.wall - elapsed) > JUMP_MS || elapsed - before.due > JUMP_MS;
        if (opened && slept) this.#probe(true);
        else if (at < deadline) arm();
        else if (!opened) over({ code: 1006, reason: `${name}: no answer within ${OPEN_MS} ms` });
        else if (link.passive || pinged) over({ code: 4009, reason: "silent for too long" });
        else this.#probe();
      };
      const heard = (message) => {
        if (this.#over !== over) return;
        const { type, payload } = message;
        const at = now();
        if (type === "connection.established") {
          heartbeat = payload.heartbeat_seconds * 1000;
          this.#say({ connectionId: payload.connection_id });
        } else if (type === "connection.authenticated" && !opened) {
          opened = at;
          heartbeat ??= 25_000;
          this.#link = link;
          this.#opened(shown, payload);
          if (this.#over !== over) return;
        } else if (type === "connection.draining") {
          resumeAt = at + payload.reconnect_after_ms;
          leaving = setTimeout(() => over({ code: 1012, reason: "it is going down" }), payload.reconnect_after_ms);
        } else if (type === "error" && !message.messageId) {
          problem = payload;
          // The token cannot be judged yet.
          if (!opened && payload.code === "unavailable") return over({ code: 1013, answered: true });
        }
        if (type === "tab.wait") deadline = at + OPEN_MS; // it is there, and not connected either
        if (opened) {
          pinged = false;
          deadline = at + heartbeat * (link.passive ? 2.5 : 0.5);
          if (opened === at) arm();
        }
        this.#heard(message);
      };
      /** Whether it lives: who cannot be asked begins anew after a sleep, and else has to say something soon. */
      this.#probe = (slept) => {
        if (!opened || (pinged && !slept)) return;
        const at = now();
        if (!link.passive) {
          pinged = true;
          deadline = at + PONG_MS;
          link.send({ type: "ping", payload: {} });
        } else if (slept) {
          deadline = at + OPEN_MS;
          link.refresh();
        } else deadline = Math.min(deadline, at + heartbeat);
        arm();
      };
      /** @param {string} [other] what it does in place of it */
      const became = (other = name) => {
        shown = other;
        if (opened) this.#say({ transport: shown });
      };
      this.#over = over;
      arm();
      try {
        link = TRANSPORTS[name]({ url: this.#url, token, tenant: this.#options.tenant, hub: this.#hub, became }, heard, over);
        if (this.#over !== over) link?.close();
      } catch (error) {
        over({ code: 1006, reason: error.message });
      }
    });
  }

  #opened(name, { tenant, user, private: room }) {
    this.#private = room;
    this.#remember(name);
    for (const record of this.#records) this.#expand(record);
    this.#say({ state: "open", transport: name, tenant, user, private: room, error: undefined, source: "restored" });
    this.#hub?.announce();
    this.#sync();
  }

  /** The connection is gone: what was live stands where the connection stood. */
  #lost() {
    clearTimeout(this.#renewTimer);
    clearTimeout(this.#syncTimer);
    this.#syncAt = Infinity;
    this.#link = undefined;
    this.#names.clear();
    this.#hub?.announce(); // the other tabs come again, from where they stand
    for (const record of this.#records)
      if (record.peer) this.#records.delete(record);
      else if (record.state !== PAUSED) this.#turn(record, NEW);
    const calls = [...this.#calls.values()];
    this.#calls.clear();
    for (const { timer, entry, record, acks } of calls) {
      clearTimeout(timer);
      if (entry) this.#unanswered(entry);
      else if (acks && this.#records.has(record)) record.acks.unshift(...acks.filter(({ doubts }) => doubts !== TRIES));
      else if (acks) settleAll(acks, failure("closed", CLOSED));
    }
  }

  /** The page is seen again or the network is back: no need to wait; or it has gone: look whether it has. */
  #hurry = ({ type }) => {
    if (type === "pagehide") {
      // Perhaps for good: nothing of it holds a place. What a browser keeps to go back to holds no connection.
      this.#away = true;
      this.#over?.({ at_once: true, reason: "the page is not shown" });
      this.#hub?.leave();
      return;
    }
    if (type === "pageshow") this.#away = false;
    else if (this.#away || globalThis.document?.visibilityState === "hidden") return;
    if (this.#link) this.#probe?.();
    else if (globalThis.navigator?.onLine !== false) {
      this.#tokens.wake();
      this.#wake?.();
    }
  };

  #say(change) {
    this.#status = Object.freeze({ ...this.#status, ...change });
    emit(this, "status", this.#status);
  }

  // --- tokens ----------------------------------------------------------------------------------------

  /** In so many ms, and not again and again where tokens are short-lived, or come out of a cache. */
  #renewIn(ms) {
    clearTimeout(this.#renewTimer);
    const { fixed, gotAt, life } = this.#tokens;
    if (fixed) return;
    const least = gotAt + (life < BRIEF_MS ? life / 2 : SHORT_MS) - now();
    this.#renewTimer = setTimeout(() => this.#renew(), Math.min(Math.max(ms, least, 0), 2e9));
  }

  async #renew(failures = 0) {
    const link = this.#link;
    try {
      const token = await this.#tokens.next();
      if (link !== this.#link) return;
      this.#renewing = `t${++this.#count}`;
      link.send({ type: "authenticate", payload: { token }, messageId: this.#renewing });
    } catch (error) {
      if (link !== this.#link) return;
      const wait = Math.random() * Math.min(BACKOFF_MOST_MS, BACKOFF_MS * 2 ** failures);
      this.#renewTimer = setTimeout(() => this.#renew(failures + 1), wait);
      emit(this, "error", error);
    }
  }

  // --- what is asked for and answered ----------------------------------------------------------------

  /** Goes by the limits that the broker has said. */
  #adopt(said = {}) {
    const limits = (this.#limits = { ...LIMITS, ...said });
    this.#requests.adopt(limits.requests_per_second, limits.requests_burst);
    this.#posts.adopt(limits.messages_per_minute / 60, limits.messages_burst);
  }

  /** So many bytes a message may have. */
  get #most() {
    return Math.min(this.#largest, this.#limits.message_bytes ?? Infinity);
  }

  /** What was done in one breath is said at the end of it. */
  #soon() {
    if (this.#syncs) return;
    this.#syncs = true;
    queueMicrotask(() => {
      this.#syncs = false;
      this.#sync();
    });
  }

  /** Once more in so many ms. */
  #again(ms) {
    const at = now() + ms;
    if (!this.#link || at >= this.#syncAt) return;
    this.#syncAt = at;
    clearTimeout(this.#syncTimer);
    this.#syncTimer = setTimeout(() => {
      this.#syncAt = Infinity;
      this.#sync();
    }, Math.ceil(ms));
  }

  /** Says what is to be said, as far as the limits allow it now; what is left out comes as soon as they do. */
  #sync() {
    for (const record of [...this.#records]) this.#examine(record);
    if (!this.#link) return;
    this.#leave();
    this.#askAll();
    for (const record of [...this.#records]) this.#sendAcks(record);
    this.#flush();
  }

  /**
   * Whether a message may be sent now: at the pace of `bucket`, with fewer than `most` of `types` under way. What is
   * in doubt goes alone, so that nothing else is blamed for it. Where only time is in the way, `#sync` follows.
   */
  #may(bucket, types, most, doubts) {
    const calls = [...this.#calls.values()];
    if (calls.some((call) => call.doubts) || (doubts && calls.length)) return false;
    if (calls.filter(({ type }) => types.includes(type)).length >= most) return false;
    const wait = Math.max(this.#holdUntil - now(), bucket.wait());
    if (wait > 0) this.#again(wait);
    return wait <= 0;
  }

  #bucket({ type }) {
    return type === "publish" ? this.#posts : this.#requests;
  }

  #mayAsk(doubts) {
    return this.#may(this.#requests, "subscribe unsubscribe acknowledge", IN_FLIGHT, doubts);
  }

  /** Sends what is to be answered; `about` is for who gets the answer, `noted` is called with its id before. */
  #call(type, payload, about, noted = (_) => {}) {
    const id = `${type[0]}${++this.#count}`;
    noted(id);
    /** @type {any} */
    const call = { ...about, type, size: bytes(payload) + 100 };
    this.#bucket(call).spend();
    this.#calls.set(id, call);
    const late = () => {
      call.late = true;
      this.#over?.({ code: 4009, reason: `no answer to ${type} within ${REPLY_MS} ms` });
    };
    if (!this.#link.patient) call.timer = setTimeout(late, REPLY_MS);
    this.#link.send({ type, payload, messageId: id });
  }

  /** The call that a message answers, which then is no more. */
  #answered(messageId) {
    const call = this.#calls.get(messageId);
    if (!call) return;
    clearTimeout(call.timer);
    this.#calls.delete(messageId);
    this.#bucket(call).taken();
    this.#soon(); // whoever waited for it
    return call;
  }

  #heard({ type, payload, messageId }) {
    const { position, catch_up: mark } = payload;
    // These say where the connection stands, whatever else they are about.
    if (/^sub|pong|draining/.test(type)) this.#position = position ?? this.#position;
    const answers = /^(subscribed|unsubscribed|published|acknowledged|error)$/.test(type);
    const call = answers && messageId ? this.#answered(messageId) : undefined;
    switch (type) {
      case "event":
      case "gap":
        if (type === "gap") this.#gap(payload, mark);
        else this.#event(payload, mark);
        // Not before all have it: who leaves in the middle of it stands where it stood.
        if (mark === undefined) this.#position = (type === "gap" ? payload.to : position) ?? this.#position;
        break;
      case "connection.established":
        this.#adopt(payload.limits);
        break;
      case "connection.authenticated":
        if (!payload.expires_at) break; // another tab sees to it
        // The broker says when; this is for the case that the word does not come.
        clearTimeout(this.#renewTimer);
        if (this.#tokens.life > 0) this.#renewIn(this.#tokens.due - now());
        break;
      case "connection.expiring":
        this.#renewIn(0);
        break;
      case "subscribed":
        if (call) this.#subscribed(call, messageId, payload, mark);
        break;
      case "subscription.live":
        for (const record of [...this.#records])
          if (mark === undefined ? record.state === LIVE : record.state === CATCHING && record.mark === mark)
            this.#live(record, true);
        this.#soon();
        break;
      case "unsubscribed":
        if (call) this.#gone(call.names, messageId);
        else if (!messageId) this.#refuse(many(payload.channel), payload);
        break;
      case "published":
        if (call) this.#published(call.entry, payload);
        break;
      case "acknowledged":
        if (call) this.#acknowledged(call, undefined, position);
        break;
      case "source":
        this.#say({ source: payload.state });
        break;
      case "error":
        this.#failed(new BrokerError(payload), messageId, call);
    }
  }

  #failed(error, messageId, call) {
    if (!messageId || messageId === this.#renewing) {
      if (messageId && error.retryable) this.#renewTimer = setTimeout(() => this.#renew(), error.retryAfter ?? BACKOFF_MS);
      return emit(this, "error", error);
    }
    if (!call) return; // for what was given up meanwhile
    const { type } = call;
    if (error.code === "rate_limited") this.#limited(error, this.#bucket(call));
    else if (!error.retryable) this.#posts.spend(); // as the broker does
    if (type === "publish") this.#unpublished(call.entry, error);
    else if (type === "subscribe") this.#unsubscribed(call, messageId, error);
    else if (type === "unsubscribe") this.#stayed(call.names, messageId, error);
    else this.#acknowledged(call, error);
  }

  /** There is a limit that others of this user reach with us: all wait, and the more the more often it happens. */
  #limited({ retryAfter = BACKOFF_MS }, bucket) {
    const at = now();
    bucket.drain();
    this.#refusals = [...this.#refusals.filter((each) => each > at - REFUSALS_MS), at];
    const often = this.#refusals.length >= REFUSALS ? this.#refusals[0] + REFUSALS_MS : 0;
    this.#holdUntil = Math.max(this.#holdUntil, at + retryAfter, often);
  }

  /** The connection has ended with this code: whose fault it may be. */
  #blame(code) {
    const calls = [...this.#calls.values()];
    const [largest] = calls.sort((a, b) => b.size - a.size);
    const sized = code === 1009 && largest?.size > LEAST;
    const suspects = sized ? [] : calls.filter(({ late }) => late || FAULTY.includes(code));
    if (sized) {
      this.#largest = Math.min(this.#largest, largest.size - 1);
      if (largest.entry) this.#settle(largest.entry, this.#tooLarge(largest.size));
    }
    for (const { entry, records = [], acks = [], late } of suspects) {
      const message = `there is no answer to it, after ${TRIES} tries`;
      const error = new BrokerError({ code: late ? "timeout" : "bad_message", message, unknown: !!entry });
      if (entry && ++entry.doubts === TRIES) this.#settle(entry, error);
      for (const record of records) if (++record.doubts === TRIES) this.#end(record, error);
      for (const ack of acks) if ((ack.doubts = (ack.doubts ?? 0) + 1) === TRIES) ack.reject(error);
    }
  }

  #tooLarge(size) {
    return failure("too_large", `${size} bytes; a message may have ${this.#most}`);
  }

  // --- subscriptions ---------------------------------------------------------------------------------

  #add(record) {
    Object.assign(record, { state: NEW, was: 0, acks: [], doubts: 0 });
    this.#expand(record);
    this.#records.add(record);
    this.#soon();
  }

  /** The names as the broker writes them; in tokens too. */
  #expand(record) {
    record.full = record.names.map((name) => expand(String(name), this.#private));
    record.patterns = record.full.map((name) => name.split("."));
  }

  /** What the broker would refuse is not asked for. */
  #examine(record) {
    if (record.examined) return;
    record.examined = true;
    const wrong = mistaken(record, this.#limits);
    if (wrong) return this.#end(record, failure("bad_message", wrong));
    for (const [name, full] of record.names.map((name, i) => [name, record.full[i]])) {
      const fault = misnamed(name, true);
      if (fault) this.#refuseOf(record, [full], failure("invalid_channel", `${JSON.stringify(name)}: ${fault}`));
    }
  }

  /** Who has what the broker has. Who has yet to ask has not: what is under way for another is not what it wants. */
  get #used() {
    const users = [...this.#records].filter(({ on, state }) => on === this.#link || state === ASKED);
    return new Set(users.flatMap(({ full }) => full));
  }

  /** Unsubscribes from what nobody has any more. The broker refuses a list with a name that it does not know. */
  #leave() {
    const used = this.#used;
    const idle = ([name, { held, asked, leaving, let_go }]) => held && !asked && !leaving && (let_go || !used.has(name));
    const names = [...this.#names].filter(idle).map(([name]) => name);
    while (names.length && this.#mayAsk()) {
      const channel = [names.shift()];
      const alone = this.#names.get(channel[0]).alone; // a list that it was in was refused
      while (!alone && names.length && !this.#names.get(names[0]).alone && bytes([...channel, names[0]]) + 100 <= this.#most)
        channel.push(names.shift());
      this.#call("unsubscribe", { channel }, { names: channel }, (leaving) => {
        for (const name of channel) this.#note(name, { leaving });
      });
    }
  }

  #gone(names, id) {
    for (const name of names)
      if (this.#names.get(name)?.leaving === id) this.#note(name, { held: false, leaving: undefined, let_go: false });
  }

  /** An `unsubscribe` was refused: for now, or since one of the names is no subscription any more. */
  #stayed(names, id, { code, retryable, retryAfter = BACKOFF_MS }) {
    const unknown = code === "not_subscribed";
    if (unknown && names.length === 1) return this.#gone(names, id);
    for (const name of names) {
      const { leaving, refused = 0 } = this.#names.get(name) ?? {};
      if (leaving !== id) continue;
      this.#note(name, { leaving: undefined, alone: unknown, refused: refused + !retryable });
      if (refused + 1 === TRIES && !retryable) this.#over?.({ code: 4009, reason: `${name} cannot be unsubscribed from` });
    }
    if (!unknown) this.#holdUntil = Math.max(this.#holdUntil, now() + retryAfter);
  }

  /** Notes what the broker has of a name. */
  #note(name, change) {
    const noted = { ...this.#names.get(name), ...change };
    if (noted.held || noted.asked || noted.leaving) this.#names.set(name, noted);
    else this.#names.delete(name);
  }

  /**
   * Asks for what is not had yet, with all that must come along. The broker has one subscription of each name, and
   * a start begins it anew for all who share it. So who shares a name is asked for together, from the oldest
   * position; unless the new one has a start of its own: then the others wait until it is live. What is asked for
   * alike goes into one message, unless a start means the whole list of it.
   */
  #askAll() {
    const at = now();
    const plan = new Plan(this.#records, this.#names, this.#used, this.#limits.subscriptions_per_connection);
    for (const record of [...this.#records].sort((a, b) => b.was - a.was)) {
      if (record.state !== NEW || plan.taken.has(record)) continue;
      if (record.after > at) this.#again(record.after - at);
      else this.#ask(plan, record);
    }
    for (const { records, anew, start, lag, channel, doubts } of plan.messages) {
      if (!this.#link || !this.#mayAsk(doubts)) break;
      for (const each of anew) this.#turn(each, NEW);
      for (const each of records) this.#turn(each, ASKED);
      if (!this.#link) return; // whoever heard of it has left
      this.#call("subscribe", { channel, ...start, lag }, { records, names: channel, doubts }, (asked) => {
        for (const each of records) each.id = asked;
        for (const name of channel) this.#note(name, { asked });
      });
    }
    for (const record of plan.freed.filter(({ state }) => state === LIVE)) this.#turn(record, NEW); // it knows where it stands
    for (const [record, same] of plan.joined)
      if (record.state === NEW && same.state === LIVE && this.#records.has(record)) {
        record.seen = same.seen; // which may be above the position of the connection
        this.#live(record, true);
      }
  }

  #ask(plan, record) {
    const kin = plan.kin(record);
    const busy = (each) => plan.taken.has(each) || (each.state > NEW && each.state < LIVE);
    if (kin.some(busy)) return; // its turn comes when they are live
    const own = !record.seen && Object.keys(record.start).length;
    if (own) {
      // A connection may have few snapshots under way: one after the other.
      const shoots = (each) => each.start.snapshot && !each.seen && each.state > NEW && each.state < LIVE;
      const beside = ({ start, alone }) => start.snapshot && (alone || record.alone);
      if (record.start.snapshot && ([...this.#records].some(shoots) || plan.messages.some(beside))) return;
      return this.#place(plan, [record], record.start, kin.filter(({ state }) => state === LIVE));
    }
    const same = kin.find((each) => each.state === LIVE && record.full.every((name) => each.full.includes(name)));
    if (!record.seen && same) return plan.joined.push([record, same]);
    const stands = (each) => each.seen || each.state === LIVE;
    const together = [record, ...kin.filter((each) => stands(each) || !Object.keys(each.start).length)];
    if (together.some(stands) && this.#position)
      for (const each of together) each.seen ??= this.#reached(each) ?? this.#position;
    const [incarnation] = parts(this.#position ?? "");
    const position = together.reduce((oldest, each) => {
      const seen = this.#reached(each);
      if (!oldest || !seen || passed(oldest, seen)) return oldest ?? seen;
      if (passed(seen, oldest)) return seen;
      // One is of a stream that is no more: who asks from there gets all that there is.
      return `${parts(parts(seen)[0] === incarnation ? oldest : seen)[0]}-0`;
    }, undefined);
    const durable = together.find((each) => each.durable)?.durable;
    this.#place(plan, together, given({ position, durable }), []);
  }

  /** Puts records into a message, if there is room for them at the broker; they wait for it for a while. */
  #place(plan, records, start, anew) {
    const [record] = records;
    const { lag } = record;
    const most = this.#limits.subscriptions_per_connection;
    const over = [...new Set(record.full)].slice(most); // of a list that will never fit
    const short = plan.fresh(records).length > plan.room;
    if (over.length || (short && record.waits + ROOM_MS <= now())) {
      const own = plan.fresh([record]);
      const names = over.length ? over : own.slice(Math.min(plan.room, own.length - 1));
      const full = failure("limit_subscriptions", `${names[0]}: the connection has its ${most} subscriptions`);
      return this.#refuseOf(record, names, full);
    }
    if (short) {
      record.waits ??= now();
      return this.#again(record.waits + ROOM_MS - now());
    }
    if (start.durable) {
      // Its name is let go of before it is asked for again: one subscribe of a connection has it.
      const held = plan.held(records);
      if (held.some((name) => !this.#names.get(name).let_go)) this.#soon();
      for (const name of held) this.#note(name, { let_go: true });
      if (held.length) return plan.freed.push(...records, ...anew);
    } else if (!Object.keys(start).length && plan.stale(records)) return; // it would take over what stands there
    const doubts = Math.max(...records.map((each) => each.doubts));
    const alone = doubts || record.alone || start.last || start.durable;
    if (!plan.add({ records, start, lag, anew, doubts }, alone, this.#most))
      this.#end(record, this.#tooLarge(bytes(record.full)));
  }

  #subscribed({ records, names }, id, { refused, live }, mark) {
    const not = new Set(refused.map(({ channel }) => channel));
    for (const name of names) {
      if (!not.has(name)) this.#note(name, { held: true });
      if (this.#names.get(name)?.asked === id) this.#note(name, { asked: undefined });
    }
    for (const record of records) {
      if (record.id !== id) continue; // it wants something else by now
      record.doubts = 0;
      record.alone = false;
      record.on = this.#link; // what is not stored comes from now on, wherever the rest stands
      if (mark === undefined) this.#live(record, live);
      else {
        this.#turn(record, CATCHING);
        record.mark = mark;
      }
    }
    for (const each of refused) this.#refuse([each.channel], each);
  }

  /** A `subscribe` was refused as a whole. */
  #unsubscribed({ records, names }, id, error) {
    for (const name of names) if (this.#names.get(name)?.asked === id) this.#note(name, { asked: undefined });
    const mine = records.filter((record) => record.id === id);
    // One of them may have spoilt it for the others; these are refused name by name, so all were.
    const each = /^(forbidden|invalid_channel|limit_subscriptions)$/.test(error.code);
    const after = now() + (error.retryAfter ?? 0) + Math.random() * BACKOFF_MS;
    for (const record of mine) {
      if (!error.retryable && (each || mine.length === 1)) {
        this.#end(record, error);
        continue;
      }
      record.alone = !error.retryable;
      if (error.retryable) record.after = after;
      this.#turn(record, NEW);
    }
  }

  /** Takes names out of a record; whether there were any. */
  #strip(record, names) {
    const { length } = record.names;
    record.names = record.names.filter((_, i) => !names.includes(record.full[i]));
    this.#expand(record);
    return record.names.length < length;
  }

  /** The broker has these names no more: they end in all records. */
  #refuse(names, error) {
    for (const name of names) this.#note(name, { held: false });
    for (const record of [...this.#records]) this.#refuseOf(record, names, new BrokerError(error));
  }

  /** Ends these names in a record, and the record if it has no other. */
  #refuseOf(record, names, fault) {
    if (!this.#records.has(record) || !this.#strip(record, names)) return;
    if (record.names.length) record.sub.warn(fault, names);
    else this.#end(record, fault);
    this.#soon();
  }

  /** From now on the record takes what is unmarked; `caught`: it has caught up with the present. */
  #live(record, caught) {
    record.was = 1;
    record.on = this.#link;
    record.caught = caught;
    record.waits = undefined;
    this.#turn(record, LIVE);
    this.#sendAcks(record);
  }

  /** As long as it is live, the position of the connection is its own. */
  #reached({ state, seen }) {
    return state === LIVE && this.#position && !passed(this.#position, seen) ? this.#position : seen;
  }

  #turn(record, state) {
    const { state: before } = record;
    record.seen = this.#reached(record);
    if (state !== CATCHING) record.mark = undefined;
    if (state === NEW || state === PAUSED) record.id = undefined; // an answer that is under way is not for it
    record.state = state;
    record.sub.turn(before);
  }

  #pause(record) {
    if (record.state === PAUSED || !this.#records.has(record)) return;
    this.#turn(record, PAUSED);
    record.on = undefined;
    this.#soon();
    // What is kept nowhere cannot be had later.
    const channel = record.names.filter((name) => name.startsWith("live."));
    if (channel.length) record.sub.take(gapItem({ channel, reason: "lag" }));
  }

  #resume(record) {
    if (record.state !== PAUSED) return;
    this.#turn(record, NEW);
    this.#soon();
  }

  /** From its start again, as if nothing had been seen. */
  #restart(record) {
    if (!this.#records.has(record)) return;
    this.#turn(record, NEW);
    record.was = 0;
    record.on = undefined;
    record.seen = record.start.position;
    this.#soon();
  }

  #end(record, error) {
    if (!this.#records.delete(record)) return;
    settleAll(record.acks, error ?? failure("closed", CLOSED));
    record.sub.finish(error);
    this.#soon();
  }

  #event({ channel, position, event, publisher }, mark) {
    const tokens = channel.split(".");
    const item = { type: "event", channel, event, position, publisher, catchUp: mark !== undefined };
    for (const record of this.#records) {
      const due = mark !== undefined ? record.mark === mark : record.state === LIVE || (!position && record.on === this.#link);
      if (!due || !covered(record, tokens)) continue;
      if (position) {
        if (passed(position, record.seen)) continue;
        record.seen = position;
      }
      record.sub.take(item);
    }
  }

  #gap(payload, mark) {
    const names = many(payload.channel);
    for (const record of this.#records) {
      if (mark !== undefined ? record.mark !== mark : record.on !== this.#link) continue;
      if (!record.full.some((name) => names.includes(name))) continue;
      if (payload.to && payload.to !== record.seen && passed(payload.to, record.seen)) continue; // it is another's
      if (mark !== undefined && payload.to) record.seen = payload.to;
      record.sub.take(gapItem(payload, record.lag));
    }
  }

  // --- the other tabs --------------------------------------------------------------------------------

  /** We are the tab that connects from now on. */
  #lead = () => {
    this.#over?.({ at_once: true });
    this.#wake?.();
  };

  /** Plays the broker for another tab; there is no more to it than records whose events go there. */
  #heed = (peer, { type, payload, messageId }) => {
    const { channel } = payload ?? {};
    const mine = [...this.#records].filter((record) => record.peer === peer);
    const answer = (kind) => (given) => this.#hub.post(peer, { type: kind, messageId, payload: { ...given } });
    const refuse = ({ code, message, retryable, retryAfter, unknownOutcome }) =>
      answer("error")({ code, message, retryable, retry_after_ms: retryAfter, unknown: unknownOutcome });
    if (type === "tab.hello") {
      if (!this.#link) return answer("tab.wait")();
      const { connectionId: connection_id, tenant, user } = this.#status;
      answer("connection.established")({ connection_id, heartbeat_seconds: 10, limits: this.#limits });
      answer("connection.authenticated")({ tenant, user, private: this.#private });
    }
    if (/^tab/.test(type)) for (const record of mine) this.#end(record);
    if (!this.#link) return;
    if (type === "ping") answer("pong")({ position: this.#position });
    if (type === "publish") this.#publish(channel, payload.event, { id: payload.id }, true).then(answer("published"), refuse);
    if (type === "acknowledge") {
      const record = mine.find(({ durable }) => durable === payload.durable);
      if (!record) refuse(failure("not_subscribed", "the subscription is not durable"));
      else this.#acknowledge(record, payload).then((position) => answer("acknowledged")({ position }), refuse);
    }
    if (/subscribe$/.test(type))
      for (const record of mine) {
        this.#strip(record, channel);
        if (!record.names.length) this.#end(record);
      }
    if (type === "unsubscribe") answer("unsubscribed")({ channel });
    if (type !== "subscribe") return;
    const { channel: names, position: seen, lag, ...start } = given(payload);
    /** @type {any} */
    const record = { peer, names, start, seen, lag, durable: start.durable };
    const hub = this.#hub;
    const key = ++this.#count;
    let announced;
    const say = (live) => {
      const catch_up = live && !announced ? undefined : key;
      const type = live && announced ? "subscription.live" : "subscribed";
      answer(type)({ channel: record.full, refused: [], position: this.#position, live, catch_up });
      announced = true;
    };
    record.sub = {
      take(item) {
        // What is unmarked is sent once to each tab, however many of its records it is for.
        const live = record.state === LIVE;
        if (live && hub.last.get(peer) === item) return;
        if (live) hub.last.set(peer, item);
        answer(item.type)({ ...item, catch_up: live ? undefined : key });
      },
      turn(before) {
        if (record.state === LIVE) before === LIVE || say(true);
        else if (before === LIVE || (record.state === CATCHING && !announced)) say(false);
      },
      warn: ({ code }, names) => this.#hub.post(peer, { type: "unsubscribed", payload: { channel: names, code } }),
      finish(error) {
        if (error && announced) this.warn(error, channel);
        else if (error) refuse(error);
      },
    };
    this.#add(record);
  };

  // --- acknowledgements ------------------------------------------------------------------------------

  async #acknowledge(record, given) {
    if (!record.durable) throw failure("not_subscribed", "the subscription is not durable");
    return new Promise((resolve, reject) => {
      record.acks.push({ position: given.position ?? given, resolve, reject });
      this.#sendAcks(record);
    });
  }

  /** Cumulative: the newest one stands for all that wait, and one at a time is under way. */
  #sendAcks(record) {
    const { acks, durable } = record;
    // While it catches up, the broker may not have sent that far on this connection.
    if (!acks.length || record.state !== LIVE || record.acking === this.#link) return;
    const wait = record.ackAt - now();
    const doubts = Math.max(...acks.map((each) => each.doubts ?? 0));
    if (wait > 0) return this.#again(wait);
    if (!this.#mayAsk(doubts)) return;
    const { position } = acks.reduce((newest, each) => (passed(each.position, newest.position) ? newest : each));
    record.acking = this.#link;
    record.acks = [];
    this.#call("acknowledge", { durable, position }, { record, acks, doubts });
  }

  #acknowledged({ record, acks }, error, position) {
    record.acking = undefined;
    if (error?.retryable && this.#records.has(record)) {
      record.acks.unshift(...acks);
      record.ackAt = now() + (error.retryAfter ?? BACKOFF_MS);
    } else settleAll(acks, error, position);
    this.#sendAcks(record);
  }

  // --- publishing ------------------------------------------------------------------------------------

  /**
   * @param {string} channel
   * @param {any} event
   * @param {{id?: string, timeout?: number}} options
   * @param {boolean} relayed for another tab, which itself judges what a duplicate means
   */
  async #publish(channel, event, { id = random(), timeout }, relayed = false) {
    const fault = misnamed(channel, false);
    if (fault) throw failure("invalid_channel", `${JSON.stringify(channel)}: ${fault}`);
    if (typeof id !== "string" || torn(id) || !id || utf8(id) > 64) throw failure("bad_message", "id: a string of 1 to 64 bytes");
    const key = `${channel} ${id}`;
    const before = this.#outbox.get(key);
    if (before && JSON.stringify(before.payload.event) === JSON.stringify(event)) return before.promise;
    if (before) throw failure("conflict", `${id}: another event with this id is under way`);
    if (this.#outbox.size >= this.#options.queue) throw failure("queue_full", `${this.#outbox.size} publishes are waiting`);
    if (!this.#running) throw failure("closed", "not connected: connect()");
    /** @type {any} */
    const entry = { key, payload: { channel, event, id }, relayed, size: bytes(event), sends: 0, doubts: 0 };
    entry.promise = new Promise((resolve, reject) => Object.assign(entry, { resolve, reject }));
    const late = () => this.#settle(entry, failure("timeout", `no answer after ${timeout} ms`));
    if (timeout) entry.timer = setTimeout(late, timeout);
    this.#outbox.set(key, entry);
    this.#flush();
    return entry.promise;
  }

  /** Sends what waits, one for each channel at a time, which keeps their order, and a few in all. */
  #flush() {
    if (!this.#link) return;
    const busy = new Set();
    for (const entry of this.#outbox.values()) {
      const { payload, size, doubts } = entry;
      if (!entry.flying && !busy.has(payload.channel)) {
        const error = this.#hopeless(entry, size);
        if (error) return this.#settle(entry, error); // and on with the next
        const wait = this.#postAt - now();
        if (wait > 0) return this.#again(wait);
        if (!this.#may(this.#posts, "publish", IN_FLIGHT, doubts)) return;
        entry.first ??= [Date.now(), now()];
        entry.sends++;
        entry.flying = true;
        this.#call("publish", payload, { entry, doubts });
      }
      busy.add(payload.channel);
    }
  }

  /** Why a publish is not sent, or not once more. */
  #hopeless({ payload, first }, size) {
    const { publish_bytes = Infinity, duplicate_window_seconds } = this.#limits;
    if (size > publish_bytes) return failure("too_large", `event: ${size} bytes; the limit is ${publish_bytes}`);
    if (bytes(payload) + 100 > this.#most) return this.#tooLarge(bytes(payload));
    // The one clock may have stood still, in a sleep, and the other may have been set.
    const gone = first ? Math.max(Date.now() - first[0], now() - first[1]) : 0;
    if (gone > duplicate_window_seconds * 1000 * WINDOW) return this.#lostAnswer("another try could store it twice");
  }

  #lostAnswer(why) {
    return failure("unknown_outcome", `perhaps it was sent: its answer was lost, and ${why}`);
  }

  /** Its answer will not come. What is not stored has no id by which a second one would be known. */
  #unanswered(entry) {
    entry.flying = false;
    if (entry.payload.channel.startsWith("live.")) this.#settle(entry, this.#lostAnswer("what is live would arrive twice"));
  }

  #published(entry, { position, duplicate = false }) {
    // Only a try of our own makes it the same event.
    if (duplicate && entry.sends < 2 && !entry.relayed) {
      const message = `${entry.payload.id}: an event with this id was stored before; this one is not`;
      this.#settle(entry, new BrokerError({ code: "duplicate", message, position }));
    } else this.#settle(entry, undefined, { position, duplicate });
  }

  /** A publish was refused; `unknownOutcome`: by somebody who cannot know what the broker did with it. */
  #unpublished(entry, error) {
    const { channel } = entry.payload;
    const { code, retryable, retryAfter, unknownOutcome } = error;
    if (!retryable) return this.#settle(entry, error);
    if (unknownOutcome) this.#unanswered(entry);
    else if (code === "rate_limited" || channel.startsWith("live.")) {
      entry.sends--; // for sure nothing came of it
      if (!entry.sends) entry.first = undefined;
    }
    entry.flying = false;
    if (code !== "rate_limited") this.#postAt = now() + (retryAfter ?? Math.min(BACKOFF_MOST_MS, BACKOFF_MS * 2 ** entry.sends));
    this.#flush();
  }

  /** @param {{position?: string, duplicate?: boolean}} answer */
  #settle(entry, error, answer = {}) {
    if (!this.#outbox.delete(entry.key)) return;
    clearTimeout(entry.timer);
    if (error && entry.sends) error.unknownOutcome ||= ["closed", "timeout", "unknown_outcome"].includes(error.code);
    if (error) entry.reject(error);
    else entry.resolve({ id: entry.payload.id, ...answer });
    this.#flush();
  }
}

/** What goes into which message: a draft, of which nothing is done yet. */
class Plan {
  messages = [];
  taken = new Set(); // records that are in one of them, or wait for one that is
  joined = []; // records that have all that they want, with one that has it
  freed = []; // records whose names are let go of first
  #users = new Map(); // name → the records that have it
  #names;
  #used;
  #new = new Set(); // names that are further subscriptions of the connection

  constructor(records, names, used, most) {
    this.#names = names;
    this.#used = used;
    this.most = most;
    for (const record of records)
      if (record.state !== PAUSED)
        for (const name of record.full) this.#users.set(name, [...(this.#users.get(name) ?? []), record]);
  }

  /** Who shares a name with a record, or with one who does. */
  kin(record) {
    const found = new Set([record]);
    for (const each of found) for (const name of each.full) for (const other of this.#users.get(name) ?? []) found.add(other);
    found.delete(record);
    return [...found];
  }

  get room() {
    return Math.max(0, this.most - this.#names.size - this.#new.size);
  }

  /** The names of records that the broker has not got. */
  fresh(records) {
    return [...new Set(records.flatMap(({ full }) => full))].filter((name) => !this.#names.has(name) && !this.#new.has(name));
  }

  /** The names that the broker has, of what is stored. */
  held(records) {
    return records.flatMap(({ full }) => full.filter((name) => this.#names.has(name) && !name.startsWith("live.")));
  }

  /** Whether it has one that nobody has any more. */
  stale(records) {
    return records.some(({ full }) => full.some((name) => this.#names.has(name) && !this.#used.has(name)));
  }

  /** Adds records to a message of their kind, or to one of their own; false if they do not fit into any. */
  add({ records, start, lag, anew, doubts }, alone, most) {
    const names = [...new Set(records.flatMap(({ full }) => full))];
    const key = JSON.stringify([start, lag]);
    const room = most - bytes(start) - 120;
    if (bytes(names) > room) return false;
    let message = this.messages.findLast((each) => !alone && !each.alone && each.key === key);
    if (!message || bytes([...message.channel, ...names]) > room) {
      message = { key, alone, records: [], anew: [], channel: [], start, lag, doubts };
      this.messages.push(message);
    }
    for (const name of this.fresh(records)) this.#new.add(name);
    message.channel = [...new Set([...message.channel, ...names])];
    message.records.push(...records);
    message.anew.push(...anew);
    for (const each of [...records, ...anew]) this.taken.add(each);
    return true;
  }
}

/**
 * A gap as the application gets it. `action`: "reload" what was built from events, or "continue".
 * @param {{channel: string | string[], from?: string, to?: string, count?: number, reason: string, catch_up?: number}} payload
 * @param {string} [lag]
 */
const gapItem = ({ catch_up, ...payload }, lag) => ({
  ...payload,
  type: "gap",
  channel: many(payload.channel),
  // What `latest` leaves out is older than what comes: only the way there is missing.
  action: payload.reason === "lag" && lag === "latest" ? "continue" : "reload",
});

/** What `subscribe` gives: an EventTarget (`event`, `gap`, `state`, `error`, `end`) that can be iterated. */
class Subscription extends EventTarget {
  #record;
  #does;
  #buffer; // while somebody iterates
  #waiting = []; // who waits for an item
  #error;
  #ended = false;
  #said = "pending";

  constructor(record, does) {
    super();
    this.#record = record;
    this.#does = does;
  }

  get channels() {
    return this.#record.names;
  }

  get state() {
    const { state, caught } = this.#record;
    if (this.#ended) return "closed";
    return state === LIVE && !caught ? "catching-up" : STATES[state];
  }

  /** Up to where events were handed over. */
  get position() {
    return this.#does.reached();
  }

  covers(channel) {
    return covered(this.#record, channel.split("."));
  }

  close() {
    this.#does.end();
  }

  /** Begins again from the start that it was made with, as after a gap. */
  restart() {
    this.#does.restart();
  }

  acknowledge(given) {
    return this.#does.acknowledge(given);
  }

  turn() {
    if (this.#said !== this.state) emit(this, "state", (this.#said = this.state));
  }

  warn(error) {
    emit(this, "error", error);
  }

  take(item) {
    if (this.#buffer) {
      this.#buffer.push(item);
      this.#wake();
      // The broker keeps the rest for us: better there than here.
      if (this.#buffer.length >= this.#record.buffer) this.#does.pause();
    }
    emit(this, item.type, item);
  }

  finish(error) {
    this.#ended = true;
    this.#error = error;
    this.#wake();
    if (error) emit(this, "error", error);
    this.turn();
    emit(this, "end", error);
  }

  #wake() {
    for (const resolve of this.#waiting.splice(0)) resolve();
  }

  /** Not a generator, which could not be left while it waits. */
  [Symbol.asyncIterator]() {
    const buffer = (this.#buffer ??= []);
    return {
      next: async () => {
        while (!buffer.length && !this.#ended) await new Promise((resolve) => this.#waiting.push(resolve));
        if (!buffer.length && this.#error) throw this.#error;
        if (!buffer.length) return { done: true, value: undefined };
        const value = buffer.shift();
        if (buffer.length <= this.#record.buffer / 2) this.#does.resume();
        return { done: false, value };
      },
      return: async (value) => {
        buffer.length = 0;
        this.close();
        return { done: true, value };
      },
    };
  }
}

/** The tabs of one user, of which one, which holds the lock, has the connection. */
class Hub {
  leads = false;
  heard; // set by the transport `tabs`
  over;
  ready; // once we can be told apart; unset while we are no part of it
  last = new Map(); // what each of the others was sent last
  #id = random();
  #name;
  #heed;
  #lead;
  #channel;
  #leaving;

  constructor(name, heed, lead) {
    this.#name = `broker.v1 ${name}`;
    this.#heed = heed;
    this.#lead = lead;
  }

  /** With those whose tokens are for the same user and say the same: nobody reads by the rights of another. */
  join(token) {
    const { iat, nbf, exp, jti, ...rights } = decode(token);
    const name = `${this.#name} ${JSON.stringify(rights)}`;
    const { signal } = (this.#leaving = new AbortController());
    this.#channel = new BroadcastChannel(name);
    this.#channel.onmessage = ({ data: { to, from, message } }) => {
      if (to === this.#id) this.heard?.(message);
      else if (to === "all") this.over?.({ at_once: true });
      else if (this.leads) {
        // Its own lock comes to us when the tab is gone, however it went.
        if (!this.last.has(from)) {
          this.last.set(from, undefined);
          lock(from, () => {
            this.last.delete(from);
            this.#heed(from, { type: "tab.bye" });
          });
        }
        this.#heed(from, message);
      }
    };
    const lock = (name, then) => navigator.locks.request(name, { signal }, then).catch(() => {});
    // Held until we leave; a tab that ends loses its locks.
    const left = new Promise((resolve) => signal.addEventListener("abort", resolve));
    this.ready = new Promise((resolve) => lock(this.#id, () => (resolve(), left)));
    lock(name, () => {
      this.leads = true;
      this.#lead();
      return left;
    });
  }

  leave() {
    this.leads = false;
    this.#leaving?.abort();
    this.#channel?.close();
    this.#channel = this.ready = undefined;
    this.last.clear();
  }

  announce() {
    if (this.leads) this.post("all");
  }

  post(to, message) {
    this.#channel?.postMessage({ to, from: this.#id, message });
  }
}

/**
 * The newest event of each channel, kept up to date, with changes of our own ahead of the broker's word.
 *
 * A change is shown at once and stays on top of whatever arrives until it is confirmed, by the event that the
 * broker made of it and no other (it is known by its position), or taken back.
 */
export class Store extends EventTarget {
  #client;
  #sub;
  #reduce;
  #timeout;
  #confirmed = new Map();
  #next = new Map(); // while a snapshot is under way
  #pending = []; // changes, oldest first
  #value;
  #ready = false;
  #due;

  constructor(client, channels, { reduce = (_, event) => event, timeout = 10_000, ...options } = {}) {
    super();
    this.#client = client;
    this.#reduce = reduce;
    this.#timeout = timeout;
    this.#sub = client.subscribe(channels, { ...options, snapshot: true }, (item) => this.#take(item));
    this.#sub.addEventListener("state", ({ detail }) => {
      if (detail === "live") this.#swap();
      if (detail === "closed") this.#settle((each) => each.position); // no word will come
    });
    this.#sub.addEventListener("gap", ({ detail }) => {
      if (detail.action !== "reload") return;
      this.#next = new Map();
      this.#sub.restart();
    });
    for (const type of ["error", "end"]) this.#sub.addEventListener(type, ({ detail }) => emit(this, type, detail));
  }

  /** Whether a whole snapshot has been taken. */
  get ready() {
    return this.#ready;
  }

  /** Channel → value, a new Map after each change; not to be changed. */
  get value() {
    if (this.#value) return this.#value;
    const value = new Map(this.#confirmed);
    for (const { channel, event } of this.#pending) this.#apply(value, channel, event);
    return (this.#value = value);
  }

  get(channel) {
    return this.value.get(this.#full(channel));
  }

  /** Whether the value of a channel still waits for the broker's word. */
  pending(channel) {
    return this.#pending.some((each) => this.#full(each.channel) === this.#full(channel));
  }

  /** Shows the change at once and publishes it. Rejects, with the change taken back, when it did not come about. */
  async put(channel, given, /** @type {{id?: string, timeout?: number}} */ { id, timeout = this.#timeout } = {}) {
    const event = json(given); // as it is now
    const change = { channel, event };
    this.#pending.push(change);
    this.#changed();
    try {
      const done = await this.#client.publish(channel, event, { id, timeout });
      change.position = done.position;
      if (!done.position) this.#apply(this.#confirmed, channel, event); // a live channel: nothing else confirms it
      return done;
    } finally {
      const waits = change.position && this.#sub.state !== "closed" && this.#sub.covers(this.#full(channel));
      if (!waits || passed(change.position, this.#sub.position)) this.#settle((each) => each === change);
    }
  }

  remove(channel, options) {
    return this.put(channel, null, options);
  }

  close() {
    this.#sub.close();
  }

  #full(channel) {
    return expand(channel, this.#client.status.private);
  }

  #apply(map, name, event) {
    const channel = this.#full(name); // known only once there was a connection
    try {
      if (event === null) map.delete(channel);
      else map.set(channel, this.#reduce(map.get(channel), event));
    } catch (error) {
      queueMicrotask(() => { throw error; }); // reported, as one of a listener is
    }
  }

  #take({ channel, event, position }) {
    this.#apply(this.#confirmed, channel, event);
    if (this.#next) this.#apply(this.#next, channel, event);
    this.#settle((each) => each.position && passed(each.position, position));
  }

  /** The snapshot is complete: what was not in it has gone. */
  #swap() {
    if (!this.#next) return;
    this.#confirmed = this.#next;
    this.#next = undefined;
    this.#ready = true;
    // Of a stream that is no more nothing will come.
    const over = (one, other) => one[0] !== other[0];
    const { position: at } = this.#sub;
    this.#settle(({ position }) => position && at && (passed(position, at) || over(parts(position), parts(at))));
    emit(this, "ready");
  }

  #settle(done) {
    this.#pending = this.#pending.filter((each) => !done(each));
    this.#changed();
  }

  #changed() {
    this.#value = undefined;
    if (this.#due) return;
    this.#due = true;
    queueMicrotask(() => {
      this.#due = false;
      emit(this, "change");
    });
  }
}
