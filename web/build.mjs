// Bundles the page into one script, one style sheet and index.html: `node build.mjs [OUT]`.
// The Rust build runs it too, on a copy of this folder, so it writes nowhere but into OUT.
import { build, context } from "esbuild";
import { realpathSync } from "node:fs";
import { cp, mkdir, readFile, rm, stat, writeFile } from "node:fs/promises";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { gzipSync } from "node:zlib";

const here = dirname(fileURLToPath(import.meta.url));

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

/** Writes NAME.gz beside each file with `gzips`, and says how large all are. */
async function report(out, gzips) {
  let total = 0;
  for (const name of ["index.html", "assets/app.js", "assets/app.css", "assets/icon.svg"]) {
    const bytes = await readFile(join(out, name));
    const packed = gzipSync(bytes, { level: 9 });
    total += packed.length;
    if (gzips) await writeFile(join(out, `${name}.gz`), packed);
    console.log(`${name}: ${bytes.length} bytes, ${packed.length} compressed`);
  }
  console.log(`all: ${total} bytes compressed`);
}

// The paths are compared as they are without links: build folders are often behind one.
if (realpathSync(process.argv[1] ?? ".") === realpathSync(fileURLToPath(import.meta.url))) {
  const out = process.argv.slice(2).find((it) => !it.startsWith("--")) ?? join(here, "dist");
  if (await stat(out).catch(() => null)) await rm(out, { recursive: true });
  const result = await build(options(out, false));
  await copyStatic(out);
  if (process.argv.includes("--analyse")) {
    await writeFile(join(out, "meta.json"), JSON.stringify(result.metafile));
  }
  await report(out, process.argv.includes("--gzip"));
}

export { context };
