import { dialects } from "./dialects.js";
import { Exchange } from "./exchange.js";
import { Inspector } from "./inspector.js";
import { $, Turn, follow } from "./transcript.js";

const base = new URL("../v1", import.meta.url).href;
const config = await (await fetch(new URL("config.json", import.meta.url))).json();
const dialect = () => dialects[$("dialect").value];
const prices = Object.fromEntries(config.models.map(({ name, price }) => [name, price]));
const inspector = new Inspector(base, dialect, () => config.key_required || $("key").value !== "", prices);
const wide = matchMedia("(min-width: 56rem)");
const CITY = { type: "object", properties: { city: { type: "string" } } };

let turns = [];
/** Results for the last answer's tool calls, as far as they have been typed. */
let results = [];

const last = () => turns.at(-1)?.exchange;
const pendingCall = () => (last()?.running ? undefined : last()?.toolCalls[results.length]);

/** The tools in their field; none, and a field that says why, if they can't be read. */
function tools() {
  let list = [];
  let fault = "";
  try {
    list = [JSON.parse($("tools").value.trim() || "[]")].flat();
  } catch ({ message }) {
    fault = message;
  }
  $("tools").setCustomValidity(fault);
  $("offered").textContent = fault || `${list.length || "None"} offered`;
  return list;
}

/** A request's body: what the person set, and nothing else. */
function body(...messages) {
  const system = $("system").value.trim();
  const number = (id) => $(id).value && { [id]: $(id).valueAsNumber };
  const offered = tools();
  return {
    model: $("model").value,
    messages: [...(system ? [{ role: "system", content: system }] : []), ...messages],
    ...number("temperature"),
    ...number("max_tokens"),
    ...(offered.length && { tools: offered }),
    stream: true,
    stream_options: { include_usage: true },
  };
}

/** Show one turn's exchange; before the first turn, the one that would be sent now. */
function select(turn) {
  for (const one of turns) one.select(one === turn);
  inspector.show(turn?.exchange ?? new Exchange(body({ role: "user", content: $("message").value || "Hello!" }), dialect()));
}

/** Make the controls fit what can be done now. */
function settle() {
  const call = pendingCall();
  $("send").textContent = last()?.running ? "Stop" : "Send";
  $("retry").hidden = !turns.length || last().running;
  $("start").hidden = turns.length > 0;
  $("wanted").textContent = call ? `Result of ${call.function.name}` : "Message";
}

/** Ask for the last turn's answer, anew if it has one. */
async function run() {
  const turn = turns.at(-1);
  const exchange = new Exchange(body(...turns.slice(0, -1).flatMap(({ messages }) => messages), ...turn.input), dialect());
  let frame = 0;
  const draw = () => {
    frame = 0;
    follow($("messages"), () => turn.update());
    inspector.update();
  };
  results = [];
  turn.start(exchange);
  const sent = exchange.send(base, $("key").value, () => (frame ||= requestAnimationFrame(draw)));
  select(turn);
  settle();
  draw();
  $("messages").scrollTop = $("messages").scrollHeight;
  $("announcer").textContent = "Waiting for the answer";
  await sent;
  settle();
  // The button that was pressed may be gone, and a tool's result is typed next.
  if (pendingCall() || document.activeElement === document.body) $("message").focus();
  // Told once, at the end: a live region over the stream would read every chunk aloud.
  const { state, problem, text, toolCalls } = exchange;
  const calls = toolCalls.map((call) => `Tool call ${call.function.name}`);
  $("announcer").textContent = [state, problem?.error.message ?? text.slice(0, 600), ...calls].join(". ");
}

function say(text) {
  if (!$("composer").reportValidity()) return;
  $("message").value = "";
  const call = pendingCall();
  if (call) results.push({ role: "tool", tool_call_id: call.id, content: text });
  if (call && pendingCall()) return settle();
  const turn = new Turn(call ? results : [{ role: "user", content: text }], () => {
    select(turn);
    $("swap").checked = true;
  });
  if (!turns.length) inspector.open("Events");
  turns.push(turn);
  $("turns").append(turn.element);
  run();
}

$("composer").onsubmit = (event) => {
  event.preventDefault();
  if (last()?.running) last().stop();
  else if ($("message").value.trim()) say($("message").value);
};
$("message").onkeydown = (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  if (!last()?.running) $("composer").requestSubmit();
};
document.onkeydown = ({ key }) => {
  if (key === "Escape") last()?.stop();
};
document.oninput = () => {
  if (!turns.length) select();
};
// A field in a closed part of the page can't be pointed at.
document.addEventListener("invalid", ({ target }) => {
  $("swap").checked = false;
  target.closest("details").open = true;
}, true);
$("retry").onclick = () => {
  $("message").focus();
  if ($("composer").reportValidity()) run();
};
$("clear").onclick = () => {
  last()?.stop();
  turns = [];
  results = [];
  $("tools").value = "";
  tools();
  $("turns").replaceChildren();
  select();
  settle();
  $("message").focus();
};
$("hello").onclick = () => say("Say hello in five languages, each on its own line.");
$("weather").onclick = () => {
  $("tools").value = JSON.stringify([{ type: "function", function: { name: "get_weather", parameters: CITY } }], null, 2);
  say("What is the weather in Lisbon?");
};
$("tools").oninput = tools;
$("dialect").onchange = () => inspector.update();

$("address").textContent = base;
$("key").value = sessionStorage.getItem("caller-key");
$("key").oninput = () => sessionStorage.setItem("caller-key", $("key").value.trim());
$("key").placeholder = `${config.key_required ? "required; " : ""}kept for this tab only`;
for (const [id, [min, max]] of Object.entries(config.limits)) Object.assign($(id), { min, max, placeholder: `not set, ${min} to ${max}` });
for (const name in dialects) $("dialect").add(new Option(name));
for (const { name, needs, kind } of config.models) {
  const about = needs ? ` (set ${needs} to use it)` : { demo: " (echoes what you say)", own: " (own code)" }[kind] ?? "";
  $("model").add(new Option(name + about, name));
}
const ready = config.models.filter(({ needs }) => !needs).map(({ name }) => name);
$("model").value = ready.includes(config.default_model) ? config.default_model : (ready[0] ?? config.default_model);
wide.onchange = () => ($("settings").open = wide.matches);
wide.onchange();
select();
inspector.open("curl");
if (wide.matches) $("message").focus();
