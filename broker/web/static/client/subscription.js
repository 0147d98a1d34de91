// @ts-check
/** What `subscribe` gives to the application. */

import { emit } from "./platform.js";
import { LIVE, STATES } from "./record.js";

/** @import { BrokerError } from "./errors.js" */
/** @import { SubscriptionRecord } from "./record.js" */
/** @import { EventItem, GapItem, Receiver } from "./types.js" */

/**
 * What a subscription has others do.
 * @typedef {object} Does
 * @property {() => string | undefined} reached
 * @property {() => void} end
 * @property {() => void} pause
 * @property {() => void} resume
 * @property {() => void} restart
 * @property {(given: string | {position?: string}) => Promise<string>} acknowledge
 */

/**
 * An EventTarget (`event`, `gap`, `state`, `error`, `end`) that can be iterated.
 * @implements {Receiver}
 */
export class Subscription extends EventTarget {
  #record;
  #does;
  /** @type {(EventItem | GapItem)[] | undefined} while somebody iterates */
  #buffer;
  /** @type {(() => void)[]} who waits for an item */
  #waiting = [];
  /** @type {BrokerError | undefined} */
  #error;
  #ended = false;
  #said = "pending";

  /**
   * @param {SubscriptionRecord} record
   * @param {Does} does
   */
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

  /** @param {string} channel */
  covers(channel) {
    return this.#record.covers(channel.split("."));
  }

  close() {
    this.#does.end();
  }

  /** Begin again from the start that it was made with, as after a gap. */
  restart() {
    this.#does.restart();
  }

  /** @param {string | {position?: string}} given */
  acknowledge(given) {
    return this.#does.acknowledge(given);
  }

  turn() {
    if (this.#said !== this.state) emit(this, "state", (this.#said = this.state));
  }

  /** @param {BrokerError} error */
  warn(error) {
    emit(this, "error", error);
  }

  /** @param {EventItem | GapItem} item */
  take(item) {
    if (this.#buffer) {
      this.#buffer.push(item);
      this.#wake();
      // The broker keeps the rest for us: better there than here.
      if (this.#buffer.length >= this.#record.buffer) this.#does.pause();
    }
    emit(this, item.type, item);
  }

  /** @param {BrokerError} [error] */
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

  /**
   * Not a generator, which could not be left while it waits.
   * @returns {AsyncIterator<EventItem | GapItem>}
   */
  [Symbol.asyncIterator]() {
    const buffer = (this.#buffer ??= []);
    return {
      next: async () => {
        while (!buffer.length && !this.#ended) await new Promise((resolve) => this.#waiting.push(() => resolve(undefined)));
        if (!buffer.length && this.#error) throw this.#error;
        const value = buffer.shift();
        if (!value) return { done: true, value: undefined };
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
