// What /metrics said in the last minutes.
import { signal } from "@preact/signals";
import { getText, isAbort, told } from "../api/client";
import { type Metrics, parseMetrics, total } from "../api/prometheus";

/** A look at the server. */
export interface Look {
  /** Unix seconds. */
  at: number;
  generated: number;
  prompted: number;
  running: number;
  waiting: number;
  branches: number;
  cache: number;
}

const PAUSE = 2_000;
const KEPT = 300;

export const looks = signal<Look[]>([]);
export const metrics = signal<Metrics | null>(null);
export const metricsError = signal("");

let timer: ReturnType<typeof setTimeout> | undefined;
let isOn = false;

function lookOf(metrics: Metrics): Look {
  return {
    at: Date.now() / 1000,
    generated: total(metrics, "generation_tokens_total"),
    prompted: total(metrics, "prompt_tokens_total"),
    running: total(metrics, "num_requests_running"),
    waiting: total(metrics, "num_requests_waiting"),
    branches: total(metrics, "search_branches_running"),
    cache: total(metrics, "kv_cache_usage_perc"),
  };
}

async function look(): Promise<void> {
  if (!document.hidden) {
    try {
      const read = parseMetrics(await getText("/metrics"));
      const next = lookOf(read);
      // A counter that fell is of a server that was started anew.
      const isNew = next.generated < (looks.value.at(-1)?.generated ?? 0);
      looks.value = [...(isNew ? [] : looks.value), next].slice(-KEPT);
      metrics.value = read;
      metricsError.value = "";
    } catch (error) {
      if (!isAbort(error)) metricsError.value = told(error);
    }
  }
  if (isOn) timer = setTimeout(() => void look(), PAUSE);
}

/** Looks again and again until it is told to stop. */
export function watchServer(): () => void {
  isOn = true;
  void look();
  return () => {
    isOn = false;
    clearTimeout(timer);
  };
}

/** What a counter rose by in a second, between each two looks. */
export function rates(of: (look: Look) => number): (number | null)[] {
  return looks.value.map((look, index, all) => {
    const before = all[index - 1];
    if (!before) return null;
    return Math.max((of(look) - of(before)) / Math.max(look.at - before.at, 0.1), 0);
  });
}
