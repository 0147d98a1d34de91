// @ts-check
/** Changes that outlive the page, in IndexedDB: what a tab leaves behind, the next one takes over. */

import { random } from "./platform.js";

/** @import { Kept } from "./draft.js" */

const STORE = "changes";

/**
 * @template T
 * @param {IDBRequest<T>} request
 * @returns {Promise<T>}
 */
const done = (request) =>
  new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });

export class Keeping {
  #name;
  #tab = random();
  /** @type {Promise<IDBDatabase>} */
  #database;

  /** @param {string} name of the database; pages that say the same take over from each other */
  constructor(name) {
    this.#name = `broker ${name}`;
    const opening = indexedDB.open(this.#name, 1);
    opening.onupgradeneeded = () => opening.result.createObjectStore(STORE);
    this.#database = done(opening);
    this.#database.catch(() => {}); // it is told to each who asks
    navigator.locks.request(this.#lock(this.#tab), () => new Promise(() => {})); // while the page lives
  }

  /** @param {string} tab */
  #lock = (tab) => `${this.#name} ${tab}`;

  async #store() {
    return (await this.#database).transaction(STORE, "readwrite", { durability: "strict" }).objectStore(STORE);
  }

  /**
   * @param {string} whose the user, so that nobody sends what another one has changed
   * @param {string} channel
   * @param {Kept[]} changes
   */
  async save(whose, channel, changes) {
    const store = await this.#store();
    const key = [whose, channel, this.#tab];
    await done(/** @type {IDBRequest<any>} */ (changes.length ? store.put(changes, key) : store.delete(key)));
  }

  /**
   * What tabs that are gone have left of a document, which is this tab's from now on.
   * @param {string} whose
   * @param {string} channel
   * @returns {Promise<Kept[]>}
   */
  async take(whose, channel) {
    const { held = [] } = await navigator.locks.query();
    const alive = new Set(held.map(({ name }) => name));
    const store = await this.#store();
    const range = IDBKeyRange.bound([whose, channel, ""], [whose, channel, "\uffff"]);
    /** @type {Kept[]} */
    const found = [];
    for (const key of /** @type {string[][]} */ (await done(store.getAllKeys(range)))) {
      if (alive.has(this.#lock(key[2]))) continue;
      found.push(...(await done(store.get(key))));
      store.delete(key);
    }
    if (found.length) await done(store.put(found, [whose, channel, this.#tab]));
    return found;
  }
}
