// Keeps a canvas up to date: when to lay out, when to draw, where the camera goes. It knows nothing
// of components; `canvas.tsx` hands it what changes and what the pointer does.
import { between, type Camera, fit, isSame, screenX, screenY, zoomed } from "./camera";
import { type Colours, readColours } from "./colours";
import { draw, nodeAt, type Picture } from "./draw";
import { type Layout, layoutOf } from "./layout";
import { Scene } from "./scene";
import type { SearchTree, TreeNode } from "./tree";

/** A big tree is laid out at most this often, in milliseconds for each thousand nodes. */
const LAYOUT_PAUSE = 60;
const CAMERA_EASE = 140;

export interface View {
  /** The tree at this moment. */
  tree: SearchTree;
  /** The tree whose places are used: when a replay grows, nodes stay where they will be. */
  whole: SearchTree;
  selected: number;
  colourOf: (node: TreeNode) => number | null;
  range: [number, number];
}

export class Painter {
  /** Nodes that were drawn, and milliseconds that it took: benches read them. */
  readonly timings: number[] = [];
  hovered = -1;
  #canvas: HTMLCanvasElement;
  #context: CanvasRenderingContext2D;
  #view: View;
  #layout: Layout;
  #laidOut: { tree: SearchTree; count: number; at: number };
  #scene = new Scene();
  #camera: Camera = { scale: 1, stretch: 1, x: 0, y: 0 };
  /** Where the camera goes; `null` while the user holds it. */
  #goal: Camera | null = null;
  #follows = true;
  #colours: Colours;
  #width = 0;
  #height = 0;
  #frame = 0;
  #last = 0;
  #isStill: boolean;

  constructor(canvas: HTMLCanvasElement, view: View) {
    this.#canvas = canvas;
    this.#context = canvas.getContext("2d")!;
    this.#view = view;
    this.#layout = layoutOf(view.whole);
    this.#laidOut = { tree: view.whole, count: view.whole.nodes.length, at: performance.now() };
    this.#colours = readColours(canvas);
    this.#isStill = window.matchMedia("(prefers-reduced-motion: reduce)").matches;
    this.#scene.take(view.tree, this.#layout, true);
  }

  destroy(): void {
    cancelAnimationFrame(this.#frame);
  }

  resize(width: number, height: number): void {
    const isFirst = this.#width === 0;
    const ratio = Math.min(window.devicePixelRatio || 1, 2);
    [this.#width, this.#height] = [width, height];
    this.#canvas.width = Math.round(width * ratio);
    this.#canvas.height = Math.round(height * ratio);
    this.#context.setTransform(ratio, 0, 0, ratio, 0, 0);
    if (isFirst) this.#camera = fit(this.#layout, width, height);
    if (this.#follows) this.#goal = fit(this.#layout, width, height);
    this.redraw();
  }

  recolour(): void {
    this.#colours = readColours(this.#canvas);
    this.redraw();
  }

  show(view: View): void {
    this.#view = view;
    this.redraw();
  }

  redraw(): void {
    if (this.#frame === 0) this.#frame = requestAnimationFrame((now) => this.#paint(now));
  }

  #isDue(now: number): boolean {
    const { whole } = this.#view;
    const { tree, count, at } = this.#laidOut;
    if (tree === whole && count === whole.nodes.length) return false;
    return tree !== whole || now - at > (LAYOUT_PAUSE * whole.nodes.length) / 1000;
  }

  #layOut(now: number): void {
    const { whole } = this.#view;
    this.#layout = layoutOf(whole);
    this.#laidOut = { tree: whole, count: whole.nodes.length, at: now };
    if (this.#follows) this.#goal = fit(this.#layout, this.#width, this.#height);
  }

  #paint(now: number): void {
    this.#frame = 0;
    const started = performance.now();
    const elapsed = Math.min(now - this.#last, 100);
    this.#last = now;
    if (this.#isDue(started)) this.#layOut(started);
    this.#scene.take(this.#view.tree, this.#layout, this.#isStill);
    const moves = this.#scene.step(this.#layout, elapsed);
    const goes = this.#moveCamera(elapsed);
    if (this.#width > 0) draw(this.#context, this.picture());
    const isBehind = this.#laidOut.count !== this.#view.whole.nodes.length;
    if (moves || goes || isBehind) this.redraw();
    this.timings.push(performance.now() - started);
    if (this.timings.length > 600) this.timings.splice(0, 300);
  }

  #moveCamera(elapsed: number): boolean {
    if (!this.#goal) return false;
    const share = this.#isStill ? 1 : 1 - Math.exp(-elapsed / CAMERA_EASE);
    this.#camera = between(this.#camera, this.#goal, share);
    if (!isSame(this.#camera, this.#goal)) return true;
    this.#camera = this.#goal;
    this.#goal = null;
    return false;
  }

  picture(): Picture {
    const { tree, selected } = this.#view;
    const ids = (id: number) => new Set(id < 0 ? [] : tree.path(id).map((node) => node.id));
    const end = tree.chosen[0] ?? tree.best ?? -1;
    return {
      ...this.#view,
      layout: this.#layout,
      scene: this.#scene,
      camera: this.#camera,
      colours: this.#colours,
      width: this.#width,
      height: this.#height,
      hovered: this.hovered,
      followed: ids(selected),
      best: ids(end),
    };
  }

  at(x: number, y: number, reach: number): number {
    return nodeAt(this.picture(), x, y, reach);
  }

  /** Where a node is on the canvas. */
  place(id: number): { x: number; y: number } {
    const camera = this.#camera;
    return { x: screenX(camera, this.#scene.x[id]!), y: screenY(camera, this.#scene.y[id]!) };
  }

  pan(dx: number, dy: number): void {
    this.#follows = false;
    this.#goal = null;
    this.#camera = { ...this.#camera, x: this.#camera.x + dx, y: this.#camera.y + dy };
    this.redraw();
  }

  /** Zooms at once (a wheel) or smoothly (a button). */
  zoom(factor: number, x = this.#width / 2, y = this.#height / 2, isSmooth = false): void {
    this.#follows = false;
    const camera = zoomed(this.#goal ?? this.#camera, factor, x, y);
    this.#goal = isSmooth ? camera : null;
    if (!isSmooth) this.#camera = camera;
    this.redraw();
  }

  /** Shows all, and goes on to show all as the tree grows. */
  fit(): void {
    this.#follows = true;
    this.#goal = fit(this.#layout, this.#width, this.#height);
    this.redraw();
  }

  /** Moves the window so that a node is well inside of it. */
  reveal(id: number): void {
    if (id < 0 || id >= this.#layout.x.length) return;
    const camera = this.#goal ?? this.#camera;
    const x = screenX(camera, this.#layout.x[id]!);
    const y = screenY(camera, this.#layout.y[id]!);
    const into = (at: number, size: number) =>
      at < size * 0.08 ? size * 0.25 - at : at > size * 0.9 ? size * 0.7 - at : 0;
    const [dx, dy] = [into(x, this.#width), into(y, this.#height)];
    if (dx === 0 && dy === 0) return this.redraw();
    this.#follows = false;
    this.#goal = { ...camera, x: camera.x + dx, y: camera.y + dy };
    this.redraw();
  }
}
