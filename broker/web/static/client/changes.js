// @ts-check
/** The part for the user's changes of documents: shown at once, and sent again as they were until they are stored. */

import { Draft } from "./draft.js";
import { BrokerError, failure } from "./errors.js";
import { TRIES, inVain } from "./exchange.js";
import { backoff } from "./pace.js";
import { now, random } from "./platform.js";
import { bytes } from "./values.js";

/** @import { Sent } from "./draft.js" */
/** @import { Exchange } from "./exchange.js" */
/** @import { Keeping } from "./keeping.js" */
/** @import { DocumentUser, Joint, Part, Row, Settler, Who } from "./types.js" */
/** @typedef {Settler<any> & {payload: any, sent: boolean}} Relayed */

const EACH_MS = 200; // between two changes of a document
const UNKNOWN = ["unknown_outcome", "timeout", "internal"]; // the broker knows a change that it has applied
const UNKNOWN_TRIES = 6;
const CERTAIN = ["conflict", "rejected", "too_large"]; // said by who remembers changes

/** A document that somebody here may change, whatever it is opened by. */
class Edited {
  channel;
  draft = new Draft();
  /** @type {Set<DocumentUser>} who is told what becomes of changes */
  users = new Set();
  sent = false; // the change under way, over the present connection
  doubts = 0;
  tries = 0; // whose outcome is not known
  after = 0; // nothing is sent before
  busy = 0; // it is being kept, or looked for, and nothing is sent meanwhile
  sought = false; // what other pages have left of it

  /** @param {string} channel */
  constructor(channel) {
    this.channel = channel;
  }
}

/** @implements {Part} */
export class Changes {
  #exchange;
  /** @type {Map<string, Edited>} by channel */
  #edited = new Map();
  /** @type {Set<Relayed>} changes of other tabs */
  #relayed = new Set();
  #session = random().slice(0, 16);
  #count = 0;
  #keeping;
  #whose = ""; // once it is known

  /**
   * @param {Exchange} exchange
   * @param {Keeping} [keeping]
   */
  constructor(exchange, keeping) {
    this.#exchange = exchange;
    this.#keeping = keeping;
  }

  #id = () => `${this.#session}-${++this.#count}`;

  /**
   * @param {string} channel
   * @param {DocumentUser} user
   * @param {Row} [row] what is known of it
   */
  edit(channel, user, row) {
    const edited = this.#edited.get(channel) ?? new Edited(channel);
    this.#edited.set(channel, edited);
    edited.users.add(user);
    if (row && edited.draft.revision === undefined) edited.draft.heard(row);
    this.#seek(edited);
    return edited.draft;
  }

  /**
   * Something was typed.
   * @param {string} channel
   */
  typed(channel) {
    const edited = this.#edited.get(channel);
    if (edited) this.#keep(edited);
    for (const user of edited?.users ?? []) user.shown?.(channel);
    this.#exchange.soon();
  }

  // --- what outlives the page ----------------------------------------------------------------------------

