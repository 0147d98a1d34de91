import assert from "node:assert/strict";
import { after, before, test } from "node:test";

import { Broker, openBrowser, openPage, until } from "./support.js";

let broker, browser;
before(async () => {
  broker = await new Broker().start();
  browser = await openBrowser();
});
after(async () => {
  await browser?.close();
  await broker?.remove();
});

/** Tabs of one browser, one after the other, each with a client that shares. */
const open = async (...users) => {
  const context = await browser.newContext();
  const pages = [];
  for (const user of users) {
    const page = await openPage(context, broker.url);
    await page.evaluate(async (user) => {
      window.posted = [];
      const { postMessage } = BroadcastChannel.prototype;
      BroadcastChannel.prototype.postMessage = function (data) {
        posted.push(data.message?.type);
        postMessage.call(this, data);
      };
      window.live = (sub) =>
        new Promise((resolve) => {
          const look = () => sub.state === "live" && resolve();
          sub.addEventListener("state", look);
          look();
        });
      window.client = await open({ tabs: "shared", token: () => token("acme", user) });
    }, user);
    pages.push(page);
  }
  return pages;
};
const transport = (page) => page.evaluate(() => client.status.state === "open" && client.status.transport);
const shares = (page) => until(async () => (await transport(page)) === "tabs", "it shares");

test("the first tab does not look for another one, however slow its token is", async () => {
  const [page] = await open("alice");
  const posted = await page.evaluate(async () => {
    client.close();
    posted.length = 0;
    const slow = async () => (await new Promise((resolve) => setTimeout(resolve, 300)), token("acme", "alice"));
    await open({ tabs: "slow", token: slow });
    return posted;
  });
  assert.ok(posted.filter((type) => type === "tab.hello").length < 2, posted.join());
  await page.context().close();
});

test("tabs of different users never share, whatever name they give", async () => {
  const pages = await open("alice", "bob", "alice");
  assert.deepEqual(await Promise.all(pages.map(transport)), ["websocket", "websocket", "tabs"]);
  const users = await Promise.all(pages.map((page) => page.evaluate(() => client.status.user)));
  assert.deepEqual(users, ["alice", "bob", "alice"]);
  await pages[0].context().close();
});

test("a tab that leaves and comes back shares again", async () => {
  const [leader, page] = await open("alice", "alice");
  await page.evaluate(() => {
    client.disconnect();
    client.connect();
  });
  await shares(page);
  await page.evaluate(async () => {
    window.taken = [];
    await live(client.subscribe("back.>", ({ event }) => taken.push(event)));
  });
  await leader.evaluate(() => client.publish("back.a", 1));
  await until(() => page.evaluate(() => taken.length === 1));
  await page.context().close();
});

test("a tab that closes its client hands over, and leaves no rejection that nobody asked for", async () => {
  const [leader, page] = await open("alice", "alice");
  const publishing = page.evaluate(async () => {
    const done = await Promise.all(Array.from({ length: 60 }, (_, n) => client.publish(`over.${n % 30}`, n, { id: `over-${n}` })));
    return done.length;
  });
  await leader.evaluate(() => new Promise((resolve) => setTimeout(() => resolve(client.close()), 5)));
  assert.equal(await publishing, 60);
  assert.equal(await until(() => transport(page)), "websocket");
  assert.deepEqual([...leader.faults, ...page.faults], []);
  await page.context().close();
});

test("what is refused to one is told in the tab that asked", async () => {
  const [, page] = await open("alice", "alice");
  const found = await page.evaluate(async () => {
    const told = [];
    const some = client.subscribe(["users.bob.x", "right.>"]);
    const none = client.subscribe("users.bob.y");
    for (const sub of [some, none]) sub.addEventListener("error", ({ detail }) => told.push(detail.code));
    await Promise.all([live(some), new Promise((resolve) => none.addEventListener("end", resolve))]);
    while (some.channels.length > 1) await new Promise((resolve) => setTimeout(resolve, 10));
    return { told, channels: some.channels, states: [some.state, none.state] };
  });
  assert.deepEqual(found, { told: ["forbidden", "forbidden"], channels: ["right.>"], states: ["live", "closed"] });
  await page.context().close();
});

test("a subscription from now on disturbs nobody in the other tabs", async () => {
  const [leader, page] = await open("alice", "alice");
  const states = await leader.evaluate(async () => {
    const sub = client.subscribe("calm.>");
    await live(sub);
    window.states = [];
    sub.addEventListener("state", ({ detail }) => states.push(detail));
    return states;
  });
  await page.evaluate(() => live(client.subscribe("calm.>")));
  assert.deepEqual(await leader.evaluate(() => states), states);
  await page.context().close();
});

test("a tab that goes hands over, and shares again when somebody comes back to it", async () => {
  const [leader, page] = await open("alice", "alice");
  const happens = (type) => leader.evaluate((type) => void window.dispatchEvent(new PageTransitionEvent(type, { persisted: true })), type);
  await happens("pagehide");
  await until(async () => (await transport(page)) === "websocket", "the other one leads");
  assert.equal(await leader.evaluate(() => client.status.state), "waiting");
  await happens("pageshow");
  await shares(leader);
  await page.context().close();
});
