import type { BuildOptions } from "esbuild";

export function options(out: string, isDev: boolean): BuildOptions;
export function copyStatic(out: string): Promise<void>;
