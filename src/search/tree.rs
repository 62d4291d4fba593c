//! The searched tree. No engine, no text handling, no randomness.

use std::sync::Arc;

use super::inserted::{Inserted, num_inserted};
use super::outcome::is_whole;
use super::policy::{Continuation, End, Expansion};
use super::step::StepRule;
use super::text_hash::TextHash;
use crate::engine::{TokenId, TokenLogprobs};
use crate::reward::{Aggregate, Candidate, Scored};

/// Added to the number of an expansion that samples steps, see [`Node::num_expansions`].
const STEP_KEY: u32 = 1 << 31;

/// An answer's text, and whether it has ended.
pub(super) type ScoreKey = (TextHash, bool);

/// Index of a node; the root is 0 and parents come before children.
pub type NodeId = usize;

/// A step of the answer, or a whole answer.
#[derive(Debug, Clone)]
pub struct Node {
    pub parent: Option<NodeId>,
    pub children: Vec<NodeId>,
    pub depth: usize,
    /// Key of the randomness of what continues this node: how it was reached.
    pub branch_path: Vec<u32>,
    /// How often the node was continued by steps, and by whole answers: part of its continuations' keys, so that a
    /// key means the same kind of sample whatever a budget allowed before.
    pub num_expansions: [u32; 2],
    /// This step's own tokens and text.
    pub token_ids: Vec<TokenId>,
    pub text: String,
    /// What of them the policy did not write.
    pub inserted: Vec<Inserted>,
    /// Of the answer's text up to here: no node holds what is above it.
    pub text_hash: TextHash,
    /// Tokens of the answer up to here that the policy wrote, and the sum of their
    /// log-probabilities.
    pub num_tokens: usize,
    /// Tokens of the answer up to here that it did not write.
    pub num_inserted: usize,
    pub logprob: f64,
    /// Of this step's own tokens.
    pub logprobs: Vec<TokenLogprobs>,
    /// Why nothing follows; `None` when the node can be continued.
    pub end: Option<End>,
    /// The scorer's word.
    pub score: Option<f64>,
    /// The words of the scorer's parts, when it has several.
    pub reward_parts: Vec<(&'static str, f64)>,
    /// What the search makes of it: the score, then what its descendants showed.
    pub value: f64,
    pub value_sum: f64,
    pub visit_count: u64,
    /// Branch paths of the samples that say the same as this one and were merged into it.
    pub duplicate_paths: Vec<Vec<u32>>,
    /// Those of them that have other tokens: another split of the text, or other white space at its end.
    pub variant_paths: Vec<Vec<u32>>,
    /// Never selected again.
    pub is_pruned: bool,
    /// A whole answer sampled to value its parent: a candidate for the answer, never a place to search from.
    pub is_rollout: bool,
    pub hidden_state: Option<Arc<[f32]>>,
    /// See [`Continuation::confidence`].
    pub confidence: Option<f64>,
}

impl Node {
    pub(super) fn take_score(&mut self, scored: Scored) {
        self.score = Some(scored.score);
        self.reward_parts = scored.parts;
    }
}

fn sum(logprobs: &[TokenLogprobs]) -> f64 {
    logprobs.iter().map(|token| f64::from(token.logprob)).sum()
}

/// All nodes in order of creation.
#[derive(Debug, Clone)]
pub struct Tree {
    pub nodes: Vec<Node>,
}

impl Default for Tree {
    fn default() -> Self {
        Self::new()
    }
}

impl Tree {
    pub const ROOT: NodeId = 0;

    /// Only the root: an answer without tokens.
    pub fn new() -> Self {
        let root = Node {
            parent: None,
            children: Vec::new(),
            depth: 0,
            branch_path: Vec::new(),
            num_expansions: [0; 2],
            token_ids: Vec::new(),
            text: String::new(),
            inserted: Vec::new(),
            text_hash: TextHash::default(),
            num_tokens: 0,
            num_inserted: 0,
            logprob: 0.0,
            logprobs: Vec::new(),
            end: None,
            score: None,
            reward_parts: Vec::new(),
            value: 0.0,
            value_sum: 0.0,
            visit_count: 0,
            duplicate_paths: Vec::new(),
            variant_paths: Vec::new(),
            is_pruned: false,
            is_rollout: false,
            hidden_state: None,
            confidence: None,
        };
        Self { nodes: vec![root] }
    }

