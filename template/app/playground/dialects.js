const usage = (given) => given && { prompt_tokens: given.input_tokens, completion_tokens: given.output_tokens };
const chunk = (delta, finish_reason) => ({ choices: [{ index: 0, delta, finish_reason }] });
const called = (index, id, name) => chunk({ tool_calls: [{ index, id, function: { name } }] });
const further = (index, part) => chunk({ tool_calls: [{ index, function: { arguments: part } }] });
const use = ({ id, function: { name, arguments: given } }) => ({ type: "tool_use", id, name, input: JSON.parse(given || "{}") });

/**
 * What differs between the dialects. Here, requests and answers are chat's:
 * `request(body)` is the same request in a dialect, `read(event)` the chat chunk for one of its events.
 * The rest is for code: the SDKs, the address that they take, the call, its arguments by name, and what prints an event.
 */
export const dialects = {
  "Chat completions": {
    path: "/chat/completions",
    request: (body) => body,
    read: (event) => event,
    sdk: ["openai", "OpenAI", "openai"],
    root: (base) => base,
    named: (body) => body,
    call: "chat.completions.create",
    python: 'for choice in event.choices:\n        print(choice.delta.content or choice.delta.tool_calls or "", end="", flush=True)',
    javascript: 'for (const { delta } of event.choices) process.stdout.write(delta.content || JSON.stringify(delta.tool_calls) || "");',
  },

  Responses: {
    path: "/responses",
    request: ({ messages, max_tokens: max_output_tokens, tools, stream_options, ...rest }) => ({
      ...rest,
      input: messages.flatMap(({ role, content, tool_calls = [], tool_call_id: call_id }) => [
        ...(call_id ? [{ type: "function_call_output", call_id, output: content }] : content ? [{ role, content }] : []),
        ...tool_calls.map(({ id, function: given }) => ({ type: "function_call", call_id: id, ...given })),
      ]),
      ...(max_output_tokens && { max_output_tokens }),
      ...(tools && { tools: tools.map((tool) => ({ type: "function", ...tool.function })) }),
      store: false,
    }),
    read({ type, delta, item, output_index: index, response }) {
      if (type === "response.output_text.delta" || type === "response.refusal.delta") return chunk({ content: delta });
      if (type === "response.output_item.added" && item.type === "function_call") return called(index, item.call_id, item.name);
      if (type === "response.function_call_arguments.delta") return further(index, delta);
      if (type === "response.failed") return { title: "Failed", error: response.error };
      if (/completed|incomplete/.test(type)) return { ...chunk({}, response.status), usage: usage(response.usage) };
    },
    sdk: ["openai", "OpenAI", "openai"],
    root: (base) => base,
    named: (body) => body,
    call: "responses.create",
    python: 'if event.type.endswith(".delta"):\n        print(event.delta, end="", flush=True)',
    javascript: 'if (event.type.endsWith(".delta")) process.stdout.write(event.delta);',
  },

  Messages: {
    path: "/messages",
    request({ messages, max_tokens = 1024, tools, stream_options, ...rest }) {
      const [first] = messages;
      return {
        ...rest,
        max_tokens,
        ...(first.role === "system" && { system: first.content }),
        messages: messages.filter(({ role }) => role !== "system").map(({ role, content, tool_calls, tool_call_id }) =>
          tool_call_id
            ? { role: "user", content: [{ type: "tool_result", tool_use_id: tool_call_id, content }] }
            : { role, content: tool_calls ? [...(content ? [{ type: "text", text: content }] : []), ...tool_calls.map(use)] : content }),
        ...(tools && { tools: tools.map(({ function: { parameters, ...tool } }) => ({ ...tool, input_schema: parameters })) }),
      };
    },
    read({ type, index, delta, content_block: block, error, usage: used }) {
      if (error) return { title: error.type, error };
      if (block?.type === "tool_use") return called(index, block.id, block.name);
      if (delta?.text) return chunk({ content: delta.text });
      if (delta?.partial_json) return further(index, delta.partial_json);
      if (type === "message_delta") return { ...chunk({}, delta.stop_reason), usage: usage(used) };
    },
    sdk: ["anthropic", "Anthropic", "@anthropic-ai/sdk"],
    root: (base) => base.slice(0, -3),
    // Anthropic's SDK for Python has no temperature since version 2.
    named: ({ temperature, ...rest }) => ({ ...rest, ...(temperature !== undefined && { extra_body: { temperature } }) }),
    call: "messages.create",
    python: 'if event.type == "content_block_delta":\n        print(getattr(event.delta, "text", event.delta), end="", flush=True)',
    javascript: 'if (event.type === "content_block_delta") process.stdout.write(event.delta.text ?? JSON.stringify(event.delta));',
  },
};
