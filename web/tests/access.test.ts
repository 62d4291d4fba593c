// Every view for everybody: axe finds nothing serious in either theme, nothing is wider than a
// phone, and the keyboard reaches all.
import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { createRequire } from "node:module";
import { after, before, test } from "node:test";
import type { Browser, Page } from "playwright-core";
import { launch, open, PATIENCE, Ponder } from "./support";

let browser: Browser;
let ponder: Ponder;
let axe: string;
/** A trace that the views can show. */
let trace: string;

before(async () => {
  axe = await readFile(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");
  browser = await launch();
  ponder = await Ponder.start();
  const response = await fetch(new URL("/v1/chat/completions", ponder.api), {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify({
      messages: [{ role: "user", content: "Name three colours." }],
      max_tokens: 24,
      search: { strategy: "mcts", budget: { tokens: 120 }, step: { delimiter: "\n" } },
    }),
    signal: AbortSignal.timeout(PATIENCE),
  });
  trace = ((await response.json()) as { search: { trace_id: string } }).search.trace_id;
});

after(async () => {
  await browser.close();
  await ponder.stop();
});

function views(): [string, string][] {
  return [
    ["#/chat", ".composer"],
    ["#/search", ".invitation"],
    ["#/traces", "tbody tr"],
    [`#/traces/${trace}`, ".pane canvas"],
    ["#/server", ".tiles"],
  ];
}

/** Opens the view with everything that it can show unfolded. */
async function show(page: Page, [hash, landmark]: [string, string]): Promise<void> {
  await page.goto(`${ponder.url}${hash}`);
  await page.waitForSelector(landmark);
  if (hash === "#/search") await page.click(".search-settings > summary");
  if (hash === "#/chat") await page.click(".settings-toggle");
  await page.waitForTimeout(400);
}

interface Violation {
  id: string;
  impact: string;
  nodes: { html: string }[];
}

async function violations(page: Page): Promise<Violation[]> {
  // Evaluated from outside: the page's policy lets no script in.
  await page.evaluate(axe);
  return page.evaluate(async () => {
    const { axe } = window as unknown as {
      axe: { run: () => Promise<{ violations: Violation[]; passes: unknown[] }> };
    };
    const { violations, passes } = await axe.run();
    return passes.length > 15 ? violations : Promise.reject(new Error("axe saw no page"));
  });
}

for (const scheme of ["light", "dark"] as const) {
  test(`axe finds nothing serious in ${scheme} colours`, async () => {
    const { page, faults } = await open(browser, ponder.url);
    await page.emulateMedia({ colorScheme: scheme, reducedMotion: "reduce" });
    for (const view of views()) {
      await show(page, view);
      const found = (await violations(page)).filter((it) => /serious|critical/.test(it.impact));
      const told = found.map((it) => `${it.id}: ${it.nodes.map((node) => node.html).join("\n")}`);
      assert.deepEqual(told, [], view[0]);
    }
    assert.deepEqual(faults, []);
    await page.context().close();
  });
}

test("nothing is wider than a phone", async () => {
  const { page } = await open(browser, ponder.url);
  await page.setViewportSize({ width: 360, height: 740 });
  for (const view of views()) {
    await show(page, view);
    const wide = await page.evaluate(() => {
      const { clientWidth } = document.documentElement;
      return [...document.querySelectorAll("body *")]
        .filter((it) => it.closest(".table-scroll, .card, .uplot, pre") === null)
        .filter((it) => it.getBoundingClientRect().right > clientWidth + 1)
        .map((it) => `${it.tagName}.${it.className}`)
        .filter((it) => !/visually-hidden/.test(it));
    });
    assert.deepEqual(wide, [], view[0]);
  }
  await page.context().close();
});

test("the theme can be switched and is remembered", async () => {
  const { page } = await open(browser, ponder.url);
  const theme = () => page.evaluate(() => document.documentElement.dataset["theme"]);
  assert.equal(await theme(), "light");
  await page.click("button[title=Dark]");
  assert.equal(await theme(), "dark");
  await page.reload();
  assert.equal(await theme(), "dark");
  await page.context().close();
});

test("the keyboard reaches every control of bar and chat, and shows where it is", async () => {
  const { page } = await open(browser, ponder.url);
  const seen = new Set<string>();
  for (let press = 0; press < 30; press += 1) {
    await page.keyboard.press("Tab");
    const { name, outline } = await page.evaluate(() => {
      const element = document.activeElement as HTMLElement;
      // Behind the last control the browser itself has the focus.
      if (element === document.body) return { name: "", outline: true };
      const label = element.getAttribute("aria-label") ?? element.textContent ?? "";
      const style = getComputedStyle(element);
      const own = style.outlineStyle !== "none" && style.outlineWidth !== "0px";
      const around = element.closest(".composer, .button") !== null;
      return { name: label.trim() || element.id, outline: own || around };
    });
    if (name !== "") assert.ok(outline, `${name} shows no focus`);
    seen.add(name);
  }
  for (const name of ["Chat", "Search", "Traces", "Server", "New chat", "composer-text"]) {
    assert.ok(seen.has(name), `${name} in ${[...seen].join(", ")}`);
  }
  await page.context().close();
});
