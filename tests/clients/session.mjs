// What a program does with OpenAI's client for Node. Prints the name of each step that went well.
// Usage: node session.mjs BASE_URL KEY

import assert from "node:assert/strict";
import OpenAI from "openai";

const [baseURL, apiKey] = process.argv.slice(2);
const client = new OpenAI({ baseURL, apiKey });

const messages = [{ role: "user", content: "Hello" }];
const schema = { type: "object", properties: { city: { type: "string" } }, required: ["city"], additionalProperties: false };
const weather = { type: "function", function: { name: "weather", parameters: schema } };
const responseFormat = { type: "json_schema", json_schema: { name: "place", schema, strict: true } };
const said = {
  demo: "You said: Hello",
  stub: "Hello from the stub. Grüße, 世界! 👋",
  anthropic: "Hello from the stub. Grüße, 世界! 👋",
};

async function collected(stream) {
  const chunks = [];
  for await (const chunk of stream) chunks.push(chunk);
  return chunks;
}

async function caught(kind, code, call) {
  try {
    await call();
  } catch (error) {
    assert(error instanceof kind, error);
    assert.equal(error.code, code);
    return error;
  }
  assert.fail(`no ${kind.name}`);
}

async function chat() {
  for (const [model, text] of Object.entries(said)) {
    const answer = await client.chat.completions.create({ model, messages });
    assert.equal(answer.object, "chat.completion");
    assert.equal(answer.choices[0].message.content, text);
    assert.equal(answer.choices[0].finish_reason, "stop");
    assert.equal(answer.usage.total_tokens, answer.usage.prompt_tokens + answer.usage.completion_tokens);
    assert(answer._request_id);
  }
}

async function stream() {
  for (const [model, text] of Object.entries(said)) {
    const chunks = await collected(await client.chat.completions.create({ model, messages, stream: true }));
    assert.equal(chunks.map((chunk) => chunk.choices[0].delta.content ?? "").join(""), text);
    assert.equal(chunks.at(-1).choices[0].finish_reason, "stop");
    const options = { stream: true, stream_options: { include_usage: true } };
    const last = (await collected(await client.chat.completions.create({ model, messages, ...options }))).at(-1);
    assert.deepEqual(last.choices, []);
    assert(last.usage.completion_tokens > 0);
  }
}

async function odd_events() {
  const chunks = await collected(await client.chat.completions.create({ model: "odd", messages, stream: true }));
  const choices = chunks.flatMap((chunk) => chunk.choices);
  assert.equal(choices.map((choice) => choice.delta.content ?? "").join(""), said.stub);
  assert.deepEqual(choices.map((choice) => choice.finish_reason).filter(Boolean), ["stop"]);
}

async function stream_helpers() {
  for (const [model, text] of Object.entries(said)) {
    const runner = client.chat.completions.stream({ model, messages });
    let heard = "";
    runner.on("content", (delta) => (heard += delta));
    assert.equal(await runner.finalContent(), text);
    assert.equal(heard, text);
  }
}

async function tools() {
  for (const [model, city] of Object.entries({ demo: "demo", tools: "Zürich", "tools-anthropic": "Zürich" })) {
    const first = await client.chat.completions.create({ model, messages, tools: [weather] });
    assert.equal(first.choices[0].finish_reason, "tool_calls");
    const [call] = first.choices[0].message.tool_calls;
    assert.deepEqual(JSON.parse(call.function.arguments), { city });
    const result = { role: "tool", tool_call_id: call.id, content: "sunny" };
    const history = [...messages, first.choices[0].message, result];
    const second = await client.chat.completions.create({ model, messages: history, tools: [weather] });
    assert.equal(second.choices[0].finish_reason, "stop");
    assert(second.choices[0].message.content);
    const final = await client.chat.completions.stream({ model, messages, tools: [weather] }).finalChatCompletion();
    assert.deepEqual(JSON.parse(final.choices[0].message.tool_calls[0].function.arguments), { city });
  }
}

