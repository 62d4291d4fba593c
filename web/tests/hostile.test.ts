// Answers, traces and streams of a server that means harm or breaks.
import assert from "node:assert/strict";
import { after, before, beforeEach, test } from "node:test";
import type { Browser, Page } from "playwright-core";
import { Fake, says } from "./fake";
import { launch, open, type Opened } from "./support";

const HOSTILE = [
  "<script>window.pwned = 1</script>",
  '<img src="x" onerror="window.pwned = 2">',
  "<svg onload=window.pwned=3></svg>",
  "[click](javascript:window.pwned=4)",
  "![picture](http://evil.example/track.png)",
  '<iframe srcdoc="<script>parent.pwned=5</script>"></iframe>',
  '<form action="http://evil.example"><button id="submit">go</button></form>',
  '<style>body { display: none }</style><a href="data:text/html,x">data</a>',
  "```html\n<script>window.pwned = 6</script>\n```",
  '```"><img src=x onerror=window.pwned=7>\ncode\n```',
  "| <b onclick=window.pwned=8>x</b> |\n|---|\n| <math><mtext></mtext></math> |",
].join("\n\n");

let browser: Browser;
let fake: Fake;
let opened: Opened;

before(async () => {
  browser = await launch();
  fake = await Fake.start();
});

after(async () => {
  await browser.close();
  fake.stop();
});

beforeEach(async () => {
  await opened?.page.context().close();
  fake.asked.length = 0;
  fake.scripts = [says("ok")];
  fake.routes = {};
  opened = await open(browser, fake.url);
});

async function say(page: Page, text: string): Promise<void> {
  await page.fill("#composer-text", text);
  await page.press("#composer-text", "Enter");
}

/** Nothing of a text may have become more than text. */
async function checkHarmless(page: Page): Promise<void> {
  await page.waitForTimeout(300);
  const found = await page.evaluate(() => ({
    pwned: (window as unknown as { pwned?: number }).pwned,
    elements: [...document.querySelectorAll("main *")].filter(
      (it) =>
        /^(script|iframe|form|style|img|object|embed|math|link|base)$/i.test(it.tagName) &&
        !it.matches("form.composer, form.search-ask, form.correction, form.result"),
    ).length,
    handlers: [...document.querySelectorAll("main *")].filter((it) =>
      [...it.attributes].some((attribute) => /^on/i.test(attribute.name)),
    ).length,
    links: [...document.querySelectorAll(".markdown a[href]")].map((it) =>
      it.getAttribute("href"),
    ),
  }));
  assert.equal(found.pwned, undefined);
  assert.equal(found.elements, 0);
  assert.equal(found.handlers, 0);
  for (const link of found.links) assert.match(link ?? "", /^(https?|mailto):/);
  assert.deepEqual(opened.faults, []);
}

test("an answer is never run as HTML", async () => {
  const { page } = opened;
  fake.scripts = [says(HOSTILE)];
  await say(page, HOSTILE);
  await page.waitForSelector(".turn.assistant .actions");
  await checkHarmless(page);
  const text = await page.textContent(".turn.assistant .markdown");
  assert.match(text ?? "", /window\.pwned = 1/, "raw HTML is shown as it was written");
});

test("neither is a trace, nor what its tree says", async () => {
  const { page } = opened;
  const nodes = [null, 0, 0].map((parent, id) => ({
    parent,
    text: id === 0 ? "" : HOSTILE,
    token_ids: [1, 2],
    token_logprobs: [-1, -1],
    end: id === 0 ? null : "stop",
    logprob: -2,
    score: 0.5,
    reward_parts: { [HOSTILE]: 0.5, b: 0.5 },
    outcome: null,
    value: 0.5,
    visit_count: 1,
    is_pruned: false,
    is_rollout: false,
  }));
  const shared = { id: "t", model: HOSTILE, strategy: HOSTILE, tags: [HOSTILE], created: 0 };
  const listed = { ...shared, value: 0.5, outcome: null, num_nodes: 2, num_tokens: 4 };
  fake.routes = {
    "/v1/traces": { data: [listed], has_more: false, next: null },
    "/v1/traces/t": {
      ...shared,
      schema: "ponder.trace.v1",
      request: { messages: [{ role: HOSTILE, content: HOSTILE }] },
      nodes,
      chosen: [1],
      stopped: HOSTILE,
      outcome: null,
      usage: { prompt_tokens: 1, completion_tokens: 4 },
      timings: { total_ms: 10 },
    },
  };
  await page.goto(`${fake.url}#/traces`);
  await page.click("tbody tr a");
  await page.waitForSelector(".pane canvas");
  await page.focus(".pane canvas");
  await page.keyboard.press("End");
  await checkHarmless(page);
});

