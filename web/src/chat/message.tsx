// One turn of a conversation.
import { useSignal } from "@preact/signals";
import { useEffect, useRef } from "preact/hooks";
import { Markdown } from "../markdown/markdown";
import { copyText } from "../ui/copy";
import { Icon } from "../ui/icon";
import {
  type Answer,
  type AssistantTurn,
  shownAnswer,
  type ToolTurn,
  type Turn,
  type UserTurn,
} from "./conversation";
import { Calls } from "./calls";
import { again, edit, isWriting, version, writing } from "./store";
import { AnswerTree } from "./answer-tree";

export function Message({ turn, isLast }: { turn: Turn; isLast: boolean }) {
  if (turn.role === "user") return <User turn={turn} />;
  if (turn.role === "tool") return <Tool turn={turn} />;
  return <Assistant turn={turn} isLast={isLast} />;
}

function User({ turn }: { turn: UserTurn }) {
  const draft = useSignal<string | null>(null);
  const area = useRef<HTMLTextAreaElement>(null);
  const isEditing = draft.value !== null;
  useEffect(() => {
    if (isEditing) area.current?.focus();
  }, [isEditing]);
  if (draft.value === null) {
    return (
      <article class="turn user" aria-label="You">
        <div class="bubble">{turn.text}</div>
        <div class="actions">
          <Action icon="edit" label="Edit" onClick={() => (draft.value = turn.text)} />
          <CopyAction text={turn.text} />
        </div>
      </article>
    );
  }
  const send = () => {
    const text = draft.value ?? "";
    draft.value = null;
    edit(turn, text);
  };
  return (
    <article class="turn user" aria-label="You">
      <textarea
        ref={area}
        class="edit"
        aria-label="Edit the message"
        rows={Math.min(draft.value.split("\n").length + 1, 12)}
        value={draft.value}
        onInput={(event) => (draft.value = event.currentTarget.value)}
        onKeyDown={(event) => {
          if (event.key === "Escape") draft.value = null;
          if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) send();
        }}
      />
      <div class="edit-actions">
        <button onClick={() => (draft.value = null)}>Cancel</button>
        <button class="primary" disabled={isWriting.value} onClick={send}>
          Send again
        </button>
      </div>
    </article>
  );
}

function Tool({ turn }: { turn: ToolTurn }) {
  return (
    <article class="turn tool" aria-label={`Result of ${turn.name}`}>
      <span class="tool-name">{turn.name}</span>
      <pre tabIndex={0}>{turn.text}</pre>
    </article>
  );
}

function Assistant({ turn, isLast }: { turn: AssistantTurn; isLast: boolean }) {
  void version.value;
  const answer = shownAnswer(turn);
  if (!answer) return null;
  const isOpen = writing.value?.turn === turn.id;
  return (
    <article class="turn assistant" aria-label="Answer" aria-busy={isOpen}>
      {answer.strategy !== "" && <AnswerTree answer={answer} isOpen={isOpen} />}
      <Thought answer={answer} isOpen={isOpen} />
      {answer.text !== "" && <Markdown text={answer.text} />}
      {answer.toolOutputs.length > 0 && <Outputs answer={answer} />}
      {answer.toolCalls.length > 0 && (
        <Calls turn={turn} answer={answer} isAsked={isLast && !isOpen} />
      )}
      {isOpen && answer.text === "" && answer.strategy === "" && (
        <p class="waiting" role="status">
          <span class="visually-hidden">The model is at work</span>
          <i />
          <i />
          <i />
        </p>
      )}
      {answer.error !== "" && (
        <p class="error" role="alert">
          {answer.error} <button onClick={() => again(turn)}>Try again</button>
        </p>
      )}
      {!isOpen && <Foot turn={turn} answer={answer} />}
    </article>
  );
}

function Thought({ answer, isOpen }: { answer: Answer; isOpen: boolean }) {
  void version.value;
  if (answer.reasoning === "") return null;
  const isThinking = isOpen && answer.text === "";
  return (
    <details class="thought">
      <summary>{isThinking ? "Thinking…" : "Thoughts"}</summary>
      <Markdown text={answer.reasoning} />
    </details>
  );
}

/** Code that the server ran. Its output is in the text, too: here it is by itself. */
function Outputs({ answer }: { answer: Answer }) {
  void version.value;
  return (
    <details class="outputs">
      <summary>
        {answer.toolOutputs.length} {answer.toolOutputs.length === 1 ? "program" : "programs"} run
      </summary>
      {answer.toolOutputs.map((output, index) => (
        <div class="output" key={index}>
          <span class={`status ${output.status}`}>{output.status.replaceAll("_", " ")}</span>
          <pre tabIndex={0}>{output.code}</pre>
          <pre tabIndex={0} class="printed">
            {output.output}
          </pre>
        </div>
      ))}
    </details>
  );
}

const FINISHES: Record<string, string> = {
  length: "length limit",
  stopped: "stopped",
  tool_calls: "calls tools",
  content_filter: "filtered",
};

function Foot({ turn, answer }: { turn: AssistantTurn; answer: Answer }) {
  const show = (by: number) => {
    turn.shown += by;
    version.value += 1;
  };
  const tokens = answer.usage?.completion_tokens;
  const seconds = answer.totalMs / 1000;
  const notes = [
    answer.model,
    tokens === undefined ? "" : `${tokens} tokens`,
    tokens === undefined || seconds <= 0 ? "" : `${(tokens / seconds).toFixed(1)}/s`,
    answer.firstMs > 0 && answer.strategy === ""
      ? `first after ${(answer.firstMs / 1000).toFixed(2)} s`
      : "",
    FINISHES[answer.finish ?? ""] ?? "",
  ];
  return (
    <div class="actions">
      {turn.variants.length > 1 && (
        <span class="variants">
          <Action
            icon="left"
            label="Answer before"
            off={turn.shown === 0}
            onClick={() => show(-1)}
          />
          {turn.shown + 1}/{turn.variants.length}
          <Action
            icon="right"
            label="Next answer"
            off={turn.shown + 1 === turn.variants.length}
            onClick={() => show(1)}
          />
        </span>
      )}
      <Action icon="again" label="Regenerate" off={isWriting.value} onClick={() => again(turn)} />
      <CopyAction text={answer.text} />
      <small>{notes.filter((note) => note !== "").join(" · ")}</small>
    </div>
  );
}

interface ActionProps {
  icon: Parameters<typeof Icon>[0]["name"];
  label: string;
  onClick: () => void;
  off?: boolean;
}

function Action({ icon, label, onClick, off }: ActionProps) {
  return (
    <button class="icon" title={label} onClick={onClick} disabled={off}>
      <Icon name={icon} label={label} />
    </button>
  );
}

function CopyAction({ text }: { text: string }) {
  const isDone = useSignal(false);
  const copy = () =>
    void copyText(text).then((isCopied) => {
      isDone.value = isCopied;
      setTimeout(() => (isDone.value = false), 1500);
    });
  return (
    <Action
      icon={isDone.value ? "check" : "copy"}
      label={isDone.value ? "Copied" : "Copy"}
      onClick={copy}
    />
  );
}
