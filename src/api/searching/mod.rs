//! From a checked request with a `search` object to its answer.

mod record;
mod stream;

use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use axum::Json;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::api::adapters::TargetModel;
use crate::api::auth::Tenant;
use crate::api::error::ApiError;
use crate::api::generation::{Delta, Generation, Wire, envelope};
use crate::api::openai::adaptation::phase_json;
use crate::api::openai::params::count;
use crate::api::openai::speculation::completion_details;
use crate::api::openai::{chat, completions};
use crate::api::state::{AppState, Served, unix_time};
use crate::api::traces;
use crate::engine::{AdaptationConfig, Capability, SharedDrafts, TokenBudget, TokenLogprobs};
use crate::reward::{self, RewardContext, Scorer, ScorerError, Weighted};
use crate::search::{
    End, EnginePolicy, Ranked, Recording, ReplayPolicy, Search, SearchError, SearchEvent,
    SearchOutcome, SearchRequest, SearchSpec,
};

/// Temperature of a search that names none (ReST-MCTS*): samples of one prompt must differ.
const DEFAULT_TEMPERATURE: f32 = 0.7;

/// A search that is ready to run.
struct Job {
    policy: EnginePolicy,
    scorer: Option<Weighted>,
    adaptation: Option<Arc<AdaptationConfig>>,
    /// What it did, once it is over.
    adapted: OnceLock<Value>,
    spec: SearchSpec,
    /// See [`record::identity`].
    identity: (Value, Value),
    /// What an earlier run of this search sampled.
    recording: Option<Recording>,
    wire: Wire,
    /// Answers to return.
    n: usize,
    include_usage: bool,
    /// The request's messages and tools; null for completions.
    source: Value,
    tenant: Tenant,
    target: TargetModel,
    /// Whether the tree is kept.
    is_kept: bool,
    tags: Vec<String>,
    id: String,
    trace_id: String,
    created: u64,
    started: Instant,
}

/// Runs a search and answers as the client asked.
pub(in crate::api) async fn answer(
    state: &AppState,
    generation: Generation,
    mut request: SearchRequest,
) -> Result<Response, ApiError> {
    record::find_resumed(state, generation.tenant, &mut request).await?;
    let is_stream = generation.shared.stream;
    let job = Job::new(state, generation, &request)?;
    if is_stream {
        return Ok(stream::stream(state.clone(), job));
    }
    let outcome = job.run(state, None).await?;
    let summary = job.summary(state, &outcome).await;
    Ok(Json(job.whole(state, &outcome, summary)).into_response())
}

impl Job {
    fn new(
        state: &AppState,
        mut generation: Generation,
        request: &SearchRequest,
    ) -> Result<Self, ApiError> {
        let served = state.ready()?;
        let limit = served.engine.config().max_num_seqs;
        let resources = &served.rewards;
        let spec = request
            .resolve(limit, resources.default_kind())
            .map_err(spec_error)?;
        let salt = generation.shared.cache_salt.as_deref();
        let context = RewardContext {
            question: generation.question.clone(),
            cache_salt: generation.tenant.cache_salt(salt),
        };
        if spec
            .rewards
            .iter()
            .any(|reward| reward.kind == "value_head")
        {
            let demanded = served.engine.demand(Capability::HiddenStates);
            demanded.map_err(|error| ApiError::at("search.reward", error))?;
        }
        let scorer = match spec.rewards.as_slice() {
            [] => None,
            rewards => Some(
                reward::build(rewards, resources, &context).map_err(|error| {
                    let at = format!("search.reward{}", error.param);
                    ApiError::invalid(&at, error.message)
                })?,
            ),
        };
        spec.check_scorer(scorer.as_ref()).map_err(spec_error)?;
        check_combination(&generation)?;
        let n = count("n", generation.shared.n, 1, spec.n.max(spec.branch))?;
        if n == 0 {
            return Err(ApiError::invalid("n", "n must be at least 1"));
        }
        let tags = [spec.tags.clone(), traces::tags(&generation.shared)?].concat();
        let is_kept = spec.trace && generation.shared.store != Some(false);
        let source = std::mem::take(&mut generation.source);
        let tenant = generation.tenant;
        let identity = record::identity(request, &generation);
        let recording = match &request.resume {
            Some(resume) => Some(record::resume(resume, &identity, &mut generation)?),
            None => None,
        };
        Ok(Self {
            identity,
            recording,
            source,
            tenant,
            is_kept,
            tags,
            ..Self::with(state, served, generation, spec, scorer, n)
        })
    }

