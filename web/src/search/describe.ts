// A node in words and numbers.
import type { TreeNode } from "./tree";
import { label } from "./draw";

export function fixed(value: number | null | undefined, digits = 3): string {
  return value === null || value === undefined ? "–" : value.toFixed(digits);
}

const ENDS: Record<string, string> = {
  stop: "a whole answer",
  length: "an answer at its length limit",
  cut: "cut by the budget",
  unsure: "ended: too unsure",
};

/** What a screen reader says of a node. */
export function describe(node: TreeNode): string {
  if (node.id === 0) return `Root, ${node.children.length} children`;
  const parts = [
    `Step ${node.depth}`,
    label(node.text, 160),
    `value ${fixed(node.value, 2)}`,
    `${node.visits} visits`,
    `${node.children.length} children`,
  ];
  if (node.isPruned) parts.push("pruned");
  const end = node.record?.end;
  if (end) parts.push(ENDS[end] ?? end);
  return parts.join(", ");
}

/** The facts of a node, as names and values. */
export function facts(node: TreeNode): [string, string][] {
  const { record } = node;
  const rows: [string, string][] = [["value", fixed(node.value)]];
  if (record && record.score !== node.value) rows.push(["score", fixed(record.score)]);
  for (const [name, score] of Object.entries(record?.reward_parts ?? {})) {
    if (Object.keys(record!.reward_parts!).length > 1) rows.push([`· ${name}`, fixed(score)]);
  }
  rows.push([record ? "visits" : "samples below", String(node.visits)]);
  if (record) {
    rows.push(["log-probability", fixed(record.logprob, 2)]);
    rows.push(["tokens", String(record.token_ids.length)]);
    if (record.end) rows.push(["end", ENDS[record.end] ?? record.end]);
    const same = record.duplicate_paths?.length ?? 0;
    if (same > 0) rows.push(["sampled again", `${same} ×`]);
    if (record.confidence) rows.push(["confidence", fixed(record.confidence, 2)]);
    if (record.outcome !== null) rows.push(["outcome", fixed(record.outcome, 2)]);
    if (record.process) {
      rows.push(["process value", fixed(record.process.quality_value)]);
      rows.push(["process weight", fixed(record.process.weighted_reward)]);
      rows.push(["steps to right", fixed(record.process.distance, 0)]);
    }
  }
  if (node.isPruned) rows.push(["", "pruned"]);
  return rows;
}
