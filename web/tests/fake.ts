// A server that says what a test wants: hostile texts, cut streams, calls of tools. It serves the
// page with the headers of the real one.
import { readFile } from "node:fs/promises";
import { createServer, type IncomingMessage, type Server, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import { dirname, extname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { CSP } from "../dev.mjs";

const dist = join(dirname(fileURLToPath(import.meta.url)), "..", "dist");
const TYPES: Record<string, string> = {
  ".html": "text/html; charset=utf-8",
  ".js": "text/javascript; charset=utf-8",
  ".css": "text/css; charset=utf-8",
  ".svg": "image/svg+xml",
};

/** What a stream does after its chunks. */
export type End = "done" | "cut" | "hang";

export interface Script {
  chunks: unknown[];
  end?: End;
}

/** Chunks of a plain text. */
export function says(text: string): Script {
  const choice = (delta: unknown, finish: string | null) => ({
    choices: [{ index: 0, delta, finish_reason: finish }],
  });
  return { chunks: [choice({ content: text }, null), choice({}, "stop")] };
}

export class Fake {
  url = "";
  /** The bodies that the chat route got. */
  readonly asked: Record<string, unknown>[] = [];
  /** What the chat route answers, one script a request; the last one goes on. */
  scripts: Script[] = [says("ok")];
  /** More routes, by path. */
  routes: Record<string, unknown> = {};
  readonly #server: Server;

  private constructor() {
    this.#server = createServer((request, response) => void this.#answer(request, response));
  }

  static async start(): Promise<Fake> {
    const fake = new Fake();
    await new Promise<void>((done) => fake.#server.listen(0, "127.0.0.1", done));
    fake.url = `http://127.0.0.1:${(fake.#server.address() as AddressInfo).port}/`;
    return fake;
  }

  stop(): void {
    this.#server.closeAllConnections();
    this.#server.close();
  }

  async #answer(request: IncomingMessage, response: ServerResponse): Promise<void> {
    const { pathname } = new URL(request.url ?? "/", "http://fake");
    if (pathname === "/" || pathname.startsWith("/assets/")) return file(pathname, response);
    if (pathname === "/v1/chat/completions") return this.#chat(request, response);
    const known: Record<string, unknown> = {
      "/ready": { status: "ready" },
      "/version": { version: "0.0.0" },
      "/metrics": "ponder_generation_tokens_total{model_name=\"m\"} 1\n",
      "/v1/models": { data: [{ id: "m", root: "m", parent: null }] },
      "/v1/traces": { data: [], has_more: false, next: null },
      ...this.routes,
    };
    const found = known[pathname];
    response.statusCode = found === undefined ? 404 : 200;
    const body = found ?? { error: { message: `there is no route ${pathname}` } };
    response.end(typeof body === "string" ? body : JSON.stringify(body));
  }

  async #chat(request: IncomingMessage, response: ServerResponse): Promise<void> {
    let text = "";
    for await (const part of request) text += String(part);
    this.asked.push(JSON.parse(text) as Record<string, unknown>);
    const script = this.scripts.length > 1 ? this.scripts.shift()! : this.scripts[0]!;
    response.setHeader("content-type", "text/event-stream");
    for (const chunk of script.chunks) response.write(`data: ${JSON.stringify(chunk)}\n\n`);
    if (script.end === "hang") return;
    if (script.end === "cut") {
      // What was written must arrive first.
      setTimeout(() => response.destroy(), 100);
      return;
    }
    response.end("data: [DONE]\n\n");
  }
}

async function file(path: string, response: ServerResponse): Promise<void> {
  const name = path === "/" ? "index.html" : path.slice(1);
  const bytes = await readFile(join(dist, name)).catch(() => null);
  response.writeHead(bytes ? 200 : 404, {
    "content-type": TYPES[extname(name)] ?? "application/octet-stream",
    "content-security-policy": CSP,
  });
  response.end(bytes ?? "");
}
