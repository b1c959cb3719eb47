export const $ = (id) => document.getElementById(id);

/** Make an element, as "name.class". Strings become text nodes: nothing that a model says is parsed as HTML. */
export function element(kind, ...children) {
  const [name, className = ""] = kind.split(".");
  const made = Object.assign(document.createElement(name), { className });
  made.append(...children);
  return made;
}

/** Change what a box holds. If it was scrolled to its end, it stays there. */
export function follow(box, change) {
  const atEnd = box.scrollHeight - box.scrollTop - box.clientHeight < 60;
  change();
  if (atEnd) box.scrollTop = box.scrollHeight;
}

export const duration = (ms) => (ms < 1000 ? `${Math.round(ms)} ms` : `${(ms / 1000).toFixed(2)} s`);

const row = (role, ...content) => element(`div.row ${role}`, element("span", role), element("div", ...content));

/** JSON that may break after its punctuation, so that no word is cut; its text stays the same. */
export const json = (text) => text.split(/(?<=[,:{[])/).flatMap((part) => [part, element("wbr")]);

const call = (name, id, text) => element("div.call", element("b", name), element("code", ` ${id}`), element("pre", ...json(text)));

const toolCall = ({ id, function: called }) => call(called.name, id, called.arguments);

const toolEvent = ({ type, name, id, arguments: given, result }) =>
  type === "tool_call" ? call(name, id, given) : call(`${name}: result`, id, typeof result === "string" ? result : JSON.stringify(result));

/** What went wrong: title, sentence, then the facts to act on. */
function problemBlock({ problem: { status, title, error }, headers }) {
  const wait = headers.get("Retry-After");
  const facts = [error.code, error.param && `field ${error.param}`, wait && `retry after ${wait} s`].filter(Boolean);
  return element("div.call problem", element("b", `${status ?? ""} ${title}`), element("p", error.message), element("code", facts.join(" · ")));
}

/** One turn of the chat: what was said, and the answer to it. */
export class Turn {
  #text = document.createTextNode("");
  #rest = element("div");
  #meta = element("button.meta");

  /** `input` is the messages that it adds: the user's, or results of tool calls; `show()` shows its exchange. */
  constructor(input, show) {
    this.input = input;
    Object.assign(this.#meta, { title: "Show this exchange", onclick: show });
    this.element = element("div.turn",
      ...input.map(({ role, content }) => row(role, content)),
      row("assistant", element("div.answer", this.#text), this.#rest, this.#meta),
    );
  }

  /** Messages for the history; none if it was never answered. */
  get messages() {
    const { answer } = this.exchange;
    return answer ? [...this.input, answer] : [];
  }

  select(chosen) {
    this.#meta.ariaPressed = chosen;
  }

  start(exchange) {
    this.exchange = exchange;
    this.#text.data = "";
  }

  update() {
    const { request, state, running, text, toolCalls, toolEvents, problem, arrivals, usage } = this.exchange;
    this.element.classList.toggle("running", running);
    this.#text.appendData(text.slice(this.#text.length));
    this.#rest.replaceChildren(...toolEvents.map(toolEvent), ...toolCalls.map(toolCall), ...(problem ? [problemBlock(this.exchange)] : []));
    this.#meta.textContent = [
      request.model,
      state !== "done" && state,
      arrivals.length && `first chunk ${duration(arrivals[0])}`,
      usage && `${usage.prompt_tokens} → ${usage.completion_tokens} tokens`,
    ].filter(Boolean).join(" · ");
  }
}
