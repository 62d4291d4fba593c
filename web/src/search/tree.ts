// A search as the page knows it: a log of events, and the tree that they make up to any of them.
import type { SearchEvent, Trace, TraceNode } from "../api/types";

/** An event, and how long after the search's start it came. */
export interface Entry {
  at: number;
  event: SearchEvent;
}

export interface TreeNode {
  id: number;
  /** -1 at the root. */
  parent: number;
  depth: number;
  children: number[];
  text: string;
  value: number | null;
  /** Samples at or below it; the record's visits once there is one. */
  visits: number;
  isPruned: boolean;
  /** What the finished record says of it. */
  record: TraceNode | null;
}

/** The best value so far, along the tokens that were spent. */
export interface BestPoint {
  at: number;
  tokens: number;
  value: number;
}

export interface Vote {
  answer: string;
  votes: number;
  total: number;
}

/** The tree after some events. */
export class SearchTree {
  readonly nodes: TreeNode[] = [newNode(0, -1, 0, "")];
  best: number | null = null;
  bestPoints: BestPoint[] = [];
  vote: Vote | null = null;
  tokens = 0;
  numPruned = 0;
  depth = 0;
  chosen: number[] = [];
  low = Infinity;
  high = -Infinity;

  apply({ at, event }: Entry): void {
    switch (event.event) {
      case "spawn":
        this.#spawn(event.node, event.parent, event.text);
        this.tokens = Math.max(this.tokens, event.tokens);
        break;
      case "score":
        this.#score(event.node, event.value);
        break;
      case "prune": {
        const node = this.nodes[event.node];
        if (node && !node.isPruned) this.numPruned += 1;
        if (node) node.isPruned = true;
        break;
      }
      case "vote":
        this.vote = { answer: event.answer, votes: event.votes, total: event.total };
        break;
      case "best":
        this.best = event.node;
        this.bestPoints.push({ at, tokens: this.tokens, value: event.value });
        break;
    }
  }

  #spawn(id: number, parent: number, text: string): void {
    const above = this.nodes[parent];
    // Nodes come in the order of their numbers; anything else is no tree of this search.
    if (!above || id !== this.nodes.length) return;
    const node = newNode(id, parent, above.depth + 1, text);
    this.nodes.push(node);
    above.children.push(id);
    this.depth = Math.max(this.depth, node.depth);
    for (let at = parent; at >= 0; at = this.nodes[at]!.parent) this.nodes[at]!.visits += 1;
  }

  #score(id: number, value: number): void {
    const node = this.nodes[id];
    if (!node) return;
    node.value = value;
    this.low = Math.min(this.low, value);
    this.high = Math.max(this.high, value);
  }

  /** Puts what the record knows in the place of what events could say. */
  settle(trace: Trace): void {
    this.chosen = trace.chosen;
    this.low = Infinity;
    this.high = -Infinity;
    this.numPruned = 0;
    trace.nodes.forEach((record, id) => {
      const node = this.nodes[id];
      if (!node) return;
      node.record = record;
      node.visits = Math.max(record.visit_count, 1);
      node.isPruned = record.is_pruned;
      if (record.is_pruned) this.numPruned += 1;
      const value = record.value ?? record.score;
      if (id === 0 || value === null) node.value = value;
      else this.#score(id, value);
    });
    this.tokens = Math.max(this.tokens, trace.usage.completion_tokens);
  }

  /** The nodes from the first step to `id`. */
  path(id: number): TreeNode[] {
    const path: TreeNode[] = [];
    for (let node = this.nodes[id]; node && node.id !== 0; node = this.nodes[node.parent]) {
      path.push(node);
    }
    return path.reverse();
  }

  text(id: number): string {
    return this.path(id)
      .map((node) => node.text)
      .join("");
  }
}

function newNode(id: number, parent: number, depth: number, text: string): TreeNode {
  return {
    id,
    parent,
    depth,
    children: [],
    text,
    value: null,
    visits: 1,
    isPruned: false,
    record: null,
  };
}

/** A log that grows while a search runs, and can be read at any of its places. */
export class TreeLog {
  readonly entries: Entry[] = [];
  trace: Trace | null = null;
  #tree = new SearchTree();
  #applied = 0;
  #isSettled = false;

  get length(): number {
    return this.entries.length;
  }

  get duration(): number {
    return this.entries.at(-1)?.at ?? 0;
  }

  push(entry: Entry): void {
    this.entries.push(entry);
  }

  /** The finished record of the same search. */
  setTrace(trace: Trace): void {
    this.trace = trace;
    this.#reset();
  }

  /** The same log, to be read at another place. */
  copy(): TreeLog {
    const copy = new TreeLog();
    for (const entry of this.entries) copy.push(entry);
    if (this.trace) copy.setTrace(this.trace);
    return copy;
  }

  #reset(): void {
    this.#tree = new SearchTree();
    this.#applied = 0;
    this.#isSettled = false;
  }

  /** The tree after the first `count` events. It is the same object while time goes forward. */
  at(count: number): SearchTree {
    const wanted = Math.min(count, this.entries.length);
    if (wanted < this.#applied || this.#isSettled) {
      if (wanted === this.#applied) return this.#tree;
      this.#reset();
    }
    while (this.#applied < wanted) {
      this.#tree.apply(this.entries[this.#applied]!);
      this.#applied += 1;
    }
    if (this.trace && this.#applied === this.entries.length) {
      this.#tree.settle(this.trace);
      this.#isSettled = true;
    }
    return this.#tree;
  }

  /** How many events had come after `at` milliseconds. */
  countAt(at: number): number {
    let [low, high] = [0, this.entries.length];
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.entries[middle]!.at <= at) low = middle + 1;
      else high = middle;
    }
    return low;
  }
}

/**
 * A record told as events. Nobody wrote down when they happened, so their times are made of the
 * tokens that each step took, over the time that the whole search took.
 */
export function logOf(trace: Trace): TreeLog {
  const log = new TreeLog();
  const sizes = trace.nodes.map((node) => Math.max(node.token_ids.length, 1));
  const all = sizes.reduce((sum, size) => sum + size, 0);
  const depths: number[] = [];
  const lastOfDepth: number[] = [];
  trace.nodes.forEach((node, id) => {
    const depth = node.parent === null ? 0 : depths[node.parent]! + 1;
    depths.push(depth);
    lastOfDepth[depth] = id;
  });
  let [spent, best] = [0, -Infinity];
  const isAnswer = (node: TraceNode) => node.end === "stop" || node.end === "length";
  trace.nodes.forEach((node, id) => {
    if (node.parent === null) return;
    spent += sizes[id]!;
    const at = (spent / all) * Math.max(trace.timings.total_ms, 1);
    const push = (event: SearchEvent) => log.push({ at, event });
    push({ event: "spawn", node: id, parent: node.parent, text: node.text, tokens: spent });
    const value = node.score ?? node.value;
    if (value !== null) push({ event: "score", node: id, value });
    if (value !== null && isAnswer(node) && value > best) {
      best = value;
      push({ event: "best", node: id, value });
    }
    // A round gives up nodes when all of its depth are there.
    if (lastOfDepth[depths[id]!] !== id) return;
    trace.nodes.forEach((other, pruned) => {
      if (other.is_pruned && depths[pruned] === depths[id]) push({ event: "prune", node: pruned });
    });
  });
  log.setTrace(trace);
  return log;
}
