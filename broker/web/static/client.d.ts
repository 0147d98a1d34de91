/** Any JSON value. Integers beyond 2^53 lose digits in JavaScript: send them as strings. */
export type Json = null | boolean | number | string | Json[] | { [name: string]: Json };

export type Transport = "websocket" | "sse" | "poll";
export type Lag = "replay" | "latest" | "drop" | "close";

/** An EventTarget whose events are known; each is a CustomEvent with its news in `detail`. */
export interface Emitter<Events> {
  addEventListener<K extends keyof Events & string>(
    type: K,
    listener: ((event: Events[K]) => void) | null,
    options?: boolean | AddEventListenerOptions,
  ): void;
  removeEventListener<K extends keyof Events & string>(
    type: K,
    listener: ((event: Events[K]) => void) | null,
    options?: boolean | EventListenerOptions,
  ): void;
}

export interface ClientOptions {
  /** Where the broker is; by default where this module came from. */
  url?: string | URL;
  /**
   * The token, or what fetches one: at first, ahead of the expiry, and whenever one was refused. A callback that
   * throws, takes too long or gives no token (a page that says "502 Bad Gateway", say) is asked again, with
   * back-off, for as long as it takes; `status.error` says why. So let it throw unless `answer.ok`.
   */
  token: string | (() => string | Promise<string>);
  /** How long the callback may take, in ms. Default 10000. */
  tokenTimeout?: number;
  /** For monitoring tokens alone: whose events. */
  tenant?: string;
  /** In the order in which they are tried; the one that works is remembered for an hour. */
  transports?: Transport[];
  /** How many publishes, and how many requests, may wait; another one is refused with `queue_full`. Default 100. */
  queue?: number;
  /**
   * One connection for all tabs that say the same here, by Web Locks and BroadcastChannel; where the browser
   * has neither, each tab has its own. Tabs whose tokens say different things of the user, the tenant or the
   * permissions never share, whatever they say here.
   */
  tabs?: string;
  /**
   * Keeps changes of documents that are not confirmed in an IndexedDB of this name, so that they survive a reload or a
   * crash: whoever opens the document next, as the same user, takes them over and sends them. Without Web Locks or
   * IndexedDB nothing is kept.
   */
  drafts?: string;
}

export interface Status {
  /**
   * `connecting`; `open`; `waiting` until `retryAt`, or for a page that is not shown until it is; `closed` by
   * `close`, `disconnect`, or because the broker has refused the same token twice, and then `error` says why.
   */
  readonly state: "connecting" | "open" | "waiting" | "closed";
  /** `poll` also where SSE leaves the few connections of HTTP/1.1 to other tabs. */
  readonly transport?: Transport | "tabs";
  readonly connectionId?: string;
  readonly tenant?: string;
  readonly user?: string;
  /** What `me` stands for in channels: `users.<you>`. */
  readonly private?: string;
  /** When the next attempt is made, in ms since 1970. */
  readonly retryAt?: number;
  /** Why there is no connection; `code` is a WebSocket close code, an HTTP status, or `token`: none was to be had. */
  readonly error?: { readonly code?: number | "token"; readonly message: string };
  /** Whether the broker has its own source of events. */
  readonly source?: "interrupted" | "restored";
}

/**
 * `code` is one of the protocol's, or the client's own: `closed`, `queue_full`, `timeout`, `token`, and of a publish
 * `duplicate` (an event with this id had been stored before, and not by a try of this publish: yours is not stored;
 * `position` is where the other one is) and `unknown_outcome`.
 */
export class BrokerError extends Error {
  readonly code: string;
  readonly retryable: boolean;
  /** In ms. */
  readonly retryAfter?: number;
  /** Of a change that was refused: what is wrong where in the document, by JSON Pointer. */
  readonly paths?: { readonly [pointer: string]: string };
  /** Of a service that refused a request (`rejected`): its own code. Over `sse` and `poll` only 400 to 499. */
  readonly status?: number;
  /**
   * Of a request: perhaps the service has acted. Of a publish: perhaps it was sent. Its answer was lost, and to send it again could make two of it: a live
   * channel knows no ids, and the stream only for a while (10 minutes by default).
   */
  readonly unknownOutcome: boolean;
  /** Of a `duplicate`. */
  readonly position?: string;
}

