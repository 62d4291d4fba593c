// One trace: its tree, its prompt, its grade, its exports.
import { useSignal } from "@preact/signals";
import { useEffect, useMemo } from "preact/hooks";
import { ask, getJson, told } from "../api/client";
import { returns } from "../api/connection";
import { key } from "../api/key";
import type { Trace } from "../api/types";
import { Markdown } from "../markdown/markdown";
import { go, href } from "../router";
import { Pane } from "../search/pane";
import { SearchRun } from "../search/run";
import { Icon } from "../ui/icon";
import { Exports } from "./exports";
import { GradeAnswer, GradeLeaf } from "./grade";
import { Outcome, when } from "./list";
import { strategyName } from "../ui/names";

export function TraceDetail({ id }: { id: string }) {
  const trace = useSignal<Trace | null>(null);
  const error = useSignal("");
  const run = useMemo(() => new SearchRun(), [id]);
  const { value: back } = returns;
  const { value: shownKey } = key;

  const load = async () => {
    try {
      const found = await getJson<Trace>(`/v1/traces/${encodeURIComponent(id)}`);
      trace.value = found;
      run.load(found);
      error.value = "";
    } catch (problem) {
      error.value = told(problem);
    }
  };
  useEffect(() => {
    if (trace.value?.id !== id) trace.value = null;
    void load();
  }, [id, back, shownKey]);

  const remove = async () => {
    if (!confirm("Delete this trace from the server?")) return;
    try {
      await ask(`/v1/traces/${encodeURIComponent(id)}`, { method: "DELETE" });
      go("traces");
    } catch (problem) {
      error.value = told(problem);
    }
  };
  const found = trace.value;
  return (
    <div class="trace-view">
      <header class="view-head">
        <a class="back" href={href("traces")}>
          <Icon name="left" /> Traces
        </a>
        <h1>{found ? `${strategyName(found.strategy)}, ${when(found.created)}` : "Trace"}</h1>
        {found && <Outcome outcome={found.outcome} />}
        {found && (
          <button class="quiet danger" onClick={() => void remove()}>
            <Icon name="bin" /> Delete
          </button>
        )}
      </header>
      {error.value && (
        <p class="error" role="alert">
          {error.value}
        </p>
      )}
      {found && (
        <>
          <div class="trace-top">
            <Prompt trace={found} />
            <article class="side-answer">
              <header>
                <h2>Answer</h2>
              </header>
              <Markdown text={run.answer.value} />
              <GradeAnswer trace={found} onGraded={() => void load()} />
            </article>
          </div>
          {found.is_redacted && <p class="hint">This trace was kept without its texts.</p>}
          <Pane
            run={run}
            label="Tree of the trace"
            ofNode={(node) => <GradeLeaf trace={found} node={node} onGraded={() => void load()} />}
          />
          <Exports trace={found} />
          <Facts trace={found} />
        </>
      )}
    </div>
  );
}

function Prompt({ trace }: { trace: Trace }) {
  const messages = trace.request?.messages;
  return (
    <article class="prompt">
      <h2>Prompt</h2>
      {messages ? (
        messages.map((message, index) => (
          <div key={index}>
            <span class="role">{message.role}</span>
            <p>{typeof message.content === "string" ? message.content : json(message.content)}</p>
          </div>
        ))
      ) : (
        <p>{trace.request?.prompt ?? trace.prompt_text ?? ""}</p>
      )}
    </article>
  );
}

function json(value: unknown): string {
  return JSON.stringify(value, null, 1);
}

function Facts({ trace }: { trace: Trace }) {
  return (
    <details class="more">
      <summary>What was asked for</summary>
      <pre tabIndex={0}>
        {json({
          id: trace.id,
          revision: trace.revision,
          model: trace.model,
          seed: trace.seed,
          tags: trace.tags,
          search: trace.search,
          sampling: trace.sampling,
          usage: trace.usage,
          timings: trace.timings,
        })}
      </pre>
    </details>
  );
}
