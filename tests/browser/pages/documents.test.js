import assert from "node:assert/strict";
import { after, before, test } from "node:test";

import { Broker, Proxy, openBrowser, openPage, until } from "./support.js";

let broker, proxy, browser;
before(async () => {
  const many = ["REQUESTS_PER_SECOND", "REQUESTS_BURST", "CHANGES_PER_SECOND", "CHANGES_BURST"];
  broker = await new Broker({ BROKER_PERMISSIONS__CHANGE: ">", ...Object.fromEntries(many.map((name) => [`BROKER_LIMITS__${name}`, "1000"])) }).start();
  proxy = await new Proxy(broker).start();
  browser = await openBrowser();
});
after(async () => {
  await browser?.close();
  proxy?.close();
  await broker?.remove();
});

/** A page with a client, and the document `doc` and the collection `board` open in it. */
const shows = async (url, name, options = {}, context = undefined) => {
  const page = await openPage(context ?? (await browser.newContext()), url);
  await page.evaluate(
    async ({ name, options }) => {
      window.client = await open(options);
      window.doc = client.document(`orders.${name}`);
      window.board = client.collection(`board.${name}.*`);
      window.told = [];
      for (const type of ["conflict", "rejected", "error"]) doc.addEventListener(type, ({ detail }) => told.push({ type, ...detail }));
      await Promise.all([doc.opened, board.opened]);
    },
    { name, options },
  );
  return page;
};
const value = (page) => page.evaluate(() => doc.value);
const cards = (page) => page.evaluate(() => [...board.all].sort(([a], [b]) => (a < b ? -1 : 1)));
const quiet = (...pages) => Promise.all(pages.map((page) => until(() => page.evaluate(() => doc.pending === 0), "all is confirmed")));

for (const transport of ["websocket", "sse", "poll", "tabs"])
  test(`${transport}: two people change one order: what differs is joined, and what is the same is a conflict`, async () => {
    const context = await browser.newContext();
    const options = transport === "tabs" ? { tabs: "shared" } : { transports: [transport] };
    const [ann, bob] = [await shows(broker.url, transport, options, context), await shows(broker.url, transport, options, context)];
    if (transport === "tabs") assert.equal(await bob.evaluate(() => client.status.transport), "tabs");
    assert.equal(await value(ann), null);
    await ann.evaluate(() => doc.change({ amount: 1, note: "new" }));
    for (const page of [ann, bob]) await until(async () => (await value(page))?.amount === 1, "it is made");
    await quiet(ann, bob);
    await Promise.all([ann.evaluate(() => doc.change({ amount: 2 })), bob.evaluate(() => doc.change({ note: "of Bob" }))]);
    assert.equal((await value(ann)).amount, 2, "shown at once");
    for (const page of [ann, bob])
      await until(async () => JSON.stringify(await page.evaluate(() => Object.entries(doc.confirmed).sort())) === '[["amount",2],["note","of Bob"]]', "both");
    await quiet(ann, bob);
    await Promise.all([ann.evaluate(() => doc.change({ amount: 3 })), bob.evaluate(() => doc.change({ amount: 4 }))]);
    await quiet(ann, bob);
    const [ours] = await until(async () => {
      const all = (await Promise.all([ann, bob].map((page) => page.evaluate(() => told.map(({ keep, ...rest }) => rest))))).flat();
      return all.length ? all : undefined;
    }, "a conflict");
    assert.equal(ours.type, "conflict");
    assert.deepEqual(ours.paths, ["/amount"]);
    assert.deepEqual([ours.mine.amount, ours.theirs["/amount"]].sort(), [3, 4]);
    for (const page of [ann, bob]) await until(async () => (await value(page)).amount === ours.theirs["/amount"], "who was first");
    const loser = (await ann.evaluate(() => told.length)) ? ann : bob;
    await loser.evaluate(() => told[0].keep("mine"));
    for (const page of [ann, bob]) await until(async () => (await value(page)).amount === ours.mine.amount, "it was kept");
    await quiet(ann, bob);
    // Both take from one stock as often as they like, and what is moved is moved in both places.
    const take = () => {
      for (let i = 0; i < 3; i++) doc.change(undefined, { add: { "/stock": -1 } });
    };
    const move = ({ name, from }) => client.change([{ channel: `orders.${name}`, patch: { from }, add: { "/stock": 10 } }, { channel: `board.${name}.x`, patch: { rank: "m" } }]);
    await ann.evaluate(take);
    const [revisions] = await Promise.all([bob.evaluate(move, { name: transport, from: "Bob" }), bob.evaluate(take)]);
    assert.deepEqual(Object.keys(revisions).sort(), [`board.${transport}.x`, `orders.${transport}`]);
    for (const page of [ann, bob]) await until(async () => (await value(page)).stock === 4 && (await cards(page)).length === 1, "all of it");
    await quiet(ann, bob);
    const refused = await ann.evaluate(({ name }) => client.change([{ channel: `orders.${name}`, patch: { from: null } }, { channel: `orders.${name}.stock`, add: { "/a": 2 ** 53 } }, { channel: "nobody.s", add: { "/b": 2 ** 60 } }]).catch(({ code }) => code), { name: transport });
    assert.deepEqual([refused, (await value(ann)).from], ["rejected", "Bob"]);
    for (const page of [ann, bob]) assert.deepEqual(page.faults, []);
    await context.close();
  });

