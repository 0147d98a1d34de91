/** What the modules of the client have between them. Applications use client.d.ts. */

import type { EventItem, GapItem, Lag, PresenceChange, PresenceMember, PresentUser } from "../client.js";
import type { BrokerError } from "./errors.js";

/** One of the protocol's messages. */
export interface Message {
  type: string;
  payload?: any;
  messageId?: string;
}

/** Why a connection ended: a WebSocket close code, an HTTP status, or neither. */
export interface End {
  code?: number;
  status?: number;
  reason?: string;
  /** In so many ms it may be tried again, as the other side says. */
  after?: number;
  /** Whether it was the broker that answered: another transport is of no use. */
  answered?: boolean;
  /** Whether there is no reason to wait. */
  at_once?: boolean;
}

/** What a transport gives: a way to the broker. */
export interface Link {
  send(message: Message): void;
  close(): void;
  /** It cannot be asked whether it lives. */
  passive?: boolean;
  /** It answers when somebody else has been answered: no time limit. */
  patient?: boolean;
  /** Begin anew what may have died in a sleep. */
  refresh?(): void;
}

export interface Address {
  url: string;
  token: string;
  tenant?: string;
  hub?: TabHub;
  /** Called when the link works by another transport than it is named after; without: by its own again. */
  became(transport?: string): void;
}

export type Heard = (message: Message) => void;
export type Over = (end: End) => void;
export type Connect = (address: Address, heard: Heard, over: Over) => Link | void;

/** What the transport `tabs` needs of the other tabs. */
export interface TabHub {
  readonly leads: boolean;
  readonly ready?: Promise<void>;
  heard?: Heard;
  over?: Over;
  post(to: string, message?: Message): void;
}

/** What a transport that reads by requests remembers from one to the next. */
export interface Notes {
  session?: string;
}

/** What is read, and from where on. */
export interface Reading {
  channel: string[];
  position?: string;
  tenant?: string;
  lag?: string;
  filter?: any;
  every_ms?: number;
  since?: string;
  last?: number;
  snapshot?: boolean;
  durable?: string;
}

export type Fetch = (path: string, init: RequestInit) => Promise<Response>;
export type Read = (fetch: Fetch, reading: Reading, signal: AbortSignal, token: string, notes: Notes) => AsyncIterable<Message>;

/** What a request by HTTP failed with. */
export interface Fault {
  status?: number;
  code?: number;
  reason?: string;
  message?: string;
  /** The broker's code. */
  problem?: string;
  after?: number;
  /** Whether the broker said it, and not what stands before it. */
  own?: boolean;
  paths?: Record<string, string>;
  conflict?: Contradiction[];
}

/** What the broker announces; what is absent is not known. */
export interface Limits {
  subscriptions_per_connection: number;
  filters_per_connection: number;
  paced_channels: number;
  requests_per_second: number;
  requests_burst: number;
  messages_per_minute: number;
  messages_burst: number;
  calls_per_second: number;
  calls_burst: number;
  requests_in_flight: number;
  changes_per_second: number;
  changes_burst: number;
  duplicate_window_seconds: number;
  message_bytes?: number;
  publish_bytes?: number;
  last_events?: number;
}

/** Whose connection it is, as `connection.authenticated` says. */
export interface Who {
  tenant: string;
  user: string;
  private: string;
  expires_at?: string | number;
}

/**
 * What becomes of a request. One of `done`, `refused` and `lost` is called, once; before `lost` perhaps `doubted` or
 * `oversized`, when the connection ended in a way that this request may be to blame for.
 */
export interface Reply {
  /** So many ms more than usual it may take, while others need not wait for it. */
  takes?: number;
  /** It has a rate of its own: others need not wait when that is reached. */
  apart?: boolean;
  done(payload: any): void;
  refused(error: BrokerError): void;
  lost(): void;
  doubted(code: "timeout" | "bad_message"): void;
  oversized?(error: BrokerError): void;
}

/** A part of the client, which does one thing over the connection that all share (`Exchange.join`). */
export interface Part {
  /** By type, what it does about a message. An answer is heard here first, and then by its `Reply`. */
  hears?: { [type: string]: (payload: any, messageId?: string) => void };
  /** There is a connection, and nothing has been said on it. */
  opened?(who: Who): void;
  /** The connection is gone. Requests without an answer hear of it after this. */
  lost?(): void;
  /** Say what there is to say, as far as `Exchange.may` allows. Also called when there is no connection. */
  sync?(): void;
}

export interface Start {
  position?: string;
  since?: string;
  last?: number;
  snapshot?: boolean;
  durable?: string;
}

export interface Asked {
  names: string[];
  start: Start;
  lag?: Lag;
  /** As JSON. */
  filter?: any;
  /** A pace, in ms. */
  every?: number;
  /** Items that may wait for who iterates. */
  buffer?: number;
  /** The tab that it is for. */
  peer?: string;
}

/** Who gets what a record brings: a subscription, or another tab. */
export interface Receiver {
  take(item: EventItem | GapItem): void;
  /** The state has changed, from `before`. */
  turn(before: number): void;
  warn(error: BrokerError, names: string[]): void;
  finish(error?: BrokerError): void;
}

/** Where a document is not what a change replaces: its values by JSON Pointer, as the broker says it. */
export interface Contradiction {
  channel: string;
  revision: string;
  paths: Record<string, any>;
}

/** What is held of a document. `by`: whose changes the newest revision has. */
export interface Row {
  revision: string;
  value: any;
  invalid?: string;
  by?: { user?: string; id?: string }[];
}

/** Who has documents open: a document, a collection, or another tab. */
export interface DocumentUser {
  /** What it has opened. */
  readonly name: string;
  /** Whether it is about this one, of those that the name covers. */
  wants(channel: string): boolean;
  heard(channel: string, row: Row): void;
  ready(position?: string): void;
  failed(error: BrokerError): void;
  /** What is shown of this one may be another, by a change of the user's own. */
  shown?(channel: string): void;
  /** A change came to nothing: `mine` is the patch, `add` its sums, `theirs` the values that were there, by JSON Pointer. */
  refused?(channel: string, error: BrokerError, mine: any, theirs?: Record<string, any>, add?: Record<string, number>): void;
  lost?(channel: string, detail: { ids: string[]; revision: string; paths: Record<string, any> }): void;
}

/** A change of several documents, so many. */
export interface Joint {
  count: number;
  /** Once it is sent. */
  id?: string;
  settle(error?: BrokerError, revisions?: Record<string, string>): void;
}

export interface Settler<T> {
  resolve(value: T): void;
  reject(error: unknown): void;
}

/** Who is in a channel, at a moment. */
export interface Present {
  readonly users: readonly PresentUser[];
  readonly members: readonly PresenceMember[];
  readonly count: { readonly users: number; readonly sessions: number };
  readonly detail: "full" | "count";
  readonly stale: boolean;
}

/** Who watches a channel, and perhaps is there. */
export interface RoomUser {
  readonly name: string;
  readonly enters: boolean;
  /** Whether its page is. */
  hidden: boolean;
  /** It looks otherwise now; without `change` nobody is another. */
  shown(view: Present, change?: PresenceChange): void;
  failed(error: BrokerError): void;
}

export type { EventItem, GapItem, Lag, PresenceChange, PresenceMember, PresentUser };
