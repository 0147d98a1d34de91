import assert from "node:assert/strict";
import { after, before, test } from "node:test";

import { Broker, equip, openBrowser, openPage, until } from "./support.js";

let browser, broker;
before(async () => (browser = await openBrowser()));
after(async () => {
  await browser?.close();
  await broker?.remove();
});

/** Who is not back in so many seconds is gone. */
const start = async (seconds) => {
  for (const context of browser.contexts()) await context.close(); // which would come to this one too
  await broker?.remove();
  broker = await new Broker({ BROKER_LIMITS__PRESENCE_LINGER_SECONDS: String(seconds) }).start();
  const open = async () => openPage(await browser.newContext(), broker.url);
  const [alice, bob] = [await open(), await open()];
  await enter(alice, "alice");
  await enter(bob, "bob");
  for (const page of [alice, bob]) await sees(page, "alice 1,bob 1");
  return [alice, bob];
};
/** A client in the page that is present in `desk`, with what its room tells in `news`. */
const enter = (page, user) =>
  page.evaluate(async (user) => {
    window.client = await open({ token: () => token("acme", user) });
    window.news = [];
    window.room = client.presence("desk", { state: { at: user } });
    room.addEventListener("change", ({ detail }) => {
      for (const [kind, users] of Object.entries(detail)) for (const each of users) news.push(`${kind} ${each.user}`);
    });
    room.addEventListener("error", ({ detail }) => news.push(detail.code));
  }, user);
const shown = (page) => page.evaluate(() => room.users.map(({ user, sessions }) => `${user} ${sessions.length}`).sort().join());
const sees = (page, what) => until(async () => (await shown(page)) === what, `it sees ${what}`);
const sessions = (page) => page.evaluate(() => room.members.filter(({ user }) => user === "bob").map(({ session }) => session));

test("pages see each other; a reload is nothing, a copy another session, and who closes is gone", async () => {
  const [alice, bob] = await start(100);
  await bob.evaluate(() => room.set({ editing: "note" }));
  const states = (page) => page.evaluate(() => room.members.filter(({ user }) => user === "bob").map(({ state }) => state));
  await until(async () => (await states(alice))[0].editing === "note", "the state");

  const [session] = await sessions(alice);
  await bob.reload();
  await equip(bob);
  await enter(bob, "bob");
  await until(async () => (await states(alice))[0].at === "bob", "it is back");
  assert.deepEqual(await sessions(alice), [session]);

  // As in a duplicated tab what the tab keeps is the same, and the lock is not free.
  const copy = await openPage(bob.context(), broker.url);
  const kept = await bob.evaluate(() => ({ ...sessionStorage }));
  await copy.evaluate((kept) => void Object.assign(sessionStorage, kept), kept);
  await enter(copy, "bob");
  for (const page of [alice, bob, copy]) await sees(page, "alice 1,bob 2");
  assert.ok((await sessions(alice)).includes(session));
  await copy.evaluate(() => client.close());
  await sees(alice, "alice 1,bob 1");

  // Where there are no locks, the broker says that it has the session of another.
  await copy.evaluate((kept) => {
    Object.assign(sessionStorage, kept);
    Object.defineProperty(navigator, "locks", { value: undefined });
  }, kept);
  await enter(copy, "bob");
  for (const page of [alice, bob, copy]) await sees(page, "alice 1,bob 2");
  const told = () => alice.evaluate(() => news.filter((each) => !/^updated/.test(each)));
  assert.deepEqual((await told()).sort(), ["joined alice", "joined bob"]);

  await copy.evaluate(() => client.close());
  await bob.evaluate(() => room.close());
  await sees(alice, "alice 1");
  assert.equal((await told()).at(-1), "left bob");
  for (const page of [alice, bob, copy]) assert.deepEqual(page.faults, []);
});

test("a page that is closed goes once it cannot be a reload any more", async () => {
  const [alice, bob] = await start(1);
  await bob.close();
  await sees(alice, "alice 1");
  assert.equal(await alice.evaluate(() => news.at(-1)), "left bob");
});
