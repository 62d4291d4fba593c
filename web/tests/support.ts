// What the browser tests share: a browser, a server, a page.
import { type ChildProcess, spawn } from "node:child_process";
import { existsSync, mkdtempSync, rmSync } from "node:fs";
import { createServer, type AddressInfo, type Server } from "node:net";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { type Browser, chromium, type Page } from "playwright-core";
import { serve } from "../dev.mjs";

const web = join(dirname(fileURLToPath(import.meta.url)), "..");

/** The longest that a model on a busy machine may take for an answer of a test, in milliseconds. */
export const PATIENCE = 1_000 * Number(process.env["PONDER_TEST_PATIENCE"] ?? 120);

function executable(): string {
  const known = ["/usr/bin/chromium", "/usr/bin/chromium-browser", "/usr/bin/google-chrome"];
  const found = [process.env["PONDER_CHROMIUM"], ...known].find((path) => path && existsSync(path));
  if (!found) throw new Error("no Chromium: install one or set PONDER_CHROMIUM");
  return found;
}

export function launch(): Promise<Browser> {
  return chromium.launch({
    executablePath: executable(),
    args: ["--no-sandbox", "--disable-dev-shm-usage", "--force-color-profile=srgb"],
  });
}

export function freePort(): Promise<number> {
  return new Promise((done) => {
    const probe: Server = createServer();
    probe.listen(0, "127.0.0.1", () => {
      const { port } = probe.address() as AddressInfo;
      probe.close(() => done(port));
    });
  });
}

async function until(what: string, check: () => Promise<boolean>): Promise<void> {
  const end = Date.now() + PATIENCE;
  while (Date.now() < end) {
    if (await check().catch(() => false)) return;
    await new Promise((done) => setTimeout(done, 200));
  }
  throw new Error(`${what} did not happen`);
}

/** A running binary, and where its page is. */
export class Ponder {
  url = "";
  readonly api: URL;
  #flags: string[];
  #folder = mkdtempSync(join(tmpdir(), "ponder-page-"));
  #process: ChildProcess | null = null;
  #proxy: { close(): unknown; closeAllConnections(): void } | null = null;

  private constructor(port: number, flags: string[]) {
    this.api = new URL(`http://127.0.0.1:${port}`);
    this.#flags = flags;
  }

  static async start(...flags: string[]): Promise<Ponder> {
    const ponder = new Ponder(await freePort(), flags);
    await ponder.again();
    const page = await fetch(ponder.api);
    const isThere = page.headers.get("content-type")?.startsWith("text/html") ?? false;
    ponder.url = ponder.api.href;
    // A binary that was built without the page: the page stands before it.
    if (!isThere || process.env["PONDER_PAGE"] === "dist") {
      const port = await freePort();
      ponder.#proxy = await serve(join(web, "dist"), port, ponder.api);
      ponder.url = `http://127.0.0.1:${port}/`;
    }
    return ponder;
  }

  /** Starts the process, or starts it again. */
  async again(): Promise<void> {
    const binary = process.env["PONDER_BIN"];
    if (!binary) throw new Error("set PONDER_BIN to a built ponder");
    const model = process.env["PONDER_TEST_MODEL"] ?? "smollm2-135m";
    const own = ["--port", this.api.port, "--trace-db", join(this.#folder, "traces.db")];
    const threads = process.env["PONDER_TEST_THREADS"] ?? "1";
    const small = ["--threads", threads, "--kv-cache-memory", "512M"];
    const args = ["serve", model, ...own, ...small, ...this.#flags];
    this.#process = spawn(binary, args, { stdio: "ignore" });
    await until("the server's start", async () => (await fetch(new URL("/ready", this.api))).ok);
  }

  /** Ends the process at once, as a crash would. */
  async kill(): Promise<void> {
    const { pid } = this.#process ?? {};
    const ended = new Promise((done) => this.#process?.once("exit", done));
    if (pid !== undefined) process.kill(pid, "SIGKILL");
    await ended;
    this.#process = null;
  }

  async stop(): Promise<void> {
    if (this.#process) await this.kill();
    this.#proxy?.closeAllConnections();
    this.#proxy?.close();
    rmSync(this.#folder, { recursive: true, force: true });
  }
}

export interface Opened {
  page: Page;
  /** What no page may have: errors, refusals by the content security policy, other hosts. */
  faults: string[];
}

/** A page that writes down what went wrong. */
export async function open(browser: Browser, url: string, path = ""): Promise<Opened> {
  const context = await browser.newContext({ viewport: { width: 1280, height: 860 } });
  const page = await context.newPage();
  // A browser is slow, too, where a model is.
  page.setDefaultTimeout(Math.max(20_000, PATIENCE / 4));
  const faults: string[] = [];
  page.on("pageerror", (error) => faults.push(`error: ${error.message}`));
  page.on("console", (message) => {
    if (message.type() !== "error") return;
    // A server that is away or refuses is what some tests are about.
    if (!/Failed to load resource|ERR_/.test(message.text())) faults.push(message.text());
  });
  const { host } = new URL(url);
  page.on("request", (request) => {
    const to = new URL(request.url());
    if (to.protocol !== "data:" && to.protocol !== "blob:" && to.host !== host) {
      faults.push(`a request to ${to.host}`);
    }
  });
  await page.goto(url + path);
  return { page, faults };
}
