//! What a search ends with.

use std::time::Duration;

use super::inserted::Inserted;
use super::policy::End;
use super::tree::{Node, NodeId, Tree};
use crate::engine::{EngineError, TokenId, TokenLogprobs};
use crate::reward::ScorerError;

/// Why a search ended before its strategy was through.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Stopped {
    /// Its tokens, scorer calls or time are spent.
    Budget,
    /// A value or a vote decided it.
    Decided,
}

impl Stopped {
    /// The name in the API.
    pub fn name(self) -> &'static str {
        match self {
            Self::Budget => "budget",
            Self::Decided => "decided",
        }
    }
}

#[derive(Debug, Clone, thiserror::Error)]
pub enum SearchError {
    #[error(transparent)]
    Engine(#[from] EngineError),
    #[error(transparent)]
    Scorer(#[from] ScorerError),
    #[error("the search's budget ended before it had one token")]
    NoAnswer,
}

/// Counters of one search.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct SearchStats {
    pub num_nodes: usize,
    /// Generated tokens, discarded ones included.
    pub num_tokens: u64,
    pub scorer_calls: u64,
    /// Tokens that rewards' own models computed.
    pub scorer_tokens: u64,
    pub scorer_time: Duration,
}

/// An answer with its place.
#[derive(Debug, Clone)]
pub struct Ranked {
    pub node: NodeId,
    pub text: String,
    pub token_ids: Vec<TokenId>,
    /// What of it the policy did not write.
    pub inserted: Vec<Inserted>,
    pub logprobs: Vec<TokenLogprobs>,
    pub end: End,
    pub value: f64,
}

/// The best answers, as many as a request may ask for, and the tree that all come from.
#[derive(Debug)]
pub struct SearchOutcome {
    pub answers: Vec<Ranked>,
    pub tree: Tree,
    pub stopped: Option<Stopped>,
    pub stats: SearchStats,
}

/// The best `num_answers` whole answers by value, then by likelihood; without any, what was cut, the longest first.
pub(super) fn rank(tree: &Tree, num_answers: usize) -> Vec<Ranked> {
    let leaves = (1..tree.nodes.len()).filter(|id| {
        let node = tree.node(*id);
        is_whole(node.end) || (node.children.is_empty() && !node.is_pruned)
    });
    let (whole, cut): (Vec<_>, Vec<_>) = leaves.partition(|id| is_whole(tree.node(*id).end));
    let key = |id: &NodeId| {
        let node = tree.node(*id);
        (node.value, node.logprob / node.num_tokens.max(1) as f64)
    };
    let mut order = whole;
    if order.is_empty() {
        order = cut;
        order.sort_by_key(|id| std::cmp::Reverse(tree.node(*id).num_tokens));
    } else {
        order.sort_by(|a, b| {
            let ((va, la), (vb, lb)) = (key(a), key(b));
            vb.total_cmp(&va).then(lb.total_cmp(&la))
        });
    }
    let ranked = order.into_iter().take(num_answers).map(|node| Ranked {
        node,
        text: tree.text(node),
        token_ids: tree.token_ids(node),
        inserted: tree.inserted(node),
        logprobs: tree.logprobs(node),
        end: tree.node(node).end.unwrap_or(End::Cut),
        value: tree.node(node).value,
    });
    ranked.collect()
}

/// Whether a node's end is that of an answer: its own, or the longest that was allowed.
pub(super) fn is_whole(end: Option<End>) -> bool {
    matches!(end, Some(End::Stop | End::Length))
}

/// The node with the highest key, the first of equals: a search replays exactly.
pub(super) fn best_by(
    tree: &Tree,
    ids: impl Iterator<Item = NodeId>,
    key: impl Fn(&Node) -> f64,
) -> Option<NodeId> {
    let mut best: Option<(NodeId, f64)> = None;
    for id in ids {
        let value = key(tree.node(id));
        if best.is_none_or(|(_, highest)| value > highest) {
            best = Some((id, value));
        }
    }
    best.map(|(id, _)| id)
}
