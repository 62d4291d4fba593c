// What mouse and fingers do on the canvas: drag, pinch, wheel, hover, click.
import type { Painter } from "./painter";

export interface Handlers {
  isInline: () => boolean;
  hover: (id: number, x: number, y: number) => void;
  click: (id: number) => void;
}

interface Point {
  x: number;
  y: number;
}

/** Pixels that a click may wander. */
const STILL = 5;
/** How far from its edge a node is still hit. */
const MOUSE_REACH = 6;
const FINGER_REACH = 16;

export class Pointers {
  #canvas: HTMLCanvasElement;
  #painter: Painter;
  #handlers: Handlers;
  #down = new Map<number, Point>();
  #moved = 0;
  #ended = new AbortController();

  constructor(canvas: HTMLCanvasElement, painter: Painter, handlers: Handlers) {
    this.#canvas = canvas;
    this.#painter = painter;
    this.#handlers = handlers;
    const { signal } = this.#ended;
    canvas.addEventListener("pointerdown", (event) => this.#press(event), { signal });
    canvas.addEventListener("pointermove", (event) => this.#move(event), { signal });
    canvas.addEventListener("pointerup", (event) => this.#release(event), { signal });
    canvas.addEventListener("pointercancel", (event) => this.#drop(event), { signal });
    canvas.addEventListener("pointerleave", () => this.#leave(), { signal });
    canvas.addEventListener("wheel", (event) => this.#wheel(event), { signal, passive: false });
  }

  destroy(): void {
    this.#ended.abort();
  }

  #place(event: MouseEvent): Point {
    const box = this.#canvas.getBoundingClientRect();
    return { x: event.clientX - box.left, y: event.clientY - box.top };
  }

  #press(event: PointerEvent): void {
    if (event.button !== 0) return;
    this.#canvas.setPointerCapture(event.pointerId);
    this.#down.set(event.pointerId, this.#place(event));
    if (this.#down.size === 1) this.#moved = 0;
  }

  #move(event: PointerEvent): void {
    const now = this.#place(event);
    const before = this.#down.get(event.pointerId);
    if (!before) return this.#hover(now, event.pointerType);
    const [dx, dy] = [now.x - before.x, now.y - before.y];
    this.#moved += Math.hypot(dx, dy);
    if (this.#moved <= STILL) return;
    this.#handlers.hover(-1, 0, 0);
    const other = [...this.#down].find(([id]) => id !== event.pointerId)?.[1];
    this.#down.set(event.pointerId, now);
    if (other) this.#pinch(before, now, other);
    else this.#painter.pan(dx, dy);
    this.#canvas.classList.add("dragged");
  }

  #pinch(before: Point, now: Point, other: Point): void {
    const apart = (a: Point) => Math.max(Math.hypot(a.x - other.x, a.y - other.y), 1);
    const middle = { x: (now.x + other.x) / 2, y: (now.y + other.y) / 2 };
    this.#painter.pan((now.x - before.x) / 2, (now.y - before.y) / 2);
    this.#painter.zoom(apart(now) / apart(before), middle.x, middle.y);
  }

  #release(event: PointerEvent): void {
    const wasDown = this.#down.has(event.pointerId);
    this.#drop(event);
    if (!wasDown || this.#moved > STILL || this.#down.size > 0) return;
    const { x, y } = this.#place(event);
    const reach = event.pointerType === "mouse" ? MOUSE_REACH : FINGER_REACH;
    this.#handlers.click(this.#painter.at(x, y, reach));
  }

  #drop(event: PointerEvent): void {
    this.#down.delete(event.pointerId);
    this.#canvas.classList.remove("dragged");
  }

  #hover({ x, y }: Point, kind: string): void {
    if (kind === "touch") return;
    const id = this.#painter.at(x, y, MOUSE_REACH);
    this.#canvas.classList.toggle("over-node", id >= 0);
    if (id === this.#painter.hovered) return;
    this.#painter.hovered = id;
    this.#painter.redraw();
    const place = id < 0 ? { x, y } : this.#painter.place(id);
    this.#handlers.hover(id, place.x, place.y);
  }

  #leave(): void {
    this.#painter.hovered = -1;
    this.#painter.redraw();
    this.#handlers.hover(-1, 0, 0);
  }

  #wheel(event: WheelEvent): void {
    if (this.#handlers.isInline() && !event.ctrlKey && !event.metaKey) return;
    event.preventDefault();
    this.#handlers.hover(-1, 0, 0);
    const { x, y } = this.#place(event);
    const lines = event.deltaMode === WheelEvent.DOM_DELTA_LINE ? 16 : 1;
    // Trackpads send their pinch as a wheel with Ctrl, in small steps.
    const speed = event.ctrlKey ? 0.01 : 0.0016;
    this.#painter.zoom(Math.exp(-event.deltaY * lines * speed), x, y);
  }
}
