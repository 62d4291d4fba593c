// The window onto the tree: `screen = world * scale + offset`, and `x` stretched besides, since
// trees of many leaves are tall.
import { COLUMN, type Layout } from "./layout";

export interface Camera {
  scale: number;
  stretch: number;
  x: number;
  y: number;
}

export const MIN_SCALE = 0.01;
export const MAX_SCALE = 3;
/** Text beside the last column needs room, too. */
const LABEL_ROOM = 190;
/** Columns are drawn apart this far on the screen at most. */
const WIDEST_COLUMN = 300;

/** The camera that shows all of a layout. */
export function fit(layout: Layout, width: number, height: number): Camera {
  const pad = Math.min(28, width / 12);
  const worldHeight = Math.max(layout.bottom - layout.top, 1);
  const room = width > 480 ? LABEL_ROOM : 70;
  const byHeight = (height - 2 * pad) / worldHeight;
  const byWidth = (width - 2 * pad - room) / Math.max(layout.width, 1);
  // Columns may be drawn together as far as rows are not: a deep tree of few leaves is flat.
  const scale = Math.min(Math.max(Math.min(byHeight, byWidth * 2), MIN_SCALE), 1.15);
  const stretch = Math.min(byWidth, WIDEST_COLUMN / COLUMN) / scale;
  const middle = (layout.top + layout.bottom) / 2;
  return { scale, stretch, x: pad + 8, y: height / 2 - middle * scale };
}

/** The camera zoomed by `factor` around a point of the screen. */
export function zoomed(camera: Camera, factor: number, x: number, y: number): Camera {
  const scale = Math.min(Math.max(camera.scale * factor, MIN_SCALE), MAX_SCALE);
  const real = scale / camera.scale;
  const { stretch } = camera;
  return { scale, stretch, x: x - (x - camera.x) * real, y: y - (y - camera.y) * real };
}

/** A camera on the way from one to another. */
export function between(from: Camera, to: Camera, share: number): Camera {
  const mix = (a: number, b: number) => a + (b - a) * share;
  return {
    scale: mix(from.scale, to.scale),
    stretch: mix(from.stretch, to.stretch),
    x: mix(from.x, to.x),
    y: mix(from.y, to.y),
  };
}

export function isSame(a: Camera, b: Camera): boolean {
  const near = (a: number, b: number, by: number) => Math.abs(a - b) < by;
  const isNear = near(a.scale / b.scale, 1, 0.002) && near(a.stretch / b.stretch, 1, 0.002);
  return isNear && near(a.x, b.x, 0.4) && near(a.y, b.y, 0.4);
}

/** Pixels from one column to the next. */
export function columnWidth(camera: Camera): number {
  return COLUMN * camera.scale * camera.stretch;
}

export function screenX(camera: Camera, x: number): number {
  return x * camera.scale * camera.stretch + camera.x;
}

export function screenY(camera: Camera, y: number): number {
  return y * camera.scale + camera.y;
}
