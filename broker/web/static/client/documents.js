// @ts-check
/** The part for documents: which are open, and what they hold. */

import { failure } from "./errors.js";
import { TRIES, inVain } from "./exchange.js";
import { covers, expand, misnamed } from "./names.js";
import { BACKOFF_MS } from "./pace.js";
import { now } from "./platform.js";
import { apply } from "./patches.js";
import { never, superseded } from "./positions.js";
import { given, many } from "./values.js";

/** @import { Changes } from "./changes.js" */
/** @import { BrokerError } from "./errors.js" */
/** @import { Exchange } from "./exchange.js" */
/** @import { DocumentUser, Joint, Part, Row } from "./types.js" */

/** What is open of the documents: one channel, or a pattern. */
class Open {
  name;
  full;
  /** @type {Set<DocumentUser>} */
  users = new Set();
  /** @type {Map<string, Row>} by channel */
  rows = new Map();
  /** @type {string | undefined} */
  position;
  asked = false; // it was sent, over the present connection
  ready = false; // it has been read to its end once
  /** @type {Set<string> | undefined} what has come since it begins anew: the rest is gone at its end */
  fresh;
  doubts = 0;
  after = 0; // it is not asked for before

  /**
   * @param {string} name
   * @param {string} full
   */
  constructor(name, full) {
    this.name = name;
    this.full = full;
  }

  /** @param {string} channel */
  covers(channel) {
    return covers(this.full.split("."), channel.split("."));
  }
}

/** @implements {Part} */
export class Documents {
  #exchange;
  /** @type {string | undefined} what `me` stands for */
  #private;
  /** @type {Map<string, Open>} by full name */
  #opens = new Map();
  #changes;

  /**
   * @param {Exchange} exchange
   * @param {Changes} changes
   */
  constructor(exchange, changes) {
    this.#exchange = exchange;
    this.#changes = changes;
  }

  // --- what is open ------------------------------------------------------------------------------------

  /**
   * @param {string} name a channel or pattern
   * @param {DocumentUser} user
   */
  open(name, user) {
    const fault = misnamed(name, true) ?? (/^live\./.test(name) ? "a live channel is no document" : undefined);
    if (fault) throw failure("invalid_channel", `${JSON.stringify(name)}: ${fault}`);
    const full = expand(name, this.#private);
    const held = this.#opens.get(full) ?? [...this.#opens.values()].find((each) => !/[*>]/.test(full) && each.covers(full));
    const open = held ?? new Open(name, full);
    if (!held) this.#opens.set(full, open);
    open.users.add(user);
    if (open.ready) this.#tell(open, user);
    this.#exchange.soon();
  }

  /**
   * All that is held, for somebody who comes later.
   * @param {Open} open
   * @param {DocumentUser} user
   */
  #tell(open, user) {
    for (const [channel, row] of open.rows) if (user.wants(channel)) user.heard(channel, row);
    user.ready(open.position);
  }

