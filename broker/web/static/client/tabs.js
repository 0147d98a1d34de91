// @ts-check
/** The tabs of one user, of which one has the connection; the transport `tabs` of the others. */

import { random } from "./platform.js";
import { decode } from "./tokens.js";

/** @import { Connect, Heard, Message, Over, TabHub } from "./types.js" */

const HELLO_MS = 3_000;

/**
 * The tabs of one user, of which one, which holds the lock, has the connection.
 * @implements {TabHub}
 */
export class Hub {
  leads = false;
  /** @type {Heard | undefined} set by the transport `tabs` */
  heard;
  /** @type {Over | undefined} likewise */
  over;
  /** @type {Promise<void> | undefined} once we can be told apart; unset while we are no part of it */
  ready;
  /** @type {Map<string, unknown>} what each of the others was sent last */
  last = new Map();
  #id = random();
  #name;
  #heed;
  #lead;
  /** @type {BroadcastChannel | undefined} */
  #channel;
  /** @type {AbortController | undefined} */
  #leaving;

  /**
   * @param {string} name
   * @param {(peer: string, message: Message) => void} heed hears the others, while we lead
   * @param {() => void} lead called when we are the one that connects
   */
  constructor(name, heed, lead) {
    this.#name = `broker.v1 ${name}`;
    this.#heed = heed;
    this.#lead = lead;
  }

  /**
   * With those whose tokens are for the same user and say the same: nobody reads by the rights of another.
   * @param {string} token
   */
  join(token) {
    const { iat, nbf, exp, jti, ...rights } = decode(token);
    const name = `${this.#name} ${JSON.stringify(rights)}`;
    const { signal } = (this.#leaving = new AbortController());
    this.#channel = new BroadcastChannel(name);
    this.#channel.onmessage = ({ data: { to, from, message } }) => {
      if (to === this.#id) this.heard?.(message);
      else if (to === "all") this.over?.({ at_once: true });
      else if (this.leads) {
        // Its own lock comes to us when the tab is gone, however it went.
        if (!this.last.has(from)) {
          this.last.set(from, undefined);
          lock(from, () => {
            this.last.delete(from);
            this.#heed(from, { type: "tab.bye" });
          });
        }
        this.#heed(from, message);
      }
    };
    const lock = (/** @type {string} */ name, /** @type {() => any} */ then) =>
      navigator.locks.request(name, { signal }, then).catch(() => {});
    // Held until we leave; a tab that ends loses its locks.
    const left = new Promise((resolve) => signal.addEventListener("abort", resolve));
    this.ready = new Promise((resolve) => lock(this.#id, () => (resolve(), left)));
    lock(name, () => {
      this.leads = true;
      this.#lead();
      return left;
    });
  }

  leave() {
    this.leads = false;
    this.#leaving?.abort();
    this.#channel?.close();
    this.#channel = this.ready = undefined;
    this.last.clear();
  }

  /** The others begin anew, from where they stand. */
  announce() {
    if (this.leads) this.post("all");
  }

  /**
   * @param {string} to a tab, `leader` or `all`
   * @param {Message} [message]
   */
  post(to, message) {
    this.#channel?.postMessage({ to, from: this.#id, message });
  }
}

/**
 * Another tab has the connection, and plays the broker for us.
 * @type {Connect}
 */
export const otherTab = ({ hub }, heard, over) => {
  if (!hub || hub.leads) return over({ at_once: true }); // since a moment ago
  const hello = () => hub.ready?.then(() => hub.post("leader", { type: "tab.hello" }));
  const again = setInterval(hello, HELLO_MS);
  hub.heard = (message) => {
    if (message.type !== "tab.wait") clearInterval(again);
    heard(message);
  };
  hub.over = over;
  hello();
  return {
    patient: true,
    send: (message) => hub.post("leader", message),
    close: () => {
      clearInterval(again);
      hub.post("leader", { type: "tab.bye" });
    },
  };
};
