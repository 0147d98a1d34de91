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

export { Client } from "./client/client.js";
export { BrokerError } from "./client/errors.js";
export { Store } from "./client/store.js";
