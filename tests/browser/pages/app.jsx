/** A small page of the hooks, in strict mode. What the test looks at is on `window`. */

import { StrictMode, useLayoutEffect, useState } from "react";
import { createRoot } from "react-dom/client";
import { flushSync } from "react-dom";

import { Client } from "../../../broker/web/static/client.js";
import { BrokerProvider, useChannel, useCollection, useConnection, useDocument, useEditing, useHistory, useNotifications, usePresence, useRequest } from "../../../broker/web/static/react.js";

window.sent = []; // what goes out by WebSocket
const { send } = WebSocket.prototype;
WebSocket.prototype.send = function (text) {
  sent.push(JSON.parse(text));
  send.call(this, text);
};
window.torn = 0;
window.lists = new Set(); // of notifications

const options = () => ({ last: 3, keep: 5 }); // another object in each rendering, as people write it

function List({ name }) {
  const { events, state } = useChannel(["react.>"], options());
  const until = performance.now() + 3; // slow, so that events come in the middle of a rendering
  while (performance.now() < until);
  return <p id={name} data-state={state}>{events.map((item) => item.event).join(" ")}</p>;
}

function Order({ name }) {
  const { value, pending, change, rejected, dismiss } = useDocument("shared.order");
  const { all } = useCollection("shared.*");
  return (
    <p>
      <span id={name} data-pending={pending}>{JSON.stringify([value?.n ?? null, all.get("shared.order")?.n ?? null])}</span>
      <button id={`${name}-more`} onClick={() => change({ n: (value?.n ?? 0) + 1 })}>more</button>
      <button id={`${name}-never`} onClick={() => change({ never: "x".repeat(100_000) })}>never</button>
      <button id={`${name}-seen`} onClick={dismiss}>{rejected?.error.code}</button>
    </p>
  );
}

function Editor() {
  const { users, set } = usePresence("react.desk", { state: { color: "red" } });
  const { editors, begin, end } = useEditing("react.desk", "note");
  return (
    <p>
      <span id="users">{users.map(({ user }) => user).join(" ")}</span>
      <span id="editors">{editors.map(({ user }) => user).join(" ")}</span>
      <button id="begin" onClick={begin}>begin</button>
      <button id="end" onClick={end}>end</button>
      <button id="blue" onClick={() => set({ color: "blue" })}>blue</button>
    </p>
  );
}

/** Who is there, shown when it is asked for. */
function Desk() {
  const [shown, show] = useState(false);
  window.showDesk = (so) => flushSync(() => show(so));
  return shown && <Editor />;
}

/** One order, shown twice. */
function Orders() {
  const [shown, show] = useState(false);
  window.showOrders = (so) => flushSync(() => show(so));
  return shown && <><Order name="first" /><Order name="second" /></>;
}

function Page() {
  const { state, user } = useConnection();
  const { notifications, unread, markRead } = useNotifications();
  const { error } = useChannel("users.somebody.else");
  const [shown, show] = useState(true);
  lists.add(notifications);
  useLayoutEffect(() => {
    if (shown && document.getElementById("one").textContent !== document.getElementById("two").textContent) torn++;
  });
  return (
    <>
      <p id="state">{state} {user}</p>
      <p id="error">{error?.code}</p>
      <p id="unread">{unread}</p>
      <p id="notifications">{notifications.map((item) => item.event).join(" ")}</p>
      <button id="read" onClick={() => void markRead()}>read</button>
      <button id="toggle" onClick={() => show(!shown)}>toggle</button>
      {shown && <List name="one" />}
      {shown && <List name="two" />}
    </>
  );
}

function Asking({ method }) {
  const { request, data, error, pending } = useRequest(method);
  window.ask = request;
  return <p id="asked" data-pending={pending} data-error={error?.code}>{data}</p>;
}

/** What asks the service that the test names. */
function Asked() {
  const [method, name] = useState();
  window.askFor = (next) => flushSync(() => name(next));
  return method && <Asking method={method} />;
}

/** The past of what the test names. */
function Chat() {
  const [asked, ask] = useState({});
  window.readFrom = (channel, filter) => flushSync(() => ask({ channel, filter }));
  return asked.channel && <Messages {...asked} />;
}

function Messages({ channel, filter }) {
  const { events, more, loading, error, loadOlder } = useHistory([channel], { limit: 3, filter });
  window.older = loadOlder;
  return <p id="chat" data-more={more} data-loading={loading} data-error={error?.code}>{events.map((item) => item.event).join(" ")}</p>;
}

function Row({ n }) {
  const { state, error } = useChannel(`rows.${n}`);
  return <li data-state={state} data-error={error?.code}>{n}</li>;
}

/** A virtual list: 40 rows of many. */
function Rows() {
  const [top, setTop] = useState();
  window.scrollRows = (to) => flushSync(() => setTop(to));
  return <ul id="rows">{top !== undefined && Array.from({ length: 40 }, (_, i) => <Row key={top + i} n={top + i} />)}</ul>;
}

window.mount = (token) => {
  window.client = new Client({ url: location.origin, token });
  const root = createRoot(document.body.appendChild(document.createElement("div")));
  const render = (node) => flushSync(() => root.render(node));
  render(<StrictMode><BrokerProvider client={client}><Page /><Rows /><Asked /><Chat /><Orders /><Desk /></BrokerProvider></StrictMode>);
  return () => render(null);
};
