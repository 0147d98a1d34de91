// Checked by tsc, never run: what an application writes, and what it must not be able to write.
import { BrokerError, Client, Store, type GapItem } from "../../../broker/web/static/client.js";
import { BrokerProvider, useChannel, useCollection, useConnection, useDocument, useEditing, useHistory, useNotifications, usePresence, useRequest } from "../../../broker/web/static/react.js";

interface Order {
  state: "new" | "packed";
}

const client = new Client({ url: "https://events.example.com", token: async () => "t", transports: ["sse"], tabs: "alice" });
client.addEventListener("status", ({ detail }) => detail.state === "open" && detail.private?.length);
const orders = client.subscribe<Order>("orders.>", { last: 10 }, ({ event }) => event?.state);
client.subscribe("a", (item) => item.catchUp);
client.subscribe("a", { everyMs: 500, filter: { "/n": 1 }, snapshot: false });
orders.addEventListener("gap", ({ detail }: CustomEvent<GapItem>) => detail.action === "reload" && orders.restart());

export async function run(): Promise<string | undefined> {
  for await (const item of orders) {
    if (item.type === "gap") continue;
    if (item.event?.state === "packed") await orders.acknowledge(item);
  }
  const store = new Store<Order>(client, "orders.>", { reduce: (value, event) => ({ ...value, ...event }) });
  store.addEventListener("change", () => store.value.get("orders.1")?.state);
  try {
    return (await store.put("orders.1", { state: "new" }, { timeout: 500 })).position;
  } catch (error) {
    return error instanceof BrokerError ? error.code : undefined;
  }
}

export async function approve(signal: AbortSignal): Promise<Order | undefined> {
  try {
    return await client.request<Order>("orders.approve", { order: 7 }, { timeout: 10_000, signal, id: "approve-7" });
  } catch (error) {
    if (error instanceof BrokerError && error.code === "rejected") console.log(error.status?.toFixed());
    return undefined;
  }
}

export async function past(signal: AbortSignal): Promise<string[]> {
  let page = await client.history<Order>(["orders.>"], { limit: 20, filter: { "/state": "paid" }, signal });
  while (page.more) page = await page.older({ signal });
  return page.events.map(({ storedAt, position, event }) => `${storedAt} ${position} ${event?.state}`);
}

export function Chat() {
  const { events, more, loading, error, loadOlder } = useHistory<Order>("orders.7", { limit: 20, filter: { "/state": { ne: "new" } }, live: false });
  return (
    <button disabled={loading || !more} onClick={() => void loadOlder()}>
      {events.length} {error instanceof Error && error.message}
    </button>
  );
}

export function Approve() {
  const { request, data, error, pending } = useRequest<Order>("orders.approve");
  return (
    <button disabled={pending} onClick={() => void request({ order: 7 }, { timeout: 500 })}>
      {data?.state} {error instanceof Error && error.message}
    </button>
  );
}

export function Page() {
  const { state, transport } = useConnection();
  const { events, gap } = useChannel<Order>(["orders.>"], { last: 3, keep: 5 });
  const { unread, markRead } = useNotifications<{ text: string }>();
  return (
    <BrokerProvider client={client}>
      <button onClick={() => void markRead()}>{unread}</button>
      {state} {transport} {gap?.reason} {events.map((item) => item.event?.state)}
    </BrokerProvider>
  );
}

// @ts-expect-error a client without a token
new Client({ url: "x" });
// @ts-expect-error no such transport
new Client({ token: "t", transports: ["carrier pigeon"] });
// @ts-expect-error a pace is a number of ms
client.subscribe("a", { everyMs: "1s" });
// @ts-expect-error no such lag
client.subscribe("a", { lag: "never" });
// @ts-expect-error a position, and no number
void client.history("a", { before: 7 });
// @ts-expect-error a timeout is a number of ms
void client.request("a", 1, { timeout: "5s" });
// @ts-expect-error a store has its own start
new Store(client, "a", { last: 3 });
// @ts-expect-error what a client is, nobody sets
client.status = { state: "open" };
// @ts-expect-error not a state
export const wrong: boolean = useConnection().state === "asleep";

export function Shared() {
  const { value, pending, change, conflict, rejected, dismiss } = useDocument<{ amount: number }>("orders.7");
  const { invalid } = useDocument("orders.8");
  const { all, invalid: others } = useCollection<{ rank: string }>("board.7.*");
  change({ amount: 2 });
  change(null);
  change(undefined, { add: { "/amount": 1 } });
  // @ts-expect-error a number is added
  change(undefined, { add: { "/amount": "1" } });
  // @ts-expect-error what is no JSON
  change(() => 1);
  conflict?.keep("mine");
  // @ts-expect-error one of two
  conflict?.keep("both");
  const first = [...all.values()][0]?.rank;
  return (
    <p onClick={dismiss}>
      {invalid} {others.get("board.7.a")} {value?.amount} {pending} {first} {rejected?.error.paths?.["/amount"]}
    </p>
  );
}
const shared = client.document<{ amount: number }>("orders.7");
shared.addEventListener("conflict", ({ detail }) => detail.keep("theirs"));
shared.addEventListener("change", ({ detail }) => detail?.amount);
void client.change([{ channel: "orders.7", patch: { amount: 1 } }, { channel: "stock.3", add: { "/left": -1 } }]).then((revisions) => revisions["orders.7"]);
// @ts-expect-error it is read, and changed by change()
shared.value = null;

const room = client.presence<{ editing?: string }>("orders.7", { state: {} });
room.addEventListener("change", ({ detail }) => detail.joined.map(({ user, sessions }) => [user, sessions[0]?.state?.editing]));
room.set({ editing: "note" });
// @ts-expect-error: no state of this room
room.set({ edits: "note" });

export function Desk() {
  const { users, count, stale, set } = usePresence("orders.7", { state: { color: "red" } });
  const { editors, begin, end } = useEditing("orders.7", "note");
  return <textarea title={users[0]?.sessions[0]?.state?.color} onFocus={begin} onBlur={end} onKeyDown={() => set({ color: "blue" })} disabled={stale || editors.length > count.users} />;
}