  /** @param {DocumentUser} user */
  close(user) {
    for (const channel of this.#changes.unknown(user)) this.#await(channel);
    for (const open of [...this.#opens.values()]) {
      if (!open.users.delete(user)) continue;
      // What is wanted of a pattern by itself is opened by itself once nobody wants the pattern.
      const others = [...open.users].filter((each) => expand(each.name, this.#private) !== open.full);
      if (others.length < open.users.size) continue;
      this.#opens.delete(open.full);
      if (open.asked && this.#exchange.link) this.#leave(open);
      for (const other of others) this.open(other.name, other);
    }
    this.#changes.leave(user);
  }

  /**
   * Keep a document open that was changed before anything was known of it: what that replaces is not known either.
   * @param {string} channel
   */
  #await(channel) {
    const nothing = () => {};
    /** @type {DocumentUser} */
    const user = { name: channel, wants: () => false, heard: nothing, ready: () => this.close(user), failed: nothing };
    this.open(channel, user);
  }

  /** @param {Open} open */
  #leave(open) {
    const nothing = () => {};
    this.#exchange.send("state.close", { channel: open.full }, { done: nothing, refused: nothing, lost: nothing, doubted: nothing });
  }

  /**
   * A name as the broker writes it.
   * @param {string} name
   */
  full(name) {
    return expand(name, this.#private);
  }

  /**
   * The draft of a document that is open, of whose changes `user` hears.
   * @param {string} channel
   * @param {DocumentUser} user
   */
  edit(channel, user) {
    const fault = misnamed(channel, false);
    if (fault) throw failure("invalid_channel", `${JSON.stringify(channel)}: ${fault}`);
    const full = this.full(channel);
    const opens = [...this.#opens.values()].filter((each) => each.covers(full));
    const row = opens.map(({ rows }) => rows.get(full)).find((each) => each);
    const read = opens.find(({ ready }) => ready)?.position; // to its end, and has not brought it
    return this.#changes.edit(full, user, row ?? (read ? { revision: never(read), value: null } : undefined));
  }

  /**
   * Give up a change of several documents that has not been sent.
   * @param {Joint} joint
   */
  drop(joint) {
    this.#changes.drop(joint);
  }

  /**
   * What is shown of a document that is changed, if it is.
   * @param {string} channel
   */
  draft(channel) {
    return this.#changes.draft(channel);
  }

  /**
   * Something was typed.
   * @param {string} channel
   */
  typed(channel) {
    this.#changes.typed(this.full(channel));
  }

  // --- the connection ----------------------------------------------------------------------------------

  /** @param {import("./types.js").Who} who */
  opened({ private: room }) {
    this.#private = room;
    for (const [name, open] of [...this.#opens]) {
      const full = expand(open.name, room);
      if (full === name) continue;
      this.#opens.delete(name);
      open.full = full;
      const held = this.#opens.get(full); // by its full name
      for (const user of held ? open.users : []) held?.users.add(user);
      if (!held) this.#opens.set(full, open);
    }
    this.#changes.expand((name) => expand(name, room));
  }

  lost() {
    for (const open of this.#opens.values()) open.asked = false;
  }

  sync() {
    if (!this.#exchange.link) return;
    for (const open of this.#opens.values()) {
      if (open.asked || !this.#exchange.due(open.after)) continue;
      if (!this.#exchange.may(undefined, open.doubts)) return;
      this.#ask(open);
    }
  }

  /** @param {Open} open */
  #ask(open) {
    open.asked = true;
    const over = (/** @type {BrokerError} */ error) => {
      this.#opens.delete(open.full);
      for (const user of open.users) user.failed(error);
    };
    this.#exchange.send(
      "state.open",
      given({ channel: open.full, position: open.ready ? open.position : undefined }),
      {
        done: () => (open.doubts = 0),
        refused: (error) => {
          if (this.#opens.get(open.full) !== open) return;
          open.asked = false;
          if (error.code === "invalid_position") open.position = undefined;
          else if (!error.retryable) return over(error);
          open.after = now() + (error.retryAfter ?? BACKOFF_MS);
          this.#exchange.soon();
        },
        lost: () => {},
        doubted: (code) => ++open.doubts >= TRIES && over(inVain(code)),
        oversized: over,
      },
      undefined,
      open.doubts,
    );
  }

  // --- what is heard -----------------------------------------------------------------------------------

  /** @type {Part["hears"]} */
  hears = {
    "state.opened": ({ channel, recovered }) => {
      for (const name of many(channel)) {
        const open = this.#opens.get(name);
        if (!open) continue;
        open.fresh = recovered ? undefined : new Set();
      }
    },
    state: (said) => this.#heard(said),
    "state.ready": ({ channel, position }) => {
      for (const name of many(channel)) {
        const open = this.#opens.get(name);
        if (!open) continue;
        const gone = open.fresh && [...open.rows.keys()].filter((each) => !open.fresh?.has(each));
        for (const each of gone ?? []) this.#take(open, each, { revision: position, value: null, by: [] });
        open.fresh = undefined;
        open.position = position;
        open.ready = true;
        this.#changes.absent((each) => open.covers(each), never(position));
        for (const user of open.users) user.ready(position);
      }
    },
    "state.closed": ({ channel, code }) => {
      if (!code) return;
      for (const name of many(channel)) {
        const open = this.#opens.get(name);
        if (!open) continue;
        this.#opens.delete(name);
        for (const user of open.users) user.failed(failure(code, `${name}: the broker has ended it`));
      }
    },
    "state.lost": ({ channel, ids, revision, paths }) => {
      this.#changes.overwritten(channel, { ids, revision, paths });
    },
  };

  /** @param {{channel: string, revision: string, position: string, value?: any, from?: string, patch?: any, invalid?: string, by?: {id?: string}[]}} said */
  #heard({ channel, revision, position, value, from, patch, invalid, by = [] }) {
    const opens = [...this.#opens.values()].filter((each) => each.asked && each.covers(channel));
    for (const open of opens) {
      const held = open.rows.get(channel);
      open.fresh?.add(channel);
      // Where several bring it, each has a place of its own, which a message does not say.
      if (opens.length === 1 && open.ready && !open.fresh && !superseded(position, open.position)) open.position = position;
      if (superseded(revision, held?.revision)) continue;
      if (from !== undefined && held?.revision !== from) {
        [open.asked, open.position, open.ready] = [false, undefined, false]; // it begins anew
        this.#exchange.soon();
        continue;
      }
      const row = { revision, value: invalid ? null : from === undefined ? value : apply(held?.value, patch), invalid, by };
      this.#take(open, channel, row);
    }
  }

  /**
   * @param {Open} open
   * @param {string} channel
   * @param {Row} row
   */
  #take(open, channel, row) {
    if (row.value === null && !row.invalid && /[*>]/.test(open.full)) open.rows.delete(channel);
    else open.rows.set(channel, { ...row, by: undefined });
    this.#changes.heard(channel, row);
    for (const user of open.users) if (user.wants(channel)) user.heard(channel, row);
  }

  /** For good. */
  closeAll() {
    const error = failure("closed", "it was closed");
    for (const open of [...this.#opens.values()]) for (const user of open.users) user.failed(error);
    this.#opens.clear();
    this.#changes.close();
  }
}
