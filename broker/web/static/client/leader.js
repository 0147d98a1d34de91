// @ts-check
/** The part that plays the broker for the other tabs: to us they are records whose events go there. */

import { failure } from "./errors.js";
import { CATCHING, LIVE } from "./record.js";
import { given } from "./values.js";

/** @import { Acknowledgements } from "./acknowledgements.js" */
/** @import { BrokerError } from "./errors.js" */
/** @import { Changes } from "./changes.js" */
/** @import { Documents } from "./documents.js" */
/** @import { Exchange } from "./exchange.js" */
/** @import { History } from "./history.js" */
/** @import { Outbox } from "./outbox.js" */
/** @import { SubscriptionRecord } from "./record.js" */
/** @import { Records } from "./records.js" */
/** @import { Requests } from "./requests.js" */
/** @import { Hub } from "./tabs.js" */
/** @import { DocumentUser, EventItem, GapItem, Message, Part, Receiver } from "./types.js" */

/** @implements {Part} */
export class Leader {
  #parts;
  #hub;
  #status;
  /** @type {Map<string, Map<string, DocumentUser>>} by tab, what each has open of the documents */
  #open = new Map();

  /**
   * @param {{exchange: Exchange, records: Records, acknowledgements: Acknowledgements, outbox: Outbox, requests: Requests, history: History, documents: Documents, changes: Changes}} parts
   * @param {() => {connectionId?: string, tenant?: string, user?: string}} status
   * @param {Hub} hub
   */
  constructor(parts, status, hub) {
    this.#parts = parts;
    this.#status = status;
    this.#hub = hub;
  }

  opened() {
    this.#hub.announce();
  }

  /** The other tabs come again, from where they stand. */
  lost() {
    this.#hub.announce();
  }

