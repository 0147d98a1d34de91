import assert from "node:assert/strict";
import { after, before, describe, test } from "node:test";

import { Broker, openBrowser, until } from "./support.js";

let broker, browser;
before(async () => {
  broker = await new Broker().start();
  browser = await openBrowser();
});
after(async () => {
  await browser?.close();
  await broker?.remove();
});

describe("the demo page", () => {
  const open = async (options = {}) => {
    const page = await browser.newPage(options);
    page.faults = [];
    page.on("console", (message) => message.type() === "error" && page.faults.push(message.text()));
    page.on("pageerror", (error) => page.faults.push(error.message));
    await page.goto(broker.url);
    await page.locator('[data-state="open"]').nth(1).waitFor();
    return page;
  };
  const cards = (page) => [page.getByRole("region", { name: "acme" }), page.getByRole("region", { name: "globex" })];
  const rows = (card) => card.locator(".events li:not(.note)");
  const click = (card, name) => card.getByRole("button", { name, exact: true }).click();

  test("shows an event to its tenant and not to the other, and breaks no rule of its own CSP", async () => {
    const page = await open();
    const [acme, globex] = cards(page);
    await click(acme, "Publish");
    await rows(acme).first().waitFor();
    await click(globex, "Publish 20");
    await until(async () => (await rows(globex).count()) === 20);
    assert.equal(await rows(acme).count(), 1);
    const said = acme.locator('[data-as="said"]', { hasText: /^published in \d+ ms at \w+-\d+$/ });
    await said.waitFor(); // an event may precede its acknowledgement
    assert.equal(await acme.locator('[data-as="transport"]').textContent(), "websocket");
    assert.deepEqual(page.faults, []);
    await page.close();
  });

  test("cut off it misses events, and has them once and in order when it is back", async () => {
    const page = await open();
    const [acme] = cards(page);
    await click(acme, "Cut connection");
    await acme.getByText("cut off").waitFor();
    for (const text of ["one", "two", "three"]) {
      await acme.getByLabel("Text").fill(text);
      await click(acme, "Publish");
    }
    await until(async () => Number(await acme.locator('[data-as="lag"]').textContent()) >= 3, "it is behind");
    assert.equal(await rows(acme).count(), 0);
    await click(acme, "Reconnect");
    await acme.getByText("with 3 missed events").waitFor();
    assert.deepEqual((await rows(acme).locator(".body").allTextContents()).reverse(), ["one", "two", "three"]);
    assert.equal(await acme.locator('[data-as="lag"]').textContent(), "0");
    await page.close();
  });

  test("a slow reader falls behind, and catches up without a loss", async () => {
    const page = await open();
    const [acme] = cards(page);
    await click(acme, "Slow reader");
    await click(acme, "Publish 20");
    await until(async () => Number(await acme.locator('[data-as="lag"]').textContent()) > 10, "it is behind");
    assert.ok((await rows(acme).count()) < 20);
    await click(acme, "Slow reader");
    await until(async () => (await rows(acme).count()) === 20, "all has come");
    const shown = (await rows(acme).locator(".body").allTextContents()).reverse();
    assert.deepEqual(shown, Array.from({ length: 20 }, (_, i) => `hello ${i + 1}`));
    await page.close();
  });

  test("an order is approved at once; the service confirms that for everybody, or takes it back", async () => {
    const page = await open();
    const [acme, globex] = cards(page);
    const orders = (kind) => acme.locator(`.orders .${kind}`).allTextContents();
    for (let number = 1; number <= 5; number++) await click(acme, `Approve order ${number}`);
    await acme.getByText("order 5: open again (rejected: order 5 is on hold)").waitFor();
    await until(async () => (await orders("confirmed")).length === 4, "the others are confirmed");
    assert.deepEqual(await orders("refused"), ["5"]);
    await until(async () => (await rows(acme).count()) === 4, "everybody is told");
    assert.deepEqual((await rows(acme).locator(".body").allTextContents()).sort(), [1, 2, 3, 4].map((number) => `a NATS client: order ${number} is approved`));
    await click(acme, "Cut connection");
    await click(acme, "Approve order 6");
    await acme.getByText("order 6: open again (closed: ").waitFor();
    assert.equal(await rows(globex).count(), 0);
    assert.deepEqual(page.faults, []);
    await page.close();
  });

  test("two people change one order: what differs is joined, a conflict is decided, and too much is refused", async () => {
    const page = await open();
    const [ann, bob] = ["Ann", "Bob"].map((name) => page.getByRole("form", { name }));
    const shows = (person, field, value) => until(async () => (await person.getByLabel(field).inputValue()) === value, `${field} is ${value}`);
    const saved = async () => {
      for (const person of [ann, bob]) await person.getByText("saved", { exact: true }).waitFor();
    };
    await ann.getByLabel("Amount").fill("5");
    await bob.getByLabel("Note").fill("urgent");
    await shows(bob, "Amount", "5");
    await shows(ann, "Note", "urgent");
    await saved();
    await page.getByRole("button", { name: "Both change the amount at once" }).click();
    const conflict = page.getByRole("alert");
    await conflict.waitFor();
    const [, mine, theirs] = (await conflict.textContent()).match(/amount: you wrote (\d+), and there is (\d+) now/);
    assert.deepEqual([mine, theirs].sort(), ["6", "7"]);
    for (const person of [ann, bob]) await shows(person, "Amount", theirs);
    await conflict.getByRole("button", { name: "Keep mine" }).click();
    for (const person of [ann, bob]) await shows(person, "Amount", mine);
    await saved();
    await ann.getByLabel("Amount").fill("5000");
    await ann.getByText("an amount is a whole number from 0 to 1000").waitFor();
    for (const person of [ann, bob]) await shows(person, "Amount", mine);
    assert.deepEqual(page.faults, []);
    await page.close();
  });

  test("cards of a board are added, moved and removed, for everybody", async () => {
    const [page, other] = [await open(), await open()];
    const columns = async (of) => Promise.all([0, 1, 2].map((n) => of.locator(".column").nth(n).locator("li span").allTextContents()));
    const shows = async (...wanted) => {
      for (const of of [page, other]) await until(async () => JSON.stringify(await columns(of)) === JSON.stringify(wanted), JSON.stringify(wanted));
    };
    for (const text of ["one", "two", "three"]) {
      await page.getByLabel("New card").fill(text);
      await page.getByRole("button", { name: "Add" }).click();
      await page.locator(".column li", { hasText: text }).waitFor();
    }
    await shows(["one", "two", "three"], [], []);
    await other.getByRole("button", { name: "Up: three" }).click();
    await shows(["one", "three", "two"], [], []);
    await page.getByRole("button", { name: "On: one" }).click();
    await shows(["three", "two"], ["one"], []);
    await other.getByRole("button", { name: "Remove: two" }).click();
    await page.getByRole("button", { name: "Back: one" }).click();
    await shows(["three", "one"], [], []);
    for (const each of [page, other]) {
      assert.deepEqual(each.faults, []);
      await each.close();
    }
  });

  test("is used by keyboard alone", async () => {
    const page = await open();
    const [acme] = cards(page);
    await page.keyboard.press("Tab");
    const seen = [];
    for (let i = 0; i < 9; i++) {
      seen.push(await page.evaluate(() => document.activeElement.textContent.trim() || document.activeElement.name || document.activeElement.getAttribute("aria-label")));
      await page.keyboard.press("Tab");
    }
    assert.deepEqual(seen.slice(0, 8), ["Cut connection", "Slow reader", "channel", "text", "Publish", "Publish 20", "One a second", "Approve order 1"]);
    await acme.getByLabel("Text").focus();
    await page.keyboard.press("Enter");
    await rows(acme).first().waitFor();
    await page.close();
  });

  for (const width of [390, 1280])
    for (const colorScheme of ["light", "dark"])
      test(`fits ${width} px, ${colorScheme}, with text that can be read`, async () => {
        const page = await open({ viewport: { width, height: 900 }, colorScheme, bypassCSP: true });
        for (const number of [1, 2, 3, 4, 5, 6]) await click(cards(page)[0], `Approve order ${number}`);
        await page.getByRole("button", { name: "Both change the amount at once" }).click();
        await page.getByRole("alert").waitFor();
        await until(async () => (await page.locator(".orders :not(.pending)").count()) === 6, "all are answered");
        const found = await page.evaluate(() => {
          const light = (text) => {
            const [r, g, b] = text.match(/[\d.]+/g).map((each) => (each /= 255) && (each <= 0.04045 ? each / 12.92 : ((each + 0.055) / 1.055) ** 2.4));
            return 0.2126 * r + 0.7152 * g + 0.0722 * b;
          };
          const behind = (element) => {
            const { backgroundColor } = getComputedStyle(element);
            return backgroundColor === "rgba(0, 0, 0, 0)" ? behind(element.parentElement) : backgroundColor;
          };
          const poor = [];
          for (const element of document.querySelectorAll("h1, h2, h3, p, dt, dd, label, button, input, code, .orders li")) {
            const [one, other] = [light(getComputedStyle(element).color), light(behind(element))].sort((a, b) => b - a);
            if ((one + 0.05) / (other + 0.05) < 4.5) poor.push(element.outerHTML);
          }
          const small = [...document.querySelectorAll("button, input")].filter((each) => each.checkVisibility() && each.getBoundingClientRect().height < 40);
          return { overflow: document.documentElement.scrollWidth > innerWidth, poor, small: small.length };
        });
        assert.deepEqual(found, { overflow: false, poor: [], small: 0 });
        await page.close();
      });
});

describe("its tokens", () => {
  const ask = (headers, body = { tenant: "acme", user: "eve" }) =>
    fetch(`${broker.url}/dev/token`, { method: "POST", headers, body: JSON.stringify(body) });

  test("are for a page of this very port alone", async () => {
    assert.equal((await ask({ Origin: broker.url })).status, 200);
    assert.equal((await ask({})).status, 403);
    assert.equal((await ask({ Origin: "http://127.0.0.1:1" })).status, 403);
    assert.equal((await ask({ Origin: "https://evil.example" })).status, 403);
  });

  test("are of one tenant and user: no pattern, no reserved name", async () => {
    for (const tenant of ["*", "_all", "", "a.b"]) assert.equal((await ask({ Origin: broker.url }, { tenant, user: "eve" })).status, 400);
    assert.equal((await ask({ Origin: broker.url }, { tenant: "acme", user: "" })).status, 400);
    assert.equal((await ask({ Origin: broker.url }, { tenant: "acme", admin: true })).status, 400);
  });
});
