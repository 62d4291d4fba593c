//! The routes of branch sessions.

use std::collections::HashSet;
use std::time::Instant;

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::{Extension, Json};
use serde::Deserialize;
use serde_json::{Value, json};
use utoipa::ToSchema;

use super::nodes::{check_nodes, node_json};
use super::session::Work;
use crate::api::answer::event::{AnswerEvent, ChoiceEnd, Delta, EndReason};
use crate::api::answer::reader::Reader;
use crate::api::answer::whole::Whole;
use crate::api::body::{Body, SizedBody};
use crate::api::causes::Causes;
use crate::api::clock::unix_time;
use crate::api::deadline::Deadline;
use crate::api::error::ApiError;
use crate::api::openai::messages;
use crate::api::state::AppState;
use crate::api::tenant::Tenant;
use crate::api::wire::envelope::Head;
use crate::engine::EngineError;
use crate::reward::{self, Candidate, RewardSpec, Scorer};
use crate::search::{
    Continuation, End, Expansion, Node, NodeId, OneOrMany, Policy, StepRule, StepSpec, pieces,
};
use crate::work::Budget;

/// Nodes of a session.
const MAX_NODES: usize = 4096;
/// Nodes that one call names.
pub(in crate::api) const MAX_NAMED: usize = 256;
/// Samples that continue nodes.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct GenerateBranches {
    /// Nodes to continue; the root is 0.
    pub nodes: Vec<usize>,
    /// Samples of each.
    pub n: Option<usize>,
    /// Where a sample ends; without it at the end of the answer.
    pub step: Option<StepSpec>,
}

/// Which nodes to score, and by what.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ScoreBranches {
    pub nodes: Vec<usize>,
    #[schema(value_type = Object)]
    pub reward: OneOrMany<RewardSpec>,
}

/// Text of the client's own after a node.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ForkBranch {
    pub node: usize,
    pub text: String,
}

/// The node that is the answer.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CommitBranch {
    pub node: usize,
}

/// Samples continuations of nodes, all in one batch.
#[utoipa::path(post, path = "/v1/branches/{id}/generate", tag = "search",
    params(("id" = String, Path)), request_body = GenerateBranches,
    responses((status = 200, description = "The new nodes")))]
pub(in crate::api) async fn generate(
    State(state): State<AppState>,
    Extension(tenant): Extension<Tenant>,
    deadline: Deadline,
    Path(id): Path<String>,
    Body(request): Body<GenerateBranches>,
) -> Result<Json<Value>, ApiError> {
    let served = state.ready()?;
    let session = state.branches().call(tenant, &id, Instant::now())?;
    let limit = served.engine.config().max_num_seqs_of_one();
    let n = request.n.unwrap_or(1);
    if n == 0 || n > limit {
        return Err(ApiError::invalid("n", format!("n must be 1 to {limit}")));
    }
    let step = step_rule(&state, request.step, tenant, deadline).await?;
    let mut work = deadline.limit(session.work.lock()).await?;
    let Work {
        policy,
        tree,
        account,
    } = &mut *work;
    check_nodes(tree, "nodes", &request.nodes)?;
    check_number(&request.nodes)?;
    if tree.nodes.len() + n * request.nodes.len() > MAX_NODES {
        return Err(ApiError::invalid(
            "n",
            format!("a session has at most {MAX_NODES} nodes"),
        ));
    }
    if let Some(ended) = request
        .nodes
        .iter()
        .find(|id| tree.node(**id).end.is_some())
    {
        return Err(ApiError::invalid(
            "nodes",
            format!("node {ended} has ended; nothing follows it"),
        ));
    }
    policy.deadline = deadline.instant();
    let requests: Vec<(NodeId, usize)> = request.nodes.iter().map(|id| (*id, n)).collect();
    let expansions = requests
        .iter()
        .map(|(id, n)| tree.expansion(*id, *n, step.clone(), None));
    let expansions: Vec<Expansion> = expansions.collect();
    let paths: Vec<Vec<u32>> = expansions.iter().map(|e| e.branch_path.clone()).collect();
    let mut running = policy.start(expansions).await?;
    let mut finished = Vec::new();
    while let Some(next) = running.next().await {
        finished.push(next?);
    }
    drop(running);
    finished.sort_by_key(|finished| (finished.expansion, finished.index));
    let mut nodes = Vec::new();
    for finished in finished {
        let parent = request.nodes[finished.expansion];
        let path = [
            paths[finished.expansion].as_slice(),
            &[finished.index as u32],
        ]
        .concat();
        account.take(node_bytes(&path, &finished.continuation))?;
        let (node, is_new) = tree.add(parent, path, finished.continuation);
        nodes.push(node_json(tree, node, is_new));
    }
    Ok(Json(json!({"object": "list", "data": nodes})))
}

