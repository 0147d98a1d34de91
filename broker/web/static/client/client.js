// @ts-check
/** The parts of the client, put together; ../client.d.ts says what everything means. */

import { Acknowledgements } from "./acknowledgements.js";
import { Changes } from "./changes.js";
import { Collection, Document } from "./collection.js";
import { Connection } from "./connection.js";
import { Documents } from "./documents.js";
import { BrokerError } from "./errors.js";
import { Exchange } from "./exchange.js";
import { History } from "./history.js";
import { Keeping } from "./keeping.js";
import { Leader } from "./leader.js";
import { Outbox } from "./outbox.js";
import { emit } from "./platform.js";
import { Presence } from "./presence.js";
import { Records } from "./records.js";
import { Renewal } from "./renewal.js";
import { Requests } from "./requests.js";
import { Room } from "./rooms.js";
import { Subscribing } from "./subscribing.js";
import { Subscription } from "./subscription.js";
import { Hub } from "./tabs.js";
import { changeTogether } from "./together.js";
import { Tokens } from "./tokens.js";
import { given, json, many } from "./values.js";

/** @import { ClientOptions, HistoryOptions, Status, SubscribeOptions } from "../client.js" */
/** @import { EventItem } from "./types.js" */

// Bundlers take `new URL("…", import.meta.url)` for a file that they have to bring along.
const MODULE = import.meta.url;
/** Where the client itself came from: the broker, unless it was bundled. */
const HOME = new URL("..", MODULE);

/** One connection to the broker, made anew whenever it is lost. */
export class Client extends EventTarget {
  /** @type {Status} */
  #status = { state: "connecting" };
  #exchange = new Exchange();
  #records = new Records(this.#exchange);
  #acknowledgements = new Acknowledgements(this.#exchange, this.#records);
  #outbox;
  #requests;
  #history;
  #documents;
  #presence;
  #connection;