export interface EventItem<T = Json> {
  readonly type: "event";
  readonly channel: string;
  /** `null` is a tombstone: the channel has no value any more. */
  readonly event: T | null;
  /** Absent for live channels, which are not stored. */
  readonly position?: string;
  /** Who published it, when that was a client. */
  readonly publisher?: {
    readonly user: string;
    /** The id that it was published with, if that was this user. */
    readonly id?: string;
  };
  /** Whether it belongs to the past that was asked for. */
  readonly catchUp: boolean;
}

export interface GapItem {
  readonly type: "gap";
  readonly channel: string[];
  readonly from?: string;
  readonly to?: string;
  readonly count?: number;
  readonly reason: "trimmed" | "reset" | "limit" | "lag" | "source";
  /**
   * What to do: `reload` what was built from events, by `restart` of a snapshot or from an API of your own; or
   * `continue`, since only older events than those that come were left out.
   */
  readonly action: "reload" | "continue";
}

export type Item<T = Json> = EventItem<T> | GapItem;

/**
 * Conditions, all of which must hold: by JSON Pointer what the value is, or what operators say of it; `any` and `all` of
 * several filters, `not` of one.
 */
export interface Filter {
  readonly [pointerOrGroup: string]: unknown;
}

export interface SubscribeOptions {
  /** After this position. At most one of `position`, `since`, `last` and `snapshot`; without: from now. */
  position?: string;
  /** From a time on, RFC 3339. */
  since?: string;
  /** The newest so many events first. */
  last?: number;
  /** The newest event of each channel first. */
  snapshot?: boolean;
  /** From where `acknowledge` under this name stands, on whichever device of the user. */
  durable?: string;
  /** What may be left out when this client is slow. */
  lag?: Lag;
  /** Only events that pass it (the protocol page, "Filters"); not with `snapshot`. */
  filter?: Filter;
  /** Of each channel at most one event in so many ms (100 to 60000), the newest; the first at once. Nothing is a gap. */
  everyMs?: number;
  /**
   * How many items wait for who iterates; default 1000. When so many wait, the subscription is `paused`: the
   * broker keeps what comes and sends it later. Events of live channels, kept nowhere, are a gap then.
   */
  buffer?: number;
}

export type SubscriptionState = "pending" | "catching-up" | "live" | "paused" | "closed";

interface SubscriptionEvents<T> {
  event: CustomEvent<EventItem<T>>;
  gap: CustomEvent<GapItem>;
  state: CustomEvent<SubscriptionState>;
  /** A channel of the list was refused, or all of it (then `end` follows). */
  error: CustomEvent<BrokerError>;
  end: CustomEvent<BrokerError | undefined>;
}

/**
 * What `subscribe` gives. It can be listened to, or iterated; leaving the loop closes it. Two loops share what
 * comes: each item is given to one of them. Items are kept for a loop once it has begun: await nothing between
 * `subscribe` and the loop.
 */
export interface Subscription<T = Json> extends Emitter<SubscriptionEvents<T>>, AsyncIterable<Item<T>> {
  readonly channels: readonly string[];
  readonly state: SubscriptionState;
  /** Up to where events were handed over. */
  readonly position?: string;
  /**
   * Says that all up to there has been dealt with; resolves with the position once that is stored, which may be
   * a later one. Rejects with `closed` when the subscription ended before it could be sent.
   */
  acknowledge(position: string | { readonly position?: string }): Promise<string>;
  /** Begins again from the start that it was made with. */
  restart(): void;
  close(): void;
}

export interface Published {
  readonly id: string;
  /** Absent for live channels. */
  readonly position?: string;
  /** Whether it took more than one try, and an earlier one had been stored: once all the same. */
  readonly duplicate: boolean;
}

export interface PublishOptions {
  /**
   * By which the stream knows a second try, for as long as its duplicate window; 1 to 64 bytes, by default a random
   * one. An id is one event's: give none that the thing has which the event is about.
   */
  id?: string;
  /** In ms: then it is given up, and not sent if it has not been. By default it waits for a connection. */
  timeout?: number;
  /** `false`: this client does not receive the event; others do, also those of the same user. */
  echo?: boolean;
}

export interface RequestOptions {
  /** In ms, default 5000, the wait for a connection included; a service has 30000 of them at most. */
  timeout?: number;
  /** Before it was sent nothing is sent; afterwards the answer is ignored. Rejects with the signal's reason. */
  signal?: AbortSignal;
  /** By which the service knows a second request that means the same; 1 to 64 visible characters of ASCII. */
  id?: string;
}

