// The window onto the tree: `screen = world * scale + offset`.
import type { Layout } from "./layout";

export interface Camera {
  scale: number;
  x: number;
  y: number;
}

export const MIN_SCALE = 0.01;
export const MAX_SCALE = 3;
/** Text beside the last column needs room, too. */
const LABEL_ROOM = 180;

/** The camera that shows all of a layout. */
export function fit(layout: Layout, width: number, height: number): Camera {
  const pad = Math.min(28, width / 12);
  const worldHeight = Math.max(layout.bottom - layout.top, 1);
  const room = width > 480 ? LABEL_ROOM : 70;
  const byHeight = (height - 2 * pad) / worldHeight;
  const byWidth = (width - 2 * pad - room) / Math.max(layout.width, 1);
  const scale = Math.min(Math.max(Math.min(byHeight, byWidth), MIN_SCALE), 1.15);
  const middle = (layout.top + layout.bottom) / 2;
  return { scale, x: pad + 8, y: height / 2 - middle * scale };
}

/** The camera zoomed by `factor` around a point of the screen. */
export function zoomed(camera: Camera, factor: number, x: number, y: number): Camera {
  const scale = Math.min(Math.max(camera.scale * factor, MIN_SCALE), MAX_SCALE);
  const real = scale / camera.scale;
  return { scale, x: x - (x - camera.x) * real, y: y - (y - camera.y) * real };
}

/** A camera on the way from one to another. */
export function between(from: Camera, to: Camera, share: number): Camera {
  const mix = (a: number, b: number) => a + (b - a) * share;
  return {
    scale: mix(from.scale, to.scale),
    x: mix(from.x, to.x),
    y: mix(from.y, to.y),
  };
}

export function isSame(a: Camera, b: Camera): boolean {
  const near = (a: number, b: number, by: number) => Math.abs(a - b) < by;
  return near(a.scale / b.scale, 1, 0.002) && near(a.x, b.x, 0.4) && near(a.y, b.y, 0.4);
}
