// @ts-check
/** How much may be said, and how fast: what the broker announced, and what we had to learn. */

import { failure } from "./errors.js";
import { now, rest } from "./platform.js";

/** @import { BrokerError } from "./errors.js" */
/** @import { Limits } from "./types.js" */

export const BACKOFF_MS = 500;
export const BACKOFF_MOST_MS = 20_000;

/**
 * The longest that is waited after so many failures, in ms.
 * @param {number} failures
 */
export const backoff = (failures) => Math.min(BACKOFF_MOST_MS, BACKOFF_MS * 2 ** failures);

const REFUSALS = 16; // for their rate, within REFUSALS_MS: 50 end a connection
const REFUSALS_MS = 60_000;
const SHARE = 0.75; // of a burst: the network bunches up what was apart
const PACE = 0.9; // of a rate

// Until the broker says its own (the protocol page, "Limits"). Sizes are not known before.
/** @type {Limits} */
const LIMITS = {
  subscriptions_per_connection: 128,
  filters_per_connection: 0, // an older broker has none
  paced_channels: 0, // likewise
  requests_per_second: 10,
  requests_burst: 200,
  messages_per_minute: 100,
  messages_burst: 50,
  calls_per_second: 10,
  calls_burst: 50,
  requests_in_flight: 16,
  changes_per_second: 10,
  changes_burst: 50,
  duplicate_window_seconds: 600,
};

/** What may be spent: so much at once, and so much a second; less for a while, where others spend it too. */
export class Bucket {
  #rate = 0; // a ms
  #burst = 1;
  #spent = 0;
  #at = now();
  #most = 0; // at once
  #share = 1; // of the rate

  /**
   * @param {number} rate a second
   * @param {number} burst
   */
  constructor(rate, burst) {
    this.adopt(rate, burst);
    this.#most = this.#burst;
  }

  /**
   * @param {number} rate a second
   * @param {number} burst
   */
  adopt(rate, burst) {
    this.#rate = (rate * PACE) / 1000;
    this.#burst = Math.max(1, burst * SHARE);
    this.#most = Math.min(this.#most, this.#burst);
  }

  /** In how many ms one more may be spent. */
  wait() {
    const at = now();
    const rate = this.#rate * this.#share;
    this.#spent = Math.max(0, this.#spent - (at - this.#at) * rate);
    this.#at = at;
    return Math.max(0, Math.ceil((this.#spent + 1 - this.#most) / rate));
  }

  spend() {
    this.#spent++;
  }

  /**
   * Spend one as soon as there is one. Throws once `signal` says that it is not wanted any more.
   * @param {AbortSignal} signal
   */
  async turn(signal) {
    for (let ms; (ms = this.wait()); signal.throwIfAborted()) await rest(signal, ms);
    this.spend();
  }

  /** The broker has taken what was sent. */
  taken() {
    this.#most = Math.min(this.#burst, this.#most + 1);
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

/** The limits of a connection. */
export class Pace {
  limits = LIMITS;
  requests = new Bucket(LIMITS.requests_per_second, LIMITS.requests_burst);
  posts = new Bucket(LIMITS.messages_per_minute / 60, LIMITS.messages_burst); // publishes, which have a rate of their own
  calls = new Bucket(LIMITS.calls_per_second, LIMITS.calls_burst); // requests to services, likewise
  changes = new Bucket(LIMITS.changes_per_second, LIMITS.changes_burst); // of documents, likewise
  #largest = Infinity; // bytes of a message, as far as we had to learn
  /** @type {number[]} when something was refused for its rate */
  #refusals = [];
  #holdUntil = 0; // nothing is sent before

  /**
   * Go by the limits that the broker has said.
   * @param {Partial<Limits>} said
   */
  adopt(said = {}) {
    const limits = (this.limits = { ...LIMITS, ...said });
    this.requests.adopt(limits.requests_per_second, limits.requests_burst);
    this.posts.adopt(limits.messages_per_minute / 60, limits.messages_burst);
    this.calls.adopt(limits.calls_per_second, limits.calls_burst);
    this.changes.adopt(limits.changes_per_second, limits.changes_burst);
  }

  /** So many bytes a message may have. */
  get most() {
    return Math.min(this.#largest, this.limits.message_bytes ?? Infinity);
  }

  /**
   * A message of this size ended the connection.
   * @param {number} size
   */
  shrink(size) {
    this.#largest = Math.min(this.#largest, size - 1);
  }

  /** @param {number} size */
  tooLarge(size) {
    return failure("too_large", `${size} bytes; a message may have ${this.most}`);
  }

  /**
   * In how many ms one more of `bucket` may be sent.
   * @param {Bucket} bucket
   */
  wait(bucket) {
    return Math.max(this.#holdUntil - now(), bucket.wait());
  }

  /**
   * Send nothing for so many ms.
   * @param {number} ms
   */
  hold(ms) {
    this.#holdUntil = Math.max(this.#holdUntil, now() + ms);
  }

  /**
   * There is a limit that others of this user reach with us: all wait, and the more the more often it happens.
   * @param {BrokerError} error
   * @param {Bucket} bucket
   */
  limited({ retryAfter = BACKOFF_MS }, bucket) {
    bucket.drain();
    this.hold(retryAfter);
    this.note();
  }

  /** Something was refused for its rate: after too many of these nothing is sent for a while. */
  note() {
    const at = now();
    this.#refusals = [...this.#refusals.filter((each) => each > at - REFUSALS_MS), at];
    if (this.#refusals.length >= REFUSALS) this.hold(this.#refusals[0] + REFUSALS_MS - at);
  }
}
