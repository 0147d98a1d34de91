// @ts-check
/** Positions in the stream of events: `<incarnation>-<sequence>`. */

/**
 * The incarnation of a position and its sequence.
 * @param {string} position
 * @returns {[string, number]}
 */
export const parts = (position) => {
  const at = position.lastIndexOf("-");
  return [position.slice(0, at), +position.slice(at + 1)];
};

/**
 * Whether `position` is at or below `seen`, in the same incarnation of the stream.
 * @param {string} position
 * @param {string | undefined} seen
 */
export const passed = (position, seen) => {
  if (!seen) return false;
  const [incarnation, sequence] = parts(position);
  const [other, reached] = parts(seen);
  return incarnation === other && sequence <= reached;
};

/**
 * Whether both are of the same incarnation.
 * @param {string} one
 * @param {string} other
 */
export const comparable = (one, other) => parts(one)[0] === parts(other)[0];

/**
 * The revision of what is not there, in the stream of a position.
 * @param {string} position
 */
export const never = (position) => `${parts(position)[0]}-0`;

/**
 * Whether a revision is no newer than the one that is held. That of what has never been there says nothing of time.
 * @param {string} revision
 * @param {string | undefined} held
 */
export const superseded = (revision, held) => parts(revision)[1] > 0 && passed(revision, held);
