/** A document with its user's own changes over it, and the patches that it is made of. */

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";

import { Draft } from "../../../broker/web/static/client/draft.js";
import { apply, joined, leaves, pointer, replaced, same } from "../../../broker/web/static/client/patches.js";

const cases = JSON.parse(readFileSync(new URL("../../client/documents.json", import.meta.url), "utf8"));

test("values are the same as the broker finds them", () => {
  for (const [one, other, equal] of cases.equal) assert.equal(same(one, other), equal, JSON.stringify([one, other]));
});

test("patches do what the broker does with them", () => {
  for (const { about, old, patch, new: wanted } of cases.patches) assert.deepEqual(apply(old, patch), wanted, about);
});

/** Chance that can be had again. */
const chance = (seed) => () => {
  seed = (seed * 1_664_525 + 1_013_904_223) % 2 ** 32;
  return seed / 2 ** 32;
};
const among = (rand, list) => list[Math.floor(rand() * list.length)];
const something = (rand, depth, deletes) => {
  const kind = rand();
  if (depth && kind < 0.5) {
    const names = ["a", "b", "c"].filter(() => rand() < 0.5);
    return Object.fromEntries(names.map((name) => [name, something(rand, depth - 1, deletes)]));
  }
  if (deletes && kind < 0.65) return null;
  return among(rand, [0, 1, "x", true, [1], []]);
};
const document = (rand) => ({ a: something(rand, 2, false), b: something(rand, 2, false) });
const patchOf = (rand) => {
  const patch = something(rand, 3, true);
  return patch !== null && typeof patch === "object" && !Array.isArray(patch) ? patch : { a: patch };
};

test("two patches joined do what they do one after the other, and say what they replace", () => {
  for (let seed = 0; seed < 5_000; seed++) {
    const rand = chance(seed);
    const [value, first, second] = [document(rand), patchOf(rand), patchOf(rand)];
    const both = joined(first, second, value);
    assert.deepEqual(apply(value, both), apply(apply(value, first), second), `seed ${seed}`);
    const was = replaced(both, value);
    for (const [path] of leaves(both)) {
      let [known, i] = [was, 0];
      while (i < path.length && isObject(known) && path[i] in known) known = known[path[i++]];
      assert.ok(i === path.length || !isObject(known), `seed ${seed}: ${pointer(path)} is not in ${JSON.stringify(was)}`);
    }
  }
});

/** The broker, as far as one document goes: judges by `was`, and has a revision for each change. */
class Judge {
  value = null;
  sequence = 0;
  done = new Map(); // by id

  /** What of `was` does not hold: what is there, by pointer. */
  faults(was, value, patch, path = "") {
    const inner = patch === undefined || (isObject(patch) && Object.keys(patch).length);
    if (isObject(was) && isObject(value) && inner)
      return Object.assign({}, ...Object.entries(was).map(([name, each]) => this.faults(each, value[name] ?? null, patch?.[name], `${path}/${name}`)));
    return same(was, value ?? null) || (patch !== undefined && same(apply(value, patch), value)) ? {} : { [path]: value };
  }

  take({ id, patch, was, add, revision }) {
    const before = this.done.get(id);
    if (before) return { revision: before };
    assert.ok(add ? revision : patch !== undefined);
    const there = this.value?.n ?? 0;
    const faults = patch === undefined ? {} : this.faults(was, this.value, patch);
    if (add && typeof there !== "number") faults["/n"] = there;
    if (Object.keys(faults).length) return { faults };
    const value = patch === undefined ? this.value : apply(this.value, patch);
    this.write(add ? { ...value, n: there + add["/n"] } : value, id);
    return { revision: this.revision };
  }

  write(value, id) {
    this.value = value;
    this.sequence++;
    if (id) this.done.set(id, this.revision);
  }

  get revision() {
    return `s-${this.sequence}`;
  }
}
const isObject = (value) => value !== null && typeof value === "object" && !Array.isArray(value);

test("whatever happens, what is shown is what is confirmed with what is one's own, and in the end all agree", () => {
  for (let seed = 0; seed < 3_000; seed++) {
    const rand = chance(seed);
    const judge = new Judge();
    judge.write(document(rand));
    const draft = new Draft();
    let count = 0;
    let sent; // on its way
    let lost = [];
    const tell = () => {
      const by = [...judge.done].filter(([, at]) => at === judge.revision).map(([id]) => ({ id }));
      draft.heard({ revision: judge.revision, value: judge.value, by: rand() < 0.5 ? by : [] });
    };
    const answer = () => {
      const { revision, faults } = judge.take(Draft.payload(sent));
      if (rand() < 0.3) return; // it is lost, and the change is sent again as it was
      sent = undefined;
      if (rand() < 0.5) tell();
      if (revision) draft.stored(revision);
      else lost.push(draft.refused(faults));
    };
    tell();
    for (let step = 0; step < 25; step++) {
      const roll = rand();
      if (roll < 0.35) {
        const patch = patchOf(rand);
        const shown = draft.value;
        if (rand() < 0.3) {
          draft.change(among(rand, [undefined, { a: 1 }]), { "/n": among(rand, [1, -2]) });
          assert.ok("n" in draft.value, `seed ${seed}: what is added is shown`);
        } else {
          draft.change(patch);
          assert.deepEqual(draft.value, apply(shown, patch), `seed ${seed}: what is typed is shown`);
        }
      } else if (roll < 0.5) judge.write(apply(judge.value, patchOf(rand))); // somebody else
      else if (roll < 0.65) tell();
      else if (sent) answer();
      else sent = draft.next(() => `me-${++count}`);
    }
    for (let tries = 0; tries < 100 && (sent || draft.pending); tries++) {
      tell();
      sent ??= draft.next(() => `me-${++count}`);
      if (sent) answer();
    }
    tell();
    assert.equal(draft.pending, 0, `seed ${seed}`);
    assert.deepEqual(draft.value, judge.value, `seed ${seed}: all agree`);
  }
});

