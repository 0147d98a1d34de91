/**
 * React hooks over the browser client. React (18 or later) is a peer; nothing else is needed.
 *
 *     <BrokerProvider client={client}><App /></BrokerProvider>
 *
 *     const { events, state } = useChannel("orders.>", { last: 10 });
 *     const { state } = useConnection();
 *     const { notifications, unread, markRead } = useNotifications();
 *     const { request, data, error, pending } = useRequest("orders.approve");
 *     const { events, more, loading, loadOlder } = useHistory("chat.7", { limit: 50 });
 *     const { value, change, conflict } = useDocument("orders.7");
 *     const { all, change } = useCollection("board.7.*");
 *     const { users, set } = usePresence("orders.7", { state: { color: "red" } });
 *     const { editors, begin, end } = useEditing("orders.7", "note");
 *
 * Components that ask for the same share one subscription. It is kept for a moment after the last of them is
 * gone, so that a re-mount, as in strict mode, costs nothing. What they render is one frozen value, replaced
 * as a whole (`useSyncExternalStore`), so no two of them ever show different states in one rendering.
 */

import { createContext, createElement, useCallback, useContext, useEffect, useMemo, useRef, useState, useSyncExternalStore } from "react";

const LINGER_MS = 500;
const KEEP = 100;
const IDLE = 50; // so many lists that nobody shows are kept for who comes back

// What a server renders, and so what a page begins with that takes it over, however far the client is by then.
const EMPTY = Object.freeze({ events: [], last: undefined, gap: undefined, state: "pending", error: undefined, unread: 0 });
const CONNECTING = Object.freeze({ state: "connecting" });

const Context = createContext(null);
const feeds = new WeakMap(); // client → key → feed

let leaving; // the feeds that lost their last listener in this turn

/** Closes a feed in a moment, with all those of the same turn: what a page lets go of at once is one message. */
function leave(feed) {
  if (!leaving) {
    const feeds = (leaving = new Set());
    queueMicrotask(() => (leaving = undefined));
    setTimeout(() => feeds.forEach((each) => each.close()), LINGER_MS);
  }
  leaving.add(feed);
  return leaving;
}

/** The same for the same channels, in whatever order, and for the same options. */
const keyOf = (channels, options) =>
  JSON.stringify([[...new Set([channels].flat())].sort(), Object.entries(options).sort(([a], [b]) => (a < b ? -1 : 1))]);

export const BrokerProvider = ({ client, children }) => createElement(Context.Provider, { value: client }, children);

/** The client of the nearest provider. */
export function useClient() {
  const client = useContext(Context);
  if (!client) throw new Error("there is no <BrokerProvider client={…}> around this component");
  return client;
}

/** How the connection stands. */
export function useConnection() {
  const client = useClient();
  const listen = useCallback(
    (listener) => {
      client.addEventListener("status", listener);
      return () => client.removeEventListener("status", listener);
    },
    [client],
  );
  return useSyncExternalStore(listen, () => client.status, () => CONNECTING);
}

/** What a subscription has brought, as one value for all who ask for the same. */
class Feed {
  #client;
  #channels;
  #options;
  #keep;
  #listeners = new Set();
  #subscription;
  #leaving; // with these, if nobody comes back
  idle = false; // nobody has shown it for a while
  value = EMPTY;

  constructor(client, channels, { keep = KEEP, ...options }) {
    this.#client = client;
    this.#channels = channels;
    this.#options = options;
    this.#keep = keep;
  }

