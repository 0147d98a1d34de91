// @ts-check
/** The transport `websocket`. */

import { tenantQuery } from "./names.js";

/** @import { Connect } from "./types.js" */

/** @type {Connect} */
export const websocket = ({ url, token, tenant }, heard, over) => {
  const socket = new WebSocket(
    `${url.replace(/^http/, "ws")}/ws${tenantQuery(tenant)}`,
    ["broker.v1", `bearer.${token}`],
  );
  socket.onmessage = ({ data }) => {
    try {
      heard(JSON.parse(data));
    } catch (error) {
      over({ code: 1002, reason: /** @type {Error} */ (error).message });
    }
  };
  socket.onclose = ({ code, reason }) => over({ code, reason });
  return {
    send: (message) => socket.send(JSON.stringify(message)),
    close: () => {
      socket.onmessage = socket.onclose = null;
      socket.close();
    },
  };
};
