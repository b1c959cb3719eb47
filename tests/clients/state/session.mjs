// What AI SDK's own provider for OpenAI does where nobody says otherwise: items are stored, and referred to by their ids.
// Usage: node session.mjs BASE_URL KEY

import assert from "node:assert/strict";
import { createOpenAI } from "@ai-sdk/openai";
import { generateText, isStepCount, stepCountIs, streamText, tool } from "ai";
import { z } from "zod";

const [baseURL, apiKey] = process.argv.slice(2);
const openai = createOpenAI({ baseURL, apiKey });
const weather = tool({
  description: "Tells the weather.",
  inputSchema: z.object({ city: z.string() }),
  execute: async ({ city }) => `Sun in ${city}`,
});
const stopWhen = (isStepCount ?? stepCountIs)(5);

for (const streamed of [false, true]) {
  const messages = [];
  for (const turn of [1, 2, 3]) {
    messages.push({ role: "user", content: "Weather?" });
    const asked = { model: openai("agent"), messages, tools: { weather }, stopWhen };
    const result = streamed ? streamText(asked) : await generateText(asked);
    assert.equal(await result.text, `turn ${turn}: Sunny.`);
    messages.push(...((await result.responseMessages) ?? (await result.response).messages));
  }
  console.log(streamed ? "streamed" : "whole");
}
