/** What `fetch` meets: a broker that speaks SSE and long poll, and whatever stands before it. */

/** Anything but the broker: an answer of these, `undefined` where it lets the request pass. */
export const answer = (body, { status = 200, type = "text/html", ...headers } = {}) =>
  new Response([204, 304].includes(status) ? null : body, { status, headers: { "Content-Type": type, ...headers } });

export const problem = (status, code, extra = {}, headers = {}) =>
  answer(JSON.stringify({ detail: "it says why", code, ...extra }), { status, type: "application/problem+json", ...headers });

/** Never, unless whoever asked wants it no more. */
export const never = (signal) =>
  new Promise((_, reject) => {
    const stop = () => reject(new DOMException("aborted", "AbortError"));
    if (signal?.aborted) stop();
    signal?.addEventListener("abort", stop);
  });

export class Site {
  asked = []; // paths, in order
  fault; // (path, init, url) → what stands before the broker answers
  events = []; // of the channel `a.x`; the position of the n-th is `i-n`
  cut; // bytes of a body that come through
  ends; // whether it ends properly there
  sessions = 0;
  open = new Set(); // streams, and polls that wait: what ends them
  token = () => {}; // what the broker says of one: a problem, or nothing

  install() {
    globalThis.fetch = (url, init = {}) => this.answer(new URL(url), init);
  }

  async answer(url, init) {
    this.asked.push(url.pathname);
    const cut = new AbortController();
    const { signal } = init;
    signal?.addEventListener("abort", () => cut.abort());
    init = { ...init, signal: cut.signal };
    if (signal?.aborted) throw new DOMException("aborted", "AbortError");
    const other = await this.fault?.(url.pathname, init, url);
    if (other) return other;
    if (url.pathname === "/healthz") return answer("ok");
    this.open.add(() => cut.abort());
    const refused = this.token(init.headers.Authorization.slice("Bearer ".length));
    if (refused) return refused;
    if (url.pathname === "/sse") return this.stream(url.searchParams, init);
    if (url.pathname === "/poll") return this.poll(JSON.parse(init.body), init);
    const { event, id } = JSON.parse(init.body);
    this.events.push(event);
    return answer(JSON.stringify({ position: `i-${this.events.length}`, id }), { status: 202, type: "application/json" });
  }

  cutAll() {
    for (const end of this.open) end();
    this.open.clear();
  }

  above(channels, position) {
    if (!channels.includes("a.x")) return [];
    const from = Number(position?.split("-")[1] ?? this.events.length);
    const all = this.events.map((event, i) => ({ channel: "a.x", event, position: `i-${i + 1}` }));
    return all.slice(from);
  }

  /** Two bodies of one answer: up to where it is cut, and then an error, a proper end, or nothing more. */
  body(text, { signal }, open) {
    const bytes = new TextEncoder().encode(text);
    const { cut, ends } = this;
    return new ReadableStream({
      start(stream) {
        stream.enqueue(bytes.slice(0, cut));
        if (cut < bytes.length) ends ? stream.close() : stream.error(new TypeError("cut"));
        else if (!open) stream.close();
        signal?.addEventListener("abort", () => {
          try {
            stream.error(new DOMException("aborted", "AbortError"));
          } catch {} // it is over
        });
      },
    });
  }

  stream(query, init) {
    const channel = query.getAll("channel");
    const position = `i-${this.events.length}`;
    const messages = [
      ["connection.established", { connection_id: "c", heartbeat_seconds: 25, features: [], limits: {} }],
      ["connection.authenticated", { tenant: "acme", user: "alice", private: "users.alice", expires_at: new Date().toISOString() }],
      ["subscribed", { channel, refused: [], position: query.get("position") ?? position, recovered: true, live: true }],
      ...this.above(channel, query.get("position")).map((event) => ["event", event]),
    ];
    const text = messages.map(([type, payload]) => {
      const id = payload.position ? `id: ${payload.position}\n` : "";
      return `data: ${JSON.stringify({ type, payload })}\n${id}\n`;
    });
    const full = `retry: 1000\n\n${text.join("")}`;
    this.length = new TextEncoder().encode(full).length;
    return new Response(this.body(full, init, true), { headers: { "Content-Type": "text/event-stream" } });
  }

  async poll({ channels, session, position, wait, leave }, init) {
    if (leave) return answer("", { status: 204 });
    const events = this.above(channels, position);
    if (wait && !events.length) {
      let timer;
      const over = new Promise((resolve) => (timer = setTimeout(resolve, wait * 1000)));
      try {
        await Promise.race([over, never(init.signal)]);
      } finally {
        clearTimeout(timer);
      }
    }
    const said = { session: session ?? `s${++this.sessions}`, events, gaps: [], position: `i-${this.events.length}`, recovered: true };
    const text = JSON.stringify(said);
    this.length = text.length;
    return new Response(this.body(text, init, false), { headers: { "Content-Type": "application/json" } });
  }
}