/// What a node holds.
fn node_bytes(path: &[u32], continuation: &Continuation) -> usize {
    let state = continuation.hidden_state.as_ref();
    let calls = continuation.inserted.iter().map(|it| &it.call);
    let calls = calls.map(|call| call.code.len() + call.output.len());
    size_of::<Node>()
        + continuation.text.len()
        + calls.sum::<usize>()
        + size_of::<u32>() * (path.len() + continuation.token_ids.len())
        + size_of::<f32>() * state.map_or(0, |state| state.len())
        + size_of_val(continuation.logprobs.as_slice())
}

/// Where samples end, read where a pattern may take its time.
async fn step_rule(
    state: &AppState,
    step: Option<StepSpec>,
    tenant: Tenant,
    deadline: Deadline,
) -> Result<Option<StepRule>, ApiError> {
    let Some(step) = step else { return Ok(None) };
    let work = Causes::of_pattern(step.regex.as_deref(), tenant, deadline);
    let rule = move |_: &Budget| {
        let rule = step.rule("\n\n");
        rule.map_err(|error| ApiError::invalid(&error.param, error.message))
    };
    Ok(Some(work.run(state, "compiling the pattern", rule).await?))
}

/// A call names no more nodes than it can answer for at once.
fn check_number(nodes: &[NodeId]) -> Result<(), ApiError> {
    if nodes.len() > MAX_NAMED {
        let message = format!("nodes takes at most {MAX_NAMED} nodes");
        return Err(ApiError::invalid("nodes", message));
    }
    Ok(())
}

/// Scores nodes.
#[utoipa::path(post, path = "/v1/branches/{id}/score", tag = "search",
    params(("id" = String, Path)), request_body = ScoreBranches,
    responses((status = 200, description = "One score a node")))]
pub(in crate::api) async fn score(
    State(state): State<AppState>,
    Extension(tenant): Extension<Tenant>,
    deadline: Deadline,
    Path(id): Path<String>,
    Body(mut request): Body<ScoreBranches>,
) -> Result<Json<Value>, ApiError> {
    let served = state.ready()?;
    let session = state.branches().call(tenant, &id, Instant::now())?;
    let rewards = request.reward.into_vec();
    let (rewards, context) = (&rewards, &session.context);
    let scorer = reward::build(rewards, &served.rewards, context, deadline.instant()).await;
    let scorer = scorer.map_err(|error| ApiError::reward("reward", error))?;
    let mut work = deadline.limit(session.work.lock()).await?;
    // One that is named twice is scored once.
    let mut is_seen = HashSet::new();
    request.nodes.retain(|id| is_seen.insert(*id));
    check_nodes(&work.tree, "nodes", &request.nodes)?;
    check_number(&request.nodes)?;
    let candidates = request.nodes.iter().map(|id| work.tree.candidate(*id));
    let candidates: Vec<Candidate> = candidates.collect();
    let scores = scorer.score(&candidates, deadline.instant()).await?;
    for (id, score) in request.nodes.iter().zip(&scores) {
        work.tree.nodes[*id].score = Some(score.clamp(0.0, 1.0));
    }
    let data = request.nodes.iter().zip(&scores);
    let data: Vec<Value> = data
        .map(|(id, score)| json!({"object": "score", "node": id, "score": score}))
        .collect();
    Ok(Json(json!({"object": "list", "data": data})))
}

/// Continues a node with the client's own text.
#[utoipa::path(post, path = "/v1/branches/{id}/fork", tag = "search",
    params(("id" = String, Path)), request_body = ForkBranch,
    responses((status = 200, description = "The new node")))]
