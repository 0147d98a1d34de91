// @ts-check
/**
 * The subscriptions, and how they stay complete (rules 2 to 8 of the protocol page, "Positions, order and loss").
 *
 * `position` is the live position of the connection: everything up to it has been handed to the records that are
 * LIVE. A record that is not LIVE knows by itself, in `seen`, up to where it is complete. A lost connection makes all
 * records NEW, and each is asked for from `seen`; those that were LIVE stand at the same position and so go into one
 * `subscribe`. Whatever a record has `seen` is not handed to it again, so a start may always lie further back than
 * needed.
 */

import { BrokerError } from "./errors.js";
import { expand } from "./names.js";
import { passed } from "./positions.js";
import { CATCHING, LIVE, NEW, PAUSED, SubscriptionRecord } from "./record.js";
import { many } from "./values.js";

/** @import { Exchange } from "./exchange.js" */
/** @import { Asked, EventItem, GapItem, Receiver } from "./types.js" */

/**
 * A gap as the application gets it. `action`: "reload" what was built from events, or "continue".
 * @param {{channel: string | string[], from?: string, to?: string, count?: number, reason: GapItem["reason"], catch_up?: number}} payload
 * @param {string} [lag]
 * @returns {GapItem}
 */
const gapItem = ({ catch_up, ...payload }, lag) => ({
  ...payload,
  type: "gap",
  channel: many(payload.channel),
  // What `latest` leaves out is older than what comes: only the way there is missing.
  action: payload.reason === "lag" && lag === "latest" ? "continue" : "reload",
});

export class Records {
  /** @type {string | undefined} */
  position;
  /** @type {string | undefined} what `me` stands for */
  private;
  /** @type {(id?: string) => string | undefined} the channel of a publish of ours that is not to be sent back */
  unechoed = () => undefined;
  #exchange;
  /** @type {Set<SubscriptionRecord>} */
  #all = new Set();

  /** @param {Exchange} exchange */
  constructor(exchange) {
    this.#exchange = exchange;
  }

  [Symbol.iterator]() {
    return this.#all.values();
  }

  /** @param {SubscriptionRecord} record */
  has(record) {
    return this.#all.has(record);
  }