  /** @param {Edited} edited */
  #seek(edited) {
    if (!this.#keeping || !this.#whose || edited.sought) return;
    edited.sought = true;
    const found = this.#keeping.take(this.#whose, edited.channel).then((kept) => {
      edited.draft.inherit(kept);
      if (edited.draft.unsaved.length) this.#keep(edited); // also what was changed before it was known who does
      for (const user of edited.users) user.shown?.(edited.channel);
    });
    this.#wait(edited, found);
  }

  /** @param {Edited} edited */
  #keep(edited) {
    if (this.#keeping && edited.sought) this.#wait(edited, this.#keeping.save(this.#whose, edited.channel, edited.draft.kept));
  }

  /**
   * A browser that keeps nothing is no reason not to send it.
   * @param {Edited} edited
   * @param {Promise<void>} work
   */
  async #wait(edited, work) {
    edited.busy++;
    await work.catch(() => {});
    edited.busy--;
    this.#sweep();
    this.#exchange.soon();
  }

  // --- what becomes of it --------------------------------------------------------------------------------

  /** @param {string} channel */
  draft(channel) {
    return this.#edited.get(channel)?.draft;
  }

  /**
   * What somebody has changed, and nothing is known of.
   * @param {DocumentUser} user
   */
  unknown(user) {
    const waits = (/** @type {Edited} */ { draft, users }) => users.has(user) && draft.revision === undefined && draft.pending;
    return [...this.#edited.values()].filter(waits).map(({ channel }) => channel);
  }

  /** @param {DocumentUser} user */
  leave(user) {
    for (const edited of this.#edited.values()) edited.users.delete(user);
    this.#sweep();
  }

  /** Forget what nobody shows and what is stored: who has it open no more does not hear the revision that has it. */
  #sweep() {
    for (const [channel, { draft, users, busy }] of this.#edited) if (!users.size && !draft.unsaved.length && !busy) this.#edited.delete(channel);
  }

  /**
   * Names are known in full from now on.
   * @param {(name: string) => string} full
   */
  expand(full) {
    const all = [...this.#edited.values()];
    this.#edited.clear();
    for (const edited of all) {
      edited.channel = full(edited.channel);
      const held = this.#edited.get(edited.channel); // by its full name
      for (const user of held ? edited.users : []) held?.users.add(user);
      if (held) held.draft.inherit(edited.draft.unsaved);
      else this.#edited.set(edited.channel, edited);
    }
  }

  /**
   * What has not been brought is not there.
   * @param {(channel: string) => boolean} covered
   * @param {string} revision
   */
  absent(covered, revision) {
    for (const { channel, draft } of this.#edited.values())
      if (draft.revision === undefined && covered(channel)) this.heard(channel, { revision, value: null });
  }

  /**
   * @param {string} channel
   * @param {Row} row
   */
  heard(channel, row) {
    const edited = this.#edited.get(channel);
    if (!edited) return;
    edited.draft.heard(row);
    this.#told(edited);
    if (edited.draft.waits) this.#exchange.soon();
  }

  /**
   * What was stored is gone.
   * @param {string} channel
   * @param {{ids: string[], revision: string, paths: Record<string, any>}} detail
   */
  overwritten(channel, detail) {
    for (const user of this.#edited.get(channel)?.users ?? []) user.lost?.(channel, detail);
  }

  /**
   * A change of another tab, which itself repeats it.
   * @param {any} payload
   * @returns {Promise<any>}
   */
  relay(payload) {
    return new Promise((resolve, reject) => {
      this.#relayed.add({ payload, resolve, reject, sent: false });
      this.sync();
    });
  }

  /** @param {Who} who */
  opened({ tenant, user }) {
    this.#whose = `${tenant} ${user}`;
    for (const edited of this.#edited.values()) this.#seek(edited);
  }

  lost() {
    for (const edited of this.#edited.values()) edited.sent = false;
    for (const { reject } of this.#relayed) reject(new BrokerError({ code: "unavailable", message: "the connection was lost", retryable: true }));
    this.#relayed.clear();
  }

  sync() {
    if (!this.#exchange.link) return;
    const { pace } = this.#exchange;
    for (const relayed of this.#relayed) {
      if (relayed.sent) continue;
      if (!this.#exchange.may(pace.changes)) return;
      this.#pass(relayed);
    }
    for (const edited of this.#edited.values()) {
      if (edited.sent || edited.busy || !edited.draft.waits || !this.#exchange.due(edited.after)) continue;
      const { draft } = edited;
      if (!draft.flying) {
        draft.next(this.#id);
        this.#keep(edited); // with its id, before it is sent
        if (edited.busy) continue;
      }
      const parts = this.#parts(edited);
      if (parts.length < (draft.flying?.joint?.count ?? 1)) continue; // it is not yet the turn of this change in all of its documents
      if (!this.#exchange.may(pace.changes, parts[0].doubts)) return;
      this.#send(parts);
    }
  }

  /**
   * The documents whose change under way is one with that of this document.
   * @param {Edited} edited
   */
  #parts(edited) {
    const joint = edited.draft.flying?.joint;
    return joint ? [...this.#edited.values()].filter(({ draft, sent, busy }) => draft.flying?.joint === joint && !sent && !busy) : [edited];
  }

  /** @param {Edited[]} parts the documents of a change */
  #send(parts) {
    const [edited] = parts;
    const { joint } = /** @type {Sent} */ (edited.draft.flying);
    if (joint) {
      joint.id ??= this.#id();
      for (const { draft } of parts) draft.send(joint.id);
    }
    const changes = parts.map(({ channel, draft }) => ({ channel, ...Draft.payload(/** @type {Sent} */ (draft.flying)) }));
    const payload = joint ? { id: joint.id, changes: changes.map(({ id: _, ...change }) => change) } : changes[0];
    const { pace } = this.#exchange;
    const size = parts.reduce((sum, { draft: { flying } }) => sum + bytes({ revision: flying?.revision }), bytes(payload));
    if (size + 100 > pace.most) return this.#refused(parts, pace.tooLarge(size));
    for (const each of parts) [each.sent, each.after] = [true, now() + EACH_MS];
    this.#exchange.send(
      "state.change",
      payload,
      {
        done: ({ revisions }) => this.#stored(parts, revisions),
        refused: (error) => {
          const unknown = error.unknownOutcome || UNKNOWN.includes(error.code);
          if (unknown) for (const { draft } of parts) draft.doubt();
          if (unknown ? ++edited.tries >= UNKNOWN_TRIES : !error.retryable) return this.#refused(parts, error);
          for (const each of parts) [each.sent, each.after] = [false, now() + (error.retryAfter ?? backoff(edited.tries))];
          this.#exchange.soon();
        },
        lost: () => parts.forEach(({ draft }) => draft.doubt()),
        doubted: (code) => ++edited.doubts >= TRIES && this.#refused(parts, inVain(code, true)),
        oversized: (error) => this.#refused(parts, error),
      },
      pace.changes,
      edited.doubts,
    );
  }

  /** @param {Relayed} relayed */
  #pass(relayed) {
    relayed.sent = true;
    const over = (/** @type {BrokerError} */ error) => {
      this.#relayed.delete(relayed);
      relayed.reject(error);
    };
    this.#exchange.send(
      "state.change",
      relayed.payload,
      {
        done: (payload) => {
          this.#relayed.delete(relayed);
          relayed.resolve(payload);
        },
        refused: over,
        lost: () => {}, // its tab hears of that
        doubted: () => {},
        oversized: over,
      },
      this.#exchange.pace.changes,
    );
  }

  /**
   * The change under way is stored.
   * @param {Edited[]} parts
   * @param {Record<string, string>} revisions
   */
  #stored(parts, revisions) {
    const { joint } = /** @type {Sent} */ (parts[0].draft.flying);
    for (const edited of parts) {
      [edited.sent, edited.doubts, edited.tries] = [false, 0, 0];
      edited.draft.stored(revisions[edited.channel]);
      this.#keep(edited);
      this.#told(edited);
    }
    joint?.settle(undefined, revisions);
    this.#exchange.soon();
  }

  /**
   * The change under way came to nothing, unless it was seen stored.
   * @param {Edited[]} parts
   * @param {BrokerError} error
   */
  #refused(parts, error) {
    const held = parts.map(({ channel, draft }) => [channel, draft.revision]);
    if (parts.some(({ draft }) => draft.echoed)) return this.#stored(parts, Object.fromEntries(held));
    const { joint, doubtful } = /** @type {Sent} */ (parts[0].draft.flying);
    const why = doubtful && !CERTAIN.includes(error.code) ? failure("unknown_outcome", error.message) : error;
    for (const edited of parts) {
      const { draft, channel } = edited;
      [edited.sent, edited.doubts, edited.tries] = [false, 0, 0];
      const found = error.code === "conflict" ? error.conflict?.find((each) => each.channel === channel) : undefined;
      const { mine, add, theirs } = draft.refused(found?.paths);
      this.#keep(edited);
      this.#told(edited);
      // What nobody else has touched is sent again, and nobody need be asked; of a joint change its caller is told.
      const asked = !joint && (mine !== undefined || add);
      if (asked) for (const user of edited.users) user.refused?.(channel, why, mine, found && theirs, add);
    }
    joint?.settle(why);
    this.#sweep();
    this.#exchange.soon();
  }

  /**
   * Give up a change of several documents that has not been sent.
   * @param {Joint} joint
   */
  drop(joint) {
    for (const { draft } of this.#edited.values()) draft.drop(joint);
    this.#sweep();
    this.#exchange.soon();
  }

  /** What is shown may be another. @param {Edited} edited */
  #told({ channel, users }) {
    for (const user of users) user.shown?.(channel);
    this.#sweep();
  }

  /** For good. */
  close() {
    this.#edited.clear();
  }
}
