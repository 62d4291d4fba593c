// Says which answers were right. The server then infers what that means for each step.
import { useSignal } from "@preact/signals";
import { ask, told } from "../api/client";
import type { Trace } from "../api/types";
import type { TreeNode } from "../search/tree";
import { Icon } from "../ui/icon";

async function grade(trace: Trace, body: Record<string, unknown>): Promise<void> {
  await ask(`/v1/traces/${encodeURIComponent(trace.id)}/outcome`, { body });
}

interface GradeProps {
  trace: Trace;
  onGraded: () => void;
}

/** Of the answer that was returned, with what it should have been. */
export function GradeAnswer({ trace, onGraded }: GradeProps) {
  const error = useSignal("");
  const correction = useSignal(trace.correction ?? "");
  const send = (body: Record<string, unknown>) => {
    error.value = "";
    grade(trace, body).then(onGraded, (problem) => (error.value = told(problem)));
  };
  return (
    <div class="grade">
      <Buttons outcome={trace.outcome} what="The answer" send={(outcome) => send({ outcome })} />
      <form
        class="correction"
        onSubmit={(event) => {
          event.preventDefault();
          send({ correction: correction.value });
        }}
      >
        <input
          aria-label="What the answer should have been"
          placeholder="What it should have been"
          value={correction.value}
          onInput={(event) => (correction.value = event.currentTarget.value)}
        />
        <button type="submit" disabled={correction.value.trim() === ""}>
          Keep the correction
        </button>
      </form>
      {error.value && (
        <p class="error" role="alert">
          {error.value}
        </p>
      )}
    </div>
  );
}

/** Of any whole answer in the tree. */
export function GradeLeaf({ trace, node, onGraded }: GradeProps & { node: TreeNode }) {
  const error = useSignal("");
  const end = node.record?.end;
  // The server takes the word of whole answers alone.
  if (end !== "stop" && end !== "length") return null;
  const send = (outcome: number) => {
    error.value = "";
    // The returned answer's grade is the trace's, too.
    const isChosen = trace.chosen[0] === node.id;
    const body = isChosen ? { outcome } : { leaves: [{ node: node.id, outcome }] };
    grade(trace, body).then(onGraded, (problem) => (error.value = told(problem)));
  };
  return (
    <div class="grade">
      <Buttons outcome={node.record?.outcome ?? null} what="This leaf" send={send} />
      {error.value && (
        <p class="error" role="alert">
          {error.value}
        </p>
      )}
    </div>
  );
}

interface ButtonsProps {
  outcome: number | null;
  what: string;
  send: (outcome: number) => void;
}

function Buttons({ outcome, what, send }: ButtonsProps) {
  return (
    <div class="grade-buttons" role="group" aria-label={`${what} is`}>
      <span>{what} is</span>
      <button class="right" aria-pressed={outcome === 1} onClick={() => send(1)}>
        <Icon name="check" /> Right
      </button>
      <button
        class="wrong"
        aria-pressed={outcome !== null && outcome < 1}
        onClick={() => send(0)}
      >
        <Icon name="cross" /> Wrong
      </button>
    </div>
  );
}