const fresh = (value) => {
  const draft = new Draft();
  draft.heard({ revision: "s-1", value });
  return draft;
};
const send = (draft, id = "me-1") => Draft.payload(draft.next(() => id));

test("a change says what the user saw first", () => {
  const draft = fresh({ amount: 1, note: "a" });
  draft.change({ amount: 2 });
  draft.heard({ revision: "s-2", value: { amount: 5, note: "b" } });
  draft.change({ amount: 3, note: null });
  assert.deepEqual(send(draft), { id: "me-1", patch: { amount: 3, note: null }, was: { amount: 1, note: "b" } });
});

test("each leaf is in what it replaces, also where that has become nothing meanwhile", () => {
  const draft = fresh({ b: { x: 1 } });
  draft.change({ b: { x: 2 } });
  draft.heard({ revision: "s-2", value: null });
  draft.change({ a: 1, b: { y: { z: 1 } } });
  const { patch, was } = send(draft);
  assert.deepEqual([patch, was], [{ a: 1, b: { x: 2, y: { z: 1 } } }, { a: null, b: { x: 1, y: null } }]);
});

test("what is typed while a change is under way replaces what that makes", () => {
  const draft = fresh({ amount: 1, note: "a" });
  draft.change({ amount: 2 });
  send(draft);
  draft.change({ amount: 3, note: "b" });
  draft.stored("s-2");
  assert.deepEqual(draft.value, { amount: 3, note: "b" });
  assert.deepEqual(send(draft, "me-2"), { id: "me-2", patch: { amount: 3, note: "b" }, was: { amount: 2, note: "a" } });
});

test("a reply alone takes nothing away from what is shown, and a revision that has it does", () => {
  const draft = fresh({ amount: 1 });
  draft.change({ amount: 2 });
  send(draft);
  draft.stored("s-3");
  draft.heard({ revision: "s-2", value: { amount: 1, note: "of another" } });
  assert.deepEqual([draft.value, draft.pending], [{ amount: 2, note: "of another" }, 1]);
  draft.heard({ revision: "s-3", value: { amount: 2, note: "of another" } });
  assert.deepEqual([draft.confirmed, draft.pending], [{ amount: 2, note: "of another" }, 0]);
});

test("an echo may come before the reply", () => {
  const draft = fresh({ amount: 1 });
  draft.change({ amount: 2 });
  send(draft);
  draft.heard({ revision: "s-2", value: { amount: 2 }, by: [{ user: "me", id: "me-1" }] });
  draft.heard({ revision: "s-3", value: { amount: 7 } }); // and somebody has changed that since
  assert.deepEqual(draft.value, { amount: 7 });
  draft.stored("s-2");
  assert.deepEqual([draft.value, draft.pending], [{ amount: 7 }, 0]);
});

test("of a conflict the rest is sent again, and what was typed over it is lost with it", () => {
  const draft = fresh({ amount: 1, note: "a", address: { city: "x" } });
  draft.change({ amount: 2, note: "b" });
  send(draft);
  draft.change({ amount: 3, address: { city: "y" } });
  draft.heard({ revision: "s-2", value: { amount: 9, note: "a", address: { city: "x" } } });
  assert.deepEqual(draft.refused({ "/amount": 9 }), { mine: { amount: 3 }, theirs: { "/amount": 9 } });
  assert.deepEqual(draft.value, { amount: 9, note: "b", address: { city: "y" } });
  assert.deepEqual(send(draft, "me-2"), { id: "me-2", patch: { note: "b", address: { city: "y" } }, was: { note: "a", address: { city: "x" } } });
});

test("a document is made, and deleted, by what it replaces", () => {
  const draft = fresh(null);
  draft.change({ amount: 1 });
  assert.deepEqual(send(draft), { id: "me-1", patch: { amount: 1 }, was: null });
  draft.stored("s-2");
  draft.change(null);
  assert.equal(draft.value, null);
  assert.deepEqual(send(draft, "me-2"), { id: "me-2", patch: null, was: { amount: 1 } });
  assert.deepEqual(draft.refused({ "": { amount: 2 } }), { mine: null, theirs: { "": { amount: 2 } } });
  assert.deepEqual(draft.value, { amount: 1 });
});

