//! The policy that a server has: its own engine. Branches share KV blocks through the prefix cache, and all
//! samples of an expansion share their prefix by forking.

use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use futures::future::{BoxFuture, FutureExt};
use futures::stream::{BoxStream, SelectAll, StreamExt};

use super::branch_constraint::BranchConstraint;
use super::confidence::CONFIDENCE_TOP_K;
use super::context::now;
use super::outcome::SearchError;
use super::policy::{Continuation, End, Expansion, Finished, Policy, Running, StepEnd};
use crate::engine::{
    AdaptationConfig, AdaptationReport, AdapterId, Engine, EngineError, FinishReason,
    GenerateRequest, GroupId, RequestStream, SamplingParams, SharedDrafts, Speculative, Steering,
    StreamEvent, TokenBudget, TokenId, TokenLogprobs, TokenWatcher, Watch,
};
use crate::text::Tokenizer;

/// How long an expansion waits before it tries again to enter a full queue.
const RETRY: Duration = Duration::from_millis(20);

/// One prompt on one engine, for one search.
pub struct EnginePolicy {
    pub engine: Engine,
    pub tokenizer: Tokenizer,
    pub prompt_token_ids: Vec<TokenId>,
    /// `max_tokens` counts over a whole answer.
    pub params: SamplingParams,
    /// Which tokens an answer may have, from its first one on.
    pub constraint: Option<BranchConstraint>,
    pub stops: Vec<String>,
    pub include_stop: bool,
    pub skip_special: bool,
    /// Special tokens whose texts are shown all the same: marks of thoughts and calls.
    pub visible: Vec<TokenId>,
    /// Who asks.
    pub tenant: u64,
    pub cache_salt: u64,
    pub adapter: Option<AdapterId>,
    pub deadline: Option<Instant>,
    /// See [`GenerateRequest::speculative`] and [`GenerateRequest::prediction`].
    pub speculative: Option<Speculative>,
    pub prediction: Vec<TokenId>,
    pub budget: Arc<TokenBudget>,
    /// What adapting to the prompt found ([`Self::adapt`]): the whole search runs under it.
    pub steering: OnceLock<Arc<Steering>>,
    /// Of this search, for its fair share of the engine.
    pub group: GroupId,
    /// Tokens of the prompt that the prefix cache had; set when the first samples start.
    pub num_cached_tokens: OnceLock<usize>,
    /// What came of the drafts of all samples that ended.
    pub drafts: SharedDrafts,
}

impl EnginePolicy {
    /// Adapts to the prompt, once for all samples. `None` when the prompt is too short to learn from.
    pub async fn adapt(
        &self,
        config: Arc<AdaptationConfig>,
    ) -> Result<Option<AdaptationReport>, SearchError> {
        let params = SamplingParams {
            max_tokens: 1,
            ..self.params.clone()
        };
        let request = GenerateRequest {
            tenant: self.tenant,
            cache_salt: self.cache_salt,
            adapter: self.adapter,
            adaptation: Some(config),
            group: Some(self.group),
            deadline: self.deadline,
            ..GenerateRequest::new(self.prompt_token_ids.clone(), params)
        };
        let mut stream = self.engine.submit(request)?;
        while let Some(event) = stream.recv().await {
            match event {
                // Dropping the stream ends the request.
                StreamEvent::Adapted {
                    report, steering, ..
                } => {
                    let _ = self.steering.set(steering);
                    return Ok(Some(report));
                }
                StreamEvent::Error(error) => return Err(error.into()),
                _ => {}
            }
        }
        Ok(None)
    }

    fn request(&self, expansion: &Expansion) -> Result<GenerateRequest, EngineError> {
        let constraint = self.constraint.as_ref();
        let constraint = constraint.map(|constraint| constraint.after(&expansion.prefix));
        let constraint = constraint.transpose();
        let constraint = constraint.map_err(|error| EngineError::Constraint(error.0))?;
        let end = expansion.step.clone().map(|rule| (rule, Watch::End));
        let noted = expansion.noted_step.clone();
        let step = end.or(noted.map(|rule| (rule, Watch::Tap)));
        let watcher = self.watcher(expansion, step);
        let left = self
            .params
            .max_tokens
            .saturating_sub(expansion.prefix.len());
        let wanted = self.params.logprobs.unwrap_or(0);
        let num_logprobs = match expansion.confidence {
            Some(_) => wanted.max(CONFIDENCE_TOP_K),
            None => wanted,
        };
        let params = SamplingParams {
            max_tokens: left.max(1),
            min_tokens: self
                .params
                .min_tokens
                .saturating_sub(expansion.prefix.len()),
            logprobs: Some(num_logprobs),
            ..self.params.clone()
        };
        let prompt = [self.prompt_token_ids.as_slice(), &expansion.prefix].concat();
        Ok(GenerateRequest {
            n: expansion.n,
            branch_path: expansion.branch_path.clone(),
            watcher: Some(Box::new(watcher)),
            constraint,
            budget: Some(Arc::clone(&self.budget)),
            tenant: self.tenant,
            cache_salt: self.cache_salt,
            adapter: self.adapter,
            steering: self.steering.get().cloned(),
            priority: expansion.priority,
            group: Some(self.group),
            deadline: self.deadline,
            speculative: self.speculative,
            prediction: self.prediction.clone(),
            ..GenerateRequest::new(prompt, params)
        })
    }

    /// Enters the queue; when it is full, only the search's first samples are refused, and the others at the deadline.
    async fn submit(&self, request: GenerateRequest) -> Result<RequestStream, EngineError> {
        let is_first = self.num_cached_tokens.get().is_none();
        loop {
            match self.engine.submit(request.clone()) {
                Err(EngineError::Overloaded { .. }) if !is_first && !self.is_late() => {
                    tokio::time::sleep(RETRY).await;
                }
                result => return result,
            }
        }
    }

