//! A searched tree as its record, and a search that goes on from one.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::{Job, end_name};
use crate::api::auth::Tenant;
use crate::api::error::ApiError;
use crate::api::generation::Generation;
use crate::api::state::AppState;
use crate::api::traces::{self, rounded, sampling_json};
use crate::reward::Scorer;
use crate::search::{End, Node, RecordedNode, Recording, SearchOutcome, SearchRequest};
use crate::trace::{NodeRecord, SCHEMA, Timings, TraceRecord, Usage};

impl Job {
    /// The searched tree as data.
    pub(super) fn record(&self, state: &AppState, outcome: &SearchOutcome) -> TraceRecord {
        let is_outcome = self.scorer.as_ref().is_some_and(Scorer::is_decisive);
        let prompt_token_ids = self.policy.prompt_token_ids.clone();
        let decode = |skip_special| {
            let tokenizer = &self.policy.tokenizer;
            tokenizer.decode(&prompt_token_ids, skip_special)
        };
        let request = match &self.source {
            Value::Null => json!({"prompt": decode(true)}),
            source => source.clone(),
        };
        let stats = &outcome.stats;
        let chosen = self.returned(outcome).iter().map(|answer| answer.node);
        let nodes = outcome.tree.nodes.iter();
        let mut record = TraceRecord {
            schema: SCHEMA.to_owned(),
            id: self.trace_id.clone(),
            revision: 1,
            model: self.target.name.clone(),
            identity: state
                .served()
                .map(|served| traces::identity(served, &self.target))
                .unwrap_or_default(),
            created: self.created,
            strategy: self.spec.strategy.name().to_owned(),
            seed: self.policy.params.seed,
            tags: self.tags.clone(),
            search: self.identity.0.clone(),
            sampling: self.identity.1.clone(),
            request,
            prompt_text: decode(false),
            nodes: nodes.map(|node| node_record(node, is_outcome)).collect(),
            chosen: chosen.collect(),
            adaptation: self.adapted.get().cloned().unwrap_or_default(),
            stopped: outcome.stopped.map(|stopped| stopped.name().to_owned()),
            outcome: None,
            correction: None,
            usage: Usage {
                prompt_tokens: prompt_token_ids.len() as u64,
                num_cached_tokens: self.num_cached_tokens() as u64,
                completion_tokens: stats.num_tokens,
                scorer_calls: stats.scorer_calls,
            },
            timings: Timings {
                total_ms: self.started.elapsed().as_secs_f64() * 1e3,
                scorer_ms: stats.scorer_time.as_secs_f64() * 1e3,
            },
            prompt_token_ids,
            is_redacted: false,
        };
        if is_outcome {
            record.infer();
        }
        record
    }
}

/// `is_outcome`: scores of whole answers say whether they are right.
fn node_record(node: &Node, is_outcome: bool) -> NodeRecord {
    let end = node.end.map(end_name);
    let logprobs = node.logprobs.iter();
    NodeRecord {
        parent: node.parent,
        token_ids: node.token_ids.clone(),
        token_logprobs: logprobs.map(|token| rounded(token.logprob)).collect(),
        text: node.text.clone(),
        end: end.map(str::to_owned),
        logprob: node.logprob,
        score: node.score,
        reward_parts: named_parts(&node.reward_parts),
        outcome: node.score.filter(|_| is_outcome && end.is_some()),
        process: None,
        value: node.value,
        visit_count: node.visit_count,
        is_pruned: node.is_pruned,
        is_rollout: node.is_rollout,
        duplicate_paths: node.duplicate_paths.clone(),
        branch_path: node.branch_path.clone(),
    }
}

