// @ts-check
/** Documents as applications have them: one, or all of a pattern. */

import { covers } from "./names.js";
import { emit } from "./platform.js";
import { wished } from "./together.js";
import { given } from "./values.js";

/** @import { Documents } from "./documents.js" */
/** @import { BrokerError } from "./errors.js" */
/** @import { DocumentUser, Row } from "./types.js" */

/**
 * What both have in common: they are open, and what becomes of changes is told.
 * @implements {DocumentUser}
 */
class Opened extends EventTarget {
  name;
  /** @type {"pending" | "live" | "closed"} */
  state = "pending";
  /** @type {BrokerError | undefined} why it was ended */
  error;
  /** Resolves once all is here that there is. @type {Promise<void>} */
  opened;
  documents;
  #resolve = () => {};
  #reject = (/** @type {BrokerError} */ _) => {};

  /**
   * @param {Documents} documents
   * @param {string} name
   */
  constructor(documents, name) {
    super();
    this.documents = documents;
    this.name = name;
    this.opened = new Promise((resolve, reject) => ([this.#resolve, this.#reject] = [resolve, reject]));
    this.opened.catch(() => {}); // who does not wait for it hears of it by the event
  }

  /** @param {string} channel @returns {boolean} */
  wants(channel) {
    return channel === this.documents.full(this.name);
  }

  /** @param {string} _ @param {Row} __ */
  heard(_, __) {}

  ready() {
    this.#turn("live");
    this.#resolve();
  }

  /** @param {BrokerError} error */
  failed(error) {
    this.error = error;
    this.#reject(error);
    this.#turn("closed");
    emit(this, "error", error);
  }

  /**
   * @param {string} channel
   * @param {BrokerError} error
   * @param {any} mine
   * @param {Record<string, any>} [theirs]
   * @param {Record<string, number>} [add]
   */
  refused(channel, error, mine, theirs, add) {
    const keep = (/** @type {"mine" | "theirs"} */ which) => {
      if (which === "mine") this.edit(channel, mine, add);
    };
    const told = { channel, ...given({ mine, add }) };
    if (theirs) emit(this, "conflict", { ...told, paths: Object.keys(theirs), theirs, keep });
    else emit(this, "rejected", { ...told, error });
  }

  /**
   * @param {string} channel
   * @param {{ids: string[], revision: string, paths: Record<string, any>}} detail
   */
  lost(channel, detail) {
    emit(this, "lost", { channel, ...detail });
  }

  /**
   * @param {string} channel
   * @param {any} patch
   * @param {Record<string, number>} [add]
   */
  edit(channel, patch, add) {
    const wish = wished({ patch, add });
    this.documents.edit(channel, this).change(wish.patch, wish.add);
    this.documents.typed(channel);
  }

  /** @param {string} _ */
  shown(_) {}

  /** Leave it. Changes on their way are sent all the same. */
  close() {
    this.documents.close(this);
    this.#turn("closed");
  }

  /** @param {"live" | "closed"} state */
  #turn(state) {
    if (this.state === state) return;
    this.state = state;
    emit(this, "state", state);
  }
}

export class Document extends Opened {
  #made;

  /**
   * @param {Documents} documents
   * @param {string} channel
   */
  constructor(documents, channel) {
    super(documents, channel);
    this.#made = documents.edit(channel, this);
    documents.open(channel, this);
  }

  get #draft() {
    return this.documents.draft(this.documents.full(this.name)) ?? this.#made;
  }

  /** With the user's own changes; null: there is none, or it is not here yet. */
  get value() {
    return this.#draft.value;
  }

  /** As it is stored. */
  get confirmed() {
    return this.#draft.confirmed;
  }

  get revision() {
    return this.#draft.revision;
  }

  /** Why what is stored is no document, as a service may store anything: it takes no changes. */
  get invalid() {
    return this.#draft.invalid;
  }

  /** How many changes are not confirmed. */
  get pending() {
    return this.#draft.pending;
  }

  /**
   * Change it by a merge patch, at once as it is shown; null deletes it, undefined is no patch.
   * @param {any} patch
   * @param {{add?: Record<string, number>}} options `add` to numbers, by JSON Pointer
   */
  change(patch, { add } = {}) {
    this.edit(this.name, patch, add);
  }

  shown() {
    emit(this, "change", this.value);
  }

  heard() {
    this.shown();
  }
}

export class Collection extends Opened {
  /** @type {Map<string, any>} */
  #rows = new Map();
  #seen = false; // somebody has the map, which stays as it is
  /** @type {ReadonlyMap<string, string>} */
  #invalid = new Map();

  /**
   * @param {Documents} documents
   * @param {string} pattern
   */
  constructor(documents, pattern) {
    super(documents, pattern);
    documents.open(pattern, this);
  }

  /** @param {string} channel */
  wants(channel) {
    return covers(this.documents.full(this.name).split("."), channel.split("."));
  }

  /** The documents by channel, with the user's own changes; another map once something is another. @type {ReadonlyMap<string, any>} */
  get all() {
    this.#seen = true;
    return this.#rows;
  }

  /** Why what is stored there is no document, by channel; another map once something is another. */
  get invalid() {
    return this.#invalid;
  }

  /**
   * Change one of them, or make one, as a document.
   * @param {string} channel
   * @param {any} patch
   * @param {{add?: Record<string, number>}} options
   */
  change(channel, patch, { add } = {}) {
    this.edit(channel, patch, add);
  }

  /** @param {string} channel @param {Row} row */
  heard(channel, { value, invalid }) {
    if (this.#invalid.get(channel) !== invalid) {
      const others = [...this.#invalid].filter(([name]) => name !== channel);
      this.#invalid = new Map(invalid ? [...others, [channel, invalid]] : others);
    }
    const draft = this.documents.draft(channel);
    this.#put(channel, draft ? draft.value : value);
  }

  /** @param {string} channel */
  shown(channel) {
    const draft = this.documents.draft(this.documents.full(channel));
    if (draft) this.#put(this.documents.full(channel), draft.value);
  }

  /** @param {string} channel @param {any} value */
  #put(channel, value) {
    if (this.#seen) this.#rows = new Map(this.#rows);
    this.#seen = false;
    if (value === null) this.#rows.delete(channel);
    else this.#rows.set(channel, value);
    emit(this, "change", { channel, value });
  }
}