    fn with(
        state: &AppState,
        served: &Served,
        generation: Generation,
        spec: SearchSpec,
        scorer: Option<Weighted>,
        n: usize,
    ) -> Self {
        let wire = generation.wire;
        let include_usage = generation.shared.include_usage;
        let target = generation.target.clone();
        let adaptation = generation.adaptation.clone();
        let deadline = spec
            .budget
            .ms
            .and_then(|ms| Instant::now().checked_add(Duration::from_millis(ms)));
        let mut policy = policy_of(served, generation, deadline, spec.budget.tokens);
        policy.params.hidden_state = scorer
            .as_ref()
            .is_some_and(|scorer| scorer.taps().hidden_state);
        let max_tokens = policy.params.max_tokens.min(1 << 20);
        state
            .metrics()
            .started(policy.prompt_token_ids.len(), n, max_tokens);
        let prefix = match wire {
            Wire::Chat => "chatcmpl",
            Wire::Completion => "cmpl",
        };
        Self {
            policy,
            scorer,
            adaptation,
            adapted: OnceLock::new(),
            spec,
            identity: (Value::Null, Value::Null),
            recording: None,
            wire,
            n,
            include_usage,
            source: Value::Null,
            tenant: Tenant(0),
            target,
            is_kept: false,
            tags: Vec::new(),
            id: format!("{prefix}-{}", uuid::Uuid::new_v4().simple()),
            trace_id: traces::new_id(),
            created: unix_time(),
            started: Instant::now(),
        }
    }

    async fn run(
        &self,
        state: &AppState,
        events: Option<mpsc::UnboundedSender<SearchEvent>>,
    ) -> Result<SearchOutcome, ApiError> {
        if let Some(config) = &self.adaptation {
            let report = self.policy.adapt(Arc::clone(config)).await?;
            if let Some(report) = &report {
                state.metrics().adapted(report);
            }
            let phases: Vec<Value> = report.iter().map(|report| phase_json(report, 0)).collect();
            let _ = self
                .adapted
                .set(json!({"config": **config, "phases": phases}));
        }
        let scorer = self.scorer.as_ref();
        let outcome = match &self.recording {
            None => {
                Search::new(&self.policy, scorer, &self.spec, events)
                    .run()
                    .await
            }
            Some(recording) => {
                let policy = ReplayPolicy {
                    recording,
                    policy: &self.policy,
                };
                let search = Search::new(&policy, scorer, &self.spec, events);
                search.with_recording(recording).run().await
            }
        };
        outcome.map_err(ApiError::from)
    }

