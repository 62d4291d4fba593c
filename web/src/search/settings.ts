// What the user asks a search for, and the request's field that it becomes.

export interface RewardSettings {
  /** Empty: the server's default. */
  kind: string;
  check: string;
  answer: string;
  pattern: string;
  schema: string;
  /** One statement a line. */
  tests: string;
  instruction: string;
}

/** Numbers are kept as they were typed: an empty field is the server's default. */
export interface SearchSettings {
  /** Empty: a plain answer. */
  strategy: string;
  n: string;
  branch: string;
  iterations: string;
  maxDepth: string;
  threshold: string;
  exploration: string;
  cost: string;
  budgetTokens: string;
  budgetSeconds: string;
  delimiter: string;
  reward: RewardSettings;
  /** More fields of `search`, as JSON. */
  more: string;
}

export function defaultSearch(strategy = ""): SearchSettings {
  return {
    strategy,
    n: "",
    branch: "",
    iterations: "",
    maxDepth: "",
    threshold: "",
    exploration: "",
    cost: "",
    budgetTokens: "",
    budgetSeconds: "",
    delimiter: "",
    reward: {
      kind: "",
      check: "math",
      answer: "",
      pattern: "",
      schema: "",
      tests: "",
      instruction: "",
    },
    more: "",
  };
}

/** What is wrong with a field, for the user. */
export class FieldError extends Error {}

export function number(text: string, name: string): number | undefined {
  if (text.trim() === "") return undefined;
  const value = Number(text);
  if (!Number.isFinite(value)) throw new FieldError(`${name} is not a number: ${text}`);
  return value;
}

export function json(text: string, name: string): unknown {
  if (text.trim() === "") return undefined;
  try {
    return JSON.parse(text);
  } catch (error) {
    throw new FieldError(`${name} is not JSON: ${(error as Error).message}`);
  }
}

/** The object without what is undefined, or undefined where nothing is left. */
function compact(fields: Record<string, unknown>): Record<string, unknown> | undefined {
  const entries = Object.entries(fields).filter(([, value]) => value !== undefined);
  return entries.length === 0 ? undefined : Object.fromEntries(entries);
}

function reward(settings: RewardSettings): Record<string, unknown> | undefined {
  const { kind, check } = settings;
  if (kind === "") return undefined;
  if (kind === "judge") {
    return compact({ kind, instruction: settings.instruction.trim() || undefined });
  }
  if (kind !== "verifier") return { kind };
  const lines = settings.tests.split("\n").filter((line) => line.trim() !== "");
  const fields: Record<string, Record<string, unknown>> = {
    math: { answer: settings.answer },
    exact: { answer: settings.answer },
    regex: { pattern: settings.pattern },
    json_schema: { schema: json(settings.schema, "The reward's schema") },
    python: { tests: lines },
  };
  return { kind, type: check, ...fields[check] };
}

/** Escapes as they are typed in a field of one line. */
function unescape(text: string): string | undefined {
  if (text === "") return undefined;
  return text.replaceAll("\\n", "\n").replaceAll("\\t", "\t");
}

/** The request's `search`; undefined for a plain answer. */
export function searchField(settings: SearchSettings): Record<string, unknown> | undefined {
  if (settings.strategy === "") return undefined;
  const seconds = number(settings.budgetSeconds, "Seconds");
  const more = json(settings.more, "More fields") as Record<string, unknown> | undefined;
  return {
    ...compact({
      strategy: settings.strategy,
      n: number(settings.n, "n"),
      branch: number(settings.branch, "branch"),
      iterations: number(settings.iterations, "iterations"),
      max_depth: number(settings.maxDepth, "Depth"),
      threshold: number(settings.threshold, "threshold"),
      exploration: number(settings.exploration, "exploration"),
      cost: number(settings.cost, "cost"),
      budget: compact({
        tokens: number(settings.budgetTokens, "Tokens"),
        ms: seconds === undefined ? undefined : Math.round(seconds * 1000),
      }),
      step: compact({ delimiter: unescape(settings.delimiter) }),
      reward: reward(settings.reward),
    }),
    stream_events: true,
    ...more,
  };
}

interface StrategyFacts {
  says: string;
  /** The fields that mean something to it. */
  fields: (keyof SearchSettings)[];
  /** Placeholders: the server's defaults (docs/search.md). */
  defaults: Partial<Record<keyof SearchSettings, string>>;
}

const SAMPLES: (keyof SearchSettings)[] = ["n", "threshold"];
const BEAMS: (keyof SearchSettings)[] = ["n", "branch", "maxDepth", "delimiter"];

/** What the strategies of the server are, for the names that it lists. */
export const STRATEGIES: Record<string, StrategyFacts> = {
  auto: {
    says: "Spends what the prompt needs: one answer if it is likely right, else waves that vote.",
    fields: ["n", "threshold", "cost"],
    defaults: { n: "16", threshold: "0.95", cost: "0.005" },
  },
  self_consistency: {
    says: "Samples answers and takes the one that most agree on.",
    fields: SAMPLES,
    defaults: { n: "8", threshold: "0.95" },
  },
  deepconf: {
    says: "Votes with confidence; answers that become too unsure end early.",
    fields: SAMPLES,
    defaults: { n: "32", threshold: "0.95" },
  },
  best_of_n: {
    says: "Samples answers and takes the best by the reward.",
    fields: ["n", "threshold", "cost"],
    defaults: { n: "8" },
  },
  beam: {
    says: "Each round keeps the best beams and continues each by a step.",
    fields: BEAMS,
    defaults: { n: "8", branch: "4", maxDepth: "40" },
  },
  dvts: {
    says: "Independent subtrees, each of which follows its own best child.",
    fields: BEAMS,
    defaults: { n: "8", branch: "4", maxDepth: "40" },
  },
  rebase: {
    says: "Shares the samples of each depth out by the values of the open nodes.",
    fields: ["n", "maxDepth", "delimiter"],
    defaults: { n: "8", maxDepth: "40" },
  },
  particle_filtering: {
    says: "Particles take a step each and are drawn anew by the odds of their scores.",
    fields: ["n", "iterations", "maxDepth", "delimiter"],
    defaults: { n: "8", iterations: "1", maxDepth: "40" },
  },
  mcts: {
    says: "Monte Carlo tree search over steps, with roll-outs and back-propagated values.",
    fields: ["branch", "iterations", "exploration", "threshold", "maxDepth", "delimiter"],
    defaults: { branch: "3", iterations: "16", exploration: "0.7", threshold: "0.9" },
  },
  vm_mcts: {
    says: "Tree search that expands by whole answers, whose first steps are the actions.",
    fields: ["n", "branch", "iterations", "exploration", "threshold", "delimiter"],
    defaults: {
      n: "5",
      branch: "3",
      iterations: "10",
      exploration: "0.2",
      delimiter: "line end",
    },
  },
};

export const REWARDS = [
  ["", "the server's default"],
  ["likelihood", "likelihood"],
  ["majority", "majority"],
  ["verifier", "verifier"],
  ["judge", "judge"],
  ["value_model", "value model"],
  ["value_head", "value head"],
  ["prm", "process reward model"],
  ["http", "reward server"],
] as const;

export const CHECKS = [
  ["math", "math answer"],
  ["exact", "exact answer"],
  ["regex", "regular expression"],
  ["json_schema", "JSON schema"],
  ["python", "Python tests"],
] as const;
