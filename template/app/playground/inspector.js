import { snippets } from "./snippets.js";
import { $, duration, element, follow, json } from "./transcript.js";

const FORMS = ["Events", "Request", "curl", "Python", "JavaScript"];
const COLUMNS = 240;
const HEIGHT = 40;

/** The engineer's side: one exchange's timing, tokens and events, and the same call as code. */
export class Inspector {
  #events = element("div.events");
  #code = element("pre");
  form = "curl";

  /** `base` is the API's address, up to /v1; `dialect()` is that of code; `keyed()` tells whether a key goes; `prices` by model. */
  constructor(base, dialect, keyed, prices) {
    this.base = base;
    this.dialect = dialect;
    this.keyed = keyed;
    this.prices = prices;
    for (const form of FORMS) {
      const radio = Object.assign(element("input"), { type: "radio", name: "form", id: form, onchange: () => this.open(form) });
      $("forms").append(element("label.choice", radio, form));
    }
    $("copy").onclick = () => this.#copy();
  }

  /** Show this exchange from its beginning. */
  show(exchange) {
    this.exchange = exchange;
    this.#events.replaceChildren();
    this.update();
  }

  /** Show the exchange as its events, as the request that was sent, or as code. */
  open(form) {
    const asEvents = form === "Events";
    this.form = form;
    $(form).checked = true;
    $("panel").replaceChildren(asEvents ? this.#events : this.#code);
    $("wrap").hidden = !asEvents;
    $("copy").textContent = `Copy ${asEvents || form === "Request" ? form.toLowerCase() : `as ${form}`}`;
    $("copied").textContent = "";
    this.update();
    $("panel").scrollTop = 0;
  }

  /** Catch up with what has come in. */
  update() {
    const { status, state, elapsed, events, arrivals, rate, usage, headers, request, finishReason } = this.exchange;
    $("state").className = state;
    $("state").textContent = `${status} ${state}${elapsed ? ` · ${arrivals.length} chunks · ${duration(elapsed)}` : ""}`;
    const model = headers.get("X-Model") ?? request.model;
    const price = usage && this.prices[model];
    const cached = usage?.prompt_tokens_details?.cached_tokens ?? 0;
    const cost = price && (usage.prompt_tokens - cached) * price.input + cached * (price.cached ?? price.input) + usage.completion_tokens * price.output;
    const facts = {
      "First chunk": arrivals.length ? duration(arrivals[0]) : null,
      "Chunks a second": rate?.toFixed(1),
      "Tokens in": usage?.prompt_tokens,
      "Tokens out": usage?.completion_tokens,
      ...(price && { "Cost in USD": (cost / 1e6).toFixed(6) }),
      "Request id": headers.get("X-Request-ID"),
      Model: model,
      "Finish reason": finishReason,
    };
    $("facts").replaceChildren(...Object.entries(facts).map(([term, fact]) => element("div", element("dt", term), element("dd", fact ?? "–"))));
    this.#draw();
    if (this.form !== "Events") this.#code.textContent = this.#text();
    else
      follow($("panel"), () => {
        for (const { at, label, line } of events.slice(this.#events.childElementCount))
          this.#events.append(element("div.event", element("span", `${at.toFixed(0)} ms`), element("b", label), element("code", ...(line.length < 4000 ? json(line) : [line]))));
      });
  }

  /** Each chunk where it arrived; a tick's height is how many came together. */
  #draw() {
    const { arrivals, elapsed } = this.exchange;
    const counts = {};
    for (const at of arrivals) {
      const column = Math.min(COLUMNS - 1, Math.floor((at / elapsed) * COLUMNS));
      counts[column] = (counts[column] ?? 0) + 1;
    }
    const most = Math.max(...Object.values(counts));
    const ticks = Object.entries(counts).map(([column, count]) => `M${+column + 0.5} ${HEIGHT}v${-HEIGHT * (0.4 + (0.6 * count) / most)}`);
    const [wait, path] = $("timeline").children;
    wait.setAttribute("width", COLUMNS * ((arrivals[0] ?? elapsed) / elapsed || 0));
    path.setAttribute("d", ticks.join(""));
  }

  #text() {
    const { request, events } = this.exchange;
    return this.form === "Events" ? events.map(({ line }) => `${line}\n\n`).join("") : snippets[this.form](request, this.dialect(), this.base, this.keyed());
  }

  async #copy() {
    try {
      await navigator.clipboard.writeText(this.#text());
      $("copied").textContent = "Copied";
    } catch {
      // A page has a clipboard over HTTPS, or on this machine.
      getSelection().selectAllChildren($("panel"));
      $("copied").textContent = "Selected: copy it with the keyboard";
    }
  }
}
