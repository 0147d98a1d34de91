/** The demo page: two tenants side by side, each with a reader and a service that publishes. */

import { Client } from "./client.js";

const SHOWN = 200; // rows of the list
const ORDERS = 8; // that are shown
const SLOW_MS = 700; // what a slow reader takes for an event
const NAMES = { connecting: "connecting", open: "connected", waiting: "reconnecting", closed: "cut off" };

const wait = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
const sequence = (position) => Number(position?.slice(position.lastIndexOf("-") + 1) ?? 0);

/** A token of development mode, for whoever is asked. */
export async function token(tenant, user) {
  const answer = await fetch("dev/token", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ tenant, user }),
  });
  if (!answer.ok) throw new Error((await answer.json()).detail);
  return (await answer.json()).token;
}

class Tenant {
  constructor(name) {
    this.name = name;
    const card = document.getElementById("tenant").content.cloneNode(true).firstElementChild;
    this.card = card;
    this.part = Object.fromEntries([...card.querySelectorAll("[data-as]")].map((each) => [each.dataset.as, each]));
    this.part.tenant.textContent = name;
    card.querySelector("h2").id = `${name}-name`;
    card.setAttribute("aria-labelledby", `${name}-name`);
    this.part.events.setAttribute("aria-label", `Events of ${name}`);
    document.getElementById("tenants").append(card);

    const url = new URL(".", location.href).href;
    this.reader = new Client({ url, token: () => token(name, "reader") });
    this.service = new Client({ url, token: () => token(name, "service") });
    this.count = 0;
    this.order = 1;
    this.missed = 0;
    this.ahead = []; // what the service has and the reader has not
    this.reader.addEventListener("status", () => this.showStatus());
    this.subscription = this.reader.subscribe("demo.>", { buffer: 8 });
    this.subscription.addEventListener("state", ({ detail }) => this.turned(detail));
    this.service.subscribe("demo.>", ({ position }) => this.ahead.push(sequence(position)));
    this.showStatus();
    this.read();

    card.querySelector("form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.publish();
    });
    for (const button of card.querySelectorAll("[data-do]")) button.addEventListener("click", () => this[button.dataset.do](button));
    setInterval(() => this.showPlace(), 250);
  }

  /** Takes events at its own pace; what does not fit its small buffer waits in the broker's log. */
  async read() {
    for await (const item of this.subscription) {
      if (item.type === "gap") this.row(`gap: ${item.reason}, ${item.count ?? "some"} events; ${item.action}`, "note gap");
      else this.show(item);
      if (this.slowly) await wait(SLOW_MS);
    }
  }

  show({ channel, event, position, publisher }) {
    this.count++;
    this.shown = position;
    if (this.resuming) this.missed++;
    const from = publisher ? "" : "a NATS client: ";
    const text = event?.text ?? JSON.stringify(event);
    this.row(`${from}${text}`, this.resuming ? "missed" : "", channel);
    this.showPlace();
  }

  row(text, kind, channel) {
    const row = document.createElement("li");
    row.className = kind;
    const time = document.createElement("time");
    time.textContent = new Date().toTimeString().slice(0, 8);
    row.append(time);
    if (channel !== undefined) row.append(Object.assign(document.createElement("span"), { textContent: channel }));
    row.append(Object.assign(document.createElement("span"), { className: "body", textContent: text }));
    this.part.events.prepend(row);
    while (this.part.events.childElementCount > SHOWN) this.part.events.lastElementChild.remove();
  }

  showStatus() {
    const { state, transport, error } = this.reader.status;
    if (state === "waiting" || state === "closed") {
      this.gone ??= Date.now();
      this.resuming = true;
    }
    this.card.dataset.state = state;
    this.part.state.textContent = NAMES[state];
    this.part.state.parentElement.title = error?.message ?? "";
    this.part.transport.textContent = state === "open" ? transport : "–";
  }

  /** How the subscription stands: after a cut, how much came with it. */
  turned(state) {
    if (state !== "live" || !this.resuming) return;
    setTimeout(() => {
      const away = ((Date.now() - this.gone) / 1000).toFixed(1);
      this.row(`back after ${away} s, with ${this.missed} missed events`, "note");
      this.resuming = false;
      this.gone = undefined;
      this.missed = 0;
    }, 100); // the rows of what came last are drawn first
  }

  showPlace() {
    const { position } = this.reader;
    if (this.subscription.state === "live" && !this.slowly) this.shown = position;
    this.shown ??= position;
    this.ahead = this.ahead.filter((each) => each > sequence(this.shown));
    this.part.count.textContent = this.count;
    this.part.position.textContent = this.shown ?? "–";
    this.part.lag.textContent = this.ahead.length;
  }

  async publish(more = "") {
    const { channel, text } = this.card.querySelector("form").elements;
    const said = this.part.said;
    const began = performance.now();
    try {
      const { position } = await this.service.publish(channel.value, { text: text.value + more });
      this.say(said, `published in ${Math.round(performance.now() - began)} ms at ${position ?? "no position: a live channel"}`, false);
    } catch (error) {
      this.say(said, `${error.code}: ${error.message}`, true);
    }
  }

  /** Writes what has become of something, below its buttons. */
  say(said, text, bad) {
    said.textContent = text;
    said.classList.toggle("bad", bad);
  }

  // --- buttons ---

  /** Shows an order as approved at once; the answer of the service confirms that, or takes it back. */
  async approve() {
    const { order, orders, answer } = this.part;
    const number = this.order++;
    order.textContent = this.order;
    const shown = Object.assign(document.createElement("li"), { textContent: number });
    orders.prepend(shown);
    while (orders.childElementCount > ORDERS) orders.lastElementChild.remove();
    const turn = (state, text) => {
      shown.className = state;
      shown.title = text;
      if (number === this.order - 1) this.say(answer, `order ${number}: ${text}`, state === "refused");
    };
    turn("pending", "approved");
    const began = performance.now();
    try {
      await this.reader.request("demo.approve", { order: number });
      turn("confirmed", `approved, confirmed in ${Math.round(performance.now() - began)} ms`);
    } catch (error) {
      turn("refused", `open again (${error.code}: ${error.message})`);
    }
  }

  cut(button) {
    if (this.reader.status.state === "closed") this.reader.connect();
    else this.reader.disconnect();
    button.textContent = this.reader.status.state === "closed" ? "Reconnect" : "Cut connection";
  }

  slow(button) {
    this.slowly = this.press(button);
  }

  burst() {
    for (let i = 1; i <= 20; i++) this.publish(` ${i}`);
  }

  steady(button) {
    clearInterval(this.timer);
    if (this.press(button)) this.timer = setInterval(() => this.publish(` ${new Date().toTimeString().slice(0, 8)}`), 1000);
  }

  press(button) {
    const pressed = button.getAttribute("aria-pressed") !== "true";
    button.setAttribute("aria-pressed", pressed);
    return pressed;
  }
}

// For whoever looks from the console.
window.tenants = ["acme", "globex"].map((name) => new Tenant(name));
