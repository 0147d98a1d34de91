import assert from "node:assert/strict";
import { after, before, describe, test } from "node:test";

import { Broker, Proxy, openBrowser, openPage, until } from "./support.js";

let broker, proxy, browser;
before(async () => {
  broker = await new Broker().start();
  proxy = await new Proxy(broker).start();
  browser = await openBrowser();
});
after(async () => {
  await browser?.close();
  proxy?.close();
  await broker?.remove();
});

/** A page with nothing remembered. */
const open = async (url = broker.url) => openPage(await browser.newContext(), url);

/** Reads and publishes in the page, steadily, from now on. */
const exchange = (page, options = {}) =>
  page.evaluate(async (options) => {
    window.taken = [];
    window.gaps = [];
    window.reader = await open({ ...options, token: () => token("acme", "reader") });
    window.writer = await open({ ...options, token: () => token("acme", "writer"), queue: 10_000 });
    window.sub = reader.subscribe(`run${options.run ?? ""}.>`, (item) => taken.push(item));
    sub.addEventListener("gap", ({ detail }) => gaps.push(detail));
    while (sub.state !== "live") await new Promise((resolve) => sub.addEventListener("state", resolve, { once: true }));
    window.acked = [];
    window.asked = 0;
    const publish = async (n) => acked.push(await writer.publish(`run${options.run ?? ""}.${n % 7}`, n));
    window.steady = setInterval(() => publish(asked++), 15);
  }, options);

/** Stops publishing, and says what was acknowledged and what arrived. */
const outcome = async (page) => {
  await page.evaluate(() => clearInterval(steady));
  await until(() => page.evaluate(() => acked.length === asked), "all publishes are acknowledged");
  await until(() => page.evaluate(() => taken.length >= asked), "all has arrived");
  return page.evaluate(async () => {
    // What came twice would be there by the time that this has come.
    const count = asked;
    const last = await writer.publish(sub.channels[0].replace(">", "end"), "end");
    while (taken.at(-1).position !== last.position) await new Promise((resolve) => setTimeout(resolve, 10));
    return { count, taken: taken.slice(0, -1).map(({ position }) => position), acked: acked.map(({ position }) => position), gaps };
  });
};

/** Waits for so many events more. */
const further = async (page, count) => {
  const had = await page.evaluate(() => taken.length);
  await until(() => page.evaluate((least) => taken.length >= least, had + count), `${count} events more`);
};

const sequences = (positions) => positions.map((position) => Number(position.split("-").at(-1)));

const assertWhole = ({ count, taken, acked, gaps }) => {
  assert.deepEqual(gaps, []);
  assert.equal(taken.length, count, "nothing twice");
  assert.deepEqual(taken, [...taken].sort((a, b) => sequences([a])[0] - sequences([b])[0]), "in order");
  assert.deepEqual(new Set(taken), new Set(acked), "nothing missing");
};

describe("WebSocket", () => {
  test("a broker that is killed and started again: nothing missing, nothing twice", async () => {
    const page = await open();
    await exchange(page);
    for (const signal of ["SIGKILL", "SIGTERM"]) {
      await further(page, 20);
      await broker.end(signal);
      await broker.start();
    }
    assertWhole(await outcome(page));
    assert.equal(await page.evaluate(() => reader.status.transport), "websocket");
    assert.deepEqual(page.faults, []);
    await page.context().close();
  });

  test("links that are cut again and again: nothing missing, nothing twice", async () => {
    const page = await open(proxy.url);
    await exchange(page, { run: 2, transports: ["websocket"] });
    for (let i = 0; i < 4; i++) {
      await further(page, 10);
      proxy.cut();
    }
    assertWhole(await outcome(page));
    await page.context().close();
  });
});

describe("fallback", () => {
  const fallen = async (page) => {
    await page.evaluate(() => (window.client = open_()));
    return until(() => page.evaluate(() => client.status.state === "open" && client.status.transport));
  };

  test("where WebSocket is refused it is SSE, at once, and remembered", async () => {
    proxy.refuse = true;
    const page = await open(proxy.url);
    assert.equal(await fallen(page), "sse");
    const before = proxy.upgrades;
    await page.reload();
    const again = await openPage(page.context(), proxy.url);
    assert.equal(await fallen(again), "sse");
    assert.equal(proxy.upgrades, before, "WebSocket was not tried again");
    proxy.refuse = false;
    await page.context().close();
  });

  test("where WebSocket is cut after the upgrade it is SSE", async () => {
    proxy.cutAfter = 300; // the 101 passes, the first frames do not
    const page = await open(proxy.url);
    assert.equal(await fallen(page), "sse");
    proxy.cutAfter = Infinity;
    await page.context().close();
  });

  for (const transport of ["sse", "poll"])
    test(`${transport}: reads, publishes, takes starts beside what is live, and resumes after cuts`, async () => {
      const page = await open(proxy.url);
      const run = { sse: 3, poll: 4 }[transport];
      await exchange(page, { run, transports: [transport] });
      await until(() => page.evaluate(() => taken.length > 20));
      const last = await page.evaluate(async (run) => {
        window.second = [];
        const sub = reader.subscribe([`run${run}.>`, "me.inbox"], { last: 5 }, (item) => second.push(item));
        while (sub.state !== "live") await new Promise((resolve) => sub.addEventListener("state", resolve, { once: true }));
        await writer.publish("users.reader.inbox", "hello").catch(({ code }) => code);
        return second.length;
      }, run);
      assert.ok(last >= 5);
      proxy.cut();
      assertWhole(await outcome(page));
      const second = sequences(await page.evaluate(() => second.map(({ position }) => position)));
      assert.deepEqual(second, [...new Set(second)].sort((a, b) => a - b));
      assert.deepEqual(page.faults, []);
      await page.context().close();
    });
});
