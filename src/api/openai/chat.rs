//! `/v1/chat/completions`.

use axum::Extension;
use axum::extract::State;
use axum::response::Response;
use serde_json::{Map, Value, json};

use super::adaptation::adaptation;
use super::code;
use super::continuation::{Rendering, conversation};
use super::field_rules::CHAT;
use super::images;
use super::known_fields::check_others;
use super::messages::{check_messages, question};
use super::params::{count, generation_request, logprobs, newer_limit};
use super::prompts::{Truncation, encode_chat};
use super::reasoning::ReasoningFields;
use super::shape::of_chat;
use super::speculation::Speculation;
use super::tools::ToolFields;
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
        /// Functions, and `code_interpreter`: the server runs the Python that the model writes.
        #[schema(value_type = Option<Vec<Object>>)]
        tools: Option<Vec<Value>>,
        #[schema(value_type = Option<Object>)]
        tool_choice: Option<Value>,
        /// Several calls in one answer.
        parallel_tool_calls: Option<bool>,
        /// What OpenAI had before `tools`.
        #[schema(value_type = Option<Vec<Object>>)]
        functions: Option<Vec<Value>>,
        #[schema(value_type = Option<Object>)]
        function_call: Option<Value>,
        /// Send what the model thinks.
        include_reasoning: Option<bool>,
        /// Tokens of a thought; -1 is no limit.
        #[serde(alias = "reasoning_budget_tokens", alias = "thinking_budget_tokens")]
        thinking_token_budget: Option<i64>,
        /// OpenRouter's: `{"effort": …, "max_tokens": …, "exclude": …, "enabled": …}`.
        #[schema(value_type = Option<Object>)]
        reasoning: Option<Value>,
        add_generation_prompt: Option<bool>,
        /// Go on where the last message, which is the assistant's, ends.
        continue_final_message: Option<bool>,
        /// Documents for chat templates that read them.
        #[schema(value_type = Option<Vec<Object>>)]
        documents: Option<Vec<Value>>,
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
    // What a grammar takes, its length does not say.
    let has_grammar =
        request.has_grammar() || request.tools.is_some() || request.functions.is_some();
    let num_bytes = if has_grammar {
        usize::MAX
    } else {
        work.num_bytes
    };
    let work = Causes { num_bytes, ..work };
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
    check_others(CHAT, &request.others)?;
    let media = images::take(&mut request.messages, served.engine.as_ref())?;
    check_messages(&request.messages)?;
    let structured = request.structured().read()?;
    let mut tools = tools(&request).plan(served.output.tools)?;
    let code = code::tool(served, tools.code.take(), tenant)?;
    let reasoning = reasoning(&request).plan()?;
    request.reasoning_effort.clone_from(&reasoning.effort);
    let limit = (request.max_tokens, request.max_completion_tokens);
    let (max_tokens, max_tokens_name) = newer_limit(limit.0, limit.1)?;
    request.max_tokens = max_tokens;
    let shared = request.shared();
    let num_logprobs = num_logprobs(&request)?;
    let mut params = shared.sampling(&served.tokenizer, num_logprobs, max_tokens_name)?;
    let speculation = Speculation::new(&shared, served, budget)?;
    let adaptation = adaptation(&shared, served)?;
    params.prompt_logprobs = logprobs("prompt_logprobs", request.prompt_logprobs)?;
    let truncation = Truncation::new(&shared, served)?;
    let mut rendering = Rendering {
        escapes: state.config().escape_special_tokens,
        ..rendering(&mut request)
    };
    if served.output.reasoning.is_some() {
        reasoning.tell(&mut rendering.variables);
    }
    if media.is_some() && (truncation.is_some() || rendering.continue_final_message) {
        let message = "images cannot be combined with truncate_prompt_tokens or \
            continue_final_message";
        return Err(ApiError::invalid("messages", message));
    }
    let prompt = conversation(served, &request.messages, tools.shown.as_deref(), rendering)?;
    let shape = of_chat(
        (served, &shared),
        &prompt.text,
        (structured, tools, &reasoning),
        budget,
    )?;
    let question = question(&request.messages);
    let source = source(&mut request);
    let add_special = shared.add_special_tokens.unwrap_or(false);
    let prompt_token_ids = encode_chat(served, &prompt, add_special, truncation, budget)?;
    Ok(Generation {
        speculation,
        adaptation,
        prompts: vec![prompt_token_ids],
        media,
        params,
        stops: shared.stops()?,
        search: presets::requested(&shared)?,
        shared,
        shape,
        code,
        echo: Vec::new(),
        wire: Wire::Chat,
        question,
        target,
        source,
        tenant,
        deadline,
    })
}

/// How many alternatives a token has among the log-probabilities; `None` without those.
fn num_logprobs(request: &ChatRequest) -> Result<Option<usize>, ApiError> {
    let top_logprobs = count("top_logprobs", request.top_logprobs, 0, MAX_LOGPROBS)?;
    let wants_logprobs = request.logprobs.unwrap_or(false);
    if request.top_logprobs.is_some() && !wants_logprobs {
        let message = "top_logprobs needs logprobs: true";
        return Err(ApiError::invalid("top_logprobs", message));
    }
    Ok(wants_logprobs.then_some(top_logprobs))
}

/// What a trace keeps of a request.
fn source(request: &mut ChatRequest) -> Value {
    let mut source = json!({"messages": std::mem::take(&mut request.messages)});
    let tools = [
        ("tools", request.tools.take()),
        ("functions", request.functions.take()),
    ];
    for (name, tools) in tools {
        if let Some(tools) = tools {
            source[name] = tools.into();
        }
    }
    source
}

fn rendering(request: &mut ChatRequest) -> Rendering {
    Rendering {
        add_generation_prompt: request.add_generation_prompt,
        continue_final_message: request.continue_final_message.unwrap_or(false),
        documents: request.documents.take(),
        variables: request.chat_template_kwargs.take().unwrap_or_default(),
        ..Rendering::default()
    }
}

fn tools(request: &ChatRequest) -> ToolFields {
    ToolFields {
        tools: request.tools.clone(),
        tool_choice: request.tool_choice.clone(),
        parallel_tool_calls: request.parallel_tool_calls,
        functions: request.functions.clone(),
        function_call: request.function_call.clone(),
        continued: continued(request),
    }
}

/// The beginning of the answer, where the request has it.
fn continued(request: &ChatRequest) -> Option<String> {
    let last = request.messages.last();
    let last = last.filter(|_| request.continue_final_message == Some(true));
    let text = last.and_then(|message| message["content"].as_str());
    text.map(str::to_owned)
}

fn reasoning(request: &ChatRequest) -> ReasoningFields {
    ReasoningFields {
        include_reasoning: request.include_reasoning,
        thinking_token_budget: request.thinking_token_budget,
        reasoning: request.reasoning.clone(),
        reasoning_effort: request.reasoning_effort.clone(),
    }
}
