/** `npm install https://BROKER/client.tgz`, as an application that is built with Vite and checked with tsc. */

import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { existsSync, mkdirSync, mkdtempSync, readFileSync, readdirSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join, relative } from "node:path";
import { after, before, test } from "node:test";
import { promisify } from "node:util";

import { Broker, openBrowser, openPage, until } from "./support.js";

const NAME = "nats-websocket-broker";
const MODULES = join(import.meta.dirname ?? new URL(".", import.meta.url).pathname, "../node_modules");
const FILES = {
  "package.json": JSON.stringify({ name: "app", private: true, type: "module" }),
  "tsconfig.json": JSON.stringify({
    compilerOptions: {
      strict: true, noEmit: true, skipDefaultLibCheck: true, target: "es2022", lib: ["es2023", "dom", "dom.iterable", "dom.asynciterable"],
      module: "esnext", moduleResolution: "bundler", jsx: "react-jsx", types: [],
    },
    files: ["main.tsx"],
  }),
  "index.html": `<!doctype html><div id="root"></div><script type="module" src="main.tsx"></script>`,
  "main.tsx": `
    import { useState } from "react";
    import { createRoot } from "react-dom/client";
    import { BrokerError, Client, type Published } from "${NAME}";
    import { BrokerProvider, useChannel } from "${NAME}/react";

    interface Order { state: "new" | "packed" }
    declare global { interface Window { token(tenant: string, user: string): Promise<string> } }

    const client = new Client({ url: location.origin, token: () => window.token("acme", "alice") });
    export const publish = async (order: Order): Promise<Published> => {
      try {
        return await client.publish("orders.1", order);
      } catch (error) {
        throw error instanceof BrokerError ? new Error(error.code) : error;
      }
    };

    function Page() {
      const { events, state } = useChannel<Order>("orders.>");
      const [sent, send] = useState<string>();
      const click = () => void publish({ state: "packed" }).then(({ position }) => send(position));
      return <button data-state={state} onClick={click}>{sent && events.map((item) => item.event?.state)}</button>;
    }
    // @ts-expect-error a token is a string
    export const wrong = () => new Client({ token: 7 });
    createRoot(document.body.appendChild(document.createElement("div"))).render(<BrokerProvider client={client}><Page /></BrokerProvider>);
  `,
};
const run = promisify(execFile);
const binary = (name) => join(MODULES, ".bin", name);

let broker, root, app;

before(async () => {
  broker = await new Broker().start();
  root = mkdtempSync(join(tmpdir(), "broker-package-"));
  app = join(root, "app");
  mkdirSync(app);
  symlinkSync(MODULES, join(root, "node_modules")); // React and its types, as if they were the application's
  for (const [name, text] of Object.entries(FILES)) writeFileSync(join(app, name), text);
  const flags = ["--no-audit", "--no-fund", "--ignore-scripts", "--no-update-notifier", `--cache=${join(root, "cache")}`];
  await run("npm", ["install", ...flags, `${broker.url}/client.tgz`], { cwd: app, env: { ...process.env, npm_config_noproxy: "127.0.0.1" } });
});

after(async () => {
  await broker?.remove();
  if (root) rmSync(root, { recursive: true, force: true });
});

test("npm installs what the broker serves, under the name of the broker's package", async () => {
  const installed = join(app, "node_modules", NAME);
  const files = readdirSync(installed, { recursive: true, withFileTypes: true }).filter((entry) => entry.isFile());
  const paths = files.map((entry) => relative(installed, join(entry.parentPath ?? entry.path, entry.name)));
  assert.ok(paths.includes("client.js") && paths.includes("client/client.js") && paths.includes("react.d.ts"), paths.join());
  for (const path of paths.filter((each) => each !== "package.json")) {
    const served = await (await fetch(`${broker.url}/${path}`)).text();
    assert.equal(readFileSync(join(installed, path), "utf8"), served, path);
  }
  const { dependencies } = JSON.parse(readFileSync(join(app, "package.json"), "utf8"));
  assert.equal(dependencies[NAME], `${broker.url}/client.tgz`);
  assert.equal(existsSync(join(app, "node_modules", "react")), false, "React is the application's own");
});

test("tsc --strict takes it, as bundlers resolve it and as Node.js does", async () => {
  const checks = [[], ["--module", "nodenext", "--moduleResolution", "nodenext"]];
  await Promise.all(checks.map((flags) => run(binary("tsc"), flags, { cwd: app }).catch(({ stdout }) => assert.fail(stdout))));
});

test("what Vite makes of it shows events of a broker", async () => {
  const { stderr } = await run(binary("vite"), ["build", "--logLevel", "warn"], { cwd: app });
  assert.equal(stderr, "", "without a warning");
  const assets = join(app, "dist", "assets");
  const [bundle] = readdirSync(assets);
  const browser = await openBrowser();
  try {
    const page = await openPage(await browser.newContext(), broker.url);
    await page.addScriptTag({ type: "module", content: readFileSync(join(assets, bundle), "utf8") });
    await until(async () => page.faults.length || (await page.locator("button[data-state=live]").count()));
    assert.deepEqual(page.faults, []);
    await page.locator("button").click();
    await until(async () => (await page.locator("button").textContent()) === "packed");
    assert.deepEqual(page.faults, []);
  } finally {
    await browser.close();
  }
});
