// @ts-check
/** The part for presence: which channels are entered and watched, and who is there. */

import { failure } from "./errors.js";
import { TRIES, inVain } from "./exchange.js";
import { NOBODY, compared, grouped, keyOf } from "./members.js";
import { expand, misnamed } from "./names.js";
import { BACKOFF_MS } from "./pace.js";
import { now } from "./platform.js";
import { Session } from "./sessions.js";
import { given } from "./values.js";

/** @import { BrokerError } from "./errors.js" */
/** @import { Exchange } from "./exchange.js" */
/** @import { Part, PresenceMember, RoomUser } from "./types.js" */
/** @typedef {"enter" | "watch"} Kind */

const UPDATE_MS = 200; // between two states: the broker shows no more
const TYPING_MS = 1_000; // typing is said so often
const TYPED_MS = 3_000; // and seen for so long
const nothing = () => {};
const UNHEARD = { done: nothing, refused: nothing, lost: nothing, doubted: nothing };

/** Something that is asked for once on each connection, until it is refused for good. */
class Wish {
  asked = false;
  done = false;
  doubts = 0;
  after = 0; // it is not asked for before
  /** @type {BrokerError | undefined} why it is asked for no more */
  error;

  again() {
    this.asked = this.done = false;
    if (this.error?.code === "unavailable") this.error = undefined; // another transport may have it
  }
}

/** A channel: what is wanted of it, and who is there. */
class Place {
  name;
  full;
  /** @type {Set<RoomUser>} */
  rooms = new Set();
  enter = new Wish();
  watch = new Wish();
  /** @type {any} what the others are to see */
  state = null;
  /** @type {{state?: any, hidden?: boolean}} what was sent of it */
  said = {};
  /** @type {string | undefined} the field, where that is still to be said */
  field;
  typed = -Infinity;
  updating = false;
  after = 0; // nothing is said before
  /** @type {string | undefined} in which it was entered */
  session;
  /** @type {Map<string, PresenceMember>} */
  members = new Map();
  /** @type {Map<string, PresenceMember> | undefined} of a whole set that is coming */
  fresh;
  /** @type {string | undefined} */
  position;
  view = NOBODY;

  /**
   * @param {string} name
   * @param {string} full
   */
  constructor(name, full) {
    this.name = name;
    this.full = full;
  }

  get #entering() {
    return [...this.rooms].filter(({ enters }) => enters);
  }

  /** @param {Kind} kind */
  wants(kind) {
    return (kind === "watch" ? this.rooms.size : this.#entering.length) > 0;
  }

  get hidden() {
    return this.#entering.every(({ hidden }) => hidden);
  }

  /** Whether there is something to say. */
  get news() {
    return this.said.state !== this.state || this.said.hidden !== this.hidden || this.field !== undefined;
  }
}

/** @implements {Part} */
export class Presence {
  #exchange;
  #session;
  /** @type {string | undefined} what `me` stands for */
  #private;
  /** @type {Map<string, Place>} by full name */
  #places = new Map();

