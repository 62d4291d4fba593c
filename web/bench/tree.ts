// Frames a second of the tree canvas on a generated tree, in headless Chromium:
// `npm run bench`, or `npm run bench -- 20000` for another number of nodes.
import { build } from "esbuild";
import { createServer } from "node:http";
import { readFile } from "node:fs/promises";
import type { AddressInfo } from "node:net";
import { dirname } from "node:path";
import { fileURLToPath } from "node:url";
import { options } from "../build.mjs";
import { launch } from "../tests/support";

const here = dirname(fileURLToPath(import.meta.url));
const numNodes = Number(process.argv[2] ?? 5000);

const bundled = await build({
  ...options("/nowhere", false),
  absWorkingDir: here,
  entryPoints: { stage: "stage.tsx" },
  metafile: false,
  write: false,
});
const file = (end: string) => bundled.outputFiles.find((it) => it.path.endsWith(end))!.text;
const html = `<!doctype html><html data-theme="light"><link rel="stylesheet" href="/stage.css">
<body><div id="app"></div><script type="module" src="/stage.js"></script>`;
const types: Record<string, string> = { ".js": "text/javascript", ".css": "text/css" };
const http = createServer((request, response) => {
  const end = /\.(js|css)$/.exec(request.url ?? "")?.[0];
  response.setHeader("content-type", end ? types[end]! : "text/html; charset=utf-8");
  response.end(end ? file(end) : html);
});
await new Promise<void>((done) => http.listen(0, "127.0.0.1", done));
const { port } = http.address() as AddressInfo;

const browser = await launch();
const page = await browser.newPage({ viewport: { width: 1400, height: 900 } });
page.on("pageerror", (error) => console.error(error.message));
await page.goto(`http://127.0.0.1:${port}/`);
const load = await readFile("/proc/loadavg", "utf8").catch(() => "unknown");
console.log(`${numNodes} nodes, 1400 x 900; load of the machine ${load.trim()}`);
for (const scene of ["pan", "zoom", "grow", "replay"]) {
  const found = await page.evaluate(
    ({ scene, numNodes }) => (window as unknown as Stage).measure(scene, numNodes),
    { scene, numNodes },
  );
  const time = (milliseconds: number) => `${milliseconds.toFixed(1)} ms`;
  console.log(
    `${scene.padEnd(7)} ${found.fps.toFixed(1).padStart(6)} frames/s`,
    `  ${String(found.shown).padStart(5)} nodes in the window`,
    `  a frame's script: median ${time(found.median)}, p95 ${time(found.p95)}`,
  );
}
await browser.close();
http.close();

interface Stage {
  measure(scene: string, numNodes: number): Promise<Found>;
}

interface Found {
  fps: number;
  shown: number;
  median: number;
  p95: number;
}