  listen = (listener) => {
    this.#listeners.add(listener);
    this.#leaving?.delete(this);
    // There may be room for it by now.
    if (!this.#subscription || this.value.error?.code === "limit_subscriptions") this.#open();
    return () => {
      this.#listeners.delete(listener);
      if (!this.#listeners.size) this.#leaving = leave(this);
    };
  };

  close() {
    const subscription = this.#subscription;
    this.#subscription = undefined;
    this.idle = true;
    subscription.close();
  }

  get = () => this.value;

  #open() {
    const { position } = this.#last ?? {};
    // Who comes back goes on from where the list ends.
    const options = position && !this.#options.snapshot ? { ...this.#options, since: undefined, last: undefined, position } : this.#options;
    const subscription = (this.#subscription = this.#client.subscribe(this.#channels, options));
    this.idle = false;
    if (this.value !== EMPTY) this.#say({ error: undefined, state: "pending" }); // it may be allowed by now
    let events = []; // of this turn
    subscription.addEventListener("event", ({ detail }) => {
      events.push(detail);
      if (events.length > 1) return;
      queueMicrotask(() => {
        const all = [...this.value.events, ...events].slice(-this.#keep);
        this.#say({ events: all, last: all.at(-1), unread: this.value.unread + events.length });
        events = [];
      });
    });
    subscription.addEventListener("gap", ({ detail }) => this.#say({ gap: detail }));
    subscription.addEventListener("state", ({ detail }) => subscription === this.#subscription && this.#say({ state: detail }));
    subscription.addEventListener("error", ({ detail }) => this.#say({ error: detail }));
  }

  get #last() {
    return this.value.events.findLast((item) => item.position);
  }

  /** All that has come so far has been read; on the user's other devices too. */
  markRead = async () => {
    this.#say({ unread: 0 });
    const { position } = this.#last ?? {};
    if (position && this.#options.durable) await this.#subscription?.acknowledge(position);
  };

  #say(change) {
    this.value = Object.freeze({ ...this.value, ...change });
    for (const listener of [...this.#listeners]) listener();
  }
}

function useFeed(channels, options) {
  const client = useClient();
  const key = keyOf(channels, options);
  if (!feeds.has(client)) feeds.set(client, new Map());
  const known = feeds.get(client);
  const feed = known.get(key) ?? new Feed(client, channels, options);
  if (!known.has(key)) {
    const idle = [...known].filter(([, each]) => each.idle).slice(0, -IDLE);
    for (const [name] of idle) known.delete(name); // the oldest
    known.set(key, feed);
  }
  return [feed, useSyncExternalStore(feed.listen, feed.get, () => EMPTY)];
}

/**
 * The newest `keep` events of channels or patterns, oldest first, as they come. Options are those of
 * `subscribe`, compared by their content.
 */
export function useChannel(channels, options = {}) {
  const [, { events, last, gap, state, error }] = useFeed(channels, options);
  return { events, last, gap, state, error };
}

/**
 * The user's own notifications, newest first. With a `durable` name what was read stays read, also on other
 * devices; without a cursor of that name the newest `keep` are there to begin with.
 */
export function useNotifications({ channel = "me.notifications", durable = "notifications", keep = 50 } = {}) {
  const [{ markRead }, { events, unread, state, error }] = useFeed(channel, { durable: durable || undefined, last: keep, keep });
  const notifications = useMemo(() => [...events].reverse(), [events]);
  return { notifications, unread, markRead, state, error };
}

const NEWS = ["change", "state", "stale", "conflict", "rejected", "error"];

/** A document, a collection or a room, as one value for all who show the same. */
class Shown {
  #make;
  #look;
  #listeners = new Set();
  held;
  #leaving; // with these, if nobody comes back
  #told = {}; // what became of changes
  #soon = false;
  idle = false; // nobody has shown it for a while

  constructor(make, look, nothing) {
    this.#make = make;
    this.#look = look;
    this.value = this.empty = Object.freeze({ ...look(nothing), state: "pending", change: this.change, dismiss: this.dismiss });
  }

  listen = (listener) => {
    this.#listeners.add(listener);
    this.#leaving?.delete(this);
    if (!this.held || this.held.state === "closed") this.#open();
    return () => {
      this.#listeners.delete(listener);
      if (!this.#listeners.size) this.#leaving = leave(this);
    };
  };

  get = () => this.value;

  change = (...args) => this.held.change(...args);

  /** The conflict, or the refusal, has been seen. */
  dismiss = () => {
    this.#told = {};
    this.#say();
  };

  close() {
    const held = this.held;
    this.held = undefined;
    this.idle = true;
    held.close();
  }

  #open() {
    const held = (this.held = this.#make());
    this.idle = false;
    for (const type of NEWS)
      held.addEventListener(type, ({ detail }) => {
        if (held !== this.held) return;
        if (type === "conflict" || type === "rejected") this.#told = { [type]: detail };
        if (this.#soon) return;
        this.#soon = true; // what comes in one turn is rendered once
        queueMicrotask(() => {
          this.#soon = false;
          if (held === this.held) this.#say();
        });
      });
    this.#say();
  }

  #say() {
    const { state, error } = this.held ?? { state: "closed" };
    this.value = Object.freeze({ ...this.#look(this.held ?? this.value), ...this.#told, state, error, change: this.change, dismiss: this.dismiss });
    for (const listener of [...this.#listeners]) listener();
  }
}

function useHeld(key, make, look, nothing) {
  const client = useClient();
  if (!feeds.has(client)) feeds.set(client, new Map());
  const known = feeds.get(client);
  const shown = known.get(key) ?? new Shown(() => make(client), look, nothing);
  if (!known.has(key)) {
    const idle = [...known].filter(([, each]) => each.idle).slice(0, -IDLE);
    for (const [name] of idle) known.delete(name); // the oldest
    known.set(key, shown);
  }
  return [shown, useSyncExternalStore(shown.listen, shown.get, () => shown.empty)];
}

const useShown = (...asked) => useHeld(...asked)[1];

/** A document that others change too, with one's own changes shown at once. */
export const useDocument = (channel) =>
  useShown(`document ${channel}`, (client) => client.document(channel), ({ value, confirmed, invalid, pending }) => ({ value, confirmed, invalid, pending }), { value: null, confirmed: null, pending: 0 });

/** The documents of a pattern, likewise. */
export const useCollection = (pattern) => useShown(`collection ${pattern}`, (client) => client.collection(pattern), ({ all, invalid }) => ({ all, invalid }), { all: new Map(), invalid: new Map() });

const ALONE = { users: [], count: { users: 0, sessions: 0 }, stale: true };
const useRoom = (channel, enter) =>
  useHeld(`presence ${enter} ${channel}`, (client) => client.presence(channel, { enter }), ({ users, count, stale }) => ({ users, count, stale }), ALONE);
/** A state that has members, or none of it. */
const members = (state) => (state && typeof state === "object" && !Array.isArray(state) ? state : {});

/** Who is in a channel, with this page among them unless `enter` is false; all who say so here are there once. */
export function usePresence(channel, { state, enter = true } = {}) {
  const [shown, { users, count, stale, error }] = useRoom(channel, enter);
  const said = JSON.stringify(state);
  const set = useCallback((state) => shown.held?.set(state), [shown]);
  useEffect(() => {
    if (said === undefined) return;
    const { editing } = members(shown.held?.own); // which `useEditing` has said
    const state = JSON.parse(said);
    set(editing === undefined ? state : { ...members(state), editing });
  }, [shown, said, set]);
  return { users, count, stale, error, set };
}

/** Which other users edit a field of what the channel is about. */
export function useEditing(channel, field) {
  const client = useClient();
  const [shown, { users }] = useRoom(channel, true);
  const begin = useCallback(() => shown.held?.set({ ...members(shown.held.own), editing: field }), [shown, field]);
  const end = useCallback(() => {
    const { editing, ...rest } = members(shown.held?.own);
    if (editing === field) shown.held.set(rest);
  }, [shown, field]);
  useEffect(() => end, [end]);
  const edits = ({ user, sessions }) => user !== client.status.user && sessions.some(({ state }) => state?.editing === field);
  const editors = useMemo(() => users.filter(edits), [users, field, client]);
  return { editors, begin, end };
}

/**
 * Asks a service when `request` is called, and shows what the newest call came to. An earlier one still gets its
 * answer, by the promise that its call returned.
 */
export function useRequest(method) {
  const client = useClient();
  const [state, show] = useState({});
  const current = useRef({ gone: false, answer: undefined });
  useEffect(() => {
    current.current.gone = false;
    return () => void (current.current.gone = true);
  }, []);
  const request = useCallback(
    (data, options) => {
      const answer = client.request(method, data, options);
      const say = (change) => {
        const { gone, answer: newest } = current.current;
        if (!gone && newest === answer) show((before) => ({ data: of(before, client, method).data, ...change, client, method }));
      };
      current.current.answer = answer;
      say({ pending: true });
      answer.then((data) => say({ data }), (error) => say({ error })); // which nobody else has to catch
      return answer;
    },
    [client, method],
  );
  const { data, error, pending = false } = of(state, client, method);
  return { request, data, error, pending };
}

const UNREAD = Object.freeze({ events: [], more: false, loading: true, error: undefined });

/** What a component shows of the past of channels: pages, the newest first, and what has come since. */
class Past {
  #client;
  #channels;
  #options;
  #say;
  #again;
  #over = new AbortController();
  #loading = false;
  #page;
  #subscription;
  #value = UNREAD;

  constructor(client, channels, options, say, again) {
    this.#client = client;
    this.#channels = channels;
    this.#options = options;
    this.#say = say;
    this.#again = again;
  }

  close() {
    this.#over.abort();
    this.#subscription?.close();
  }

  older = async () => {
    if (this.#loading || (this.#page && !this.#page.more)) return;
    this.#loading = true;
    this.#show({ loading: true, error: undefined });
    const { signal } = this.#over;
    const { limit, filter } = this.#options;
    try {
      let page = this.#page;
      do page = await (page?.older({ signal }) ?? this.#client.history(this.#channels, { limit, filter, signal }));
      while (page.recovered && page.more && !page.events.length);
      if (!page.recovered) return this.#again(); // the stream is another one
      const newest = !this.#page;
      this.#page = page;
      this.#show({ events: [...page.events, ...this.#value.events], more: page.more });
      if (newest && this.#options.live) this.#follow(page.last);
    } catch (error) {
      this.#show({ error });
    } finally {
      this.#loading = false;
      this.#show({ loading: false });
    }
  };

  #follow(position) {
    const subscription = (this.#subscription = this.#client.subscribe(this.#channels, { position, filter: this.#options.filter }));
    subscription.addEventListener("event", ({ detail }) => this.#show({ events: [...this.#value.events, detail] }));
    subscription.addEventListener("gap", ({ detail }) => detail.action === "reload" && this.#again());
    subscription.addEventListener("error", ({ detail }) => this.#show({ error: detail }));
  }

  #show(change) {
    if (this.#over.signal.aborted) return;
    this.#value = Object.freeze({ ...this.#value, ...change });
    this.#say(this.#value);
  }
}

/** The newest events of channels or patterns, what comes after them, and older ones when `loadOlder` is called. */
export function useHistory(channels, { limit, filter, live = true } = {}) {
  const client = useClient();
  const key = keyOf(channels, { limit, filter, live });
  const [state, show] = useState({});
  const [times, begin] = useState(0);
  const current = useRef();
  useEffect(() => {
    const say = (value) => show({ value, client, key });
    const past = new Past(client, channels, { limit, filter, live }, say, () => begin((before) => before + 1));
    current.current = past;
    past.older();
    return () => past.close();
  }, [client, key, times]);
  const loadOlder = useCallback(async () => current.current?.older(), []);
  const { events, more, loading, error } = state.client === client && state.key === key ? state.value : UNREAD;
  return { events, more, loading, error, loadOlder };
}

/** What is shown of a state, if it is of this method and no other. */
const of = (state, client, method) => (state.client === client && state.method === method ? state : {});
