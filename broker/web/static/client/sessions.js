// @ts-check
/** The name under which this tab is present: the same after a reload, and no other tab's. */

import { memory, random } from "./platform.js";

const HELD_MS = 1_000; // for so long the page before a reload may still hold it
/** @type {Set<number>} which of the tab's names clients of this page have */
const used = new Set();

/** Kept in `sessionStorage`, which a duplicated tab copies, and held by a Web Lock, of which that one gets none. */
export class Session {
  /** @type {string | undefined} once it is known */
  name;
  #number = -1;
  #ready;
  #round = {};
  #free = () => {};

  /** @param {() => void} ready called when there is a name */
  constructor(ready) {
    this.#ready = ready;
  }

  /** Have a name, the one from before a reload if there is one. */
  need() {
    if (this.#number >= 0) return;
    this.#number = 0;
    while (used.has(this.#number)) this.#number++;
    used.add(this.#number);
    this.#take(memory(this.#key, undefined, "sessionStorage"));
  }

  /** Another name: somebody else has this one. */
  renew() {
    this.#take();
  }

  close() {
    this.#free();
    this.#round = {};
    this.name = undefined;
    used.delete(this.#number);
    this.#number = -1;
  }

  get #key() {
    return `broker session ${this.#number}`;
  }

  /** @param {string | null} [known] */
  async #take(known) {
    this.#free();
    this.name = undefined;
    const round = (this.#round = {});
    let name = known ?? "";
    if (!/^[\w-]{1,64}$/.test(name) || !(await this.#hold(name, round))) {
      name = random();
      await this.#hold(name, round);
    }
    if (round !== this.#round) return;
    memory(this.#key, name, "sessionStorage");
    this.name = name;
    this.#ready();
  }

  /**
   * Whether nobody else has it; where there are no locks nobody can tell, and the broker says it.
   * @param {string} name
   * @param {object} round
   * @returns {Promise<boolean>}
   */
  async #hold(name, round) {
    const locks = globalThis.navigator?.locks;
    if (!locks) return true;
    const late = new AbortController();
    const timer = setTimeout(() => late.abort(), HELD_MS);
    return new Promise((resolve) => {
      const held = () => {
        clearTimeout(timer);
        resolve(true);
        if (round === this.#round) return new Promise((free) => (this.#free = () => free(undefined)));
      };
      locks.request(`broker.v1 session ${name}`, { signal: late.signal }, held).catch(() => resolve(false));
    });
  }
}
