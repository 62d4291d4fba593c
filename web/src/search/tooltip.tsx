// What the pointer is on.
import { useLayoutEffect, useRef } from "preact/hooks";
import { label } from "./draw";
import { Facts } from "./facts";
import type { TreeNode } from "./tree";

interface TooltipProps {
  node: TreeNode;
  x: number;
  y: number;
  frame: HTMLElement;
}

const GAP = 16;

export function Tooltip({ node, x, y, frame }: TooltipProps) {
  const box = useRef<HTMLDivElement>(null);
  useLayoutEffect(() => {
    const own = box.current!;
    const { clientWidth, clientHeight } = frame;
    const { offsetWidth, offsetHeight } = own;
    const isRight = x + GAP + offsetWidth <= clientWidth;
    const left = isRight ? x + GAP : x - GAP - offsetWidth;
    const top = Math.min(y + GAP / 2, clientHeight - offsetHeight - 6);
    own.style.left = `${Math.max(left, 4)}px`;
    own.style.top = `${Math.max(top, 4)}px`;
  });
  return (
    <div class="tooltip" ref={box} role="tooltip">
      {node.id === 0 ? (
        <p class="tooltip-text">The prompt</p>
      ) : (
        <p class="tooltip-text">{label(node.text, 220)}</p>
      )}
      <Facts node={node} />
    </div>
  );
}
