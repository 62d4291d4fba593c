//! The routes of branch sessions.

use std::time::{Duration, Instant};

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::{Extension, Json};
use serde::Deserialize;
use serde_json::{Value, json};
use utoipa::ToSchema;

use super::nodes::{check_nodes, node_json};
use super::session::{Session, Work};
use crate::api::answer::event::{AnswerEvent, ChoiceEnd, Delta, EndReason};
use crate::api::answer::whole::Whole;
use crate::api::body::{self, Body};
use crate::api::clock::unix_time;
use crate::api::deadline::Deadline;
use crate::api::error::ApiError;
use crate::api::openai::chat::{self, ChatRequest};
use crate::api::openai::completions::{self, CompletionRequest};
use crate::api::searching::policy::policy_of;
use crate::api::state::AppState;
use crate::api::tenant::Tenant;
use crate::api::wire::envelope::Head;
use crate::engine::Capability;
use crate::reward::{self, Candidate, RewardContext, RewardSpec, Scorer};
use crate::search::{Continuation, End, Expansion, NodeId, OneOrMany, Policy, StepSpec, Tree};

/// Nodes of a session.
const MAX_NODES: usize = 4096;
/// Seconds without a call after which a session ends.
const DEFAULT_LEASE: u64 = 300;
const MAX_LEASE: u64 = 3600;
/// Fields of a request that mean nothing for a session.
const REFUSED: [&str; 7] = [
    "search",
    "stream",
    "n",
    "echo",
    "prompt_logprobs",
    "adaptation",
    "router_adaptation",
];

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

/// Opens a session: the body of a chat or completion request, without `search`, `stream` or `n`.
#[utoipa::path(post, path = "/v1/branches", tag = "search", request_body = Object,
    responses((status = 200, description = "The session's id and its root")))]
pub(in crate::api) async fn open(
    State(state): State<AppState>,
    Extension(tenant): Extension<Tenant>,
    deadline: Deadline,
    Body(mut body): Body<serde_json::Map<String, Value>>,
) -> Result<Json<Value>, ApiError> {
    let served = state.ready()?;
    // A session promises that its branches share what is computed.
    served.engine.demand(Capability::PrefixSharing)?;
    let lease = lease(&mut body)?;
    for field in REFUSED {
        if body.contains_key(field) {
            let message = format!("{field} cannot be used with branches; leave it out");
            return Err(ApiError::invalid(field, message));
        }
    }
    let is_chat = body.contains_key("messages");
    let body = Value::Object(body);
    let mut generation = if is_chat {
        let request: ChatRequest = body::parse(&body)?;
        chat::prepare(&state, request, tenant, deadline)?
    } else {
        let request: CompletionRequest = body::parse(&body)?;
        completions::prepare(&state, request, tenant, deadline)?
    };
    if generation.prompts.len() != 1 {
        return Err(ApiError::invalid("prompt", "a session has one prompt"));
    }
    generation.params.hidden_state = served.rewards.value_head.is_some();
    let (question, wire) = (std::mem::take(&mut generation.question), generation.wire);
    let model = generation.target.name.clone();
    let policy = policy_of(served, generation, None, None);
    let context = RewardContext {
        question,
        cache_salt: policy.cache_salt,
    };
    let num_prompt_tokens = policy.prompt_token_ids.len();
    let work = Work {
        policy,
        tree: Tree::new(),
    };
    let session = Session {
        context,
        wire,
        model,
        work: tokio::sync::Mutex::new(work),
    };
    let now = Instant::now();
    let id = state.branches().open(tenant, session, lease, now)?;
    Ok(Json(json!({
        "id": id, "object": "branches", "root": Tree::ROOT,
        "prompt_tokens": num_prompt_tokens, "lease_seconds": lease.as_secs(),
    })))
}

/// Takes the lease's length out of a body.
fn lease(body: &mut serde_json::Map<String, Value>) -> Result<Duration, ApiError> {
    let seconds = match body.remove("lease_seconds") {
        None => Some(DEFAULT_LEASE),
        Some(value) => value.as_u64(),
    };
    let seconds = seconds.filter(|seconds| (1..=MAX_LEASE).contains(seconds));
    let seconds = seconds.ok_or_else(|| {
        let message = format!("lease_seconds must be 1 to {MAX_LEASE}");
        ApiError::invalid("lease_seconds", message)
    })?;
    Ok(Duration::from_secs(seconds))
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
    let limit = served.engine.config().max_num_seqs;
    let n = request.n.unwrap_or(1);
    if n == 0 || n > limit {
        return Err(ApiError::invalid("n", format!("n must be 1 to {limit}")));
    }
    let step = request.step.map(|step| step.rule("\n\n")).transpose();
    let step = step.map_err(|error| ApiError::invalid(&error.param, error.message))?;
    let mut work = deadline.limit(session.work.lock()).await?;
    let Work { policy, tree } = &mut *work;
    check_nodes(tree, "nodes", &request.nodes)?;
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
        let (node, is_new) = tree.add(parent, path, finished.continuation);
        nodes.push(node_json(tree, node, is_new));
    }
    Ok(Json(json!({"object": "list", "data": nodes})))
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
    Body(request): Body<ScoreBranches>,
) -> Result<Json<Value>, ApiError> {
    let served = state.ready()?;
    let session = state.branches().call(tenant, &id, Instant::now())?;
    let rewards = request.reward.into_vec();
    let scorer = reward::build(&rewards, &served.rewards, &session.context)
        .map_err(|error| ApiError::reward("reward", error))?;
    let mut work = deadline.limit(session.work.lock()).await?;
    check_nodes(&work.tree, "nodes", &request.nodes)?;
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
    Body(request): Body<ForkBranch>,
) -> Result<Json<Value>, ApiError> {
    let served = state.ready()?;
    let session = state.branches().call(tenant, &id, Instant::now())?;
    let token_ids = served.tokenizer.encode(&request.text, false, false)?;
    if token_ids.is_empty() {
        return Err(ApiError::invalid("text", "text must not be empty"));
    }
    let mut work = deadline.limit(session.work.lock()).await?;
    let tree = &mut work.tree;
    check_nodes(tree, "node", &[request.node])?;
    if tree.node(request.node).end.is_some() || tree.nodes.len() >= MAX_NODES {
        return Err(ApiError::invalid(
            "node",
            "the node has ended, or the session is full",
        ));
    }
    let continuation = Continuation {
        token_ids,
        text: request.text,
        end: End::Step,
        logprobs: Vec::new(),
        hidden_state: None,
        first_step: None,
    };
    // No sample has this path: expansions count from 0.
    let mut path = tree.node(request.node).branch_path.clone();
    path.extend([u32::MAX, tree.nodes.len() as u32]);
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
    let mut whole = Whole::default();
    whole.take(AnswerEvent::End {
        choice: 0,
        last: Delta {
            text: work.tree.text(request.node),
            logprobs: None,
        },
        end: ChoiceEnd {
            reason: EndReason::from(node.end.unwrap_or(End::Stop)),
            stop: None,
            value: None,
        },
    });
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
