//! A policy for tests that continues answers as a function says. One character is one token.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures::future::{BoxFuture, FutureExt};

use super::inserted::Inserted;
use super::outcome::SearchError;
use super::policy::{Continuation, End, Expansion, Finished, Policy, Running, StepEnd};
use super::step::MAX_NOTED_STEPS;
use crate::engine::{TokenId, TokenLogprobs};
use crate::tool::{BlockReader, CallStatus, CodeCall, output_text};

/// What a sample is: text, and whether the answer ends with it. Gets the answer so far, the
/// sample's branch path and whether a whole answer is wanted.
pub type Script = dyn Fn(&str, &[u32], bool) -> (String, bool) + Send + Sync;

/// How confident a sample's token is: gets the sample's branch path and the token's place in it.
pub type Confidence = dyn Fn(&[u32], usize) -> f32 + Send + Sync;
/// What a block of Python shows.
pub type ScriptedCode = dyn Fn(&str) -> String + Send + Sync;

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
    code: Option<(usize, Box<ScriptedCode>)>,
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
            code: None,
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

    /// Its answers may call code so often, and `run` says what a block shows.
    pub fn with_code(
        self,
        max_calls: usize,
        run: impl Fn(&str) -> String + Send + Sync + 'static,
    ) -> Self {
        Self {
            code: Some((max_calls, Box::new(run))),
            ..self
        }
    }

    /// Says `text` up to the token with which the expansion's rule ends it; whether it did.
    fn say(&self, said: &mut Said, text: &str, expansion: &Expansion, path: &[u32]) -> bool {
        let rule = expansion.confidence;
        for c in text.chars() {
            let confidence = rule.map(|_| (self.confidence)(path, said.logprobs.len()));
            said.own(c, confidence);
            if rule.is_some_and(|rule| rule.measure(&said.logprobs).1) {
                return true;
            }
        }
        false
    }

    fn sample(&self, expansion: &Expansion, index: usize) -> Continuation {
        let mut path = [expansion.branch_path.as_slice(), &[index as u32]].concat();
        let is_whole = expansion.step.is_none();
        let mut said = Said::default();
        let key = path.clone();
        let end = loop {
            let before = format!("{}{}", expansion.prefix_text, said.text);
            let (mut text, is_end) = (self.script)(&before, &path, is_whole);
            let code = self.block(expansion, &said, &mut text);
            let left = self.limit - self.spent.load(Ordering::Acquire);
            let cut: String = text.chars().take(left as usize).collect();
            let start = said.logprobs.len();
            let is_unsure = self.say(&mut said, &cut, expansion, &key);
            let num_said = said.logprobs.len() - start;
            self.spent.fetch_add(num_said as u64, Ordering::AcqRel);
            let is_part = num_said < text.chars().count();
            match (is_part, code, is_end) {
                // A text that is over has ended, as behind a model's own end.
                (true, _, _) | (_, Some(_), _) if is_unsure => break End::Unsure,
                (true, _, _) => break End::Cut,
                (false, Some(call), _) => said.insert(call),
                (false, None, true) => break End::Stop,
                (false, None, false) => break End::Step,
            }
            if !is_whole {
                break End::Step;
            }
            path.push(u32::MAX);
        };
        let measured = expansion
            .confidence
            .map(|rule| rule.measure(&said.logprobs));
        let (confidence, _) = measured.unwrap_or_default();
        said.logprobs.iter_mut().for_each(|token| token.top.clear());
        let token_ids: Vec<TokenId> = said.logprobs.iter().map(|it| it.token_id).collect();
        let step_ends = self.step_ends(expansion, &token_ids, &said.inserted);
        let step_ends = step_ends.into_iter().map(|num_tokens| StepEnd {
            num_tokens,
            hidden_state: None,
        });
        Continuation {
            step_ends: step_ends.collect(),
            token_ids,
            logprobs: said.logprobs,
            text: said.text,
            inserted: said.inserted,
            end,
            hidden_state: None,
            confidence,
        }
    }

    /// The block of Python that `text` closes, which it is cut behind.
    fn block(&self, expansion: &Expansion, said: &Said, text: &mut String) -> Option<CodeCall> {
        let (max_calls, run) = self.code.as_ref()?;
        if expansion.inserted.len() + said.inserted.len() >= *max_calls {
            return None;
        }
        let mut reader = BlockReader::default();
        match said.inserted.last() {
            None => reader.pass(&format!("{}{}", expansion.own_text(), said.text)),
            Some(it) => reader.pass(&said.text[it.text.end..]),
        }
        let chars = text.char_indices();
        let found = chars.clone().find_map(|(at, c)| {
            let code = reader.push(c.encode_utf8(&mut [0; 4]))?;
            Some((at + c.len_utf8(), code))
        });
        let (end, code) = found?;
        text.truncate(end);
        Some(CodeCall {
            output: run(&code),
            code,
            status: CallStatus::Completed,
        })
    }
}

/// A sample while it is made.
#[derive(Default)]
struct Said {
    text: String,
    inserted: Vec<Inserted>,
    logprobs: Vec<TokenLogprobs>,
}

impl Said {
    fn add(&mut self, c: char, logprob: f32, top: Vec<(TokenId, f32)>) {
        self.text.push(c);
        self.logprobs.push(TokenLogprobs {
            token_id: c.into(),
            logprob,
            top,
        });
    }

    fn own(&mut self, c: char, confidence: Option<f32>) {
        let top = confidence.map(|confidence| (c.into(), -confidence));
        self.add(c, -0.5, top.into_iter().collect());
    }

    fn insert(&mut self, call: CodeCall) {
        let start = self.text.len();
        let output = output_text(&call, false);
        output.chars().for_each(|c| self.add(c, 0.0, Vec::new()));
        let range = start..self.text.len();
        self.inserted.push(Inserted {
            tokens: range.clone(),
            text: range,
            call: Arc::new(call),
        });
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
        finished.sort_by_key(|finished| finished.continuation.num_own());
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

    fn step_ends(
        &self,
        source: &Expansion,
        token_ids: &[TokenId],
        inserted: &[Inserted],
    ) -> Vec<usize> {
        let Some(rule) = &source.noted_step else {
            return Vec::new();
        };
        let pieces = self.pieces(token_ids);
        let (mut ends, mut begin) = (Vec::new(), 0);
        for end in 1..token_ids.len() {
            let touches = |it: &&Inserted| it.tokens.start <= end && end <= it.tokens.end;
            let is_end = match inserted.iter().find(touches) {
                // The step in which code ran ends behind its output.
                Some(it) => end == it.tokens.end,
                None => rule.is_complete(&pieces[begin..end].concat()),
            };
            if is_end && ends.len() < MAX_NOTED_STEPS {
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
