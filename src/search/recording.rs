//! A search that goes on from its trace: what an earlier run sampled comes from the record, what it did not comes
//! from the model. Keys of randomness make both the same tree as one run with the larger budget.

use std::collections::HashMap;

use futures::future::{BoxFuture, FutureExt};

use super::outcome::SearchError;
use super::policy::{Continuation, End, Expansion, Finished, FirstStep, Policy, Running};
use crate::engine::{TokenId, TokenLogprobs};
use crate::reward::Scored;

/// A node of the earlier run, in its order: parents before children, the root first.
#[derive(Debug, Clone)]
pub struct RecordedNode {
    pub parent: Option<usize>,
    pub token_ids: Vec<TokenId>,
    pub text: String,
    pub end: Option<End>,
    /// Sum over the answer up to here.
    pub logprob: f64,
    pub score: Option<f64>,
    pub branch_path: Vec<u32>,
    /// Paths of the samples that were merged into this node.
    pub duplicate_paths: Vec<Vec<u32>>,
}

/// What an earlier run sampled and how it was scored.
#[derive(Debug, Clone, Default)]
pub struct Recording {
    nodes: Vec<RecordedNode>,
    /// The node with which the sample of each path ended.
    samples: HashMap<Vec<u32>, usize>,
}

impl Recording {
    pub fn new(nodes: Vec<RecordedNode>) -> Self {
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
        Self { nodes, samples }
    }

    /// The scores by text and whether the answer had ended.
    pub(super) fn scores(&self) -> HashMap<(String, bool), Scored> {
        let mut texts: Vec<String> = Vec::with_capacity(self.nodes.len());
        let mut scores = HashMap::new();
        for node in &self.nodes {
            let before = node.parent.map_or("", |parent| texts[parent].as_str());
            let text = format!("{before}{}", node.text);
            if let Some(score) = node.score {
                let is_whole = matches!(node.end, Some(End::Stop | End::Length));
                let scored = Scored {
                    score: score.clamp(0.0, 1.0),
                    parts: Vec::new(),
                };
                scores.insert((text.clone(), is_whole), scored);
            }
            texts.push(text);
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
                    continuation: self.continuation(id, source),
                });
            }
        }
        Some(finished)
    }

    /// A node and all above it.
    fn up(&self, id: usize) -> impl Iterator<Item = usize> + '_ {
        std::iter::successors(Some(id), |id| self.nodes[*id].parent)
    }

    fn continuation(&self, id: usize, source: &Expansion) -> Continuation {
        let len = |id: &usize| self.nodes[*id].token_ids.len();
        let num_tokens: usize = self.up(id).map(|id| len(&id)).sum();
        let num_tokens = num_tokens.saturating_sub(source.prefix.len());
        // The last nodes, which hold what follows the prefix: one, or a whole answer's first step and its rest.
        let mut own: Vec<usize> = Vec::new();
        for id in self.up(id) {
            if own.iter().map(len).sum::<usize>() >= num_tokens {
                break;
            }
            own.push(id);
        }
        own.reverse();
        let parts = || own.iter().map(|id| &self.nodes[*id]);
        let token_ids: Vec<TokenId> = parts().flat_map(|n| n.token_ids.iter().copied()).collect();
        let above = own.first().and_then(|first| self.nodes[*first].parent);
        let logprob = self.nodes[id].logprob - above.map_or(0.0, |id| self.nodes[id].logprob);
        let mean = logprob / token_ids.len().max(1) as f64;
        let first = own.first().map(|id| self.nodes[*id].token_ids.len());
        let has_more = own.len() > 1 && source.first_step.is_some();
        Continuation {
            // Only their sum is on record.
            logprobs: token_ids.iter().map(|id| logprob_of(*id, mean)).collect(),
            text: parts().map(|node| node.text.as_str()).collect(),
            end: self.nodes[id].end.unwrap_or(End::Step),
            hidden_state: None,
            first_step: first.filter(|_| has_more).map(|num_tokens| FirstStep {
                num_tokens,
                hidden_state: None,
            }),
            token_ids,
        }
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
            let len = |finished: &Finished| finished.continuation.token_ids.len();
            self.policy
                .charge(samples.iter().map(len).sum::<usize>() as u64);
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

    fn num_tokens(&self) -> u64 {
        self.policy.num_tokens()
    }

    fn max_tokens(&self) -> usize {
        self.policy.max_tokens()
    }

    fn charge(&self, num_tokens: u64) {
        self.policy.charge(num_tokens);
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
