// Where nodes are: d3's tidy tree, from left to right, in units of the world.
import { hierarchy, tree as tidyTree } from "d3-hierarchy";
import type { SearchTree } from "./tree";

export const COLUMN = 172;
export const ROW = 30;

export interface Layout {
  /** By node. */
  x: Float32Array;
  y: Float32Array;
  /** The nodes of each depth, from top to bottom: what is in a window is found by halving. */
  columns: Uint32Array[];
  width: number;
  top: number;
  bottom: number;
}

const tidy = tidyTree<number>()
  .nodeSize([ROW, COLUMN])
  .separation((a, b) => (a.parent === b.parent ? 1 : 1.35));

export function layoutOf(tree: SearchTree): Layout {
  const { nodes } = tree;
  const root = tidy(hierarchy(0, (id) => nodes[id]!.children));
  const x = new Float32Array(nodes.length);
  const y = new Float32Array(nodes.length);
  const columns: number[][] = [];
  let [top, bottom, width] = [0, 0, 0];
  root.each((place) => {
    const id = place.data;
    // d3 grows trees downwards; here they grow to the right.
    x[id] = place.y;
    y[id] = place.x;
    (columns[place.depth] ??= []).push(id);
    top = Math.min(top, place.x);
    bottom = Math.max(bottom, place.x);
    width = Math.max(width, place.y);
  });
  for (const column of columns) column.sort((a, b) => y[a]! - y[b]!);
  return { x, y, columns: columns.map((ids) => Uint32Array.from(ids)), width, top, bottom };
}

/** The part of a column between two heights, as indices `[from, to)`. */
export function between(
  layout: Layout,
  depth: number,
  low: number,
  high: number,
): [number, number] {
  const column = layout.columns[depth]!;
  const find = (limit: number) => {
    let [from, to] = [0, column.length];
    while (from < to) {
      const middle = (from + to) >> 1;
      if (layout.y[column[middle]!]! < limit) from = middle + 1;
      else to = middle;
    }
    return from;
  };
  return [find(low), find(high)];
}
