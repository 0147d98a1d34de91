// @ts-check
/**
 * One document as its user sees it: what the broker has confirmed, and over it the user's own changes, until a
 * revision that has them is here. No I/O.
 *
 * One change is under way at a time. What is typed meanwhile is one change more, which replaces what the one under way
 * will have made.
 */

import { apply, at, complete, isObject, joined, leaves, names, part, pointer, put, replaced, seen, touches } from "./patches.js";
import { comparable, passed, superseded } from "./positions.js";
import { given } from "./values.js";

/** @import { Joint } from "./types.js" */
/** @typedef {{patch: any, was: any}} Change */
/** @typedef {{patch?: any, add?: Record<string, number>, joint?: Joint}} Wish what is wanted: of a joint change it is the part that concerns this document */
/** @typedef {Wish & {was?: any, id?: string, revision?: string, doubtful?: boolean, sums?: Record<string, number>}} Sent `revision` it was first sent on; doubtful: the broker may have it already; `sums` are what it makes */
/** @typedef {{patch?: any, was?: any, add?: Record<string, number>, id?: string, revision?: string}} Kept what is kept of a change: with an id it may have been sent */
/** @typedef {Wish & {id?: string, revision: string}} Settled */

// All patches here are of an object that has the document as its member `d`: so a document that there is none of is a
// member that is absent, as any other.
const wrap = (/** @type {any} */ value) => ({ d: value });
const unwrap = (/** @type {any} */ value) => value?.d ?? null;

export class Draft {
  /** @type {any} the newest value that the broker has said; null: there is none */
  confirmed = null;
  /** @type {string | undefined} */
  revision;
  /** @type {string | undefined} why what is stored is no document */
  invalid;
  /** @type {Sent | undefined} the change that has been sent, and has no answer */
  flying;
  /** @type {Change | undefined} what has been changed since */
  typed;
  /** @type {Sent[]} changes that are sent each by itself, before what is typed: of pages that are gone, sums, and joint ones */
  #queue = [];
  /** @type {Settled[]} changes that are answered, until their revision is here */
  #settled = [];
  /** @type {Wish[]} changes from before anything was known: of what they replace they say what is first there */
  #early = [];
  #echoed = false; // the change under way is in what is confirmed

  /** The document with all of the user's own changes. */
  get value() {
    return unwrap(this.#early.reduce(this.#over, this.#over(this.#base(), this.typed)));
  }

  /** How many changes are not confirmed. */
  get pending() {
    return this.#settled.length + this.#queue.length + (this.flying ? 1 : 0) + (this.typed || this.#early.length ? 1 : 0);
  }

  /** What there will be once all that was sent is stored. */
  #base() {
    let value = this.#settled.reduce(this.#over, wrap(this.confirmed));
    if (!this.#landed) value = this.#over(value, this.flying);
    return this.#queue.reduce(this.#over, value);
  }

  /** Whether what is confirmed has the change under way. Not each revision says whose it is: of sums there is what they make. */
  get #landed() {
    const { sums } = this.flying ?? {};
    const same = (/** @type {[string, number]} */ [where, sum]) => at(wrap(this.confirmed), ["d", ...names(where)]) === sum;
    return this.#echoed || (!!sums && Object.entries(sums).every(same));
  }

