// Checked by tsc, never run: what the modules are is what applications are told.
import type * as told from "../../../broker/web/static/client.js";
import { Client } from "../../../broker/web/static/client/client.js";
import { BrokerError } from "../../../broker/web/static/client/errors.js";
import { Store } from "../../../broker/web/static/client/store.js";

declare const options: told.ClientOptions;
declare const storeOptions: told.StoreOptions<told.Json>;
// Listening is told more strictly than an EventTarget can.
type Untold<T> = Omit<T, "addEventListener" | "removeEventListener">;

export const client: Omit<Untold<told.Client>, "subscribe" | "document" | "collection" | "presence"> = new Client(options);
export const store: Untold<told.Store> = new Store(new Client(options), "a", storeOptions);
export const error: told.BrokerError = new BrokerError({ code: "x", message: "y" });
export const published: Promise<told.Published> = new Client(options).publish("a", 1, {} as told.PublishOptions);
export const subscription: Untold<told.Subscription> = new Client(options).subscribe("a", {} as told.SubscribeOptions);
export const answered: Promise<told.Json> = new Client(options).request("a", 1, {} as told.RequestOptions);
export const page: Promise<told.Page> = new Client(options).history("a", {} as told.HistoryOptions);
export const changed: Promise<{ readonly [channel: string]: string }> = new Client(options).change([{ channel: "a", patch: null, add: { "/b": 1 } }]);
export const room: Untold<told.Room> = new Client(options).presence("a", { state: { editing: "b" }, enter: true });
export const document: Untold<told.Document> = new Client(options).document("a");
export const collection: Untold<told.Collection> = new Client(options).collection("a.*");
