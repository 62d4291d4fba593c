//! A search that goes on from its trace: what an earlier run sampled comes from the record, what it
//! did not comes from the model. Keys of randomness make both the same tree as one run with the
//! larger budget.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use futures::future::{BoxFuture, FutureExt};

use super::inserted::{Inserted, num_inserted};
use super::outcome::SearchError;
use super::policy::{Continuation, End, Expansion, Finished, Policy, Running, StepEnd};
use super::text_hash::TextHash;
use super::tree::ScoreKey;
use crate::engine::{TokenId, TokenLogprobs};
use crate::reward::OwnScores;
use crate::tool::{CodeCall, CodeLimits, CodeTool};

/// A node of the earlier run, in its order: parents before children, the root first.
#[derive(Debug, Clone)]
pub struct RecordedNode {
    pub parent: Option<usize>,
    pub token_ids: Vec<TokenId>,
    pub text: String,
    /// What of it the policy did not write: parts of the node's own tokens and text.
    pub inserted: Vec<Inserted>,
    pub end: Option<End>,
    /// Sum over the answer up to here.
    pub logprob: f64,
    pub score: Option<f64>,
    pub branch_path: Vec<u32>,
    /// Paths of the samples that were merged into this node, and those of them that had other tokens.
    pub duplicate_paths: Vec<Vec<u32>>,
    pub variant_paths: Vec<Vec<u32>>,
    /// See [`Continuation::confidence`].
    pub confidence: Option<f64>,
}

/// What an earlier run sampled and how it was scored. Its size is linear in that of its nodes, and the work of a sample in
/// that of the sample: a client may hand in any tree, however deep.
#[derive(Debug, Clone, Default)]
pub struct Recording {
    nodes: Vec<RecordedNode>,
    /// Tokens of the answer up to each node.
    num_tokens: Vec<usize>,
    /// The node with which the sample of each path ended.
    samples: HashMap<Vec<u32>, usize>,
}

impl Recording {
    /// Parents come before their children.
    pub fn new(nodes: Vec<RecordedNode>) -> Self {
        let mut num_tokens: Vec<usize> = Vec::with_capacity(nodes.len());
        for node in &nodes {
            let above = node.parent.and_then(|parent| num_tokens.get(parent));
            let above = above.copied().unwrap_or_default();
            num_tokens.push(above + node.token_ids.len());
        }
        let mut samples = HashMap::new();
        for (id, node) in nodes.iter().enumerate().skip(1) {
            // What was cut is sampled again.
            if node.end == Some(End::Cut) {
                continue;
            }
            for path in &node.duplicate_paths {
                samples.entry(path.clone()).or_insert(id);
            }
        }
        // A whole answer comes after its first step, which has the same path.
        for (id, node) in nodes.iter().enumerate().skip(1) {
            if node.end == Some(End::Cut) {
                samples.remove(&node.branch_path);
            } else {
                samples.insert(node.branch_path.clone(), id);
            }
        }
        // What is not on record is sampled again: with a larger budget it may be the node into which others are merged,
        // and what it cost counts.
        for path in nodes.iter().flat_map(|node| &node.variant_paths) {
            samples.remove(path);
        }
        Self {
            nodes,
            num_tokens,
            samples,
        }
    }

    /// What came of the code that the earlier run called: none of it runs again.
    pub fn teach(&self, tool: &CodeTool) {
        for (id, node) in self.nodes.iter().enumerate() {
            if node.inserted.is_empty() {
                continue;
            }
            let above = std::iter::successors(node.parent, |id| self.nodes[*id].parent);
            let mut earlier: Vec<Arc<CodeCall>> = Vec::new();
            for above in above {
                let calls = self.nodes[above].inserted.iter().rev();
                earlier.extend(calls.map(|it| Arc::clone(&it.call)));
                // No answer has more.
                if earlier.len() > CodeLimits::MOST_CALLS {
                    break;
                }
            }
            earlier.reverse();
            for it in &self.nodes[id].inserted {
                tool.learn(&earlier, &it.call);
                earlier.push(Arc::clone(&it.call));
            }
        }
    }

    /// The scores by text and whether the answer had ended.
    pub(super) fn scores(&self) -> HashMap<ScoreKey, OwnScores> {
        let mut hashes: Vec<TextHash> = Vec::with_capacity(self.nodes.len());
        let mut scores = HashMap::new();
        for node in &self.nodes {
            let above = node.parent.and_then(|parent| hashes.get(parent)).copied();
            let hash = above.unwrap_or_default().followed_by(&node.text);
            if let Some(score) = node.score {
                let is_whole = matches!(node.end, Some(End::Stop | End::Length));
                scores.insert((hash, is_whole), OwnScores::Mean(score.clamp(0.0, 1.0)));
            }
            hashes.push(hash);
        }
        scores
    }

    /// All samples of all expansions, or nothing: what is partly known is sampled anew as a whole, since the
    /// order in which samples end matters.
    fn all(&self, expansions: &[Expansion]) -> Option<Vec<Finished>> {
        let mut finished = Vec::new();
        for (expansion, source) in expansions.iter().enumerate() {
            for index in 0..source.n {
                let path = [source.branch_path.as_slice(), &[index as u32]].concat();
                let id = *self.samples.get(&path)?;
                finished.push(Finished {
                    expansion,
                    index,
                    continuation: self.continuation(id, source)?,
                });
            }
        }
        Some(finished)
    }

