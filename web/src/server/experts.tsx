// How evenly the experts of a mixture are used: a row a layer, a cell an expert.
import type { Metrics } from "../api/prometheus";

export function Experts({ read }: { read: Metrics }) {
  const samples = read.get("expert_tokens_total") ?? [];
  if (samples.length === 0) return null;
  const layers = new Map<number, number[]>();
  for (const { labels, value } of samples) {
    const layer = Number(labels["layer"]);
    const row = layers.get(layer) ?? [];
    row[Number(labels["expert"])] = value;
    layers.set(layer, row);
  }
  const rows = [...layers].sort(([a], [b]) => a - b);
  return (
    <section class="card wide">
      <h2>Load of the experts</h2>
      <p class="hint">A row is a layer, a cell an expert: the darker, the more tokens it got.</p>
      <div class="experts" role="img" aria-label={summary(rows.map(([, row]) => row))}>
        {rows.map(([layer, row]) => (
          <div class="experts-row" key={layer}>
            {row.map((tokens, expert) => (
              <span
                key={expert}
                title={`layer ${layer}, expert ${expert}: ${tokens} tokens`}
                style={{ opacity: String(0.08 + 0.92 * (tokens / Math.max(...row, 1))) }}
              />
            ))}
          </div>
        ))}
      </div>
    </section>
  );
}

/** The share that the busiest expert has, as a multiple of an even one. */
function summary(rows: number[][]): string {
  const skews = rows.map((row) => {
    const all = row.reduce((sum, it) => sum + it, 0);
    return all === 0 ? 1 : (Math.max(...row) * row.length) / all;
  });
  const worst = Math.max(...skews, 1).toFixed(1);
  return `${rows.length} layers; the busiest expert has ${worst} times an even share`;
}
