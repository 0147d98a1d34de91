// @ts-check
/** Documents where there is no connection that brings them: they are read again and again. */

import { rest } from "./platform.js";
import { passed } from "./positions.js";

/** @import { Fault, Heard } from "./types.js" */

const EACH_MS = 1_000;
const AT_ONCE = 40; // in one request

export class Watching {
  #request;
  #fault;
  #heard;
  #signal;
  /** @type {Map<string, string>} what is open, and up to where each has been read */
  #places = new Map();
  #running = false;

  /**
   * @param {(asked: {channel: string[], position?: string}) => Promise<Response>} request
   * @param {(error: Fault) => {code: string, retryable: boolean}} fault what a failed request means
   * @param {Heard} heard
   * @param {AbortSignal} signal
   */
  constructor(request, fault, heard, signal) {
    this.#request = request;
    this.#fault = fault;
    this.#heard = heard;
    this.#signal = signal;
  }

  /**
   * @param {{channel: string, position?: string}} asked
   * @param {string} [messageId]
   */
  async open({ channel, position }, messageId) {
    this.#places.delete(channel);
    try {
      const said = await (await this.#request({ channel: [channel], position })).json();
      this.#places.set(channel, said.position);
      this.#tell([channel], said, messageId);
      this.#run();
    } catch (error) {
      this.#heard({ type: "error", messageId, payload: this.#fault(/** @type {Fault} */ (error)) });
    }
  }

  /**
   * @param {{channel: string}} payload
   * @param {string} [messageId]
   */
  close(payload, messageId) {
    this.#places.delete(payload.channel);
    this.#heard({ type: "state.closed", messageId, payload });
  }

  async #run() {
    if (this.#running) return;
    this.#running = true;
    while (this.#places.size && !this.#signal.aborted) {
      await rest(this.#signal, EACH_MS);
      const names = [...this.#places.keys()];
      while (names.length && !this.#signal.aborted) await this.#read(names.splice(0, AT_ONCE));
    }
    this.#running = false;
  }

  /** @param {string[]} names */
  async #read(names) {
    const channel = names.filter((name) => this.#places.has(name));
    if (!channel.length) return;
    const position = channel.map((name) => this.#places.get(name) ?? "").reduce((one, other) => (passed(one, other) ? one : other));
    try {
      const said = await (await this.#request({ channel, position })).json();
      const open = channel.filter((name) => this.#places.has(name));
      for (const name of open) this.#places.set(name, said.position);
      this.#tell(open, said);
    } catch (error) {
      const { code, retryable } = this.#fault(/** @type {Fault} */ (error));
      if (retryable || this.#signal.aborted) return; // it is read the next time
      for (const name of channel) this.#end(name, code);
    }
  }

  /**
   * @param {string[]} channel
   * @param {{documents: any[], refused: any[], position: string, recovered: boolean}} said
   * @param {string} [messageId]
   */
  #tell(channel, { documents, refused, position, recovered }, messageId) {
    if (messageId || !recovered) this.#heard({ type: "state.opened", messageId, payload: { channel, refused, position, recovered } });
    for (const each of documents) this.#heard({ type: "state", payload: { ...each, position } });
    for (const each of refused) this.#end(each.channel, each.code);
    this.#heard({ type: "state.ready", payload: { channel, position } });
  }

  /**
   * @param {string} channel
   * @param {string} code
   */
  #end(channel, code) {
    this.#places.delete(channel);
    this.#heard({ type: "state.closed", payload: { channel, code } });
  }
}
