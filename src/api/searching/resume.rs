//! A search that goes on from the record of an earlier run.

use std::sync::Arc;

use serde_json::{Value, json};

use crate::api::error::ApiError;
use crate::api::generation::Generation;
use crate::api::openai::code::limits_json;
use crate::api::state::AppState;
use crate::api::tenant::Tenant;
use crate::api::traces::access::read;
use crate::api::traces::keep::sampling_json;
use crate::search::{End, Inserted, RecordedNode, Recording, SearchRequest};
use crate::tool::{CallStatus, CodeCall};
use crate::trace::{InsertedRecord, NodeRecord, SCHEMA, TraceRecord};

/// The strategy that decides by the server's calibration.
const CALIBRATED: &str = "auto";

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
    if !generation.shape.asked.is_null() {
        sampling["structure"] = generation.shape.asked.clone();
    }
    if let Some(code) = &generation.code {
        sampling["code_interpreter"] = limits_json(&code.tool);
    }
    if let Some(adaptation) = &generation.adaptation {
        sampling["adaptation"] = json!(**adaptation);
    }
    (search, sampling)
}

/// Puts the trace that `search.resume` names in its place.
pub(super) async fn find(
    state: &AppState,
    tenant: Tenant,
    request: &mut SearchRequest,
) -> Result<(), ApiError> {
    let Some(Value::String(id)) = &request.resume else {
        return Ok(());
    };
    let id = id.clone();
    let owner = (!state.config().api_keys.is_empty()).then_some(tenant.0);
    let found = read(state, tenant, move |store, _| {
        store.get(&id, owner)?.record()
    });
    let record = found.await;
    let record = record.map_err(|error| ApiError {
        param: Some("search.resume".to_owned()),
        ..error
    })?;
    request.resume = Some(json!(record));
    Ok(())
}

/// What a recording must have been made with.
pub(super) struct Expected {
    /// See [`identity`].
    pub asked: (Value, Value),
    /// Of the server's calibration: `auto` decides by it.
    pub calibration: Option<String>,
}

/// The recording that `search.resume` holds; the request gets its seed. Everything but budgets must be as it was.
pub(super) fn recording(
    resume: Value,
    expected: &Expected,
    generation: &mut Generation,
) -> Result<Recording, ApiError> {
    let refuse = |message: String| ApiError::invalid("search.resume", message);
    let record = serde_json::from_value::<TraceRecord>(resume)
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
        ("search", &record.search, &expected.asked.0),
        ("sampling", &record.sampling, &expected.asked.1),
    ] {
        if let Some(field) = difference(was, is) {
            return Err(refuse(format!(
                "the {part} of search.resume had another {field}; only the budget and iterations may change"
            )));
        }
    }
    if record.strategy == CALIBRATED && record.identity.calibration != expected.calibration {
        return Err(refuse(
            "search.resume was decided with another --calibration than this server's".to_owned(),
        ));
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
    let nodes = nodes.collect::<Option<Vec<_>>>();
    let nodes = nodes.ok_or_else(|| {
        refuse("search.resume has output of code outside of its steps".to_owned())
    })?;
    let recording = Recording::new(nodes);
    if let Some(code) = &generation.code {
        recording.teach(&code.tool);
    }
    Ok(recording)
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

/// `None` where what the policy did not write lies outside of the node.
fn recorded(node: NodeRecord) -> Option<RecordedNode> {
    let inserted = node.inserted.iter().map(|it| inserted(&node, it));
    let inserted = inserted.collect::<Option<Vec<Inserted>>>()?;
    let follow = inserted.windows(2);
    let mut follow = follow.map(|it| (&it[0], &it[1]));
    let is_in_order = |(a, b): (&Inserted, &Inserted)| {
        a.tokens.end <= b.tokens.start && a.text.end <= b.text.start
    };
    if !follow.all(is_in_order) {
        return None;
    }
    Some(RecordedNode {
        inserted,
        parent: node.parent,
        token_ids: node.token_ids,
        text: node.text,
        end: node.end.map(|end| match end.as_str() {
            "stop" => End::Stop,
            "length" => End::Length,
            "unsure" => End::Unsure,
            _ => End::Cut,
        }),
        logprob: node.logprob,
        score: node.score,
        branch_path: node.branch_path,
        duplicate_paths: node.duplicate_paths,
        variant_paths: node.variant_paths,
        confidence: node.confidence,
    })
}

fn inserted(node: &NodeRecord, it: &InsertedRecord) -> Option<Inserted> {
    let [from, to] = it.tokens;
    node.token_ids.get(from..to)?;
    let byte = |at: usize| {
        let mut places = node.text.char_indices().map(|(at, _)| at);
        places
            .nth(at)
            .or_else(|| (at == node.text.chars().count()).then_some(node.text.len()))
    };
    let text = byte(it.chars[0])?..byte(it.chars[1])?;
    node.text.get(text.clone())?;
    Some(Inserted {
        tokens: from..to,
        text,
        call: Arc::new(CodeCall {
            code: it.code.clone(),
            output: it.output.clone(),
            status: CallStatus::from_name(&it.status)?,
        }),
    })
}
