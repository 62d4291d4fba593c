//! A policy for tests that continues answers as a function says. One character is one token.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures::future::{BoxFuture, FutureExt};

use super::inserted::Inserted;
use super::outcome::SearchError;
use super::policy::{Continuation, End, Expansion, Finished, FirstStep, Policy, Running};
use crate::engine::{TokenId, TokenLogprobs};
use crate::tool::{BlockReader, CallStatus, CodeCall, output_text};

/// What a sample is: text, and whether the answer ends with it. Gets the answer so far, the sample's branch
/// path and whether a whole answer is wanted.
pub type Script = dyn Fn(&str, &[u32], bool) -> (String, bool) + Send + Sync;

/// What a block of Python shows.
pub type ScriptedCode = dyn Fn(&str) -> String + Send + Sync;

/// What scripts keep their answers below.
const MAX_TOKENS: usize = 64;

/// See the module's documentation.
pub struct ScriptedPolicy {
    script: Box<Script>,
    limit: u64,
    spent: AtomicU64,
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
            limit: limit.unwrap_or(u64::MAX),
            spent: AtomicU64::new(0),
            delay: Duration::ZERO,
            deadline: None,
            code: None,
        }
    }

    /// Each sample takes its time, and all are to be there at the deadline.
    pub fn in_time(self, delay: Duration, deadline: Option<Instant>) -> Self {
        Self {
            delay,
            deadline,
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

    fn sample(&self, expansion: &Expansion, index: usize) -> Continuation {
        let mut path = [expansion.branch_path.as_slice(), &[index as u32]].concat();
        let is_whole = expansion.step.is_none();
        let mut said = Said::default();
        let end = loop {
            let before = format!("{}{}", expansion.prefix_text, said.text);
            let (mut text, is_end) = (self.script)(&before, &path, is_whole);
            let code = self.block(expansion, &said, &mut text);
            let left = self.limit - self.spent.load(Ordering::Acquire);
            let cut: String = text.chars().take(left as usize).collect();
            self.spent.fetch_add(cut.len() as u64, Ordering::AcqRel);
            said.own(&cut);
            match (cut.len() < text.len(), code, is_end) {
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
        let first_step = expansion.first_step.as_ref().and_then(|rule| {
            let first = said.inserted.first();
            let own = first.map_or(said.text.len(), |it| it.text.start);
            let ends = (1..own).find(|end| rule.is_complete(&said.text[..*end]));
            let num_tokens = ends.or_else(|| first.map(|it| it.text.end))?;
            (num_tokens < said.text.len()).then_some(FirstStep {
                num_tokens,
                hidden_state: None,
            })
        });
        Continuation {
            token_ids: said.text.chars().map(u32::from).collect(),
            logprobs: said.logprobs,
            text: said.text,
            inserted: said.inserted,
            end,
            hidden_state: None,
            first_step,
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
    fn add(&mut self, text: &str, logprob: f32) {
        self.text.push_str(text);
        self.logprobs.extend(text.chars().map(|c| TokenLogprobs {
            token_id: c.into(),
            logprob,
            top: Vec::new(),
        }));
    }

    fn own(&mut self, text: &str) {
        self.add(text, -0.5);
    }

    fn insert(&mut self, call: CodeCall) {
        let start = self.text.len();
        self.add(&output_text(&call, false), 0.0);
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
