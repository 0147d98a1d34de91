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

/** Reads and publishes in the page; `done()` has what was acknowledged and what arrived. */
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
    window.publish = async (n) => acked.push(await writer.publish(`run${options.run ?? ""}.${n % 7}`, n));
  }, options);

const outcome = async (page, count) => {
  await until(() => page.evaluate((count) => acked.length === count, count), `${count} publishes are acknowledged`);
  await until(() => page.evaluate(() => taken.length >= acked.length), "all has arrived");
  return page.evaluate(async () => {
    const { position } = await writer.publish("run.end", "end");
    return { taken: taken.map(({ position }) => position), acked: acked.map(({ position }) => position), gaps, end: position };
  });
};

/** Waits for so many events more. */
const further = async (page, count) => {
  const had = await page.evaluate(() => taken.length);
  await until(() => page.evaluate((least) => taken.length >= least, had + count), `${count} events more`);
};

const sequences = (positions) => positions.map((position) => Number(position.split("-").at(-1)));

const assertWhole = ({ taken, acked, gaps }, count) => {
  assert.deepEqual(gaps, []);
  assert.equal(taken.length, count, "nothing twice");
  assert.deepEqual(taken, [...taken].sort((a, b) => sequences([a])[0] - sequences([b])[0]), "in order");
  assert.deepEqual(new Set(taken), new Set(acked), "nothing missing");
};

describe("WebSocket", () => {
  test("a broker that is killed and started again: nothing missing, nothing twice", async () => {
    const page = await open();
    await exchange(page);
    await page.evaluate(() => {
      let n = 0;
      window.steady = setInterval(() => n < 400 && publish(n++), 10);
    });
    for (const signal of ["SIGKILL", "SIGTERM"]) {
      await further(page, 20);
      await broker.end(signal);
      await broker.start();
    }
    assertWhole(await outcome(page, 400), 400);
    assert.equal(await page.evaluate(() => reader.status.transport), "websocket");
    assert.deepEqual(page.faults, []);
    await page.context().close();
  });

  test("links that are cut again and again: nothing missing, nothing twice", async () => {
    const page = await open(proxy.url);
    await exchange(page, { run: 2, transports: ["websocket"] });
    await page.evaluate(() => {
      let n = 0;
      window.steady = setInterval(() => n < 300 && publish(n++), 10);
    });
    for (let i = 0; i < 4; i++) {
      await further(page, 10);
      proxy.cut();
    }
    assertWhole(await outcome(page, 300), 300);
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
      await page.evaluate(() => {
        let n = 0;
        window.steady = setInterval(() => n < 60 && publish(n++), 20);
      });
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
      assertWhole(await outcome(page, 60), 60);
      const second = sequences(await page.evaluate(() => second.map(({ position }) => position)));
      assert.deepEqual(second, [...new Set(second)].sort((a, b) => a - b));
      assert.deepEqual(page.faults, []);
      await page.context().close();
    });
});
