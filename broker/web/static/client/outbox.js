// @ts-check
/** The part that publishes: what waits for its answer, and what may be sent once more. */

import { BrokerError, CLOSED, failure } from "./errors.js";
import { TRIES, inVain } from "./exchange.js";
import { misnamed } from "./names.js";
import { backoff } from "./pace.js";
import { now, random } from "./platform.js";
import { bytes, torn, utf8 } from "./values.js";

/** @import { Exchange } from "./exchange.js" */
/** @import { Part, Reply, Settler } from "./types.js" */
/** @import { Published } from "../client.js" */

const UNECHOED = 1_000; // the newest publishes without echo that are remembered
const WINDOW = 0.9; // of the one in which the broker knows an id again

/** One publish, until its answer. */
class Entry {
  payload;
  size;
  key;
  /** Whether it is for another tab, which itself judges what a duplicate means. */
  relayed;
  /** Whether the broker sends it back. */
  echo;
  sends = 0;
  doubts = 0; // connections that ended badly while it was under way
  flying = false;
  /** @type {[number, number] | undefined} when it was sent first, by both clocks */
  first;
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  timer;
  /** @type {Promise<Published>} */
  promise;
  /** @type {Settler<Published>} */
  settler = { resolve: () => {}, reject: () => {} };

  /**
   * @param {{channel: string, event: any, id: string}} payload
   * @param {boolean} relayed
   * @param {boolean} echo
   */
  constructor(payload, relayed, echo) {
    this.echo = echo;
    this.payload = payload;
    this.size = bytes(payload.event);
    this.key = keyOf(payload);
    this.relayed = relayed;
    this.promise = new Promise((resolve, reject) => (this.settler = { resolve, reject }));
  }

  /** What is not stored has no id by which a second one would be known. */
  get unstored() {
    return this.payload.channel.startsWith("live.");
  }
}

const keyOf = (/** @type {{channel: string, id: string}} */ { channel, id }) => `${channel} ${id}`;

/** @param {string} why */
const lostAnswer = (why) => failure("unknown_outcome", `perhaps it was sent: its answer was lost, and ${why}`);

/** @implements {Part} */
export class Outbox {
  #exchange;
  #queue;
  #shared;
  /** @type {Map<string, string>} by id, the channels of the newest publishes that are not to be sent back */
  #unechoed = new Map();
  /** @type {Map<string, Entry>} */
  #entries = new Map();
  #postAt = 0; // nothing is published before

  /**
   * @param {Exchange} exchange
   * @param {number} queue so many may wait
   * @param {boolean} shared whether the connection may be one of several tabs
   */
  constructor(exchange, queue, shared) {
    this.#shared = shared;
    this.#exchange = exchange;
    this.#queue = queue;
  }

  /** How many wait for their answer. */
  get size() {
    return this.#entries.size;
  }

