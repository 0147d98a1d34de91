// @ts-check
/** What is said over the connection, whichever it is at the moment: requests, their answers, and who hears what. */

import { BrokerError, SERVICE } from "./errors.js";
import { Pace } from "./pace.js";
import { now } from "./platform.js";
import { bytes } from "./values.js";

/** @import { Bucket } from "./pace.js" */
/** @import { End, Link, Message, Part, Reply, Who } from "./types.js" */
/** @typedef {{reply: Reply, bucket: Bucket, size: number, doubts: number, late?: boolean, timer?: ReturnType<typeof setTimeout>}} Call */

const REPLY_MS = 30_000; // for what was asked for; then the two sides no longer agree, and begin anew
export const TRIES = 3; // so many times what ends a connection, or has no answer, is sent
const IN_FLIGHT = 16; // without an answer, of each kind: all three together are below the 50 that end a connection
const FAULTY = [1002, 1003, 1007, 1009, 4510]; // the broker could not read something, and does not say what
const LEAST = 1_000; // bytes that a message may always have

/**
 * Why something is given up that was sent `TRIES` times in vain.
 * @param {"timeout" | "bad_message"} code
 * @param {boolean} unknown whether the broker may have done it
 */
export const inVain = (code, unknown = false) =>
  new BrokerError({ code, message: `there is no answer to it, after ${TRIES} tries`, unknown });

/**
 * The one way for a part of the client to the broker. A part joins; it says what it has to say when its `sync` is
 * called, with `send` and no faster than `may` allows; it hears the types of messages that it names, and of the
 * connection's beginning and end. A request that is lost with its connection is told so, and is the part's to repeat.
 */
export class Exchange {
  /** @type {Link | undefined} the present connection, once it is authenticated; another object for each */
  link;
  wanted = false; // whether there is to be a connection
  pace = new Pace();
  /** @type {(end: End) => void} ends the connection */
  cut = () => {};
  /** @type {Part[]} */
  #parts = [];
  /** @type {Map<string, Call>} by the `messageId` of a request without an answer */
  #calls = new Map();
  #count = 0;
  #soon = false; // it is said at the end of this turn
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  #timer;
  #at = Infinity; // when the timer is due

  /** @param {Part[]} parts in this order they speak, and hear */
  join(...parts) {
    this.#parts.push(...parts);
  }

  /** Another number in the life of the client. */
  next() {
    return ++this.#count;
  }

  // --- when something is said ------------------------------------------------------------------------

  /** What was done in one breath is said at the end of it. */
  soon() {
    if (this.#soon) return;
    this.#soon = true;
    queueMicrotask(() => {
      this.#soon = false;
      this.sync();
    });
  }

  /**
   * Once more in so many ms.
   * @param {number} ms
   */
  again(ms) {
    const at = now() + ms;
    if (!this.link || at >= this.#at) return;
    this.#at = at;
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => {
      this.#at = Infinity;
      this.sync();
    }, Math.ceil(ms));
  }

  /**
   * Whether this is over; if not, `sync` follows once it is.
   * @param {number} at
   */
  due(at) {
    const wait = at - now();
    if (wait > 0) this.again(wait);
    return wait <= 0;
  }

  /** Say what is to be said, as far as the limits allow it now; what is left out comes as soon as they do. */
  sync() {
    for (const part of this.#parts) part.sync?.();
  }

  /**
   * Whether a message may be sent now, at the pace of `bucket`. What is in doubt goes alone, so that nothing else is
   * blamed for it. Where only time is in the way, `sync` follows.
   * @param {Bucket} [bucket]
   * @param {number} [doubts] how often its like was under way when a connection ended badly
   */
  may(bucket = this.pace.requests, doubts = 0) {
    const calls = [...this.#calls.values()];
    if (calls.some((call) => call.doubts) || (doubts && calls.some(({ reply }) => !reply.takes))) return false;
    const most = bucket === this.pace.calls ? Math.min(IN_FLIGHT, this.pace.limits.requests_in_flight) : IN_FLIGHT;
    if (calls.filter((call) => call.bucket === bucket).length >= most) return false;
    const wait = this.pace.wait(bucket);
    if (wait > 0) this.again(wait);
    return wait <= 0;
  }

  /**
   * Send what is to be answered. Only where `may` has allowed it, and there is a link.
   * @param {string} type
   * @param {object} payload
   * @param {Reply} reply
   * @param {Bucket} [bucket]
   * @param {number} [doubts]
   */
  send(type, payload, reply, bucket = this.pace.requests, doubts = 0) {
    const link = /** @type {Link} */ (this.link);
    const messageId = `${type[0]}${this.next()}`;
    /** @type {Call} */
    const call = { reply, bucket, size: bytes(payload) + 100, doubts };
    bucket.spend();
    this.#calls.set(messageId, call);
    const ms = REPLY_MS + (reply.takes ?? 0);
    const late = () => {
      call.late = true;
      this.cut({ code: 4009, reason: `no answer to ${type} within ${ms} ms` });
    };
    if (!link.patient) call.timer = setTimeout(late, ms);
    link.send({ type, payload, messageId });
  }

  // --- what is heard ---------------------------------------------------------------------------------

  /** @param {Message} message */
  heard({ type, payload, messageId }) {
    const call = messageId ? this.#answered(messageId) : undefined;
    if (type === "connection.established") this.pace.adopt(payload.limits);
    for (const { hears } of this.#parts) hears?.[type]?.(payload, messageId);
    if (!call) return; // or one that was given up meanwhile
    if (type !== "error") return call.reply.done(payload);
    const error = new BrokerError(payload);
    if (error.code === "rate_limited" && call.reply.apart) this.pace.note();
    else if (error.code === "rate_limited") this.pace.limited(error, call.bucket);
    else if (!error.retryable && !SERVICE.includes(error.code)) this.pace.posts.spend(); // as the broker does
    call.reply.refused(error);
  }

  /**
   * The call that a message answers, which then is no more.
   * @param {string} messageId
   */
  #answered(messageId) {
    const call = this.#calls.get(messageId);
    if (!call) return;
    clearTimeout(call.timer);
    this.#calls.delete(messageId);
    call.bucket.taken();
    this.soon(); // whoever waited for it
    return call;
  }

  // --- the connection --------------------------------------------------------------------------------

  /**
   * @param {Link} link
   * @param {Who} who
   */
  opened(link, who) {
    this.link = link;
    for (const part of this.#parts) part.opened?.(who);
  }

  /**
   * The connection is gone; `code` is what it ended with.
   * @param {number} [code]
   */
  lost(code) {
    clearTimeout(this.#timer);
    this.#at = Infinity;
    this.link = undefined;
    this.#blame(code);
    for (const part of this.#parts) part.lost?.();
    const calls = [...this.#calls.values()];
    this.#calls.clear();
    for (const { timer, reply } of calls) {
      clearTimeout(timer);
      reply.lost();
    }
  }

  /**
   * Whose fault it may be that the connection has ended.
   * @param {number | undefined} code
   */
  #blame(code) {
    const calls = [...this.#calls.values()];
    const [largest] = [...calls].sort((a, b) => b.size - a.size);
    if (code === 1009 && largest?.size > LEAST) {
      this.pace.shrink(largest.size);
      largest.reply.oversized?.(this.pace.tooLarge(largest.size));
      return;
    }
    for (const { reply, late } of calls)
      if (late || (code && FAULTY.includes(code))) reply.doubted(late ? "timeout" : "bad_message");
  }
}
