//! One request and everything that was sampled for it, as JSON.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::values::ProcessReward;

/// Version of the record's shape. Fields may be added under the same name: readers ignore what they do not know,
/// and what an older record lacks has a default.
pub const SCHEMA: &str = "ponder.trace.v1";

/// The strategy of a trace of one plain answer.
pub const PLAIN: &str = "none";

/// A prompt and everything that a search sampled for it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TraceRecord {
    pub schema: String,
    pub id: String,
    /// 1 when it is first written; one more with each outcome that comes later.
    #[serde(default = "first_revision")]
    pub revision: u64,
    pub model: String,
    #[serde(default)]
    pub identity: Identity,
    /// Unix seconds.
    pub created: u64,
    /// [`PLAIN`] when nothing was searched.
    pub strategy: String,
    pub seed: u64,
    #[serde(default)]
    pub tags: Vec<String>,
    /// The search and the sampling that were asked for, without budgets.
    #[serde(default)]
    pub search: Value,
    #[serde(default)]
    pub sampling: Value,
    /// `{"messages": […]}` (and `tools`) of a chat, `{"prompt": …}` of a completion.
    #[serde(default)]
    pub request: Value,
    /// What the model read: the chat template's result.
    #[serde(default)]
    pub prompt_text: String,
    pub prompt_token_ids: Vec<u32>,
    /// In order of creation: the root first, parents before their children.
    pub nodes: Vec<NodeRecord>,
    /// The nodes with which the returned answers end, the best first.
    #[serde(default)]
    pub chosen: Vec<usize>,
    /// How it was adapted to its prompt, and what that did; null when it was not.
    #[serde(default, skip_serializing_if = "Value::is_null")]
    pub adaptation: Value,
    /// `budget` or `decided`, when the search ended before its strategy was through.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stopped: Option<String>,
    /// The oracle's word on the chosen answer, in 0..=1.
    #[serde(default)]
    pub outcome: Option<f64>,
    /// What the answer should have been.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub correction: Option<String>,
    #[serde(default)]
    pub usage: Usage,
    #[serde(default)]
    pub timings: Timings,
    /// Texts and token ids were left out when it was written.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_redacted: bool,
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

fn first_revision() -> u64 {
    1
}

/// What made the answer, to replay it or to tell apart what different weights sampled.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Identity {
    pub server_version: String,
    /// `ALGORITHM:HEX` of the files' bytes.
    pub weights: String,
    pub tokenizer: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub adapter: Option<AdapterIdentity>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub value_head: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub calibration: Option<String>,
    /// Of each value model, by its name: the adapter's weights and the head.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub value_adapters: BTreeMap<String, String>,
}

/// The adapter that was asked for.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct AdapterIdentity {
    pub name: String,
    pub hash: String,
}

/// Tokens of the whole request.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Usage {
    pub prompt_tokens: u64,
    pub num_cached_tokens: u64,
    /// Generated, discarded ones included.
    pub completion_tokens: u64,
    pub scorer_calls: u64,
    /// Tokens that rewards' own models computed.
    #[serde(skip_serializing_if = "is_zero")]
    pub scorer_tokens: u64,
}

/// Milliseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Timings {
    pub total_ms: f64,
    pub scorer_ms: f64,
}

/// One step, or one whole answer.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct NodeRecord {
    pub parent: Option<usize>,
    /// The step's own.
    pub token_ids: Vec<u32>,
    /// Of the step's own tokens, nat, to four decimals, 0 where the model did not write them; empty
    /// where they were not asked for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub token_logprobs: Vec<f64>,
    pub text: String,
    /// What of them the model did not write: its code printed it. No trainer may teach it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub inserted: Vec<InsertedRecord>,
    /// `stop`, `length`, `cut` or `unsure` when nothing follows.
    pub end: Option<String>,
    /// Sum of log-probabilities of the answer up to here.
    pub logprob: f64,
    /// The reward's word during the search.
    pub score: Option<f64>,
    /// The scores of the reward's parts, when it has several.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub reward_parts: BTreeMap<String, f64>,
    /// Whether the whole answer is right, in 0..=1: a verifier's word, or the oracle's later.
    #[serde(default)]
    pub outcome: Option<f64>,
    /// What the tree's outcomes imply for this step.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub process: Option<ProcessReward>,
    pub value: f64,
    pub visit_count: u64,
    pub is_pruned: bool,
    pub is_rollout: bool,
    /// Keys of further samples that said the same.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub duplicate_paths: Vec<Vec<u32>>,
    /// Those of them whose tokens differ.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub variant_paths: Vec<Vec<u32>>,
    /// Key of the randomness beside the seed.
    pub branch_path: Vec<u32>,
    /// Of its least confident group of tokens, where a search asked for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub confidence: Option<f64>,
}

