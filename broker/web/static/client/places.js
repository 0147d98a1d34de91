// @ts-check
/** The few connections that a browser has to a host over HTTP/1.1, shared with its other tabs. */

const HELD = 3; // of the six, for all tabs together

/**
 * Whether the connections to there can be spent: over HTTP/2 and 3, as far as we may know, they cannot.
 * @param {string} url
 */
export const scarce = (url) => {
  const entries = /** @type {PerformanceResourceTiming[]} */ (performance.getEntriesByType("resource"));
  return !entries.some(({ name, nextHopProtocol }) => name.startsWith(url) && /^h[23]/.test(nextHopProtocol));
};

/**
 * Call `then` once we may hold a connection, which is ours until `signal`: at once, where it is known at once.
 * Each place is a lock, for which the tabs of this origin wait; where there are no locks, everybody may.
 * @param {string} url
 * @param {AbortSignal} signal
 * @param {() => void} then
 * @returns {Promise<void>} settled when it is known whether it is at once
 */
export const hold = async (url, signal, then) => {
  const { locks } = globalThis.navigator ?? {};
  if (!locks || !scarce(url)) return then();
  const left = new Promise((resolve) => signal.addEventListener("abort", resolve));
  const waiting = new AbortController(); // for the places that we need no more
  left.then(() => waiting.abort());
  let held = false;
  const take = () => {
    if (held || signal.aborted) return;
    held = true;
    waiting.abort();
    then();
    return left;
  };
  for (let i = 0; i < HELD; i++) locks.request(`broker.v1 ${url} ${i}`, { signal: waiting.signal }, take).catch(() => {});
  await locks.query().catch(() => void take()); // answered once it is clear which of them are free; frames without an origin have none
};