  /**
   * @param {any} value
   * @param {Wish} [change]
   */
  #over = (value, { patch, add } = {}) => {
    if (patch !== undefined) value = apply(value, patch);
    for (const [where, amount] of Object.entries(add ?? {})) {
      const path = ["d", ...names(where)];
      const there = at(value, path) ?? 0;
      if (typeof there === "number") value = put(value, path, there + amount);
    }
    return value;
  };

  /**
   * @param {any} patch a merge patch; null deletes
   * @param {Record<string, number>} [add] what is added to numbers, by JSON Pointer
   * @param {Joint} [joint] the change of several documents that it is a part of
   */
  change(patch, add, joint) {
    this.#wish(given({ patch: patch === undefined ? undefined : wrap(patch), add, joint }));
  }

  /** @param {Wish} wish */
  #wish(wish) {
    const { patch, add, joint } = wish;
    if (this.revision === undefined && (add || joint || !this.typed)) this.#early.push(wish);
    else if (!add && !joint) this.#type({ patch }, this.#base());
    else {
      if (this.typed) this.#queue.push(this.typed);
      this.typed = undefined;
      this.#queue.push(patch ? { ...wish, was: complete(replaced(patch, this.#base()), patch) } : wish);
    }
  }

  /**
   * Give up a part of a joint change that has not been sent.
   * @param {Joint} joint
   */
  drop(joint) {
    const others = (/** @type {Wish} */ each) => each.joint !== joint;
    [this.#queue, this.#early] = [this.#queue.filter(others), this.#early.filter(others)];
    if (this.flying?.joint === joint) this.#land();
  }

  /**
   * @param {{patch: any, was?: any}} change
   * @param {any} base
   */
  #type({ patch, was }, base) {
    const whole = this.typed ? joined(this.typed.patch, patch, base) : patch;
    const before = seen(was ?? {}, replaced(whole, base));
    this.typed = { patch: whole, was: complete(this.typed ? seen(this.typed.was, before) : before, whole) };
  }

  /**
   * The next change to be sent, under this id; undefined: there is none, or one is under way.
   * @param {() => string} id
   */
  next(id) {
    if (this.flying || !this.waits) return undefined;
    this.flying = this.#queue.shift();
    if (!this.flying && this.typed) [this.flying, this.typed] = [{ ...this.typed }, undefined];
    if (this.flying && !this.flying.joint) this.send(this.flying.id ?? id());
    return this.flying;
  }

  /** The change under way is sent, under this id. @param {string} id */
  send(id) {
    const flying = /** @type {Sent} */ (this.flying);
    flying.id = id;
    if (flying.doubtful) return;
    flying.revision = this.revision;
    const made = this.#over(this.#settled.reduce(this.#over, wrap(this.confirmed)), flying);
    if (flying.add) flying.sums = Object.fromEntries(Object.keys(flying.add).map((where) => [where, at(made, ["d", ...names(where)])]));
  }

  /** The change under way may be stored, and nobody has said so. */
  doubt() {
    if (this.flying) this.flying.doubtful = true;
  }

  /** Whether the change under way is in a revision, and so is stored, whatever else is said of it. */
  get echoed() {
    return this.#echoed;
  }

  /** Whether there is something to be sent. */
  get waits() {
    return !!(this.flying || this.typed || this.#queue.length);
  }

  /** All changes that are not stored. @returns {(Sent & Kept)[]} */
  get unsaved() {
    return [this.flying, ...this.#queue, this.typed, ...this.#early].flatMap((each) => each ?? []);
  }

  /** What of them is to be kept over the end of the page; another one may have only one of several documents. @returns {Kept[]} */
  get kept() {
    return this.unsaved.filter(({ joint }) => !joint);
  }

  /**
   * Take over what a page has left that is gone, or what was meant for the same document.
   * @param {(Sent & Kept)[]} left
   */
  inherit(left) {
    for (const each of left) {
      if (each.id || each.was) this.#queue.push({ ...each, doubtful: each.id !== undefined });
      else this.#wish(each);
    }
  }

  /** What is sent of a change. A repetition says from where on the document has to remember it. @param {Sent} change */
  static payload({ id, patch, was, add, revision, doubtful }) {
    const what = patch === undefined ? {} : { patch: patch.d, was: was.d ?? null };
    return given({ id, ...what, add, revision: doubtful || add ? revision : undefined });
  }

  /**
   * The broker's word on the document.
   * @param {{revision: string, value: any, invalid?: string, by?: {id?: string}[]}} said
   */
  heard({ revision, value, invalid, by = [] }) {
    if (superseded(revision, this.revision)) return; // another open has brought it
    this.confirmed = value;
    this.invalid = invalid;
    this.revision = revision;
    if (this.flying && by.some(({ id }) => id === this.flying?.id)) this.#echoed = true;
    this.#settled = this.#settled.filter(
      (each) => comparable(each.revision, revision) && !passed(each.revision, revision) && !by.some(({ id }) => id === each.id),
    );
    for (const wish of this.#early.splice(0)) this.#wish(wish);
  }

  /** @param {string} revision at which the change under way is stored */
  stored(revision) {
    if (!this.#echoed && !passed(revision, this.revision)) this.#settled.push({ .../** @type {Sent} */ (this.flying), revision });
    this.#land();
  }

  #land() {
    this.flying = undefined;
    this.#echoed = false;
  }

  /**
   * The change under way is refused, for what is at these JSON Pointers (without: for all of it), and with it what was
   * typed there since. Nothing of it is stored: what is left of it waits to be sent, but of sums and joint changes, which
   * are one. Returns the patch and sums that came to nothing, and what is there in their place.
   * @param {Record<string, any>} [found]
   * @returns {{mine?: any, add?: Record<string, number>, theirs?: Record<string, any>}}
   */
  refused(found) {
    const flying = /** @type {Sent & Change} */ (this.flying);
    const typed = this.typed;
    this.#land();
    if (flying.add || flying.joint) return { mine: flying.patch?.d, add: flying.add, theirs: found };
    this.typed = undefined;
    const base = this.#base();
    const all = typed ? joined(flying.patch, typed.patch, base) : flying.patch;
    let was = typed ? seen(flying.was, typed.was) : flying.was;
    /** @type {Record<string, any>} */
    const theirs = {};
    for (const [where, value] of Object.entries(found ?? {})) {
      const path = ["d", ...names(where)];
      const made = leaves(at(all, path)).map(([below]) => below);
      // Who has made an object where there was nothing, as somebody else has, is contradicted where both have set something.
      const both = isObject(value) && at(was, path) === null && made[0]?.length ? made.filter((below) => at(value, below) !== null) : [[]];
      for (const below of both) theirs[where + pointer(below)] = at(value, below);
      if (!both.length || both[0].length) was = put(was, path, value);
    }
    const broken = found ? Object.keys(theirs).map((each) => `/d${each}`) : leaves(flying.patch).map(([path]) => pointer(path));
    const of = leaves(all);
    const lost = (/** @type {[string[], any]} */ [path]) => broken.some((each) => touches(pointer(path), each));
    const kept = part(of.filter((each) => !lost(each)), was);
    if (kept) this.#type(kept, base);
    return { mine: part(of.filter(lost), was)?.patch.d, theirs };
  }
}
