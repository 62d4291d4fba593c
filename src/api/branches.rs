//! `/v1/branches`: the parts of a search, for people who write their own. A session is a tree over one prompt;
//! its branches share KV blocks through the prefix cache.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::{Extension, Json};
use serde::Deserialize;
use serde_json::{Value, json};
use utoipa::ToSchema;

use super::auth::Tenant;
use super::body::Body;
use super::error::ApiError;
use super::generation::{self, Delta, Wire};
use super::openai::chat::{self, ChatRequest};
use super::openai::completions::{self, CompletionRequest};
use super::searching::{end_name, finish_reason, policy_of};
use super::state::{AppState, unix_time};
use crate::engine::Capability;
use crate::reward::{self, Candidate, RewardContext, RewardSpec, Scorer};
use crate::search::{
    Continuation, End, EnginePolicy, Expansion, NodeId, OneOrMany, Policy, StepSpec, Tree,
};

/// Sessions of one API key at once.
const MAX_SESSIONS: usize = 64;
/// Nodes of a session.
const MAX_NODES: usize = 4096;
/// Seconds without a call after which a session ends.
const DEFAULT_LEASE: u64 = 300;
const MAX_LEASE: u64 = 3600;

/// All open sessions.
#[derive(Default)]
pub struct Branches {
    sessions: Mutex<HashMap<String, Arc<Session>>>,
}

struct Session {
    tenant: u64,
    lease: Duration,
    expires: Mutex<Instant>,
    context: RewardContext,
    wire: Wire,
    work: tokio::sync::Mutex<Work>,
}

/// What a call changes; calls of one session follow each other.
struct Work {
    policy: EnginePolicy,
    tree: Tree,
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poison| poison.into_inner())
}

impl Branches {
    fn open(&self, session: Session) -> Result<String, ApiError> {
        let mut sessions = lock(&self.sessions);
        let now = Instant::now();
        sessions.retain(|_, session| *lock(&session.expires) > now);
        let is_own = |other: &&Arc<Session>| other.tenant == session.tenant;
        if sessions.values().filter(is_own).count() >= MAX_SESSIONS {
            return Err(ApiError::overloaded(format!(
                "{MAX_SESSIONS} branch sessions are open: commit or delete some"
            )));
        }
        let id = format!("branches-{}", uuid::Uuid::new_v4().simple());
        sessions.insert(id.clone(), Arc::new(session));
        Ok(id)
    }

    /// The session, its lease renewed. Another key's session does not exist.
    fn find(&self, id: &str, tenant: Tenant) -> Result<Arc<Session>, ApiError> {
        let now = Instant::now();
        let session = lock(&self.sessions).get(id).cloned();
        let session = session.filter(|s| s.tenant == tenant.0 && *lock(&s.expires) > now);
        let session = session.ok_or_else(|| ApiError::no_session(id))?;
        *lock(&session.expires) = now + session.lease;
        Ok(session)
    }

    fn close(&self, id: &str, tenant: Tenant) -> Result<(), ApiError> {
        self.find(id, tenant)?;
        lock(&self.sessions).remove(id);
        Ok(())
    }
}

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
pub(super) async fn open(
    State(state): State<AppState>,
    Extension(tenant): Extension<Tenant>,
    headers: HeaderMap,
    Body(mut body): Body<serde_json::Map<String, Value>>,
) -> Result<Json<Value>, ApiError> {
    let served = state.ready()?;
    // A session promises that its branches share what is computed.
    served.engine.demand(Capability::PrefixSharing)?;
    let lease = match body.remove("lease_seconds") {
        None => DEFAULT_LEASE,
        Some(value) => value
            .as_u64()
            .filter(|seconds| (1..=MAX_LEASE).contains(seconds))
            .ok_or_else(|| {
                let message = format!("lease_seconds must be 1 to {MAX_LEASE}");
                ApiError::invalid("lease_seconds", message)
            })?,
    };
    for field in [
        "search",
        "stream",
        "n",
        "echo",
        "prompt_logprobs",
        "adaptation",
        "router_adaptation",
    ] {
        if body.contains_key(field) {
            let message = format!("{field} cannot be used with branches; leave it out");
            return Err(ApiError::invalid(field, message));
        }
    }
    let is_chat = body.contains_key("messages");
    let body = Value::Object(body);
    let mut generation = if is_chat {
        let request: ChatRequest = super::body::parse(&body)?;
        chat::prepare(&state, request, tenant, &headers)?
    } else {
        let request: CompletionRequest = super::body::parse(&body)?;
        completions::prepare(&state, request, tenant, &headers)?
    };
    if generation.prompts.len() != 1 {
        return Err(ApiError::invalid("prompt", "a session has one prompt"));
    }
    generation.params.hidden_state = served.rewards.value_head.is_some();
    let (question, wire) = (std::mem::take(&mut generation.question), generation.wire);
    let policy = policy_of(served, generation, None, None);
    let context = RewardContext {
        question,
        cache_salt: policy.cache_salt,
    };
    let num_prompt_tokens = policy.prompt_token_ids.len();
    let lease = Duration::from_secs(lease);
    let id = state.branches().open(Session {
        tenant: tenant.0,
        lease,
        expires: Mutex::new(Instant::now() + lease),
        context,
        wire,
        work: tokio::sync::Mutex::new(Work {
            policy,
            tree: Tree::new(),
        }),
    })?;
    Ok(Json(json!({
        "id": id, "object": "branches", "root": Tree::ROOT,
        "prompt_tokens": num_prompt_tokens, "lease_seconds": lease.as_secs(),
    })))
}

/// Samples continuations of nodes, all in one batch.
#[utoipa::path(post, path = "/v1/branches/{id}/generate", tag = "search", params(("id" = String, Path)),
    request_body = GenerateBranches, responses((status = 200, description = "The new nodes")))]
