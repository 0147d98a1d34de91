// @ts-check
/** The part that subscribes and unsubscribes: what the records want, and what the broker has. */

import { BrokerError, failure } from "./errors.js";
import { TRIES, inVain } from "./exchange.js";
import { misnamed, mistaken } from "./names.js";
import { BACKOFF_MS } from "./pace.js";
import { Plan } from "./plan.js";
import { now } from "./platform.js";
import { comparable, parts, passed } from "./positions.js";
import { ASKED, CATCHING, LIVE, NEW } from "./record.js";
import { bytes, given, many } from "./values.js";

/** @import { Exchange } from "./exchange.js" */
/** @import { Draft, Held } from "./plan.js" */
/** @import { SubscriptionRecord } from "./record.js" */
/** @import { Records } from "./records.js" */
/** @import { Part, Reply, Start, Who } from "./types.js" */

const ROOM_MS = 5_000; // for a place, where the connection has no more

/** @implements {Part} */
export class Subscribing {
  #exchange;
  #records;
  /** @type {Map<string, Held>} */
  #names = new Map();

  /**
   * @param {Exchange} exchange
   * @param {Records} records
   */
  constructor(exchange, records) {
    this.#exchange = exchange;
    this.#records = records;
  }

  /** @type {Part["hears"]} */
  hears = {
    event: (payload) => this.#records.event(payload),
    gap: (payload) => this.#records.gap(payload),
    subscribed: (payload) => this.#stands(payload),
    pong: (payload) => this.#stands(payload),
    "connection.draining": (payload) => this.#stands(payload),
    "subscription.live": (payload) => {
      this.#stands(payload);
      this.#records.caughtUp(payload.catch_up);
      this.#exchange.soon();
    },
    unsubscribed: (payload, messageId) => {
      if (!messageId) this.#refuse(many(payload.channel), payload);
    },
  };

