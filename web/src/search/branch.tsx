// The branch that is followed, step by step, or the answer.
import type { ComponentChildren } from "preact";
import { fixed } from "./describe";
import { Facts } from "./facts";
import { NUM_SHADES, shadeOf } from "./colours";
import type { SearchTree, TreeNode } from "./tree";

interface BranchProps {
  tree: SearchTree;
  selected: number;
  range: [number, number];
  colourOf: (node: TreeNode) => number | null;
  onSelect: (id: number) => void;
  /** Below the facts of the selected node. */
  children?: ComponentChildren;
}

export function Branch(props: BranchProps) {
  const { tree, selected, onSelect, children } = props;
  const end = selected >= 0 ? selected : (tree.chosen[0] ?? tree.best ?? -1);
  const node = tree.nodes[end];
  if (!node) return <p class="hint">Nodes appear here as they are sampled.</p>;
  const title = selected < 0 ? (tree.chosen.length > 0 ? "The answer" : "Best so far") : null;
  return (
    <section class="branch" aria-label="Branch" tabIndex={-1}>
      <header>
        <h3>{title ?? (end === 0 ? "The prompt" : `Step ${node.depth} of branch`)}</h3>
        {selected >= 0 && (
          <button class="quiet" onClick={() => onSelect(-1)}>
            Show the answer
          </button>
        )}
      </header>
      {selected >= 0 && end !== 0 && <Facts node={node} />}
      {children}
      <ol class="steps">
        {tree.path(end).map((step) => (
          <Step key={step.id} step={step} {...props} isEnd={step.id === selected} />
        ))}
      </ol>
      {end === 0 && <p class="hint">Choose a node to follow its branch.</p>}
    </section>
  );
}

interface StepProps extends BranchProps {
  step: TreeNode;
  isEnd: boolean;
}

function Step({ step, isEnd, range, colourOf, onSelect }: StepProps) {
  const value = colourOf(step);
  const shade = value === null ? "none" : shadeOf(value, range[0], range[1]);
  const at = shade === "none" ? "none" : Math.round((shade / (NUM_SHADES - 1)) * 5);
  return (
    <li class={isEnd ? "step current" : "step"}>
      <button
        class={`chip shade-${at}`}
        title="Follow the branch up to here"
        onClick={() => onSelect(step.id)}
      >
        <span class="visually-hidden">Step {step.depth}, value </span>
        {fixed(value, 2)}
      </button>
      <StepText step={step} />
    </li>
  );
}

/** What a program printed is marked: the model did not write it. */
function StepText({ step }: { step: TreeNode }) {
  const { text } = step;
  const inserted = step.record?.inserted ?? [];
  if (inserted.length === 0) return <div class="step-text">{text.trimEnd() || "␤"}</div>;
  // Places are counted in characters as Python does, not in UTF-16 units.
  const characters = [...text];
  const parts: ComponentChildren[] = [];
  let at = 0;
  for (const { chars } of inserted) {
    parts.push(characters.slice(at, chars[0]).join(""));
    parts.push(<span class="inserted">{characters.slice(chars[0], chars[1]).join("")}</span>);
    at = chars[1];
  }
  parts.push(characters.slice(at).join(""));
  return <div class="step-text">{parts}</div>;
}