test("two who make a document at once are joined where they differ", () => {
  const draft = fresh(null);
  draft.change({ amount: 1, note: "x", address: { city: "a" } });
  send(draft);
  const { mine, theirs } = draft.refused({ "": { amount: 2, by: "other", address: { zip: 1 } } });
  assert.deepEqual([mine, theirs], [{ amount: 1 }, { "/amount": 2 }]);
  draft.heard({ revision: "s-2", value: { amount: 2, by: "other", address: { zip: 1 } } });
  assert.deepEqual(draft.value, { amount: 2, by: "other", note: "x", address: { zip: 1, city: "a" } });
  assert.deepEqual(send(draft, "me-2"), { id: "me-2", patch: { note: "x", address: { city: "a" } }, was: { note: null, address: { city: null } } });
});

test("what is changed before anything is known replaces what is first there", () => {
  const draft = new Draft();
  draft.change({ note: "x" });
  draft.change({ amount: 2 });
  assert.deepEqual([draft.value, draft.pending, draft.next(() => "me-1")], [{ note: "x", amount: 2 }, 1, undefined]);
  draft.heard({ revision: "s-1", value: { amount: 1 } });
  assert.deepEqual(send(draft), { id: "me-1", patch: { note: "x", amount: 2 }, was: { note: null, amount: 1 } });
});

test("what a page leaves behind is sent as it was, before what is typed since", () => {
  const gone = fresh({ amount: 1, note: "a" });
  gone.change({ amount: 2 });
  send(gone, "old-1");
  gone.change({ amount: 3 });
  const left = JSON.parse(JSON.stringify(gone.kept));
  const draft = new Draft();
  draft.change({ note: "b" });
  draft.inherit(left);
  draft.heard({ revision: "s-2", value: { amount: 1, note: "a" } });
  assert.deepEqual([draft.value, draft.pending], [{ amount: 3, note: "b" }, 3]);
  const sent = [];
  while (draft.waits) {
    sent.push(send(draft, `me-${sent.length}`));
    draft.stored(`s-${1 + sent.length}`);
  }
  assert.deepEqual(sent, [
    { id: "old-1", patch: { amount: 2 }, was: { amount: 1 }, revision: "s-1" },
    { id: "me-1", patch: { amount: 3 }, was: { amount: 2 } },
    { id: "me-2", patch: { note: "b" }, was: { note: "a" } },
  ]);
});

test("what is added is shown over what is there, goes by itself, and with what it was made on", () => {
  const draft = fresh({ stock: 5, note: "a" });
  draft.change({ note: "b" });
  draft.change(undefined, { "/stock": -1, "/sold/by~1me": 1 });
  draft.change({ note: "c" }, { "/stock": -2 });
  draft.change({ note: "d" });
  assert.deepEqual([draft.value, draft.pending], [{ stock: 2, note: "d", sold: { "by/me": 1 } }, 4]);
  const kept = JSON.parse(JSON.stringify(draft.kept));
  assert.deepEqual(send(draft), { id: "me-1", patch: { note: "b" }, was: { note: "a" } });
  draft.stored("s-2");
  draft.heard({ revision: "s-3", value: { stock: 9, note: "b" } });
  assert.deepEqual(draft.value, { stock: 6, note: "d", sold: { "by/me": 1 } });
  assert.deepEqual(send(draft, "me-2"), { id: "me-2", add: { "/stock": -1, "/sold/by~1me": 1 }, revision: "s-3" });
  draft.heard({ revision: "s-4", value: { stock: 8, note: "b", sold: { "by/me": 1 } } }); // without a word whose that is
  assert.deepEqual(draft.value, { stock: 6, note: "d", sold: { "by/me": 1 } });
  draft.stored("s-4");
  assert.deepEqual(draft.value, { stock: 6, note: "d", sold: { "by/me": 1 } });
  assert.deepEqual(send(draft, "me-3"), { id: "me-3", patch: { note: "c" }, was: { note: "b" }, add: { "/stock": -2 }, revision: "s-4" });
  draft.doubt();
  draft.heard({ revision: "s-5", value: { stock: "none", note: "b" } });
  assert.deepEqual([Draft.payload(draft.flying).revision, draft.value], ["s-4", { stock: "none", note: "d" }]);
  assert.deepEqual(draft.refused({ "/stock": "none" }), { mine: { note: "c" }, add: { "/stock": -2 }, theirs: { "/stock": "none" } });
  const heir = fresh({ stock: 5, note: "a" });
  heir.inherit(kept);
  assert.deepEqual(heir.value, { stock: 2, note: "d", sold: { "by/me": 1 } });
  const early = new Draft();
  early.change(undefined, { "/stock": 3 });
  assert.deepEqual(early.value, { stock: 3 });
  early.heard({ revision: "s-1", value: { stock: 1 } });
  assert.deepEqual([early.value, send(early)], [{ stock: 4 }, { id: "me-1", add: { "/stock": 3 }, revision: "s-1" }]);
});