export interface HistoryOptions {
  /** The newest events below this position. At most one of `before`, `after` and `since`; without: the newest of all. */
  before?: string;
  /** What follows this position. */
  after?: string;
  /** From a time on, RFC 3339. */
  since?: string;
  /** At most so many events, default 50; fewer come where they are large or far apart. */
  limit?: number;
  /** Only events that pass. */
  filter?: Filter;
  /** Rejects with its reason. */
  signal?: AbortSignal;
}

/** A stored event. */
export interface PastItem<T = Json> extends EventItem<T> {
  readonly position: string;
  /** When it was stored, RFC 3339. */
  readonly storedAt: string;
}

export interface Page<T = Json> {
  /** Those that are allowed. */
  readonly channels: readonly string[];
  /** Oldest first. */
  readonly events: readonly PastItem<T>[];
  /** Everything from this position on was looked at, */
  readonly first: string;
  /** up to this one. `subscribe` with the `position` `last` of the newest page joins exactly. */
  readonly last: string;
  /** Whether there may be further events in the direction of reading. */
  readonly more: boolean;
  /** `false`: the position asked for is not kept any more, or of another stream. */
  readonly recovered: boolean;
  /** The page before this one, */
  older(options?: Pick<HistoryOptions, "limit" | "signal">): Promise<Page<T>>;
  /** and the one after it. */
  newer(options?: Pick<HistoryOptions, "limit" | "signal">): Promise<Page<T>>;
}

/** What is added to numbers, by JSON Pointer to a member: `{"/stock": -1}`. What is absent counts as 0. */
export interface Amounts {
  readonly [pointer: string]: number;
}

/** What becomes of a change when others have changed the same: nothing of it, where they did. */
export interface ConflictDetail {
  readonly channel: string;
  /** Where, as JSON Pointers. */
  readonly paths: readonly string[];
  /** The merge patch of one's own that came to nothing, if there was one; */
  readonly mine?: Json;
  /** and what it was to add. */
  readonly add?: Amounts;
  /** What is there now, by JSON Pointer. */
  readonly theirs: { readonly [pointer: string]: Json };
  /** `mine`: change it once more, now over what the others have made. Do nothing, or say `theirs`, to leave it. */
  keep(which: "mine" | "theirs"): void;
}

interface OpenedEvents {
  state: CustomEvent<"pending" | "live" | "closed">;
  conflict: CustomEvent<ConflictDetail>;
  /** A service or the broker has refused a change, and it is taken back; `error.paths` may say what is wrong where. */
  rejected: CustomEvent<{ readonly channel: string; readonly error: BrokerError; readonly mine?: Json; readonly add?: Amounts }>;
  /** Changes that were confirmed are gone, by a fault of NATS; `paths` has what is there now. */
  lost: CustomEvent<{ readonly channel: string; readonly ids: readonly string[]; readonly revision: string; readonly paths: { readonly [pointer: string]: Json } }>;
  /** It has ended. */
  error: CustomEvent<BrokerError>;
}

interface Opened {
  readonly state: "pending" | "live" | "closed";
  readonly error?: BrokerError;
  /** Resolves once all is here that there is; rejects with why it was refused. */
  readonly opened: Promise<void>;
  /** Leave it. Changes on their way are sent all the same. */
  close(): void;
}

/** A document that others change too, with one's own changes shown at once. */
export interface Document<T = Json> extends Opened, Emitter<OpenedEvents & { change: CustomEvent<T | null> }> {
  /** What is stored, with one's own changes over it; `null`: there is none, or it is not here yet (`state`). */
  readonly value: T | null;
  readonly confirmed: T | null;
  readonly revision?: string;
  /** Why what a service has stored there is no document: `confirmed` is `null`, and changes are `rejected`. */
  readonly invalid?: string;
  /** How many changes are not confirmed. */
  readonly pending: number;
  /**
   * Changes it by a merge patch (RFC 7396): members that are named are set, those that are `null` removed; `null` alone
   * deletes it. It is shown at once, and sent again as it is until the broker has it; what others changed
   * meanwhile is a `conflict`. With `add` numbers become more or less, whatever others make of them; `undefined` is no patch.
   */
  change(patch: Json | undefined, options?: { add?: Amounts }): void;
}