    fn is_late(&self) -> bool {
        self.deadline.is_some_and(|deadline| deadline <= now())
    }
}

impl Policy for EnginePolicy {
    fn start(
        &self,
        expansions: Vec<Expansion>,
    ) -> BoxFuture<'_, Result<Box<dyn Running + '_>, SearchError>> {
        async move {
            let mut events = SelectAll::new();
            let mut samples = Vec::new();
            for (index, expansion) in expansions.iter().enumerate() {
                let stream = self.submit(self.request(expansion)?).await?;
                events.push(stream.numbered(index));
                samples.extend((0..expansion.n).map(|sample| Sample {
                    expansion: index,
                    index: sample,
                    token_ids: Vec::new(),
                    logprobs: Vec::new(),
                    taps: Vec::new(),
                    finished: None,
                    is_returned: false,
                }));
            }
            let running: Box<dyn Running + '_> = Box::new(EngineRunning {
                policy: self,
                expansions,
                events,
                samples,
                is_stopped: false,
            });
            Ok(running)
        }
        .boxed()
    }

    fn pieces(&self, token_ids: &[TokenId]) -> Vec<String> {
        let mut detokenizer = self.detokenizer();
        token_ids.iter().map(|id| detokenizer.push(*id)).collect()
    }

    fn step_ends(&self, source: &Expansion, token_ids: &[TokenId]) -> Vec<usize> {
        let Some(rule) = source.noted_step.clone() else {
            return Vec::new();
        };
        let mut watcher = self.watcher(source, Some((rule, Watch::Tap)));
        let taps = token_ids
            .iter()
            .map(|id| watcher.push(*id, None) == Watch::Tap);
        let ends = taps
            .zip(1..)
            .filter_map(|(is_end, len)| is_end.then_some(len));
        ends.filter(|len| *len < token_ids.len()).collect()
    }

    fn num_tokens(&self) -> u64 {
        self.budget.spent()
    }

    fn max_tokens(&self) -> usize {
        self.params.max_tokens
    }

    fn charge(&self, num_tokens: u64) -> bool {
        self.budget.charge(num_tokens)
    }

    fn seed(&self) -> u64 {
        self.params.seed
    }

    fn deadline(&self) -> Option<Instant> {
        self.deadline
    }
}

struct Sample {
    expansion: usize,
    index: usize,
    token_ids: Vec<TokenId>,
    logprobs: Vec<TokenLogprobs>,
    /// Tapped hidden states, each with the number of tokens up to its own.
    taps: Vec<(usize, Vec<f32>)>,
    finished: Option<FinishReason>,
    is_returned: bool,
}

struct EngineRunning<'a> {
    policy: &'a EnginePolicy,
    expansions: Vec<Expansion>,
    events: SelectAll<BoxStream<'static, (usize, StreamEvent)>>,
    samples: Vec<Sample>,
    is_stopped: bool,
}

impl EngineRunning<'_> {
    /// The shortest finished sample, once no running one can still end with as few tokens.
    fn ready(&self) -> Option<usize> {
        let is_waiting = |sample: &&Sample| sample.finished.is_some() && !sample.is_returned;
        let (at, first) = self
            .samples
            .iter()
            .enumerate()
            .filter(|(_, sample)| is_waiting(sample))
            .min_by_key(|(at, sample)| (sample.token_ids.len(), *at))?;
        let len = first.token_ids.len();
        let is_behind =
            |sample: &Sample| sample.finished.is_none() && sample.token_ids.len() <= len;
        (!self.samples.iter().any(is_behind)).then_some(at)
    }

    fn finish(&mut self, at: usize) -> Finished {
        let sample = &mut self.samples[at];
        sample.is_returned = true;
        let token_ids = std::mem::take(&mut sample.token_ids);
        let mut logprobs = std::mem::take(&mut sample.logprobs);
        let taps = std::mem::take(&mut sample.taps);
        let reason = sample.finished.unwrap_or(FinishReason::Abort);
        let (expansion, index) = (sample.expansion, sample.index);
        let source = &self.expansions[expansion];
        let (text, hits_stop) = self.policy.text(source, &token_ids);
        let num_tokens = source.prefix.len() + token_ids.len();
        let measured = source.confidence.map(|rule| rule.measure(&logprobs));
        let (confidence, is_unsure) = measured.unwrap_or_default();
        // What only the confidence is made of is not the client's.
        for token in &mut logprobs {
            token.top.truncate(self.policy.params.logprobs.unwrap_or(0));
        }
        let end = match reason {
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
        };
        let state_at = |at: usize| {
            let found = taps.iter().find(|(position, _)| *position == at);
            found.map(|(_, state)| Arc::from(state.as_slice()))
        };
        let hidden_state = state_at(token_ids.len());
        let step_ends = self.policy.step_ends(source, &token_ids).into_iter();
        let step_ends = step_ends.map(|num_tokens| StepEnd {
            num_tokens,
            hidden_state: state_at(num_tokens),
        });
        let step_ends = step_ends.collect();
        // A step that ends where the answer must end is the last one.
        let end = if end == End::Step && num_tokens >= self.policy.params.max_tokens {
            End::Length
        } else {
            end
        };
        Finished {
            expansion,
            index,
            continuation: Continuation {
                token_ids,
                text,
                end,
                logprobs,
                hidden_state,
                step_ends,
                confidence,
            },
        }
    }

    fn take(&mut self, expansion: usize, event: StreamEvent) -> Result<(), SearchError> {
        let first = self.expansions[..expansion]
            .iter()
            .map(|e| e.n)
            .sum::<usize>();
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