  /**
   * These say where the connection stands, whatever else they are about.
   * @param {{position?: string}} payload
   */
  #stands({ position }) {
    this.#records.position = position ?? this.#records.position;
  }

  /** @param {Who} who */
  opened(who) {
    this.#records.name(who.private);
  }

  lost() {
    this.#names.clear();
    this.#records.lost();
  }

  sync() {
    for (const record of [...this.#records]) this.#examine(record);
    if (this.#exchange.link) this.#leave();
    if (this.#exchange.link) this.#askAll();
  }

  /**
   * What the broker would refuse is not asked for.
   * @param {SubscriptionRecord} record
   */
  #examine(record) {
    if (record.examined) return;
    record.examined = true;
    const wrong = mistaken(record, this.#exchange.pace.limits);
    if (wrong) return this.#records.end(record, failure("bad_message", wrong));
    for (const [name, full] of record.names.map((name, i) => [name, record.full[i]])) {
      const fault = misnamed(name, true);
      if (fault) this.#records.refuse(record, [full], failure("invalid_channel", `${JSON.stringify(name)}: ${fault}`));
    }
  }

  // --- what the broker has ---------------------------------------------------------------------------

  /** Who has what the broker has. Who has yet to ask has not: what is under way for another is not what it wants. */
  get #used() {
    const users = [...this.#records].filter(({ on, state }) => on === this.#exchange.link || state === ASKED);
    return new Set(users.flatMap(({ full }) => full));
  }

  /**
   * Note what the broker has of a name.
   * @param {string} name
   * @param {Held} change
   */
  #note(name, change) {
    const noted = { ...this.#names.get(name), ...change };
    if (noted.held || noted.asked || noted.leaving) this.#names.set(name, noted);
    else this.#names.delete(name);
  }

  /** Unsubscribe from what nobody has any more. The broker refuses a list with a name that it does not know. */
  #leave() {
    const used = this.#used;
    const idle = (/** @type {[string, Held]} */ [name, { held, asked, leaving, let_go }]) =>
      held && !asked && !leaving && (let_go || !used.has(name));
    const alone = (/** @type {string} */ name) => this.#names.get(name)?.alone;
    const names = [...this.#names].filter(idle).map(([name]) => name);
    while (names.length && this.#exchange.may()) {
      const channel = names.splice(0, 1);
      const fits = () => bytes([...channel, names[0]]) + 100 <= this.#exchange.pace.most;
      while (!alone(channel[0]) && names.length && !alone(names[0]) && fits()) channel.push(...names.splice(0, 1));
      /** @type {Reply} */
      const request = {
        done: () => this.#gone(channel, request),
        refused: (error) => this.#stayed(channel, request, error),
        lost: () => {},
        doubted: () => {},
      };
      for (const name of channel) this.#note(name, { leaving: request });
      this.#exchange.send("unsubscribe", { channel }, request);
    }
  }

  /**
   * @param {string[]} names
   * @param {Reply} request
   */
  #gone(names, request) {
    for (const name of names)
      if (this.#names.get(name)?.leaving === request) this.#note(name, { held: false, leaving: undefined, let_go: false });
  }

  /**
   * An `unsubscribe` was refused: for now, or since one of the names is no subscription any more.
   * @param {string[]} names
   * @param {Reply} request
   * @param {BrokerError} error
   */
  #stayed(names, request, { code, retryable, retryAfter = BACKOFF_MS }) {
    const unknown = code === "not_subscribed";
    if (unknown && names.length === 1) return this.#gone(names, request);
    for (const name of names) {
      const { leaving, refused = 0 } = this.#names.get(name) ?? {};
      if (leaving !== request) continue;
      this.#note(name, { leaving: undefined, alone: unknown, refused: refused + Number(!retryable) });
      if (refused + 1 === TRIES && !retryable) this.#exchange.cut({ code: 4009, reason: `${name} cannot be unsubscribed from` });
    }
    if (!unknown) this.#exchange.pace.hold(retryAfter);
  }

  // --- what is asked for -----------------------------------------------------------------------------

  /**
   * Ask for what is not had yet, with all that must come along. The broker has one subscription of each name, and
   * a start begins it anew for all who share it. So who shares a name is asked for together, from the oldest
   * position; unless the new one has a start of its own: then the others wait until it is live. What is asked for
   * alike goes into one message, unless a start means the whole list of it.
   */
  #askAll() {
    const at = now();
    const plan = new Plan(this.#records, this.#names, this.#used, this.#exchange.pace.limits);
    for (const record of [...this.#records].sort((a, b) => Number(b.was) - Number(a.was))) {
      if (record.state !== NEW || plan.taken.has(record)) continue;
      if (record.after > at) this.#exchange.again(record.after - at);
      else this.#plan(plan, record);
    }
    for (const message of plan.messages) {
      if (!this.#exchange.link || !this.#exchange.may(undefined, message.doubts)) break;
      if (!this.#ask(message)) return;
    }
    for (const record of plan.freed) if (record.state === LIVE) this.#records.turn(record, NEW); // it knows where it stands
    for (const [record, same] of plan.joined)
      if (record.state === NEW && same.state === LIVE && this.#records.has(record)) {
        record.seen = same.seen; // which may be above the position of the connection
        this.#records.live(record, true);
      }
  }

  /**
   * Send a `subscribe`; whether there still is a connection.
   * @param {Draft} message
   */
  #ask({ records, anew, start, lag, filter, every, channel, doubts }) {
    for (const each of anew) this.#records.turn(each, NEW);
    for (const each of records) this.#records.turn(each, ASKED);
    if (!this.#exchange.link) return false; // whoever heard of it has left
    /** @type {Reply} */
    const request = {
      done: (payload) => this.#subscribed(records, channel, request, payload),
      refused: (error) => this.#unsubscribed(records, channel, request, error),
      lost: () => {},
      doubted: (code) => {
        for (const record of records) if (++record.doubts === TRIES) this.#records.end(record, inVain(code));
      },
    };
    for (const each of records) Object.assign(each, { request, own: each.seen === start.position });
    for (const name of channel) this.#note(name, { asked: request, filter: filter?.text, every });
    this.#exchange.send("subscribe", { channel, ...start, lag, filter: filter?.document, every_ms: every }, request, undefined, doubts);
    return true;
  }

  /**
   * Find out with whom a record is asked for, and from where.
   * @param {Plan} plan
   * @param {SubscriptionRecord} record
   */
  #plan(plan, record) {
    const kin = plan.kin(record);
    const underWay = (/** @type {SubscriptionRecord} */ { state }) => state > NEW && state < LIVE;
    if (kin.some((each) => plan.taken.has(each) || underWay(each))) return; // its turn comes when they are live
    if (!record.seen && Object.keys(record.start).length) {
      // A connection may have few snapshots under way: one after the other.
      const shoots = (/** @type {SubscriptionRecord} */ each) => each.start.snapshot && !each.seen && underWay(each);
      const beside = (/** @type {Draft} */ { start, alone }) => start.snapshot && (alone || record.alone);
      if (record.start.snapshot && ([...this.#records].some(shoots) || plan.messages.some(beside))) return;
      return this.#place(plan, [record], record.start, kin.filter(({ state }) => state === LIVE));
    }
    const same = kin.find((each) => each.state === LIVE && record.full.every((name) => each.full.includes(name)));
    if (!record.seen && same && plan.comes(record)) return void plan.joined.push([record, same]);
    const stands = (/** @type {SubscriptionRecord} */ each) => each.seen || each.state === LIVE;
    const together = [record, ...kin.filter((each) => stands(each) || !Object.keys(each.start).length)];
    if (together.some(stands) && this.#records.position)
      for (const each of together) each.seen ??= this.#records.reached(each) ?? this.#records.position;
    const durable = together.find((each) => each.durable)?.durable;
    this.#place(plan, together, given({ position: this.#oldest(together), durable }), []);
  }

  /**
   * From where records are asked for together.
   * @param {SubscriptionRecord[]} records
   */
  #oldest(records) {
    const { position = "" } = this.#records;
    /** @type {string | undefined} */
    let oldest;
    for (const record of records) {
      const seen = this.#records.reached(record);
      if (!oldest || !seen) oldest ??= seen;
      else if (passed(seen, oldest)) oldest = seen;
      // One is of a stream that is no more: who asks from there gets all that there is.
      else if (!passed(oldest, seen)) oldest = `${parts(comparable(seen, position) ? oldest : seen)[0]}-0`;
    }
    return oldest;
  }

  /**
   * Put records into a message, if there is room for them at the broker; they wait for it for a while.
   * @param {Plan} plan
   * @param {SubscriptionRecord[]} records
   * @param {Start} start
   * @param {SubscriptionRecord[]} anew
   */
  #place(plan, records, start, anew) {
    const [record] = records;
    const { lag } = record;
    const { pace } = this.#exchange;
    const most = pace.limits.subscriptions_per_connection;
    const over = [...new Set(record.full)].slice(most); // of a list that will never fit
    const short = plan.fresh(records).length > plan.room;
    if (over.length || (short && record.waits !== undefined && record.waits + ROOM_MS <= now())) {
      const own = plan.fresh([record]);
      const names = over.length ? over : own.slice(Math.min(plan.room, own.length - 1));
      const full = failure("limit_subscriptions", `${names[0]}: the connection has its ${most} subscriptions`);
      return this.#records.refuse(record, names, full);
    }
    if (short) {
      record.waits ??= now();
      return this.#exchange.again(record.waits + ROOM_MS - now());
    }
    if (start.durable) {
      // Its name is let go of before it is asked for again: one subscribe of a connection has it.
      const held = plan.held(records);
      if (held.some((name) => !this.#names.get(name)?.let_go)) this.#exchange.soon();
      for (const name of held) this.#note(name, { let_go: true });
      if (held.length) return void plan.freed.push(...records, ...anew);
    } else if (!Object.keys(start).length && plan.stale(records)) return; // it would take over what stands there
    const doubts = Math.max(...records.map((each) => each.doubts));
    const alone = !!(doubts || record.alone || start.last || start.durable);
    // What is not stored goes on for those who begin anew.
    const unstored = records.some(({ full }) => full.some((name) => name.startsWith("live.")));
    const wanted = unstored ? [...records, ...anew] : records;
    const filter = plan.filter(wanted);
    if (!plan.add({ records, start, lag, filter, every: plan.every(wanted, filter), anew, doubts }, alone, pace.most))
      this.#records.end(record, pace.tooLarge(bytes(record.full)));
  }

  // --- what is answered ------------------------------------------------------------------------------

  /**
   * @param {SubscriptionRecord[]} records
   * @param {string[]} names
   * @param {Reply} request
   * @param {{refused: {channel: string, code: string, message: string}[], live: boolean, catch_up?: number}} payload
   */
  #subscribed(records, names, request, { refused, live, catch_up: mark }) {
    const not = new Set(refused.map(({ channel }) => channel));
    for (const name of names) {
      if (!not.has(name)) this.#note(name, { held: true });
      if (this.#names.get(name)?.asked === request) this.#note(name, { asked: undefined });
    }
    for (const record of records) {
      if (record.request !== request) continue; // it wants something else by now
      record.doubts = 0;
      record.alone = false;
      record.on = this.#exchange.link; // what is not stored comes from now on, wherever the rest stands
      if (mark === undefined) this.#records.live(record, live);
      else {
        this.#records.turn(record, CATCHING);
        record.mark = mark;
      }
    }
    for (const each of refused) this.#refuse([each.channel], each);
  }

  /**
   * A `subscribe` was refused as a whole.
   * @param {SubscriptionRecord[]} records
   * @param {string[]} names
   * @param {Reply} request
   * @param {BrokerError} error
   */
  #unsubscribed(records, names, request, error) {
    for (const name of names) if (this.#names.get(name)?.asked === request) this.#note(name, { asked: undefined });
    const mine = records.filter((record) => record.request === request);
    // One of them may have spoilt it for the others; these are refused name by name, so all were.
    const each = /^(forbidden|invalid_channel|limit_subscriptions|limit_filters)$/.test(error.code);
    const after = now() + (error.retryAfter ?? 0) + Math.random() * BACKOFF_MS;
    for (const record of mine) {
      if (!error.retryable && (each || mine.length === 1)) {
        this.#records.end(record, error);
        continue;
      }
      record.alone = !error.retryable;
      if (error.retryable) record.after = after;
      this.#records.turn(record, NEW);
    }
  }

  /**
   * The broker has these names no more: they end in all records.
   * @param {string[]} names
   * @param {{code: string, message: string}} error
   */
  #refuse(names, error) {
    for (const name of names) this.#note(name, { held: false });
    for (const record of [...this.#records]) this.#records.refuse(record, names, new BrokerError(error));
  }
}
