import { EventParser } from "./sse.js";

/** One request and all that came back for it. Times are milliseconds since it was sent. */
export class Exchange {
  /** "not sent", "waiting", "streaming"; then "done", "stopped" or "failed". */
  state = "not sent";
  status = "";
  headers = new Headers();
  /** What came in: `at`, the raw `line`, and as `label` what is new in it. */
  events = [];
  /** When each chunk with a choice came. */
  arrivals = [];
  text = "";
  /** Calls of tools that an own model has made itself, and their results. */
  toolEvents = [];
  finishReason = null;
  usage = null;
  /** Problem details (RFC 9457) with OpenAI's `error`. */
  problem = null;
  #started;
  #ended;
  #abort = new AbortController();
  #calls = new Map();

  /** `request` is the body, as chat has it; `dialect` is how it will be sent. */
  constructor(request, dialect) {
    this.request = request;
    this.dialect = dialect;
  }

  get elapsed() {
    return this.#started ? (this.#ended ?? performance.now()) - this.#started : 0;
  }

  get running() {
    return this.#started && !this.#ended;
  }

  /** Chunks a second, from the first to the last. */
  get rate() {
    const span = this.arrivals.at(-1) - this.arrivals[0];
    return span > 0 ? ((this.arrivals.length - 1) * 1000) / span : undefined;
  }

  get toolCalls() {
    return [...this.#calls.values()];
  }

  /** The assistant's message for the history; null if nothing was answered. */
  get answer() {
    const calls = this.#calls.size && { tool_calls: this.toolCalls };
    return this.text || calls ? { role: "assistant", content: this.text || null, ...calls } : null;
  }

  /** Close the connection, and with it the call upstream. */
  stop() {
    this.#abort.abort();
  }

  /**
   * Send the request and read its answer to the end. Never throws: a failure becomes `problem`.
   * An empty `key` is not sent. `changed()` is called after each packet and at the end.
   */
  async send(base, key, changed) {
    const { signal } = this.#abort;
    this.state = "waiting";
    this.#started = performance.now();
    try {
      const response = await fetch(base + this.dialect.path, {
        method: "POST",
        headers: { "Content-Type": "application/json", ...(key && { Authorization: `Bearer ${key}` }) },
        body: JSON.stringify(this.dialect.request(this.request)),
        signal,
      });
      this.status = response.status;
      this.headers = response.headers;
      const type = response.headers.get("Content-Type") ?? "";
      if (type.startsWith("text/event-stream")) await this.#read(response.body, changed);
      else {
        const body = await response.text();
        this.#record(body, "body");
        if (!type.startsWith("application/problem+json")) throw new Error("The answer is not from this API. It may come from a proxy.");
        this.problem = JSON.parse(body);
      }
    } catch ({ message }) {
      const error = { message: this.status ? message : "The server can't be reached. Is it running?" };
      if (!signal.aborted) this.problem = { title: this.status ? "Invalid answer" : "No answer", error };
    }
    this.#ended = performance.now();
    this.state = this.problem ? "failed" : signal.aborted ? "stopped" : "done";
    changed();
  }

  #record(line, label) {
    this.events.push({ at: this.elapsed, line, label });
  }

  async #read(body, changed) {
    const parser = new EventParser();
    const reader = body.getReader();
    this.state = "streaming";
    for (;;) {
      const { done, value } = await reader.read();
      if (done) throw new Error("The stream ended before its last event.");
      for (const { data, comment } of parser.push(value)) {
        if (data === "[DONE]") {
          this.#record("data: [DONE]", "end");
          return reader.cancel();
        }
        if (data === undefined) this.#record(`: ${comment}`, "comment");
        else {
          const event = JSON.parse(data);
          this.#record(`data: ${data}`, this.#take(this.dialect.read(event)) ?? event.type);
          if (["message_stop", "error"].includes(event.type)) return reader.cancel();
        }
      }
      changed();
    }
  }

  /** Take a chunk in, if there is one, and say what was new in it. */
  #take(chunk) {
    if (!chunk) return;
    if (chunk.error) {
      this.problem = chunk;
      return "error";
    }
    this.usage = chunk.usage ?? this.usage;
    const choice = chunk.choices.find(({ index }) => !index);
    if (!choice) return "usage";
    this.arrivals.push(this.elapsed);
    if (chunk.tool_event) {
      this.toolEvents.push(chunk.tool_event);
      return `${chunk.tool_event.type} ${chunk.tool_event.name}`;
    }
    this.finishReason = choice.finish_reason ?? this.finishReason;
    const { delta = {} } = choice;
    const text = delta.content || delta.refusal || "";
    this.text += text;
    // A call comes in pieces: its name and id once, its arguments bit by bit.
    for (const { index, id = "", function: part } of delta.tool_calls ?? []) {
      if (!this.#calls.has(index)) this.#calls.set(index, { id, type: "function", function: { name: part.name, arguments: "" } });
      this.#calls.get(index).function.arguments += part.arguments ?? "";
    }
    return text ? JSON.stringify(text) : Object.keys(delta).join(" ") || `finish ${choice.finish_reason}`;
  }
}
