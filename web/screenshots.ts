// Makes the pictures of the README: `PONDER_BIN=… npm run screenshots [OUT]`, by default into
// docs/pictures. Everything in them happened: a real model searched, and the page watched.
import { mkdirSync, statSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import type { Browser, Page } from "playwright-core";
import { launch, open, PATIENCE, Ponder } from "./tests/support";
import { packed } from "./tests/png";

const here = dirname(fileURLToPath(import.meta.url));
const out = process.argv[2] ?? join(here, "..", "docs", "pictures");
/** Most bytes of a picture: a README is read over slow lines, too. */
const MOST_BYTES = 200_000;

const QUESTION =
  "A farmer has 17 sheep, buys 25 more and sells 9. How many are left? Think step by step, " +
  "one short line each.";
const CODE = "Write a Python function that says whether a string is a palindrome.";

async function shoot(page: Page, name: string): Promise<void> {
  await page.mouse.move(640, 60);
  await page.waitForTimeout(700);
  const path = join(out, `${name}.png`);
  await packed(page, path);
  const { size } = statSync(path);
  console.log(`${name}.png: ${Math.round(size / 1000)} kB`);
  if (size > MOST_BYTES) throw new Error(`${name}.png is larger than ${MOST_BYTES} bytes`);
}

interface Ask {
  strategy: string;
  tokens: string;
  prompt: string;
  /** Beside the first one. */
  second?: string;
}

async function search(page: Page, url: string, { strategy, tokens, prompt, second }: Ask) {
  await page.goto(`${url}#/search`);
  await page.click(".search-settings > summary");
  if (second !== undefined) {
    await page.click("text=Compare two strategies");
    const right = page.locator("fieldset").nth(1);
    await right.getByLabel("Strategy").selectOption(second);
    await right.getByLabel("token budget").fill(tokens);
  }
  const left = page.locator("fieldset").first();
  await left.getByLabel("Strategy").selectOption(strategy);
  await left.getByLabel("token budget").fill(tokens);
  await page.getByLabel("seed").fill("4");
  await page.getByLabel("longest answer").fill("160");
  await page.click(".search-settings > summary");
  await page.fill("#search-prompt", prompt);
  await page.keyboard.press("Enter");
  await page.waitForSelector(".state.running");
  await page.waitForFunction(() => !document.querySelector(".state.running"), undefined, {
    timeout: PATIENCE,
  });
  await page.locator("#search-prompt").blur();
}

async function trees(browser: Browser, ponder: Ponder): Promise<void> {
  const { page } = await open(browser, ponder.url);
  await search(page, ponder.url, { strategy: "mcts", tokens: "1500", prompt: QUESTION });
  await shoot(page, "search-light");
  await page.click("button[title=Dark]");
  await shoot(page, "search-dark");
  await page.click("text=Grade the trace");
  await page.waitForSelector(".pane canvas");
  await page.click("[aria-label='The answer is'] .right");
  await page.waitForSelector(".view-head .outcome.right");
  await page.getByLabel("Colour by").selectOption("process");
  await page.evaluate(() => document.querySelector(".side-answer")?.scrollIntoView(false));
  await page.locator("main").evaluate((it) => it.scrollBy(0, 420));
  await shoot(page, "trace-dark");
  await page.context().close();
}

async function sideBySide(browser: Browser, ponder: Ponder): Promise<void> {
  const { page } = await open(browser, ponder.url);
  await page.setViewportSize({ width: 1400, height: 900 });
  const ask = { strategy: "beam", second: "vm_mcts", tokens: "900", prompt: QUESTION };
  await search(page, ponder.url, ask);
  await shoot(page, "side-by-side");
  await page.context().close();
}

/** Something to see in the figures of the server. */
async function busy(ponder: Ponder): Promise<void> {
  const asks = ["Tell a short story.", "Explain rain.", "List the planets."].map((content) =>
    fetch(new URL("/v1/chat/completions", ponder.api), {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify({
        messages: [{ role: "user", content }],
        max_tokens: 120,
        stream: true,
      }),
    }).then((response) => response.text()),
  );
  await Promise.all(asks);
}

async function chat(browser: Browser, ponder: Ponder): Promise<void> {
  const { page } = await open(browser, ponder.url);
  await page.click(".settings-toggle");
  await page.getByLabel("Strategy").selectOption("vm_mcts");
  const panel = page.locator(".panel");
  await panel.getByLabel("token budget").fill("900");
  await panel.getByLabel("seed").fill("5");
  await panel.getByLabel("longest answer").fill("180");
  await page.fill("#composer-text", CODE);
  await page.press("#composer-text", "Enter");
  await page.waitForSelector(".turn.assistant .actions", { timeout: PATIENCE });
  await page.locator("#composer-text").blur();
  await page.locator(".turns").evaluate((it) => (it.scrollTop = 0));
  await shoot(page, "chat-light");
  await page.click("a[href='#/server']");
  await page.waitForTimeout(6_000);
  await busy(ponder);
  await page.waitForTimeout(4_000);
  await shoot(page, "server-light");
  await page.context().close();
}

async function phone(browser: Browser, ponder: Ponder): Promise<void> {
  const { page } = await open(browser, ponder.url);
  await page.emulateMedia({ colorScheme: "dark" });
  await page.setViewportSize({ width: 390, height: 780 });
  const ask = { strategy: "mcts", tokens: "700", prompt: "Name three uses of a paper clip." };
  await search(page, ponder.url, ask);
  await shoot(page, "phone-dark");
  await page.context().close();
}

mkdirSync(out, { recursive: true });
const browser = await launch();
const ponder = await Ponder.start();
try {
  await trees(browser, ponder);
  await sideBySide(browser, ponder);
  await chat(browser, ponder);
  await phone(browser, ponder);
} finally {
  await browser.close();
  await ponder.stop();
}
