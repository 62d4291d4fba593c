// Draws a tree. Only what is in the window is looked at, and marks of one colour are one path: that
// is what keeps thousands of nodes fluent.
import { type Camera, columnWidth, screenX, screenY } from "./camera";
import { type Colours, NUM_SHADES, shadeOf } from "./colours";
import { between, type Layout, ROW } from "./layout";
import type { Scene } from "./scene";
import type { SearchTree, TreeNode } from "./tree";

export interface Picture {
  tree: SearchTree;
  layout: Layout;
  scene: Scene;
  camera: Camera;
  colours: Colours;
  width: number;
  height: number;
  selected: number;
  hovered: number;
  /** The nodes of the branch that is followed. */
  followed: Set<number>;
  /** The nodes of the answer, or of the best branch while there is none. */
  best: Set<number>;
  colourOf: (node: TreeNode) => number | null;
  range: [number, number];
}

/** More nodes than this in the window are drawn without outlines, curves and text. */
const MANY = 1_200;
/** Rows closer than this have no room for rings around their nodes. */
const DENSE = 5;
/** Rows at least this far apart have text beside their leaves, */
const READABLE = 12.5;
/** and so far apart above the edges of their inner nodes. */
const ROOMY = 19;
/** A character's width, in parts of its height. */
const CHARACTER = 0.53;
/** Columns closer than this have room for no word. */
const NARROWEST_LABEL = 56;
/** Beside the last column there is more room. */
const LAST_LABEL = 170;
const FADED = 0.28;
/** How far the ring of an answer is from its node. */
const RING = 5.5;

export function radius(visits: number): number {
  return 4.2 + Math.min(2.4 * Math.log2(Math.max(visits, 1)), 12);
}

/** A node's radius on the screen. */
function size(node: TreeNode, camera: Camera): number {
  const wanted = radius(node.visits) * Math.min(Math.sqrt(camera.scale), 1.2);
  // Leaves must leave their neighbours room; what was visited often has more of it.
  const room = ROW * camera.scale * (0.36 + 0.14 * Math.log2(Math.max(node.visits, 1)));
  return Math.max(Math.min(wanted, room), 1.1);
}

/** The nodes in the window, and as far beyond as `margin` says. */
export function visible(picture: Picture, margin: number): number[] {
  const { layout, camera, scene, width, height } = picture;
  const top = (-margin - camera.y) / camera.scale;
  const bottom = (height + margin - camera.y) / camera.scale;
  const column = columnWidth(camera);
  const first = Math.max(Math.floor((-margin - camera.x) / column), 0);
  const rightmost = Math.ceil((width + margin - camera.x) / column);
  const last = Math.min(rightmost, layout.columns.length - 1);
  const found: number[] = [];
  for (let depth = first; depth <= last; depth += 1) {
    const column = layout.columns[depth]!;
    const [from, to] = between(layout, depth, top, bottom);
    for (let at = from; at < to; at += 1) {
      const id = column[at]!;
      if (id < scene.count) found.push(id);
    }
  }
  return found;
}

export function draw(context: CanvasRenderingContext2D, picture: Picture): void {
  const { width, height, camera } = picture;
  context.clearRect(0, 0, width, height);
  // Edges to nodes just outside are seen, too.
  const near = visible(picture, Math.max(height, 400));
  const isDense = near.length > MANY;
  drawEdges(context, picture, near, isDense);
  const seen = visible(picture, 40);
  drawNodes(context, picture, seen, isDense);
  drawMarks(context, picture, seen);
  const isRoomy = ROW * camera.scale >= READABLE && columnWidth(camera) > NARROWEST_LABEL;
  if (isRoomy && !isDense) drawLabels(context, picture, seen);
}

function line(
  context: CanvasRenderingContext2D,
  { scene, camera, tree }: Picture,
  id: number,
  isStraight: boolean,
): void {
  const { parent } = tree.nodes[id]!;
  const [fromX, fromY] = place(scene, camera, parent);
  const [toX, toY] = place(scene, camera, id);
  context.moveTo(fromX, fromY);
  if (isStraight) {
    context.lineTo(toX, toY);
    return;
  }
  const middle = (fromX + toX) / 2;
  context.bezierCurveTo(middle, fromY, middle, toY, toX, toY);
}

function place(scene: Scene, camera: Camera, id: number): [number, number] {
  return [screenX(camera, scene.x[id]!), screenY(camera, scene.y[id]!)];
}

function drawEdges(
  context: CanvasRenderingContext2D,
  picture: Picture,
  ids: number[],
  isDense: boolean,
): void {
  const { tree, colours, best, followed, camera } = picture;
  const strokes: [string, number, (id: number) => boolean][] = [
    [colours.faint, 1, (id) => tree.nodes[id]!.isPruned && !best.has(id) && !followed.has(id)],
    [colours.edge, isDense ? 0.7 : 1.3, (id) => !tree.nodes[id]!.isPruned && !best.has(id)],
    [colours.accent, Math.max(3.2 * Math.min(camera.scale, 1), 1.8), (id) => best.has(id)],
    [colours.ink, 1.6, (id) => followed.has(id)],
  ];
  for (const [stroke, thickness, has] of strokes) {
    context.beginPath();
    for (const id of ids) {
      if (tree.nodes[id]!.parent >= 0 && has(id)) line(context, picture, id, isDense);
    }
    context.strokeStyle = stroke;
    context.lineWidth = thickness;
    context.stroke();
  }
}