test("a board: cards are made, moved and removed, and everybody sees the same", async () => {
  const [ann, bob] = [await shows(broker.url, "kanban"), await shows(broker.url, "kanban")];
  await ann.evaluate(() => {
    for (const card of ["a", "b", "c"]) board.change(`board.kanban.${card}`, { rank: card, text: `card ${card}` });
  });
  await until(async () => (await cards(bob)).length === 3, "three cards");
  await bob.evaluate(() => {
    board.change("board.kanban.a", { rank: "bb" });
    board.change("board.kanban.b", null);
  });
  for (const page of [ann, bob]) await until(async () => (await cards(page)).map(([, { rank }]) => rank).join() === "bb,c", "moved and removed");
  for (const page of [ann, bob]) await page.context().close();
});

test("a change that is cut off, or under which the broker is killed, is sent again as it was, and once", async () => {
  const [ann, bob] = [await shows(proxy.url, "cut"), await shows(broker.url, "cut")];
  await ann.evaluate(() => doc.change({ n: 0 }));
  await quiet(ann);
  for (let n = 1; n <= 5; n++) {
    await ann.evaluate((n) => doc.change({ n }), n);
    if (n === 3) {
      await broker.end("SIGKILL");
      await broker.start();
    } else proxy.cut();
    assert.equal((await value(ann)).n, n);
    await quiet(ann);
  }
  for (const page of [ann, bob]) await until(async () => (await value(page))?.n === 5, "the last one");
  assert.deepEqual(await ann.evaluate(() => told), []);
  for (const page of [ann, bob]) await page.context().close();
});

test("changes outlive the page where that is asked for, and are sent once by whoever opens the document next", async () => {
  const context = await browser.newContext();
  const options = { drafts: "orders" };
  const page = await shows(proxy.url, "kept", options, context);
  await page.evaluate(() => doc.change({ n: 1 }));
  await quiet(page);
  proxy.refuseAll = true;
  proxy.cut();
  await page.evaluate(() => doc.change({ n: 2, note: "offline" }));
  await until(() => page.evaluate(() => client.status.state !== "open"), "it is cut off");
  await until(
    () =>
      page.evaluate(
        () =>
          new Promise((resolve) => {
            const opening = indexedDB.open("broker orders");
            opening.onsuccess = () => {
              const all = opening.result.transaction("changes").objectStore("changes").getAll();
              all.onsuccess = () => resolve(JSON.stringify(all.result).includes("offline"));
            };
          }),
      ),
    "it is kept",
  );
  await page.close();
  proxy.refuseAll = false;
  const next = await shows(proxy.url, "kept", options, context);
  for (const shown of [{ n: 2, note: "offline" }]) await until(async () => JSON.stringify(Object.entries((await next.evaluate(() => doc.confirmed)) ?? {}).sort()) === JSON.stringify(Object.entries(shown)), "it is stored");
  await quiet(next);
  assert.deepEqual(await next.evaluate(() => told), []);
  await context.close();
});
