// The page in front of a real server with a small model.
import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { after, before, beforeEach, test } from "node:test";
import type { Browser, Page } from "playwright-core";
import { launch, open, type Opened, PATIENCE, Ponder } from "./support";

const QUESTION = "What is 17 + 25 - 9? Think step by step.";

let browser: Browser;
let ponder: Ponder;
let opened: Opened;

before(async () => {
  browser = await launch();
  ponder = await Ponder.start("--enable-lora", "--lora-root", ".");
});

after(async () => {
  await browser.close();
  await ponder.stop();
});

beforeEach(async () => {
  await opened?.page.context().close();
  opened = await open(browser, ponder.url);
});

async function say(page: Page, text: string): Promise<void> {
  await page.fill("#composer-text", text);
  await page.press("#composer-text", "Enter");
}

async function answered(page: Page): Promise<void> {
  const last = ".turns-column > :last-child";
  await page.waitForSelector(`${last}.assistant .actions`, { timeout: PATIENCE });
}

/** Few tokens, so that a busy machine is done soon. */
async function shortAnswers(page: Page): Promise<void> {
  await page.click(".settings-toggle");
  await page.getByLabel("longest answer").fill("24");
  await page.getByLabel("seed").fill("7");
  await page.click(".settings-toggle");
}

async function search(page: Page, strategy: string, tokens: string): Promise<void> {
  await page.goto(`${ponder.url}#/search`);
  await page.click(".search-settings > summary");
  const form = page.locator("fieldset").first();
  await form.getByLabel("Strategy").selectOption(strategy);
  await form.getByLabel("token budget").fill(tokens);
  await page.getByLabel("longest answer").fill("60");
  await page.getByLabel("seed").fill("3");
  await page.click(".search-settings > summary");
  await page.fill("#search-prompt", QUESTION);
  await page.keyboard.press("Enter");
}

function figure(page: Page, name: string): Promise<number> {
  const of = (name: string) => {
    const terms = [...document.querySelectorAll(".stats dt")];
    const term = terms.find((it) => it.textContent === name);
    return Number.parseFloat(term?.nextElementSibling?.textContent ?? "-1");
  };
  return page.evaluate(of, name);
}

test("a chat streams, is asked again, edited, kept and exported", async () => {
  const { page, faults } = opened;
  await shortAnswers(page);
  await say(page, "Name three colours.");
  await answered(page);
  const first = await page.textContent(".assistant .markdown");
  assert.ok(first!.length > 5, first!);
  // The same seed gives the same answer.
  await page.click("button[title=Regenerate]");
  await page.waitForSelector(".variants", { timeout: PATIENCE });
  await answered(page);
  assert.equal(await page.textContent(".assistant .markdown"), first);
  await page.hover(".turn.user");
  await page.click("button[title=Edit]");
  await page.fill(".turn.user textarea", "Name three animals.");
  await page.click(".edit-actions .primary");
  await answered(page);
  assert.notEqual(await page.textContent(".assistant .markdown"), first);
  await page.reload();
  await page.click(".history li a");
  assert.match((await page.textContent(".turn.user")) ?? "", /three animals/);
  const [file] = await Promise.all([page.waitForEvent("download"), page.click("text=Export")]);
  const path = await file.path();
  assert.match(await readFile(path, "utf8"), /three animals/);
  await page.setInputFiles(".history-files input", path);
  await page.waitForFunction(() => document.querySelectorAll(".history li").length === 2);
  assert.deepEqual(faults, []);
});

test("a stream can be stopped", async () => {
  const { page } = opened;
  await say(page, "Count to one hundred, with a sentence about each number.");
  await page.waitForSelector(".assistant .markdown", { timeout: PATIENCE });
  await page.click(".composer button");
  await answered(page);
  assert.match((await page.textContent(".assistant .actions")) ?? "", /stopped/);
});

test("a search shows its tree as it grows, by pointer, keyboard and slider", async () => {
  const { page, faults } = opened;
  await search(page, "mcts", "400");
  await page.waitForSelector(".state.running");
  await page.waitForFunction(
    () => Number.parseInt(document.querySelector(".stats dd")?.textContent ?? "0") > 0,
    undefined,
    { timeout: PATIENCE },
  );
  await page.waitForSelector(".state.done", { timeout: PATIENCE });
  const nodes = await figure(page, "nodes");
  assert.ok(nodes >= 5, `${nodes} nodes`);
  assert.ok((await figure(page, "tokens")) <= 400, "the budget holds");
  assert.ok((await figure(page, "KV blocks")) > 0);
  assert.match((await page.textContent(".branch h3")) ?? "", /The answer/);
  // The keyboard walks from the root along the answer.
  await page.focus(".pane canvas");
  await page.keyboard.press("Home");
  await page.keyboard.press("ArrowRight");
  assert.match((await page.textContent("[aria-live]")) ?? "", /^Step 1, /);
  await page.keyboard.press("Enter");
  assert.ok(await page.evaluate(() => document.activeElement?.className === "branch"));
  // A replay begins with less than all.
  await page.fill(".replay input", "0");
  assert.ok((await figure(page, "nodes")) < nodes);
  await page.click(".replay button[title=Replay]");
  await page.waitForFunction(
    (all) => Number.parseInt(document.querySelector(".stats dd")!.textContent!) === all,
    nodes,
    { timeout: PATIENCE },
  );
  assert.deepEqual(faults, []);
});

