// A search with everything that belongs to it: figures, tree, replay, branch.
import { useSignal } from "@preact/signals";
import type { ComponentChildren } from "preact";
import { useEffect, useMemo, useRef } from "preact/hooks";
import { BestChart } from "./best-chart";
import { Branch } from "./branch";
import { TreeCanvas } from "./canvas";
import { type Colouring, rangeOf, valueOf } from "./colouring";
import { Legend } from "./legend";
import { Replay } from "./replay";
import { ReplayBar } from "./replay-bar";
import type { SearchRun } from "./run";
import { Stats } from "./stats";
import type { TreeNode } from "./tree";

interface PaneProps {
  run: SearchRun;
  budget?: number | undefined;
  label: string;
  /** Below the facts of a selected node: grades, in traces. */
  ofNode?: (node: TreeNode) => ComponentChildren;
  /** The tree alone, for the inside of a chat. */
  isInline?: boolean;
}

export function Pane({ run, budget, label, ofNode, isInline }: PaneProps) {
  void run.version.value;
  const replay = useMemo(() => new Replay(run), [run]);
  const selected = useSignal(-1);
  const colouring = useSignal<Colouring>("value");
  const branch = useRef<HTMLDivElement>(null);
  const { log } = run;
  const { value: generation } = run.generation;
  useEffect(() => {
    selected.value = -1;
    replay.reset();
    return () => replay.pause();
  }, [generation, replay]);

  const count = replay.count();
  const tree = log.at(count);
  const whole = useWhole(run, count, tree);
  const at = Math.min(selected.value, tree.nodes.length - 1);
  const colourOf = valueOf(colouring.value);
  const range = rangeOf(whole.high >= whole.low ? whole : tree, colouring.value);
  const select = (id: number) => (selected.value = id);
  const node = tree.nodes[at];
  const canvas = (
    <TreeCanvas
      view={{ tree, whole, selected: at, colourOf, range }}
      onSelect={select}
      onOpen={() => branch.current?.querySelector<HTMLElement>(".branch")?.focus()}
      isInline={isInline ?? false}
      label={label}
    />
  );
  if (isInline) return canvas;
  return (
    <div class="pane">
      <div class="pane-main">
        {canvas}
        <Legend
          colouring={colouring.value}
          range={range}
          hasRecord={log.trace !== null}
          onChange={(value) => (colouring.value = value)}
        />
        <ReplayBar run={run} replay={replay} />
      </div>
      <div class="pane-side" ref={branch}>
        <Stats run={run} tree={tree} count={count} budget={budget} />
        {run.error.value && (
          <p class="error" role="alert">
            {run.error.value}
          </p>
        )}
        <BestChart log={log} count={count} />
        <Branch tree={tree} selected={at} range={range} colourOf={colourOf} onSelect={select}>
          {node && at > 0 && ofNode?.(node)}
        </Branch>
      </div>
    </div>
  );
}

/** The tree at the end of the log, whose places a replay uses. */
function useWhole(run: SearchRun, count: number, tree: ReturnType<SearchRun["log"]["at"]>) {
  const { log } = run;
  const kept = useRef({ log, length: -1, tree });
  if (count === log.length) kept.current = { log, length: count, tree };
  else if (kept.current.log !== log || kept.current.length !== log.length) {
    const whole = log.copy();
    kept.current = { log, length: log.length, tree: whole.at(whole.length) };
  }
  return kept.current.tree;
}
