// @ts-check
/** Who is in a channel, as applications have it. */

import { failure } from "./errors.js";
import { NOBODY } from "./members.js";
import { emit } from "./platform.js";
import { bytes, json } from "./values.js";

/** @import { BrokerError } from "./errors.js" */
/** @import { Presence } from "./presence.js" */
/** @import { Present, PresenceChange, RoomUser } from "./types.js" */

const STATE_BYTES = 1024;

/** @param {any} state */
const checked = (state) => {
  const value = json(state, "state");
  if (bytes(value) > STATE_BYTES) throw failure("bad_message", `state: ${bytes(value)} bytes; at most ${STATE_BYTES}`);
  return value;
};

/**
 * A channel that is watched, and entered unless `enter` is false.
 * @implements {RoomUser}
 */
export class Room extends EventTarget {
  name;
  enters;
  hidden = globalThis.document?.visibilityState === "hidden";
  /** @type {BrokerError | undefined} why it cannot be entered or watched */
  error;
  #presence;
  /** @type {Present} */
  #view = NOBODY;

  /**
   * @param {Presence} presence
   * @param {string} name
   * @param {{state?: any, enter?: boolean}} options
   */
  constructor(presence, name, { state, enter = true }) {
    super();
    this.name = name;
    this.enters = enter;
    this.#presence = presence;
    presence.open(this, state === undefined ? undefined : checked(state));
  }

  get users() {
    return this.#view.users;
  }

  get members() {
    return this.#view.members;
  }

  get count() {
    return this.#view.count;
  }

  get detail() {
    return this.#view.detail;
  }

  get stale() {
    return this.#view.stale;
  }

  /** The state that the others are to see. */
  get own() {
    return this.#presence.own(this);
  }

  /**
   * Say another state, which the others see.
   * @param {any} state any JSON of at most 1 KiB
   */
  set(state) {
    this.#presence.set(this, checked(state));
  }

  /**
   * Something is being typed: for three seconds, or until the next `set`, the state has `typing: field`.
   * @param {string} field
   */
  typing(field) {
    this.#presence.typing(this, field);
  }

  /**
   * Whether the page is hidden; also said by itself as that changes.
   * @param {boolean} hidden
   */
  away(hidden) {
    this.hidden = hidden;
    this.#presence.turned();
  }

  close() {
    this.#presence.close(this);
  }

  /**
   * @param {Present} view
   * @param {PresenceChange} [change]
   */
  shown(view, change) {
    const { stale } = this.#view;
    this.#view = view;
    if (change) emit(this, "change", change);
    if (stale !== view.stale) emit(this, "stale", view.stale);
  }

  /** @param {BrokerError} error */
  failed(error) {
    this.error = error;
    emit(this, "error", error);
  }
}