pub(super) async fn generate(
    State(state): State<AppState>,
    Extension(tenant): Extension<Tenant>,
    Path(id): Path<String>,
    Body(request): Body<GenerateBranches>,
) -> Result<Json<Value>, ApiError> {
    let served = state.ready()?;
    let session = state.branches().find(&id, tenant)?;
    let limit = served.engine.config().max_num_seqs;
    let n = request.n.unwrap_or(1);
    if n == 0 || n > limit {
        return Err(ApiError::invalid("n", format!("n must be 1 to {limit}")));
    }
    let step = request.step.map(|step| step.rule("\n\n")).transpose();
    let step = step.map_err(|error| ApiError::invalid(&error.param, error.message))?;
    let mut work = session.work.lock().await;
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
    policy.deadline = Some(Instant::now() + state.config().request_timeout);
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
#[utoipa::path(post, path = "/v1/branches/{id}/score", tag = "search", params(("id" = String, Path)),
    request_body = ScoreBranches, responses((status = 200, description = "One score a node")))]
pub(super) async fn score(
    State(state): State<AppState>,
    Extension(tenant): Extension<Tenant>,
    Path(id): Path<String>,
    headers: HeaderMap,
    Body(request): Body<ScoreBranches>,
) -> Result<Json<Value>, ApiError> {
    let served = state.ready()?;
    let deadline = generation::deadline(&state, &headers)?;
    let session = state.branches().find(&id, tenant)?;
    let rewards = request.reward.into_vec();
    let scorer = reward::build(&rewards, &served.rewards, &session.context)
        .map_err(|error| ApiError::invalid(&format!("reward{}", error.param), error.message))?;
    let mut work = session.work.lock().await;
    check_nodes(&work.tree, "nodes", &request.nodes)?;
    let candidates = request.nodes.iter().map(|id| work.tree.candidate(*id));
    let candidates: Vec<Candidate> = candidates.collect();
    let scores = scorer.score(&candidates, Some(deadline)).await?;
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
#[utoipa::path(post, path = "/v1/branches/{id}/fork", tag = "search", params(("id" = String, Path)),
    request_body = ForkBranch, responses((status = 200, description = "The new node")))]
pub(super) async fn fork(
    State(state): State<AppState>,
    Extension(tenant): Extension<Tenant>,
    Path(id): Path<String>,
    Body(request): Body<ForkBranch>,
) -> Result<Json<Value>, ApiError> {
    let served = state.ready()?;
    let session = state.branches().find(&id, tenant)?;
    let token_ids = served.tokenizer.encode(&request.text, false, false)?;
    if token_ids.is_empty() {
        return Err(ApiError::invalid("text", "text must not be empty"));
    }
    let mut work = session.work.lock().await;
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
#[utoipa::path(post, path = "/v1/branches/{id}/commit", tag = "search", params(("id" = String, Path)),
    request_body = CommitBranch, responses((status = 200, description = "The answer as a completion")))]
pub(super) async fn commit(
    State(state): State<AppState>,
    Extension(tenant): Extension<Tenant>,
    Path(id): Path<String>,
    Body(request): Body<CommitBranch>,
) -> Result<Json<Value>, ApiError> {
    let session = state.branches().find(&id, tenant)?;
    let work = session.work.lock().await;
    check_nodes(&work.tree, "node", &[request.node])?;
    let node = work.tree.node(request.node);
    let delta = Delta {
        text: work.tree.text(request.node),
        finish_reason: Some(finish_reason(node.end.unwrap_or(End::Stop))),
        stop_reason: None,
    };
    let choice = match session.wire {
        Wire::Chat => chat::choice_json(0, &delta, Value::Null),
        Wire::Completion => completions::choice_json(0, &delta, Value::Null),
    };
    let model = state.model_name();
    let mut body = generation::envelope(model, &id, unix_time(), session.wire, vec![choice], false);
    let (prompt, all) = (
        work.policy.prompt_token_ids.len(),
        work.policy.num_tokens() as usize,
    );
    body["usage"] = json!({
        "prompt_tokens": prompt, "completion_tokens": all, "total_tokens": prompt + all,
        "completion_tokens_details": {"reasoning_tokens": all.saturating_sub(node.num_tokens)},
    });
    state.branches().close(&id, tenant)?;
    Ok(Json(body))
}

/// Forgets a session.
#[utoipa::path(delete, path = "/v1/branches/{id}", tag = "search", params(("id" = String, Path)),
    responses((status = 204, description = "Gone")))]
pub(super) async fn delete(
    State(state): State<AppState>,
    Extension(tenant): Extension<Tenant>,
    Path(id): Path<String>,
) -> Result<StatusCode, ApiError> {
    state.branches().close(&id, tenant)?;
    Ok(StatusCode::NO_CONTENT)
}

fn check_nodes(tree: &Tree, param: &str, nodes: &[usize]) -> Result<(), ApiError> {
    if nodes.is_empty() {
        return Err(ApiError::invalid(param, "name at least one node"));
    }
    match nodes.iter().find(|id| **id >= tree.nodes.len()) {
        Some(id) => Err(ApiError::invalid(param, format!("there is no node {id}"))),
        None => Ok(()),
    }
}

/// `is_new` is false when the sample repeated a sibling, which is then returned.
fn node_json(tree: &Tree, id: NodeId, is_new: bool) -> Value {
    let node = tree.node(id);
    json!({
        "node": id, "parent": node.parent, "text": node.text, "tokens": node.token_ids.len(),
        "depth": node.depth, "logprob": node.logprob, "end": node.end.map(end_name), "is_new": is_new,
    })
}