/** The documents of a pattern, with one's own changes shown at once. */
export interface Collection<T = Json> extends Opened, Emitter<OpenedEvents & { change: CustomEvent<{ readonly channel: string; readonly value: T | null }> }> {
  /** By channel; another map once something is another. */
  readonly all: ReadonlyMap<string, T>;
  /** Of what is stored and is no document: why not, by channel; another map once something is another. */
  readonly invalid: ReadonlyMap<string, string>;
  /** Changes one of them, or makes one, as `Document.change` does. */
  change(channel: string, patch: Json | undefined, options?: { add?: Amounts }): void;
}

/** A session, as a tab, of a user in a channel. */
export interface PresenceMember<S = Json> {
  readonly user: string;
  readonly session: string;
  /** RFC 3339. */
  readonly since: string;
  /** What its token says of the user. */
  readonly info?: Json;
  readonly state?: S;
  /** Its page is hidden, or its connection lost. */
  readonly away?: "hidden" | "lost";
}

/** A user in a channel, in one or more sessions. */
export interface PresentUser<S = Json> {
  readonly user: string;
  readonly info?: Json;
  /** Only if all sessions are. */
  readonly away?: "hidden" | "lost";
  /** The earliest. */
  readonly since: string;
  readonly sessions: readonly { readonly session: string; readonly state?: S; readonly away?: "hidden" | "lost"; readonly since: string }[];
}

/** Empty lists: only the numbers are others. */
export interface PresenceChange<S = Json> {
  readonly joined: readonly PresentUser<S>[];
  readonly left: readonly PresentUser<S>[];
  readonly updated: readonly PresentUser<S>[];
}

interface RoomEvents<S> {
  change: CustomEvent<PresenceChange<S>>;
  /** Whether what is shown may be old. */
  stale: CustomEvent<boolean>;
  /** It cannot be entered or watched, or a state was refused. */
  error: CustomEvent<BrokerError>;
}

/** Who is in a channel. */
export interface Room<S = Json> extends Emitter<RoomEvents<S>> {
  /** Who has been there longest first; another list after each change. */
  readonly users: readonly PresentUser<S>[];
  readonly members: readonly PresenceMember<S>[];
  /** All that are there, also where `detail` is `count` and the lists are a sample. */
  readonly count: { readonly users: number; readonly sessions: number };
  readonly detail: "full" | "count";
  /** While nothing is known yet, and while the connection is lost; the lists stay as they were. */
  readonly stale: boolean;
  readonly error?: BrokerError;
  /** The state of one's own that the others are to see. */
  readonly own?: S;
  /** Says another state: any JSON of at most 1 KiB. The newest is seen, 5 a second at most. */
  set(state: S): void;
  /** For 3 s, or until `set`, the state has `typing: field`. Call it with each key: it is sent once a second at most. */
  typing(field: string): void;
  /** Whether the page is hidden; said by itself as the page's visibility changes. */
  away(hidden: boolean): void;
  close(): void;
}

interface ClientEvents {
  status: CustomEvent<Status>;
  /** What concerns no request, as a token callback that failed. */
  error: CustomEvent<BrokerError>;
}

