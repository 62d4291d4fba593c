// What needs no browser: trees, streams, metrics, settings, files of conversations.
import assert from "node:assert/strict";
import { test } from "node:test";
import { parseMetrics, quantiles, total } from "../src/api/prometheus";
import { EventSplitter } from "../src/api/sse";
import type { SearchEvent, Trace, TraceNode } from "../src/api/types";
import {
  type AssistantTurn,
  exported,
  imported,
  newAnswer,
  newConversation,
} from "../src/chat/conversation";
import { plainMath } from "../src/markdown/math";
import { layoutOf } from "../src/search/layout";
import { defaultSearch, searchField } from "../src/search/settings";
import { sharing } from "../src/search/sharing";
import { logOf, TreeLog } from "../src/search/tree";
import { step } from "../src/search/walk";

function node(parent: number | null, more: Partial<TraceNode> = {}): TraceNode {
  return {
    parent,
    text: "a step",
    token_ids: Array.from({ length: 10 }, (_, id) => id),
    token_logprobs: [],
    end: null,
    logprob: -1,
    score: 0.5,
    outcome: null,
    value: 0.5,
    visit_count: 1,
    is_pruned: false,
    is_rollout: false,
    ...more,
  };
}

function trace(nodes: TraceNode[], chosen: number[]): Trace {
  return {
    schema: "ponder.trace.v1",
    id: "t",
    revision: 1,
    model: "m",
    created: 0,
    strategy: "beam",
    seed: 1,
    tags: [],
    nodes,
    chosen,
    stopped: null,
    outcome: null,
    usage: { prompt_tokens: 20, completion_tokens: 30, scorer_calls: 3 },
    timings: { total_ms: 1000, scorer_ms: 0 },
  };
}

function log(...events: SearchEvent[]): TreeLog {
  const log = new TreeLog();
  events.forEach((event, at) => log.push({ at, event }));
  return log;
}

const spawn = (node: number, parent: number): SearchEvent => ({
  event: "spawn",
  node,
  parent,
  text: `node ${node}`,
  tokens: 10 * node,
});

test("a log can be read at any place, forwards and back", () => {
  const all = log(
    spawn(1, 0),
    { event: "score", node: 1, value: 0.2 },
    spawn(2, 1),
    { event: "prune", node: 2 },
    { event: "best", node: 1, value: 0.2 },
  );
  assert.equal(all.at(5).nodes.length, 3);
  assert.equal(all.at(5).numPruned, 1);
  assert.equal(all.at(5).best, 1);
  assert.equal(all.at(5).nodes[0]!.visits, 3);
  assert.equal(all.at(2).nodes.length, 2);
  assert.equal(all.at(2).best, null);
  assert.equal(all.at(3).nodes[1]!.visits, 2);
  assert.equal(all.countAt(2), 3);
  assert.equal(all.countAt(-1), 0);
});

test("nodes that do not follow are left out", () => {
  const tree = log(spawn(1, 0), spawn(5, 1), spawn(2, 9)).at(3);
  assert.equal(tree.nodes.length, 2);
});

test("a record becomes events that end in the record", () => {
  const nodes = [
    node(null, { value: null, score: null, visit_count: 9 }),
    node(0, { value: 0.9, score: 0.4 }),
    node(0, { is_pruned: true }),
    node(1, { end: "stop", value: 0.8, score: 0.8 }),
  ];
  const told = logOf(trace(nodes, [3]));
  const tree = told.at(told.length);
  assert.deepEqual(tree.chosen, [3]);
  assert.equal(tree.nodes[1]!.value, 0.9, "the record's value, not the score");
  assert.equal(tree.nodes[0]!.visits, 9);
  assert.equal(tree.nodes[2]!.isPruned, true);
  const before = told.at(2);
  assert.equal(before.nodes.length, 2);
  assert.equal(before.chosen.length, 0);
});

