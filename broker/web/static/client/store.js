// @ts-check
/** The newest event of each channel, kept up to date. */

import { expand } from "./names.js";
import { emit } from "./platform.js";
import { comparable, passed } from "./positions.js";
import { json } from "./values.js";

/** @import { Client } from "./client.js" */
/** @import { Subscription } from "./subscription.js" */
/** @import { EventItem } from "./types.js" */
/** @typedef {{channel: string, event: any, position?: string}} Change */

/**
 * The newest event of each channel, kept up to date, with changes of our own ahead of the broker's word.
 *
 * A change is shown at once and stays on top of whatever arrives until it is confirmed, by the event that the
 * broker made of it and no other (it is known by its position), or taken back.
 */
export class Store extends EventTarget {
  #client;
  /** @type {Subscription} */
  #sub;
  #reduce;
  #timeout;
  /** @type {Map<string, any>} */
  #confirmed = new Map();
  /** @type {Map<string, any> | undefined} while a snapshot is under way */
  #next = new Map();
  /** @type {Change[]} oldest first */
  #pending = [];
  /** @type {Map<string, any> | undefined} */
  #value;
  #ready = false;
  #due = false;

  /**
   * @param {Client} client
   * @param {string | string[]} channels
   * @param {{reduce?: (value: any, event: any) => any, timeout?: number, durable?: string, lag?: import("./types.js").Lag, buffer?: number}} options
   */
  constructor(client, channels, { reduce = (_, event) => event, timeout = 10_000, ...options } = {}) {
    super();
    this.#client = client;
    this.#reduce = reduce;
    this.#timeout = timeout;
    this.#sub = client.subscribe(channels, { ...options, snapshot: true }, (item) => this.#take(item));
    this.#hear("state", (state) => {
      if (state === "live") this.#swap();
      if (state === "closed") this.#settle((each) => !!each.position); // no word will come
    });
    this.#hear("gap", ({ action }) => {
      if (action !== "reload") return;
      this.#next = new Map();
      this.#sub.restart();
    });
    for (const type of ["error", "end"]) this.#hear(type, (detail) => emit(this, type, detail));
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

  /** @param {string} channel */
  get(channel) {
    return this.value.get(this.#full(channel));
  }

  /**
   * Whether the value of a channel still waits for the broker's word.
   * @param {string} channel
   */
  pending(channel) {
    return this.#pending.some((each) => this.#full(each.channel) === this.#full(channel));
  }

  /**
   * Show the change at once and publish it. Rejects, with the change taken back, when it did not come about.
   * @param {string} channel
   * @param {any} given
   * @param {{id?: string, timeout?: number}} options
   */
  async put(channel, given, { id, timeout = this.#timeout } = {}) {
    const event = json(given); // as it is now
    /** @type {Change} */
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
      if (!waits || passed(change.position ?? "", this.#sub.position)) this.#settle((each) => each === change);
    }
  }

  /**
   * @param {string} channel
   * @param {{id?: string, timeout?: number}} [options]
   */
  remove(channel, options) {
    return this.put(channel, null, options);
  }

  close() {
    this.#sub.close();
  }

  /**
   * @param {string} type
   * @param {(detail: any) => void} then
   */
  #hear(type, then) {
    this.#sub.addEventListener(type, (event) => then(/** @type {CustomEvent} */ (event).detail));
  }

  /** @param {string} channel */
  #full(channel) {
    return expand(channel, this.#client.status.private);
  }

  /**
   * @param {Map<string, any>} map
   * @param {string} name
   * @param {any} event
   */
  #apply(map, name, event) {
    const channel = this.#full(name); // known only once there was a connection
    try {
      if (event === null) map.delete(channel);
      else map.set(channel, this.#reduce(map.get(channel), event));
    } catch (error) {
      queueMicrotask(() => { throw error; }); // reported, as one of a listener is
    }
  }

  /** @param {EventItem<any>} item */
  #take({ channel, event, position }) {
    this.#apply(this.#confirmed, channel, event);
    if (this.#next) this.#apply(this.#next, channel, event);
    this.#settle((each) => !!each.position && passed(each.position, position));
  }

  /** The snapshot is complete: what was not in it has gone. */
  #swap() {
    if (!this.#next) return;
    this.#confirmed = this.#next;
    this.#next = undefined;
    this.#ready = true;
    // Of a stream that is no more nothing will come.
    const { position: at } = this.#sub;
    this.#settle(({ position }) => !!position && !!at && (passed(position, at) || !comparable(position, at)));
    emit(this, "ready");
  }

  /** @param {(change: Change) => boolean} done */
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
