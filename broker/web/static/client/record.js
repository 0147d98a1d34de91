// @ts-check
/** One subscription as the client keeps it, over all its connections. */

import { Filter } from "./filters.js";
import { covers, expand } from "./names.js";
import { now } from "./platform.js";
import { Windows } from "./windows.js";

/** @import { Asked, EventItem, Link, Receiver, Reply, Start } from "./types.js" */

// The states, in this order.
export const NEW = 0; // to be asked for, once no other of the same channel is under way
export const ASKED = 1;
export const CATCHING = 2; // takes the frames that are marked with its number
export const LIVE = 3; // takes the unmarked ones
export const PAUSED = 4; // whoever iterates has not kept up
/** The same, as applications know them. */
export const STATES = /** @type {const} */ (["pending", "pending", "catching-up", "live", "paused"]);

export class SubscriptionRecord {
  /** The channels and patterns, as they were given. */
  names;
  /** @type {string[]} the same as the broker writes them */
  full = [];
  /** @type {string[][]} the same in tokens */
  patterns = [];
  /** @type {Start} */
  start;
  lag;
  /** @type {Filter | undefined} */
  filter;
  every;
  /** @type {Windows | undefined} if it has a pace */
  windows;
  /** @type {ReturnType<typeof setTimeout> | undefined} until the next of them ends */
  #timer;
  /** @type {string | undefined} what is wrong with the filter */
  wrong;
  /** @type {string | undefined} */
  durable;
  buffer;
  /** @type {string | undefined} the tab that it is for, if it is another's */
  peer;
  /** @type {Receiver} who gets what it brings */
  sub;

  state = NEW;
  /** @type {string | undefined} up to where it is complete, while it is not live; and the newest that it has taken */
  seen;
  /** @type {Link | undefined} the connection on which the broker has it: what is not stored comes from then on */
  on;
  /** @type {Reply | undefined} the request that is under way for it */
  request;
  own = false; // whether it was asked for from where it stands, and not from further back with others
  /** @type {number | undefined} the number of its catch-up */
  mark;
  caught = false; // whether, being live, it has caught up with the present
  was = false; // whether it has been live: such come first
  examined = false; // whether the broker would take its options and names
  alone = false; // whether it is asked for alone, since it may have spoilt a list
  doubts = 0; // connections that ended badly while it was asked for
  after = 0; // when it may be asked for
  /** @type {number | undefined} since when it waits for a place */
  waits;
  /** @type {import("./errors.js").BrokerError | undefined} why it has ended */
  error;

  /**
   * @param {Asked} asked
   * @param {string | undefined} room what `me` stands for
   * @param {(record: SubscriptionRecord) => Receiver} receiver
   */
  constructor({ names, start, lag, filter, every, buffer = Infinity, peer }, room, receiver) {
    try {
      this.filter = filter === undefined ? undefined : new Filter(filter);
    } catch (error) {
      this.wrong = /** @type {Error} */ (error).message;
    }
    this.every = every;
    if (every !== undefined) this.windows = new Windows(every);
    this.names = names;
    this.start = start;
    this.lag = lag;
    this.durable = start.durable;
    this.buffer = buffer;
    this.peer = peer;
    this.seen = start.position;
    this.expand(room);
    this.sub = receiver(this);
  }

  /**
   * Write `me` out.
   * @param {string | undefined} room
   */
  expand(room) {
    this.full = this.names.map((name) => expand(String(name), room));
    this.patterns = this.full.map((name) => name.split("."));
  }

  /**
   * Whether it gets an event of its channels.
   * @param {any} event
   */
  passes(event) {
    return this.filter?.passes(event) ?? true;
  }

  /**
   * Hand an event over, at its pace.
   * @param {EventItem<any>} item
   */
  take(item) {
    if (!this.windows || this.windows.take(item, now())) this.sub.take(item);
    this.#wait();
  }

  /** Hand over what is held when its window ends. */
  #wait() {
    const { windows } = this;
    if (!windows || this.#timer !== undefined || windows.next === Infinity) return;
    this.#timer = setTimeout(() => {
      this.#timer = undefined;
      for (const item of windows.due(now())) this.sub.take(item);
      this.#wait();
    }, Math.max(0, windows.next - now()));
  }

  /** Nothing that is held is handed over any more. */
  stop() {
    clearTimeout(this.#timer);
    this.#timer = undefined;
    this.windows?.clear();
  }

  /** @param {string[]} channel in tokens */
  covers(channel) {
    return this.patterns.some((pattern) => covers(pattern, channel));
  }
}
