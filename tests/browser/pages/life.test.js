import assert from "node:assert/strict";
import { after, before, test } from "node:test";

import { Broker, Proxy, openBrowser, openPage, until } from "./support.js";

let broker, proxy, browser;
before(async () => {
  // More attempts than anybody makes in a minute.
  const names = ["REQUESTS_PER_SECOND", "REQUESTS_BURST", "CONNECTIONS_PER_USER"];
  broker = await new Broker(Object.fromEntries(names.map((name) => [`BROKER_LIMITS__${name}`, "5000"]))).start();
  proxy = await new Proxy(broker).start();
  browser = await openBrowser();
});
after(async () => {
  await browser?.close();
  proxy?.close();
  await broker?.remove();
});

/** Tabs of one browser, each with a client of its own that reads a channel. */
const tabs = async (count, options, prepare = () => {}) => {
  const context = await browser.newContext();
  const pages = [];
  while (pages.length < count) {
    const page = await openPage(context, broker.url);
    await page.evaluate(prepare);
    await page.evaluate(async (options) => {
      window.taken = [];
      window.client = await open(options);
      const sub = client.subscribe("tabs.>", ({ event }) => taken.push(event));
      while (sub.state !== "live") await new Promise((resolve) => sub.addEventListener("state", resolve, { once: true }));
    }, options);
    pages.push(page);
  }
  return pages;
};
const transports = async (pages) => (await Promise.all(pages.map((page) => page.evaluate(() => client.status.transport)))).sort();

for (const transport of ["sse", "poll"])
  test(`nine tabs over ${transport} and HTTP/1.1: each loads, publishes and hears the others`, async () => {
    const pages = await tabs(9, { transports: [transport] });
    const held = await transports(pages);
    assert.equal(held.filter((name) => name === "sse").length, transport === "sse" ? 3 : 0);
    for (const [n, page] of pages.entries()) await page.evaluate((n) => client.publish(`tabs.${n}`, n), n);
    for (const page of pages) await until(() => page.evaluate(() => taken.length === 9), "all has arrived");
    for (const page of pages) assert.deepEqual(await page.evaluate(() => taken), [...pages.keys()]);
    if (transport === "sse") {
      await pages[0].close();
      await until(async () => (await transports(pages.slice(1))).filter((name) => name === "sse").length === 3, "another one takes its place");
    }
    await pages[1].context().close();
  });

test("six tabs that cannot know of each other: a publish finds no connection, and makes room for itself", async () => {
  const pages = await tabs(6, { transports: ["sse"] }, () => Object.defineProperty(navigator, "locks", { value: undefined }));
  assert.deepEqual(await transports(pages), Array(6).fill("sse"));
  await pages[3].evaluate(() => client.publish("tabs.alone", 1));
  assert.equal(await pages[3].evaluate(() => client.status.transport), "poll");
  for (const page of pages) await until(() => page.evaluate(() => taken.length === 1), "it has arrived");
  await pages[0].context().close();
});

test("a list that is too long for an address goes by long poll", async () => {
  const [page] = await tabs(1, { transports: ["sse", "poll"] });
  await page.evaluate(async () => {
    const names = Array.from({ length: 120 }, (_, i) => `orders.${"long".repeat(50)}.${i}`);
    const sub = (window.sub = client.subscribe(names, ({ event }) => taken.push(event)));
    while (sub.state !== "live") await new Promise((resolve) => sub.addEventListener("state", resolve, { once: true }));
    await client.publish(names[99], "long");
  });
  await until(() => page.evaluate(() => taken.includes("long")), "it has arrived");
  assert.equal(await page.evaluate(() => client.status.transport), "poll");
  await page.context().close();
});

// A browser lets WebSockets that fail wait for seconds.
for (const [transport, step] of [
  ["websocket", 61],
  ["sse", 11],
  ["poll", 11],
])
  test(`${transport}, cut at every ${step} bytes of the way back: the next one is tried, until one comes through`, async () => {
    const page = await openPage(await browser.newContext(), proxy.url);
    await page.evaluate(() => {
      Math.random = () => 0; // no waits: there are many bytes
    });
    proxy.cutNext(new RegExp(`^(GET|POST) /${{ websocket: "ws" }[transport] ?? transport}\\b`), step);
    await page.evaluate(async (transport) => {
      window.taken = [];
      window.client = open_({ transports: [transport] });
      window.sub = client.subscribe("cut.>", ({ event }) => taken.push(event));
    }, transport);
    await until(() => page.evaluate(() => sub.state === "live"), "it is live");
    await page.evaluate(() => client.publish("cut.a", 1));
    await until(() => page.evaluate(() => taken.length === 1), "it has arrived");
    assert.ok(proxy.cutAt > 400, `cut at ${proxy.cutAt} bytes`);
    proxy.cutNext();
    assert.deepEqual(page.faults, []);
    await page.context().close();
  });

test("a page that goes, and to which somebody comes back, has all that came meanwhile", async () => {
  const [page, other] = await tabs(2, { transports: ["poll"] });
  const gone = page.waitForRequest((request) => request.url().endsWith("/poll") && request.postData()?.includes('"leave":true'));
  await page.evaluate(() => window.dispatchEvent(new PageTransitionEvent("pagehide", { persisted: true })));
  assert.equal((await (await gone).response()).status(), 204);
  await other.evaluate(() => client.publish("tabs.away", "meanwhile"));
  assert.equal(await page.evaluate(() => client.status.state), "waiting");
  await page.evaluate(() => window.dispatchEvent(new PageTransitionEvent("pageshow", { persisted: true })));
  await until(() => page.evaluate(() => taken.includes("meanwhile")), "it has arrived");
  await page.context().close();
});
