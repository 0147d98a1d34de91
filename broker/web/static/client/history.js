// @ts-check
/** The part that reads history, page by page: to read changes nothing, so a page is asked for until it is answered. */

import { BrokerError, CLOSED, failure } from "./errors.js";
import { inVain, TRIES } from "./exchange.js";
import { Filter } from "./filters.js";
import { misnamed } from "./names.js";
import { BACKOFF_MS } from "./pace.js";
import { now } from "./platform.js";
import { given, json, many } from "./values.js";

/** @import { HistoryOptions, Page } from "../client.js" */
/** @import { Exchange } from "./exchange.js" */
/** @import { Part, Settler } from "./types.js" */
/** @typedef {Settler<any> & {payload: object, sent: boolean, doubts: number, over: () => void}} Entry */

const AT_ONCE = 4; // under way
const PATIENCE_MS = 30_000; // more than usual: it may wait for others who read

/** @implements {Part} */
export class History {
  #exchange;
  #queue;
  /** @type {Set<Entry>} */
  #entries = new Set();
  #after = 0; // nothing is asked before

  /**
   * @param {Exchange} exchange
   * @param {number} queue so many may wait
   */
  constructor(exchange, queue) {
    this.#exchange = exchange;
    this.#queue = queue;
  }

  /**
   * @param {string | string[]} channels
   * @param {HistoryOptions} options
   * @returns {Promise<Page<any>>}
   */
  async page(channels, { before, after, since, limit, filter, signal }) {
    const names = many(channels);
    for (const name of names) {
      const fault = misnamed(name, true) ?? (/^live\./.test(name) ? "a live channel is not stored" : undefined);
      if (fault) throw failure("invalid_channel", `${JSON.stringify(name)}: ${fault}`);
    }
    const start = given({ before, after, since });
    if (Object.keys(start).length > 1) throw new TypeError("at most one of before, after and since");
    const conditions = filter === undefined ? undefined : new Filter(json(filter, "filter")).document;
    const asked = given({ channel: names, ...start, limit, filter: conditions });
    const { channel, events, first, last, more, recovered } = await this.read(asked, signal);
    return {
      channels: many(channel),
      events: events.map((/** @type {any} */ { stored_at: storedAt, ...event }) => ({ type: "event", ...event, catchUp: true, storedAt })),
      first,
      last,
      more,
      recovered,
      older: (options) => this.page(names, { limit, ...options, filter, before: first }),
      newer: (options) => this.page(names, { limit, ...options, filter, after: last }),
    };
  }

  /**
   * @param {object} payload
   * @param {AbortSignal} [signal]
   * @returns {Promise<any>} the payload of the answer
   */
  async read(payload, signal) {
    signal?.throwIfAborted();
    if (this.#entries.size >= this.#queue) throw failure("queue_full", `${this.#entries.size} pages are waiting`);
    if (!this.#exchange.wanted) throw failure("closed", "not connected: connect()");
    return new Promise((resolve, reject) => {
      const aborted = () => this.#settle(entry, signal?.reason);
      const over = () => signal?.removeEventListener("abort", aborted);
      /** @type {Entry} */
      const entry = { resolve, reject, payload, sent: false, doubts: 0, over };
      signal?.addEventListener("abort", aborted);
      this.#entries.add(entry);
      this.sync();
    });
  }

  /** For good: nothing will be asked any more. */
  close() {
    for (const entry of [...this.#entries]) this.#settle(entry, failure("closed", CLOSED));
  }

  sync() {
    if (!this.#exchange.link) return;
    const entries = [...this.#entries];
    let room = AT_ONCE - entries.filter(({ sent }) => sent).length;
    for (const entry of entries) {
      if (entry.sent) continue;
      if (room-- <= 0) return;
      const wait = this.#after - now();
      if (wait > 0) return this.#exchange.again(wait);
      if (!this.#exchange.may(undefined, entry.doubts)) return;
      this.#send(entry);
    }
  }

  /** @param {Entry} entry */
  #send(entry) {
    entry.sent = true;
    const reply = {
      takes: PATIENCE_MS,
      apart: true,
      done: (/** @type {any} */ payload) => this.#settle(entry, undefined, payload),
      refused: (/** @type {BrokerError} */ error) => {
        if (!error.retryable) return this.#settle(entry, error);
        entry.sent = false;
        this.#after = now() + (error.retryAfter ?? BACKOFF_MS);
        this.#exchange.soon();
      },
      lost: () => {
        entry.sent = false;
      },
      doubted: (/** @type {"timeout" | "bad_message"} */ code) => {
        if (++entry.doubts >= TRIES) this.#settle(entry, inVain(code));
      },
    };
    this.#exchange.send("history", entry.payload, reply, undefined, entry.doubts);
  }

  /**
   * @param {Entry} entry
   * @param {unknown} error
   * @param {any} [payload]
   */
  #settle(entry, error, payload) {
    entry.over();
    if (!this.#entries.delete(entry)) return;
    if (error) entry.reject(error);
    else entry.resolve(payload);
  }
}
