// @ts-check
/** What goes wrong, as the application is told. */

/** @import { Contradiction, Settler } from "./types.js" */

export const CLOSED = "it was closed";

/** What a service or others have to do with, and not who asked. */
export const SERVICE = ["rejected", "timeout", "bad_answer", "conflict", "unknown_outcome"];

/** Something that was refused or could not be done; `code` is the protocol's, or the client's own. */
export class BrokerError extends Error {
  /** @param {{code: string, message: string, retryable?: boolean, retry_after_ms?: number, unknown?: boolean, position?: string, status?: number, paths?: Record<string, string>, conflict?: Contradiction[]}} payload */
  constructor({ code, message, retryable, retry_after_ms, unknown, position, status, paths, conflict }) {
    super(message || code);
    this.name = "BrokerError";
    this.code = code;
    this.retryable = !!retryable;
    this.retryAfter = retry_after_ms;
    this.unknownOutcome = !!unknown;
    this.position = position;
    this.status = status;
    this.paths = paths;
    this.conflict = conflict;
  }
}

/**
 * @param {string} code
 * @param {string} message
 */
export const failure = (code, message) => new BrokerError({ code, message });

/**
 * Reject with the error, if there is one; else resolve.
 * @template T
 * @param {Settler<T>[]} calls
 * @param {unknown} error
 * @param {T} [value]
 */
export const settleAll = (calls, error, value) =>
  calls.forEach(({ resolve, reject }) => (error ? reject(error) : resolve(/** @type {T} */ (value))));
