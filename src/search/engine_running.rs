//! The samples of a policy's expansions while the engine computes them.

use std::sync::Arc;

use futures::future::{BoxFuture, FutureExt};
use futures::stream::{BoxStream, SelectAll, StreamExt};

use super::calling::{CodeEvent, Insertion};
use super::engine_policy::EnginePolicy;
use super::engine_text::SampleText;
use super::outcome::SearchError;
use super::policy::{Continuation, End, Expansion, Finished, Policy, Running, StepEnd};
use crate::engine::{FinishReason, StreamEvent, TokenId, TokenLogprobs};

/// A sample in flight.
pub(super) struct Sample {
    expansion: usize,
    index: usize,
    token_ids: Vec<TokenId>,
    /// What of them the policy did not write, each with the number of tokens before it.
    insertions: Vec<(usize, Insertion)>,
    logprobs: Vec<TokenLogprobs>,
    /// Tapped hidden states, each with the number of tokens up to its own.
    taps: Vec<(usize, Vec<f32>)>,
    finished: Option<FinishReason>,
    is_returned: bool,
}

impl Sample {
    /// Nothing yet of sample `index` of an expansion.
    pub fn new(expansion: usize, index: usize) -> Self {
        Self {
            expansion,
            index,
            token_ids: Vec::new(),
            insertions: Vec::new(),
            logprobs: Vec::new(),
            taps: Vec::new(),
            finished: None,
            is_returned: false,
        }
    }

    /// Tokens of the policy.
    fn num_own(&self) -> usize {
        let inserted = self.insertions.iter().map(|(_, it)| it.token_ids.len());
        self.token_ids.len() - inserted.sum::<usize>()
    }
}

/// Events of all expansions, each with the expansion's index.
type Events = SelectAll<BoxStream<'static, (usize, CodeEvent)>>;

/// Samples in flight.
pub(super) struct EngineRunning<'a> {
    policy: &'a EnginePolicy,
    expansions: Vec<Expansion>,
    events: Events,
    samples: Vec<Sample>,
    is_stopped: bool,
}

impl<'a> EngineRunning<'a> {
    pub fn new(
        policy: &'a EnginePolicy,
        expansions: Vec<Expansion>,
        events: Events,
        samples: Vec<Sample>,
    ) -> Self {
        Self {
            policy,
            expansions,
            events,
            samples,
            is_stopped: false,
        }
    }

    /// The shortest finished sample, once no running one can still end with as few tokens.
    fn ready(&self) -> Option<usize> {
        let is_waiting = |sample: &&Sample| sample.finished.is_some() && !sample.is_returned;
        let (at, first) = self
            .samples
            .iter()
            .enumerate()
            .filter(|(_, sample)| is_waiting(sample))
            .min_by_key(|(at, sample)| (sample.num_own(), *at))?;
        let len = first.num_own();
        let is_behind = |sample: &Sample| sample.finished.is_none() && sample.num_own() <= len;
        (!self.samples.iter().any(is_behind)).then_some(at)
    }

    fn finish(&mut self, at: usize) -> Finished {
        let sample = &mut self.samples[at];
        sample.is_returned = true;
        let token_ids = std::mem::take(&mut sample.token_ids);
        let mut logprobs = std::mem::take(&mut sample.logprobs);
        let taps = std::mem::take(&mut sample.taps);
        let insertions = std::mem::take(&mut sample.insertions);
        let reason = sample.finished.unwrap_or(FinishReason::Abort);
        let (expansion, index) = (sample.expansion, sample.index);
        let source = &self.expansions[expansion];
        let SampleText {
            text,
            inserted,
            hits_stop,
        } = self.policy.text(source, &token_ids, insertions);
        // Inserted tokens have no candidates: they are passed over.
        let measured = source.confidence.map(|rule| rule.measure(&logprobs));
        let (confidence, is_unsure) = measured.unwrap_or_default();
        // What only the confidence is made of is not the client's.
        for token in &mut logprobs {
            token.top.truncate(self.policy.params.logprobs.unwrap_or(0));
        }
        let end = end_of(reason, source, hits_stop, is_unsure);
        let state_at = |at: usize| {
            // Nothing is sampled where a program's output is: the state before it stands for it.
            let before = inserted.iter().find(|it| it.tokens.end == at);
            let at = before.map_or(at, |it| it.tokens.start);
            let found = taps.iter().find(|(position, _)| *position == at);
            found.map(|(_, state)| Arc::from(state.as_slice()))
        };
        let hidden_state = state_at(token_ids.len());
        let step_ends = self.policy.step_ends(source, &token_ids, &inserted);
        let step_ends = step_ends.into_iter().map(|num_tokens| StepEnd {
            num_tokens,
            hidden_state: state_at(num_tokens),
        });
        let step_ends = step_ends.collect();
        let continuation = Continuation {
            token_ids,
            text,
            inserted,
            end,
            logprobs,
            hidden_state,
            step_ends,
            confidence,
        };
        // A step that ends where the answer must end is the last one.
        let is_last = end == End::Step && self.is_full(source, &continuation);
        let end = if is_last { End::Length } else { end };
        Finished {
            expansion,
            index,
            continuation: Continuation {
                end,
                ..continuation
            },
        }
    }

