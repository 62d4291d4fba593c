//! The request for a response: its fields, and those that need no model to be checked.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Map, Value};
use utoipa::ToSchema;

use crate::api::error::ApiError;

/// What `include` may name, and what that does here.
const LOGPROBS: &str = "message.output_text.logprobs";
const ENCRYPTED: &str = "reasoning.encrypted_content";
/// Images of the input are always among the input's items.
const IMAGE_URLS: &str = "message.input_image.image_url";
/// What programs printed is always among the output's items.
const OUTPUTS: &str = "code_interpreter_call.outputs";
/// OpenAI's limit of `safety_identifier` and `prompt_cache_key`.
const MAX_LABEL_CHARS: usize = 64;

/// A request for a response. Fields of chat requests that are not named here (`seed`, `search`,
/// `top_k`, `chat_template_kwargs`, …) are taken as there.
#[derive(Debug, Clone, Deserialize, ToSchema)]
pub struct ResponsesRequest {
    pub model: Option<String>,
    /// A text, or items: messages, function calls, their outputs, thoughts, references.
    #[schema(value_type = Option<Object>)]
    pub input: Option<Value>,
    /// A system message. The next response of a conversation does not inherit it.
    pub instructions: Option<String>,
    pub max_output_tokens: Option<i64>,
    /// Of built-in tools; there are none.
    pub max_tool_calls: Option<i64>,
    pub temperature: Option<f64>,
    pub top_p: Option<f64>,
    /// Needs `include: ["message.output_text.logprobs"]`.
    pub top_logprobs: Option<u64>,
    pub include: Option<Vec<String>>,
    /// Function tools in the flat shape: `{"type": "function", "name": …, "parameters": …}`, and
    /// `{"type": "code_interpreter", "container": {"type": "auto"}}`.
    #[schema(value_type = Option<Vec<Object>>)]
    pub tools: Option<Vec<Value>>,
    #[schema(value_type = Option<Object>)]
    pub tool_choice: Option<Value>,
    pub parallel_tool_calls: Option<bool>,
    /// `{"format": {"type": "text" | "json_object" | "json_schema", …}, "verbosity": …}`.
    #[schema(value_type = Option<Object>)]
    pub text: Option<Value>,
    /// `{"effort": …, "summary": …, "max_tokens": …}`.
    #[schema(value_type = Option<Object>)]
    pub reasoning: Option<Value>,
    /// `auto` drops the oldest items of a conversation that does not fit.
    pub truncation: Option<String>,
    /// Keep the response (by default, where the server has a store).
    pub store: Option<bool>,
    #[schema(value_type = Option<Object>)]
    pub metadata: Option<BTreeMap<String, String>>,
    /// Continue the conversation of a stored response.
    pub previous_response_id: Option<String>,
    pub stream: Option<bool>,
    #[schema(value_type = Option<Object>)]
    pub stream_options: Option<Value>,
    /// Answer at once, and make the response without a connection.
    pub background: Option<bool>,
    pub user: Option<String>,
    pub safety_identifier: Option<String>,
    pub prompt_cache_key: Option<String>,
    pub prompt_cache_retention: Option<String>,
    /// `auto` or `default`.
    pub service_tier: Option<String>,
    #[serde(flatten)]
    pub rest: Map<String, Value>,
}

/// Of more answers than one.
pub(super) const ONE_ANSWER: &str = "must be 1: a response has one answer; use search";

