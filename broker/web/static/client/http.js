// @ts-check
/** The transports `sse` and `poll`: a connection emulated by requests. */

import { SERVICE } from "./errors.js";
import { query, tenantQuery } from "./names.js";
import { BACKOFF_MOST_MS, Bucket } from "./pace.js";
import { hold, scarce } from "./places.js";
import { passed } from "./positions.js";
import { glance } from "./reads.js";
import { given } from "./values.js";
import { Watching } from "./watching.js";

/** @import { Address, Connect, Fault, Heard, Link, Message, Notes, Over, Read, Reading } from "./types.js" */
/** @typedef {{names: string[], say: (payload: any) => void}} Newcomers */

const SLOW_MS = 5_000; // a request that takes longer waits for a connection, over HTTP/1.1
const ANSWER_MS = 20_000; // then it is given up, and made again
const ASIDE_MS = 60_000; // for which who holds a connection lets others have it
const NOTHING = ["me.-"]; // a list is never empty; nobody publishes there
/** @type {Record<string, number>} as WebSocket says it */
const VERDICTS = { token_expired: 4002, token_invalid: 4500, token_revoked: 4501, forbidden: 4503 };
/** @type {Record<string, [string, number]>} what answers a request */
const ANSWERS = { publish: ["published", 202], acknowledge: ["acknowledged", 200], request: ["reply", 200], history: ["history", 200], "state.change": ["state.changed", 200] };

/** Statuses of a list that is too long for this transport: another one may carry it. */
export const TOO_LONG = [413, 414, 431];

/**
 * What a failed request means for what was asked for. Another try, with another token, if there is one; and wherever
 * it was not the broker who refused.
 * @param {Fault} fault
 */
const fault = ({ status = 503, reason, problem, after, own, paths, conflict }) => ({
  paths,
  conflict,
  code: problem ?? (status === 413 ? "too_large" : "unavailable"),
  message: reason,
  status: problem === "rejected" && status < 500 ? status : undefined, // the service's own
  retryable: status !== 413 && !SERVICE.includes(problem ?? "") && (!own || status === 401 || status === 429 || status >= 500),
  retry_after_ms: after,
  unknown: status === 500 || (!own && status !== 413), // what became of it
});

/**
 * One request for all that is live, made anew from its position when the list changes; what has a start of its own is
 * read beside it until it is live, and then joins.
 *
 * Only so many tabs of a browser hold a connection open, see places.js: the others ask now and then (`glance`).
 * @implements {Link}
 */
class HttpLink {
  passive = true;
  #address;
  #token;
  #heard;
  #over;
  #read;
  /** @type {Set<string>} */
  #channels = new Set();
  #closing = new AbortController();
  #main = new AbortController(); // ends the request for what is live
  /** @type {string | undefined} */
  #position;
  /** @type {string | undefined} as the broker has said it, and not who joins */
  #stood;
  /** @type {Newcomers[]} who hears once the list with the newcomers is followed, or is refused */
  #joining = [];
  /** @type {Set<Set<string>>} lists that are read beside it */
  #beside = new Set();
  #marks = 0;
  /** @type {Read | undefined} how it is read at the moment */
  #reading;
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  #aside;
  /** @type {Notes} what `reading` remembers from one request to the next */
  #own = {};
  /** @type {Notes[]} the same for what is read beside, for whoever is next */
  #spare = [];
  // A connection that was left may count as one for a moment yet, and polls have a rate: lists change as often as
  // that allows. What is read beside is read one after the other.
  #changes;
  #starts = new Bucket(10, 10);
  /** @type {Promise<void>} */
  #before = Promise.resolve();
  #documents;

  /**
   * @param {Read} read makes messages of one such request
   * @param {Bucket} changes
   * @param {Address} address
   * @param {Heard} heard
   * @param {Over} over
   */
  constructor(read, changes, address, heard, over) {
    this.#read = read;
    this.#changes = changes;
    this.#address = address;
    this.#token = address.token;
    this.#heard = heard;
    this.#over = over;
    const state = (/** @type {object} */ asked) => this.#request(`/state?${query({ ...asked, tenant: address.tenant })}`, {});
    this.#documents = new Watching(state, fault, heard, this.#closing.signal);
    hold(address.url, this.#closing.signal, this.#held).then(() => {
      if (!this.#reading) this.#turn(glance);
      this.#follow();
    });
  }

