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
 * Each takes chat's body, a dialect, the API's address up to /v1, and whether a key goes with it.
 */
export const snippets = {
  Request: (body, { path, request }, base, keyed) => `POST ${base}${path}
Content-Type: application/json
${keyed ? "Authorization: Bearer $CALLER_KEY\n" : ""}
${pretty(request(body))}
`,

  curl: (body, { path, request }, base, keyed) => `curl --no-buffer ${shell(base + path)} \\
${keyed ? '  -H "Authorization: Bearer $CALLER_KEY" \\\n' : ""}  -H 'Content-Type: application/json' \\
  -d ${shell(pretty(request(body)))}
`,

  Python: (body, { sdk: [library, client], root, call, named, python: print, request }, base, keyed) => `# pip install ${library}
${keyed ? "import os\n\n" : ""}from ${library} import ${client}

client = ${client}(
    base_url=${JSON.stringify(root(base))},
    api_key=${keyed ? 'os.environ["CALLER_KEY"]' : '"none"'},
)
stream = client.${call}(
${Object.entries(named(request(body))).map(([name, value]) => `    ${name}=${python(value)},\n`).join("")})
for event in stream:
    ${print}
print()
`,

  JavaScript: (body, { sdk: [, client, library], root, call, javascript: print, request }, base, keyed) => `// npm install ${library}; save as chat.mjs
import ${client} from "${library}";

const client = new ${client}({
  baseURL: ${JSON.stringify(root(base))},
  apiKey: ${keyed ? 'process.env.CALLER_KEY ?? ""' : '"none"'},
});
const stream = await client.${call}(${pretty(request(body))});
for await (const event of stream) {
  ${print}
}
process.stdout.write("\\n");
`,
};
