// What the server sends and takes, as far as the page reads it (openapi/openapi.json has the rest).

export interface Model {
  id: string;
  root: string;
  parent: string | null;
  max_model_len?: number;
  backend?: string;
  capabilities?: string[];
}

export interface ToolCall {
  id: string;
  name: string;
  arguments: string;
}

/** Code that the server ran while the model answered. */
export interface ToolOutput {
  code: string;
  output: string;
  status: string;
  text: string;
}

export interface Usage {
  prompt_tokens: number;
  completion_tokens: number;
  prompt_tokens_details?: { cached_tokens?: number };
  completion_tokens_details?: {
    reasoning_tokens?: number;
    accepted_prediction_tokens?: number;
    rejected_prediction_tokens?: number;
  };
}

/** `search` of an answer. */
export interface SearchReport {
  trace_id: string | null;
  strategy: string;
  value: number | null;
  nodes: number;
  tokens: number;
  scorer_calls: number;
  scorer_tokens: number;
  stopped: string | null;
}

/** `search_event` of a chunk. */
export type SearchEvent =
  | { event: "spawn"; node: number; parent: number; text: string; tokens: number }
  | { event: "score"; node: number; value: number }
  | { event: "prune"; node: number }
  | { event: "vote"; answer: string; votes: number; total: number }
  | { event: "best"; node: number; value: number };

export interface Chunk {
  choices?: {
    index: number;
    delta?: {
      content?: string | null;
      reasoning_content?: string | null;
      tool_calls?: {
        index: number;
        id?: string;
        function?: { name?: string; arguments?: string };
      }[];
    };
    finish_reason?: string | null;
    ponder_tool_outputs?: ToolOutput[];
  }[];
  search_event?: SearchEvent;
  search?: SearchReport;
  usage?: Usage | null;
  trace_id?: string | null;
  error?: { message: string; code?: string | null };
}

export interface Process {
  distance: number | null;
  weighted_reward: number;
  quality_value: number;
}

export interface TraceNode {
  parent: number | null;
  text: string;
  token_ids: number[];
  token_logprobs: number[];
  end: string | null;
  logprob: number;
  score: number | null;
  reward_parts?: Record<string, number>;
  outcome: number | null;
  process?: Process | null;
  value: number | null;
  visit_count: number;
  is_pruned: boolean;
  is_rollout: boolean;
  duplicate_paths?: number[][];
  confidence?: number | null;
  inserted?: { chars: [number, number]; code: string; output: string; status: string }[];
}

export interface Trace {
  schema: string;
  id: string;
  revision: number;
  model: string;
  created: number;
  strategy: string;
  seed: number;
  tags: string[];
  search?: Record<string, unknown>;
  sampling?: Record<string, unknown>;
  request?: { messages?: { role: string; content: unknown }[]; prompt?: string };
  prompt_text?: string;
  prompt_token_ids?: number[];
  nodes: TraceNode[];
  chosen: number[];
  stopped: string | null;
  outcome: number | null;
  correction?: string | null;
  usage: { prompt_tokens: number; completion_tokens: number; scorer_calls: number };
  timings: { total_ms: number; scorer_ms: number };
  is_redacted?: boolean;
}

export interface TraceSummary {
  id: string;
  revision: number;
  created: number;
  model: string;
  strategy: string;
  tags: string[];
  value: number | null;
  outcome: number | null;
  num_nodes: number;
  num_tokens: number;
  bytes: number;
}

export interface TraceList {
  data: TraceSummary[];
  has_more: boolean;
  next: string | number | null;
}

export const EXPORT_FORMATS = [
  "tree",
  "sft",
  "step_values",
  "preferences",
  "linearised",
  "groups",
] as const;
export type ExportFormat = (typeof EXPORT_FORMATS)[number];
