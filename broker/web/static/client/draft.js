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

/** @typedef {{patch: any, was: any}} Change */
/** @typedef {Change & {id: string, revision?: string, doubtful?: boolean}} Sent the newest revision that it was first sent on; doubtful: the broker may have it already */
/** @typedef {{patch: any, was?: any, id?: string, revision?: string}} Kept what is kept of a change: with an id it may have been sent */
/** @typedef {{id: string, patch: any, revision: string}} Settled */

// All patches here are of an object that has the document as its member `d`: so a document that there is none of is a
// member that is absent, as any other.
const wrap = (/** @type {any} */ value) => ({ d: value });
const unwrap = (/** @type {any} */ value) => value?.d ?? null;

export class Draft {
  /** @type {any} the newest value that the broker has said; null: there is none */
  confirmed = null;
  /** @type {string | undefined} */
  revision;
  /** @type {Sent | undefined} the change that has been sent, and has no answer */
  flying;
  /** @type {Change | undefined} what has been changed since */
  typed;
  /** @type {Sent[]} changes of pages that are gone, which come before */
  #inherited = [];
  /** @type {Settled[]} changes that are answered, until their revision is here */
  #settled = [];
  /** @type {any[]} patches from before anything was known: of what they replace they say what is first there */
  #early = [];
  #echoed = false; // the change under way is in what is confirmed

  /** The document with all of the user's own changes. */
  get value() {
    return unwrap(this.#early.reduce(apply, this.#over(this.#base(), this.typed)));
  }

  /** How many changes are not confirmed. */
  get pending() {
    return this.#settled.length + this.#inherited.length + (this.flying ? 1 : 0) + (this.typed || this.#early.length ? 1 : 0);
  }

  /** What there will be once all that was sent is stored. */
  #base() {
    let value = wrap(this.confirmed);
    for (const { patch } of this.#settled) value = apply(value, patch);
    if (!this.#echoed) value = this.#over(value, this.flying);
    return this.#inherited.reduce(this.#over, value);
  }

  /**
   * @param {any} value
   * @param {Change} [change]
   */
  #over = (value, change) => (change ? apply(value, change.patch) : value);

  /** @param {any} patch a merge patch; null deletes */
  change(patch) {
    if (this.revision === undefined && !this.typed) this.#early.push(wrap(patch));
    else this.#type({ patch: wrap(patch) }, this.#base());
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
    this.flying = this.#inherited.shift();
    if (!this.flying && this.typed) {
      this.flying = { id: id(), ...this.typed };
      this.typed = undefined;
    }
    if (this.flying && !this.flying.doubtful) this.flying.revision = this.revision;
    return this.flying;
  }

  /** The change under way may be stored, and nobody has said so. */
  doubt() {
    if (this.flying) this.flying.doubtful = true;
  }

  /** What is confirmed has the change under way, which is stored, whatever else is said of it. */
  seen() {
    if (this.#echoed) this.#land();
    return !this.flying;
  }

  /** Whether there is something to be sent. */
  get waits() {
    return !!(this.flying || this.typed || this.#inherited.length);
  }

  /** What is to be kept over the end of the page. @returns {Kept[]} */
  get kept() {
    const all = [this.flying, ...this.#inherited, this.typed, ...this.#early.map((patch) => ({ patch }))];
    return all.flatMap((each) => each ?? []);
  }

  /**
   * Take over what a page has left that is gone.
   * @param {Kept[]} kept
   * @param {() => string} id
   */
  inherit(kept, id) {
    for (const { patch, was, id: known, revision } of kept) {
      if (was) this.#inherited.push({ patch, was, id: known ?? id(), revision, doubtful: known !== undefined });
      else this.change(patch.d);
    }
  }

  /** What is sent of a change. A repetition says from where on the document has to remember it. @param {Sent} change */
  static payload({ id, patch, was, revision, doubtful }) {
    return given({ id, patch: patch.d, was: was.d ?? null, revision: doubtful ? revision : undefined });
  }

  /**
   * The broker's word on the document.
   * @param {{revision: string, value: any, by?: {id?: string}[]}} said
   */
  heard({ revision, value, by = [] }) {
    if (superseded(revision, this.revision)) return; // another open has brought it
    this.confirmed = value;
    this.revision = revision;
    if (this.flying && by.some(({ id }) => id === this.flying?.id)) this.#echoed = true;
    this.#settled = this.#settled.filter(
      (each) => comparable(each.revision, revision) && !passed(each.revision, revision) && !by.some(({ id }) => id === each.id),
    );
    for (const patch of this.#early.splice(0)) this.#type({ patch }, this.#base());
  }

  /** @param {string} revision at which the change under way is stored */
  stored(revision) {
    const { id, patch } = /** @type {Sent} */ (this.flying);
    if (!this.#echoed && !passed(revision, this.revision)) this.#settled.push({ id, patch, revision });
    this.#land();
  }

  #land() {
    this.flying = undefined;
    this.#echoed = false;
  }

  /**
   * The change under way is refused, for what is at these JSON Pointers (without: for all of it), and with it what was
   * typed there since. Nothing of it is stored: what is left of it waits to be sent. Returns the patch that came to
   * nothing, and what is there in its place.
   * @param {Record<string, any>} [found]
   */
  refused(found) {
    const flying = /** @type {Sent} */ (this.flying);
    const typed = this.typed;
    this.#land();
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
