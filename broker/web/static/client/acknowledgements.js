// @ts-check
/** The part that tells the broker up to where a durable subscription has been dealt with. */

import { CLOSED, failure, settleAll } from "./errors.js";
import { TRIES, inVain } from "./exchange.js";
import { BACKOFF_MS } from "./pace.js";
import { now } from "./platform.js";
import { passed } from "./positions.js";
import { LIVE } from "./record.js";

/** @import { BrokerError } from "./errors.js" */
/** @import { Exchange } from "./exchange.js" */
/** @import { SubscriptionRecord } from "./record.js" */
/** @import { Records } from "./records.js" */
/** @import { Part, Settler } from "./types.js" */
/** @typedef {Settler<string> & {position: string, doubts: number}} Acknowledgement */
/** @typedef {{waiting: Acknowledgement[], busy: boolean, after: number}} Queue */

/** @implements {Part} */
export class Acknowledgements {
  #exchange;
  #records;
  /** @type {Map<SubscriptionRecord, Queue>} */
  #queues = new Map();

  /**
   * @param {Exchange} exchange
   * @param {Records} records
   */
  constructor(exchange, records) {
    this.#exchange = exchange;
    this.#records = records;
  }

  /**
   * @param {SubscriptionRecord} record
   * @param {any} given a position, or what has one
   * @returns {Promise<string>} up to where it is stored
   */
  async acknowledge(record, given) {
    if (!record.durable) throw failure("not_subscribed", "the subscription is not durable");
    const queue = this.#queues.get(record) ?? { waiting: [], busy: false, after: 0 };
    this.#queues.set(record, queue);
    return new Promise((resolve, reject) => {
      queue.waiting.push({ position: given.position ?? given, resolve, reject, doubts: 0 });
      this.#send(record, queue);
    });
  }

  sync() {
    for (const [record, queue] of this.#queues) {
      if (this.#records.has(record)) this.#send(record, queue);
      else this.#settle(record, queue);
      if (!queue.waiting.length && !queue.busy) this.#queues.delete(record);
    }
  }

  /**
   * The subscription has ended.
   * @param {SubscriptionRecord} record
   * @param {Queue} queue
   */
  #settle(record, queue) {
    settleAll(queue.waiting.splice(0), record.error ?? failure("closed", CLOSED));
  }

  /**
   * Cumulative: the newest one stands for all that wait, and one at a time is under way.
   * @param {SubscriptionRecord} record
   * @param {Queue} queue
   */
  #send(record, queue) {
    // While it catches up, the broker may not have sent that far on this connection.
    if (!queue.waiting.length || record.state !== LIVE || queue.busy) return;
    const wait = queue.after - now();
    if (wait > 0) return this.#exchange.again(wait);
    const doubts = Math.max(...queue.waiting.map((each) => each.doubts));
    if (!this.#exchange.may(undefined, doubts)) return;
    const sent = queue.waiting.splice(0);
    const { position } = sent.reduce((newest, each) => (passed(each.position, newest.position) ? newest : each));
    /** @type {(error: BrokerError | undefined, retry: boolean, position?: string) => void} */
    const settled = (error, retry, position) => {
      queue.busy = false;
      if (retry && this.#records.has(record)) queue.waiting.unshift(...sent.filter((each) => each.doubts < TRIES));
      else settleAll(sent, error, position);
      this.#send(record, queue);
    };
    queue.busy = true;
    const request = {
      done: (/** @type {{position: string}} */ payload) => settled(undefined, false, payload.position),
      refused: (/** @type {BrokerError} */ error) => {
        if (error.retryable) queue.after = now() + (error.retryAfter ?? BACKOFF_MS);
        settled(error, error.retryable);
      },
      lost: () => settled(failure("closed", CLOSED), true),
      doubted: (/** @type {"timeout" | "bad_message"} */ code) => {
        for (const each of sent) if (++each.doubts === TRIES) each.reject(inVain(code));
      },
    };
    this.#exchange.send("acknowledge", { durable: record.durable, position }, request, undefined, doubts);
  }
}