  /** @param {Exchange} exchange */
  constructor(exchange) {
    this.#exchange = exchange;
    this.#session = new Session(() => exchange.soon());
    globalThis.addEventListener?.("visibilitychange", this.#seen);
  }

  // --- what is wanted ----------------------------------------------------------------------------------

  /**
   * @param {RoomUser} room
   * @param {any} [state]
   */
  open(room, state) {
    const fault = misnamed(room.name, false);
    if (fault) throw failure("invalid_channel", `${JSON.stringify(room.name)}: ${fault}`);
    const full = expand(room.name, this.#private);
    const place = this.#places.get(full) ?? new Place(room.name, full);
    this.#places.set(full, place);
    place.rooms.add(room);
    for (const kind of /** @type {Kind[]} */ (["enter", "watch"])) if (place[kind].error) place[kind] = new Wish(); // who asks again has a reason
    room.shown(place.view);
    if (room.enters) this.#session.need();
    if (state !== undefined) place.state = state;
    this.#exchange.soon();
  }

  /** @param {RoomUser} room */
  #of(room) {
    const place = this.#places.get(expand(room.name, this.#private));
    return place?.rooms.has(room) ? place : undefined;
  }

  /** @param {RoomUser} room */
  own(room) {
    return this.#of(room)?.state;
  }

  /**
   * @param {RoomUser} room
   * @param {any} state
   */
  set(room, state) {
    const place = this.#of(room);
    if (!place) return;
    place.state = state;
    place.field = undefined;
    this.#exchange.soon();
  }

  /**
   * @param {RoomUser} room
   * @param {string} field
   */
  typing(room, field) {
    const place = this.#of(room);
    if (!place || now() - place.typed < TYPING_MS) return;
    place.typed = now();
    place.field = field;
    this.#exchange.soon();
  }

  /** Whether a page is hidden may have changed. */
  turned() {
    this.#exchange.soon();
  }

  #seen = () => {
    const hidden = globalThis.document?.visibilityState === "hidden";
    for (const { rooms } of this.#places.values()) for (const room of rooms) room.hidden = hidden;
    this.turned();
  };

  /** @param {RoomUser} room */
  close(room) {
    const place = this.#of(room);
    if (!place) return;
    place.rooms.delete(room);
    if (!place.wants("enter")) this.#end(place, "enter");
    if (!place.wants("watch")) {
      this.#end(place, "watch");
      this.#places.delete(place.full);
    }
    this.#exchange.soon();
  }

  /**
   * @param {Place} place
   * @param {Kind} kind
   */
  #end(place, kind) {
    if (place[kind].asked && !place[kind].error) this.#leave(place, kind);
    place[kind] = new Wish();
  }

  /**
   * @param {Place} place
   * @param {Kind} kind
   */
  #leave({ full: channel }, kind) {
    if (this.#exchange.link) this.#exchange.send(kind === "enter" ? "presence.leave" : "presence.unwatch", { channel }, UNHEARD);
  }

  /** For good, while there is still a connection: who has left on purpose is gone at once. */
  closeAll() {
    for (const { rooms } of [...this.#places.values()]) for (const room of [...rooms]) this.close(room);
    this.#session.close();
    globalThis.removeEventListener?.("visibilitychange", this.#seen);
  }

  // --- the connection ----------------------------------------------------------------------------------

  /** @param {import("./types.js").Who} who */
  opened({ private: room }) {
    this.#private = room;
    for (const [name, place] of [...this.#places]) {
      place.enter.again();
      place.watch.again();
      place.full = expand(place.name, room);
      if (place.full === name) continue;
      this.#places.delete(name);
      const held = this.#places.get(place.full); // by its full name
      for (const each of held ? place.rooms : []) held?.rooms.add(each);
      if (!held) this.#places.set(place.full, place);
    }
  }

  lost() {
    for (const place of this.#places.values()) {
      place.enter.again();
      place.watch.again();
      place.updating = false;
      place.fresh = undefined;
      this.#show(place, true);
    }
  }

  sync() {
    if (!this.#exchange.link) return;
    for (const place of this.#places.values()) {
      if (this.#due(place.watch)) this.#watch(place);
      if (this.#session.name && place.wants("enter") && this.#due(place.enter)) this.#enter(place, this.#session.name);
      const says = place.enter.done && place.news && !place.updating;
      if (says && this.#exchange.due(place.after) && this.#exchange.may()) this.#update(place);
    }
  }

  /** @param {Wish} wish */
  #due({ asked, error, after, doubts }) {
    return !asked && !error && this.#exchange.due(after) && this.#exchange.may(undefined, doubts);
  }

  /** @param {Place} place */
  #watch(place) {
    this.#ask(place, "watch", "presence.watch", given({ channel: place.full, position: place.position }));
  }

  /**
   * @param {Place} place
   * @param {string} session
   */
  #enter(place, session) {
    const { full: channel, state, hidden } = place;
    place.said = { state, hidden };
    place.session = session;
    place.after = now() + UPDATE_MS;
    this.#ask(place, "enter", "presence.enter", given({ channel, session, state: state ?? undefined, away: hidden || undefined }));
  }

  /**
   * @param {Place} place
   * @param {Kind} kind
   * @param {string} type
   * @param {object} payload
   */
  #ask(place, kind, type, payload) {
    const wish = place[kind];
    wish.asked = true;
    const over = (/** @type {BrokerError} */ error) => this.#over(place, wish, error);
    const reply = {
      done: () => {
        if (place[kind] !== wish) return;
        wish.done = true;
        wish.doubts = 0;
      },
      refused: (/** @type {BrokerError} */ error) => {
        if (error.code === "invalid_position") place.position = undefined;
        else if (!error.retryable) return over(error);
        wish.asked = false;
        wish.after = now() + (error.retryAfter ?? BACKOFF_MS);
        this.#exchange.soon();
      },
      lost: nothing,
      doubted: (/** @type {"timeout" | "bad_message"} */ code) => ++wish.doubts >= TRIES && over(inVain(code)),
      oversized: over,
    };
    this.#exchange.send(type, payload, reply, undefined, wish.doubts);
  }

  /**
   * @param {Place} place
   * @param {Wish} wish
   * @param {BrokerError} error
   */
  #over(place, wish, error) {
    wish.error = error;
    wish.done = false;
    for (const room of [...place.rooms]) if (wish === place.watch || room.enters) room.failed(error);
  }

  /** @param {Place} place */
  #update(place) {
    const { full: channel, state, said, hidden, field } = place;
    /** @type {{channel: string, state?: any, for_ms?: number, away?: true | null}} */
    const payload = { channel };
    if (said.state !== state) payload.state = state;
    else if (field !== undefined) {
      const base = state && typeof state === "object" && !Array.isArray(state) ? state : {};
      Object.assign(payload, { state: { ...base, typing: field }, for_ms: TYPED_MS });
      place.field = undefined;
    }
    if (said.hidden !== hidden) payload.away = hidden || null;
    place.said = { state, hidden };
    place.after = now() + UPDATE_MS;
    place.updating = true;
    const over = () => (place.updating = false);
    this.#exchange.send("presence.update", payload, {
      done: over,
      refused: (error) => {
        over();
        if (error.code === "not_entered") place.enter.again();
        else if (!error.retryable) return place.rooms.forEach((room) => room.failed(error));
        else [place.said, place.after] = [{}, now() + (error.retryAfter ?? BACKOFF_MS)];
        this.#exchange.soon();
      },
      lost: over,
      doubted: nothing, // it comes again with the next enter, and is judged there
    });
  }