/// Scores by the kinds of their rewards; the second of a kind is `KIND.2`.
fn named_parts(parts: &[(&'static str, f64)]) -> BTreeMap<String, f64> {
    let mut named = BTreeMap::new();
    for (index, (kind, score)) in parts.iter().enumerate() {
        let same = parts[..index].iter().filter(|(other, _)| other == kind);
        let name = match same.count() {
            0 => (*kind).to_owned(),
            n => format!("{kind}.{}", n + 1),
        };
        named.insert(name, *score);
    }
    named
}

/// The search and the sampling that a request asks for, but for what a longer run of the same search may change.
pub(super) fn identity(request: &SearchRequest, generation: &Generation) -> (Value, Value) {
    let request = SearchRequest {
        budget: None,
        iterations: None,
        trace: None,
        return_tree: None,
        tags: None,
        stream_events: None,
        resume: None,
        ..request.clone()
    };
    let mut search = json!(request);
    if let Some(fields) = search.as_object_mut() {
        fields.retain(|_, value| !value.is_null());
    }
    let params = &generation.params;
    let mut sampling = sampling_json(params, &generation.stops);
    if generation.shared.temperature.is_none() {
        // The search's own default.
        sampling["temperature"] = Value::Null;
    }
    if let Some(adaptation) = &generation.adaptation {
        sampling["adaptation"] = json!(**adaptation);
    }
    (search, sampling)
}

/// Puts the trace that `search.resume` names in its place.
pub(super) async fn find_resumed(
    state: &AppState,
    tenant: Tenant,
    request: &mut SearchRequest,
) -> Result<(), ApiError> {
    let Some(Value::String(id)) = &request.resume else {
        return Ok(());
    };
    let id = id.clone();
    let owner = (!state.config().api_keys.is_empty()).then_some(tenant.0);
    let record = traces::read(state, move |store| store.get(&id, owner)?.record()).await;
    let record = record.map_err(|error| ApiError {
        param: Some("search.resume".to_owned()),
        ..error
    })?;
    request.resume = Some(json!(record));
    Ok(())
}

/// The recording that `search.resume` holds; the request gets its seed. Everything but budgets must be as it was.
pub(super) fn resume(
    resume: &Value,
    identity: &(Value, Value),
    generation: &mut Generation,
) -> Result<Recording, ApiError> {
    let refuse = |message: String| ApiError::invalid("search.resume", message);
    let record = serde_json::from_value::<TraceRecord>(resume.clone())
        .map_err(|error| refuse(format!("search.resume is not a tree of a search: {error}")))?;
    if record.is_redacted {
        return Err(refuse(
            "search.resume was kept without its texts".to_owned(),
        ));
    }
    if !record.is_tree() || record.schema != SCHEMA {
        return Err(refuse(format!(
            "search.resume is not a tree of schema {SCHEMA}"
        )));
    }
    if generation.prompts.first() != Some(&record.prompt_token_ids) {
        return Err(refuse("search.resume is of another prompt".to_owned()));
    }
    for (part, was, is) in [
        ("search", &record.search, &identity.0),
        ("sampling", &record.sampling, &identity.1),
    ] {
        if let Some(field) = difference(was, is) {
            return Err(refuse(format!(
                "the {part} of search.resume had another {field}; only the budget and iterations may change"
            )));
        }
    }
    if generation.params.logprobs.is_some() {
        return Err(ApiError::invalid(
            "logprobs",
            "logprobs are not on record: they cannot be combined with search.resume",
        ));
    }
    match generation.shared.seed {
        Some(seed) if seed as u64 != record.seed => {
            return Err(refuse(format!(
                "search.resume ran with the seed {}; use it or leave seed out",
                record.seed
            )));
        }
        _ => generation.params.seed = record.seed,
    }
    let nodes = record.nodes.into_iter().map(recorded);
    Ok(Recording::new(nodes.collect()))
}

/// A field that differs between two objects.
fn difference(was: &Value, is: &Value) -> Option<String> {
    let fields = |value: &Value| value.as_object().cloned().unwrap_or_default();
    let (was, is) = (fields(was), fields(is));
    let mut names = was.keys().chain(is.keys());
    let is_other = |name: &&String| match (was.get(*name), is.get(*name)) {
        (Some(was), Some(is)) => !is_same(was, is),
        _ => true,
    };
    names.find(is_other).cloned()
}

/// Equality for which 1 is 1.0: clients may have rewritten the numbers.
fn is_same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => a.as_f64() == b.as_f64(),
        (Value::Array(a), Value::Array(b)) => {
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| is_same(a, b))
        }
        (Value::Object(a), Value::Object(b)) => {
            let has = |(name, a): (&String, &Value)| b.get(name).is_some_and(|b| is_same(a, b));
            a.len() == b.len() && a.iter().all(has)
        }
        _ => a == b,
    }
}

fn recorded(node: NodeRecord) -> RecordedNode {
    RecordedNode {
        parent: node.parent,
        token_ids: node.token_ids,
        text: node.text,
        end: node.end.map(|end| match end.as_str() {
            "stop" => End::Stop,
            "length" => End::Length,
            _ => End::Cut,
        }),
        logprob: node.logprob,
        score: node.score,
        branch_path: node.branch_path,
        duplicate_paths: node.duplicate_paths,
    }
}
