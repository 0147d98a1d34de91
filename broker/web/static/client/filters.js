// @ts-check
/**
 * Filters: conditions on the JSON of an event (the protocol page, "Filters"). The broker has the same rules
 * (`broker/filters.py`); tests/client/filters.json holds both to them.
 */

import { failure } from "./errors.js";
import { bytes } from "./values.js";

/** @typedef {(value: any) => boolean} Test */

const NODES = 32; // operators, `any`, `all` and `not`
const BYTES = 4_096; // as JSON
const DEPTH = 32; // of a value to compare with
const SHOWN = 40; // characters of a filter's own text in an error
const INDEX = /^(?:0|[1-9][0-9]{0,8})$/;
/** Where a pointer points to nothing; `null` is something. */
const ABSENT = Symbol("absent");

const isObject = (/** @type {any} */ value) => value !== null && typeof value === "object" && !Array.isArray(value);

/** By code point, where JavaScript's own order is by UTF-16. @type {(a: any, b: any) => number} */
const compare = (a, b) => {
  if (typeof a !== "string") return a < b ? -1 : Number(a > b);
  const [left, right] = [a, b].map((text) => [...text].map((each) => each.codePointAt(0) ?? 0));
  const i = left.findIndex((point, at) => point !== right[at]);
  if (i < 0) return left.length - right.length;
  return i < right.length ? left[i] - right[i] : 1;
};

/** @type {(value: any, wanted: any) => boolean} */
const same = (value, wanted) => {
  if (wanted === null || typeof wanted !== "object") return value === wanted;
  if (value === null || typeof value !== "object" || Array.isArray(value) !== Array.isArray(wanted)) return false;
  const names = Object.keys(wanted);
  return Object.keys(value).length === names.length && names.every((name) => Object.hasOwn(value, name) && same(value[name], wanted[name]));
};

/** @type {(value: any, depth?: number) => boolean} */
const tooDeep = (value, depth = 0) =>
  depth > DEPTH || (value !== null && typeof value === "object" && Object.values(value).some((each) => tooDeep(each, depth + 1)));

/** @type {Record<string, (order: number) => boolean>} */
const ORDERS = { gt: (order) => order > 0, gte: (order) => order >= 0, lt: (order) => order < 0, lte: (order) => order <= 0 };

/** @type {(name: string, operand: any, wrong: (what: string) => never) => Test} */
const condition = (name, operand, wrong) => {
  if (["eq", "ne", "in", "nin"].includes(name)) {
    const list = name.endsWith("in");
    if (list && !Array.isArray(operand)) wrong("a list of values");
    if (tooDeep(operand)) wrong(`nested deeper than ${DEPTH}`);
    const test = list ? (/** @type {any} */ value) => operand.some((/** @type {any} */ each) => same(value, each)) : (/** @type {any} */ value) => same(value, operand);
    return name.startsWith("n") ? (value) => !test(value) : test;
  }
  if (Object.hasOwn(ORDERS, name)) {
    const kind = typeof operand;
    if (kind !== "number" && kind !== "string") wrong("a number or a string");
    return (value) => typeof value === kind && ORDERS[name](compare(value, operand));
  }
  if (name === "exists") return typeof operand === "boolean" ? (value) => (value !== ABSENT) === operand : wrong("true or false");
  if (name === "prefix") return typeof operand === "string" ? (value) => typeof value === "string" && value.startsWith(operand) : wrong("a string");
  return wrong("unknown operator");
};

/** @type {(pointer: string) => (event: any) => any} */
const getter = (pointer) => {
  const tokens = pointer.split("/").slice(1).map((token) => token.replaceAll("~1", "/").replaceAll("~0", "~"));
  return (event) => {
    for (const token of tokens) {
      const has = Array.isArray(event) ? INDEX.test(token) && Number(token) < event.length : isObject(event) && Object.hasOwn(event, token);
      if (!has) return ABSENT;
      event = event[token];
    }
    return event;
  };
};

/** Makes functions of a filter. */
class Parser {
  nodes = 0;

  /** @type {(document: any, path: string) => Test} */
  filter(document, path) {
    if (!isObject(document)) return this.#wrong(path, "a filter is an object");
    const tests = Object.entries(document).flatMap(([name, value]) => this.#member(name, value, path));
    return (event) => tests.every((test) => test(event));
  }

  /** @type {(name: string, value: any, path: string) => Test[]} */
  #member(name, value, path) {
    if (["any", "all", "not"].includes(name)) return [this.#group(name, value, `${path}.${name}`)];
    path += `[${JSON.stringify(name.length > SHOWN ? `${name.slice(0, SHOWN)}…` : name)}]`;
    if (name && name[0] !== "/") this.#wrong(path, "neither a JSON Pointer nor any, all or not");
    if (/~(?![01])/.test(name)) this.#wrong(path, "in a JSON Pointer ~ is written ~0, and / in a name ~1");
    const get = getter(name);
    const conditions = Object.entries(isObject(value) ? value : { eq: value });
    if (!conditions.length) this.#wrong(path, "name an operator; an object is compared with by eq");
    return conditions.map(([each, operand]) => {
      this.#count(path);
      const test = condition(each, operand, (what) => this.#wrong(`${path}.${each.slice(0, SHOWN)}`, what));
      return (event) => test(get(event));
    });
  }

  /** @type {(name: string, value: any, path: string) => Test} */
  #group(name, value, path) {
    this.#count(path);
    if (name === "not") {
      const test = this.filter(value, path);
      return (event) => !test(event);
    }
    if (!Array.isArray(value) || !value.length) this.#wrong(path, "a list of at least one filter");
    const tests = value.map((/** @type {any} */ each, /** @type {number} */ i) => this.filter(each, `${path}[${i}]`));
    return (event) => (name === "any" ? tests.some((/** @type {Test} */ test) => test(event)) : tests.every((/** @type {Test} */ test) => test(event)));
  }

  /** @param {string} path */
  #count(path) {
    if (++this.nodes > NODES) this.#wrong(path, `more than ${NODES} nodes`);
  }

  /** @type {(path: string, what: string) => never} */
  #wrong(path, what) {
    throw failure("bad_message", `${path}: ${what}`);
  }
}

/** A condition on events; two with the same `text` are the same. */
export class Filter {
  document;
  text;
  #test;

  /** @param {any} document throws a `BrokerError` that names the node that is wrong */
  constructor(document) {
    this.#test = new Parser().filter(document, "filter");
    if (bytes(document) > BYTES) throw failure("bad_message", `filter: ${bytes(document)} bytes; the limit is ${BYTES}`);
    this.document = document;
    this.text = JSON.stringify(document);
  }

  /**
   * Whether an event passes; a tombstone always does.
   * @param {any} event
   */
  passes(event) {
    return event === null || this.#test(event);
  }
}

/**
 * What passes what any of these passes; undefined: everything, also where there is no such filter within the limits.
 * @param {(Filter | undefined)[]} filters
 */
export const either = (filters) => {
  const wanted = [...new Map(filters.map((each) => [each?.text, each])).values()];
  if (wanted.length < 2 || wanted.includes(undefined)) return wanted.includes(undefined) ? undefined : wanted[0];
  try {
    return new Filter({ any: wanted.map((each) => each?.document) });
  } catch {
    return undefined;
  }
};
