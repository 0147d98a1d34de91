// @ts-check
/**
 * Merge patches (RFC 7396), and what a change says that it replaces. What is absent and what is `null` are the same
 * here. A path is the names of members from the top; in messages it is a JSON Pointer (RFC 6901).
 */

/** @typedef {string[]} Path */

/** @param {any} value */
export const isObject = (value) => value !== null && typeof value === "object" && !Array.isArray(value);
const has = Object.hasOwn;

/**
 * Whether both are the same JSON, whatever the order of members.
 * @param {any} one
 * @param {any} other
 * @returns {boolean}
 */
export const same = (one, other) => {
  if (one === null || other === null || typeof one !== "object" || typeof other !== "object") return one === other;
  const names = Object.keys(one);
  if (Array.isArray(one) !== Array.isArray(other) || names.length !== Object.keys(other).length) return false;
  return names.every((name) => has(other, name) && same(one[name], other[name]));
};

/**
 * A value changed by a patch. Neither is modified; the result shares parts with both.
 * @param {any} value
 * @param {any} patch
 * @returns {any}
 */
export const apply = (value, patch) => {
  if (!isObject(patch)) return patch;
  const merged = isObject(value) ? { ...value } : {};
  for (const [name, each] of Object.entries(patch)) {
    if (each === null) delete merged[name];
    else merged[name] = apply(merged[name], each);
  }
  return merged;
};

/**
 * The patch that makes an object what another one is, `null` within it left out.
 * @param {any} old
 * @param {any} wanted
 */
const turned = (old, wanted) => {
  /** @type {Record<string, any>} */
  const patch = {};
  for (const name of Object.keys(old)) if (!has(wanted, name)) patch[name] = null;
  for (const [name, each] of Object.entries(wanted)) patch[name] = isObject(each) && isObject(old[name]) ? turned(old[name], each) : each;
  return patch;
};

/**
 * One patch that does to `value` what two do, one after the other.
 * @param {any} first
 * @param {any} second
 * @param {any} value
 * @returns {any}
 */
export const joined = (first, second, value) => {
  if (!isObject(second)) return second;
  if (!isObject(first)) {
    const wanted = apply(undefined, second); // of what the first one removes, or makes something else of
    return isObject(value) ? turned(value, wanted) : wanted;
  }
  const patch = { ...first };
  for (const [name, each] of Object.entries(second))
    patch[name] = has(first, name) ? joined(first[name], each, value?.[name]) : each;
  return patch;
};

/**
 * What a patch replaces in a value.
 * @param {any} patch
 * @param {any} value
 * @returns {any}
 */
export const replaced = (patch, value) => {
  if (!isObject(patch) || !isObject(value) || !Object.keys(patch).length) return value ?? null;
  return Object.fromEntries(Object.entries(patch).map(([name, each]) => [name, replaced(each, has(value, name) ? value[name] : null)]));
};

/**
 * What was seen first, and what was seen of the rest.
 * @param {any} first
 * @param {any} rest
 * @returns {any}
 */
export const seen = (first, rest) => {
  if (!isObject(first) || !isObject(rest)) return first;
  const both = { ...rest };
  for (const [name, each] of Object.entries(first)) both[name] = has(rest, name) ? seen(each, rest[name]) : each;
  return both;
};

/**
 * What was seen, with nothing where the patch writes and nothing was seen: it names all of its leaves.
 * @param {any} was
 * @param {any} patch
 * @returns {any}
 */
export const complete = (was, patch) => {
  if (!isObject(was) || !isObject(patch)) return was;
  return { ...was, ...Object.fromEntries(Object.entries(patch).map(([name, each]) => [name, complete(has(was, name) ? was[name] : null, each)])) };
};

/**
 * What a patch sets and removes: paths, with values that are no objects, or an empty one.
 * @param {any} patch
 * @param {Path} path
 * @returns {[Path, any][]}
 */
export const leaves = (patch, path = []) =>
  isObject(patch) && Object.keys(patch).length
    ? Object.entries(patch).flatMap(([name, each]) => leaves(each, [...path, name]))
    : [[path, patch]];

/**
 * What of a patch, and of what it replaces, lies at these paths.
 * @param {[Path, any][]} some of its leaves
 * @param {any} was
 * @returns {{patch: any, was: any} | undefined}
 */
export const part = (some, was) => {
  if (!some.length) return undefined;
  let [patch, before] = /** @type {any[]} */ ([undefined, undefined]);
  for (const [path, value] of some) {
    patch = put(patch, path, value);
    let [known, depth] = [was, 0];
    while (depth < path.length && isObject(known)) known = has(known, path[depth]) ? known[path[depth++]] : (depth++, null);
    before = put(before, path.slice(0, depth), known);
  }
  return { patch, was: before };
};

/**
 * @param {any} into
 * @param {Path} path
 * @param {any} value
 * @returns {any}
 */
export const put = (into, [name, ...rest], value) =>
  name === undefined ? value : { ...(isObject(into) ? into : {}), [name]: put(into?.[name], rest, value) };

/**
 * What a value has at a path; null for nothing.
 * @param {any} value
 * @param {Path} path
 */
export const at = (value, path) => path.reduce((each, name) => (isObject(each) && has(each, name) ? each[name] : null), value) ?? null;

/**
 * The names in a JSON Pointer.
 * @param {string} text
 */
export const names = (text) => text.split("/").slice(1).map((name) => name.replaceAll("~1", "/").replaceAll("~0", "~"));

/** @param {Path} path */
export const pointer = (path) => path.map((name) => `/${name.replaceAll("~", "~0").replaceAll("/", "~1")}`).join("");

/**
 * Whether one is the other, or lies above or below it.
 * @param {string} one a JSON Pointer
 * @param {string} other
 */
export const touches = (one, other) => one === other || one.startsWith(`${other}/`) || other.startsWith(`${one}/`);
