// What the list of traces shows, and the query that it becomes.
import { kept } from "../persist";

export interface Filters {
  model: string;
  strategy: string;
  /** Separated by commas: all of them. */
  tags: string;
  graded: "" | "true" | "false";
  minValue: string;
  minOutcome: string;
  from: string;
  before: string;
  order: "desc" | "asc";
}

export const filters = kept<Filters>("ponder.traces", {
  model: "",
  strategy: "",
  tags: "",
  graded: "",
  minValue: "",
  minOutcome: "",
  from: "",
  before: "",
  order: "desc",
});

export const PAGE = 50;

/** Midnight of a day, here, in Unix seconds. */
function seconds(day: string): string {
  return day === "" ? "" : String(Math.floor(new Date(`${day}T00:00`).getTime() / 1000));
}

export function query(filters: Filters, after: string | number | null): string {
  const query = new URLSearchParams({ limit: String(PAGE), order: filters.order });
  const set = (name: string, value: string) => {
    if (value.trim() !== "") query.append(name, value.trim());
  };
  set("model", filters.model);
  set("strategy", filters.strategy);
  for (const tag of filters.tags.split(",")) set("tag", tag);
  set("has_outcome", filters.graded);
  set("min_value", filters.minValue);
  set("min_outcome", filters.minOutcome);
  set("created_from", seconds(filters.from));
  set("created_before", seconds(filters.before));
  if (after !== null) set("after", String(after));
  return query.toString();
}
