//! A checked request with a `search` object, ready to run.

use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::policy::policy_of;
use super::resume;
use crate::api::adapters::registry::TargetModel;
use crate::api::answer::reader::ReadingRules;
use crate::api::causes::Causes;
use crate::api::clock::unix_time;
use crate::api::deadline::Deadline;
use crate::api::error::ApiError;
use crate::api::generation::Generation;
use crate::api::openai::adaptation::phase_json;
use crate::api::openai::params::count;
use crate::api::state::AppState;
use crate::api::tenant::Tenant;
use crate::api::traces::keep;
use crate::engine::{AdaptationConfig, Capability};
use crate::reward::{self, Calibration, RewardContext, Scorer, ScorerTokens, Weighted};
use crate::search::{
    EnginePolicy, Ranked, Recording, ReplayPolicy, Search, SearchEvent, SearchOutcome,
    SearchRequest, SearchSpec,
};
use crate::work::Budget;

/// A search that is ready to run.
pub(super) struct SearchRun {
    pub policy: EnginePolicy,
    pub scorer: Option<Weighted>,
    pub spec: SearchSpec,
    calibration: Option<Arc<Calibration>>,
    /// What the rewards have computed.
    scorer_tokens: Arc<ScorerTokens>,
    /// How the text of an answer is read.
    pub reading: ReadingRules,
    adaptation: Option<Arc<AdaptationConfig>>,
    /// What it did, once it is over.
    pub adapted: OnceLock<Value>,
    /// See [`resume::identity`].
    pub identity: (Value, Value),
    /// What an earlier run of this search sampled.
    recording: Option<Recording>,
    /// Answers to return.
    pub n: usize,
    /// The request's messages and tools; null for completions.
    pub source: Value,
    pub tenant: Tenant,
    pub target: TargetModel,
    /// Whether the tree is kept.
    pub is_kept: bool,
    pub tags: Vec<String>,
    /// Unix seconds.
    pub created: u64,
    pub started: Instant,
}

impl SearchRun {
    pub async fn new(
        state: &AppState,
        mut generation: Generation,
        mut request: SearchRequest,
    ) -> Result<Self, ApiError> {
        let served = state.ready()?;
        let (tenant, deadline) = (generation.tenant, generation.deadline);
        let resume = request.resume.take();
        let spec = resolve(state, request.clone(), tenant, deadline).await?;
        let (scorer, scorer_tokens) = scorer(state, &generation, &spec).await?;
        spec.check_scorer(scorer.as_ref())
            .map_err(ApiError::search)?;
        check_combination(&generation)?;
        let n = count("n", generation.shared.n, 1, spec.n.max(spec.branch))?;
        if n == 0 {
            return Err(ApiError::invalid("n", "n must be at least 1"));
        }
        let tags = [spec.tags.clone(), keep::tags(&generation.shared)?].concat();
        let identity = resume::identity(&request, &generation);
        let mut recording = None;
        if let Some(resume) = resume {
            let expected = resume::Expected {
                asked: identity.clone(),
                calibration: served.identity.calibration.clone(),
            };
            let read = recorded(state, generation, resume, expected).await?;
            (recording, generation) = (Some(read.0), read.1);
        }
        let is_kept = spec.trace && generation.shared.store != Some(false);
        let source = std::mem::take(&mut generation.source);
        let target = generation.target.clone();
        let adaptation = generation.adaptation.clone();
        let reading = generation.shape.reading.clone();
        let budget = spec.budget.ms.map(Duration::from_millis);
        let budget = budget.and_then(|budget| Deadline::after(budget).instant());
        let mut policy = policy_of(served, generation, budget, spec.budget.tokens);
        policy.params.hidden_state = scorer.as_ref().is_some_and(|it| it.taps().hidden_state);
        let max_tokens = policy.params.max_tokens.min(1 << 20);
        state
            .metrics()
            .started(policy.prompt_token_ids.len(), n, max_tokens);
        Ok(Self {
            policy,
            scorer,
            spec,
            calibration: served.rewards.calibration.clone(),
            scorer_tokens,
            reading,
            adaptation,
            adapted: OnceLock::new(),
            identity,
            recording,
            n,
            source,
            tenant,
            target,
            is_kept,
            tags,
            created: unix_time(),
            started: Instant::now(),
        })
    }

