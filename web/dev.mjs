// Serves the page from its sources and passes everything else on to a running server:
// `node dev.mjs [PORT] [SERVER]`, by default 5173 and http://127.0.0.1:8000.
import { createServer, request } from "node:http";
import { readFile } from "node:fs/promises";
import { dirname, extname, join, normalize } from "node:path";
import { fileURLToPath } from "node:url";
import { context, copyStatic, options } from "./build.mjs";

const here = dirname(fileURLToPath(import.meta.url));
const dist = join(here, "dist");
/** The header that the binary sends (src/api/page.rs): what breaks under it breaks here first. */
export const CSP =
  "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; " +
  "connect-src 'self'; font-src 'self'; base-uri 'none'; form-action 'none'; " +
  "frame-ancestors 'none'";

const TYPES = {
  ".html": "text/html; charset=utf-8",
  ".js": "text/javascript; charset=utf-8",
  ".css": "text/css; charset=utf-8",
  ".svg": "image/svg+xml",
  ".map": "application/json",
  ".txt": "text/plain; charset=utf-8",
};

function pass(server, incoming, outgoing) {
  const options = {
    hostname: server.hostname,
    port: server.port,
    path: incoming.url,
    method: incoming.method,
    headers: { ...incoming.headers, host: server.host },
  };
  const passed = request(options, (answer) => {
    outgoing.writeHead(answer.statusCode ?? 502, answer.headers);
    answer.pipe(outgoing);
    // A pipe does not tell of an end before the end.
    answer.on("close", () => {
      if (!answer.complete) outgoing.destroy();
    });
  });
  passed.on("error", () => outgoing.destroy());
  outgoing.on("close", () => passed.destroy());
  incoming.pipe(passed);
}

/** A server of the page in `folder`, in front of the API at the URL `server`. */
export function serve(folder, port, server) {
  const http = createServer(async (incoming, outgoing) => {
    const path = new URL(incoming.url ?? "/", "http://page").pathname;
    const file = path === "/" ? "index.html" : normalize(path).slice(1);
    if (path !== "/" && !path.startsWith("/assets/")) return pass(server, incoming, outgoing);
    const bytes = await readFile(join(folder, file)).catch(() => null);
    const type = TYPES[extname(file)] ?? "application/octet-stream";
    outgoing.writeHead(bytes ? 200 : 404, {
      "content-type": type,
      "content-security-policy": CSP,
      "x-content-type-options": "nosniff",
      "referrer-policy": "no-referrer",
      "cache-control": "no-cache",
    });
    outgoing.end(bytes ?? "");
  });
  return new Promise((done) => http.listen(port, "127.0.0.1", () => done(http)));
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const port = Number(process.argv[2] ?? 5173);
  const server = new URL(process.argv[3] ?? "http://127.0.0.1:8000");
  const watcher = await context(options(dist, true));
  await watcher.watch();
  await copyStatic(dist);
  await serve(dist, port, server);
  console.log(`the page is at http://127.0.0.1:${port}, its API at ${server.href}`);
}