/// Tokens and text that a program printed into a step.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct InsertedRecord {
    /// The first of the step's own tokens, and the first one behind.
    pub tokens: [usize; 2],
    /// The same in characters of the step's own text, as Python counts them.
    pub chars: [usize; 2],
    /// The block of Python before it.
    pub code: String,
    /// What is shown of it.
    pub output: String,
    /// `completed`, `failed`, `timed_out` or `not_run`.
    pub status: String,
}

impl NodeRecord {
    /// Tokens that the model wrote.
    pub fn num_own(&self) -> usize {
        let inserted = self.inserted.iter();
        let inserted = inserted.map(|it| it.tokens[1].saturating_sub(it.tokens[0]));
        self.token_ids.len().saturating_sub(inserted.sum())
    }

    /// Whether an answer ended here by itself or at its longest.
    pub fn is_whole(&self) -> bool {
        matches!(self.end.as_deref(), Some("stop" | "length"))
    }
}

impl TraceRecord {
    /// Whether parents come first and are nodes.
    pub fn is_tree(&self) -> bool {
        let has_parent = |(id, node): (usize, &NodeRecord)| match node.parent {
            Some(parent) => parent < id,
            None => id == 0,
        };
        !self.nodes.is_empty() && self.nodes.iter().enumerate().all(has_parent)
    }

    /// The nodes from the root's child down to `id`.
    pub fn path(&self, id: usize) -> Vec<usize> {
        let parents = std::iter::successors(Some(id), |id| self.nodes[*id].parent);
        let mut path: Vec<usize> = parents.filter(|id| *id != 0).collect();
        path.reverse();
        path
    }

    /// The answer's tokens up to node `id`.
    pub fn answer_token_ids(&self, id: usize) -> Vec<u32> {
        let path = self.path(id);
        let ids = path.iter().flat_map(|id| &self.nodes[*id].token_ids);
        ids.copied().collect()
    }

    /// The answer's text up to node `id`.
    pub fn answer_text(&self, id: usize) -> String {
        let path = self.path(id);
        path.iter()
            .map(|id| self.nodes[*id].text.as_str())
            .collect()
    }

    /// What of the answer's text up to node `id` the model did not write: from character to
    /// character.
    pub fn answer_inserted(&self, id: usize) -> Vec<[usize; 2]> {
        self.inserted_in(&self.path(id))
    }

    /// The same in the text of some nodes behind each other.
    pub fn inserted_in(&self, nodes: &[usize]) -> Vec<[usize; 2]> {
        let mut before = 0;
        let mut all = Vec::new();
        for id in nodes {
            let node = &self.nodes[*id];
            let moved = node.inserted.iter();
            all.extend(moved.map(|it| it.chars.map(|at| at.saturating_add(before))));
            before += node.text.chars().count();
        }
        all
    }

    /// The best returned answer; of a record that names none, the whole answer of most value.
    pub fn best(&self) -> Option<usize> {
        if let Some(best) = self.chosen.first() {
            return Some(*best).filter(|id| *id < self.nodes.len());
        }
        let whole = (1..self.nodes.len()).filter(|id| self.nodes[*id].is_whole());
        // The first of equals.
        whole
            .rev()
            .max_by(|a, b| self.nodes[*a].value.total_cmp(&self.nodes[*b].value))
    }

    /// Takes texts and token ids out; what is left says how the search went, not what it was about.
    pub fn redact(&mut self) {
        self.is_redacted = true;
        self.request = Value::Null;
        self.prompt_text.clear();
        self.prompt_token_ids.clear();
        self.correction = None;
        for node in &mut self.nodes {
            node.token_ids.clear();
            node.text.clear();
            node.inserted.clear();
        }
        // Rewards hold tests and answers; stop strings and biased tokens are the client's words.
        self.search = Value::Null;
        self.sampling = Value::Null;
    }
}
