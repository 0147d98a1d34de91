// @ts-check
/** The part that asks services: each request is sent once at most, and answered within its time. */

import { BrokerError, CLOSED, failure } from "./errors.js";
import { misnamed } from "./names.js";
import { BACKOFF_MS } from "./pace.js";
import { now } from "./platform.js";
import { bytes, given } from "./values.js";

/** @import { Exchange } from "./exchange.js" */
/** @import { Part, Settler } from "./types.js" */
/** @typedef {Settler<any> & {method: string, data: any, id?: string, relayed: boolean, due: number, sent: boolean, why: string, over: () => void}} Entry */

const USUAL_MS = 5_000;
const ANSWER_MOST_MS = 30_000; // the broker waits no longer for a service
const TIMER_MOST_MS = 2e9;
const BUSY_MS = 100;
const UNKNOWN = ["closed", "timeout", "internal"]; // after it was sent they leave open whether the service has acted

/** @param {string} why */
const unknown = (why) => new BrokerError({ code: "timeout", message: `whether the service has acted is not known: ${why}`, unknown: true });

/**
 * What is refused before a service can have heard of it waits, and is sent within its time. What may have reached one
 * is never sent again. What is for another tab is sent at once or not at all: it waits there, where it survives us.
 * @implements {Part}
 */
export class Requests {
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
   * @param {string} method
   * @param {any} data
   * @param {{timeout?: number, signal?: AbortSignal, id?: string}} options
   * @param {boolean} relayed whether it is for another tab
   * @returns {Promise<any>} what the service answers
   */
  async request(method, data, { timeout = USUAL_MS, signal, id }, relayed = false) {
    signal?.throwIfAborted();
    const fault = misnamed(method, false) ?? (/^(me|users|live)\./.test(`${method}.`) ? "a method does not begin with me, users or live" : undefined);
    if (fault) throw failure("invalid_channel", `${JSON.stringify(method)}: ${fault}`);
    if (id !== undefined && !/^[!-~]{1,64}$/.test(id)) throw failure("bad_message", "id: 1 to 64 visible characters of ASCII");
    if (!(timeout > 0)) throw failure("bad_message", "timeout: more than 0 ms");
    if (!relayed && this.#entries.size >= this.#queue) throw failure("queue_full", `${this.#entries.size} requests are waiting`);
    if (!this.#exchange.wanted) throw failure("closed", "not connected: connect()");
    return new Promise((resolve, reject) => {
      const late = () => {
        const why = `no answer after ${timeout} ms`;
        this.#settle(entry, entry.sent ? unknown(why) : failure("timeout", `it was not sent within ${timeout} ms${entry.why}`));
      };
      const aborted = () => this.#drop(entry) && reject(signal?.reason);
      const timer = setTimeout(late, Math.min(timeout, TIMER_MOST_MS));
      const over = () => {
        clearTimeout(timer);
        signal?.removeEventListener("abort", aborted);
      };
      /** @type {Entry} */
      const entry = { resolve, reject, method, data, id, relayed, due: now() + timeout, sent: false, why: "", over };
      signal?.addEventListener("abort", aborted);
      this.#entries.add(entry);
      this.sync();
      if (relayed && !entry.sent) this.#settle(entry, this.#busy());
    });
  }

  /** For good: nothing will be asked any more. */
  close() {
    for (const entry of [...this.#entries]) this.#settle(entry, failure("closed", CLOSED));
  }

  sync() {
    if (!this.#exchange.link) return;
    const { pace } = this.#exchange;
    for (const entry of this.#entries) {
      if (entry.sent) continue;
      const wait = this.#after - now();
      if (wait > 0) return this.#exchange.again(wait);
      const timeout_ms = Math.max(1, Math.min(ANSWER_MOST_MS, Math.ceil(entry.due - now())));
      const { method, data, id } = entry;
      const payload = given({ method, data, timeout_ms, id });
      if (bytes(payload) + 100 > pace.most) {
        this.#settle(entry, pace.tooLarge(bytes(payload)));
        continue;
      }
      if (!this.#exchange.may(pace.calls)) return;
      this.#send(entry, payload);
    }
  }

  /**
   * @param {Entry} entry
   * @param {{timeout_ms: number}} payload
   */
  #send(entry, payload) {
    entry.sent = true;
    const reply = {
      takes: payload.timeout_ms,
      done: (/** @type {{data: any}} */ { data }) => this.#settle(entry, undefined, data),
      refused: (/** @type {BrokerError} */ error) => this.#refused(entry, error),
      lost: () => this.#settle(entry, unknown("the connection was lost")),
      doubted: () => {}, // it is lost, and not sent again
      oversized: (/** @type {BrokerError} */ error) => {
        entry.sent = false;
        this.#settle(entry, error);
      },
    };
    this.#exchange.send("request", payload, reply, this.#exchange.pace.calls);
  }

  /**
   * @param {Entry} entry
   * @param {BrokerError} error
   */
  #refused(entry, error) {
    const { code, message, retryable, retryAfter, unknownOutcome } = error;
    if (unknownOutcome && code !== "timeout") return this.#settle(entry, unknown(message)); // who said so cannot know
    // Nobody has heard of it: it may be sent when there is room for it, or another token.
    if (!retryable || entry.relayed || !/^(rate_limited|busy|token_\w+)$/.test(code)) return this.#settle(entry, error);
    entry.sent = false;
    entry.why = `: ${message}`;
    if (code !== "rate_limited") this.#after = now() + (retryAfter ?? BACKOFF_MS); // that one has its pace
    this.#exchange.soon();
  }

  /** What tells another tab to keep its request for a moment. */
  #busy() {
    const retry_after_ms = Math.max(BUSY_MS, this.#exchange.pace.wait(this.#exchange.pace.calls));
    return new BrokerError({ code: "busy", message: "it waits for others", retryable: true, retry_after_ms });
  }

  /**
   * Whether it still waited.
   * @param {Entry} entry
   */
  #drop(entry) {
    entry.over();
    return this.#entries.delete(entry);
  }

  /**
   * @param {Entry} entry
   * @param {BrokerError} [error]
   * @param {any} [data]
   */
  #settle(entry, error, data) {
    if (!this.#drop(entry)) return;
    if (error && entry.sent) error.unknownOutcome ||= UNKNOWN.includes(error.code);
    if (error) entry.reject(error);
    else entry.resolve(data);
  }
}
