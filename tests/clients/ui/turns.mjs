// What programs do with the default model of AI SDK's provider for OpenAI, in several turns. Prints the name of each step
// that went well. It refers to the items of earlier answers by their ids, since it counts on their being stored.
// Usage: node turns.mjs BASE_URL KEY

import assert from "node:assert/strict";
import { createOpenAI } from "@ai-sdk/openai";
import { generateText, jsonSchema, stepCountIs, streamText, tool } from "ai";

const [baseURL, apiKey] = process.argv.slice(2);
const openai = createOpenAI({ baseURL, apiKey });
const schema = { type: "object", properties: { city: { type: "string" } }, required: ["city"], additionalProperties: false };
const weather = tool({ inputSchema: jsonSchema(schema), execute: async ({ city }) => `21 °C in ${city}` });
const withTool = { tools: { weather }, stopWhen: stepCountIs(3) };

async function whole(fields) {
  const answer = await generateText({ ...fields, maxRetries: 0 });
  return [answer.text, answer.responseMessages];
}

async function streamed(fields) {
  let failure;
  const answer = streamText({ ...fields, maxRetries: 0, onError: ({ error }) => (failure = error) });
  let text = "";
  for await (const piece of answer.textStream) text += piece;
  if (failure) throw failure;
  return [text, await answer.responseMessages];
}

for (const ask of [whole, streamed]) {
  for (const [model, fields] of Object.entries({ demo: {}, agent: withTool, thinker: withTool })) {
    const messages = [];
    for (const question of ["Hello", "And now?", "And then?"]) {
      messages.push({ role: "user", content: question });
      const [text, said] = await ask({ model: openai(model), messages, ...fields });
      assert.equal(text, model === "demo" ? `You said: ${question}` : "Sunny.");
      messages.push(...said);
    }
    console.log(`${ask.name}-${model}`);
  }
}
