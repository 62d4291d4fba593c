// Where a key leads in the tree.
import type { Layout } from "./layout";
import type { SearchTree } from "./tree";

/** The node that a key leads to from `id`; `null` where the key does not walk. */
export function step(tree: SearchTree, layout: Layout, id: number, key: string): number | null {
  const node = tree.nodes[id];
  if (!node) return null;
  switch (key) {
    case "ArrowLeft":
      return Math.max(node.parent, 0);
    case "ArrowRight":
      return bestChild(tree, id);
    case "ArrowUp":
      return neighbour(tree, layout, id, -1);
    case "ArrowDown":
      return neighbour(tree, layout, id, 1);
    case "Home":
      return 0;
    case "End":
      return tree.chosen[0] ?? tree.best ?? id;
    default:
      return null;
  }
}

/** The child on the way to the answer, else the best one: Right and Right again reads a branch. */
function bestChild(tree: SearchTree, id: number): number {
  const end = tree.chosen[0] ?? tree.best;
  const way = end === undefined || end === null ? [] : tree.path(end).map((node) => node.id);
  const { children } = tree.nodes[id]!;
  const onWay = children.find((child) => way.includes(child));
  if (onWay !== undefined) return onWay;
  const value = (child: number) => tree.nodes[child]!.value ?? -1;
  return children.reduce((a, b) => (value(b) > value(a) ? b : a), children[0] ?? id);
}

function neighbour(tree: SearchTree, layout: Layout, id: number, by: number): number {
  const column = layout.columns[tree.nodes[id]!.depth];
  if (!column) return id;
  const at = column.indexOf(id) + by;
  const next = column[at];
  return next !== undefined && next < tree.nodes.length ? next : id;
}
