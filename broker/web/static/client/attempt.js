// @ts-check
/** One connection, from its first byte to its end. */

import { now } from "./platform.js";
import { TRANSPORTS } from "./transports.js";

/** @import { Address, End, Link, Message, Who } from "./types.js" */

const OPEN_MS = 10_000; // for a transport to show that it works
const PONG_MS = 10_000;
const TICK_MS = 5_000; // how soon it is noticed that the device has slept
const JUMP_MS = 2_000; // by which the clocks must differ for that

/**
 * What became of it; `opened` and `lived`, in ms, are absent where it never worked. `asked`: in so many ms, and not
 * before, a draining broker wants us back.
 * @typedef {End & {opened?: number, lived?: number, asked?: number, error?: {message: string}}} Ended
 */

/**
 * Who hears of it.
 * @typedef {object} Listener
 * @property {(change: {connectionId?: string, transport?: string}) => void} changed
 * @property {(link: Link, transport: string, who: Who) => void} opened
 * @property {(message: Message) => void} heard
 */

/**
 * One connection. Time is measured by `now()`, which nobody sets; the wall clock only tells that the device has
 * slept, when the other one may have stood still.
 */
export class Attempt {
  #name;
  #address;
  #listener;
  /** @type {(ended: Ended) => void} */
  #resolve = () => {};
  /** @type {Link | void} */
  #link = undefined;
  #done = false;
  #shown;
  /** @type {number | undefined} when it was authenticated */
  #opened;
  #heartbeat = 25_000;
  #deadline = now() + OPEN_MS; // by which something must be heard, or asked
  #pinged = false;
  #before = { at: 0, wall: 0, due: 0 }; // what the clocks said when the timer was set
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  #timer;
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  #leaving;
  /** @type {number | undefined} when a draining broker wants us back */
  #resumeAt;
  /** @type {{code: string, message: string, retry_after_ms?: number} | undefined} what the broker said was wrong */
  #problem;

  /**
   * @param {string} name of the transport
   * @param {Omit<Address, "became">} address
   * @param {Listener} listener
   */
  constructor(name, address, listener) {
    this.#name = this.#shown = name;
    this.#address = { ...address, became: this.#became };
    this.#listener = listener;
  }

  /**
   * Connect, and stay to the end.
   * @returns {Promise<Ended>}
   */
  run() {
    return new Promise((resolve) => {
      this.#resolve = resolve;
      this.#arm();
      try {
        this.#link = TRANSPORTS[this.#name](this.#address, this.#heard, this.over);
        if (this.#done) this.#link?.close();
      } catch (error) {
        this.over({ code: 1006, reason: /** @type {Error} */ (error).message });
      }
    });
  }

  /**
   * End it, unless it has ended.
   * @param {End} end
   */
  over = (end) => {
    if (this.#done) return;
    this.#done = true;
    clearTimeout(this.#timer);
    clearTimeout(this.#leaving);
    this.#link?.close();
    const at = now();
    const asked = this.#resumeAt && this.#resumeAt - at;
    const after = end.after ?? this.#problem?.retry_after_ms;
    const opened = this.#opened;
    this.#resolve({ ...end, after, asked, opened, lived: opened && at - opened, error: this.#problem });
  };

  /**
   * Find out whether it lives: who cannot be asked begins anew after a sleep, and else has to say something soon.
   * @param {boolean} slept
   */
  probe(slept = false) {
    if (this.#done || !this.#link || !this.#opened || (this.#pinged && !slept)) return;
    const at = now();
    if (!this.#link.passive) {
      this.#pinged = true;
      this.#deadline = at + PONG_MS;
      this.#link.send({ type: "ping", payload: {} });
    } else if (slept) {
      this.#deadline = at + OPEN_MS;
      this.#link.refresh?.();
    } else this.#deadline = Math.min(this.#deadline, at + this.#heartbeat);
    this.#arm();
  }

  /** The link works by another transport, or by its own again. */
  #became = (other = this.#name) => {
    this.#shown = other;
    if (this.#opened) this.#listener.changed({ transport: other });
  };

  #arm() {
    clearTimeout(this.#timer);
    const due = Math.min(Math.max(Math.ceil(this.#deadline - now()), 0), TICK_MS);
    this.#before = { at: now(), wall: Date.now(), due };
    this.#timer = setTimeout(this.#check, due);
  }

  #check = () => {
    const at = now();
    const { at: before, wall, due } = this.#before;
    const elapsed = at - before;
    // The device has slept, or somebody has set its clock: what either clock says of the link is worth nothing.
    const slept = Math.abs(Date.now() - wall - elapsed) > JUMP_MS || elapsed - due > JUMP_MS;
    if (this.#opened && slept) this.probe(true);
    else if (at < this.#deadline) this.#arm();
    else if (!this.#opened) this.over({ code: 1006, reason: `${this.#name}: no answer within ${OPEN_MS} ms` });
    else if (this.#link?.passive || this.#pinged) this.over({ code: 4009, reason: "silent for too long" });
    else this.probe();
  };

  /** @param {Message} message */
  #heard = (message) => {
    if (this.#done) return;
    const { type, payload } = message;
    const at = now();
    if (type === "connection.established") {
      this.#heartbeat = payload.heartbeat_seconds * 1000;
      this.#listener.changed({ connectionId: payload.connection_id });
    } else if (type === "connection.authenticated" && !this.#opened && this.#link) {
      this.#opened = at;
      this.#listener.opened(this.#link, this.#shown, payload);
      if (this.#done) return;
    } else if (type === "connection.draining") {
      this.#resumeAt = at + payload.reconnect_after_ms;
      this.#leaving = setTimeout(() => this.over({ code: 1012, reason: "it is going down" }), payload.reconnect_after_ms);
    } else if (type === "error" && !message.messageId) {
      this.#problem = payload;
      // The token cannot be judged yet.
      if (!this.#opened && payload.code === "unavailable") return this.over({ code: 1013, answered: true });
    }
    if (type === "tab.wait") this.#deadline = at + OPEN_MS; // it is there, and not connected either
    if (this.#opened) {
      this.#pinged = false;
      this.#deadline = at + this.#heartbeat * (this.#link?.passive ? 2.5 : 0.5);
      if (this.#opened === at) this.#arm();
    }
    this.#listener.heard(message);
  };
}
