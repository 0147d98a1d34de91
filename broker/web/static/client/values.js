// @ts-check
/** Values as JSON has them, and their sizes. */

const DEPTH = 1024; // of an event

/**
 * A list of our own.
 * @template T
 * @param {T | T[]} value
 * @returns {T[]}
 */
export const many = (value) => /** @type {T[]} */ ([value].flat());

/** @param {string} text */
export const utf8 = (text) => new TextEncoder().encode(text).length;
/** @param {unknown} value */
export const bytes = (value) => utf8(JSON.stringify(value));

/**
 * What is not undefined of an object.
 * @template {object} T
 * @param {T} object
 * @returns {T}
 */
export const given = (object) => /** @type {T} */ (Object.fromEntries(Object.entries(object).filter(([, value]) => value !== undefined)));

/**
 * Whether it holds half of a surrogate pair, as a text that was cut in an emoji.
 * @param {string} text
 */
export const torn = (text) => /\p{Cs}/u.test(text);
export const TORN = "holds half a character: the text was cut in the middle of one";

/**
 * A copy of a value as JSON has it. Throws a `TypeError` that says where there is something that JSON has not, or
 * that the broker would refuse. As with `JSON.stringify` a property that is `undefined` is left out.
 * @param {any} value
 * @param {string} path
 * @param {any[]} above
 * @returns {any}
 */
export const json = (value, path = "event", above = []) => {
  /** @param {string} what */
  const wrong = (what) => {
    throw new TypeError(`${path} ${what}`);
  };
  if (value instanceof Date && Number.isNaN(+value)) wrong("is an invalid date");
  if (typeof value?.toJSON === "function") value = value.toJSON();
  if ([String, Number, Boolean].some((kind) => value instanceof kind)) value = value.valueOf();
  if (value === null || typeof value === "boolean") return value;
  if (typeof value === "string") return torn(value) ? wrong(TORN) : value;
  if (typeof value === "number") {
    if (!Number.isFinite(value)) wrong(`is ${value}, which JSON has not`);
    // From 1e21 on it is written with an exponent, and no integer any more.
    const huge = Number.isInteger(value) && Math.abs(value) < 1e21 && !(value >= -(2 ** 63) && value < 2 ** 64);
    if (huge) wrong("is an integer of more than 64 bits: send it as a string");
    return value;
  }
  if (value === undefined) wrong("is undefined, which JSON has not; null is a tombstone, or a value that is none");
  if (typeof value !== "object") wrong(`is a ${typeof value}, which JSON has not`);
  if (above.includes(value)) wrong("holds itself");
  if (above.length === DEPTH) wrong(`is nested deeper than ${DEPTH}`);
  const within = [...above, value];
  if (Array.isArray(value)) return Array.from(value, (each, i) => json(each, `${path}[${i}]`, within));
  const made = Object.getPrototypeOf(value);
  const keys = Object.keys(value).filter((key) => value[key] !== undefined);
  if (!keys.length && made && Object.getPrototypeOf(made)) wrong(`is a ${made.constructor?.name}, of which JSON keeps nothing`);
  const found = keys.find(torn);
  if (found !== undefined) wrong(`has a name that ${TORN}`);
  return Object.fromEntries(keys.map((key) => [key, json(value[key], `${path}.${key}`, within)]));
};
