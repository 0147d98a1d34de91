// @ts-check
/** What goes into which `subscribe`: a draft, of which nothing is done yet. */

import { either } from "./filters.js";
import { PAUSED } from "./record.js";
import { bytes } from "./values.js";
import { finest } from "./windows.js";

/** @import { SubscriptionRecord } from "./record.js" */
/** @import { Filter } from "./filters.js" */
/** @import { Limits, Start } from "./types.js" */

/**
 * What the broker has of a name, or is being asked for; the requests themselves tell which.
 * @typedef {object} Held
 * @property {boolean} [held]
 * @property {object} [asked]
 * @property {object} [leaving]
 * @property {boolean} [alone] a list that it was in was refused
 * @property {boolean} [let_go] it is to be unsubscribed from, whoever has it
 * @property {number} [refused] so often
 * @property {string} [filter] the text of the filter that it was asked for with
 * @property {number} [every] the pace, likewise
 */

/**
 * Records that are asked for together, with those (`anew`) that begin anew because of it.
 * @typedef {object} Batch
 * @property {SubscriptionRecord[]} records
 * @property {SubscriptionRecord[]} anew
 * @property {Start} start
 * @property {string | undefined} lag
 * @property {Filter} [filter] what of them is asked for
 * @property {number} [every] at which pace
 * @property {number} doubts
 */

/** @typedef {Batch & {key: string, alone: boolean, channel: string[]}} Draft */

export class Plan {
  /** @type {Draft[]} */
  messages = [];
  /** @type {Set<SubscriptionRecord>} in one of them, or waiting for one that is */
  taken = new Set();
  /** @type {[SubscriptionRecord, SubscriptionRecord][]} records that have all that they want, with one that has it */
  joined = [];
  /** @type {SubscriptionRecord[]} records whose names are let go of first */
  freed = [];
  /** @type {Map<string, SubscriptionRecord[]>} */
  #users = new Map();
  #names;
  #used;
  #most;
  #filters;
  #paced;
  /** @type {Set<string>} names that are further subscriptions of the connection */
  #new = new Set();

  /**
   * @param {Iterable<SubscriptionRecord>} records
   * @param {Map<string, Held>} names what the broker has
   * @param {Set<string>} used of which somebody has it
   * @param {Limits} limits
   */
  constructor(records, names, used, { subscriptions_per_connection: most, filters_per_connection: filters, paced_channels: paced }) {
    this.#filters = filters;
    this.#paced = paced;
    this.#names = names;
    this.#used = used;
    this.#most = most;
    for (const record of records)
      if (record.state !== PAUSED)
        for (const name of record.full) this.#users.set(name, [...(this.#users.get(name) ?? []), record]);
  }

  /**
   * Who shares a name with a record, or with one who does.
   * @param {SubscriptionRecord} record
   */
  kin(record) {
    const found = new Set([record]);
    for (const each of found) for (const name of each.full) for (const other of this.#users.get(name) ?? []) found.add(other);
    found.delete(record);
    return [...found];
  }

  get room() {
    return Math.max(0, this.#most - this.#names.size - this.#new.size);
  }

  /**
   * The names of records that the broker has not got.
   * @param {SubscriptionRecord[]} records
   */
  fresh(records) {
    return [...new Set(records.flatMap(({ full }) => full))].filter((name) => !this.#names.has(name) && !this.#new.has(name));
  }

  /**
   * The names that the broker has, of what is stored.
   * @param {SubscriptionRecord[]} records
   */
  held(records) {
    return records.flatMap(({ full }) => full.filter((name) => this.#names.has(name) && !name.startsWith("live.")));
  }

  /**
   * Whether it has one that nobody has any more.
   * @param {SubscriptionRecord[]} records
   */
  stale(records) {
    return records.some(({ full }) => full.some((name) => this.#names.has(name) && !this.#used.has(name)));
  }

  /**
   * The filter with which records are asked for: what passes one of them. None is one more than a connection may have.
   * @param {SubscriptionRecord[]} records
   */
  filter(records) {
    const filter = either(records.map((each) => each.filter));
    const filtered = [...this.#names].filter(([, held]) => held.filter).map(([name]) => name);
    for (const message of this.messages) if (message.filter) filtered.push(...message.channel);
    return new Set([...filtered, ...records.flatMap(({ full }) => full)]).size <= this.#filters ? filter : undefined;
  }

  /**
   * The pace with which records are asked for, once their filter is known. A broker may have none.
   * @param {SubscriptionRecord[]} records
   * @param {Filter | undefined} filter
   */
  every(records, filter) {
    return this.#paced && records.every((each) => each.filter?.text === filter?.text) ? finest(records) : undefined;
  }

  /**
   * Whether all that a record wants comes by its names as they were asked for.
   * @param {SubscriptionRecord} record
   */
  comes({ full, filter, every = 0 }) {
    return full.every((name) => {
      const held = this.#names.get(name) ?? {};
      if (held.every !== undefined) return held.every <= every && held.filter === filter?.text;
      return held.filter === undefined || held.filter === filter?.text;
    });
  }

  /**
   * Add records to a message of their kind, or to one of their own; false if they do not fit into any.
   * @param {Batch} batch
   * @param {boolean} alone
   * @param {number} most bytes of a message
   */
  add({ records, start, lag, filter, every, anew, doubts }, alone, most) {
    const names = [...new Set(records.flatMap(({ full }) => full))];
    const key = JSON.stringify([start, lag, filter?.text, every]);
    const room = most - bytes({ ...start, filter: filter?.document }) - 120;
    if (bytes(names) > room) return false;
    let message = this.messages.findLast((each) => !alone && !each.alone && each.key === key);
    if (!message || bytes([...message.channel, ...names]) > room) {
      message = { key, alone, records: [], anew: [], channel: [], start, lag, filter, every, doubts };
      this.messages.push(message);
    }
    for (const name of this.fresh(records)) this.#new.add(name);
    message.channel = [...new Set([...message.channel, ...names])];
    message.records.push(...records);
    message.anew.push(...anew);
    for (const each of [...records, ...anew]) this.taken.add(each);
    return true;
  }
}