pub(in crate::api) async fn fork(
    State(state): State<AppState>,
    Extension(tenant): Extension<Tenant>,
    deadline: Deadline,
    Path(id): Path<String>,
    SizedBody(request, num_bytes): SizedBody<ForkBranch>,
) -> Result<Json<Value>, ApiError> {
    let served = state.ready()?;
    let session = state.branches().call(tenant, &id, Instant::now())?;
    let work = Causes {
        tenant,
        deadline,
        num_bytes,
    };
    let (own, text) = (state.clone(), request.text.clone());
    let in_text = |error| ApiError {
        param: Some("text".to_owned()),
        ..error
    };
    let encode = move |budget: &Budget| {
        let token_ids = messages::encode(own.ready()?, &text, (false, false), budget);
        token_ids.map_err(in_text)
    };
    let token_ids = work.run(&state, "tokenising the text", encode).await?;
    if token_ids.is_empty() {
        return Err(ApiError::invalid("text", "text must not be empty"));
    }
    let mut work = deadline.limit(session.work.lock()).await?;
    let Work {
        policy,
        tree,
        account,
    } = &mut *work;
    check_nodes(tree, "node", &[request.node])?;
    if tree.node(request.node).end.is_some() || tree.nodes.len() >= MAX_NODES {
        return Err(ApiError::invalid(
            "node",
            "the node has ended, or the session is full",
        ));
    }
    let context = served.engine.config().max_model_len;
    let node = tree.node(request.node);
    let before = policy.prompt_token_ids.len() + node.num_tokens + node.num_inserted;
    if before + token_ids.len() > context {
        let error = EngineError::PromptTooLong {
            num_tokens: before + token_ids.len(),
            max_model_len: context,
        };
        return Err(in_text(error.into()));
    }
    let continuation = Continuation {
        token_ids,
        text: request.text,
        inserted: Vec::new(),
        end: End::Step,
        logprobs: Vec::new(),
        hidden_state: None,
        confidence: None,
        step_ends: Vec::new(),
    };
    // No sample has this path: expansions count from 0.
    let mut path = tree.node(request.node).branch_path.clone();
    path.extend([u32::MAX, tree.nodes.len() as u32]);
    account.take(node_bytes(&path, &continuation))?;
    let (node, is_new) = tree.add(request.node, path, continuation);
    Ok(Json(node_json(tree, node, is_new)))
}

/// Ends the session with a node as its answer.
#[utoipa::path(post, path = "/v1/branches/{id}/commit", tag = "search",
    params(("id" = String, Path)), request_body = CommitBranch,
    responses((status = 200, description = "The answer as a completion")))]
pub(in crate::api) async fn commit(
    State(state): State<AppState>,
    Extension(tenant): Extension<Tenant>,
    deadline: Deadline,
    Path(id): Path<String>,
    Body(request): Body<CommitBranch>,
) -> Result<Json<Value>, ApiError> {
    let session = state.branches().call(tenant, &id, Instant::now())?;
    let work = deadline.limit(session.work.lock()).await?;
    check_nodes(&work.tree, "node", &[request.node])?;
    // Nothing is waited for from here on: who ends the session also tells its answer.
    state.branches().close(tenant, &id, Instant::now())?;
    let node = work.tree.node(request.node);
    let mut reader = Reader::new(&session.reading);
    let (text, inserted) = (
        work.tree.text(request.node),
        work.tree.inserted(request.node),
    );
    let mut last = Delta::default();
    for piece in pieces(&text, &inserted, 0) {
        reader
            .piece(piece)
            .into_iter()
            .for_each(|delta| last.append(delta));
    }
    last.append(reader.finish());
    let end = reader.end(ChoiceEnd {
        reason: EndReason::from(node.end.unwrap_or(End::Stop)),
        stop: None,
        value: None,
    });
    let choice = 0;
    let mut whole = Whole::default();
    whole.take(AnswerEvent::End { choice, last, end });
    let head = Head {
        id,
        model: session.model.clone(),
        created: unix_time(),
        n: 1,
        ..Head::default()
    };
    let mut body = session.wire.format(head).body(whole);
    let (prompt, all) = (
        work.policy.prompt_token_ids.len(),
        work.policy.num_tokens() as usize,
    );
    body["usage"] = json!({
        "prompt_tokens": prompt, "completion_tokens": all, "total_tokens": prompt + all,
        "completion_tokens_details": {"reasoning_tokens": all.saturating_sub(node.num_tokens)},
    });
    Ok(Json(body))
}

/// Forgets a session.
#[utoipa::path(delete, path = "/v1/branches/{id}", tag = "search",
    params(("id" = String, Path)), responses((status = 204, description = "Gone")))]
pub(in crate::api) async fn delete(
    State(state): State<AppState>,
    Extension(tenant): Extension<Tenant>,
    Path(id): Path<String>,
) -> Result<StatusCode, ApiError> {
    state.branches().close(tenant, &id, Instant::now())?;
    Ok(StatusCode::NO_CONTENT)
}
