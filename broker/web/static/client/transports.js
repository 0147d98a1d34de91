// @ts-check
/** The ways to the broker, by name. */

import { http } from "./http.js";
import { eventStream, longPoll } from "./reads.js";
import { otherTab } from "./tabs.js";
import { websocket } from "./websocket.js";

/** @import { Connect } from "./types.js" */

/** @type {Record<string, Connect>} `http`: so many requests a second for lists that change, and so many at once */
export const TRANSPORTS = { websocket, sse: http(eventStream, 4, 4), poll: http(longPoll, 4, 40), tabs: otherTab };
