// The tree behind a searched answer: live while it runs, loaded from its trace later.
import { useSignal } from "@preact/signals";
import { getJson, told } from "../api/client";
import type { Trace } from "../api/types";
import { href } from "../router";
import { Pane } from "../search/pane";
import { SearchRun } from "../search/run";
import { fixed } from "../search/describe";
import type { Answer } from "./conversation";
import { runs, version } from "./store";
import { strategyName } from "../ui/names";

export function AnswerTree({ answer, isOpen }: { answer: Answer; isOpen: boolean }) {
  void version.value;
  const isShown = useSignal(isOpen);
  const error = useSignal("");
  const run = runs.get(answer);
  const id = answer.search?.trace_id ?? null;
  const load = async () => {
    isShown.value = !isShown.value;
    error.value = "";
    if (!isShown.value || run || !id) return;
    try {
      const trace = await getJson<Trace>(`/v1/traces/${encodeURIComponent(id)}`);
      const past = new SearchRun();
      past.load(trace);
      runs.set(answer, past);
      version.value += 1;
    } catch (problem) {
      error.value = told(problem);
    }
  };
  return (
    <section class="answer-tree">
      <header>
        <button class="quiet" aria-expanded={isShown.value} onClick={() => void load()}>
          {strategyName(answer.strategy)}
        </button>
        <Summary answer={answer} run={run} />
        {id && <a href={href("traces", id)}>Open the trace</a>}
      </header>
      {error.value && (
        <p class="error" role="alert">
          {error.value}
        </p>
      )}
      {isShown.value && run && <Pane run={run} isInline label="Tree of the search" />}
    </section>
  );
}

function Summary({ answer, run }: { answer: Answer; run: SearchRun | undefined }) {
  void run?.version.value;
  const { search } = answer;
  if (search) {
    return (
      <span class="hint">
        {search.nodes} nodes · {search.tokens} tokens · value {fixed(search.value, 2)}
        {search.stopped ? ` · ${search.stopped}` : ""}
      </span>
    );
  }
  if (!run || run.state.value !== "running") return null;
  const tree = run.log.at(run.log.length);
  return (
    <span class="hint" role="status">
      searching: {tree.nodes.length - 1} nodes · {tree.tokens} tokens
    </span>
  );
}