/// Fields that this API does not take, and what to do instead. `null` is taken.
const REFUSED: [(&str, &str); 26] = [
    ("conversation", "is not supported: use previous_response_id"),
    (
        "prompt",
        "is not supported: send its text as instructions and input",
    ),
    ("context_management", "is not supported: use truncation"),
    (
        "moderation",
        "is not supported: this server moderates nothing",
    ),
    ("access_programs", "is not supported"),
    (
        "background_options",
        "is not supported: background responses begin at once",
    ),
    ("image", "is not supported"),
    (
        "prompt_cache_options",
        "is not supported: prefixes are cached by themselves",
    ),
    ("messages", "belongs to /v1/chat/completions: use input"),
    (
        "max_tokens",
        "belongs to /v1/chat/completions: use max_output_tokens",
    ),
    (
        "max_completion_tokens",
        "belongs to /v1/chat/completions: use max_output_tokens",
    ),
    (
        "response_format",
        "belongs to /v1/chat/completions: use text.format",
    ),
    (
        "verbosity",
        "belongs to /v1/chat/completions: use text.verbosity",
    ),
    (
        "reasoning_effort",
        "belongs to /v1/chat/completions: use reasoning.effort",
    ),
    (
        "thinking_token_budget",
        "belongs to /v1/chat/completions: use reasoning.max_tokens",
    ),
    (
        "logprobs",
        "belongs to /v1/chat/completions: use include: [\"message.output_text.logprobs\"]",
    ),
    ("functions", "belongs to /v1/chat/completions: use tools"),
    (
        "function_call",
        "belongs to /v1/chat/completions: use tool_choice",
    ),
    (
        "prompt_logprobs",
        "has no place in a response: use /v1/completions",
    ),
    (
        "request_id",
        "has no place in a response: the server makes its id",
    ),
    (
        "return_token_ids",
        "has no place in a response: use /v1/chat/completions",
    ),
    (
        "return_tokens_as_token_ids",
        "has no place in a response: use /v1/chat/completions",
    ),
    ("suffix", "has no place in a response"),
    ("enable_response_messages", "is not supported"),
    ("previous_input_messages", "is not supported: use input"),
    (
        "previous_response_input_items",
        "is not supported: use input",
    ),
];

impl ResponsesRequest {
    pub fn is_streamed(&self) -> bool {
        self.stream.unwrap_or(false)
    }

    pub fn is_background(&self) -> bool {
        self.background.unwrap_or(false)
    }

    pub fn drops_oldest(&self) -> bool {
        self.truncation.as_deref() == Some("auto")
    }

    pub fn includes_logprobs(&self) -> bool {
        self.includes(LOGPROBS)
    }

    pub fn includes_encrypted(&self) -> bool {
        self.includes(ENCRYPTED)
    }

    fn includes(&self, what: &str) -> bool {
        self.include.iter().flatten().any(|it| it == what)
    }

    /// Whether deltas hide their lengths.
    pub fn obfuscates(&self) -> bool {
        let options = self.stream_options.as_ref();
        options.is_some_and(|options| options["include_obfuscation"] == true)
    }

    /// Whether thoughts are told as summaries.
    pub fn summarises(&self) -> bool {
        self.summary().is_some()
    }

    pub fn summary(&self) -> Option<&str> {
        let reasoning = self.reasoning.as_ref()?;
        let summary = reasoning["summary"].as_str();
        summary.or_else(|| reasoning["generate_summary"].as_str())
    }

    /// Fields that mean the same in chats.
    pub fn passed_on(&self) -> Map<String, Value> {
        let mut fields = self.rest.clone();
        fields.retain(|name, _| name != "n" && !REFUSED.iter().any(|(refused, _)| refused == name));
        fields
    }

    /// Checks everything that needs neither the model nor the store.
    pub fn check(&self) -> Result<(), ApiError> {
        for (name, why) in REFUSED {
            let value = self.rest.get(name);
            let is_neutral = value.is_none_or(|value| is_neutral(name, value));
            refuse_if(!is_neutral, name, why)?;
        }
        if let Some(n) = self.rest.get("n") {
            let is_one = n.is_null() || *n == 1;
            refuse_if(!is_one, "n", ONE_ANSWER)?;
        }
        if let Some(include) = &self.include {
            check_include(include)?;
        }
        let wants_top = self.top_logprobs.is_some_and(|count| count > 0);
        let why = "needs include: [\"message.output_text.logprobs\"]";
        refuse_if(wants_top && !self.includes_logprobs(), "top_logprobs", why)?;
        one_of(
            "truncation",
            self.truncation.as_deref(),
            &["auto", "disabled"],
        )?;
        one_of(
            "service_tier",
            self.service_tier.as_deref(),
            &["auto", "default"],
        )?;
        let is_bad = self.max_tool_calls.is_some_and(|most| most < 1);
        refuse_if(is_bad, "max_tool_calls", "must be at least 1")?;
        let is_bad = self.max_output_tokens.is_some_and(|most| most < 1);
        refuse_if(is_bad, "max_output_tokens", "must be at least 1")?;
        for (name, label) in [
            ("safety_identifier", &self.safety_identifier),
            ("prompt_cache_key", &self.prompt_cache_key),
        ] {
            let is_long = label
                .as_ref()
                .is_some_and(|label| label.chars().count() > MAX_LABEL_CHARS);
            refuse_if(is_long, name, "may have 64 characters")?;
        }
        self.check_stream_options()?;
        self.check_reasoning()
    }

