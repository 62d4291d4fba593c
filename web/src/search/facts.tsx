// What is known of a node, as a list.
import { facts } from "./describe";
import type { TreeNode } from "./tree";

export function Facts({ node }: { node: TreeNode }) {
  return (
    <dl class="facts">
      {facts(node).map(([name, value]) => (
        <div key={name + value}>
          <dt>{name}</dt>
          <dd>{value}</dd>
        </div>
      ))}
    </dl>
  );
}
