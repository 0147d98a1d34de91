import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { createRequire } from "node:module";
import { fileURLToPath } from "node:url";

import { build } from "esbuild";

import { Broker, Service, openBrowser, openPage, until } from "./support.js";

const here = (path) => fileURLToPath(new URL(path, import.meta.url));

let broker, service, browser, bundle;
before(async () => {
  const options = { entryPoints: [here("app.jsx")], bundle: true, write: false, format: "iife", jsx: "automatic" };
  const built = await build({ ...options, nodePaths: [here("../node_modules")], define: { "import.meta.url": '"x:/"' } });
  bundle = built.outputFiles[0].text;
  broker = await new Broker().start();
  service = await new Service().start(broker, "acme");
  browser = await openBrowser();
});
after(async () => {
  await browser?.close();
  service?.end();
  await broker?.remove();
});

const open = async () => {
  const page = await openPage(await browser.newContext(), broker.url);
  page.on("console", (message) => ["error", "warning"].includes(message.type()) && page.faults.push(message.text()));
  await page.addScriptTag({ content: bundle });
  await page.evaluate(async () => {
    window.unmount = mount(() => token("acme", "ann"));
    window.writer = await open({ token: () => token("acme", "writer") });
  });
  await page.locator("#state", { hasText: "open ann" }).waitFor();
  return page;
};
/** Publishes, and waits until the broker has read what NATS has stored. */
const publish = (page, ...events) =>
  page.evaluate(async (events) => {
    let channel, event, last;
    for ([channel, event] of events) last = await writer.publish(channel, event);
    await writer.history(channel, { after: last.position });
  }, events);
const subscribes = (page, channel) =>
  page.evaluate((channel) => sent.filter(({ type, payload }) => type === "subscribe" && payload.channel.includes(channel)).length, channel);

test("in strict mode two components share one subscription, show the same, and leave nothing behind", async () => {
  const page = await open();
  await page.locator('#one[data-state="live"]').waitFor({ state: "attached" });
  assert.equal(await subscribes(page, "react.>"), 1);
  await page.evaluate(() => Promise.all(Array.from({ length: 40 }, (_, n) => writer.publish(`react.${n % 8}`, n))));
  const shown = () => page.evaluate(() => ["one", "two"].map((id) => document.getElementById(id).textContent));
  await until(async () => (await shown())[0].split(" ").length === 5);
  const [one, two] = await shown();
  assert.equal(one, two);
  assert.equal(await page.evaluate(() => torn), 0);
  await page.locator("#toggle").click();
  await page.locator("#toggle").click(); // back before it was given up
  await page.locator('#one[data-state="live"]').waitFor({ state: "attached" });
  assert.equal(await subscribes(page, "react.>"), 1);
  await page.evaluate(() => unmount());
  await until(() => page.evaluate(() => sent.some(({ type, payload }) => type === "unsubscribe" && payload.channel.includes("react.>"))));
  assert.deepEqual(page.faults, []);
  await page.context().close();
});

test("a list that is shown again later goes on where it ended", async () => {
  const page = await open();
  await page.locator('#one[data-state="live"]').waitFor({ state: "attached" });
  await publish(page, ["react.a", "x"], ["react.a", "y"]);
  await page.locator("#one", { hasText: "x y" }).waitFor();
  await page.locator("#toggle").click();
  await until(() => page.evaluate(() => sent.some(({ type, payload }) => type === "unsubscribe" && payload.channel.includes("react.>"))));
  await publish(page, ["react.a", "z"]);
  await page.locator("#toggle").click();
  await page.locator("#one", { hasText: "x y z" }).waitFor();
  await page.context().close();
});

test("notifications are unread until they are read, also for the next page", async () => {
  let page = await open();
  await page.evaluate(async () => {
    const ann = await open({ token: () => token("acme", "ann") });
    for (const n of [1, 2]) await ann.publish("me.notifications", `n${n}`);
  });
  await page.locator("#unread", { hasText: "2" }).waitFor();
  assert.equal(await page.locator("#notifications").textContent(), "n2 n1");
  await page.locator("#read").click();
  await page.locator("#unread", { hasText: "0" }).waitFor();
  await until(() => page.evaluate(() => sent.some(({ type }) => type === "acknowledge")));
  await page.evaluate(async () => {
    const ann = await open({ token: () => token("acme", "ann") });
    await ann.publish("me.notifications", "n3");
  });
  await page.context().close();
  // An acknowledgement is stored within a second.
  page = await until(async () => {
    const next = await open();
    await next.locator("#notifications", { hasText: "n3" }).waitFor();
    if ((await next.locator("#notifications").textContent()) === "n3") return next;
    await next.context().close();
    return undefined;
  });
  assert.equal(await page.locator("#unread").textContent(), "1");
  await page.context().close();
});