    /// What follows the prefix up to a node: the node, or a whole answer's first step and its rest. `None` when the
    /// record says something else.
    fn continuation(&self, id: usize, source: &Expansion) -> Option<Continuation> {
        let above = |id: usize| self.nodes[id].parent.unwrap_or_default();
        let starts_after = |id: usize| self.num_tokens[above(id)] == source.prefix.len();
        let own = match starts_after(id) {
            true => vec![id],
            false if starts_after(above(id)) => vec![above(id), id],
            false => return None,
        };
        let parts = || own.iter().map(|id| &self.nodes[*id]);
        let token_ids: Vec<TokenId> = parts().flat_map(|n| n.token_ids.iter().copied()).collect();
        let first = own[0];
        let logprob = self.nodes[id].logprob - self.nodes[above(first)].logprob;
        let mut inserted: Vec<Inserted> = Vec::new();
        let (mut num_tokens, mut num_bytes) = (0, 0);
        for node in parts() {
            inserted.extend(
                node.inserted
                    .iter()
                    .map(|it| it.moved(num_tokens, num_bytes)),
            );
            num_tokens += node.token_ids.len();
            num_bytes += node.text.len();
        }
        let num_own = token_ids.len() - num_inserted(&inserted);
        let mean = logprob / num_own.max(1) as f64;
        let is_own = |at: &usize| !inserted.iter().any(|it| it.tokens.contains(at));
        let logprobs = token_ids.iter().enumerate();
        let logprobs =
            logprobs.map(|(at, id)| logprob_of(*id, if is_own(&at) { mean } else { 0.0 }));
        Some(Continuation {
            // Only their sum is on record.
            logprobs: logprobs.collect(),
            text: parts().map(|node| node.text.as_str()).collect(),
            end: self.nodes[id].end.unwrap_or(End::Step),
            hidden_state: None,
            step_ends: Vec::new(),
            confidence: self.nodes[id].confidence,
            inserted,
            token_ids,
        })
    }
}

fn logprob_of(token_id: TokenId, logprob: f64) -> TokenLogprobs {
    TokenLogprobs {
        token_id,
        logprob: logprob as f32,
        top: Vec::new(),
    }
}

/// A policy that knows some samples already.
pub struct ReplayPolicy<'a> {
    pub recording: &'a Recording,
    pub policy: &'a dyn Policy,
}

impl Policy for ReplayPolicy<'_> {
    fn start(
        &self,
        expansions: Vec<Expansion>,
    ) -> BoxFuture<'_, Result<Box<dyn Running + '_>, SearchError>> {
        async move {
            let Some(mut samples) = self.recording.all(&expansions) else {
                return self.policy.start(expansions).await;
            };
            for finished in &mut samples {
                let source = &expansions[finished.expansion];
                let sample = &mut finished.continuation;
                let ends = self
                    .policy
                    .step_ends(source, &sample.token_ids, &sample.inserted);
                let ends = ends.into_iter().map(|num_tokens| StepEnd {
                    num_tokens,
                    hidden_state: None,
                });
                sample.step_ends = ends.collect();
            }
            let len = |finished: &Finished| finished.continuation.num_own();
            // Where the budget ends inside of them, one run has them cut there, and which get how much is the
            // model's to say: the earlier run may have come here with more tokens left.
            if !self
                .policy
                .charge(samples.iter().map(len).sum::<usize>() as u64)
            {
                return self.policy.start(expansions).await;
            }
            samples.sort_by_key(|finished| (len(finished), finished.expansion, finished.index));
            samples.reverse();
            let running: Box<dyn Running + '_> = Box::new(Replayed(samples));
            Ok(running)
        }
        .boxed()
    }

    fn pieces(&self, token_ids: &[TokenId]) -> Vec<String> {
        self.policy.pieces(token_ids)
    }

    fn step_ends(
        &self,
        source: &Expansion,
        token_ids: &[TokenId],
        inserted: &[Inserted],
    ) -> Vec<usize> {
        self.policy.step_ends(source, token_ids, inserted)
    }

    fn num_tokens(&self) -> u64 {
        self.policy.num_tokens()
    }

    fn max_tokens(&self) -> usize {
        self.policy.max_tokens()
    }

    fn charge(&self, num_tokens: u64) -> bool {
        self.policy.charge(num_tokens)
    }

    fn seed(&self) -> u64 {
        self.policy.seed()
    }

    fn deadline(&self) -> Option<Instant> {
        self.policy.deadline()
    }
}

/// Samples on record, the next one last.
struct Replayed(Vec<Finished>);

impl Running for Replayed {
    fn next(&mut self) -> BoxFuture<'_, Option<Result<Finished, SearchError>>> {
        let next = self.0.pop();
        async move { next.map(Ok) }.boxed()
    }

    fn stop(&mut self) {
        self.0.clear();
    }
}