  /** @param {Message} message */
  send({ type, payload, messageId }) {
    if (type === "subscribe") this.#subscribe(payload, messageId);
    else if (type === "unsubscribe") {
      for (const name of payload.channel) for (const list of [this.#channels, ...this.#beside]) list.delete(name);
      this.#main.abort();
      this.#heard({ type: "unsubscribed", messageId, payload });
    } else if (type === "authenticate") {
      this.#token = payload.token;
      this.#main.abort();
    } else if (type === "state.open") this.#documents.open(payload, messageId);
    else if (type === "state.close") this.#documents.close(payload, messageId);
    else if (/^presence/.test(type)) {
      this.#heard({ type: "error", messageId, payload: { code: "unavailable", message: "presence needs a WebSocket" } });
    } else this.#post(type, payload, messageId);
  }

  close() {
    clearTimeout(this.#aside);
    this.#closing.abort();
    this.#main.abort();
    this.#leave(this.#own, ...this.#spare);
  }

  refresh() {
    this.#main.abort();
  }

  /**
   * @param {string} path
   * @param {RequestInit} init
   */
  #request = async (path, init) => {
    const headers = { Authorization: `Bearer ${this.#token}`, ...(init.body && { "Content-Type": "application/json" }) };
    const common = /** @type {const} */ ({ cache: "no-store", redirect: "error" }); // not to a login page
    const answer = await fetch(this.#address.url + path, { ...common, signal: this.#closing.signal, ...init, headers });
    if (answer.ok) return answer;
    const { status } = answer;
    const own = /problem\+json/.test(answer.headers.get("Content-Type") ?? ""); // the broker's, and not of what stands before it
    const { detail, code, retry_after_ms, paths, conflict } = (own && (await answer.json().catch(() => {}))) || {};
    const after = retry_after_ms ?? (1000 * Number(answer.headers.get("Retry-After")) || undefined);
    throw { status, code: VERDICTS[code], reason: detail ?? `HTTP ${status}`, problem: code, after, own: !!detail, paths, conflict };
  };

  // --- how it is read --------------------------------------------------------------------------------

  #held = () => this.#turn(this.#read);

  /** @param {Read} to */
  #turn(to) {
    if (this.#reading === to) return;
    this.#leave(this.#own, ...this.#spare.splice(0));
    this.#own = {};
    this.#reading = to;
    this.#address.became(to === glance ? "poll" : undefined);
    this.#main.abort();
  }

  /** Something waits, perhaps for the connection that this one holds. */
  #giveWay = () => {
    if (this.#reading !== this.#read || !scarce(this.#address.url)) return;
    this.#turn(glance);
    this.#aside = setTimeout(this.#held, ASIDE_MS);
  };

  /**
   * The broker need not keep what nobody will ask for.
   * @param {Notes[]} notes
   */
  #leave(...notes) {
    for (const { session } of notes)
      if (session) globalThis.navigator?.sendBeacon?.(`${this.#address.url}/poll`, JSON.stringify({ session, leave: true }));
  }

  /**
   * @param {Bucket} bucket
   * @param {Reading} start
   * @param {AbortSignal} signal
   * @param {Notes} notes
   */
  #source(bucket, start, signal, notes) {
    const paced = async (/** @type {string} */ path, /** @type {RequestInit} */ init) => {
      await bucket.turn(signal);
      return this.#request(path, init);
    };
    const reading = /** @type {Read} */ (this.#reading);
    return reading(paced, { ...start, tenant: this.#address.tenant }, signal, this.#token, notes);
  }

  /** @param {Fault} error */
  #failed(error) {
    const { status, own, reason = error.message, after } = error;
    // What stands before the broker has no say in whether we come again, and little in when.
    if (!own) return this.#over({ status, code: 1006, reason, after: after && Math.min(after, BACKOFF_MOST_MS) });
    // No use in another transport.
    this.#over({ ...error, answered: [401, 403, 429, 503].includes(status ?? 0) });
  }

  // --- what is live ----------------------------------------------------------------------------------

  async #follow() {
    while (!this.#closing.signal.aborted) {
      const { signal } = (this.#main = new AbortController());
      const said = [...this.#joining];
      const settled = () => {
        this.#joining = this.#joining.filter((each) => !said.includes(each));
        return said.splice(0);
      };
      try {
        const list = { channel: this.#channels.size ? [...this.#channels] : NOTHING, position: this.#position };
        for await (const message of this.#source(this.#changes, list, signal, this.#own)) {
          if (signal.aborted) break;
          const { type, payload } = message;
          delete payload.catch_up; // a list that changed is caught up with as a whole
          this.#position = this.#stood = payload.position ?? (type === "gap" ? payload.to : undefined) ?? this.#position;
          if (type === "subscribed") {
            for (const { channel } of payload.refused) this.#channels.delete(channel);
            for (const { say } of settled()) say(payload);
          } else this.#heard(message);
        }
        if (!signal.aborted) return this.#over({ code: 1006, reason: "the stream ended" });
      } catch (error) {
        if (signal.aborted) continue;
        const { problem: code, reason: message } = /** @type {Fault} */ (error);
        // What is wrong with the newcomers is no reason for the others to go.
        if (!said.length || !["limit_subscriptions", "bad_message", "invalid_position"].includes(code ?? ""))
          return this.#failed(/** @type {Fault} */ (error));
        this.#position = this.#stood;
        for (const { names, say } of settled()) {
          for (const name of names) this.#channels.delete(name);
          say({ refused: names.map((channel) => ({ channel, code, message })), recovered: true });
        }
      }
    }
  }

  /**
   * @param {string[]} names
   * @param {string | undefined} from
   * @param {(payload: any) => void} say
   */
  #join(names, from, say) {
    for (const name of names) this.#channels.add(name);
    if (from) this.#position = !this.#position || passed(from, this.#position) ? from : this.#position;
    this.#joining.push({ names, say });
    this.#main.abort();
  }

  /**
   * @param {any} payload
   * @param {string | undefined} messageId
   */
  #subscribe(payload, messageId) {
    const { channel, position: from, lag, filter, every_ms, ...start } = payload; // one list has one filter: here none
    if (Object.keys(given(start)).length) {
      const reading = { channel, ...start, lag, filter, every_ms, position: from };
      this.#before = this.#before.then(() => this.#begin(reading, messageId));
      return;
    }
    this.#join(channel, from, ({ refused, ...rest }) => {
      refused = refused.filter((/** @type {{channel: string}} */ each) => channel.includes(each.channel));
      this.#heard({ type: "subscribed", messageId, payload: { ...rest, channel: [], refused, live: true, position: this.#position } });
    });
  }

  // --- what has a start of its own -------------------------------------------------------------------

  /**
   * @param {Reading} start
   * @param {string | undefined} messageId
   */
  async #begin(start, messageId) {
    const mark = ++this.#marks;
    const notes = this.#spare.pop() ?? {};
    const list = new Set(start.channel);
    let reached;
    /** @type {Fault} */
    let wrong = {};
    this.#beside.add(list);
    try {
      for await (const { type, payload } of this.#source(this.#starts, start, this.#closing.signal, notes)) {
        reached = payload.position ?? (type === "gap" ? payload.to : undefined) ?? reached;
        if (type === "subscribed") {
          for (const { channel } of payload.refused) list.delete(channel);
          this.#heard({ type, messageId, payload: { ...payload, channel: [], live: false, catch_up: mark, position: this.#position } });
        } else if (type === "event" || type === "gap") this.#heard({ type, payload: { ...payload, catch_up: mark } });
        if (type === "subscription.live" || payload.live || !list.size) break;
      }
      this.#spare.push(notes);
    } catch (error) {
      wrong = /** @type {Fault} */ (error);
      this.#leave(notes);
    }
    this.#beside.delete(list);
    if (TOO_LONG.includes(wrong.status ?? 0)) return this.#failed(wrong);
    // Cut off on its way, it is gone on with in the list.
    if (!reached) this.#heard({ type: "error", messageId, payload: fault(wrong) });
    else if (list.size) {
      const live = () => this.#heard({ type: "subscription.live", payload: { catch_up: mark, position: this.#position } });
      this.#join([...list], reached, live);
    }
  }

