// The page that bench/tree.ts measures: the tree's canvas alone, and a tree that nobody sampled.
import { render } from "preact";
import { valueOf } from "../src/search/colouring";
import { TreeCanvas } from "../src/search/canvas";
import { visible } from "../src/search/draw";
import type { Painter, View } from "../src/search/painter";
import { SearchTree, TreeLog } from "../src/search/tree";
import "../src/styles/index.css";

const SECONDS = 4;

/** A generator of numbers that are the same on each run. */
function numbers(seed: number): () => number {
  let state = seed;
  return () => {
    state = (state * 1664525 + 1013904223) >>> 0;
    return state / 2 ** 32;
  };
}

/** Nodes mostly follow late ones, as in a search that goes on where it got. */
function generated(numNodes: number): TreeLog {
  const log = new TreeLog();
  const next = numbers(7);
  let best = 0;
  for (let node = 1; node <= numNodes; node += 1) {
    const parent = Math.floor(node * Math.sqrt(next()) * 0.98);
    const text = `step ${node}: add the numbers and go on\n`;
    const value = Math.min(next() * 0.5 + 0.5 * (node / numNodes), 1);
    const at = node;
    log.push({ at, event: { event: "spawn", node, parent, text, tokens: 20 * node } });
    log.push({ at, event: { event: "score", node, value } });
    if (next() < 0.2) log.push({ at, event: { event: "prune", node } });
    if (value > best) {
      best = value;
      log.push({ at, event: { event: "best", node, value } });
    }
  }
  return log;
}

let painter: Painter;

function show(tree: SearchTree, whole: SearchTree): void {
  const view: View = { tree, whole, selected: -1, colourOf: valueOf("value"), range: [0, 1] };
  render(
    <div class="pane-main" style={{ height: "860px", display: "flex" }}>
      <TreeCanvas
        view={view}
        label="bench"
        onSelect={() => {}}
        onPainter={(made) => (painter = made)}
      />
    </div>,
    document.getElementById("app")!,
  );
}

const frame = () => new Promise<number>((done) => requestAnimationFrame(done));

/** What happens in a frame, by the name of a scene; `share` goes from 0 to 1. */
function actor(scene: string, log: TreeLog, whole: SearchTree): (share: number) => void {
  const copy = log.copy();
  switch (scene) {
    case "pan":
      return (share) => painter.pan(6 * Math.sin(20 * share), 4 * Math.cos(20 * share));
    case "zoom":
      return (share) => painter.zoom(share % 0.5 < 0.25 ? 1.03 : 1 / 1.03);
    case "grow":
      return (share) => {
        const tree = copy.at(Math.floor(copy.length * share));
        show(tree, tree);
      };
    default:
      return (share) => show(copy.at(Math.floor(copy.length * share)), whole);
  }
}

async function measure(scene: string, numNodes: number) {
  const log = generated(numNodes);
  const whole = log.at(log.length);
  show(whole, whole);
  painter.fit();
  for (let wait = 0; wait < 60; wait += 1) await frame();
  const act = actor(scene, log, whole);
  painter.timings.length = 0;
  const started = performance.now();
  const times: number[] = [];
  for (let now = started; now - started < 1000 * SECONDS; now = performance.now()) {
    act(Math.min((now - started) / (1000 * SECONDS), 1));
    await frame();
    times.push(performance.now() - now);
  }
  const shown = visible(painter.picture(), 0).length;
  const elapsed = performance.now() - started;
  const sorted = painter.timings.slice().sort((a, b) => a - b);
  const at = (share: number) => sorted[Math.floor(share * (sorted.length - 1))] ?? 0;
  return { fps: (1000 * times.length) / elapsed, shown, median: at(0.5), p95: at(0.95) };
}

Object.assign(window, { measure });