  /**
   * @param {string} channel
   * @param {any} event
   * @param {{id?: string, timeout?: number, echo?: boolean}} options
   * @param {boolean} relayed
   * @returns {Promise<Published>}
   */
  async publish(channel, event, { id = random(), timeout, echo = true }, relayed = false) {
    const fault = misnamed(channel, false);
    if (fault) throw failure("invalid_channel", `${JSON.stringify(channel)}: ${fault}`);
    if (typeof id !== "string" || torn(id) || !id || utf8(id) > 64) throw failure("bad_message", "id: a string of 1 to 64 bytes");
    const before = this.#entries.get(keyOf({ channel, id }));
    if (before && JSON.stringify(before.payload.event) === JSON.stringify(event)) return before.promise;
    if (before) throw failure("conflict", `${id}: another event with this id is under way`);
    if (this.size >= this.#queue) throw failure("queue_full", `${this.size} publishes are waiting`);
    if (!this.#exchange.wanted) throw failure("closed", "not connected: connect()");
    // Where other tabs have the same connection, it is for them: it is left out here alone.
    const entry = new Entry({ channel, event, id }, relayed, echo || this.#shared);
    if (!echo) this.#unechoed.set(id, channel);
    if (this.#unechoed.size > UNECHOED) this.#unechoed.delete(this.#unechoed.keys().next().value ?? "");
    const late = () => this.#settle(entry, failure("timeout", `no answer after ${timeout} ms`));
    if (timeout) entry.timer = setTimeout(late, timeout);
    this.#entries.set(entry.key, entry);
    this.sync();
    return entry.promise;
  }

  /**
   * The channel to which an event was published that is not to be sent back; another connection gets it all the same.
   * @param {string} [id]
   */
  unechoed(id) {
    return id === undefined ? undefined : this.#unechoed.get(id);
  }

  /** For good: nothing will be published any more. */
  close() {
    for (const entry of [...this.#entries.values()]) this.#settle(entry, failure("closed", CLOSED));
  }

  /** Send what waits, one for each channel at a time, which keeps their order, and a few in all. */
  sync() {
    if (!this.#exchange.link) return;
    const { pace } = this.#exchange;
    const busy = new Set();
    for (const entry of this.#entries.values()) {
      const { channel } = entry.payload;
      if (!entry.flying && !busy.has(channel)) {
        const error = this.#hopeless(entry);
        if (error) return this.#settle(entry, error); // and on with the next
        const wait = this.#postAt - now();
        if (wait > 0) return this.#exchange.again(wait);
        if (!this.#exchange.may(pace.posts, entry.doubts)) return;
        this.#send(entry);
      }
      busy.add(channel);
    }
  }

  /** @param {Entry} entry */
  #send(entry) {
    entry.first ??= [Date.now(), now()];
    entry.sends++;
    entry.flying = true;
    /** @type {Reply} */
    const request = {
      done: (payload) => this.#published(entry, payload),
      refused: (error) => this.#refused(entry, error),
      lost: () => this.#unanswered(entry),
      doubted: (code) => {
        if (++entry.doubts === TRIES) this.#settle(entry, inVain(code, true));
      },
      oversized: (error) => this.#settle(entry, error),
    };
    const payload = entry.echo ? entry.payload : { ...entry.payload, echo: false };
    this.#exchange.send("publish", payload, request, this.#exchange.pace.posts, entry.doubts);
  }

  /**
   * Why it is not sent, or not once more.
   * @param {Entry} entry
   */
  #hopeless({ payload, size, first }) {
    const { pace } = this.#exchange;
    const { publish_bytes = Infinity, duplicate_window_seconds } = pace.limits;
    if (size > publish_bytes) return failure("too_large", `event: ${size} bytes; the limit is ${publish_bytes}`);
    if (bytes(payload) + 100 > pace.most) return pace.tooLarge(bytes(payload));
    // The one clock may have stood still, in a sleep, and the other may have been set.
    const gone = first ? Math.max(Date.now() - first[0], now() - first[1]) : 0;
    if (gone > duplicate_window_seconds * 1000 * WINDOW) return lostAnswer("another try could store it twice");
  }

  // --- what is answered ------------------------------------------------------------------------------

  /**
   * Its answer will not come.
   * @param {Entry} entry
   */
  #unanswered(entry) {
    entry.flying = false;
    if (entry.unstored) this.#settle(entry, lostAnswer("what is live would arrive twice"));
  }

  /**
   * @param {Entry} entry
   * @param {{position?: string, duplicate?: boolean}} payload
   */
  #published(entry, { position, duplicate = false }) {
    // Only a try of our own makes it the same event.
    if (duplicate && entry.sends < 2 && !entry.relayed) {
      const message = `${entry.payload.id}: an event with this id was stored before; this one is not`;
      this.#settle(entry, new BrokerError({ code: "duplicate", message, position }));
    } else this.#settle(entry, undefined, { position, duplicate });
  }

  /**
   * It was refused; `unknownOutcome`: by somebody who cannot know what the broker did with it.
   * @param {Entry} entry
   * @param {BrokerError} error
   */
  #refused(entry, error) {
    const { code, retryable, retryAfter, unknownOutcome } = error;
    if (!retryable) return this.#settle(entry, error);
    if (unknownOutcome) this.#unanswered(entry);
    else if (code === "rate_limited" || entry.unstored) {
      entry.sends--; // for sure nothing came of it
      if (!entry.sends) entry.first = undefined;
    }
    entry.flying = false;
    if (code !== "rate_limited") this.#postAt = now() + (retryAfter ?? backoff(entry.sends));
    this.sync();
  }

  /**
   * @param {Entry} entry
   * @param {BrokerError} [error]
   * @param {{position?: string, duplicate: boolean}} answer
   */
  #settle(entry, error, answer = { duplicate: false }) {
    if (!this.#entries.delete(entry.key)) return;
    clearTimeout(entry.timer);
    if (error && entry.sends) error.unknownOutcome ||= ["closed", "timeout", "unknown_outcome"].includes(error.code);
    if (error) entry.settler.reject(error);
    else entry.settler.resolve({ id: entry.payload.id, ...answer });
    this.sync();
  }
}