/** One connection to the broker, made anew whenever it is lost. It connects at once. */
export class Client implements Emitter<ClientEvents> {
  addEventListener: Emitter<ClientEvents>["addEventListener"];
  removeEventListener: Emitter<ClientEvents>["removeEventListener"];
  constructor(options: ClientOptions);
  /** Another object after each change. */
  readonly status: Status;
  /** Up to where everything that was subscribed to has arrived. */
  readonly position?: string;
  /** How many publishes wait for their answer. */
  readonly queued: number;
  /** A document that others change too. Throws a `BrokerError` for what is no name of one. */
  document<T = Json>(channel: string): Document<T>;
  /** The documents of a pattern. */
  collection<T = Json>(pattern: string): Collection<T>;
  /**
   * Changes up to 16 documents, all of them or none, which need not be open. Shown at once, and sent again as it is until
   * the broker has it. Resolves with the revisions that have it, by channel; rejects with a `BrokerError`: `conflict` says
   * where others have changed the same, `unknown_outcome` that nobody could say whether it is stored.
   */
  change(changes: readonly { channel: string; patch?: Json; add?: Amounts }[]): Promise<{ readonly [channel: string]: string }>;
  /**
   * What is refused ends with a `BrokerError`, at once where it can be told. Where the connection has all the
   * subscriptions that it may have, it waits some seconds for a place, and then ends with `limit_subscriptions`.
   */
  subscribe<T = Json>(
    channels: string | string[],
    options?: SubscribeOptions,
    onEvent?: (item: EventItem<T>) => void,
  ): Subscription<T>;
  subscribe<T = Json>(channels: string | string[], onEvent: (item: EventItem<T>) => void): Subscription<T>;
  /**
   * Publishes, as soon as there is a connection and the limits allow it; `null` is a tombstone. It is sent again
   * where an answer was lost, but only while no second one can come of it.
   *
   * Rejects with a `TypeError` that says where, if the event is no JSON (`undefined`, `NaN`, functions, half an
   * emoji, integers of more than 64 bits …), and else with a `BrokerError`. Properties that are `undefined` are
   * left out.
   */
  publish(channel: string, event: unknown, options?: PublishOptions): Promise<Published>;
  /**
   * Asks a service of the tenant, as soon as there is a connection and the limits allow it; resolves with its answer.
   * It is sent once at most. Without `data` the service gets `null`.
   *
   * Rejects with a `TypeError` if `data` is no JSON, with the reason of `signal`, and else with a `BrokerError`:
   * `rejected` by the service, with its `status`; `unavailable`, if no service can have received it; `timeout`, and
   * then `unknownOutcome` says whether the service may have acted.
   */
  request<T = Json>(method: string, data?: unknown, options?: RequestOptions): Promise<T>;
  /**
   * Reads stored events back, without subscribing, as soon as there is a connection and the limits allow it; it asks
   * again where an answer was lost. Rejects with a `TypeError`, with the reason of `signal`, and else with a
   * `BrokerError`.
   */
  history<T = Json>(channels: string | string[], options?: HistoryOptions): Promise<Page<T>>;
  /**
   * Enters a channel and watches who is there, again after each cut; with `enter: false` only watches. It needs a
   * WebSocket of the tab's own: elsewhere the room gets the error `unavailable`. Throws for what is no name of a channel.
   */
  presence<S = Json>(channel: string, options?: { state?: S; enter?: boolean }): Room<S>;
  /** After `disconnect`, or after it was told that its token is no good. */
  connect(): void;
  /** Leaves, and keeps subscriptions, their positions and queued publishes for `connect`. */
  disconnect(): void;
  /** Leaves for good: subscriptions end, publishes and requests without an answer are rejected. */
  close(): void;
}

export interface StoreOptions<T> extends Omit<SubscribeOptions, "position" | "since" | "last" | "snapshot" | "filter"> {
  /** The next value of a channel; by default the event itself. Not called for tombstones, which remove. */
  reduce?: (value: T | undefined, event: any) => T;
  /** In ms, default 10000: after it a change without an answer is taken back. */
  timeout?: number;
}

interface StoreEvents {
  change: CustomEvent<undefined>;
  /** A whole snapshot has been taken: at first, and again after a gap. */
  ready: CustomEvent<undefined>;
  error: CustomEvent<BrokerError>;
  end: CustomEvent<BrokerError | undefined>;
}

/**
 * The newest event of each channel, kept up to date, with changes of our own shown ahead of the broker's word.
 * A live event never covers a change that waits; after a gap the store takes another snapshot by itself.
 */
export class Store<T = Json> implements Emitter<StoreEvents> {
  addEventListener: Emitter<StoreEvents>["addEventListener"];
  removeEventListener: Emitter<StoreEvents>["removeEventListener"];
  constructor(client: Client, channels: string | string[], options?: StoreOptions<T>);
  /** Channel → value; another Map after each change. */
  readonly value: ReadonlyMap<string, T>;
  readonly ready: boolean;
  get(channel: string): T | undefined;
  /** Whether a change of the channel waits for the broker's word. */
  pending(channel: string): boolean;
  /** Shows a change at once and publishes it. Rejects, with the change taken back, when it did not come about. */
  put(channel: string, event: unknown, options?: PublishOptions): Promise<Published>;
  /** Publishes a tombstone. */
  remove(channel: string, options?: PublishOptions): Promise<Published>;
  close(): void;
}
