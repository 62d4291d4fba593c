//! Requests on their way into the store.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::api::adapters::TargetModel;
use crate::api::auth::Tenant;
use crate::api::error::ApiError;
use crate::api::openai::params::SharedParams;
use crate::api::state::{AppState, Served, unix_time};
use crate::engine::SamplingParams;
use crate::trace::{
    Identity, NodeRecord, PLAIN, SCHEMA, StoreError, Timings, TraceRecord, TraceStore, Usage,
};

/// How long an answer may wait for its trace's commit.
const COMMIT_TIMEOUT: Duration = Duration::from_secs(5);
/// A store that fails says so this often.
const WARNING_INTERVAL: Duration = Duration::from_secs(60);
/// OpenAI's limits of `metadata`.
const MAX_METADATA: usize = 16;
const MAX_METADATA_KEY_CHARS: usize = 64;
const MAX_METADATA_VALUE_CHARS: usize = 512;

/// The server's store.
pub(in crate::api) struct Traces {
    pub store: TraceStore,
    warned: Mutex<Option<Instant>>,
}

impl Traces {
    pub fn new(store: TraceStore) -> Self {
        Self {
            store,
            warned: Mutex::new(None),
        }
    }

    fn warn(&self, error: &str) {
        let mut warned = self.warned.lock().unwrap_or_else(PoisonError::into_inner);
        if warned.is_none_or(|at| at.elapsed() >= WARNING_INTERVAL) {
            *warned = Some(Instant::now());
            tracing::warn!("traces are being lost: {error}");
        }
    }
}

/// Waits until a trace is on disk. `None` when it could not be kept, which is no reason to fail an answer.
pub(in crate::api) async fn keep(
    state: &AppState,
    record: TraceRecord,
    tenant: Tenant,
) -> Option<String> {
    let traces = state.traces()?;
    let id = record.id.clone();
    let started = Instant::now();
    let put = tokio::time::timeout(COMMIT_TIMEOUT, traces.store.put(record, tenant.0)).await;
    let (result, error) = match put {
        Ok(Ok(())) => ("kept", None),
        Ok(Err(error @ StoreError::Full)) => ("dropped", Some(error.to_string())),
        Ok(Err(error)) => ("failed", Some(error.to_string())),
        Err(_) => ("late", Some("the disk is too slow".to_owned())),
    };
    state.metrics().traced(result, started.elapsed());
    match error {
        None => Some(id),
        Some(error) => {
            traces.warn(&error);
            None
        }
    }
}

/// What made an answer.
pub(in crate::api) fn identity(served: &Served, target: &TargetModel) -> Identity {
    Identity {
        adapter: target
            .adapter
            .as_ref()
            .map(|adapter| adapter.identity.clone()),
        ..served.identity.clone()
    }
}

pub(in crate::api) fn new_id() -> String {
    format!("trace-{}", uuid::Uuid::new_v4().simple())
}

/// Whether a plain request is kept.
pub(in crate::api) fn is_wanted(state: &AppState, shared: &SharedParams) -> bool {
    state.traces().is_some() && shared.store.unwrap_or(state.config().trace_all)
}

/// OpenAI's `metadata` as tags, `KEY:VALUE`.
pub(in crate::api) fn tags(shared: &SharedParams) -> Result<Vec<String>, ApiError> {
    let metadata = shared.metadata.iter().flatten();
    if shared
        .metadata
        .as_ref()
        .is_some_and(|m| m.len() > MAX_METADATA)
    {
        let message = format!("metadata takes at most {MAX_METADATA} pairs");
        return Err(ApiError::invalid("metadata", message));
    }
    metadata
        .map(|(key, value)| {
            let fits = key.chars().count() <= MAX_METADATA_KEY_CHARS
                && value.chars().count() <= MAX_METADATA_VALUE_CHARS;
            if !fits {
                let message = format!(
                    "metadata takes keys of {MAX_METADATA_KEY_CHARS} and values of {MAX_METADATA_VALUE_CHARS} characters"
                );
                return Err(ApiError::invalid("metadata", message));
            }
            Ok(format!("{key}:{value}"))
        })
        .collect()
}

