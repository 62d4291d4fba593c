// How much of the KV cache the branches of a tree share. The server tells no figure of one search,
// so it is computed from the tree: whole blocks of a common beginning are there once.
import type { SearchTree } from "./tree";

/** Tokens of a KV block, unless the server says otherwise. */
export const DEFAULT_BLOCK_SIZE = 16;

export interface Sharing {
  /** Blocks that the tree takes. */
  shared: number;
  /** Blocks that its branches would take as separate requests. */
  apart: number;
  /** The tokens of steps were counted, not estimated from their text. */
  isExact: boolean;
}

export function sharing(tree: SearchTree, promptTokens: number, blockSize: number): Sharing {
  const { nodes } = tree;
  const length = nodes.reduce((sum, node) => sum + node.text.length, 0);
  const tokensOfChar = length === 0 ? 0 : tree.tokens / length;
  let isExact = true;
  const ends: number[] = [];
  let [shared, apart] = [Math.ceil(promptTokens / blockSize), 0];
  for (const node of nodes) {
    if (node.parent < 0) {
      ends.push(promptTokens);
      continue;
    }
    isExact &&= node.record !== null;
    const size = node.record?.token_ids.length ?? Math.round(node.text.length * tokensOfChar);
    const start = ends[node.parent]!;
    const end = start + size;
    ends.push(end);
    shared += Math.ceil(end / blockSize) - Math.floor(start / blockSize);
    // The first child goes on in the block in which its parent ends; others copy it.
    const isFirst = nodes[node.parent]!.children[0] === node.id;
    if (isFirst && start % blockSize !== 0) shared -= 1;
    if (node.children.length === 0) apart += Math.ceil(end / blockSize);
  }
  return { shared, apart: Math.max(apart, shared), isExact };
}
