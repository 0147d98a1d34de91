/** The demo page's documents: an order that two people change, and a board of cards. */

import { Client } from "./client.js";
import { token } from "./demo.js";

const TENANT = "acme";
const COLUMNS = { todo: "To do", doing: "Doing", done: "Done" };
const client = (user) => new Client({ url: new URL(".", location.href).href, token: () => token(TENANT, user) });
const copy = (id) => document.getElementById(id).content.cloneNode(true).firstElementChild;

/** Somebody who has the order open. */
class Person {
  constructor(name) {
    const form = (this.form = copy("person"));
    this.part = Object.fromEntries([...form.querySelectorAll("[data-as]")].map((each) => [each.dataset.as, each]));
    this.part.name.textContent = name;
    form.setAttribute("aria-label", name);
    document.getElementById("people").append(form);
    this.order = client(name.toLowerCase()).document("demo.order");
    for (const type of ["change", "state"]) this.order.addEventListener(type, () => this.show());
    this.order.addEventListener("conflict", ({ detail }) => this.ask(detail));
    this.order.addEventListener("rejected", ({ detail: { error } }) => this.say(error.message, true));
    form.addEventListener("submit", (event) => event.preventDefault());
    form.addEventListener("input", ({ target: { name, value, type } }) => {
      this.say("");
      this.order.change({ [name]: type === "number" ? Number(value) : value });
    });
    for (const button of form.querySelectorAll("[data-keep]"))
      button.addEventListener("click", () => {
        this.part.conflict.hidden = true;
        this.keep(button.dataset.keep);
      });
    this.show();
  }

  show() {
    const { value, pending, state } = this.order;
    for (const name of ["amount", "note"]) {
      const field = this.form.elements[name];
      const shown = String(value?.[name] ?? "");
      if (field.value !== shown) field.value = shown;
    }
    this.form.dataset.pending = pending;
    if (!this.refusal) this.part.said.textContent = pending ? "saving …" : state === "live" ? "saved" : state;
  }

  ask({ mine, theirs, keep }) {
    this.keep = keep;
    const both = Object.keys(mine).map((name) => `${name}: you wrote ${mine[name]}, and there is ${theirs[`/${name}`]} now`);
    this.part.told.textContent = both.join("; ");
    this.part.conflict.hidden = false;
  }

  say(text, bad = false) {
    this.refusal = bad;
    this.part.said.classList.toggle("bad", bad);
    this.part.said.textContent = text;
  }
}

/** A rank between two others, as text: there is always one more. */
const between = (low, high) => {
  let rank = "";
  for (let i = 0; ; i++) {
    const from = i < low.length ? low.charCodeAt(i) - 97 : 0;
    const to = high !== undefined && i < high.length ? high.charCodeAt(i) - 97 : 26;
    if (to - from > 1) return rank + String.fromCharCode(97 + ((from + to) >> 1));
    rank += String.fromCharCode(97 + from);
    if (to > from) high = undefined;
  }
};

class Board {
  constructor() {
    this.cards = client("reader").collection("demo.board.*");
    this.columns = Object.entries(COLUMNS).map(([name, title], n) => {
      const column = copy("column");
      column.querySelector("h3").textContent = title;
      document.getElementById("board").append(column);
      return { name, n, list: column.querySelector("ul") };
    });
    for (const type of ["change", "state"]) this.cards.addEventListener(type, () => this.soon());
    document.getElementById("card").addEventListener("submit", (event) => {
      event.preventDefault();
      const { text } = event.target.elements;
      const rank = between(this.of("todo").at(-1)?.rank ?? "", undefined);
      this.cards.change(`demo.board.${crypto.randomUUID()}`, { text: text.value, column: "todo", rank });
      text.value = "";
    });
  }

  /** What comes in one turn is drawn once. */
  soon() {
    this.drawing ??= requestAnimationFrame(() => {
      this.drawing = undefined;
      this.draw();
    });
  }

  of(column) {
    const all = [...this.cards.all].map(([channel, card]) => ({ channel, ...card })).filter((card) => card.column === column);
    return all.sort((a, b) => (a.rank < b.rank ? -1 : a.rank > b.rank ? 1 : a.channel < b.channel ? -1 : 1));
  }

  draw() {
    const focused = document.activeElement?.id;
    for (const { name, n, list } of this.columns) {
      const cards = this.of(name);
      list.replaceChildren(...cards.map((card, at) => this.row(card, at, cards, n)));
    }
    if (focused) document.getElementById(focused)?.focus();
  }

  row({ channel, text }, at, cards, n) {
    const row = document.createElement("li");
    row.append(Object.assign(document.createElement("span"), { textContent: text }));
    const button = (sign, label, patch) => {
      const made = Object.assign(document.createElement("button"), { type: "button", textContent: sign, id: `${channel} ${label}`, disabled: patch === undefined });
      made.setAttribute("aria-label", `${label}: ${text}`);
      made.addEventListener("click", () => this.cards.change(channel, patch));
      row.append(made);
    };
    const to = (other) => other && { column: other.name, rank: between(this.of(other.name).at(-1)?.rank ?? "", undefined) };
    button("←", "Back", to(this.columns[n - 1]));
    button("↑", "Up", at ? { rank: between(cards[at - 2]?.rank ?? "", cards[at - 1].rank) } : undefined);
    button("→", "On", to(this.columns[n + 1]));
    button("×", "Remove", null);
    return row;
  }
}

const people = ["Ann", "Bob"].map((name) => new Person(name));
document.getElementById("both").addEventListener("click", () => {
  const amount = people[0].order.value?.amount ?? 0;
  people.forEach(({ order }, n) => order.change({ amount: (amount + 1 + n) % 900 }));
});
// For whoever looks from the console.
Object.assign(window, { people, board: new Board() });
