//! A policy for tests that continues answers as a function says. One character is one token.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures::future::{BoxFuture, FutureExt};

use super::outcome::SearchError;
use super::policy::{Continuation, End, Expansion, Finished, Policy, Running, StepEnd};
use super::step::MAX_NOTED_STEPS;
use crate::engine::{TokenId, TokenLogprobs};

/// What a sample is: text, and whether the answer ends with it. Gets the answer so far, the sample's branch
/// path and whether a whole answer is wanted.
pub type Script = dyn Fn(&str, &[u32], bool) -> (String, bool) + Send + Sync;

/// What scripts keep their answers below.
const MAX_TOKENS: usize = 64;

/// See the module's documentation.
pub struct ScriptedPolicy {
    script: Box<Script>,
    limit: u64,
    spent: AtomicU64,
    seed: u64,
    delay: Duration,
    deadline: Option<Instant>,
}

impl ScriptedPolicy {
    /// At most `limit` tokens come.
    pub fn new(
        limit: Option<u64>,
        script: impl Fn(&str, &[u32], bool) -> (String, bool) + Send + Sync + 'static,
    ) -> Self {
        Self {
            script: Box::new(script),
            limit: limit.unwrap_or(u64::MAX),
            spent: AtomicU64::new(0),
            seed: 0,
            delay: Duration::ZERO,
            deadline: None,
        }
    }

    /// Keys the search's own draws; scripts see no seed.
    pub fn seeded(self, seed: u64) -> Self {
        Self { seed, ..self }
    }

    /// Each sample takes its time, and all are to be there at the deadline.
    pub fn in_time(self, delay: Duration, deadline: Option<Instant>) -> Self {
        Self {
            delay,
            deadline,
            ..self
        }
    }

    fn sample(&self, expansion: &Expansion, index: usize) -> Continuation {
        let path = [expansion.branch_path.as_slice(), &[index as u32]].concat();
        let is_whole = expansion.step.is_none();
        let (text, is_end) = (self.script)(&expansion.prefix_text, &path, is_whole);
        let left = self.limit - self.spent.load(Ordering::Acquire);
        let cut: String = text.chars().take(left as usize).collect();
        let is_cut = cut.len() < text.len();
        let token_ids: Vec<TokenId> = cut.chars().map(u32::from).collect();
        self.spent
            .fetch_add(token_ids.len() as u64, Ordering::AcqRel);
        let step_ends = self.step_ends(expansion, &token_ids).into_iter();
        let step_ends = step_ends.map(|num_tokens| StepEnd {
            num_tokens,
            hidden_state: None,
        });
        let step_ends = step_ends.collect();
        let logprob = |token_id: &TokenId| TokenLogprobs {
            token_id: *token_id,
            logprob: -0.5,
            top: Vec::new(),
        };
        Continuation {
            logprobs: token_ids.iter().map(logprob).collect(),
            token_ids,
            text: cut,
            end: match (is_cut, is_end) {
                (true, _) => End::Cut,
                (false, true) => End::Stop,
                (false, false) => End::Step,
            },
            hidden_state: None,
            step_ends,
        }
    }
}

impl Policy for ScriptedPolicy {
    fn start(
        &self,
        expansions: Vec<Expansion>,
    ) -> BoxFuture<'_, Result<Box<dyn Running + '_>, SearchError>> {
        let mut finished = Vec::new();
        for (at, expansion) in expansions.iter().enumerate() {
            for index in 0..expansion.n {
                finished.push(Finished {
                    expansion: at,
                    index,
                    continuation: self.sample(expansion, index),
                });
            }
        }
        finished.sort_by_key(|finished| finished.continuation.token_ids.len());
        finished.reverse();
        let running: Box<dyn Running + '_> = Box::new(ScriptedRunning {
            finished,
            delay: self.delay,
        });
        async { Ok(running) }.boxed()
    }

    fn pieces(&self, token_ids: &[TokenId]) -> Vec<String> {
        let piece = |id: &TokenId| char::from_u32(*id).map(String::from).unwrap_or_default();
        token_ids.iter().map(piece).collect()
    }

    fn step_ends(&self, source: &Expansion, token_ids: &[TokenId]) -> Vec<usize> {
        let Some(rule) = &source.noted_step else {
            return Vec::new();
        };
        let pieces = self.pieces(token_ids);
        let (mut ends, mut begin) = (Vec::new(), 0);
        for end in 1..token_ids.len() {
            if ends.len() < MAX_NOTED_STEPS && rule.is_complete(&pieces[begin..end].concat()) {
                ends.push(end);
                begin = end;
            }
        }
        ends
    }

    fn num_tokens(&self) -> u64 {
        self.spent.load(Ordering::Acquire)
    }

    fn max_tokens(&self) -> usize {
        MAX_TOKENS
    }

    fn charge(&self, num_tokens: u64) -> bool {
        let spent = self.spent.load(Ordering::Acquire);
        let spent = spent.checked_add(num_tokens);
        let spent = spent.filter(|spent| *spent <= self.limit);
        if let Some(spent) = spent {
            self.spent.store(spent, Ordering::Release);
        }
        spent.is_some()
    }

    fn seed(&self) -> u64 {
        self.seed
    }

    fn deadline(&self) -> Option<Instant> {
        self.deadline
    }
}

struct ScriptedRunning {
    /// What is left to return, the last first.
    finished: Vec<Finished>,
    delay: Duration,
}

impl Running for ScriptedRunning {
    fn next(&mut self) -> BoxFuture<'_, Option<Result<Finished, SearchError>>> {
        let next = self.finished.pop().map(Ok);
        let delay = self.delay;
        async move {
            if next.is_some() && !delay.is_zero() {
                tokio::time::sleep(delay).await;
            }
            next
        }
        .boxed()
    }

    fn stop(&mut self) {
        self.finished.clear();
    }
}