  // --- what is heard -----------------------------------------------------------------------------------

  /** @type {Part["hears"]} */
  hears = {
    "presence.watched": ({ channel, detail }) => {
      const place = this.#places.get(channel);
      if (!place) return;
      place.fresh = undefined;
      place.view = Object.freeze({ ...place.view, detail });
    },
    presence: ({ channel, position, set, gone, users, sessions, whole, complete }) => {
      const place = this.#places.get(channel);
      if (!place?.watch.asked) return;
      if (whole) place.fresh ??= new Map();
      const into = place.fresh ?? place.members;
      for (const member of set) into.set(keyOf(member), member);
      for (const member of gone) into.delete(keyOf(member));
      if (place.fresh && !complete) return;
      place.members = into;
      place.fresh = undefined;
      place.position = position;
      this.#show(place, false, { users, sessions });
    },
    "presence.left": ({ channel, code }) => {
      const place = this.#places.get(channel);
      if (!code || !place?.enter.asked) return;
      if (code !== "replaced") return this.#over(place, place.enter, failure(code, `${channel}: the broker has ended it`));
      place.enter.again();
      if (this.#session.name === place.session) this.#session.renew(); // for all channels once
      this.#exchange.soon();
    },
    "presence.unwatched": ({ channel, code }) => {
      const place = this.#places.get(channel);
      if (!code || !place) return;
      this.#over(place, place.watch, failure(code, `${channel}: the broker has ended it`));
      this.#show(place, true);
    },
  };

  /**
   * @param {Place} place
   * @param {boolean} stale
   * @param {{users: number, sessions: number}} count
   */
  #show(place, stale, count = place.view.count) {
    const before = place.view;
    const members = Object.freeze([...place.members.values()]);
    place.view = Object.freeze({ users: grouped(members), members, count: Object.freeze(count), detail: before.detail, stale });
    const change = compared(before, place.view);
    for (const room of [...place.rooms]) room.shown(place.view, change);
  }
}