/** Nodes by their shade, the faded ones apart: `shades`, then the unscored, then all that again. */
function inGroups(picture: Picture, ids: number[]): number[][] {
  const { tree, colourOf, range, best } = picture;
  const groups: number[][] = Array.from({ length: 2 * (NUM_SHADES + 1) }, () => []);
  for (const id of ids) {
    const node = tree.nodes[id]!;
    const value = colourOf(node);
    const shade = value === null ? NUM_SHADES : shadeOf(value, range[0], range[1]);
    const faded = node.isPruned && !best.has(id) ? NUM_SHADES + 1 : 0;
    groups[shade + faded]!.push(id);
  }
  return groups;
}

function drawNodes(
  context: CanvasRenderingContext2D,
  picture: Picture,
  ids: number[],
  isDense: boolean,
): void {
  const { tree, scene, camera, colours } = picture;
  const isTiny = ROW * camera.scale < 2.2;
  inGroups(picture, ids).forEach((group, index) => {
    if (group.length === 0) return;
    const shade = index % (NUM_SHADES + 1);
    context.globalAlpha = index > NUM_SHADES ? FADED : 1;
    context.fillStyle = colours.shades[shade] ?? colours.unscored;
    context.beginPath();
    for (const id of group) {
      const [x, y] = place(scene, camera, id);
      const r = size(tree.nodes[id]!, camera) * scene.shown[id]!;
      if (isTiny) context.rect(x - r, y - r, 2 * r, 2 * r);
      else circle(context, x, y, r);
    }
    context.fill();
    if (isDense) return;
    context.strokeStyle = colours.surface;
    context.lineWidth = 1.5;
    context.stroke();
  });
  context.globalAlpha = 1;
}

function circle(context: CanvasRenderingContext2D, x: number, y: number, r: number): void {
  context.moveTo(x + r, y);
  context.arc(x, y, r, 0, 2 * Math.PI);
}

/** The nodes with which the answers end, or the best one so far. */
function endsOf(tree: SearchTree): number[] {
  if (tree.chosen.length > 0) return tree.chosen;
  return tree.best === null ? [] : [tree.best];
}

/** Rings: the answer, what is right or wrong, what is selected. */
function drawMarks(context: CanvasRenderingContext2D, picture: Picture, seen: number[]): void {
  const { tree, scene, camera, colours, selected, hovered, best } = picture;
  const ring = (id: number, stroke: string, gap: number, thickness: number) => {
    const node = tree.nodes[id];
    if (!node || id >= scene.count) return;
    context.beginPath();
    const [x, y] = place(scene, camera, id);
    circle(context, x, y, size(node, camera) + gap);
    context.strokeStyle = stroke;
    context.lineWidth = thickness;
    context.stroke();
  };
  const isDense = ROW * camera.scale < DENSE;
  for (const id of seen) {
    const node = tree.nodes[id]!;
    const outcome = node.record?.outcome;
    if (outcome === null || outcome === undefined || isDense) continue;
    ring(id, outcome >= 1 ? colours.right : colours.wrong, 3, 2);
  }
  for (const id of endsOf(tree)) if (best.has(id)) ring(id, colours.accent, RING, 2.5);
  if (hovered >= 0) ring(hovered, colours.muted, 3, 1.5);
  if (selected >= 0) ring(selected, colours.ink, 4, 2);
}

function drawLabels(context: CanvasRenderingContext2D, picture: Picture, seen: number[]): void {
  const { tree, layout, scene, camera, colours, best, followed, width } = picture;
  const ends = endsOf(tree);
  const pixels = Math.min(12.5, Math.max(10, 11.5 * camera.scale));
  const column = columnWidth(camera);
  const isRoomy = ROW * camera.scale >= ROOMY;
  context.font = `${pixels}px system-ui, sans-serif`;
  context.textBaseline = "middle";
  context.lineJoin = "round";
  context.strokeStyle = colours.surface;
  context.lineWidth = 4;
  for (const id of seen) {
    const node = tree.nodes[id]!;
    if (id === 0 || scene.shown[id]! < 0.6) continue;
    const isMarked = best.has(id) || followed.has(id);
    if (!isRoomy && !isMarked && node.children.length > 0) continue;
    const [at, middle] = place(scene, camera, id);
    const isEnd = ends.includes(id);
    const x = at + size(node, camera) + (isEnd ? RING + 5 : 6);
    const isLast = node.depth === layout.columns.length - 1;
    const wanted = (isLast ? Math.max(column, LAST_LABEL) : column) - (x - at) - 14;
    const room = Math.min(wanted, width - x - 4);
    const text = label(node.text, Math.floor(room / (pixels * CHARACTER)));
    // A node that goes on has its edges at its side: its text stands above them.
    const y = middle - (node.children.length === 0 ? 0 : Math.max(ROW * 0.32 * camera.scale, 8));
    context.globalAlpha = node.isPruned && !isMarked ? 0.5 : 1;
    context.strokeText(text, x, y);
    context.fillStyle = isMarked ? colours.ink : colours.muted;
    context.fillText(text, x, y);
  }
  context.globalAlpha = 1;
}

/** The beginning of a step on one line. */
export function label(text: string, limit: number): string {
  const flat = text.replace(/\s+/g, " ").trim();
  const shown = flat === "" ? "␤" : flat;
  return shown.length > limit ? `${shown.slice(0, Math.max(limit - 1, 1))}…` : shown;
}

/** The node at a point of the screen, or -1. */
export function nodeAt(picture: Picture, x: number, y: number, reach: number): number {
  const { scene, camera, tree } = picture;
  let [found, nearest] = [-1, Infinity];
  for (const id of visible(picture, 40)) {
    const [atX, atY] = place(scene, camera, id);
    const distance = Math.hypot(atX - x, atY - y) - size(tree.nodes[id]!, camera);
    if (distance < reach && distance < nearest) [found, nearest] = [id, distance];
  }
  return found;
}
