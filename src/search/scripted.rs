//! A policy for tests that continues answers as a function says. One character is one token.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures::future::{BoxFuture, FutureExt};

use super::outcome::SearchError;
use super::policy::{Continuation, End, Expansion, Finished, Policy, Running, StepEnd};
use super::step::MAX_NOTED_STEPS;
use crate::engine::{TokenId, TokenLogprobs};

/// What a sample is: text, and whether the answer ends with it. Gets the answer so far, the
/// sample's branch path and whether a whole answer is wanted.
pub type Script = dyn Fn(&str, &[u32], bool) -> (String, bool) + Send + Sync;

/// How confident a sample's token is: gets the sample's branch path and the token's place in it.
pub type Confidence = dyn Fn(&[u32], usize) -> f32 + Send + Sync;

/// What scripts keep their answers below.
const MAX_TOKENS: usize = 64;

/// See the module's documentation.
pub struct ScriptedPolicy {
    script: Box<Script>,
    confidence: Box<Confidence>,
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
            confidence: Box::new(|_, _| 0.5),
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

    /// The same with tokens of which some are more certain than others.
    pub fn with_confidence(
        self,
        confidence: impl Fn(&[u32], usize) -> f32 + Send + Sync + 'static,
    ) -> Self {
        Self {
            confidence: Box::new(confidence),
            ..self
        }
    }

    /// The tokens of a text, up to that with which the expansion's rule ends it; the confidence,
    /// and whether it did.
    fn tokens(
        &self,
        expansion: &Expansion,
        path: &[u32],
        text: &str,
    ) -> (Vec<TokenLogprobs>, Option<f64>, bool) {
        let is_measured = expansion.confidence.is_some();
        let token = |(at, c): (usize, char)| TokenLogprobs {
            token_id: u32::from(c),
            logprob: -0.5,
            top: match is_measured {
                true => vec![(u32::from(c), -(self.confidence)(path, at))],
                false => Vec::new(),
            },
        };
        let mut tokens: Vec<TokenLogprobs> = text.chars().enumerate().map(token).collect();
        let Some(rule) = expansion.confidence else {
            return (tokens, None, false);
        };
        let ends = (1..=tokens.len()).find(|len| rule.measure(&tokens[..*len]).1);
        tokens.truncate(ends.unwrap_or(tokens.len()));
        let (confidence, is_unsure) = rule.measure(&tokens);
        (tokens, confidence, is_unsure)
    }

    fn sample(&self, expansion: &Expansion, index: usize) -> Continuation {
        let path = [expansion.branch_path.as_slice(), &[index as u32]].concat();
        let is_whole = expansion.step.is_none();
        let (text, is_end) = (self.script)(&expansion.prefix_text, &path, is_whole);
        let left = self.limit - self.spent.load(Ordering::Acquire);
        let cut: String = text.chars().take(left as usize).collect();
        let (mut logprobs, confidence, is_unsure) = self.tokens(expansion, &path, &cut);
        let cut: String = cut.chars().take(logprobs.len()).collect();
        let is_cut = !is_unsure && cut.len() < text.len();
        logprobs.iter_mut().for_each(|token| token.top.clear());
        let token_ids: Vec<TokenId> = logprobs.iter().map(|token| token.token_id).collect();
        self.spent
            .fetch_add(token_ids.len() as u64, Ordering::AcqRel);
        let step_ends = self.step_ends(expansion, &token_ids).into_iter();
        let step_ends = step_ends.map(|num_tokens| StepEnd {
            num_tokens,
            hidden_state: None,
        });
        let step_ends = step_ends.collect();
        let end = match (is_cut, is_end) {
            // A text that is over has ended, as behind a model's own end.
            _ if is_unsure && cut.len() < text.len() => End::Unsure,
            (true, _) => End::Cut,
            (false, true) => End::Stop,
            (false, false) => End::Step,
        };
        Continuation {
            logprobs,
            token_ids,
            text: cut,
            end,
            hidden_state: None,
            step_ends,
            confidence,
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
