/** Real parts: a `broker dev` process, Chromium, a proxy that misbehaves. */

import { spawn, spawnSync } from "node:child_process";
import { once } from "node:events";
import { existsSync, mkdtempSync, readFileSync, rmSync } from "node:fs";
import { createServer, connect } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";

import { chromium } from "playwright-core";

const PYTHON = process.env.BROKER_PYTHON ?? "python3";
const CHROMIUM = process.env.BROKER_CHROMIUM ?? "/usr/bin/chromium";
const READY_MS = 200_000; // a bound for what must come; nothing is measured by it

export const until = async (condition, what = String(condition)) => {
  const deadline = Date.now() + READY_MS;
  for (;;) {
    const found = await condition();
    if (found) return found;
    if (Date.now() > deadline) throw new Error(`in vain: ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
};

/** A broker of its own, which keeps its port and its data when it is started again. */
export class Broker {
  directory = mkdtempSync(join(tmpdir(), "broker-"));
  port = Number(process.env.BROKER_PORT ?? 0); // nobody else gets that while the broker is down

  constructor(env = {}) {
    // A test publishes faster than people do.
    const limits = { BROKER_LIMITS__MESSAGES_PER_MINUTE: "1000000", BROKER_LIMITS__MESSAGES_BURST: "1000000" };
    this.env = { ...process.env, ...limits, BROKER_LIMITS__CONNECTIONS_PER_USER: "100", BROKER_PERMISSIONS__REQUEST: ">", ...env };
  }

  get url() {
    return `http://127.0.0.1:${this.port}`;
  }

  async start() {
    const args = ["-m", "broker", "dev", "--listen", `127.0.0.1:${this.port}`, "--admin-listen", "127.0.0.1:0"];
    const state = join(this.directory, "broker.json");
    rmSync(state, { force: true });
    this.child = spawn(PYTHON, [...args, "--data-dir", this.directory], { env: this.env, stdio: ["ignore", "ignore", "pipe"] });
    this.said = "";
    this.child.stderr.on("data", (data) => (this.said += data));
    await until(() => (existsSync(state) && readFileSync(state, "utf8").endsWith("}")) || this.child.exitCode !== null, "the broker is ready");
    if (this.child.exitCode !== null) throw new Error(this.said);
    const { http, nats } = JSON.parse(readFileSync(state, "utf8"));
    this.port = Number(new URL(http).port);
    this.nats = nats;
    return this;
  }

  /** What `broker token` makes with these options. */
  token(...options) {
    const args = ["-m", "broker", "token", "--data-dir", this.directory, ...options];
    const { status, stdout, stderr } = spawnSync(PYTHON, args, { env: this.env, encoding: "utf8" });
    if (status !== 0) throw new Error(stderr);
    return stdout.trim();
  }

  async end(signal) {
    if (!this.child || this.child.exitCode !== null || this.child.signalCode !== null) return;
    const gone = once(this.child, "exit");
    this.child.kill(signal);
    await gone;
  }

  async remove() {
    await this.end("SIGTERM");
    rmSync(this.directory, { recursive: true, force: true });
  }
}

/** A service of a tenant, which has its requests in `asked` and answers when it is told to. */
export class Service {
  asked = []; // {method, data, answer}
  unread = Buffer.alloc(0);

  async start(broker, tenant) {
    const { hostname, port, username, password } = new URL(broker.nats);
    this.socket = connect(Number(port), hostname);
    const ready = new Promise((resolve) => (this.ready = resolve));
    this.socket.on("data", (data) => {
      this.unread = Buffer.concat([this.unread, data]);
      while (this.read());
    });
    const login = { headers: true, verbose: false, user: decodeURIComponent(username), pass: decodeURIComponent(password) };
    this.socket.write(`CONNECT ${JSON.stringify(login)}\r\nSUB rpc.${tenant}.> 1\r\nPING\r\n`);
    await ready;
    return this;
  }

  /** One message of NATS, once it is there as a whole. */
  read() {
    const end = this.unread.indexOf("\r\n");
    if (end < 0) return false;
    const [kind, subject, , reply, ...sizes] = this.unread.toString("utf8", 0, end).split(" ");
    const size = kind === "HMSG" ? Number(sizes[1]) + 2 : 0;
    if (this.unread.length < end + 2 + size) return false;
    const text = this.unread.toString("utf8", end + 2 + Number(sizes[0] ?? 0), end + size);
    this.unread = this.unread.subarray(end + 2 + size);
    if (kind === "PONG") this.ready();
    if (kind === "PING") this.socket.write("PONG\r\n");
    if (kind === "-ERR") throw new Error(subject);
    if (kind !== "HMSG") return true;
    const answer = (data, headers = {}) => {
      const head = `NATS/1.0\r\n${Object.entries(headers).map(([name, value]) => `${name}: ${value}\r\n`).join("")}\r\n`;
      const body = JSON.stringify(data);
      this.socket.write(`HPUB ${reply} ${head.length} ${head.length + Buffer.byteLength(body)}\r\n${head}${body}\r\n`);
    };
    this.asked.push({ method: subject.split(".").slice(2).join("."), data: JSON.parse(text), answer });
    return true;
  }

  /** The next request, once it has come. */
  async next() {
    return until(() => this.asked.shift(), "a request");
  }

  end() {
    this.socket.destroy();
  }
}

/** Before the broker: what it does to connections that ask for an upgrade is up to the test. */
export class Proxy {
  links = new Set();
  refuse = false; // answers an upgrade by itself
  refuseAll = false; // lets nobody through
  cutAfter = Infinity; // bytes that come back after an upgrade
  upgrades = 0;
  cutAt = 0; // bytes that come back to the next request of which it is about

  constructor(broker) {
    this.broker = broker;
  }

  get url() {
    return `http://127.0.0.1:${this.port}`;
  }

  async start() {
    this.server = createServer((near) => this.serve(near)).listen(0, "127.0.0.1");
    await once(this.server, "listening");
    this.port = this.server.address().port;
    return this;
  }

  serve(near) {
    if (this.refuseAll) return near.destroy();
    const far = connect(this.broker.port, "127.0.0.1");
    this.links.add(near);
    let upgrade = false;
    let back = 0;
    let most = Infinity;
    near.once("data", (head) => {
      if (this.cutting?.test(head)) (most = this.cutAt), (this.cutAt += this.step);
      upgrade = /^upgrade: websocket/im.test(head);
      this.upgrades += upgrade;
      if (upgrade && this.refuse) near.end("HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n");
      else far.write(head), near.pipe(far);
    });
    far.on("data", (data) => {
      back += data.length;
      if (back > most) {
        near.write(data.subarray(0, data.length - (back - most)), () => near.destroy());
        far.destroy();
      } else if (upgrade && back > this.cutAfter) near.destroy();
      else near.write(data);
    });
    for (const [one, other] of [[near, far], [far, near]]) {
      one.on("error", () => other.destroy());
      one.on("close", () => other.destroy());
    }
    near.on("close", () => this.links.delete(near));
  }

  /** Requests that begin like this are cut off on their way back, each `step` bytes later than the one before. */
  cutNext(cutting, step = 1) {
    Object.assign(this, { cutting, step, cutAt: 0 });
  }

  cut() {
    for (const link of this.links) link.destroy();
  }

  close() {
    this.cut();
    this.server.close();
  }
}

export const openBrowser = () => chromium.launch({ executablePath: CHROMIUM, args: ["--no-sandbox", "--disable-gpu"], timeout: READY_MS });

/** An empty page of the broker's own origin, in which `import("/client.js")` works; `token(tenant, user)` too. */
export async function openPage(context, url) {
  context.setDefaultTimeout(READY_MS);
  const page = await context.newPage();
  page.faults = [];
  page.on("pageerror", (error) => page.faults.push(error.message));
  await page.goto(`${url}/healthz`);
  await equip(page);
  return page;
}

/** The same for a page that was reloaded. */
export const equip = (page) =>
  page.evaluate(async () => {
    window.token = async (tenant, user) => {
      const body = JSON.stringify({ tenant, user });
      const answer = await fetch("/dev/token", { method: "POST", headers: { "Content-Type": "application/json" }, body });
      return (await answer.json()).token;
    };
    const { Client, Store } = await import("/client.js");
    window.Store = Store;
    window.open_ = (options) => new Client({ url: location.origin, token: () => token("acme", "alice"), ...options });
    window.open = (options) =>
      new Promise((resolve) => {
        const client = open_(options);
        const opened = () => client.status.state === "open" && resolve(client);
        client.addEventListener("status", opened);
      });
    window.texts = (items) => items.map(({ event }) => event);
  });
