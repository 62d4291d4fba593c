//! What a search tells while it runs.

use serde::Serialize;

use super::inserted::Piece;
use super::tree::NodeId;

/// One piece of progress.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum SearchEvent {
    /// A node was sampled.
    Spawn {
        node: NodeId,
        parent: NodeId,
        text: String,
        tokens: u64,
    },
    /// A node was scored.
    Score { node: NodeId, value: f64 },
    /// A node was given up.
    Prune { node: NodeId },
    /// Answers so far, and how many agree with the leader.
    Vote {
        answer: String,
        votes: usize,
        total: usize,
    },
    /// The best answer so far changed.
    Best { node: NodeId, value: f64 },
    /// All branches that are left begin with this text, which follows what was agreed before.
    Agreed {
        text: String,
        /// The same, by who wrote it.
        #[serde(skip)]
        pieces: Vec<Piece>,
    },
}