  /** How much there is to subscribe to, in characters of a query. */
  get load() {
    return [...this.#all].reduce((sum, { full }) => sum + full.join("&channel=").length, 0);
  }

  /** The one with the longest list. */
  get longest() {
    const length = (/** @type {SubscriptionRecord} */ { full }) => full.join().length;
    return [...this.#all].sort((a, b) => length(b) - length(a))[0];
  }

  /**
   * @param {Asked} asked
   * @param {(record: SubscriptionRecord) => Receiver} receiver
   */
  add(asked, receiver) {
    const record = new SubscriptionRecord(asked, this.private, receiver);
    this.#all.add(record);
    this.#exchange.soon();
    return record;
  }

  /** @param {string} room what `me` stands for on this connection */
  name(room) {
    this.private = room;
    for (const record of this.#all) record.expand(room);
  }

  /** The connection is gone: what was live stands where the connection stood. Other tabs ask again. */
  lost() {
    for (const record of this.#all)
      if (record.peer) {
        record.stop();
        this.#all.delete(record);
      } else if (record.state !== PAUSED) this.turn(record, NEW);
  }

  // --- where a record stands -------------------------------------------------------------------------

  /**
   * Up to where it is complete: as long as it is live, the position of the connection is its own.
   * @param {SubscriptionRecord} record
   */
  reached({ state, seen }) {
    return state === LIVE && this.position && !passed(this.position, seen) ? this.position : seen;
  }

  /**
   * @param {SubscriptionRecord} record
   * @param {number} state
   */
  turn(record, state) {
    const { state: before } = record;
    record.seen = this.reached(record);
    if (state !== CATCHING) record.mark = undefined;
    if (state === NEW || state === PAUSED) record.request = undefined; // an answer that is under way is not for it
    record.state = state;
    record.sub.turn(before);
  }

  /**
   * From now on it takes what is unmarked; `caught`: it has caught up with the present.
   * @param {SubscriptionRecord} record
   * @param {boolean} caught
   */
  live(record, caught) {
    record.was = true;
    record.on = this.#exchange.link;
    record.caught = caught;
    record.waits = undefined;
    this.turn(record, LIVE);
  }

  /** @param {SubscriptionRecord} record */
  pause(record) {
    if (record.state === PAUSED || !this.#all.has(record)) return;
    this.turn(record, PAUSED);
    record.on = undefined;
    this.#exchange.soon();
    // What is kept nowhere cannot be had later.
    const channel = record.names.filter((name) => name.startsWith("live."));
    if (channel.length) record.sub.take(gapItem({ channel, reason: "lag" }));
  }

  /** @param {SubscriptionRecord} record */
  resume(record) {
    if (record.state !== PAUSED) return;
    this.turn(record, NEW);
    this.#exchange.soon();
  }

  /**
   * From its start again, as if nothing had been seen.
   * @param {SubscriptionRecord} record
   */
  restart(record) {
    if (!this.#all.has(record)) return;
    this.turn(record, NEW);
    record.was = false;
    record.on = undefined;
    record.seen = record.start.position;
    record.stop();
    this.#exchange.soon();
  }

  /**
   * @param {SubscriptionRecord} record
   * @param {BrokerError} [error]
   */
  end(record, error) {
    if (!this.#all.delete(record)) return;
    record.stop();
    record.error = error;
    record.sub.finish(error);
    this.#exchange.soon();
  }

  /**
   * Take names out of a record; whether there were any.
   * @param {SubscriptionRecord} record
   * @param {string[]} names
   */
  strip(record, names) {
    const { length } = record.names;
    record.names = record.names.filter((_, i) => !names.includes(record.full[i]));
    record.expand(this.private);
    return record.names.length < length;
  }

  /**
   * End these names in a record, and the record if it has no other.
   * @param {SubscriptionRecord} record
   * @param {string[]} names
   * @param {BrokerError} error
   */
  refuse(record, names, error) {
    if (!this.#all.has(record) || !this.strip(record, names)) return;
    if (record.names.length) record.sub.warn(error, names);
    else this.end(record, error);
    this.#exchange.soon();
  }

  // --- what arrives ----------------------------------------------------------------------------------

  /** @param {{channel: string, position?: string, event: any, publisher?: {user: string, id?: string}, catch_up?: number, paced?: boolean}} payload */
  event({ channel, position, event, publisher, catch_up: mark, paced = false }) {
    const tokens = channel.split(".");
    /** @type {EventItem<any>} */
    const item = { type: "event", channel, event, position, publisher, catchUp: mark !== undefined };
    const published = this.unechoed(publisher?.id);
    const echo = published !== undefined && expand(published, this.private) === channel;
    for (const record of this.#all) {
      const unstored = !position && record.on === this.#exchange.link;
      // What is paced moves no position: it may come at any time, and be older than that.
      const asked = paced && record.on === this.#exchange.link && record.state !== PAUSED;
      const due = mark !== undefined ? record.mark === mark : record.state === LIVE || unstored || asked;
      if (!due || !record.covers(tokens) || (paced && !record.windows)) continue;
      if (position && !record.windows) {
        if (passed(position, record.seen)) continue;
        record.seen = position;
      } else if (position && mark !== undefined && !passed(position, record.seen)) record.seen = position;
      if ((!echo || record.peer) && record.passes(event)) record.take(item);
    }
    // Not before all have it: who leaves in the middle of it stands where it stood.
    if (mark === undefined && !paced) this.position = position ?? this.position;
  }

  /** @param {{channel: string | string[], from?: string, to?: string, count?: number, reason: GapItem["reason"], catch_up?: number}} payload */
  gap(payload) {
    const { to, catch_up: mark } = payload;
    const names = many(payload.channel);
    for (const record of this.#all) {
      if (mark !== undefined ? record.mark !== mark : record.on !== this.#exchange.link) continue;
      if (!record.full.some((name) => names.includes(name))) continue;
      const anew = payload.reason === "reset" && record.own; // the stream is another one, or has not come so far
      if (!anew && to && to !== record.seen && passed(to, record.seen)) continue; // it is another's
      if ((mark !== undefined || anew) && to) record.seen = to;
      record.sub.take(gapItem(payload, record.lag));
    }
    if (mark === undefined) this.position = to ?? this.position;
  }

  /** @param {number | undefined} mark the number of the catch-up that is through; without: the connection is */
  caughtUp(mark) {
    for (const record of [...this.#all])
      if (mark === undefined ? record.state === LIVE : record.state === CATCHING && record.mark === mark)
        this.live(record, true);
  }
}