  /** @param {ClientOptions} options */
  constructor({ url = HOME, token, tokenTimeout, tenant, transports, queue = 100, tabs, drafts } = /** @type {any} */ ({})) {
    super();
    const tokens = new Tokens(token, tokenTimeout);
    const exchange = this.#exchange;
    const records = this.#records;
    const acknowledgements = this.#acknowledgements;
    const shared = !!(tabs && globalThis.navigator?.locks);
    const outbox = (this.#outbox = new Outbox(exchange, queue, shared));
    records.unechoed = (id) => outbox.unechoed(id);
    const requests = (this.#requests = new Requests(exchange, queue));
    const history = (this.#history = new History(exchange, queue));
    const keeping = drafts && globalThis.indexedDB && globalThis.navigator?.locks ? new Keeping(drafts) : undefined;
    const changes = new Changes(exchange, keeping);
    const documents = (this.#documents = new Documents(exchange, changes));
    const presence = (this.#presence = new Presence(exchange));
    const renewal = new Renewal(exchange, tokens, (error) => emit(this, "error", error));
    /** @type {import("./types.js").Part} what concerns the application alone */
    const news = {
      hears: {
        source: ({ state }) => this.#say({ source: state }),
        error: (payload, messageId) => {
          if (!messageId || renewal.sent(messageId)) emit(this, "error", new BrokerError(payload));
        },
      },
    };
    exchange.join(new Subscribing(exchange, records), acknowledgements, outbox, requests, history, documents, changes, presence, renewal, news);
    const setting = {
      url: String(url).replace(/^ws/, "http").replace(/\/$/, ""),
      transports: transports ?? ["websocket", "sse", "poll"],
      tenant,
    };
    /** @type {Hub | undefined} */
    let hub;
    if (shared) {
      const parts = { exchange, records, acknowledgements, outbox, requests, history, documents, changes };
      const name = `${setting.url} ${tenant} ${tabs}`;
      hub = new Hub(name, (peer, message) => leader.heed(peer, message), () => this.#connection.anew());
      const leader = new Leader(parts, () => this.#status, hub);
      exchange.join(leader);
    }
    this.#connection = new Connection({ ...setting, hub }, { exchange, records, tokens }, this.#say);
    this.connect();
  }

  get status() {
    return this.#status;
  }

  get position() {
    return this.#records.position;
  }

  /** How many publishes wait for their answer. */
  get queued() {
    return this.#outbox.size;
  }

  connect() {
    this.#connection.connect();
  }

  /** Leave, and keep subscriptions, their positions and queued publishes for `connect`. */
  disconnect() {
    this.#connection.disconnect();
  }

  /** Leave for good: subscriptions end, publishes and requests without an answer are rejected. */
  close() {
    this.#presence.closeAll();
    this.#connection.close();
    for (const record of [...this.#records]) this.#records.end(record);
    this.#outbox.close();
    this.#requests.close();
    this.#history.close();
    this.#documents.closeAll();
  }

  /**
   * Ask for the events of channels and patterns, now and after each cut.
   * @param {string | string[]} channels
   * @param {SubscribeOptions | ((item: EventItem<any>) => void)} options where to start, what may be left out; or `onEvent` at once
   * @param {(item: EventItem<any>) => void} [onEvent]
   */
  subscribe(channels, options = {}, onEvent) {
    if (typeof options === "function") [options, onEvent] = [{}, options];
    const { position, since, last, snapshot, durable, lag, filter, everyMs: every, buffer = 1000 } = options;
    const start = given({ position, since, last, snapshot: snapshot || undefined });
    if (Object.keys(start).length > 1) throw new TypeError("at most one of position, since, last and snapshot");
    const conditions = filter === undefined ? undefined : json(filter, "filter");
    const asked = { names: many(channels), start: given({ ...start, durable }), lag, filter: conditions, every, buffer };
    /** @type {Subscription | undefined} */
    let made;
    this.#records.add(asked, (record) => (made = this.#subscription(record)));
    const sub = /** @type {Subscription} */ (/** @type {unknown} */ (made));
    if (onEvent) {
      const hear = onEvent;
      sub.addEventListener("event", (event) => hear(/** @type {CustomEvent} */ (event).detail));
    }
    return sub;
  }

  /**
   * Publish as soon as there is a connection; resolves with `{id, position, duplicate}`.
   * @param {string} channel
   * @param {any} event any JSON
   * @param {{id?: string, timeout?: number, echo?: boolean}} options `id` makes a retry harmless, `timeout` is in ms;
   * without `echo` it is not received here
   */
  async publish(channel, event, options = {}) {
    return this.#outbox.publish(channel, json(event), options);
  }

  /**
   * Ask a service, as soon as there is a connection, and once at most; resolves with its answer.
   * @param {string} method
   * @param {any} data any JSON
   * @param {{timeout?: number, signal?: AbortSignal, id?: string}} options `timeout` is in ms
   * @returns {Promise<any>}
   */
  async request(method, data = null, options = {}) {
    return this.#requests.request(method, json(data, "data"), options);
  }

  /**
   * Read stored events back, without subscribing; resolves with a page, which has `older` and `newer`.
   * @param {string | string[]} channels
   * @param {HistoryOptions} options
   */
  async history(channels, options = {}) {
    return this.#history.page(channels, options);
  }

  /**
   * A document that others change too: what is stored, with one's own changes over it.
   * @param {string} channel
   */
  document(channel) {
    return new Document(this.#documents, channel);
  }

  /**
   * The documents of a pattern, as `document` has each.
   * @param {string} pattern
   */
  collection(pattern) {
    return new Collection(this.#documents, pattern);
  }

  /**
   * Change several documents, all or none: each as `document.change` does, without having them open. Resolves with the
   * revisions that have it, by channel.
   * @param {{channel: string, patch?: any, add?: Record<string, number>}[]} changes
   */
  async change(changes) {
    return changeTogether(this.#documents, changes);
  }

  /**
   * Be in a channel, and see who else is; with `enter: false` only see it.
   * @param {string} channel
   * @param {{state?: any, enter?: boolean}} options
   */
  presence(channel, options = {}) {
    return new Room(this.#presence, channel, options);
  }

  /** @param {import("./record.js").SubscriptionRecord} record */
  #subscription(record) {
    const records = this.#records;
    return new Subscription(record, {
      reached: () => records.reached(record),
      end: () => records.end(record),
      pause: () => records.pause(record),
      resume: () => records.resume(record),
      restart: () => records.restart(record),
      acknowledge: (position) => this.#acknowledgements.acknowledge(record, position),
    });
  }

  /** @param {Partial<Status>} change */
  #say = (change) => {
    this.#status = Object.freeze({ ...this.#status, ...change });
    emit(this, "status", this.#status);
  };
}
