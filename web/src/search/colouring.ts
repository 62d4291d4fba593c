// What the colour of a node may stand for.
import type { SearchTree, TreeNode } from "./tree";

export type Colouring = "value" | "likelihood" | "outcome" | "process";

export const COLOURINGS: readonly (readonly [Colouring, string])[] = [
  ["value", "value"],
  ["likelihood", "likelihood"],
  ["outcome", "outcome"],
  ["process", "process value"],
];

/** The geometric mean of the probabilities of a step's tokens. */
function likelihood(node: TreeNode): number | null {
  const logprobs = node.record?.token_logprobs ?? [];
  if (logprobs.length === 0) return null;
  return Math.exp(logprobs.reduce((sum, it) => sum + it, 0) / logprobs.length);
}

export function valueOf(colouring: Colouring): (node: TreeNode) => number | null {
  switch (colouring) {
    case "value":
      return (node) => node.value;
    case "likelihood":
      return likelihood;
    case "outcome":
      return (node) => node.record?.outcome ?? null;
    case "process":
      return (node) => node.record?.process?.quality_value ?? null;
  }
}

/** The ends of the scale: all of it for outcomes, what was seen for values, which lie close. */
export function rangeOf(tree: SearchTree, colouring: Colouring): [number, number] {
  if (colouring === "outcome" || colouring === "process") return [0, 1];
  if (colouring === "value") return tree.high >= tree.low ? [tree.low, tree.high] : [0, 1];
  let [low, high] = [Infinity, -Infinity];
  for (const node of tree.nodes) {
    const value = likelihood(node);
    if (value === null) continue;
    low = Math.min(low, value);
    high = Math.max(high, value);
  }
  return high >= low ? [low, high] : [0, 1];
}
