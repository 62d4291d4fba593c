// The search view: one prompt, one strategy or two side by side.
import { useSignal } from "@preact/signals";
import { useMemo } from "preact/hooks";
import { told } from "../api/client";
import { model } from "../api/models";
import { kept } from "../persist";
import { Field, TextArea } from "../ui/fields";
import { Icon } from "../ui/icon";
import { Markdown } from "../markdown/markdown";
import { go } from "../router";
import { SearchFields } from "./fields";
import { Pane } from "./pane";
import { SearchRun } from "./run";
import { defaultSearch, number, searchField, type SearchSettings } from "./settings";
import { strategyName } from "../ui/names";

interface Draft {
  prompt: string;
  system: string;
  temperature: string;
  maxTokens: string;
  seed: string;
  isDouble: boolean;
  left: SearchSettings;
  right: SearchSettings;
}

const draft = kept<Draft>("ponder.search", {
  prompt: "",
  system: "",
  temperature: "",
  maxTokens: "256",
  seed: "",
  isDouble: false,
  left: { ...defaultSearch("mcts"), budgetTokens: "1500", delimiter: "\\n" },
  right: { ...defaultSearch("best_of_n"), budgetTokens: "1500" },
});

const runs = [new SearchRun(), new SearchRun()] as const;

/** The request of one side. */
function body(draft: Draft, search: SearchSettings): Record<string, unknown> {
  const messages = [{ role: "user", content: draft.prompt }];
  if (draft.system.trim() !== "") messages.unshift({ role: "system", content: draft.system });
  return {
    model: model.value?.id,
    messages,
    temperature: number(draft.temperature, "Temperature"),
    max_tokens: number(draft.maxTokens, "Longest answer"),
    seed: number(draft.seed, "Seed"),
    stream_options: { include_usage: true },
    search: searchField(search),
  };
}

export function SearchView() {
  const error = useSignal("");
  const { value } = draft;
  const isRunning = runs.some((run) => run.state.value === "running");
  const set = (change: Partial<Draft>) => (draft.value = { ...draft.value, ...change });

  const start = () => {
    error.value = "";
    try {
      const sides = value.isDouble ? [value.left, value.right] : [value.left];
      // What is wrong with a field is told before anything runs.
      const bodies = sides.map((side) => body(value, side));
      bodies.forEach((body, index) => void runs[index]!.start(body, sides[index]!.strategy));
      if (!value.isDouble) runs[1].stop();
    } catch (problem) {
      error.value = told(problem);
    }
  };
  const stop = () => runs.forEach((run) => run.stop());

  return (
    <div class="search-view">
      <h1 class="visually-hidden">Search</h1>
      <form
        class="search-ask"
        onSubmit={(event) => {
          event.preventDefault();
          if (isRunning) stop();
          else start();
        }}
      >
        <Ask value={value} set={set} isRunning={isRunning} />
        <Settings value={value} set={set} />
        {error.value && (
          <p class="error" role="alert">
            {error.value}
          </p>
        )}
      </form>
      <div class={value.isDouble ? "sides double" : "sides"}>
        <Side run={runs[0]} settings={value.left} />
        {value.isDouble && <Side run={runs[1]} settings={value.right} />}
      </div>
    </div>
  );
}

interface PartProps {
  value: Draft;
  set: (change: Partial<Draft>) => void;
}

function Ask({ value, set, isRunning }: PartProps & { isRunning: boolean }) {
  const onKeyDown = (event: KeyboardEvent) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    // Only the button stops: Enter once too often must not.
    if (isRunning) return;
    (event.currentTarget as HTMLTextAreaElement).form?.requestSubmit();
  };
  return (
    <div class="ask">
      <label for="search-prompt" class="visually-hidden">
        Prompt
      </label>
      <textarea
        id="search-prompt"
        rows={2}
        value={value.prompt}
        placeholder="A question worth more than one answer"
        onInput={(event) => set({ prompt: event.currentTarget.value })}
        onKeyDown={onKeyDown}
      />
      <button type="submit" class="primary" disabled={!isRunning && value.prompt.trim() === ""}>
        <Icon name={isRunning ? "stop" : "tree"} />
        {isRunning ? "Stop" : "Search"}
      </button>
    </div>
  );
}

function Settings({ value, set }: PartProps) {
  return (
    <details class="search-settings">
      <summary>
        <Icon name="sliders" />
        <span class="strategy-name">{strategyName(value.left.strategy)}</span>
        {value.isDouble && (
          <span class="strategy-name"> beside {strategyName(value.right.strategy)}</span>
        )}
        <span class="hint">strategy, budget, reward, sampling</span>
      </summary>
      <div class="settings-columns">
        <fieldset>
          <legend>{value.isDouble ? "Left" : "Search"}</legend>
          <SearchFields settings={value.left} onChange={(left) => set({ left })} />
        </fieldset>
        {value.isDouble && (
          <fieldset>
            <legend>Right</legend>
            <SearchFields settings={value.right} onChange={(right) => set({ right })} />
          </fieldset>
        )}
        <fieldset>
          <legend>Sampling</legend>
          <div class="fields">
            <div class="field-row">
              <Field
                label="temperature"
                value={value.temperature}
                placeholder="0.7"
                onChange={(temperature) => set({ temperature })}
              />
              <Field
                label="longest answer"
                value={value.maxTokens}
                placeholder="the context"
                onChange={(maxTokens) => set({ maxTokens })}
              />
              <Field
                label="seed"
                value={value.seed}
                placeholder="random"
                onChange={(seed) => set({ seed })}
              />
            </div>
            <TextArea
              label="system message"
              value={value.system}
              onChange={(system) => set({ system })}
            />
            <button
              type="button"
              aria-pressed={value.isDouble}
              onClick={() => set({ isDouble: !value.isDouble })}
            >
              <Icon name="columns" />
              {value.isDouble ? "One strategy" : "Compare two strategies"}
            </button>
          </div>
        </fieldset>
      </div>
    </details>
  );
}

function Side({ run, settings }: { run: SearchRun; settings: SearchSettings }) {
  const budget = useMemo(() => Number(settings.budgetTokens) || undefined, [settings]);
  if (run.state.value === "idle") return <Invitation />;
  const id = run.report.value?.trace_id;
  return (
    <section class="side">
      <Pane run={run} budget={budget} label={`Tree of ${strategyName(run.strategy)}`} />
      {run.answer.value !== "" && (
        <article class="side-answer">
          <header>
            <h2>Answer</h2>
            {id && (
              <button class="quiet" onClick={() => go("traces", id)}>
                Grade the trace
              </button>
            )}
          </header>
          <Markdown text={run.answer.value} />
        </article>
      )}
    </section>
  );
}

function Invitation() {
  return (
    <section class="invitation">
      <Icon name="tree" />
      <h2>Watch the engine search</h2>
      <p>
        Every step that a search samples becomes a node: coloured by its value, larger with each
        visit, faded when it is given up. Ask something, or choose two strategies to compare.
      </p>
    </section>
  );
}
