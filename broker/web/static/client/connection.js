// @ts-check
/**
 * How the client stays connected. Only the broker's word about a real token, said twice about the same one, ends it:
 * all else passes, and is tried again.
 */

import { Attempt } from "./attempt.js";
import { failure } from "./errors.js";
import { TOO_LONG } from "./http.js";
import { backoff } from "./pace.js";
import { memory, now } from "./platform.js";

/** @import { Ended } from "./attempt.js" */
/** @import { Exchange } from "./exchange.js" */
/** @import { Records } from "./records.js" */
/** @import { Hub } from "./tabs.js" */
/** @import { Tokens } from "./tokens.js" */
/** @import { Link, Who } from "./types.js" */

const REACH_MS = 10_000;
const SHORT_MS = 5_000; // a connection that was cut before this has not proved anything
const SHORTS = 3; // so many of them in a row, and the next transport is tried
const REMEMBER_MS = 3_600_000; // then WebSocket gets another chance
const SMALL = 1_024; // bytes of channels that everybody lets through
const WAKERS = ["online", "offline", "visibilitychange", "pageshow", "pagehide"];

/**
 * @typedef {object} Setting
 * @property {string} url
 * @property {string[]} transports
 * @property {string} [tenant]
 * @property {Hub} [hub]
 */

/** The transport that works, as the browser remembers it for all pages, for an hour. */
class Remembered {
  #key;
  #first;
  /** Where the browser does not remember. */
  #here = "";

  /**
   * @param {string} url
   * @param {string} first the transport that needs no remembering
   */
  constructor(url, first) {
    this.#key = `broker ${url}`;
    this.#first = first;
  }

