// The tree on a canvas, with pointer and keyboard.
import { useComputed, useSignal } from "@preact/signals";
import { useEffect, useLayoutEffect, useRef } from "preact/hooks";
import { isDark } from "../theme";
import { Icon } from "../ui/icon";
import { describe } from "./describe";
import { Painter, type View } from "./painter";
import { Pointers } from "./pointers";
import { Tooltip } from "./tooltip";
import { step } from "./walk";

export interface TreeCanvasProps {
  view: View;
  onSelect: (id: number) => void;
  /** Enter, or a second click: the user wants to read the branch. */
  onOpen?: (() => void) | undefined;
  /** A wheel scrolls the page unless Ctrl is held: for a tree inside of a text. */
  isInline?: boolean;
  label: string;
  /** Hands the painter to benches. */
  onPainter?: ((painter: Painter) => void) | undefined;
}

export function TreeCanvas(props: TreeCanvasProps) {
  const { view, onSelect, onOpen, isInline, label } = props;
  const frame = useRef<HTMLDivElement>(null);
  const canvas = useRef<HTMLCanvasElement>(null);
  const painter = useRef<Painter | null>(null);
  const hovered = useSignal<{ id: number; x: number; y: number } | null>(null);
  const latest = useRef(props);
  latest.current = props;

  useLayoutEffect(() => {
    const made = new Painter(canvas.current!, latest.current.view);
    painter.current = made;
    latest.current.onPainter?.(made);
    const watch = new ResizeObserver(([entry]) => {
      if (entry) made.resize(entry.contentRect.width, entry.contentRect.height);
    });
    watch.observe(frame.current!);
    const pointers = new Pointers(canvas.current!, made, {
      isInline: () => latest.current.isInline ?? false,
      hover: (id, x, y) => {
        hovered.value = id < 0 ? null : { id, x, y };
      },
      click: (id) => {
        const isAgain = id >= 0 && id === latest.current.view.selected;
        latest.current.onSelect(id);
        if (isAgain) latest.current.onOpen?.();
      },
    });
    return () => {
      pointers.destroy();
      watch.disconnect();
      made.destroy();
    };
  }, []);

  useEffect(() => painter.current?.show(view));
  const dark = isDark.value;
  useEffect(() => painter.current?.recolour(), [dark]);

  const onKeyDown = (event: KeyboardEvent) => {
    const made = painter.current!;
    const selected = Math.max(view.selected, 0);
    const next = step(view.tree, made.picture().layout, selected, event.key);
    if (next !== null) {
      onSelect(next);
      made.reveal(next);
    } else if (event.key === "Enter") onOpen?.();
    else if (event.key === "Escape") onSelect(-1);
    else if (event.key === "+" || event.key === "=") made.zoom(1.3, undefined, undefined, true);
    else if (event.key === "-") made.zoom(1 / 1.3, undefined, undefined, true);
    else if (event.key === "0") made.fit();
    else return;
    event.preventDefault();
  };

  const said = useComputed(() => hovered.value);
  const node = view.tree.nodes[view.selected];
  return (
    <div class={isInline ? "tree-frame inline" : "tree-frame"} ref={frame}>
      <canvas
        ref={canvas}
        tabIndex={0}
        role="application"
        aria-roledescription="search tree"
        aria-label={`${label}. Arrow keys walk the tree, Enter opens a branch, 0 shows all.`}
        onKeyDown={onKeyDown}
      />
      <p class="visually-hidden" aria-live="polite">
        {node ? describe(node) : ""}
      </p>
      {said.value && view.tree.nodes[said.value.id] && (
        <Tooltip
          node={view.tree.nodes[said.value.id]!}
          x={said.value.x}
          y={said.value.y}
          frame={frame.current!}
        />
      )}
      <div class="tree-tools" role="toolbar" aria-label="View of the tree">
        <button class="icon" title="Zoom in" onClick={() => zoomBy(painter.current, 1.4)}>
          <Icon name="plus" label="Zoom in" />
        </button>
        <button class="icon" title="Zoom out" onClick={() => zoomBy(painter.current, 1 / 1.4)}>
          <Icon name="minus" label="Zoom out" />
        </button>
        <button class="icon" title="Show all" onClick={() => painter.current?.fit()}>
          <Icon name="fit" label="Show the whole tree" />
        </button>
      </div>
    </div>
  );
}

function zoomBy(painter: Painter | null, factor: number): void {
  painter?.zoom(factor, undefined, undefined, true);
}
