import type { ReactNode } from "react";
import type { Amounts, BrokerError, Client, ConflictDetail, EventItem, Filter, GapItem, Json, PastItem, PresentUser, RequestOptions, Status, SubscribeOptions, SubscriptionState } from "./client.js";

/** Gives the hooks below it their client. Whoever made the client closes it. */
export function BrokerProvider(props: { client: Client; children?: ReactNode }): ReactNode;

/** The client of the nearest provider. Throws where there is none. */
export function useClient(): Client;

/** How the connection stands; renders again with each change. */
export function useConnection(): Status;

export interface ChannelOptions extends Omit<SubscribeOptions, "buffer"> {
  /** How many events are kept; default 100. */
  keep?: number;
}

export interface ChannelState<T = Json> {
  /** Oldest first. */
  readonly events: readonly EventItem<T>[];
  readonly last?: EventItem<T>;
  /** The newest gap: events before it and after it do not join. */
  readonly gap?: GapItem;
  readonly state: SubscriptionState;
  readonly error?: BrokerError;
}

/** The newest events of channels or patterns. Components that ask for the same share one subscription. */
export function useChannel<T = Json>(channels: string | string[], options?: ChannelOptions): ChannelState<T>;

export interface NotificationOptions {
  /** Default `me.notifications`. */
  channel?: string | string[];
  /** The name under which it stands what was read, `""` for none; default `notifications`. */
  durable?: string;
  /** How many are kept; default 50. */
  keep?: number;
}

export interface Notifications<T = Json> {
  /** Newest first. */
  readonly notifications: readonly EventItem<T>[];
  readonly unread: number;
  /** Says that all of them were read; resolves once that is stored. */
  markRead(): Promise<void>;
  readonly state: SubscriptionState;
  readonly error?: BrokerError;
}

/** The user's own notifications, with those unread since the last `markRead` on any device. */
export function useNotifications<T = Json>(options?: NotificationOptions): Notifications<T>;

export interface RequestState<T = Json> {
  /** Asks, and resolves as `Client.request` does; the same function in each rendering. */
  request(data?: unknown, options?: RequestOptions): Promise<T>;
  /** The newest answer; the one before is shown while another call waits, and when that fails. */
  readonly data?: T;
  /** Of the newest call, if that failed: a `BrokerError`, a `TypeError`, or the reason of its signal. */
  readonly error?: unknown;
  readonly pending: boolean;
}

/** Asks a service, when `request` is called; shows what became of the newest call. */
export function useRequest<T = Json>(method: string): RequestState<T>;

export interface PresenceState<S = Json> {
  /** Who has been there longest first. */
  readonly users: readonly PresentUser<S>[];
  readonly count: { readonly users: number; readonly sessions: number };
  /** While nothing is known yet, and while the connection is lost. */
  readonly stale: boolean;
  readonly error?: BrokerError;
  /** As `Room.set`; the same function in each rendering. */
  set(state: S): void;
}

/** Enters a channel, unless `enter` is `false`, and shows who is there. Another `state` is said as it is rendered. */
export function usePresence<S = Json>(channel: string, options?: { state?: S; enter?: boolean }): PresenceState<S>;

export interface EditingState {
  /** The other users whose state has `editing: field`. */
  readonly editors: readonly PresentUser[];
  /** Says that this user edits it, until `end` or the component is gone; the same functions in each rendering. */
  begin(): void;
  end(): void;
}

/** Enters a channel, and shows who edits a field of what it is about. */
export function useEditing(channel: string, field: string): EditingState;

export interface HistoryState<T = Json> {
  /** Oldest first: the pages that were read, then what has come since. */
  readonly events: readonly (PastItem<T> | EventItem<T>)[];
  /** Whether there may be older ones. */
  readonly more: boolean;
  readonly loading: boolean;
  /** Of the newest page, or of the subscription, if that failed. */
  readonly error?: unknown;
  /** Reads the page before the oldest; the same function in each rendering. Nothing happens while one is under way. */
  loadOlder(): Promise<void>;
}

/** The newest `limit` events, what comes after them unless `live` is `false`, and older ones page by page. */
export function useHistory<T = Json>(channels: string | string[], options?: { limit?: number; filter?: Filter; live?: boolean }): HistoryState<T>;

interface EditedState {
  readonly state: "pending" | "live" | "closed";
  /** Why it was ended. */
  readonly error?: BrokerError;
  /** The newest change that came to nothing as others have changed the same, until `dismiss`. */
  readonly conflict?: ConflictDetail;
  /** The newest change that was refused, until `dismiss`. */
  readonly rejected?: { readonly channel: string; readonly error: BrokerError; readonly mine?: Json; readonly add?: Amounts };
  /** The conflict, or the refusal, has been seen; the same function in each rendering. */
  dismiss(): void;
}

export interface DocumentState<T = Json> extends EditedState {
  /** With one's own changes; `null`: there is none, or it is not here yet (`state`). */
  readonly value: T | null;
  readonly confirmed: T | null;
  /** Why what a service has stored there is no document, which takes no changes. */
  readonly invalid?: string;
  /** How many changes are not confirmed. */
  readonly pending: number;
  /** As `Document.change`; the same function in each rendering. */
  change(patch: Json | undefined, options?: { add?: Amounts }): void;
}

/** A document that others change too, with one's own changes shown at once. */
export function useDocument<T = Json>(channel: string): DocumentState<T>;

export interface CollectionState<T = Json> extends EditedState {
  /** By channel; another map once something is another. */
  readonly all: ReadonlyMap<string, T>;
  /** Of what is stored and is no document: why not, by channel. */
  readonly invalid: ReadonlyMap<string, string>;
  /** As `Collection.change`; the same function in each rendering. */
  change(channel: string, patch: Json | undefined, options?: { add?: Amounts }): void;
}

/** The documents of a pattern, with one's own changes shown at once. */
export function useCollection<T = Json>(pattern: string): CollectionState<T>;