    /// The answers that the client gets.
    fn returned<'o>(&self, outcome: &'o SearchOutcome) -> &'o [Ranked] {
        &outcome.answers[..self.n.min(outcome.answers.len())]
    }

    fn num_cached_tokens(&self) -> usize {
        self.policy.num_cached_tokens.get().copied().unwrap_or(0)
    }

    fn usage(&self, outcome: &SearchOutcome) -> Value {
        let returned = self.returned(outcome).iter();
        let kept: usize = returned.map(|answer| answer.token_ids.len()).sum();
        let (prompt, all) = (
            self.policy.prompt_token_ids.len(),
            outcome.stats.num_tokens as usize,
        );
        json!({
            "prompt_tokens": prompt,
            "completion_tokens": all,
            "total_tokens": prompt + all,
            "prompt_tokens_details": {
                "cached_tokens": self.num_cached_tokens(),
                "audio_tokens": 0,
            },
            "completion_tokens_details": completion_details(
                all.saturating_sub(kept),
                self.policy.drafts.total(),
            ),
        })
    }

    /// The `search` object of a response. Its trace is on disk then.
    async fn summary(&self, state: &AppState, outcome: &SearchOutcome) -> Value {
        let stats = &outcome.stats;
        let is_kept = self.is_kept && state.traces().is_some();
        let record = (is_kept || self.spec.return_tree).then(|| self.record(state, outcome));
        let tree = self.spec.return_tree.then(|| json!(record));
        let trace_id = match record.filter(|_| is_kept) {
            Some(record) => traces::keep(state, record, self.tenant).await,
            None => None,
        };
        let mut summary = json!({
            "trace_id": trace_id,
            "strategy": self.spec.strategy,
            "value": outcome.answers.first().map(|answer| answer.value),
            "nodes": stats.num_nodes,
            "tokens": stats.num_tokens,
            "scorer_calls": stats.scorer_calls,
            "scorer_ms": stats.scorer_time.as_millis() as u64,
            "stopped": outcome.stopped,
        });
        if let Some(adapted) = self.adapted.get() {
            summary["adaptation"] = adapted.clone();
        }
        if let Some(tree) = tree {
            summary["tree"] = tree;
        }
        summary
    }

    fn envelope(&self, choices: Vec<Value>, is_chunk: bool) -> Value {
        envelope(
            &self.target.name,
            &self.id,
            self.created,
            self.wire,
            choices,
            is_chunk,
        )
    }

    fn logprobs(&self, served: &Served, answer: &Ranked) -> Value {
        if self.policy.params.logprobs.is_none() {
            return Value::Null;
        }
        if self.wire == Wire::Chat {
            return chat::logprobs_json(&served.tokenizer, &answer.logprobs);
        }
        let text = |token: &TokenLogprobs| served.tokenizer.token_text(token.token_id);
        let texts: Vec<String> = answer.logprobs.iter().map(text).collect();
        let tokens: Vec<_> = answer.logprobs.iter().cloned().map(Some).collect();
        completions::logprobs_json(&served.tokenizer, &tokens, &texts, 0)
    }

    fn choice(&self, index: usize, answer: &Ranked, logprobs: Value) -> Value {
        let delta = Delta {
            text: answer.text.clone(),
            finish_reason: Some(finish_reason(answer.end)),
            stop_reason: None,
        };
        let mut choice = match self.wire {
            Wire::Chat => chat::choice_json(index, &delta, logprobs),
            Wire::Completion => completions::choice_json(index, &delta, logprobs),
        };
        choice["value"] = answer.value.into();
        choice
    }

    fn whole(&self, state: &AppState, outcome: &SearchOutcome, summary: Value) -> Value {
        let mut choices = Vec::new();
        for (index, answer) in self.returned(outcome).iter().enumerate() {
            let logprobs = state
                .served()
                .map_or(Value::Null, |served| self.logprobs(served, answer));
            choices.push(self.choice(index, answer, logprobs));
        }
        let mut body = self.envelope(choices, false);
        body["usage"] = self.usage(outcome);
        body["search"] = summary;
        self.count(state, outcome);
        body
    }

    fn count(&self, state: &AppState, outcome: &SearchOutcome) {
        let returned = self.returned(outcome);
        let kept: usize = returned.iter().map(|answer| answer.token_ids.len()).sum();
        let reason = returned
            .first()
            .map_or("stop", |answer| finish_reason(answer.end));
        let metrics = state.metrics();
        metrics.finished(reason, kept, self.started.elapsed());
        metrics.searched(
            self.spec.strategy.name(),
            match outcome.stopped {
                Some(stopped) => stopped.name(),
                None => "finished",
            },
            kept as u64,
            &outcome.stats,
        );
    }
}

