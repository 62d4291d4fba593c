//! `/v1/chat/completions`.

use axum::Extension;
use axum::extract::State;
use axum::response::Response;
use serde_json::{Map, Value, json};

use super::adaptation::adaptation;
use super::images;
use super::messages::{Conversation, check_messages, question, render};
use super::params::{count, generation_request, logprobs};
use super::speculation::Speculation;
use crate::api::answer::dispatch::answer;
use crate::api::body::SizedBody;
use crate::api::causes::Causes;
use crate::api::config::MAX_LOGPROBS;
use crate::api::deadline::Deadline;
use crate::api::error::ApiError;
use crate::api::generation::Generation;
use crate::api::presets;
use crate::api::state::AppState;
use crate::api::tenant::Tenant;
use crate::api::wire::Wire;
use crate::work::Budget;

generation_request! {
    /// A chat request.
    ChatRequest {
        #[schema(value_type = Vec<Object>)]
        messages: Vec<Value>,
        max_completion_tokens: Option<i64>,
        logprobs: Option<bool>,
        top_logprobs: Option<u64>,
        #[schema(value_type = Option<Vec<Object>>)]
        tools: Option<Vec<Value>>,
        #[schema(value_type = Option<Object>)]
        tool_choice: Option<Value>,
        #[schema(value_type = Option<Object>)]
        response_format: Option<Value>,
        add_generation_prompt: Option<bool>,
        /// More variables for the chat template.
        #[schema(value_type = Option<Object>)]
        chat_template_kwargs: Option<Map<String, Value>>,
    }
}

/// Answers a conversation.
#[utoipa::path(post, path = "/v1/chat/completions", tag = "openai", request_body = ChatRequest,
    responses((status = 200, description = "A completion, or server-sent events with stream")))]
pub async fn create(
    State(state): State<AppState>,
    Extension(tenant): Extension<Tenant>,
    deadline: Deadline,
    SizedBody(request, num_bytes): SizedBody<ChatRequest>,
) -> Result<Response, ApiError> {
    let work = Causes {
        tenant,
        deadline,
        num_bytes,
    };
    let generation = prepare_sized(&state, request, work).await?;
    answer(&state, generation).await
}

/// Checks a request where that delays nobody.
pub(in crate::api) async fn prepare_sized(
    state: &AppState,
    request: ChatRequest,
    work: Causes,
) -> Result<Generation, ApiError> {
    let own = state.clone();
    let (tenant, deadline) = (work.tenant, work.deadline);
    let prepare = move |budget: &Budget| prepare(&own, request, tenant, deadline, budget);
    work.run(state, "reading the messages", prepare).await
}

/// Checks a request.
fn prepare(
    state: &AppState,
    mut request: ChatRequest,
    tenant: Tenant,
    deadline: Deadline,
    budget: &Budget,
) -> Result<Generation, ApiError> {
    let served = state.ready()?;
    let target = state.target(tenant, request.model.as_deref())?;
    let media = images::take(&mut request.messages, served.engine.as_ref())?;
    check_messages(&request.messages)?;
    check_format(&request)?;
    let max_tokens_name = unify_max_tokens(&mut request);
    let top_logprobs = count("top_logprobs", request.top_logprobs, 0, MAX_LOGPROBS)?;
    let wants_logprobs = request.logprobs.unwrap_or(false);
    if request.top_logprobs.is_some() && !wants_logprobs {
        return Err(ApiError::invalid(
            "top_logprobs",
            "top_logprobs needs logprobs: true",
        ));
    }
    let shared = request.shared();
    let mut params = shared.sampling(
        &served.tokenizer,
        wants_logprobs.then_some(top_logprobs),
        max_tokens_name,
    )?;
    let speculation = Speculation::new(&shared, served, budget)?;
    let adaptation = adaptation(&shared, served)?;
    params.prompt_logprobs = logprobs("prompt_logprobs", request.prompt_logprobs)?;
    let tools = match &request.tool_choice {
        Some(Value::String(choice)) if choice == "none" => None,
        _ => request.tools.as_deref(),
    };
    let conversation = Conversation {
        messages: &request.messages,
        tools,
        add_generation_prompt: request.add_generation_prompt.unwrap_or(true),
        variables: &request.chat_template_kwargs.unwrap_or_default(),
        escapes: state.config().escape_special_tokens,
    };
    let prompt = render(served, &conversation)?;
    let question = question(&request.messages);
    let mut source = json!({"messages": request.messages});
    if let Some(tools) = request.tools {
        source["tools"] = tools.into();
    }
    let prompt_token_ids = prompt.encode(served, budget)?;
    Ok(Generation {
        speculation,
        adaptation,
        prompts: vec![prompt_token_ids],
        media,
        params,
        stops: shared.stops()?,
        search: presets::requested(&shared)?,
        shared,
        echo: Vec::new(),
        wire: Wire::Chat,
        question,
        target,
        source,
        tenant,
        deadline,
    })
}

/// Takes the newer of two fields that mean the same, and says which one was given.
fn unify_max_tokens(request: &mut ChatRequest) -> &'static str {
    if request.max_completion_tokens.is_none() {
        return "max_tokens";
    }
    request.max_tokens = request.max_completion_tokens;
    "max_completion_tokens"
}

fn check_format(request: &ChatRequest) -> Result<(), ApiError> {
    match request
        .response_format
        .as_ref()
        .map(|format| &format["type"])
    {
        None | Some(Value::Null) => {}
        Some(Value::String(kind)) if kind == "text" => {}
        Some(kind) => {
            let message = format!("response_format {kind} is not available in this build");
            return Err(ApiError::invalid("response_format", message));
        }
    }
    match &request.tool_choice {
        None | Some(Value::Null) => Ok(()),
        Some(Value::String(choice)) if matches!(choice.as_str(), "none" | "auto") => Ok(()),
        Some(choice) => {
            let message = format!("tool_choice {choice} is not available in this build");
            Err(ApiError::invalid("tool_choice", message))
        }
    }
}