test("branches share the blocks of what they have in common", () => {
  const nodes = [node(null), node(0), node(0), node(1, { end: "stop" })];
  const told = logOf(trace(nodes, [3]));
  const found = sharing(told.at(told.length), 32, 16);
  // Two of the prompt, one for each step: the second step of a branch fills its parent's first.
  assert.equal(found.shared, 5);
  assert.equal(found.apart, 3 + 4);
  assert.equal(found.isExact, true);
});

test("keys walk the tree", () => {
  const tree = log(spawn(1, 0), spawn(2, 0), spawn(3, 2), {
    event: "best",
    node: 3,
    value: 1,
  }).at(4);
  const layout = layoutOf(tree);
  const from = (id: number, key: string) => step(tree, layout, id, key);
  assert.equal(from(0, "ArrowRight"), 2, "towards the best");
  assert.equal(from(2, "ArrowRight"), 3);
  assert.equal(from(3, "ArrowLeft"), 2);
  assert.equal(from(1, "ArrowDown"), 2);
  assert.equal(from(2, "ArrowUp"), 1);
  assert.equal(from(0, "End"), 3);
  assert.equal(from(3, "Home"), 0);
  assert.equal(from(3, "a"), null);
});

test("events are put together from any pieces", () => {
  const splitter = new EventSplitter();
  const text = ': wait\n\ndata: {"a": 1}\n\ndata: [DONE]\n\n';
  const found = [...text].flatMap((character) => splitter.push(character));
  assert.deepEqual(found, ['{"a": 1}', "[DONE]"]);
});

test("percentiles lie between the bounds of their buckets", () => {
  const metrics = parseMetrics(
    [
      'ponder_x_bucket{le="1"} 50',
      'ponder_x_bucket{le="2"} 100',
      'ponder_x_bucket{le="+Inf"} 100',
      'ponder_y{name="a \\"b\\""} 2',
      'vllm:y{name="a"} 2',
      "ponder_y 3",
    ].join("\n"),
  );
  assert.deepEqual(quantiles(metrics, "x", [0.25, 0.5, 0.75]), [0.5, 1, 1.5]);
  assert.deepEqual(quantiles(metrics, "z", [0.5]), [null]);
  assert.equal(total(metrics, "y"), 5);
});

test("settings become the fields that were filled in", () => {
  assert.equal(searchField(defaultSearch()), undefined);
  const settings = { ...defaultSearch("mcts"), n: " 4 ", budgetSeconds: "1.5", delimiter: "\\n" };
  settings.more = '{"aggregate": "min"}';
  assert.deepEqual(searchField(settings), {
    strategy: "mcts",
    n: 4,
    budget: { ms: 1500 },
    step: { delimiter: "\n" },
    stream_events: true,
    aggregate: "min",
  });
  assert.throws(() => searchField({ ...settings, n: "four" }), /n is not a number/);
  assert.throws(() => searchField({ ...settings, more: "{" }), /not JSON/);
});

test("formulas read well in a line", () => {
  const cases = [
    ["17 \\times \\frac{1}{2} = \\boxed{8.5}", "17 × 1/2 = [8.5]"],
    ["\\frac{a + 1}{\\sqrt{b}} \\leq \\unknown", "(a + 1)/(√(b)) ≤ \\unknown"],
    ["\\text{cost} = \\$5", "cost = $5"],
  ] as const;
  for (const [tex, text] of cases) assert.equal(plainMath(tex), text);
});

test("conversations survive a file, and a bad file is refused", () => {
  const one = newConversation();
  const answer = { ...newAnswer("m", ""), text: "hello" };
  one.title = "One";
  one.turns = [
    { role: "user", id: "a", text: "hi" },
    { role: "assistant", id: "b", variants: [answer], shown: 0 },
  ];
  const [back] = imported(exported([one]));
  assert.notEqual(back!.id, one.id, "an import overwrites nothing");
  assert.equal(back!.title, "One");
  assert.deepEqual((back!.turns[1] as AssistantTurn).variants, [answer]);
  assert.throws(() => imported('{"format": "other"}'), /no file of conversations/);
  assert.throws(() => imported("nothing"));
});
