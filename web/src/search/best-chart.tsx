// Scores as they came, and the highest one so far, along the tokens that were spent.
import { Chart, type Line } from "../ui/chart";
import type { TreeLog } from "./tree";

const LINES: Line[] = [
  { label: "score", colour: "--unscored", kind: "points" },
  { label: "highest so far", colour: "--accent", kind: "steps" },
];
/** More points than this are a cloud that takes long to draw. */
const MOST_POINTS = 2_000;

/**
 * x, scores, and the highest so far. Events name the best *answer*, which some searches have only
 * at their end; what was found on the way counts here, too.
 */
export function bestSeries(log: TreeLog, count: number): (number | null)[][] {
  const [tokens, scores, best]: [number[], (number | null)[], (number | null)[]] = [[], [], []];
  let [now, top]: [number, number | null] = [0, null];
  const sparse = Math.max(Math.ceil(count / MOST_POINTS), 1);
  for (let index = 0; index < count; index += 1) {
    const { event } = log.entries[index]!;
    if (event.event === "spawn") now = Math.max(now, event.tokens);
    if (event.event === "best" || event.event === "score") {
      top = Math.max(top ?? -Infinity, event.value);
    }
    if (event.event === "best" || (event.event === "score" && index % sparse === 0)) {
      tokens.push(now);
      scores.push(event.value);
      best.push(top);
    }
  }
  return [tokens, scores, best];
}

export function BestChart({ log, count }: { log: TreeLog; count: number }) {
  const data = bestSeries(log, count);
  if (data[0]!.length < 2) return null;
  const last = data[2]!.at(-1);
  return (
    <figure class="best-chart">
      <figcaption>
        Value over tokens <span class="key-best">highest so far</span>
      </figcaption>
      <Chart
        lines={LINES}
        data={data}
        height={120}
        label={`Highest value over tokens, now ${last?.toFixed(3) ?? "none"}`}
      />
    </figure>
  );
}
