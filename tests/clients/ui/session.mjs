// A page with useChat, and two libraries, against an own endpoint and an own model. Prints one JSON object.
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { ChatOpenAI } from "@langchain/openai";
import { generateText, streamText } from "ai";
import { JSDOM } from "jsdom";

const [, , base, key] = process.argv;
const { window } = new JSDOM("<!doctype html><div id=root></div>", { url: base });
Object.assign(globalThis, { window, document: window.document });
const { createElement } = await import("react");
const { createRoot } = await import("react-dom/client");
const { useChat } = await import("@ai-sdk/react");
const { DefaultChatTransport } = await import("ai");

const headers = { Authorization: `Bearer ${key}` };

/**
 * Send a message from a page to an address; return the assistant's parts, and the error. With `stops`, the page stops
 * as soon as it shows the call of a tool, after waiting for that.
 */
function talk(path, text, stops) {
  return new Promise((resolve) => {
    let sent = false;
    let stopped = !stops;
    const seen = new Set();
    function Page() {
      const chat = useChat({ transport: new DefaultChatTransport({ api: base + path, headers }) });
      const last = chat.messages.at(-1);
      if (last?.role === "assistant") seen.add(last.parts.map((part) => part.text ?? "").join(""));
      if (!sent) {
        sent = true;
        queueMicrotask(() => chat.sendMessage({ text }));
      } else if (!stopped && last?.parts.some((part) => part.state === "input-available")) {
        stopped = true;
        stops().then(() => chat.stop());
      } else if (chat.status === "error" || (chat.status === "ready" && last?.role === "assistant")) {
        resolve({ parts: last?.parts, error: chat.error?.message, drawn: seen.size });
      }
      return createElement("p", null, JSON.stringify(last ?? null));
    }
    createRoot(document.getElementById("root").appendChild(document.createElement("div"))).render(createElement(Page));
  });
}

const ended = async () => (await fetch(`${base}/ended`)).json();

const provider = createOpenAICompatible({ name: "ours", baseURL: `${base}/v1`, apiKey: key, includeUsage: true });
const whole = await generateText({ model: provider("support"), prompt: "Hello" });
const stream = streamText({ model: provider("support"), prompt: "Hello" });
let streamed = "";
for await (const piece of stream.textStream) streamed += piece;

const langchain = new ChatOpenAI({ model: "support", apiKey: key, configuration: { baseURL: `${base}/v1` } });
const invoked = await langchain.invoke("Hello");
let chained = "";
for await (const chunk of await langchain.stream("Hello")) chained += chunk.content;

let before;
const stopped = await talk("/slow/chat", "Where is A7?", async () => (before = await ended()));
let after = [];
for (let tries = 0; tries < 200 && !after.length; tries++) {
  after = await ended();
  await new Promise((resolve) => setTimeout(resolve, 50));
}

console.log(
  JSON.stringify({
    page: await talk("/orders/chat", "Where is A7?"),
    parcel: await talk("/parcel/chat", "Where is A7?"),
    stopped,
    ended: [before, after],
    failing: await talk("/failing/chat", "Hello"),
    sdk: [whole.text, streamed, whole.finishReason, (await stream.usage).totalTokens],
    langchain: [invoked.content, chained],
  }),
);
process.exit(0);
