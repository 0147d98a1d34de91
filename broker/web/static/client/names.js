// @ts-check
/** Channels and patterns (the protocol page, "Names"), and what is wrong with what an application asks for. */

import { TORN, torn, utf8 } from "./values.js";

/** @import { Asked, Limits } from "./types.js" */

/**
 * A channel as the broker names it: `me.…` written out.
 * @param {string} name
 * @param {string | undefined} room what `me` stands for, once that is known
 */
export const expand = (name, room) => name.replace(/^(live\.)?me\./, (all, live = "") => (room ? `${live}${room}.` : all));

/**
 * The query of an address that names a tenant.
 * @param {string | undefined} tenant
 */
export const tenantQuery = (tenant) => (tenant ? `?tenant=${encodeURIComponent(tenant)}` : "");

/**
 * A query with everything that is given, each item of a list by itself.
 * @param {object} given
 */
export const query = (given) =>
  new URLSearchParams(Object.entries(given).flatMap(([name, value]) => (value === undefined ? [] : [value].flat().map((each) => [name, each]))));

/**
 * Whether a pattern covers a channel, both as lists of tokens. No wildcard reaches into `live` or `users`.
 * @param {string[]} pattern
 * @param {string[]} channel
 */
export const covers = (pattern, channel) => {
  const live = channel[0] === "live";
  const closed = live ? [0, channel[1] === "users" && 1] : [channel[0] === "users" && 0];
  const takes = (/** @type {string} */ token, /** @type {number} */ i) =>
    token === channel[i] || (/^[*>]$/.test(token) && i < channel.length && !closed.includes(i));
  return pattern.every(takes) && (pattern.length === channel.length || pattern.at(-1) === ">");
};

/**
 * What is wrong with the name of a channel, or of a pattern.
 * @param {unknown} name
 * @param {boolean} pattern
 */
export const misnamed = (name, pattern) => {
  if (typeof name !== "string") return "a channel is a string";
  if (torn(name)) return TORN;
  const tokens = name.split(".");
  const wild = (/** @type {string} */ token, /** @type {number} */ i) =>
    pattern && (token === "*" || (token === ">" && i === tokens.length - 1));
  if (utf8(name) > 256) return "a channel has 256 bytes at most";
  if (tokens.length > 16) return "a channel has 16 tokens at most";
  if (/^[@_$]/.test(name)) return "a channel does not begin with @, _ or $";
  if (tokens.some((token) => !token)) return "a token is empty";
  const odd = tokens.some((token, i) => /[*>\p{Z}\p{Cc}]/u.test(token) && !wild(token, i));
  if (odd && pattern) return "* and > stand for whole tokens, > at the end; white space does not belong there";
  if (odd) return "a channel has no *, > or white space";
  if (name === "live") return "a live channel is live.<name>";
};

const TIME = /^\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d(:\d\d(\.\d+)?)?([Zz]|[+-]\d\d:?\d\d)$/;

/**
 * What the broker would say to the options of a subscription.
 * @param {Asked & {wrong?: string}} asked
 * @param {Limits} limits
 */
export const mistaken = ({ names, start: { position, since, last, snapshot, durable }, lag, filter, every, wrong }, { last_events = Infinity }) => {
  if (!names.length) return "there is no channel";
  if (position !== undefined && typeof position !== "string") return "position: send one back as it was received";
  if (since !== undefined && !TIME.test(since)) return "since: a time as 2026-01-31T12:00:00Z";
  if (last !== undefined && !(Number.isInteger(last) && last > 0 && last <= last_events)) return `last: 1 to ${last_events}`;
  if (durable !== undefined && !/^[\w-]{1,64}$/.test(durable)) return "durable: 1 to 64 of the characters A-Z a-z 0-9 _ -";
  if (lag !== undefined && !["replay", "latest", "drop", "close"].includes(lag)) return "lag: replay, latest, drop or close";
  if (every !== undefined && !(Number.isInteger(every) && every >= 100 && every <= 60_000)) return "everyMs: a whole number from 100 to 60000";
  if (wrong) return wrong;
  if (filter && snapshot) return "snapshot and filter exclude each other: what no longer passes would stay";
  if (lag === "replay" && names.some((name) => /^live\./.test(name))) return "lag: what is live is not stored, and cannot be replayed";
};