test("two strategies run side by side", async () => {
  const { page, faults } = opened;
  await page.goto(`${ponder.url}#/search`);
  await page.click(".search-settings > summary");
  await page.click("text=Compare two strategies");
  await page.locator("fieldset").nth(1).getByLabel("token budget").fill("150");
  await page.click(".search-settings > summary");
  await search(page, "beam", "150");
  const areDone = () => document.querySelectorAll(".state.done").length === 2;
  await page.waitForFunction(areDone, undefined, { timeout: PATIENCE });
  const names = await page.locator(".state strong").allTextContents();
  assert.deepEqual(names, ["beam", "best of n"]);
  assert.deepEqual(faults, []);
});

test("a chat with a strategy shows its tree, also later", async () => {
  const { page, faults } = opened;
  await shortAnswers(page);
  await page.click(".settings-toggle");
  await page.getByLabel("Strategy").selectOption("best_of_n");
  await page.locator(".panel").getByLabel("n", { exact: true }).fill("3");
  await say(page, QUESTION);
  await page.waitForSelector(".answer-tree canvas");
  await answered(page);
  assert.match((await page.textContent(".answer-tree .hint")) ?? "", /^3 nodes/);
  await page.reload();
  await page.click(".history li a");
  await page.click(".answer-tree button");
  await page.waitForSelector(".answer-tree canvas");
  assert.deepEqual(faults, []);
});

test("a trace is filtered, opened, graded and exported", async () => {
  const { page, faults } = opened;
  await search(page, "vm_mcts", "300");
  await page.waitForSelector(".state.done", { timeout: PATIENCE });
  await page.goto(`${ponder.url}#/traces`);
  await page.getByLabel("Strategy").selectOption("vm_mcts");
  await page.waitForFunction(() => {
    const rows = [...document.querySelectorAll("tbody tr")];
    return rows.length > 0 && rows.every((row) => /vm mcts/.test(row.textContent!));
  });
  await page.click("tbody tr a");
  await page.waitForSelector(".pane canvas");
  await page.click("[aria-label='The answer is'] .right");
  await page.waitForSelector(".view-head .outcome.right");
  // What the grade implies for the steps: the answer itself is worth 1.
  await page.focus(".pane canvas");
  await page.keyboard.press("End");
  const facts = (await page.textContent(".branch .facts")) ?? "";
  assert.match(facts, /process value1\.000/);
  // The node with which the answer ends is graded with it.
  await page.click("[aria-label='This leaf is'] .wrong");
  await page.waitForSelector(".view-head .outcome.wrong");
  assert.match((await page.textContent(".branch h3")) ?? "", /^Step/, "it stays chosen");
  await page.getByLabel("Format").selectOption("step_values");
  const [file] = await Promise.all([page.waitForEvent("download"), page.click("text=Download")]);
  const rows = (await readFile(await file.path(), "utf8")).trim().split("\n");
  assert.ok("labels" in (JSON.parse(rows[0]!) as object));
  await page.goto(`${ponder.url}#/traces`);
  await page.getByLabel("Graded").selectOption("true");
  await page.waitForFunction(() => document.querySelectorAll("tbody tr").length === 1);
  assert.deepEqual(faults, []);
});

test("the server's figures are there, and an adapter that is none is refused", async () => {
  const { page, faults } = opened;
  await page.goto(`${ponder.url}#/server`);
  await page.waitForSelector(".tiles");
  assert.match((await page.textContent(".view-head")) ?? "", /Ponder \d+\.\d+\.\d+.*ready/);
  await page.waitForSelector(".card canvas");
  const form = page.locator(".adapter-form");
  await form.getByLabel("name").fill("mine");
  await form.getByLabel("folder on the server").fill("nowhere");
  await form.getByRole("button").click();
  await page.waitForFunction(
    () => (document.querySelector(".card [role=status]")?.textContent ?? "").length > 5,
  );
  assert.deepEqual(faults, []);
});

test("a lost connection is told, and the page comes back with the server", async () => {
  const { page } = opened;
  await say(page, "Count to one hundred, with a sentence about each number.");
  await page.waitForSelector(".assistant .markdown", { timeout: PATIENCE });
  await ponder.kill();
  await page.waitForSelector(".notice");
  await page.waitForSelector(".assistant .error");
  assert.match((await page.textContent(".notice")) ?? "", /cannot be reached/);
  await ponder.again();
  await page.waitForSelector(".notice", { state: "detached", timeout: PATIENCE });
  await shortAnswers(page);
  await page.click(".assistant .error button");
  await answered(page);
  assert.equal(await page.isVisible(".assistant .error"), false);
});

test("a server with keys asks for one, refuses a wrong one and forgets on demand", async () => {
  const locked = await Ponder.start("--api-key", "right-key");
  try {
    const { page } = await open(browser, locked.url);
    await page.waitForSelector("dialog[open]");
    const key = page.getByLabel("key", { exact: true });
    await key.fill("wrong-key");
    await key.press("Enter");
    await page.waitForSelector("dialog[open] .error");
    await key.fill("right-key");
    await key.press("Enter");
    await page.waitForFunction(() => /smollm2|135m/.test(document.querySelector("select")!.value));
    await page.waitForSelector("dialog[open]", { state: "detached" });
    await shortAnswers(page);
    await say(page, "Hello");
    await answered(page);
    // Not remembered: it is in this tab alone.
    const kept = await page.evaluate(() => [
      sessionStorage.getItem("ponder.key"),
      localStorage.getItem("ponder.key"),
    ]);
    assert.deepEqual(kept, ["right-key", null]);
    await page.context().close();
  } finally {
    await locked.stop();
  }
});
