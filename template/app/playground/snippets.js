const pretty = (value) => JSON.stringify(value, null, 2);

/** Text as one word of a POSIX shell. */
const shell = (text) => `'${text.replaceAll("'", `'\\''`)}'`;

/** JSON as a Python literal: only three names differ. */
const python = (value) =>
  JSON.stringify(value, null, 4)
    .replace(/"(\\.|[^"\\])*"|true|false|null/g, (token) => ({ true: "True", false: "False", null: "None" })[token] ?? token)
    .replaceAll("\n", "\n    ");

/**
 * A request as text, and as code that runs as it stands. The key is read from CALLER_KEY, never written out.
 *
 * Each takes the body, the API's address up to /v1, and whether a key goes with it.
 */
export const snippets = {
  Request: (body, base, keyed) => `POST ${base}/chat/completions
Content-Type: application/json
${keyed ? "Authorization: Bearer $CALLER_KEY\n" : ""}
${pretty(body)}
`,

  curl: (body, base, keyed) => `curl --no-buffer ${shell(`${base}/chat/completions`)} \\
${keyed ? '  -H "Authorization: Bearer $CALLER_KEY" \\\n' : ""}  -H 'Content-Type: application/json' \\
  -d ${shell(pretty(body))}
`,

  Python: (body, base, keyed) => `# pip install openai
${keyed ? "import os\n\n" : ""}from openai import OpenAI

client = OpenAI(
    base_url=${JSON.stringify(base)},
    api_key=${keyed ? 'os.environ["CALLER_KEY"]' : '"none"'},
)
stream = client.chat.completions.create(
${Object.entries(body).map(([name, value]) => `    ${name}=${python(value)},\n`).join("")})
for chunk in stream:
    for choice in chunk.choices:
        print(choice.delta.content or ${body.tools ? "choice.delta.tool_calls or " : ""}"", end="", flush=True)
print()
`,

  JavaScript: (body, base, keyed) => `// npm install openai; save as chat.mjs
import OpenAI from "openai";

const client = new OpenAI({
  baseURL: ${JSON.stringify(base)},
  apiKey: ${keyed ? 'process.env.CALLER_KEY ?? ""' : '"none"'},
});
const stream = await client.chat.completions.create(${pretty(body)});
for await (const chunk of stream) {
  for (const { delta } of chunk.choices) process.stdout.write(delta.content || ${body.tools ? "JSON.stringify(delta.tool_calls) || " : ""}"");
}
process.stdout.write("\\n");
`,
};