    pub async fn run(
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
        let (scorer, calibration) = (self.scorer.as_ref(), self.calibration.as_deref());
        let outcome = match &self.recording {
            None => {
                let search = Search::new(&self.policy, scorer, &self.spec, events);
                search.with_calibration(calibration).run().await
            }
            Some(recording) => {
                let policy = ReplayPolicy {
                    recording,
                    policy: &self.policy,
                };
                let search = Search::new(&policy, scorer, &self.spec, events);
                let search = search.with_calibration(calibration);
                search.with_recording(recording).run().await
            }
        };
        let mut outcome = outcome?;
        outcome.stats.scorer_tokens = self.scorer_tokens.total();
        Ok(outcome)
    }

    /// The answers that the client gets.
    pub fn returned<'o>(&self, outcome: &'o SearchOutcome) -> &'o [Ranked] {
        &outcome.answers[..self.n.min(outcome.answers.len())]
    }

    pub fn num_cached_tokens(&self) -> usize {
        self.policy.num_cached_tokens.get().copied().unwrap_or(0)
    }
}

/// What `search.resume` holds, and the generation with its seed.
async fn recorded(
    state: &AppState,
    mut generation: Generation,
    resume: Value,
    expected: resume::Expected,
) -> Result<(Recording, Generation), ApiError> {
    let work = Causes {
        tenant: generation.tenant,
        deadline: generation.deadline,
        num_bytes: usize::MAX,
    };
    let read = move |_: &Budget| {
        let recording = resume::recording(resume, &expected, &mut generation)?;
        Ok((recording, generation))
    };
    work.run(state, "reading search.resume", read).await
}

/// The complete search; a pattern is compiled where that may take its time.
async fn resolve(
    state: &AppState,
    request: SearchRequest,
    tenant: Tenant,
    deadline: Deadline,
) -> Result<SearchSpec, ApiError> {
    let served = state.ready()?;
    let limit = served.engine.config().max_num_seqs_of_one();
    let default_reward = served.rewards.default_kind();
    let pattern = request.step.as_ref().and_then(|step| step.regex.as_deref());
    let work = Causes::of_pattern(pattern, tenant, deadline);
    let resolve = move |_: &Budget| {
        let spec = request.resolve(limit, default_reward);
        spec.map_err(ApiError::search)
    };
    work.run(state, "compiling the pattern", resolve).await
}

/// What the rewards of a search are told.
fn context_of(state: &AppState, generation: &Generation) -> RewardContext {
    let prompt = generation.prompts.first();
    let salt = generation.shared.cache_salt.as_deref();
    RewardContext {
        question: generation.question.clone(),
        prompt_token_ids: prompt.map(|ids| ids.as_slice().into()).unwrap_or_default(),
        ..state.reward_context(generation.tenant, salt)
    }
}

/// The scorer that a search asks for, if any, and where the tokens that it computes are counted.
async fn scorer(
    state: &AppState,
    generation: &Generation,
    spec: &SearchSpec,
) -> Result<(Option<Weighted>, Arc<ScorerTokens>), ApiError> {
    let served = state.ready()?;
    let is_head = |kind: &str| kind == "value_head";
    if spec.rewards.iter().any(|reward| is_head(&reward.kind)) {
        let demanded = served.engine.demand(Capability::HiddenStates);
        demanded.map_err(|error| ApiError::at("search.reward", error))?;
    }
    let context = context_of(state, generation);
    if spec.rewards.is_empty() {
        return Ok((None, context.tokens));
    }
    let deadline = generation.deadline.instant();
    let scorer = reward::build(&spec.rewards, &served.rewards, &context, deadline).await;
    let scorer = scorer.map_err(|error| ApiError::reward("search.reward", error))?;
    Ok((Some(scorer), context.tokens))
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
    if generation.shared.top_p == Some(0.0) {
        return refuse(
            "top_p",
            "a search samples different answers: top_p must be above 0",
        );
    }
    if generation.params.max_tokens == 0 {
        return refuse("max_tokens", "a search needs max_tokens of at least 1");
    }
    if generation.shared.temperature == Some(0.0) {
        return refuse(
            "temperature",
            "a search samples different answers: temperature must be above 0",
        );
    }
    Ok(())
}
