//! Requests on their way into the store.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::api::adapters::registry::TargetModel;
use crate::api::error::ApiError;
use crate::api::openai::params::SharedParams;
use crate::api::served::Served;
use crate::api::state::AppState;
use crate::api::tenant::Tenant;
use crate::engine::SamplingParams;
use crate::trace::{Identity, StoreError, TraceRecord};

/// How long an answer may wait for its trace's commit.
const COMMIT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long it waits even after its request's deadline: a search that used all its time is kept like others.
const COMMIT_GRACE: Duration = Duration::from_millis(500);
/// OpenAI's limits of `metadata`.
const MAX_METADATA: usize = 16;
const MAX_METADATA_KEY_CHARS: usize = 64;
const MAX_METADATA_VALUE_CHARS: usize = 512;

/// How long an answer waits for its trace's commit, with so much time left.
fn patience(left: Option<Duration>) -> Duration {
    left.map_or(COMMIT_TIMEOUT, |left| {
        left.clamp(COMMIT_GRACE, COMMIT_TIMEOUT)
    })
}

/// Waits until a trace is on disk, but not long beyond `deadline`. `None` when it could not be kept, which is no
/// reason to fail an answer.
pub(in crate::api) async fn keep(
    state: &AppState,
    record: TraceRecord,
    tenant: Tenant,
    deadline: Option<Instant>,
) -> Option<String> {
    let traces = state.traces()?;
    let id = record.id.clone();
    let started = Instant::now();
    let left = deadline.map(|deadline| deadline.saturating_duration_since(started));
    let put = tokio::time::timeout(patience(left), traces.store.put(record, tenant.0)).await;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn traces_are_waited_for_within_the_requests_time() {
        assert_eq!(patience(None), COMMIT_TIMEOUT);
        assert_eq!(patience(Some(Duration::from_secs(60))), COMMIT_TIMEOUT);
        let short = Duration::from_secs(2);
        assert_eq!(patience(Some(short)), short);
        assert_eq!(patience(Some(Duration::ZERO)), COMMIT_GRACE);
    }
}
