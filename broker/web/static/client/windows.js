// @ts-check
/** Of each channel at most one event in a time, the newest; the first at once. */

import { passed } from "./positions.js";

const MOST = 1_000; // channels with an open window; events of further ones are not held
const REMEMBERED = 10_000; // channels of which the newest position is known

/** @import { EventItem } from "./types.js" */

/**
 * The pace at which all of those get what they want: the finest. It is undefined where one of them wants everything,
 * or their filters differ: what passes one of them would take the place of what passes the other.
 * @param {{filter?: {text: string}, every?: number}[]} wanted
 */
export const finest = (wanted) => {
  const [first] = wanted;
  const alike = wanted.every(({ filter, every }) => every !== undefined && filter?.text === first.filter?.text);
  return wanted.length && alike ? Math.min(...wanted.map(({ every = 0 }) => every)) : undefined;
};

export class Windows {
  #every;
  /** @type {Map<string, {end: number, held?: EventItem<any>}>} by channel, while a window is open; the first ends first */
  #open = new Map();
  /** @type {Map<string, string>} the newest position of each channel */
  #newest = new Map();

  /** @param {number} every in ms */
  constructor(every) {
    this.#every = every;
  }

  get every() {
    return this.#every;
  }

  /**
   * Take an event that has arrived; whether it is to be handed over now. One that has come before is dropped.
   * @param {EventItem<any>} item
   * @param {number} at
   */
  take(item, at) {
    const { channel, position } = item;
    if (position) {
      if (passed(position, this.#newest.get(channel))) return false;
      this.#newest.delete(channel);
      this.#newest.set(channel, position);
      if (this.#newest.size > REMEMBERED) this.#newest.delete(/** @type {string} */ (this.#newest.keys().next().value));
    }
    const window = this.#open.get(channel);
    if (window) window.held = item;
    else if (this.#open.size < MOST) this.#open.set(channel, { end: at + this.#every });
    return !window;
  }

  /** When the next window ends. */
  get next() {
    const [window] = this.#open.values();
    return window?.end ?? Infinity;
  }

  /**
   * The events whose windows have ended; new ones begin for them.
   * @param {number} at
   */
  due(at) {
    const due = [];
    for (const [channel, { end, held }] of [...this.#open]) {
      if (end > at) break;
      this.#open.delete(channel);
      if (!held) continue;
      this.#open.set(channel, { end: at + this.#every });
      due.push(held);
    }
    return due;
  }

  /** Begin anew: what comes next is handed over, whatever has come before. */
  clear() {
    this.#open.clear();
    this.#newest.clear();
  }
}
