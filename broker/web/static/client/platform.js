// @ts-check
/** What a browser gives us, where it does: clocks, events, chance, and a memory. */

/** Milliseconds by a clock that nobody sets. */
export const now = () => performance.now();

/**
 * Wait so many ms, or until `signal` says so.
 * @param {AbortSignal} signal
 * @param {number} ms
 * @returns {Promise<void>}
 */
export const rest = (signal, ms) =>
  new Promise((resolve) => {
    const done = () => {
      clearTimeout(timer);
      signal.removeEventListener("abort", done);
      resolve();
    };
    const timer = setTimeout(done, ms);
    signal.addEventListener("abort", done);
  });

/**
 * @param {EventTarget} target
 * @param {string} type
 * @param {any} [detail]
 */
export const emit = (target, type, detail) => target.dispatchEvent(new CustomEvent(type, { detail }));

/** An id that nobody else has. */
export const random = () => Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(36)).join("");

/**
 * What the browser remembers for us, where it lets us; with `value`, remember that.
 * @param {string} key
 * @param {string} [value]
 * @param {"localStorage" | "sessionStorage"} place for all pages, or for this tab
 */
export const memory = (key, value, place = "localStorage") => {
  try {
    if (value === undefined) return globalThis[place].getItem(key);
    globalThis[place].setItem(key, value);
  } catch {} // private windows, sandboxed frames, no window at all
};