/// The policy of a checked request. `deadline` and `tokens` are the search's own limits.
pub(in crate::api) fn policy_of(
    served: &Served,
    generation: Generation,
    deadline: Option<Instant>,
    tokens: Option<u64>,
) -> EnginePolicy {
    let Generation {
        mut prompts,
        mut params,
        stops,
        shared,
        speculation,
        adaptation: _,
        tenant,
        target,
        deadline: latest,
        ..
    } = generation;
    if shared.temperature.is_none() {
        params.temperature = DEFAULT_TEMPERATURE;
    }
    let prompt_token_ids = prompts.pop().unwrap_or_default();
    // An answer that fills the context has ended: nothing may be asked to follow it.
    let context = served.engine.config().max_model_len;
    let room = context.saturating_sub(prompt_token_ids.len()).max(1);
    params.max_tokens = params.max_tokens.min(room);
    EnginePolicy {
        engine: served.engine.clone(),
        group: served.engine.new_group(),
        speculative: speculation.speculative,
        prediction: speculation.prediction,
        steering: OnceLock::new(),
        drafts: SharedDrafts::default(),
        tokenizer: served.tokenizer.clone(),
        prompt_token_ids,
        params,
        stops,
        include_stop: shared.include_stop,
        skip_special: shared.skip_special,
        cache_salt: tenant.cache_salt(shared.cache_salt.as_deref()),
        adapter: target.adapter_id(),
        deadline: Some(deadline.map_or(latest, |deadline| deadline.min(latest))),
        budget: Arc::new(TokenBudget::new(tokens.unwrap_or(u64::MAX))),
        num_cached_tokens: OnceLock::new(),
    }
}

/// How a node ended, in traces and answers.
pub(in crate::api) fn end_name(end: End) -> &'static str {
    match end {
        End::Stop => "stop",
        End::Length => "length",
        End::Cut | End::Step => "cut",
    }
}

pub(in crate::api) fn finish_reason(end: End) -> &'static str {
    match end {
        End::Stop | End::Step => "stop",
        End::Length | End::Cut => "length",
    }
}

fn spec_error(error: crate::search::SpecError) -> ApiError {
    // A message that begins with its field names the whole path.
    let prefix = match error.message.starts_with(&error.param) {
        true => "search.",
        false => "",
    };
    ApiError::invalid(
        &format!("search.{}", error.param),
        format!("{prefix}{}", error.message),
    )
}

impl From<ScorerError> for ApiError {
    fn from(error: ScorerError) -> Self {
        match error {
            ScorerError::Deadline { .. } => Self::deadline(),
            // Not this server's fault, and it may pass.
            ScorerError::Failed { kind: "http", .. } => Self::unavailable(error.to_string()),
            ScorerError::Failed { .. } => Self::internal(error.to_string()),
        }
    }
}

impl From<SearchError> for ApiError {
    fn from(error: SearchError) -> Self {
        match error {
            SearchError::Engine(error) => error.into(),
            SearchError::Scorer(error) => error.into(),
            SearchError::NoAnswer => Self::deadline(),
        }
    }
}

/// What cannot be asked for together with a search.
fn check_combination(generation: &Generation) -> Result<(), ApiError> {
    let refuse = |param: &str, message: &str| Err(ApiError::invalid(param, message));
    if generation.prompts.len() != 1 {
        return refuse("prompt", "a search takes one prompt");
    }
    if generation.media.is_some() {
        return refuse("messages", "images cannot be combined with search");
    }
    if !generation.echo.is_empty() {
        return refuse("echo", "echo cannot be combined with search");
    }
    if generation.shared.prompt_logprobs.is_some() {
        return refuse(
            "prompt_logprobs",
            "prompt_logprobs cannot be combined with search",
        );
    }
    if generation.shared.temperature == Some(0.0) {
        return refuse(
            "temperature",
            "a search samples different answers: temperature must be above 0",
        );
    }
    Ok(())
}
