//! One searched tree, as JSON.

use serde::{Deserialize, Serialize};

/// Version of the record's shape.
pub const SCHEMA: &str = "ponder.trace.v1";

/// A prompt and everything that a search sampled for it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TraceRecord {
    pub schema: String,
    pub id: String,
    pub model: String,
    /// Unix seconds.
    pub created: u64,
    pub strategy: String,
    pub seed: u64,
    #[serde(default)]
    pub tags: Vec<String>,
    /// The search and the sampling that were asked for, without budgets.
    #[serde(default)]
    pub search: serde_json::Value,
    #[serde(default)]
    pub sampling: serde_json::Value,
    pub prompt_token_ids: Vec<u32>,
    /// In order of creation: the root first, parents before their children.
    pub nodes: Vec<NodeRecord>,
}

/// One step, or one whole answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NodeRecord {
    pub parent: Option<usize>,
    /// The step's own.
    pub token_ids: Vec<u32>,
    pub text: String,
    /// `stop`, `length` or `cut` when nothing follows.
    pub end: Option<String>,
    /// Sum of log-probabilities of the answer up to here.
    pub logprob: f64,
    /// The reward's word during the search.
    pub score: Option<f64>,
    /// Whether the whole answer is right, in 0..=1: a verifier's word, or the oracle's later.
    #[serde(default)]
    pub outcome: Option<f64>,
    pub value: f64,
    pub visit_count: u64,
    pub is_pruned: bool,
    pub is_rollout: bool,
    /// Keys of further samples that were the same.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub duplicate_paths: Vec<Vec<u32>>,
    /// Key of the randomness beside the seed.
    pub branch_path: Vec<u32>,
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

    /// The answer's tokens up to node `id`.
    pub fn answer_token_ids(&self, id: usize) -> Vec<u32> {
        let mut path = Vec::new();
        let mut at = Some(id);
        while let Some(id) = at {
            path.push(id);
            at = self.nodes[id].parent;
        }
        let steps = path.iter().rev();
        steps
            .flat_map(|id| self.nodes[*id].token_ids.iter().copied())
            .collect()
    }
}