  // --- what is posted --------------------------------------------------------------------------------

  /**
   * @param {string} type
   * @param {any} payload
   * @param {string | undefined} messageId
   */
  async #post(type, { echo, ...payload }, messageId) {
    // That a service takes its time says nothing of connections.
    const slow = setTimeout(type === "request" ? () => {} : this.#giveWay, SLOW_MS);
    const late = new AbortController();
    const stop = () => late.abort();
    const timer = setTimeout(stop, ANSWER_MS + (payload.timeout_ms ?? 0));
    const { signal } = this.#closing;
    signal.addEventListener("abort", stop);
    try {
      const { tenant } = this.#address;
      const [path, init] =
        type === "history"
          ? [`/history?${query({ ...payload, filter: payload.filter && JSON.stringify(payload.filter), tenant })}`, {}]
          : [`/${type === "state.change" ? "state" : type}${tenantQuery(tenant)}`, { method: "POST", body: JSON.stringify(payload) }];
      const answer = await this.#request(path, { ...init, signal: late.signal });
      const [said, status] = ANSWERS[type];
      if (answer.status !== status) throw new TypeError(`HTTP ${answer.status}`); // whoever that was
      this.#heard({ type: said, messageId, payload: { id: payload.id, ...(await answer.json()) } });
    } catch (error) {
      this.#heard({ type: "error", messageId, payload: fault(/** @type {Fault} */ (error)) });
    }
    signal.removeEventListener("abort", stop);
    clearTimeout(slow);
    clearTimeout(timer);
  }
}

/**
 * @param {Read} read
 * @param {number} rate requests a second, for lists that change
 * @param {number} burst
 * @returns {Connect}
 */
export const http = (read, rate, burst) => (address, heard, over) => new HttpLink(read, new Bucket(rate, burst), address, heard, over);
