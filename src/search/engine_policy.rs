//! The policy that a server has: its own engine. Branches share KV blocks through the prefix cache,
//! and all samples of an expansion share their prefix by forking.

use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use futures::future::{BoxFuture, FutureExt};
use futures::stream::{BoxStream, SelectAll, StreamExt};

use super::branch_constraint::BranchConstraint;
use super::calling::{Calling, CodeEvent, Prefix};
use super::confidence::CONFIDENCE_TOP_K;
use super::context::now;
use super::engine_running::{EngineRunning, Sample};
use super::inserted::{Inserted, own_tokens};
use super::outcome::SearchError;
use super::policy::{Expansion, Policy, Running};
use super::step::{MAX_NOTED_STEPS, StepRule, StepWatcher};
use crate::engine::{
    AdaptationConfig, AdaptationReport, AdapterId, Engine, EngineError, GenerateRequest, GroupId,
    RequestStream, SamplingParams, SharedDrafts, Speculative, Steering, StreamEvent, TokenBudget,
    TokenId, TokenWatcher, Watch,
};
use crate::text::Tokenizer;
use crate::tool::CodeTool;

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
    /// Runs the blocks of Python that the policy writes.
    pub code: Option<Arc<CodeTool>>,
    /// The end of the prompt, as far as the answer goes on with it: a block may begin there.
    pub code_before: String,
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
    /// Samples from the model alone, as long as the parameters let it: no constraint, no code, no
    /// deadline and no budget. Fields are set on what this returns.
    pub fn new(
        engine: Engine,
        tokenizer: Tokenizer,
        prompt_token_ids: Vec<TokenId>,
        params: SamplingParams,
    ) -> Self {
        Self {
            group: engine.new_group(),
            engine,
            tokenizer,
            prompt_token_ids,
            params,
            constraint: None,
            stops: Vec::new(),
            include_stop: false,
            skip_special: true,
            visible: Vec::new(),
            code: None,
            code_before: String::new(),
            tenant: 0,
            cache_salt: 0,
            adapter: None,
            deadline: None,
            speculative: None,
            prediction: Vec::new(),
            budget: Arc::new(TokenBudget::new(u64::MAX)),
            steering: OnceLock::new(),
            num_cached_tokens: OnceLock::new(),
            drafts: SharedDrafts::default(),
        }
    }

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
        let own = own_tokens(&expansion.prefix, &expansion.inserted);
        let constraint = self.constraint.as_ref();
        let constraint = constraint.map(|constraint| constraint.after(&own));
        let constraint = constraint.transpose();
        let constraint = constraint.map_err(|error| EngineError::Constraint(error.0))?;
        let watcher = self.watcher(expansion, step_of(expansion));
        let left = self.params.max_tokens.saturating_sub(own.len());
        let wanted = self.params.logprobs.unwrap_or(0);
        let num_logprobs = match expansion.confidence {
            Some(_) => wanted.max(CONFIDENCE_TOP_K),
            None => wanted,
        };
        let params = SamplingParams {
            max_tokens: left.max(1),
            min_tokens: self.params.min_tokens.saturating_sub(own.len()),
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

    /// Starts an expansion; where its samples may call code, their calls are among the events.
    async fn begin(
        &self,
        index: usize,
        expansion: &Expansion,
    ) -> Result<BoxStream<'static, (usize, CodeEvent)>, EngineError> {
        let request = self.request(expansion)?;
        let Some(tool) = &self.code else {
            let events = self.submit(request).await?.numbered(index);
            return Ok(events
                .map(|(at, event)| (at, CodeEvent::Engine(event)))
                .boxed());
        };
        let calling = Calling {
            engine: self.engine.clone(),
            tool: Arc::clone(tool),
            rules: self.text_rules(),
            constraint: self.constraint.clone(),
            prefix: Prefix {
                own: own_tokens(&expansion.prefix, &expansion.inserted),
                before: self.code_before.clone(),
                text: expansion.own_text().to_owned(),
                calls: expansion
                    .inserted
                    .iter()
                    .map(|it| Arc::clone(&it.call))
                    .collect(),
            },
            step: step_of(expansion),
            confidence: expansion.confidence,
        };
        let stream = self.submit(request.clone()).await?;
        let events = calling.events(request, stream);
        Ok(events.map(move |event| (index, event)).boxed())
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
                events.push(self.begin(index, expansion).await?);
                samples.extend((0..expansion.n).map(|sample| Sample::new(index, sample)));
            }
            let running = EngineRunning::new(self, expansions, events, samples);
            Ok(Box::new(running) as Box<dyn Running + '_>)
        }
        .boxed()
    }

    fn pieces(&self, token_ids: &[TokenId]) -> Vec<String> {
        let mut detokenizer = self.detokenizer();
        token_ids.iter().map(|id| detokenizer.push(*id)).collect()
    }

    fn step_ends(
        &self,
        source: &Expansion,
        token_ids: &[TokenId],
        inserted: &[Inserted],
    ) -> Vec<usize> {
        let Some(rule) = source.noted_step.clone() else {
            return Vec::new();
        };
        let step = Some((rule, Watch::Tap));
        let mut watcher = self.watcher(source, step.clone());
        let (mut ends, mut from, mut num_own) = (Vec::new(), 0, source.num_own());
        for it in inserted {
            let own = &token_ids[from..it.tokens.start];
            ends.extend(taps(&mut watcher, own).map(|len| from + len));
            // The step in which code ran ends behind its output.
            ends.pop_if(|end| *end == it.tokens.start);
            ends.push(it.tokens.end);
            from = it.tokens.end;
            num_own += own.len();
            watcher = self.text_rules().watcher_behind(num_own, step.clone());
        }
        ends.extend(taps(&mut watcher, &token_ids[from..]).map(|len| from + len));
        ends.truncate(MAX_NOTED_STEPS);
        ends.retain(|end| *end < token_ids.len());
        ends
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

/// Where an expansion's step ends, and what that means.
fn step_of(expansion: &Expansion) -> Option<(StepRule, Watch)> {
    let end = expansion.step.clone().map(|rule| (rule, Watch::End));
    let noted = expansion.noted_step.clone();
    end.or(noted.map(|rule| (rule, Watch::Tap)))
}

/// After how many of these tokens steps end.
fn taps(watcher: &mut StepWatcher, own: &[TokenId]) -> impl Iterator<Item = usize> {
    let watches = own.iter().zip(1..);
    watches.filter_map(|(id, len)| (watcher.push(*id, None) == Watch::Tap).then_some(len))
}
