// @ts-check
/** The part that gives the broker another token ahead of the expiry. */

import { BACKOFF_MS, backoff } from "./pace.js";
import { now } from "./platform.js";

/** @import { Exchange } from "./exchange.js" */
/** @import { Tokens } from "./tokens.js" */
/** @import { Part } from "./types.js" */

const LEAST_MS = 5_000;
const BRIEF_MS = 120_000; // a token that lives no longer may be said to expire from its beginning on
const TIMER_MOST_MS = 2e9;

/** @implements {Part} */
export class Renewal {
  #exchange;
  #tokens;
  #failed;
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  #timer;
  /** @type {string | undefined} the message that renews the token */
  #message;

  /**
   * @param {Exchange} exchange
   * @param {Tokens} tokens
   * @param {(error: unknown) => void} failed
   */
  constructor(exchange, tokens, failed) {
    this.#exchange = exchange;
    this.#tokens = tokens;
    this.#failed = failed;
  }

  /** @type {Part["hears"]} */
  hears = {
    "connection.authenticated": ({ expires_at }) => {
      if (!expires_at) return; // another tab sees to it
      // The broker says when; this is for the case that the word does not come.
      clearTimeout(this.#timer);
      if (this.#tokens.life > 0) this.#in(this.#tokens.due - now());
    },
    "connection.expiring": () => this.#in(0),
    error: ({ retryable, retry_after_ms = BACKOFF_MS }, messageId) => {
      if (messageId && messageId === this.#message && retryable) this.#timer = setTimeout(() => this.#renew(), retry_after_ms);
    },
  };

  lost() {
    clearTimeout(this.#timer);
  }

  /**
   * Whether a message is the one that renews the token.
   * @param {string} messageId
   */
  sent(messageId) {
    return messageId === this.#message;
  }

  /**
   * In so many ms, and not again and again where tokens are short-lived, or come out of a cache.
   * @param {number} ms
   */
  #in(ms) {
    clearTimeout(this.#timer);
    const { fixed, gotAt, life } = this.#tokens;
    if (fixed) return;
    const least = gotAt + (life < BRIEF_MS ? life / 2 : LEAST_MS) - now();
    this.#timer = setTimeout(() => this.#renew(), Math.min(Math.max(ms, least, 0), TIMER_MOST_MS));
  }

  async #renew(failures = 0) {
    const { link } = this.#exchange;
    try {
      const token = await this.#tokens.next();
      if (!link || link !== this.#exchange.link) return;
      this.#message = `t${this.#exchange.next()}`;
      link.send({ type: "authenticate", payload: { token }, messageId: this.#message });
    } catch (error) {
      if (link !== this.#exchange.link) return;
      const wait = Math.random() * backoff(failures);
      this.#timer = setTimeout(() => this.#renew(failures + 1), wait);
      this.#failed(error);
    }
  }
}