test("a list that has not changed is the same list in each rendering", async () => {
  const page = await open();
  await page.evaluate(async () => {
    const ann = await open({ token: () => token("acme", "ann") });
    await ann.publish("me.notifications", "the newest");
  });
  await page.locator("#notifications", { hasText: /^the newest/ }).waitFor(); // nothing else is on its way
  const counted = await page.evaluate(() => lists.size);
  for (let i = 0; i < 4; i++) await page.locator("#toggle").click();
  assert.equal(await page.evaluate(() => lists.size), counted);
  await page.context().close();
});

test("what a server renders, and a page takes over, is the same however far the client is", async () => {
  const contents = `
    import { createElement as h } from "react";
    import { renderToString } from "react-dom/server";
    import { BrokerProvider, useChannel, useConnection } from "../../../broker/web/static/react.js";
    const Page = () => useConnection().state + " " + useChannel("a").state;
    export const render = (client) => renderToString(h(BrokerProvider, { client }, h(Page)));`;
  const stdin = { contents, resolveDir: here(".") };
  const built = await build({ stdin, bundle: true, write: false, format: "cjs", platform: "node", nodePaths: [here("../node_modules")] });
  const module = { exports: {} };
  new Function("module", "exports", "require", built.outputFiles[0].text)(module, module.exports, createRequire(import.meta.url));
  const client = { status: { state: "open" }, subscribe: () => assert.fail("a server subscribes to nothing") };
  assert.equal(module.exports.render(client), "connecting pending");
});

test("a list of rows that is scrolled far and fast: what is shown is live, in few messages, and is left in one", async () => {
  const page = await open();
  await page.locator('#one[data-state="live"]').waitFor({ state: "attached" });
  const found = await page.evaluate(async () => {
    const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
    const asked = (kind) => sent.filter(({ type }) => type === kind);
    const rows = [...document.getElementsByTagName("li")];
    sent.length = 0;
    const errors = new Set();
    client.addEventListener("status", ({ detail }) => errors.add(detail.state));
    let frames = 0;
    for (let top = 0; top < 3000; top += 17, frames++) {
      scrollRows(top);
      await pause(16);
    }
    const shown = () => [...document.getElementsByTagName("li")];
    while (shown().some(({ dataset }) => dataset.state !== "live")) await pause(20);
    for (const { dataset } of shown()) if (dataset.error) errors.add(dataset.error);
    const messages = asked("subscribe").length;
    await pause(1000);
    sent.length = 0;
    scrollRows(undefined);
    while (!asked("unsubscribe").length) await pause(20);
    await pause(500);
    const left = asked("unsubscribe").map(({ payload }) => payload.channel.length);
    return { rows: rows.length, few: messages <= frames, errors: [...errors], left };
  });
  assert.deepEqual(found, { rows: 0, few: true, errors: [], left: [40] });
  await page.context().close();
});

test("a refused channel is an error of its own component", async () => {
  const page = await open();
  await page.locator("#error", { hasText: "forbidden" }).waitFor();
  await page.context().close();
});

test("what is asked last is shown, and what was asked before still gets its answer", async () => {
  const page = await open();
  const asked = page.locator("#asked");
  const shown = async (text, pending, error) => {
    await page.locator(`#asked[data-pending="${pending}"]${error ? `[data-error="${error}"]` : ":not([data-error])"}`, { hasText: new RegExp(`^${text}$`) }).waitFor({ state: "attached" });
  };
  /** Calls the hook's function; its answer is in `answers`, under what was asked. */
  const ask = async (data) => {
    await page.evaluate((data) => {
      window.answers ??= {};
      ask(data, { timeout: 60_000 }).then((answer) => (answers[data] = answer), ({ code }) => (answers[data] = code));
    }, data);
    return service.next();
  };
  const got = (data) => until(() => page.evaluate((data) => answers[data], data));
  await page.evaluate(() => askFor("a"));
  await shown("", false);
  const same = await page.evaluateHandle(() => ask);
  const one = await ask("one");
  const two = await ask("two");
  await shown("", true);
  two.answer("second");
  await shown("second", false);
  one.answer("first");
  assert.equal(await got("one"), "first");
  await shown("second", false);
  const three = await ask("three");
  await shown("second", true); // until there is another
  three.answer("", { "Nats-Service-Error": "no", "Nats-Service-Error-Code": "422" });
  await shown("second", false, "rejected");
  assert.ok(await page.evaluate((same) => same === ask, same));
  const four = await ask("four");
  await page.evaluate(() => askFor("b"));
  await shown("", false); // another method, of which nothing is known
  four.answer("fourth");
  assert.equal(await got("four"), "fourth");
  await shown("", false);
  const five = await ask("five");
  await page.evaluate(() => askFor(undefined));
  five.answer("fifth");
  assert.equal(await got("five"), "fifth");
  assert.equal(await asked.count(), 0);
  // Who only looks at the error need not catch it.
  await page.evaluate(() => askFor("c"));
  await page.evaluate(() => void ask("no JSON", { timeout: -1 }));
  await shown("", false, "bad_message");
  assert.deepEqual(page.faults, []);
  await page.context().close();
});

