// What users do with OpenAI's Node SDK, against a running server: chat.mjs BASE_URL API_KEY MODEL.
import assert from "node:assert/strict";
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

const [baseURL, apiKey, model, packages] = process.argv.slice(2);
const { default: OpenAI } = await import(pathToFileURL(createRequire(packages + "/").resolve("openai")));
const client = new OpenAI({ baseURL, apiKey, maxRetries: 0, timeout: 60_000 });
const messages = [{ role: "user", content: "Hello! Who are you?" }];

const models = [];
for await (const entry of client.models.list()) models.push(entry.id);
assert.deepEqual(models, [model]);

const whole = await client.chat.completions.create({ model, messages, temperature: 0, max_completion_tokens: 32 });
assert.ok(whole.choices[0].message.content);

let text = "";
let usage;
const stream = await client.chat.completions.create({
  model, messages, temperature: 0, max_completion_tokens: 32, stream: true, stream_options: { include_usage: true },
});
for await (const chunk of stream) {
  text += chunk.choices[0]?.delta?.content ?? "";
  usage = chunk.usage ?? usage;
}
assert.equal(text, whole.choices[0].message.content);
assert.equal(usage.completion_tokens, whole.usage.completion_tokens);

// The client leaves in the middle; the next request is answered.
const left = await client.chat.completions.create({ model, messages, max_tokens: 200, stream: true, ignore_eos: true });
for await (const _ of left) break;
left.controller.abort();
assert.ok((await client.chat.completions.create({ model, messages, max_tokens: 4 })).choices[0]);

await assert.rejects(
  client.chat.completions.create({ model, messages, temperature: -1 }),
  (error) => error instanceof OpenAI.BadRequestError && error.param === "temperature",
);
await assert.rejects(client.models.retrieve("no-such-model"), OpenAI.NotFoundError);
console.log("ok");
