// The list of traces, with its filters.
import { useSignal } from "@preact/signals";
import { useEffect } from "preact/hooks";
import { getJson, told } from "../api/client";
import { returns } from "../api/connection";
import { key } from "../api/key";
import { models, strategies } from "../api/models";
import type { TraceList, TraceSummary } from "../api/types";
import { go, href } from "../router";
import { fixed } from "../search/describe";
import { Field, Select } from "../ui/fields";
import { type Filters, filters, query } from "./filters";
import { strategyName } from "../ui/names";

const GRADED = [
  ["", "graded or not"],
  ["true", "graded"],
  ["false", "not graded"],
] as const;

const ORDERS = [
  ["desc", "latest first"],
  ["asc", "oldest first"],
] as const;

export function TracesList() {
  const rows = useSignal<TraceSummary[]>([]);
  const next = useSignal<string | number | null>(null);
  const error = useSignal("");
  const isLoading = useSignal(true);
  const { value } = filters;

  const load = async (after: string | number | null, signal?: AbortSignal) => {
    isLoading.value = true;
    try {
      const options = signal ? { signal } : {};
      const list = await getJson<TraceList>(`/v1/traces?${query(value, after)}`, options);
      rows.value = after === null ? list.data : [...rows.value, ...list.data];
      next.value = list.has_more ? list.next : null;
      error.value = "";
    } catch (problem) {
      if (signal?.aborted) return;
      error.value = told(problem);
    }
    isLoading.value = false;
  };

  const { value: back } = returns;
  const { value: shownKey } = key;
  useEffect(() => {
    const abort = new AbortController();
    // Somebody may still be typing.
    const timer = setTimeout(() => void load(null, abort.signal), 150);
    return () => {
      clearTimeout(timer);
      abort.abort();
    };
  }, [value, back, shownKey]);

  return (
    <div class="traces-view">
      <header class="view-head">
        <h1>Traces</h1>
        <button onClick={() => void load(null)}>Reload</button>
      </header>
      <FilterBar value={value} />
      {error.value && (
        <p class="error" role="alert">
          {error.value}
        </p>
      )}
      {rows.value.length === 0 && !isLoading.value && error.value === "" ? (
        <p class="empty">
          No traces match. Every search is kept as one, plain answers when the request asks for it.
        </p>
      ) : (
        <Table rows={rows.value} />
      )}
      {next.value !== null && (
        <button class="load-more" onClick={() => void load(next.value)}>
          Load more
        </button>
      )}
    </div>
  );
}

function FilterBar({ value }: { value: Filters }) {
  const set = (name: keyof Filters) => (text: string) =>
    (filters.value = { ...filters.value, [name]: text });
  const names = (list: string[], all: string) =>
    [["", all] as const, ...list.map((name) => [name, strategyName(name)] as const)];
  const modelNames = models.value.map((model) => model.id);
  return (
    <div class="filters" role="group" aria-label="Filters">
      <Select
        label="Model"
        isBare
        value={value.model}
        options={names(modelNames, "all models")}
        onChange={set("model")}
      />
      <Select
        label="Strategy"
        isBare
        value={value.strategy}
        options={names([...strategies.value, "none"], "all strategies")}
        onChange={set("strategy")}
      />
      <Select
        label="Graded"
        isBare
        value={value.graded}
        options={GRADED}
        onChange={set("graded")}
      />
      <Select label="Order" isBare value={value.order} options={ORDERS} onChange={set("order")} />
      <Field label="tags" value={value.tags} placeholder="all of these" onChange={set("tags")} />
      <Field label="value from" value={value.minValue} onChange={set("minValue")} />
      <Field label="outcome from" value={value.minOutcome} onChange={set("minOutcome")} />
      <Field label="since" type="date" value={value.from} onChange={set("from")} />
      <Field label="before" type="date" value={value.before} onChange={set("before")} />
    </div>
  );
}

function Table({ rows }: { rows: TraceSummary[] }) {
  return (
    <div class="table-scroll" tabIndex={0} role="region" aria-label="List of traces">
      <table class="list">
        <thead>
          <tr>
            <th scope="col">when</th>
            <th scope="col">strategy</th>
            <th scope="col">model</th>
            <th scope="col" class="number">
              nodes
            </th>
            <th scope="col" class="number">
              tokens
            </th>
            <th scope="col" class="number">
              value
            </th>
            <th scope="col">outcome</th>
            <th scope="col">tags</th>
          </tr>
        </thead>
        <tbody>
          {rows.map((row) => (
            <tr key={row.id} onClick={() => go("traces", row.id)}>
              <td>
                <a href={href("traces", row.id)}>{when(row.created)}</a>
              </td>
              <td>{strategyName(row.strategy)}</td>
              <td>{row.model}</td>
              <td class="number">{row.num_nodes}</td>
              <td class="number">{row.num_tokens}</td>
              <td class="number">{fixed(row.value)}</td>
              <td>
                <Outcome outcome={row.outcome} />
              </td>
              <td>
                {row.tags.map((tag) => (
                  <span class="tag" key={tag}>
                    {tag}
                  </span>
                ))}
              </td>
            </tr>
          ))}
        </tbody>
      </table>
    </div>
  );
}

export function Outcome({ outcome }: { outcome: number | null }) {
  if (outcome === null) return <span class="outcome open">not graded</span>;
  if (outcome >= 1) return <span class="outcome right">right</span>;
  return <span class="outcome wrong">{outcome === 0 ? "wrong" : `wrong (${outcome})`}</span>;
}

export function when(seconds: number): string {
  const options: Intl.DateTimeFormatOptions = { dateStyle: "medium", timeStyle: "short" };
  return new Date(seconds * 1000).toLocaleString(undefined, options);
}