    fn check_stream_options(&self) -> Result<(), ApiError> {
        let Some(options) = self.stream_options.as_ref().filter(|it| !it.is_null()) else {
            return Ok(());
        };
        let name = "stream_options";
        refuse_if(!options.is_object(), name, "must be an object")?;
        refuse_if(!self.is_streamed(), name, "needs stream: true")?;
        let obfuscates = &options["include_obfuscation"];
        let is_flag = obfuscates.is_null() || obfuscates.is_boolean();
        let name = "stream_options.include_obfuscation";
        refuse_if(!is_flag, name, "must be true or false")?;
        // The last event of a stream always has the usage.
        let is_left_out = options["include_usage"] == false;
        let name = "stream_options.include_usage";
        refuse_if(
            is_left_out,
            name,
            "cannot be false: the last event has the usage",
        )
    }

    fn check_reasoning(&self) -> Result<(), ApiError> {
        let Some(reasoning) = self.reasoning.as_ref().filter(|it| !it.is_null()) else {
            return Ok(());
        };
        refuse_if(!reasoning.is_object(), "reasoning", "must be an object")?;
        let kinds: &[&str] = &["auto", "concise", "detailed"];
        for (field, values) in [
            ("summary", kinds),
            ("generate_summary", kinds),
            ("context", &["auto", "current_turn", "all_turns"]),
            ("mode", &["standard"]),
        ] {
            let name = format!("reasoning.{field}");
            let value = &reasoning[field];
            let is_text = value.is_null() || value.is_string();
            refuse_if(!is_text, &name, "must be a string")?;
            one_of(&name, value.as_str(), values)?;
        }
        let effort = &reasoning["effort"];
        let is_text = effort.is_null() || effort.is_string();
        refuse_if(!is_text, "reasoning.effort", "must be a string")
    }
}

/// Whether a value asks for nothing.
fn is_neutral(name: &str, value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Array(items) => items.is_empty() && name != "messages",
        _ => false,
    }
}

/// What `include` may name.
pub(in crate::api) const INCLUDES: [&str; 4] = [LOGPROBS, ENCRYPTED, IMAGE_URLS, OUTPUTS];

fn check_include(include: &[String]) -> Result<(), ApiError> {
    for (index, what) in include.iter().enumerate() {
        let is_known = INCLUDES.contains(&what.as_str());
        let name = format!("include[{index}]");
        let why = format!(
            "is {what:?}; this server includes \"{LOGPROBS}\", \"{ENCRYPTED}\", \"{IMAGE_URLS}\" \
             and \"{OUTPUTS}\""
        );
        refuse_if(!is_known, &name, &why)?;
    }
    Ok(())
}

/// `include` of a URL.
pub(super) fn check_includes<'a>(values: impl Iterator<Item = &'a str>) -> Result<(), ApiError> {
    let include: Vec<String> = values.map(str::to_owned).collect();
    check_include(&include)
}

/// A 400 that says what of a field is wrong.
pub(super) fn refuse_if(is_wrong: bool, name: &str, why: &str) -> Result<(), ApiError> {
    match is_wrong {
        true => Err(ApiError::invalid(name, format!("{name} {why}"))),
        false => Ok(()),
    }
}

pub(super) fn one_of(name: &str, value: Option<&str>, known: &[&str]) -> Result<(), ApiError> {
    match value.filter(|value| !known.contains(value)) {
        None => Ok(()),
        Some(value) => {
            let known = known.join(" or ");
            Err(ApiError::invalid(
                name,
                format!("{name} is {known}, not {value:?}"),
            ))
        }
    }
}
