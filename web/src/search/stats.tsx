// The figures beside a tree.
import { computed, signal } from "@preact/signals";
import { getText } from "../api/client";
import { label, parseMetrics } from "../api/prometheus";
import { fixed } from "./describe";
import type { SearchRun } from "./run";
import { DEFAULT_BLOCK_SIZE, sharing } from "./sharing";
import type { SearchTree } from "./tree";
import { strategyName } from "../ui/names";

/** Tokens of the server's KV blocks. */
const blockSize = signal(DEFAULT_BLOCK_SIZE);
let wasAsked = false;

/** Asks once how large the server's blocks are. A server that does not say has the usual ones. */
function askBlockSize(): void {
  if (wasAsked) return;
  wasAsked = true;
  getText("/metrics", { quiet: true })
    .then((text) => {
      const size = Number(label(parseMetrics(text), "cache_config_info", "block_size"));
      if (size > 0) blockSize.value = size;
    })
    .catch(() => (wasAsked = false));
}

const STOPPED: Record<string, string> = {
  budget: "budget spent",
  threshold: "good enough",
  decided: "vote decided",
  deadline: "deadline",
};

function stateText(run: SearchRun): string {
  const stopped = run.report.value?.stopped ?? run.log.trace?.stopped;
  switch (run.state.value) {
    case "running":
      return "searching";
    case "done":
      return stopped ? (STOPPED[stopped] ?? stopped) : "finished";
    case "stopped":
      return "stopped";
    case "failed":
      return "failed";
    case "idle":
      return "";
  }
}

interface StatsProps {
  run: SearchRun;
  tree: SearchTree;
  /** Events that the tree is made of: it is changed in place, and this says when. */
  count: number;
  /** Of the request, to show how much of it is spent. */
  budget?: number | undefined;
}

export function Stats({ run, tree, budget }: StatsProps) {
  askBlockSize();
  const isLive = run.state.value === "running";
  const end = tree.chosen[0] ?? tree.best;
  const best = end === null || end === undefined ? null : tree.nodes[end]!.value;
  const value = run.state.value === "done" ? (run.report.value?.value ?? best) : best;
  const prompt = run.log.trace?.usage.prompt_tokens ?? run.usage.value?.prompt_tokens ?? 0;
  const blocks = sharing(tree, prompt, blockSize.value);
  const saved = blocks.apart > 0 ? 1 - blocks.shared / blocks.apart : 0;
  const rows: [string, string, string][] = [
    ["nodes", String(tree.nodes.length - 1), `depth ${tree.depth}`],
    ["tokens", String(tree.tokens), budget ? `of ${budget}` : ""],
    ["best value", fixed(value), ""],
    ["pruned", String(tree.numPruned), ""],
    [
      "KV blocks",
      `${blocks.isExact ? "" : "≈ "}${blocks.shared}`,
      saved > 0.005 ? `${Math.round(100 * saved)} % shared` : "",
    ],
  ];
  return (
    <div class="stats">
      <p class={`state ${run.state.value}`}>
        <span class="dot" aria-hidden="true" />
        <strong>{strategyName(run.strategy)}</strong>
        <span>{stateText(run)}</span>
        {isLive ? <Clock run={run} /> : <span>{(run.elapsed / 1000).toFixed(1)} s</span>}
      </p>
      <dl>
        {rows.map(([name, figure, more]) => (
          <div key={name}>
            <dt>{name}</dt>
            <dd>
              {figure} {more && <small>{more}</small>}
            </dd>
          </div>
        ))}
      </dl>
      {tree.vote && (
        <p class="vote" title={tree.vote.answer}>
          <span>
            {tree.vote.votes} of {tree.vote.total} agree on
          </span>
          <code>{tree.vote.answer.slice(0, 60)}</code>
        </p>
      )}
      {budget !== undefined && budget > 0 && (
        <progress max={budget} value={Math.min(tree.tokens, budget)} aria-label="Budget spent" />
      )}
    </div>
  );
}

const tick = signal(0);
setInterval(() => (tick.value += 1), 200);

function Clock({ run }: { run: SearchRun }) {
  const seconds = computed(() => {
    void tick.value;
    return (run.elapsed / 1000).toFixed(1);
  });
  return <span>{seconds.value} s</span>;
}