    pub fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id]
    }

    /// Adds a continuation of `parent`; one that repeats a sibling's text is merged into it. Returns the
    /// node and whether it is new.
    pub fn add(
        &mut self,
        parent: NodeId,
        branch_path: Vec<u32>,
        continuation: Continuation,
    ) -> (NodeId, bool) {
        let twin = self.nodes[parent].children.iter().copied().find(|id| {
            let sibling = &self.nodes[*id];
            sibling.end == continuation.end.terminal()
                && sibling.text.trim_end() == continuation.text.trim_end()
                && !sibling.is_rollout
        });
        if let Some(twin) = twin {
            let node = &mut self.nodes[twin];
            if node.token_ids != continuation.token_ids {
                node.variant_paths.push(branch_path.clone());
            }
            node.duplicate_paths.push(branch_path);
            return (twin, false);
        }
        (self.push(parent, branch_path, continuation), true)
    }

    fn push(
        &mut self,
        parent: NodeId,
        branch_path: Vec<u32>,
        continuation: Continuation,
    ) -> NodeId {
        let above = &self.nodes[parent];
        let node = Node {
            parent: Some(parent),
            children: Vec::new(),
            depth: above.depth + 1,
            branch_path,
            num_expansions: [0; 2],
            num_tokens: above.num_tokens + continuation.num_own(),
            num_inserted: above.num_inserted + num_inserted(&continuation.inserted),
            inserted: continuation.inserted,
            logprob: above.logprob + sum(&continuation.logprobs),
            logprobs: continuation.logprobs,
            end: continuation.end.terminal(),
            text_hash: above.text_hash.followed_by(&continuation.text),
            token_ids: continuation.token_ids,
            text: continuation.text,
            score: None,
            reward_parts: Vec::new(),
            value: 0.0,
            value_sum: 0.0,
            visit_count: 0,
            duplicate_paths: Vec::new(),
            variant_paths: Vec::new(),
            is_pruned: false,
            is_rollout: false,
            hidden_state: continuation.hidden_state,
            confidence: continuation.confidence,
        };
        let id = self.nodes.len();
        self.nodes.push(node);
        self.nodes[parent].children.push(id);
        id
    }

    /// Adds a whole answer that continues `parent`, see [`Node::is_rollout`].
    pub fn add_rollout(
        &mut self,
        parent: NodeId,
        branch_path: Vec<u32>,
        continuation: Continuation,
    ) -> NodeId {
        let id = self.push(parent, branch_path, continuation);
        self.nodes[id].is_rollout = true;
        id
    }

    /// What is sampled to continue a node: each expansion of it draws anew.
    pub fn expansion(
        &mut self,
        id: NodeId,
        n: usize,
        step: Option<StepRule>,
        noted_step: Option<StepRule>,
    ) -> Expansion {
        let node = &mut self.nodes[id];
        let is_step = step.is_some();
        let count = &mut node.num_expansions[usize::from(!is_step)];
        let key = *count + if is_step { STEP_KEY } else { 0 };
        *count += 1;
        let branch_path = [node.branch_path.as_slice(), &[key]].concat();
        Expansion {
            prefix: self.token_ids(id),
            prefix_text: self.text(id),
            inserted: self.inserted(id),
            branch_path,
            n,
            priority: self.nodes[id].value as f32,
            step,
            noted_step,
            confidence: None,
        }
    }

    /// What finishes an answer from a node when a budget is spent. Its key is none of [`Self::expansion`]'s: with
    /// a larger budget the node would be expanded instead.
    pub fn last_expansion(&self, id: NodeId) -> Expansion {
        Expansion {
            prefix: self.token_ids(id),
            prefix_text: self.text(id),
            inserted: self.inserted(id),
            branch_path: [self.nodes[id].branch_path.as_slice(), &[u32::MAX]].concat(),
            n: 1,
            priority: self.nodes[id].value as f32,
            step: None,
            noted_step: None,
            confidence: None,
        }
    }

    /// The answer up to a node, for a scorer.
    pub fn candidate(&self, id: NodeId) -> Candidate {
        let node = &self.nodes[id];
        Candidate {
            text: self.text(id),
            token_ids: self.token_ids(id).into(),
            num_tokens: node.num_tokens,
            logprob: node.logprob,
            hidden_state: node.hidden_state.clone(),
            is_complete: is_whole(node.end),
            num_duplicates: node.duplicate_paths.len(),
        }
    }

    /// [`Self::score_key`] and [`Self::candidate`] of a continuation of `parent` that is not a node.
    pub(super) fn candidate_after(
        &self,
        parent: NodeId,
        continuation: &Continuation,
    ) -> (ScoreKey, Candidate) {
        let above = &self.nodes[parent];
        let is_complete = is_whole(continuation.end.terminal());
        let candidate = Candidate {
            text: self.text(parent) + &continuation.text,
            token_ids: [self.token_ids(parent), continuation.token_ids.clone()]
                .concat()
                .into(),
            num_tokens: above.num_tokens + continuation.num_own(),
            logprob: above.logprob + sum(&continuation.logprobs),
            hidden_state: continuation.hidden_state.clone(),
            is_complete,
            num_duplicates: 0,
        };
        let key = (above.text_hash.followed_by(&continuation.text), is_complete);
        (key, candidate)
    }

    /// Answers with the same one have the same score.
    pub(super) fn score_key(&self, id: NodeId) -> ScoreKey {
        let node = &self.nodes[id];
        (node.text_hash, is_whole(node.end))
    }

    /// The children that a search may go on from.
    pub fn selectable(&self, id: NodeId) -> impl Iterator<Item = NodeId> + '_ {
        let children = self.nodes[id].children.iter().copied();
        children.filter(|child| {
            let child = &self.nodes[*child];
            !child.is_rollout && !child.is_pruned
        })
    }

    /// The nodes from the root's child down to `id`.
    pub fn path(&self, id: NodeId) -> Vec<NodeId> {
        let mut path = Vec::new();
        let mut at = id;
        while let Some(parent) = self.nodes[at].parent {
            path.push(at);
            at = parent;
        }
        path.reverse();
        path
    }

    /// The answer up to `id`.
    pub fn text(&self, id: NodeId) -> String {
        let path = self.path(id);
        path.iter()
            .map(|id| self.nodes[*id].text.as_str())
            .collect()
    }

    pub fn token_ids(&self, id: NodeId) -> Vec<TokenId> {
        let path = self.path(id);
        path.iter()
            .flat_map(|id| self.nodes[*id].token_ids.iter().copied())
            .collect()
    }

    /// What of the answer up to `id` the policy did not write.
    pub fn inserted(&self, id: NodeId) -> Vec<Inserted> {
        let (mut num_tokens, mut num_bytes) = (0, 0);
        let mut all = Vec::new();
        for id in self.path(id) {
            let node = &self.nodes[id];
            all.extend(
                node.inserted
                    .iter()
                    .map(|it| it.moved(num_tokens, num_bytes)),
            );
            num_tokens += node.token_ids.len();
            num_bytes += node.text.len();
        }
        all
    }

    pub fn logprobs(&self, id: NodeId) -> Vec<TokenLogprobs> {
        let path = self.path(id);
        path.iter()
            .flat_map(|id| self.nodes[*id].logprobs.iter().cloned())
            .collect()
    }

    /// The scores along the path to `id` as one number; 0 where none is.
    pub fn aggregate(&self, id: NodeId, aggregate: Aggregate) -> f64 {
        let path = self.path(id);
        let scores: Vec<f64> = path.iter().filter_map(|id| self.nodes[*id].score).collect();
        aggregate.of(&scores)
    }

    /// The nodes from `id` up to the root, both included.
    pub fn ancestors(&self, id: NodeId) -> impl Iterator<Item = NodeId> + '_ {
        std::iter::successors(Some(id), |at| self.nodes[*at].parent)
    }

    /// The last node that all of `ids` descend from.
    pub fn common_ancestor(&self, ids: &[NodeId]) -> NodeId {
        let Some((first, rest)) = ids.split_first() else {
            return Self::ROOT;
        };
        let mut common = self.path(*first);
        for id in rest {
            let path = self.path(*id);
            let shared = common.iter().zip(&path).take_while(|(a, b)| a == b).count();
            common.truncate(shared);
        }
        common.last().copied().unwrap_or(Self::ROOT)
    }
}
