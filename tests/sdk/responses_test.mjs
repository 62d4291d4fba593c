// OpenAI's Responses API by the official Node SDK: responses_test.mjs BASE_URL KEY MODEL.
import assert from "node:assert/strict";
import OpenAI from "openai";

const [baseURL, apiKey, model] = process.argv.slice(2);
const client = new OpenAI({ baseURL, apiKey, maxRetries: 0 });
const input = "What is the capital of France? Answer in one sentence.";
const body = { model, input, temperature: 0, max_output_tokens: 24 };
const create = (options = {}) => client.responses.create({ ...body, ...options });
const can = (await client.models.retrieve(model)).capabilities;

const whole = await create();
const answer = whole.output_text;
assert.match(answer, /Paris/);
assert.equal(whole.status, "completed");

const kinds = [];
let text = "";
for await (const event of await create({ stream: true })) {
  assert.equal(event.sequence_number, kinds.length);
  kinds.push(event.type);
  if (event.type === "response.output_text.delta") text += event.delta;
}
assert.equal(text, answer);
assert.deepEqual(kinds.slice(0, 4), ["response.created", "response.in_progress", "response.output_item.added", "response.content_part.added"]);
assert.deepEqual(kinds.slice(-4), ["response.output_text.done", "response.content_part.done", "response.output_item.done", "response.completed"]);
const helper = client.responses.stream(body);
assert.equal((await helper.finalResponse()).output_text, answer);

assert.equal((await client.responses.retrieve(whole.id)).output_text, answer);
const items = [];
for await (const item of client.responses.inputItems.list(whole.id)) items.push(item);
assert.equal(items[0].content[0].text, input);
const follow = await create({ input: "And of Italy?", previous_response_id: whole.id });
assert.ok(follow.usage.input_tokens > whole.usage.input_tokens);
await client.responses.delete(whole.id);
await assert.rejects(client.responses.retrieve(whole.id), OpenAI.NotFoundError);

let queued = await create({ background: true });
while (["queued", "in_progress"].includes(queued.status)) queued = await client.responses.retrieve(queued.id);
assert.equal(queued.output_text, answer);
const slow = await create({ background: true, max_output_tokens: 1500, ignore_eos: true });
assert.equal((await client.responses.cancel(slow.id)).status, "cancelled");

const stream = await create({ background: true, stream: true });
let id;
for await (const event of stream) {
  id = event.response.id;
  break; // leaving the loop hangs up, and ends nothing
}
text = "";
for await (const event of await client.responses.retrieve(id, { stream: true })) {
  if (event.type === "response.output_text.delta") text += event.delta;
}
assert.equal(text, answer);

await assert.rejects(create({ temperature: 7 }), (error) => error instanceof OpenAI.BadRequestError && error.param === "temperature");
await assert.rejects(create({ tools: [{ type: "web_search" }] }), (error) => error.param === "tools[0].type");
if (can.includes("constraints")) {
  const schema = { type: "object", properties: { city: { type: "string" } }, required: ["city"], additionalProperties: false };
  const format = { type: "json_schema", name: "place", strict: true, schema };
  const shaped = await client.responses.parse({ ...body, input: "Oslo is in Norway. As JSON.", text: { format }, max_output_tokens: 64 });
  assert.equal(typeof shaped.output_parsed.city, "string");
}
const parameters = { type: "object", properties: { city: { type: "string" } }, required: ["city"], additionalProperties: false };
try {
  const tools = [{ type: "function", name: "get_weather", description: "The weather of a city.", strict: true, parameters }];
  const called = await create({ input: "How is the weather in Oslo?", tools, tool_choice: "required", max_output_tokens: 64 });
  const call = called.output.find((item) => item.type === "function_call");
  assert.equal(typeof JSON.parse(call.arguments).city, "string");
} catch (error) {
  // Some models have no form for calls, and say so.
  const isKnown = ["tools", "tool_choice"].includes(error.param) || error.code === "unsupported_capability";
  assert.ok(error instanceof OpenAI.BadRequestError && isKnown, error);
}
console.log("Responses by the Node SDK: all checks passed");
