// The official Node SDK against a running server: sdk_test.mjs BASE_URL KEY MODEL.
import assert from "node:assert/strict";
import OpenAI from "openai";

const [baseURL, apiKey, model] = process.argv.slice(2);
const client = new OpenAI({ baseURL, apiKey, maxRetries: 0 });
const messages = [{ role: "user", content: "What is the capital of France? Answer in one sentence." }];
const chat = (options = {}) => client.chat.completions.create({ model, messages, temperature: 0, max_tokens: 24, ...options });

const names = [];
for await (const entry of await client.models.list()) names.push(entry.id);
assert.ok(names.includes(model));

const whole = await chat();
const answer = whole.choices[0].message.content;
assert.match(answer, /Paris/);
assert.equal(whole.choices[0].finish_reason, "stop");

let text = "";
let usage;
for await (const chunk of await chat({ stream: true, stream_options: { include_usage: true } })) {
  text += chunk.choices[0]?.delta?.content ?? "";
  usage = chunk.usage ?? usage;
}
assert.equal(text, answer);
assert.equal(usage.completion_tokens, whole.usage.completion_tokens);

const predicted = await chat({ prediction: { type: "content", content: answer } });
assert.equal(predicted.choices[0].message.content, answer);
assert.ok(predicted.usage.completion_tokens_details.rejected_prediction_tokens >= 0);

// Sequences that run together sum alike only where the backend says so.
const { capabilities } = await client.models.retrieve(model);
const n = capabilities.includes("batch_invariance") ? 2 : 1;
assert.equal((await chat({ n: 2, temperature: 1 })).choices.length, 2);
const sampled = () => chat({ n, temperature: 1, seed: 3 });
const contents = (result) => result.choices.map((choice) => choice.message.content);
assert.deepEqual(contents(await sampled()), contents(await sampled()));

const { logprobs } = (await chat({ logprobs: true, top_logprobs: 2 })).choices[0];
assert.equal(logprobs.content[0].top_logprobs.length, 2);
assert.equal((await chat({ stop: "Paris" })).choices[0].message.content, answer.slice(0, answer.indexOf("Paris")));
const completion = await client.completions.create({ model, prompt: "The sky is", max_tokens: 3, temperature: 0 });
assert.ok(completion.choices[0].text.length > 0);

const stored = await chat({ store: true, metadata: { run: "node" } });
const trace = await client.get(`/traces/${stored.trace_id}`);
assert.equal(trace.nodes[1].text, stored.choices[0].message.content);

await assert.rejects(chat({ temperature: 7 }), (error) => error instanceof OpenAI.BadRequestError && error.param === "temperature");
await assert.rejects(chat({ model: "nope" }), OpenAI.NotFoundError);
await assert.rejects(new OpenAI({ baseURL, apiKey: "wrong", maxRetries: 0 }).models.list(), OpenAI.AuthenticationError);
const slow = { model, messages, max_tokens: 1500, ignore_eos: true };
await assert.rejects(client.chat.completions.create(slow, { timeout: 20 }), OpenAI.APIConnectionTimeoutError);

const stream = await client.chat.completions.create({ ...slow, stream: true });
for await (const _ of stream) break; // leaving the loop hangs up
const many = await Promise.all(Array.from({ length: 8 }, () => chat()));
assert.ok(many.every((result) => result.choices[0].message.content === answer));
console.log("node SDK: all checks passed");