/// The sampling that a request asks for.
pub(in crate::api) fn sampling_json(params: &SamplingParams, stops: &[String]) -> Value {
    json!({
        "temperature": params.temperature,
        "top_k": params.top_k,
        "top_p": params.top_p,
        "min_p": params.min_p,
        "repetition_penalty": params.repetition_penalty,
        "presence_penalty": params.presence_penalty,
        "frequency_penalty": params.frequency_penalty,
        "logit_bias": params.logit_bias,
        "max_tokens": params.max_tokens,
        "min_tokens": params.min_tokens,
        "stop": stops,
        "stop_token_ids": params.stop_token_ids,
    })
}

/// A log-probability with the digits that a trace keeps.
pub(in crate::api) fn rounded(logprob: f32) -> f64 {
    (f64::from(logprob) * 1e4).round() / 1e4
}

/// Takes down a plain answer while it is written.
pub(in crate::api) struct Recorder {
    tenant: Tenant,
    target: TargetModel,
    request: Value,
    sampling: Value,
    seed: u64,
    tags: Vec<String>,
    started: Instant,
    /// What adaptation did; null when it was not asked for.
    pub adaptation: Value,
    /// One a choice.
    answers: Vec<NodeRecord>,
}

impl Recorder {
    pub fn new(
        (tenant, target): (Tenant, TargetModel),
        request: Value,
        (params, stops): (&SamplingParams, &[String]),
        tags: Vec<String>,
        num_choices: usize,
    ) -> Self {
        let answer = |index: usize| NodeRecord {
            parent: Some(0),
            visit_count: 1,
            branch_path: vec![index as u32],
            ..NodeRecord::default()
        };
        Self {
            tenant,
            target,
            request,
            sampling: sampling_json(params, stops),
            seed: params.seed,
            tags,
            started: Instant::now(),
            adaptation: Value::Null,
            answers: (0..num_choices).map(answer).collect(),
        }
    }

    pub fn token(&mut self, choice: usize, token_id: u32, logprob: Option<f32>) {
        let answer = &mut self.answers[choice];
        answer.token_ids.push(token_id);
        if let Some(logprob) = logprob {
            answer.token_logprobs.push(rounded(logprob));
            answer.logprob += f64::from(logprob);
        }
    }

    pub fn text(&mut self, choice: usize, text: &str) {
        self.answers[choice].text.push_str(text);
    }

    pub fn end(&mut self, choice: usize, finish_reason: &str) {
        let end = match finish_reason {
            "abort" => "cut",
            other => other,
        };
        self.answers[choice]
            .end
            .get_or_insert_with(|| end.to_owned());
    }

    /// Keeps one trace a prompt (`n` choices each) and returns their ids.
    pub async fn keep(
        self,
        state: &AppState,
        prompts: &[Vec<u32>],
        n: usize,
        num_cached_tokens: usize,
    ) -> Vec<Option<String>> {
        let Some(served) = state.served() else {
            return Vec::new();
        };
        let mut ids = Vec::new();
        let mut answers = self.answers.into_iter();
        for prompt in prompts {
            let mut nodes = vec![NodeRecord::default()];
            nodes.extend(answers.by_ref().take(n));
            let tokens = nodes.iter().map(|node| node.token_ids.len() as u64).sum();
            let decode = |skip_special| served.tokenizer.decode(prompt, skip_special);
            let request = match &self.request {
                Value::Null => json!({"prompt": decode(true)}),
                request => request.clone(),
            };
            let record = TraceRecord {
                schema: SCHEMA.to_owned(),
                id: new_id(),
                revision: 1,
                model: self.target.name.clone(),
                identity: identity(served, &self.target),
                created: unix_time(),
                strategy: PLAIN.to_owned(),
                seed: self.seed,
                tags: self.tags.clone(),
                search: Value::Null,
                sampling: self.sampling.clone(),
                request,
                prompt_text: decode(false),
                prompt_token_ids: prompt.clone(),
                chosen: (1..nodes.len()).collect(),
                nodes,
                adaptation: self.adaptation.clone(),
                stopped: None,
                outcome: None,
                correction: None,
                usage: Usage {
                    prompt_tokens: prompt.len() as u64,
                    // Of all prompts of the request.
                    num_cached_tokens: num_cached_tokens as u64,
                    completion_tokens: tokens,
                    scorer_calls: 0,
                },
                timings: Timings {
                    total_ms: self.started.elapsed().as_secs_f64() * 1e3,
                    scorer_ms: 0.0,
                },
                is_redacted: false,
            };
            ids.push(keep(state, record, self.tenant).await);
        }
        ids
    }
}
