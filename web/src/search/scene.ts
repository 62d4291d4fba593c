// Where nodes are at this moment: they move from where they were to where the layout has them.
import type { Layout } from "./layout";
import type { SearchTree } from "./tree";

/** Milliseconds in which a node goes most of its way. */
const EASE = 90;
const NEAR = 0.3;

export class Scene {
  x = new Float32Array(0);
  y = new Float32Array(0);
  /** 0 when a node has just come, 1 when it is fully there. */
  shown = new Float32Array(0);
  /** Nodes of the tree at this moment; the layout may know later ones. */
  count = 0;

  /** Takes nodes that have come; they begin where their parents are. */
  take(tree: SearchTree, layout: Layout, isStill: boolean): void {
    const { length } = layout.x;
    if (this.x.length < length) {
      this.x = grown(this.x, length);
      this.y = grown(this.y, length);
      this.shown = grown(this.shown, length);
    }
    const now = Math.min(tree.nodes.length, length);
    for (let id = isStill ? 0 : Math.min(this.count, now); id < now; id += 1) {
      const parent = Math.max(tree.nodes[id]!.parent, 0);
      this.x[id] = isStill ? layout.x[id]! : this.x[parent]!;
      this.y[id] = isStill ? layout.y[id]! : this.y[parent]!;
      this.shown[id] = isStill || id === 0 ? 1 : 0;
    }
    this.count = now;
  }

  /** Moves everything by the time that has passed; says whether something still moves. */
  step(layout: Layout, elapsed: number): boolean {
    const share = 1 - Math.exp(-elapsed / EASE);
    let moves = false;
    for (let id = 0; id < this.count; id += 1) {
      const [dx, dy] = [layout.x[id]! - this.x[id]!, layout.y[id]! - this.y[id]!];
      const fade = 1 - this.shown[id]!;
      if (Math.abs(dx) < NEAR && Math.abs(dy) < NEAR && fade < 0.01) {
        this.x[id] = layout.x[id]!;
        this.y[id] = layout.y[id]!;
        this.shown[id] = 1;
        continue;
      }
      this.x[id]! += dx * share;
      this.y[id]! += dy * share;
      this.shown[id]! += fade * share;
      moves = true;
    }
    return moves;
  }
}

function grown(values: Float32Array<ArrayBuffer>, length: number): Float32Array<ArrayBuffer> {
  const more = new Float32Array(Math.ceil(length * 1.5));
  more.set(values);
  return more;
}