test("what came before is read page by page, and what comes joins it", async () => {
  const page = await open();
  const chat = page.locator("#chat");
  const shown = (text, more) => page.locator(`#chat[data-more="${more}"][data-loading="false"]`, { hasText: new RegExp(`^${text}$`) }).waitFor({ state: "attached" });
  await publish(page, ...Array.from({ length: 7 }, (_, n) => ["chat.one", n]));
  await page.evaluate(() => readFrom("chat.one"));
  await shown("4 5 6", true);
  const same = await page.evaluateHandle(() => older);
  await page.evaluate(() => Promise.all([older(), older()])); // the second while the first is under way
  await shown("1 2 3 4 5 6", true);
  await publish(page, ["chat.one", 7]);
  await shown("1 2 3 4 5 6 7", true);
  while ((await chat.getAttribute("data-more")) === "true") await page.evaluate(() => older());
  await shown("0 1 2 3 4 5 6 7", false);
  assert.ok(await page.evaluate((same) => same === older, same));
  await page.evaluate(() => readFrom("chat.two"));
  await shown("", false);
  await publish(page, ["chat.one", 8], ["chat.two", "a"]);
  await shown("a", false);
  await page.evaluate(() => readFrom("chat.one", { "": { gt: 5 } }));
  await shown("6 7 8", true);
  await publish(page, ["chat.one", 3], ["chat.one", 9]);
  await shown("6 7 8 9", true);
  await page.evaluate(() => readFrom("users.somebody.else"));
  await page.locator('#chat[data-error="forbidden"]').waitFor({ state: "attached" });
  await page.evaluate(() => readFrom(undefined));
  assert.deepEqual(page.faults, []);
  await page.context().close();
});

test("a document that two components show is open once, changed at once, and taken back where that is refused", async () => {
  const page = await open();
  const opens = () => page.evaluate(() => sent.filter(({ type }) => type === "state.open").map(({ payload }) => payload.channel));
  const shows = (id, n) => page.locator(`#${id}[data-pending="0"]`, { hasText: `[${n},${n}]` }).waitFor();
  await page.evaluate(() => {
    window.order = writer.document("shared.order");
    order.change({ n: 1 });
    showOrders(true);
  });
  for (const id of ["first", "second"]) await shows(id, 1);
  assert.deepEqual((await opens()).sort(), ["shared.*", "shared.order", "shared.order"], "one is the writer's");
  await page.evaluate(() => {
    document.getElementById("first-more").click();
  });
  for (const id of ["first", "second"]) await shows(id, 2);
  await until(() => page.evaluate(() => order.confirmed?.n === 2), "the writer knows what it replaces");
  await page.evaluate(() => order.change({ n: 7 }));
  for (const id of ["first", "second"]) await shows(id, 7);
  await page.locator("#second-never").click();
  await page.locator("#first-seen", { hasText: "too_large" }).waitFor();
  for (const id of ["first", "second"]) await shows(id, 7);
  await page.locator("#first-seen").click();
  await page.locator("#second-seen", { hasText: /^$/ }).waitFor();
  await page.evaluate(() => showOrders(false));
  await until(() => page.evaluate(() => sent.some(({ type }) => type === "state.close")), "it is let go of");
  assert.deepEqual(page.faults, []);
  await page.context().close();
});

test("who is there, and who edits a field; all of a page are there once", async () => {
  const page = await open();
  await page.evaluate(() => {
    window.room = writer.presence("react.desk");
    showDesk(true);
  });
  const state = (what) => until(() => page.evaluate((what) => JSON.stringify(room.users.find(({ user }) => user === "ann")?.sessions.map(({ state }) => state)) === what, what), what);
  await state('[{"color":"red"}]');
  for (const user of ["ann", "writer"]) await page.locator("#users", { hasText: user }).waitFor();
  await page.locator("#begin").click();
  await state('[{"color":"red","editing":"note"}]');
  await page.locator("#end").click();
  await state('[{"color":"red"}]');
  await page.locator("#blue").click();
  await state('[{"color":"blue"}]');
  await page.evaluate(() => room.set({ editing: "note" }));
  await page.locator("#editors", { hasText: /^writer$/ }).waitFor();
  await page.evaluate(() => room.set({ editing: "price" }));
  await page.locator("#editors", { hasText: /^$/ }).waitFor({ state: "attached" });
  await page.locator("#begin").click();
  await page.evaluate(() => showDesk(false));
  await state(undefined);
  assert.equal(await page.evaluate(() => sent.filter(({ type }) => type === "presence.enter").length), 2, "one is the writer's");
  assert.deepEqual(page.faults, []);
  await page.context().close();
});
