// Bundles the page into one script, one style sheet and index.html: `node build.mjs [OUT]`.
// The Rust build runs it too, on a copy of this folder, so it writes nowhere but into OUT.
import { build, context } from "esbuild";
import { realpathSync } from "node:fs";
import { cp, mkdir, readdir, readFile, rm, stat, writeFile } from "node:fs/promises";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { gzipSync } from "node:zlib";

const here = dirname(fileURLToPath(import.meta.url));

/** What is served; build.rs has the same list. */
const FILES = [
  "index.html",
  "assets/app.js",
  "assets/app.css",
  "assets/icon.svg",
  "assets/licences.txt",
];

/** What esbuild needs to know; `dev.mjs` takes it as well. */
export function options(out, isDev) {
  return {
    absWorkingDir: here,
    entryPoints: { app: "src/main.tsx" },
    outdir: join(out, "assets"),
    bundle: true,
    format: "esm",
    target: "es2022",
    jsx: "automatic",
    jsxImportSource: "preact",
    minify: !isDev,
    sourcemap: isDev ? "linked" : false,
    legalComments: "none",
    metafile: true,
    logLevel: "warning",
    define: { "process.env.NODE_ENV": isDev ? '"development"' : '"production"' },
  };
}

/** The files that are not bundled. */
export async function copyStatic(out) {
  await mkdir(join(out, "assets"), { recursive: true });
  await cp(join(here, "index.html"), join(out, "index.html"));
  await cp(join(here, "icon.svg"), join(out, "assets", "icon.svg"));
}

/** The licences of what is bundled, which ask to be passed on with it. */
async function writeLicences(out, metafile) {
  const inputs = Object.keys(metafile.inputs).map((path) =>
    /node_modules\/((?:@[^/]+\/)?[^/]+)/.exec(path)?.[1],
  );
  const texts = [];
  for (const name of [...new Set(inputs)].filter(Boolean).sort()) {
    const folder = join(here, "node_modules", name);
    const files = await readdir(folder);
    const file = files.find((it) => /^licen[cs]e/i.test(it));
    if (!file) throw new Error(`${name} has no file with its licence`);
    texts.push(`${name}\n\n${await readFile(join(folder, file), "utf8")}`);
  }
  await writeFile(join(out, "assets", "licences.txt"), texts.join(`\n\n${"-".repeat(72)}\n\n`));
}

/** Writes NAME.gz beside each file with `gzips`, and says how large all are. */
async function report(out, gzips) {
  let total = 0;
  for (const name of FILES) {
    const bytes = await readFile(join(out, name));
    const packed = gzipSync(bytes, { level: 9 });
    if (!/licences/.test(name)) total += packed.length;
    if (gzips) await writeFile(join(out, `${name}.gz`), packed);
    console.log(`${name}: ${bytes.length} bytes, ${packed.length} compressed`);
  }
  console.log(`a visit: ${total} bytes compressed`);
}

// The paths are compared as they are without links: build folders are often behind one.
if (realpathSync(process.argv[1] ?? ".") === realpathSync(fileURLToPath(import.meta.url))) {
  const out = process.argv.slice(2).find((it) => !it.startsWith("--")) ?? join(here, "dist");
  if (await stat(out).catch(() => null)) await rm(out, { recursive: true });
  const result = await build(options(out, false));
  await copyStatic(out);
  await writeLicences(out, result.metafile);
  if (process.argv.includes("--analyse")) {
    await writeFile(join(out, "meta.json"), JSON.stringify(result.metafile));
  }
  await report(out, process.argv.includes("--gzip"));
}

export { context };
