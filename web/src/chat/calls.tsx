// Calls of tools. The page has no tools: the user reads what is called and says what came of it.
import { useSignal } from "@preact/signals";
import type { ToolCall } from "../api/types";
import { type Answer, type AssistantTurn } from "./conversation";
import { current, tell, version } from "./store";

interface CallsProps {
  turn: AssistantTurn;
  answer: Answer;
  /** The conversation waits for results. */
  isAsked: boolean;
}

export function Calls({ turn, answer, isAsked }: CallsProps) {
  void version.value;
  const answered = new Set(
    current.value.turns.flatMap((it) => (it.role === "tool" ? [it.callId] : [])),
  );
  return (
    <ul class="calls">
      {answer.toolCalls.map((call) => (
        <li key={call.id}>
          <strong>{call.name}</strong>
          <pre tabIndex={0}>{pretty(call.arguments)}</pre>
          {isAsked && !answered.has(call.id) && <Result turn={turn} call={call} />}
        </li>
      ))}
    </ul>
  );
}

function Result({ turn, call }: { turn: AssistantTurn; call: ToolCall }) {
  const text = useSignal("");
  return (
    <form
      class="result"
      onSubmit={(event) => {
        event.preventDefault();
        tell(turn, call.id, call.name, text.value);
      }}
    >
      <input
        aria-label={`Result of ${call.name}`}
        placeholder="What the tool answers"
        value={text.value}
        onInput={(event) => (text.value = event.currentTarget.value)}
      />
      <button type="submit">Send the result</button>
    </form>
  );
}

function pretty(json: string): string {
  try {
    return JSON.stringify(JSON.parse(json), null, 2);
  } catch {
    // It is still being written.
    return json;
  }
}
