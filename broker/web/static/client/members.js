// @ts-check
/** Who is present in a channel: by sessions, by users, and which of them are others than before. */

import { given } from "./values.js";

/** @import { Present, PresenceChange, PresenceMember, PresentUser } from "./types.js" */

/** Before anything is known. @type {Present} */
export const NOBODY = Object.freeze({ users: Object.freeze([]), members: Object.freeze([]), count: Object.freeze({ users: 0, sessions: 0 }), detail: "full", stale: true });

/**
 * What a member is known by.
 * @param {{user: string, session: string}} member
 */
export const keyOf = ({ user, session }) => `${session} ${user}`;

/**
 * Members by their users, who was there first first.
 * @param {Iterable<PresenceMember>} members
 * @returns {readonly PresentUser[]}
 */
export const grouped = (members) => {
  const early = [...members].sort((a, b) => (a.since < b.since ? -1 : a.since > b.since ? 1 : a.session < b.session ? -1 : 1));
  /** @type {Map<string, PresenceMember[]>} */
  const users = new Map();
  for (const member of early) users.set(member.user, [...(users.get(member.user) ?? []), member]);
  return Object.freeze(
    [...users].map(([user, mine]) => {
      const sessions = mine.map(({ session, state, away, since }) => given({ session, state, away, since }));
      const away = mine.every((each) => each.away) ? mine[0].away : undefined;
      return Object.freeze({ user, ...given({ info: mine.findLast(({ info }) => info !== undefined)?.info, away }), since: mine[0].since, sessions });
    }),
  );
};

/**
 * Which users are others, if something is.
 * @param {Present} before
 * @param {Present} after
 * @returns {PresenceChange | undefined}
 */
export const compared = (before, after) => {
  const old = new Map(before.users.map((each) => [each.user, each]));
  const there = new Set(after.users.map(({ user }) => user));
  const joined = after.users.filter(({ user }) => !old.has(user));
  const left = before.users.filter(({ user }) => !there.has(user));
  const updated = after.users.filter((each) => old.has(each.user) && JSON.stringify(old.get(each.user)) !== JSON.stringify(each));
  const counted = before.count.users !== after.count.users || before.count.sessions !== after.count.sessions;
  return joined.length + left.length + updated.length || counted ? { joined, left, updated } : undefined;
};
