// @ts-check
/** The token, and whoever gives it. */

import { failure } from "./errors.js";
import { now } from "./platform.js";

/** @import { Who } from "./types.js" */

const TOKEN_MS = 10_000; // for the token callback; `tokenTimeout`
const IMPATIENT_MS = 1_000; // a callback that takes longer is called once more when the page is shown
const RENEW_MS = 30_000; // before the expiry, or at half of a life that is shorter than twice that

/**
 * What a token says; throws where it is none.
 * @param {string} token
 * @returns {any}
 */
export const decode = (token) => {
  const bytes = Uint8Array.from(atob(token.split(".")[1].replace(/-/g, "+").replace(/_/g, "/")), (c) => c.charCodeAt(0));
  return JSON.parse(new TextDecoder().decode(bytes));
};

/**
 * A token as the broker can read it; throws where it is none, for what the broker says of it would be final.
 * @param {unknown} given
 */
const checked = (given) => {
  try {
    const token = /** @type {string} */ (given).trim();
    if (/^[\w-]+\.[\w-]+\.[\w-]+$/.test(token) && decode(token)) return token;
  } catch {}
  const what = typeof given === "string" ? JSON.stringify(given.slice(0, 20)) : String(given);
  throw failure("token", `no token but ${what}; does the callback look at answer.ok?`);
};

/** @type {Record<string, string>} */
const ESCAPES = { ".": "%2E", "*": "%2A" };

/**
 * What the broker would make of a token, for us to know by which name it calls `me`.
 * @param {string} token
 * @returns {Who}
 */
export const claims = (token) => {
  const { sub, tenant, exp } = decode(token);
  const encode = (/** @type {string} */ c) => ESCAPES[c] ?? encodeURIComponent(c);
  const user = sub.replace(/[.*>%$\s\p{Cc}\p{Cf}\p{Z}]/gu, encode);
  return { tenant, user: sub, private: `users.${user}`, expires_at: exp };
};

/** The token, and whoever gives it: asked again for as long as it takes, and never waited for without end. */
export class Tokens {
  fixed; // there is no other
  /** @type {string | undefined} the last one that the broker refused for good */
  refused;
  gotAt = 0;
  life = NaN; // in ms, by the token itself: a device's clock may be hours off; NaN where it does not say
  #source;
  #timeout;
  /** @type {string | undefined} */
  #token;
  /** @type {Promise<string> | undefined} */
  #asking;
  #wake = () => {};
  #leave = () => {};

  /**
   * @param {string | (() => string | Promise<string>)} source
   * @param {number} timeout
   */
  constructor(source, timeout = TOKEN_MS) {
    this.fixed = typeof source !== "function";
    if (typeof source !== "function") checked(source);
    this.#source = typeof source === "function" ? source : () => source;
    this.#timeout = timeout;
  }

  /** When another one is needed, where that is known. */
  get due() {
    return this.gotAt + Math.max(this.life - RENEW_MS, this.life / 2);
  }

  /** One that is as good as new, or still good enough. */
  async get() {
    return now() > this.due ? this.next() : (this.#token ?? this.next());
  }

  /** Another one, unless the callback gives the same again. Throws when it gives none. */
  async next() {
    this.#token = undefined; // a callback that fails leaves none
    const asking = (this.#asking ??= this.#ask());
    const token = await asking.finally(() => {
      if (this.#asking === asking) this.#asking = undefined;
    });
    const { iat, exp } = decode(token);
    this.gotAt = now();
    this.life = (exp - iat) * 1000;
    return (this.#token = token);
  }

  /**
   * The broker has refused it, for good or not; whether for good, and that for the second time.
   * @param {boolean} final
   */
  reject(final) {
    const token = this.#token;
    this.#token = undefined;
    const again = final && !!token && this.refused === token;
    if (final) this.refused = token;
    return again;
  }

  /** Who has been asked for long may have been asleep, or without a network. */
  wake() {
    if (this.#asking) this.#wake();
  }

  /** Nobody waits any more. */
  leave() {
    if (this.#asking) this.#leave();
    this.#asking = undefined;
  }

  /** @returns {Promise<string>} */
  async #ask() {
    /** @type {ReturnType<typeof setTimeout> | undefined} */
    let timer;
    try {
      return await new Promise((resolve, reject) => {
        let began = 0;
        const fail = (/** @type {string} */ why) => reject(failure("token", `the token callback ${why}`));
        const call = () => {
          began = now();
          clearTimeout(timer);
          timer = setTimeout(() => fail(`gave nothing within ${this.#timeout} ms`), this.#timeout);
          Promise.resolve()
            .then(this.#source)
            .then(
              (given) => resolve(checked(given)),
              (error) => fail(`failed: ${error?.message ?? error}`),
            )
            .catch(reject);
        };
        this.#wake = () => {
          if (now() - began >= IMPATIENT_MS) call();
        };
        this.#leave = () => fail("is needed no more");
        call();
      });
    } finally {
      clearTimeout(timer);
    }
  }
}
