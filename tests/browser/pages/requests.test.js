import assert from "node:assert/strict";
import { after, before, test } from "node:test";

import { Broker, Service, openBrowser, openPage, until } from "./support.js";

let broker, service, browser;
before(async () => {
  broker = await new Broker({ BROKER_LIMITS__REQUESTS_IN_FLIGHT: "1" }).start();
  service = await new Service().start(broker, "acme");
  browser = await openBrowser();
});
after(async () => {
  await browser?.close();
  service?.end();
  await broker?.remove();
});

/** Asks in the page; what becomes of it is in `fates`. */
const ask = (page, ...given) =>
  page.evaluate((given) => {
    window.fates ??= [];
    const fate = {};
    fates.push(fate);
    client.request(...given).then(
      (data) => (fate.data = data),
      ({ code, status, unknownOutcome }) => Object.assign(fate, { code, status, unknownOutcome }),
    );
  }, given);
const fate = (page) => until(() => page.evaluate(() => (Object.keys(fates[0]).length ? fates.shift() : undefined)), "an answer");

test("over each transport a service answers, refuses, or is not there", async () => {
  const page = await openPage(await browser.newContext(), broker.url);
  for (const transport of ["websocket", "sse", "poll"]) {
    const transports = [transport];
    await page.evaluate(async (transports) => {
      window.other = open({ transports, token: () => token("globex", "bob") });
      window.client = await open({ transports });
    }, transports);
    await ask(page, "orders.approve", { text: "é" }, { timeout: 30_000 });
    const { method, data, answer } = await service.next();
    assert.deepEqual([method, data], ["orders.approve", { text: "é" }]);
    answer({ got: data });
    assert.deepEqual(await fate(page), { data: { got: data } }, transport);
    await ask(page, "orders.approve", undefined, { timeout: 30_000 });
    (await service.next()).answer("", { "Nats-Service-Error": "it is shipped", "Nats-Service-Error-Code": "409" });
    assert.deepEqual(await fate(page), { code: "rejected", status: 409, unknownOutcome: false }, transport);
    await page.evaluate(async () => {
      client.close();
      window.client = await other;
    });
    await ask(page, "orders.approve");
    assert.deepEqual(await fate(page), { code: "unavailable", status: undefined, unknownOutcome: false }, transport);
    await page.evaluate(() => client.close());
  }
  assert.deepEqual(page.faults, []);
  await page.context().close();
});

test("the leading tab asks for the others; when it goes, what it had not sent is asked by the next", async () => {
  const context = await browser.newContext();
  const [leader, page] = [await openPage(context, broker.url), await openPage(context, broker.url)];
  for (const each of [leader, page])
    await each.evaluate(async () => {
      window.client = await open({ tabs: "shared" });
    });
  assert.equal(await page.evaluate(() => client.status.transport), "tabs");
  await ask(page, "one", 1, { timeout: 60_000 });
  (await service.next()).answer([1]);
  assert.deepEqual(await fate(page), { data: [1] });
  await ask(page, "under.way", 2, { timeout: 60_000 });
  await ask(page, "waits", 3, { timeout: 60_000 }); // only one may be under way
  const lost = await service.next();
  assert.equal(lost.method, "under.way");
  await leader.close();
  const { code, unknownOutcome } = await fate(page);
  assert.deepEqual([code, unknownOutcome], ["timeout", true]);
  const next = await service.next();
  assert.equal(next.method, "waits");
  next.answer("done");
  assert.deepEqual(await fate(page), { data: "done" });
  assert.deepEqual(service.asked, []);
  await context.close();
});