  /**
   * @param {string} peer
   * @param {Message} message
   */
  heed(peer, { type, payload, messageId }) {
    const { exchange, records, acknowledgements, outbox, requests, history, documents, changes } = this.#parts;
    const { channel } = payload ?? {};
    const mine = [...records].filter((record) => record.peer === peer);
    const answer = (/** @type {string} */ kind) => (/** @type {object} */ payload) => this.#answer(peer, kind, payload, messageId);
    const refuse = (/** @type {BrokerError} */ error) => this.#refuse(peer, error, messageId);
    if (type === "tab.hello") {
      if (!exchange.link) return answer("tab.wait")({});
      const { connectionId: connection_id, tenant, user } = this.#status();
      answer("connection.established")({ connection_id, heartbeat_seconds: 10, limits: exchange.pace.limits });
      answer("connection.authenticated")({ tenant, user, private: records.private });
    }
    if (/^tab/.test(type)) {
      for (const record of mine) records.end(record);
      for (const user of this.#open.get(peer)?.values() ?? []) documents.close(user);
      this.#open.delete(peer);
    }
    if (!exchange.link) return;
    if (type === "ping") answer("pong")({ position: records.position });
    if (type === "publish") outbox.publish(channel, payload.event, { id: payload.id }, true).then(answer("published"), refuse);
    if (type === "request") {
      const { method, data, timeout_ms: timeout, id } = payload;
      requests.request(method, data, { timeout, id }, true).then((data) => answer("reply")({ data }), refuse);
    }
    if (type === "state.change") changes.relay(payload).then(answer("state.changed"), refuse);
    if (type === "state.open" || type === "state.close") {
      const open = this.#open.get(peer) ?? new Map();
      this.#open.set(peer, open);
      const before = open.get(channel);
      open.delete(channel);
      if (before) documents.close(before);
      if (type === "state.close") return answer("state.closed")({ channel });
      answer("state.opened")({ channel: [channel], refused: [], recovered: false, position: "-0" });
      open.set(channel, this.#follower(peer, channel));
      documents.open(channel, open.get(channel));
    }
    // The connection can be in a channel once, and tabs are there each by itself.
    if (/^presence/.test(type)) refuse(failure("unavailable", "presence: not over a connection that tabs share"));
    if (type === "history") history.read(payload).then(answer("history"), refuse);
    if (type === "acknowledge") {
      const record = mine.find(({ durable }) => durable === payload.durable);
      if (!record) refuse(failure("not_subscribed", "the subscription is not durable"));
      else acknowledgements.acknowledge(record, payload).then((position) => answer("acknowledged")({ position }), refuse);
    }
    if (/subscribe$/.test(type))
      for (const record of mine) {
        records.strip(record, channel);
        if (!record.names.length) records.end(record);
      }
    if (type === "unsubscribe") answer("unsubscribed")({ channel });
    if (type === "subscribe") {
      const { channel: names, lag, filter, every_ms: every, ...start } = given(payload);
      const key = exchange.next();
      records.add({ names, lag, filter, every, start, peer }, (record) => this.#receiver(peer, record, key, messageId));
    }
  }

  /**
   * @param {string} peer
   * @param {string} type
   * @param {object} payload
   * @param {string} [messageId]
   */
  #answer(peer, type, payload, messageId) {
    this.#hub.post(peer, { type, messageId, payload: { ...payload } });
  }

  /**
   * @param {string} peer
   * @param {BrokerError} error
   * @param {string} [messageId]
   */
  #refuse(peer, { code, message, retryable, retryAfter, unknownOutcome, status, paths, conflict }, messageId) {
    const payload = { code, message, retryable, retry_after_ms: retryAfter, unknown: unknownOutcome, status, paths, conflict };
    this.#answer(peer, "error", payload, messageId);
  }

  /**
   * Who hands documents to another tab, each as a whole.
   * @param {string} peer
   * @param {string} name
   * @returns {DocumentUser}
   */
  #follower(peer, name) {
    const say = (/** @type {string} */ type, /** @type {object} */ payload) => this.#hub.post(peer, { type, payload });
    return {
      name,
      wants: () => true,
      heard: (channel, row) => say("state", { channel, position: row.revision, ...row }),
      ready: (position) => say("state.ready", { channel: name, position }),
      failed: ({ code }) => {
        this.#open.get(peer)?.delete(name);
        say("state.closed", { channel: name, code });
      },
    };
  }

  /**
   * Who hands to another tab what a record brings.
   * @param {string} peer
   * @param {SubscriptionRecord} record
   * @param {number} key the number of its catch-up
   * @param {string} [messageId]
   * @returns {Receiver}
   */
  #receiver(peer, record, key, messageId) {
    const { records } = this.#parts;
    const { last } = this.#hub;
    const asked = [...record.names];
    let announced = false;
    const say = (/** @type {boolean} */ live) => {
      const catch_up = live && !announced ? undefined : key;
      const type = live && announced ? "subscription.live" : "subscribed";
      this.#answer(peer, type, { channel: record.full, refused: [], position: records.position, live, catch_up }, messageId);
      announced = true;
    };
    const warn = (/** @type {BrokerError} */ { code }, /** @type {string[]} */ names) =>
      this.#hub.post(peer, { type: "unsubscribed", payload: { channel: names, code } });
    return {
      take: (/** @type {EventItem | GapItem} */ item) => {
        // What is unmarked is sent once to each tab, however many of its records it is for.
        const live = record.state === LIVE;
        if (live && last.get(peer) === item) return;
        if (live) last.set(peer, item);
        // What comes at a pace may be older than where that tab stands.
        const paced = (item.type === "event" && !!record.windows) || undefined;
        this.#answer(peer, item.type, { ...item, catch_up: live ? undefined : key, paced });
      },
      turn: (before) => {
        if (record.state === LIVE) before === LIVE || say(true);
        else if (before === LIVE || (record.state === CATCHING && !announced)) say(false);
      },
      warn,
      finish: (error) => {
        if (error && announced) warn(error, asked);
        else if (error) this.#refuse(peer, error, messageId);
      },
    };
  }
}
