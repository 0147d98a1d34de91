/**
 * The browser client of the broker: live events that survive a tunnel, a laptop lid and a deploy.
 *
 *     import { Client } from "https://events.example.com/client.js";
 *
 *     const client = new Client({
 *       token: async () => {
 *         const answer = await fetch("/token");
 *         if (!answer.ok) throw new Error(`no token: ${answer.status}`); // it is asked again, with back-off
 *         return answer.text();
 *       },
 *     });
 *     client.subscribe("orders.>", { last: 10 }, (event) => console.log(event.channel, event.event));
 *     await client.publish("orders.7", { state: "new" });
 *
 * ES modules without dependencies or a build; types are in client.d.ts. It speaks `broker.v1` over WebSocket, else
 * over Server-Sent Events, else by long polling.
 */

// The others by name too, or a browser would learn of each only from the one that imports it.
import "./client/acknowledgements.js";
import "./client/attempt.js";
import "./client/changes.js";
import "./client/collection.js";
import "./client/connection.js";
import "./client/documents.js";
import "./client/draft.js";
import "./client/exchange.js";
import "./client/filters.js";
import "./client/history.js";
import "./client/http.js";
import "./client/keeping.js";
import "./client/leader.js";
import "./client/members.js";
import "./client/names.js";
import "./client/outbox.js";
import "./client/pace.js";
import "./client/patches.js";
import "./client/places.js";
import "./client/plan.js";
import "./client/platform.js";
import "./client/positions.js";
import "./client/presence.js";
import "./client/reads.js";
import "./client/record.js";
import "./client/records.js";
import "./client/renewal.js";
import "./client/requests.js";
import "./client/rooms.js";
import "./client/sessions.js";
import "./client/subscribing.js";
import "./client/subscription.js";
import "./client/tabs.js";
import "./client/together.js";
import "./client/tokens.js";
import "./client/transports.js";
import "./client/values.js";
import "./client/watching.js";
import "./client/websocket.js";
import "./client/windows.js";

export { Client } from "./client/client.js";
export { BrokerError } from "./client/errors.js";
export { Store } from "./client/store.js";