    /// Whether nothing can follow a continuation: the answer, or the context, is full.
    fn is_full(&self, source: &Expansion, continuation: &Continuation) -> bool {
        let num_own = source.num_own() + continuation.num_own();
        let num_tokens = source.prefix.len() + continuation.token_ids.len();
        let context = self.policy.engine.config().max_model_len;
        num_own >= self.policy.params.max_tokens
            || self.policy.prompt_token_ids.len() + num_tokens >= context
    }

    fn take(&mut self, expansion: usize, event: CodeEvent) -> Result<(), SearchError> {
        let before = self.expansions[..expansion].iter().map(|e| e.n);
        let first = before.sum::<usize>();
        match event {
            CodeEvent::Engine(event) => self.take_token(first, event),
            CodeEvent::Inserted { index, insertion } => {
                let sample = &mut self.samples[first + index];
                let at = sample.token_ids.len();
                sample.token_ids.extend(&insertion.token_ids);
                sample
                    .logprobs
                    .extend(insertion.token_ids.iter().map(|id| TokenLogprobs {
                        token_id: *id,
                        logprob: 0.0,
                        top: Vec::new(),
                    }));
                sample.insertions.push((at, insertion));
                Ok(())
            }
        }
    }

    /// An event of the engine; `first` is the first sample of its request.
    fn take_token(&mut self, first: usize, event: StreamEvent) -> Result<(), SearchError> {
        match event {
            StreamEvent::PromptDone {
                num_cached_tokens, ..
            } => {
                let _ = self.policy.num_cached_tokens.set(num_cached_tokens);
            }
            StreamEvent::Token {
                index,
                token_id,
                logprobs,
                hidden_state,
            } => {
                let sample = &mut self.samples[first + index];
                sample.token_ids.push(token_id);
                sample.logprobs.extend(logprobs);
                let at = sample.token_ids.len();
                sample.taps.extend(hidden_state.map(|state| (at, state)));
            }
            StreamEvent::Finished {
                index,
                reason,
                drafts,
            } => {
                self.policy.drafts.add(drafts);
                self.samples[first + index].finished = Some(reason);
            }
            StreamEvent::Pooled { .. } | StreamEvent::Adapted { .. } => {}
            StreamEvent::Error(error) => return Err(error.into()),
        }
        Ok(())
    }
}

/// Why a sample of this expansion ended.
fn end_of(reason: FinishReason, source: &Expansion, hits_stop: bool, is_unsure: bool) -> End {
    match reason {
        FinishReason::Eos | FinishReason::StopToken(_) => End::Stop,
        FinishReason::Watcher => match &source.step {
            Some(_) if !hits_stop => End::Step,
            None if !hits_stop && is_unsure => End::Unsure,
            _ => End::Stop,
        },
        FinishReason::Length => End::Length,
        FinishReason::Abort
        | FinishReason::Deadline
        | FinishReason::Budget
        | FinishReason::Pooled => End::Cut,
    }
}

impl Running for EngineRunning<'_> {
    fn next(&mut self) -> BoxFuture<'_, Option<Result<Finished, SearchError>>> {
        async move {
            loop {
                if self.is_stopped {
                    return None;
                }
                if let Some(at) = self.ready() {
                    return Some(Ok(self.finish(at)));
                }
                let (expansion, event) = self.events.next().await?;
                if let Err(error) = self.take(expansion, event) {
                    self.is_stopped = true;
                    return Some(Err(error));
                }
            }
        }
        .boxed()
    }

    fn stop(&mut self) {
        self.is_stopped = true;
        // Dropping a stream aborts its request before the engine's next step.
        self.events.clear();
    }
}
