// Reads /metrics: samples by name, and percentiles of histograms.

export interface Sample {
  labels: Record<string, string>;
  value: number;
}

export type Metrics = Map<string, Sample[]>;

const LINE = /^([a-zA-Z_:][\w:]*)(?:\{(.*)\})? (\S+)$/;
const LABEL = /(\w+)="((?:[^"\\]|\\.)*)"/g;

export function parseMetrics(text: string): Metrics {
  const metrics: Metrics = new Map();
  for (const line of text.split("\n")) {
    if (!line.startsWith("ponder_")) continue;
    const match = LINE.exec(line);
    if (!match) continue;
    const labels: Record<string, string> = {};
    for (const [, name, value] of (match[2] ?? "").matchAll(LABEL)) {
      if (name !== undefined && value !== undefined) labels[name] = value;
    }
    const name = match[1]!.slice("ponder_".length);
    const samples = metrics.get(name) ?? [];
    samples.push({ labels, value: Number(match[3]!.replace("Inf", "Infinity")) });
    metrics.set(name, samples);
  }
  return metrics;
}

/** The sum of a metric's samples. */
export function total(metrics: Metrics, name: string): number {
  return (metrics.get(name) ?? []).reduce((sum, sample) => sum + sample.value, 0);
}

export function label(metrics: Metrics, name: string, of: string): string | undefined {
  return metrics.get(name)?.[0]?.labels[of];
}

/** A metric's sums by the value of one label. */
export function by(metrics: Metrics, name: string, of: string): Map<string, number> {
  const sums = new Map<string, number>();
  for (const sample of metrics.get(name) ?? []) {
    const value = sample.labels[of] ?? "";
    sums.set(value, (sums.get(value) ?? 0) + sample.value);
  }
  return sums;
}

/** The quantiles of a histogram, between the bounds of its buckets; `null` where it is empty. */
export function quantiles(metrics: Metrics, name: string, at: number[]): (number | null)[] {
  const counts = by(metrics, `${name}_bucket`, "le");
  const bounds = [...counts].map(([le, count]) => ({ le: bound(le), count }));
  bounds.sort((a, b) => a.le - b.le);
  const all = bounds.at(-1)?.count ?? 0;
  return at.map((quantile) => {
    if (all === 0) return null;
    const wanted = quantile * all;
    const index = bounds.findIndex((it) => it.count >= wanted);
    const found = bounds[index]!;
    const before = bounds[index - 1] ?? { le: 0, count: 0 };
    // Beyond the last bound, the bound is all that is known.
    if (!Number.isFinite(found.le)) return before.le;
    const inside = (wanted - before.count) / Math.max(found.count - before.count, 1);
    return before.le + (found.le - before.le) * inside;
  });
}

function bound(le: string): number {
  return le === "+Inf" ? Infinity : Number(le);
}