  /** The transport to begin with, unless the time has come to try another one. */
  get() {
    const [known, until] = (memory(this.#key) || this.#here).split(" ");
    const left = Number(until) - Date.now();
    return left > 0 && left <= REMEMBER_MS ? known : undefined; // a clock that was set back makes it no longer
  }

  /** @param {string} name */
  set(name) {
    if (name === "tabs" || name === this.get()) return;
    this.#here = name === this.#first ? " 0" : `${name} ${Date.now() + REMEMBER_MS}`;
    memory(this.#key, this.#here);
  }
}

export class Connection {
  #setting;
  #exchange;
  #records;
  #tokens;
  #say;
  #remembered;
  /** @type {object | undefined} the loop that may connect; another object for each connect() */
  #running;
  /** @type {Attempt | undefined} */
  #attempt;
  #wake = () => {}; // ends the wait between attempts
  #away = false; // the page is gone, and may come back
  /** @type {Map<string, number>} transport → how much to subscribe to is too much for it */
  #narrow = new Map();
  #failures = 0;
  #shorts = 0;

  /**
   * @param {Setting} setting
   * @param {{exchange: Exchange, records: Records, tokens: Tokens}} parts
   * @param {(change: object) => void} say tells the application how the connection stands
   */
  constructor(setting, { exchange, records, tokens }, say) {
    this.#setting = setting;
    this.#exchange = exchange;
    this.#records = records;
    this.#tokens = tokens;
    this.#say = say;
    this.#remembered = new Remembered(setting.url, setting.transports[0]);
    exchange.cut = (end) => this.#attempt?.over(end);
    for (const type of WAKERS) globalThis.addEventListener?.(type, this.#hurry);
  }

  connect() {
    if (this.#running) return;
    this.#exchange.wanted = true;
    this.#run((this.#running = {}));
  }

  /** @param {{code?: number | string, message: string}} [error] */
  disconnect(error) {
    this.#running = undefined;
    this.#exchange.wanted = false;
    this.#tokens.refused = undefined; // who connects again has a reason
    this.#tokens.leave();
    this.#attempt?.over({});
    this.#wake();
    this.#exchange.lost();
    this.#setting.hub?.leave();
    this.#say({ state: "closed", error });
  }

  /** For good: what wakes it is listened to no more. */
  close() {
    this.disconnect();
    for (const type of WAKERS) globalThis.removeEventListener?.(type, this.#hurry);
  }

  /** Begin anew, at once. */
  anew() {
    this.#attempt?.over({ at_once: true });
    this.#wake();
  }

  /**
   * The page is seen again or the network is back: no need to wait; or it has gone: look whether it has.
   * @param {Event} event
   */
  #hurry = ({ type }) => {
    if (type === "pagehide") {
      // Perhaps for good: nothing of it holds a place. What a browser keeps to go back to holds no connection.
      this.#away = true;
      this.#attempt?.over({ at_once: true, reason: "the page is not shown" });
      this.#setting.hub?.leave();
      return;
    }
    if (type === "pageshow") this.#away = false;
    else if (this.#away || globalThis.document?.visibilityState === "hidden") return;
    if (this.#exchange.link) this.#attempt?.probe();
    else if (globalThis.navigator?.onLine !== false) {
      this.#tokens.wake();
      this.#wake();
    }
  };

  // --- again and again -------------------------------------------------------------------------------

  /** @param {object} run */
  async #run(run) {
    while (run === this.#running) {
      if (this.#away) {
        this.#say({ state: "waiting", retryAt: undefined });
        await this.#sleep();
        continue;
      }
      const began = now();
      /** @type {Ended} */
      let end;
      try {
        end = await this.#round(run);
      } catch (error) {
        const { code, message } = /** @type {{code?: any, message: string}} */ (error);
        end = { code, reason: message };
      }
      if (run !== this.#running) return;
      const code = end.code ?? end.status;
      const error = { code, message: end.error?.message ?? end.reason ?? `closed with ${code}` };
      const lived = (end.lived ?? 0) >= SHORT_MS;
      if (lived) this.#tokens.refused = undefined; // it was good for a while
      // The callback is asked for another one, which has a chance of its own.
      const refused = code !== undefined && (code >= 4500 || code === 4002 || code === 401);
      if (refused && this.#tokens.reject(code >= 4500)) return this.disconnect(error);
      if (lived || end.at_once) this.#failures = 0;
      if (end.at_once) continue;
      const most = backoff(this.#failures);
      const spent = end.opened ? 0 : now() - began; // who has waited for an answer need not wait as long again
      const after = Math.max(end.asked ?? Math.random() * most - spent, end.after ?? 0, 0);
      this.#failures++;
      this.#say({ state: "waiting", error, retryAt: Date.now() + after });
      await this.#sleep(after);
    }
  }

  /**
   * So many ms, or until it is woken.
   * @param {number} [ms]
   */
  async #sleep(ms) {
    /** @type {ReturnType<typeof setTimeout> | undefined} */
    let timer;
    await new Promise((resolve) => {
      this.#wake = () => resolve(undefined);
      if (ms !== undefined) timer = setTimeout(resolve, ms);
    });
    clearTimeout(timer);
  }

  /**
   * Try the transports in turn until one works, and stay with it to its end.
   * @param {object} run
   * @returns {Promise<Ended>}
   */
  async #round(run) {
    this.#say({ state: "connecting", retryAt: undefined });
    const { hub } = this.#setting;
    if (hub && !hub.ready) {
      const token = await this.#tokens.get();
      if (run !== this.#running || this.#away) return { at_once: true };
      hub.join(token);
    }
    const names = this.#order;
    /** @type {Ended | undefined} */
    let end;
    const fails = async (/** @type {string} */ name) => {
      const token = await this.#tokens.get();
      if (run !== this.#running || this.#away) return false;
      end = await this.#try(name, token);
      if (run !== this.#running) return false;
      if (end.opened) this.#exchange.lost(end.code);
      if (this.#away || this.#tooLong(name, end)) return false;
      return this.#unfit(end);
    };
    for (const [at, name] of names.entries()) {
      const began = now();
      if (!(await fails(name))) break;
      // A broker that is just coming up refuses one moment and answers the next: no reason to leave WebSocket.
      if (!end?.opened && now() - began < SHORT_MS && !(await fails(name))) break;
      if (end?.opened && names[at + 1]) this.#remembered.set(names[at + 1]);
      this.#shorts = 0;
    }
    return end ?? { at_once: true };
  }

  /**
   * @param {string} name
   * @param {string} token
   */
  #try(name, token) {
    const { url, tenant, hub } = this.#setting;
    this.#attempt = new Attempt(name, { url, token, tenant, hub }, {
      changed: this.#say,
      opened: (link, transport, who) => this.#opened(link, transport, who),
      heard: (message) => this.#exchange.heard(message),
    });
    return this.#attempt.run();
  }

  /**
   * @param {Link} link
   * @param {string} transport
   * @param {Who} who
   */
  #opened(link, transport, who) {
    const { tenant, user, private: room } = who;
    this.#remembered.set(transport);
    this.#exchange.opened(link, who);
    this.#say({ state: "open", transport, tenant, user, private: room, error: undefined, source: "restored" });
    this.#exchange.sync();
  }

  // --- which transport -------------------------------------------------------------------------------

  /** The transports that may carry what there is to subscribe to. */
  get #carriers() {
    return this.#setting.transports.filter((name) => !((this.#narrow.get(name) ?? Infinity) <= this.#records.load));
  }

  /** The transports in the order in which they are tried. */
  get #order() {
    const names = this.#carriers.length ? this.#carriers : this.#setting.transports;
    const first = Math.max(0, names.indexOf(this.#remembered.get() ?? ""));
    const { hub } = this.#setting;
    return [...(hub && !hub.leads ? ["tabs"] : []), ...names.slice(first), ...names.slice(0, first)];
  }

  /**
   * Whether the end of a connection says that another transport would do better.
   * @param {Ended} end
   */
  async #unfit({ code, opened, lived, at_once, answered }) {
    // Cut again and again without a word: something between us and the broker does not like it.
    this.#shorts = lived && (lived >= SHORT_MS || code !== 1006) ? 0 : this.#shorts + (opened ? 1 : 0);
    const works = opened && this.#shorts < SHORTS;
    return !works && !at_once && !answered && !(code && code >= 4000) && this.#reachable();
  }

  /** Whether the broker's host answers at all: then it is the transport that is in the way. */
  async #reachable() {
    const late = new AbortController();
    const timer = setTimeout(() => late.abort(), REACH_MS);
    try {
      await fetch(`${this.#setting.url}/healthz`, { mode: "no-cors", cache: "no-store", signal: late.signal });
      return true;
    } catch {
      return false;
    } finally {
      clearTimeout(timer);
    }
  }

  /**
   * Whether the list was too long for the transport: then another one may carry it, and at once.
   * @param {string} name
   * @param {Ended} end
   */
  #tooLong(name, end) {
    const { status } = end;
    const { load } = this.#records;
    if (!status || !TOO_LONG.includes(status) || load <= SMALL || (name === "poll" && status !== 413)) return false;
    end.at_once = true;
    this.#narrow.set(name, load);
    // It stood in a body, or there is no other way, unless the first one is free again: the longest part has to go.
    if (status === 413 || this.#carriers.every((each) => each === "websocket")) {
      const error = failure("too_large", "so many channels are too much for what stands before the broker");
      this.#records.end(this.#records.longest, error);
    }
    return true;
  }
}
