// @ts-check
/** A change of several documents: of all of them, or of none. */

import { failure } from "./errors.js";
import { given, json, many } from "./values.js";

/** @import { Documents } from "./documents.js" */
/** @import { BrokerError } from "./errors.js" */
/** @import { DocumentUser, Joint } from "./types.js" */
/** @typedef {{patch?: any, add?: Record<string, number>}} Wished */

const MOST = 16; // documents

/**
 * A copy of what is to become of a document. Throws a `TypeError` for what cannot be.
 * @param {Wished} wish
 * @returns {Wished}
 */
export const wished = ({ patch, add }) => {
  const sums = Object.entries(add ?? {});
  if (patch === undefined && !sums.length) throw new TypeError("patch is undefined, and nothing is added");
  for (const [where, amount] of sums) {
    if (!/^(\/([^~]|~[01])*)+$/.test(where)) throw new TypeError(`add: ${JSON.stringify(where)} is no JSON Pointer to a member`);
    if (!Number.isFinite(amount)) throw new TypeError(`add: ${where} is no number`);
  }
  return given({ patch: patch === undefined ? undefined : json(patch, "patch"), add: sums.length ? { ...add } : undefined });
};

/**
 * Change several documents. Each is open meanwhile, so that it is known what is replaced. Resolves with the revisions that
 * have it, by channel.
 * @param {Documents} documents
 * @param {(Wished & {channel: string})[]} changes
 * @returns {Promise<Record<string, string>>}
 */
export const changeTogether = (documents, changes) => {
  const wishes = many(changes).map(({ channel, ...wish }) => ({ channel, ...wished(wish) }));
  const channels = new Set(wishes.map(({ channel }) => documents.full(channel)));
  if (channels.size < wishes.length || !wishes.length || wishes.length > MOST) throw new TypeError(`changes: 1 to ${MOST} documents, each once`);
  return new Promise((resolve, reject) => {
    /** @type {DocumentUser[]} */
    const users = [];
    /** @type {Joint} */
    const joint = {
      count: wishes.length,
      settle: (error, revisions) => {
        for (const user of users.splice(0)) documents.close(user);
        if (error) reject(error);
        else resolve(revisions ?? {});
      },
    };
    const failed = (/** @type {BrokerError} */ error) => {
      if (joint.id && error.code !== "closed") return; // what becomes of it is told
      documents.drop(joint);
      joint.settle(joint.id ? failure("unknown_outcome", "it was closed") : error);
    };
    const nothing = () => {};
    try {
      for (const { channel, patch, add } of wishes) {
        /** @type {DocumentUser} */
        const user = { name: channel, wants: (each) => each === documents.full(channel), heard: nothing, ready: nothing, failed };
        const draft = documents.edit(channel, user);
        users.push(user);
        draft.change(patch, add, joint);
      }
      for (const user of [...users]) documents.open(user.name, user);
    } catch (error) {
      failed(/** @type {BrokerError} */ (error));
    }
    for (const each of channels) documents.typed(each);
  });
};
