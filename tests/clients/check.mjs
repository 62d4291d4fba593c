// Node's frameworks, unchanged, against a running server:
//   npm install --prefix DIR tests/clients && node tests/clients/check.mjs BASE_URL KEY MODEL
import assert from "node:assert/strict";
import { createRequire } from "node:module";

import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { ChatOpenAI } from "@langchain/openai";
import { Output, embedMany, generateText, stepCountIs, streamText, tool } from "ai";
import OpenAI from "openai";
import { zodResponseFormat } from "openai/helpers/zod";
import { z } from "zod";

const [baseURL, apiKey, model] = process.argv.slice(2);
const question = "The weather in Oslo: 7 degrees Celsius and rain. Report it.";
const schema = z.object({ city: z.string(), celsius: z.number().int(), sky: z.enum(["sun", "rain", "snow"]) });
const weather = tool({
  description: "The weather of a city.",
  inputSchema: z.object({ city: z.string() }),
  execute: async ({ city }) => `It rains in ${city} at 7 degrees.`,
});

async function aiSdk(chat) {
  const text = await generateText({ model: chat, prompt: "Say hello.", maxOutputTokens: 16, temperature: 0 });
  assert.ok(text.text.length > 0);
  const stream = streamText({ model: chat, prompt: "Say hello.", maxOutputTokens: 16, temperature: 0 });
  let streamed = "";
  for await (const part of stream.textStream) streamed += part;
  assert.equal(streamed, text.text);
  const made = await generateText({ model: chat, prompt: question, output: Output.object({ schema }), temperature: 0 });
  assert.ok(schema.safeParse(made.output).success);
  const tools = { weather };
  const called = await generateText({ model: chat, prompt: "The weather in Oslo?", tools, toolChoice: "required", stopWhen: stepCountIs(1), temperature: 0 });
  assert.equal(called.toolCalls[0].toolName, "weather");
  const live = streamText({ model: chat, prompt: "The weather in Oslo?", tools, toolChoice: "required", stopWhen: stepCountIs(1), temperature: 0 });
  assert.deepEqual((await live.toolCalls)[0].input, called.toolCalls[0].input);
}

const compatible = createOpenAICompatible({ name: "ponder", baseURL, apiKey, supportsStructuredOutputs: true, includeUsage: true });
const official = createOpenAI({ baseURL, apiKey });
const sdk = new OpenAI({ baseURL, apiKey, maxRetries: 0 });
const checks = {
  "@ai-sdk/openai-compatible": async () => {
    await aiSdk(compatible(model));
    const { embeddings } = await embedMany({ model: compatible.textEmbeddingModel(model), values: ["a", "b"] });
    assert.equal(embeddings.length, 2);
  },
  "@ai-sdk/openai": async () => {
    await aiSdk(official.chat(model));
    await aiSdk(official.responses(model));
  },
  openai: async () => {
    const messages = [{ role: "user", content: question }];
    const parsed = await sdk.chat.completions.parse({ model, messages, response_format: zodResponseFormat(schema, "weather"), temperature: 0 });
    assert.ok(schema.safeParse(parsed.choices[0].message.parsed).success);
    const made = await sdk.responses.create({ model, input: "Say hello.", max_output_tokens: 16, temperature: 0 });
    const stream = sdk.responses.stream({ model, input: "Say hello.", max_output_tokens: 16, temperature: 0 });
    assert.equal((await stream.finalResponse()).output_text, made.output_text);
    const found = await sdk.embeddings.create({ model, input: ["a", "b"] });
    assert.equal(found.data.length, 2);
  },
  "@langchain/openai": async () => {
    const chat = new ChatOpenAI({ model, temperature: 0, maxRetries: 0, apiKey, configuration: { baseURL } });
    for (const method of ["jsonSchema", "functionCalling"]) {
      const made = await chat.withStructuredOutput(schema, { method }).invoke(question);
      assert.ok(schema.safeParse(made).success);
    }
  },
};

let failed = 0;
const versionOf = (name) => createRequire(import.meta.url).resolve.paths(name)
  .map((folder) => { try { return createRequire(import.meta.url)(`${folder}/${name}/package.json`).version; } catch { return undefined; } })
  .find(Boolean);
for (const [name, check] of Object.entries(checks)) {
  try {
    await check();
    console.log(`ok      ${name} ${versionOf(name)}`);
  } catch (error) {
    failed += 1;
    console.log(`FAILED  ${name} ${versionOf(name)}\n${error.stack}`);
  }
}
process.exit(failed ? 1 : 0);
