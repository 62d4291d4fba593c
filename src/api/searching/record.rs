//! A searched tree as its record, and a search that goes on from one.

use serde_json::{Value, json};

use super::{Job, end_name};
use crate::api::error::ApiError;
use crate::api::generation::Generation;
use crate::api::state::AppState;
use crate::reward::Scorer;
use crate::search::{End, Node, RecordedNode, Recording, SearchOutcome, SearchRequest};
use crate::trace::{NodeRecord, SCHEMA, TraceRecord};

impl Job {
    /// The searched tree as data.
    pub(super) fn record(&self, state: &AppState, outcome: &SearchOutcome) -> TraceRecord {
        let is_outcome = self.scorer.as_ref().is_some_and(Scorer::is_decisive);
        TraceRecord {
            schema: SCHEMA.to_owned(),
            id: self.trace_id.clone(),
            model: state.model_name().to_owned(),
            created: self.created,
            strategy: self.spec.strategy.name().to_owned(),
            seed: self.policy.params.seed,
            tags: self.spec.tags.clone(),
            search: self.identity.0.clone(),
            sampling: self.identity.1.clone(),
            prompt_token_ids: self.policy.prompt_token_ids.clone(),
            nodes: outcome
                .tree
                .nodes
                .iter()
                .map(|node| node_record(node, is_outcome))
                .collect(),
        }
    }
}

/// `is_outcome`: scores of whole answers say whether they are right.
fn node_record(node: &Node, is_outcome: bool) -> NodeRecord {
    let end = node.end.map(end_name);
    NodeRecord {
        parent: node.parent,
        token_ids: node.token_ids.clone(),
        text: node.text.clone(),
        end: end.map(str::to_owned),
        logprob: node.logprob,
        score: node.score,
        outcome: node.score.filter(|_| is_outcome && end.is_some()),
        value: node.value,
        visit_count: node.visit_count,
        is_pruned: node.is_pruned,
        is_rollout: node.is_rollout,
        duplicate_paths: node.duplicate_paths.clone(),
        branch_path: node.branch_path.clone(),
    }
}

/// The search and the sampling that a request asks for, but for what a longer run of the same search may change.
pub(super) fn identity(request: &SearchRequest, generation: &Generation) -> (Value, Value) {
    let request = SearchRequest {
        budget: None,
        iterations: None,
        trace: None,
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
    let sampling = json!({
        "temperature": generation.shared.temperature.map(|_| params.temperature),
        "top_k": params.top_k,
        "top_p": params.top_p,
        "min_p": params.min_p,
        "repetition_penalty": params.repetition_penalty,
        "presence_penalty": params.presence_penalty,
        "frequency_penalty": params.frequency_penalty,
        "logit_bias": params.logit_bias,
        "max_tokens": params.max_tokens,
        "min_tokens": params.min_tokens,
        "stop": generation.stops,
        "stop_token_ids": params.stop_token_ids,
    });
    (search, sampling)
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