async function parse() {
  const options = { model: "demo", messages, response_format: responseFormat };
  const answer = await client.chat.completions.parse(options);
  assert.equal(typeof answer.choices[0].message.parsed.city, "string");
  const streamed = await client.chat.completions.stream(options).finalChatCompletion();
  assert.equal(typeof streamed.choices[0].message.parsed.city, "string");
}

async function embeddings() {
  for (const model of ["demo", "stub"]) {
    for (const form of [{}, { encoding_format: "float" }]) { // else it asks for base64, and decodes it
      const input = ["Hello", "World"];
      const answer = await client.embeddings.create({ model, input, dimensions: 8, ...form });
      assert.deepEqual(answer.data.map((row) => row.embedding.length), [8, 8]);
      assert.notDeepEqual(answer.data[0].embedding, answer.data[1].embedding);
      assert(answer.usage.prompt_tokens > 0);
    }
  }
}

async function models() {
  const names = (await collected(client.models.list())).map((model) => model.id);
  for (const name of Object.keys(said)) assert(names.includes(name));
  assert.equal((await client.models.retrieve("demo")).id, "demo");
  await caught(OpenAI.NotFoundError, "model_not_found", () => client.models.retrieve("nowhere/none"));
}

async function errors() {
  const once = client.withOptions({ maxRetries: 0 });
  const ask = (model, fields = {}) => () => once.chat.completions.create({ model, messages, ...fields });
  const stranger = once.withOptions({ apiKey: "sk-unknown" });
  await caught(OpenAI.AuthenticationError, "invalid_api_key", () => stranger.models.list());
  await caught(OpenAI.NotFoundError, "model_not_found", ask("none"));
  const unfit = await caught(OpenAI.UnprocessableEntityError, "invalid_request", ask("demo", { temperature: 3 }));
  assert.equal(unfit.param, "temperature");
  const refused = await caught(OpenAI.BadRequestError, "context_length_exceeded", ask("refusing"));
  assert.match(refused.message, /told to fail/);
  const busy = await caught(OpenAI.RateLimitError, "provider_rate_limited", ask("busy-for-long"));
  assert.equal(busy.headers.get("retry-after"), "600");
  assert.equal(busy.requestID, busy.headers.get("x-request-id"));
  await caught(OpenAI.InternalServerError, "provider_error", ask("broken"));
  await caught(OpenAI.InternalServerError, "provider_error", ask("broken", { stream: true }));
  const received = [];
  await caught(OpenAI.APIError, "provider_error", async () => {
    for await (const chunk of await ask("cut", { stream: true })()) received.push(chunk);
  });
  assert(received.length > 0, "it broke off in mid-stream");
}

async function retries() {
  const askedAt = performance.now();
  const answer = await client.chat.completions.create({ model: "busy", messages });
  assert.equal(answer.choices[0].message.content, said.stub);
  assert(performance.now() - askedAt >= 1000, "Retry-After said one second");
  // x-should-retry says no: the test counts what reaches the provider.
  await caught(OpenAI.InternalServerError, "provider_misconfigured", () =>
    client.chat.completions.create({ model: "misconfigured", messages }),
  );
}

async function cancellation() {
  for await (const _ of await client.chat.completions.create({ model: "endless", messages, stream: true })) break;
  const runner = client.chat.completions.stream({ model: "endless", messages });
  runner.on("content", () => runner.abort());
  await assert.rejects(runner.done(), OpenAI.APIUserAbortError);
  const waiting = { model: "silent", messages };
  const timeout = { timeout: 500, maxRetries: 0 };
  await assert.rejects(client.chat.completions.create(waiting, timeout), OpenAI.APIConnectionTimeoutError);
  const signal = AbortSignal.timeout(500);
  await assert.rejects(client.chat.completions.create(waiting, { signal }), OpenAI.APIUserAbortError);
}

for (const step of [chat, stream, odd_events, stream_helpers, tools, parse, embeddings, models, errors, retries, cancellation]) {
  await step();
  console.log(step.name);
}