test("neither is a stream of a search", async () => {
  const { page } = opened;
  const event = (search_event: unknown) => ({ choices: [], search_event });
  fake.scripts = [
    {
      chunks: [
        event({ event: "spawn", node: 1, parent: 0, text: HOSTILE, tokens: 3 }),
        event({ event: "score", node: 1, value: 0.5 }),
        event({ event: "vote", answer: HOSTILE, votes: 1, total: 1 }),
        event({ event: "best", node: 1, value: 0.5 }),
        ...says(HOSTILE).chunks,
      ],
    },
  ];
  await page.goto(`${fake.url}#/search`);
  await page.fill("#search-prompt", "x");
  await page.keyboard.press("Enter");
  await page.waitForSelector(".state.done");
  await checkHarmless(page);
});

test("an answer that is cut says so, and is asked again", async () => {
  const { page } = opened;
  fake.scripts = [{ chunks: says("half an answer").chunks.slice(0, 1), end: "cut" }, says("whole")];
  await say(page, "x");
  await page.waitForSelector(".turn.assistant .error");
  assert.match((await page.textContent(".turn.assistant .markdown")) ?? "", /half an answer/);
  await page.click(".turn.assistant .error button");
  await page.waitForFunction(() => /whole/.test(document.querySelector(".markdown")!.textContent!));
  assert.equal(await page.textContent(".variants"), "Answer before2/2Next answer");
});

test("an answer that does not end can be stopped", async () => {
  const { page } = opened;
  fake.scripts = [{ chunks: says("on and on").chunks.slice(0, 1), end: "hang" }];
  await say(page, "x");
  await page.waitForSelector(".turn.assistant .markdown");
  await page.click(".composer button");
  await page.waitForSelector(".turn.assistant .actions");
  assert.match((await page.textContent(".turn.assistant .actions")) ?? "", /stopped/);
});

test("thoughts are folded, calls are shown and answered", async () => {
  const { page } = opened;
  const call = { index: 0, id: "c1", function: { name: "weather", arguments: '{"city": ' } };
  const rest = { index: 0, function: { arguments: '"Bern"}' } };
  const delta = (it: unknown, finish: string | null = null) => ({
    choices: [{ index: 0, delta: it, finish_reason: finish }],
  });
  fake.scripts = [
    {
      chunks: [
        delta({ reasoning_content: "They want the weather." }),
        delta({ tool_calls: [call] }),
        delta({ tool_calls: [rest] }),
        delta({}, "tool_calls"),
      ],
    },
    says("It rains."),
  ];
  await page.click(".settings-toggle");
  const tools = '[{"type": "function", "function": {"name": "weather"}}]';
  await page.getByLabel("functions that the model may call").fill(tools);
  await page.getByLabel("JSON schema of the answer").fill('{"type": "object"}');
  await say(page, "Weather?");
  await page.waitForSelector(".calls input");
  assert.equal(await page.isVisible(".thought .markdown"), false);
  await page.click(".thought summary");
  assert.equal(await page.isVisible(".thought .markdown"), true);
  await page.fill(".calls input", "rain");
  await page.press(".calls input", "Enter");
  await page.waitForSelector("text=It rains.");
  const [first, second] = fake.asked;
  assert.deepEqual(first!["tools"], JSON.parse(tools));
  assert.deepEqual((first!["response_format"] as { type: string }).type, "json_schema");
  const messages = second!["messages"] as { role: string; tool_call_id?: string }[];
  assert.deepEqual(
    messages.map((message) => message.role),
    ["user", "assistant", "tool"],
  );
  assert.equal(messages[2]!.tool_call_id, "c1");
});

test("code that the server ran is told beside the answer", async () => {
  const { page } = opened;
  const output = {
    type: "code_interpreter",
    code: "print(6 * 7)\n",
    output: "42\n",
    status: "completed",
    text: "\n```output\n42\n```\n",
  };
  const [text, end] = says("```python\nprint(6 * 7)\n```\n").chunks;
  const chunk = { choices: [{ index: 0, delta: {}, ponder_tool_outputs: [output] }] };
  fake.scripts = [{ chunks: [text, chunk, end] }];
  await say(page, "x");
  await page.waitForSelector(".outputs");
  await page.click(".outputs summary");
  assert.match((await page.textContent(".outputs .printed")) ?? "", /42/);
});

test("what is wrong with a setting is told before anything is asked", async () => {
  const { page } = opened;
  await page.click(".settings-toggle");
  await page.getByLabel("temperature").fill("warm");
  await say(page, "x");
  await page.waitForSelector("text=Temperature is not a number: warm");
  assert.equal(fake.asked.length, 0);
});
