//! The parameters that chat and completions share, and their ranges.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;
use utoipa::ToSchema;

use crate::api::config::MAX_LOGPROBS;
use crate::api::error::ApiError;

/// One string or several.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(untagged, expecting = "expected a string or an array of strings")]
pub enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

impl OneOrMany {
    pub fn into_vec(self) -> Vec<String> {
        match self {
            Self::One(text) => vec![text],
            Self::Many(texts) => texts,
        }
    }
}

#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
pub struct StreamOptions {
    /// Send a last chunk with the usage and no choices.
    pub include_usage: Option<bool>,
    /// OpenAI pads its chunks with random text; this server does not, so `true` is refused.
    #[schema(ignore)]
    pub(crate) include_obfuscation: Option<bool>,
    /// vLLM's usage in every chunk; `true` is refused.
    #[schema(ignore)]
    pub(crate) continuous_usage_stats: Option<bool>,
}

/// Defines a request struct with the shared sampling fields, so that errors name them by path.
macro_rules! generation_request {
    ($(#[$meta:meta])* $name:ident { $($(#[$field_meta:meta])* $field:ident: $kind:ty,)* }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, serde::Deserialize, utoipa::ToSchema)]
        pub struct $name {
            $($(#[$field_meta])* pub $field: $kind,)*
            pub model: Option<String>,
            /// Number of choices.
            #[serde(alias = "n_cmpl")]
            pub n: Option<u64>,
            /// Most tokens of an answer; -1 leaves the context as the only limit.
            #[serde(alias = "n_predict")]
            pub max_tokens: Option<i64>,
            /// 0 to 2; 0 is greedy.
            pub temperature: Option<f64>,
            /// 0 is greedy.
            pub top_p: Option<f64>,
            /// 0 or -1 turns it off.
            pub top_k: Option<i64>,
            pub min_p: Option<f64>,
            pub presence_penalty: Option<f64>,
            pub frequency_penalty: Option<f64>,
            #[serde(alias = "repeat_penalty")]
            pub repetition_penalty: Option<f64>,
            /// Token ids to values in -100..=100.
            pub logit_bias: Option<std::collections::BTreeMap<String, f64>>,
            pub seed: Option<i64>,
            pub stop: Option<$crate::api::openai::params::OneOrMany>,
            pub stop_token_ids: Option<Vec<u32>>,
            pub include_stop_str_in_output: Option<bool>,
            pub ignore_eos: Option<bool>,
            pub min_tokens: Option<u64>,
            /// Answers consist of these tokens alone.
            pub allowed_token_ids: Option<Vec<u32>>,
            /// Texts whose tokens no answer has.
            pub bad_words: Option<Vec<String>>,
            pub skip_special_tokens: Option<bool>,
            pub prompt_logprobs: Option<u64>,
            pub stream: Option<bool>,
            pub stream_options: Option<$crate::api::openai::params::StreamOptions>,
            /// Put what the model puts around a text (its BOS token) around the prompt.
            pub add_special_tokens: Option<bool>,
            /// Keep so many tokens of a longer prompt; -1 keeps what the context has room for.
            pub truncate_prompt_tokens: Option<i64>,
            /// `left` (the default) drops the beginning of a longer prompt, `right` its end.
            pub truncation_side: Option<String>,
            /// Tokens of `logprobs` are named `token_id:ID`.
            pub return_tokens_as_token_ids: Option<bool>,
            /// Tell the token ids of the prompt and of the answers.
            pub return_token_ids: Option<bool>,
            /// The answer's id is this one behind its prefix.
            pub request_id: Option<String>,
            /// `false` computes the whole prompt.
            pub cache_prompt: Option<bool>,
            /// Requests share cached prefixes only under the same salt.
            pub cache_salt: Option<String>,
            /// `none`, `minimal` and `low` answer directly; `medium` and `high` vote over samples.
            pub reasoning_effort: Option<String>,
            /// Keep the answer as a trace (by default searches are kept, plain answers are not).
            pub store: Option<bool>,
            /// Labels of the trace.
            #[schema(value_type = Option<Object>)]
            pub metadata: Option<std::collections::BTreeMap<String, String>>,
            /// More compute for a better answer: an object, or a strategy's name.
            #[schema(value_type = Option<crate::search::SearchRequest>)]
            pub search: Option<serde_json::Value>,
            /// Who drafts tokens: `off`, `prompt-lookup`, `swift`, `draft-model` or `auto`. It changes how fast the answer comes, not one token of it.
            #[schema(value_type = Option<String>)]
            pub speculative: Option<serde_json::Value>,
            /// Text that the answer is expected to repeat: `{"type": "content", "content": "…"}`.
            #[schema(value_type = Option<Object>)]
            pub prediction: Option<serde_json::Value>,
            /// `{"type": "text"}`, `json_object`, `{"type": "json_schema", "json_schema": {…}}` or
            /// a `structural_tag`.
            #[schema(value_type = Option<Object>)]
            pub response_format: Option<serde_json::Value>,
            /// vLLM's: one of `json`, `regex`, `choice`, `grammar`, `json_object` and
            /// `structural_tag`.
            #[schema(value_type = Option<Object>)]
            pub structured_outputs: Option<serde_json::Value>,
            /// The answer is JSON of this schema.
            #[schema(value_type = Option<Object>)]
            pub guided_json: Option<serde_json::Value>,
            /// The whole answer matches this pattern.
            pub guided_regex: Option<String>,
            /// The answer is one of these texts.
            pub guided_choice: Option<Vec<String>>,
            /// A grammar in Lark's or GBNF's notation.
            pub guided_grammar: Option<String>,
            /// The answer is a JSON object.
            pub guided_json_object: Option<bool>,
            /// `auto` or `guidance`.
            pub guided_decoding_backend: Option<String>,
            #[schema(ignore)]
            pub guided_whitespace_pattern: Option<String>,
            /// llama.cpp's: a grammar in GBNF.
            pub grammar: Option<String>,
            /// llama.cpp's: the answer is JSON of this schema.
            #[schema(value_type = Option<Object>)]
            pub json_schema: Option<serde_json::Value>,
            /// Adapt the routers of a mixture-of-experts model to the context: `true`, or an object (docs/adaptation.md).
            #[schema(value_type = Option<Object>)]
            pub router_adaptation: Option<serde_json::Value>,
            /// `slot`, `router`, or an object with `method`: adapt to the context before answering.
            #[schema(value_type = Option<Object>)]
            pub adaptation: Option<serde_json::Value>,
            /// All fields beside these.
            #[serde(flatten)]
            #[schema(ignore)]
            pub(crate) others: serde_json::Map<String, serde_json::Value>,
        }

        impl $name {
            /// Whether a grammar may have to be compiled: its length says nothing of the work.
            pub(crate) fn has_grammar(&self) -> bool {
                let values = [
                    &self.response_format,
                    &self.structured_outputs,
                    &self.guided_json,
                    &self.json_schema,
                ];
                let texts = [&self.guided_regex, &self.guided_grammar, &self.grammar];
                values.iter().any(|value| value.is_some())
                    || texts.iter().any(|text| text.is_some())
                    || self.guided_choice.is_some()
                    || self.guided_json_object.is_some()
            }

            /// What the answer must look like; taken out of the request.
            pub(crate) fn structured(&mut self) -> $crate::api::openai::structured::StructuredFields {
                $crate::api::openai::structured::StructuredFields {
                    response_format: self.response_format.take(),
                    structured_outputs: self.structured_outputs.take(),
                    guided_json: self.guided_json.take(),
                    guided_regex: self.guided_regex.take(),
                    guided_choice: self.guided_choice.take(),
                    guided_grammar: self.guided_grammar.take(),
                    guided_json_object: self.guided_json_object,
                    guided_decoding_backend: self.guided_decoding_backend.take(),
                    guided_whitespace_pattern: self.guided_whitespace_pattern.take(),
                    grammar: self.grammar.take(),
                    json_schema: self.json_schema.take(),
                }
            }

            /// The shared fields.
            pub(crate) fn shared(&self) -> $crate::api::openai::params::SharedParams {
                $crate::api::openai::params::SharedParams {
                    n: self.n,
                    max_tokens: self.max_tokens,
                    temperature: self.temperature,
                    top_p: self.top_p,
                    top_k: self.top_k,
                    min_p: self.min_p,
                    presence_penalty: self.presence_penalty,
                    frequency_penalty: self.frequency_penalty,
                    repetition_penalty: self.repetition_penalty,
                    logit_bias: self.logit_bias.clone(),
                    seed: self.seed,
                    stop: self.stop.clone(),
                    stop_token_ids: self.stop_token_ids.clone(),
                    include_stop: self.include_stop_str_in_output.unwrap_or(false),
                    ignore_eos: self.ignore_eos.unwrap_or(false),
                    min_tokens: self.min_tokens,
                    skip_special: self.skip_special_tokens.unwrap_or(true),
                    prompt_logprobs: self.prompt_logprobs,
                    stream: self.stream.unwrap_or(false),
                    include_usage: self
                        .stream_options
                        .as_ref()
                        .is_some_and(|options| options.include_usage.unwrap_or(false)),
                    stream_options: self.stream_options.clone(),
                    allowed_token_ids: self.allowed_token_ids.clone(),
                    bad_words: self.bad_words.clone(),
                    add_special_tokens: self.add_special_tokens,
                    truncate_prompt_tokens: self.truncate_prompt_tokens,
                    truncation_side: self.truncation_side.clone(),
                    tokens_as_ids: self.return_tokens_as_token_ids.unwrap_or(false),
                    returns_token_ids: self.return_token_ids.unwrap_or(false),
                    request_id: self.request_id.clone(),
                    best_of: None,
                    allows_no_tokens: false,
                    cache_salt: match self.cache_prompt {
                        Some(false) => Some(uuid::Uuid::new_v4().to_string()),
                        _ => self.cache_salt.clone(),
                    },
                    model: self.model.clone(),
                    reasoning_effort: self.reasoning_effort.clone(),
                    search: self.search.clone(),
                    speculative: self.speculative.clone(),
                    prediction: self.prediction.clone(),
                    store: self.store,
                    metadata: self.metadata.clone(),
                    router_adaptation: self.router_adaptation.clone(),
                    adaptation: self.adaptation.clone(),
                }
            }
        }
    };
}
pub(crate) use generation_request;

/// See [`generation_request`].
#[derive(Debug, Clone)]
pub(crate) struct SharedParams {
    pub n: Option<u64>,
    pub max_tokens: Option<i64>,
    pub temperature: Option<f64>,
    pub top_p: Option<f64>,
    pub top_k: Option<i64>,
    pub min_p: Option<f64>,
    pub presence_penalty: Option<f64>,
    pub frequency_penalty: Option<f64>,
    pub repetition_penalty: Option<f64>,
    pub logit_bias: Option<BTreeMap<String, f64>>,
    pub seed: Option<i64>,
    pub stop: Option<OneOrMany>,
    pub stop_token_ids: Option<Vec<u32>>,
    pub include_stop: bool,
    pub ignore_eos: bool,
    pub min_tokens: Option<u64>,
    pub skip_special: bool,
    pub prompt_logprobs: Option<u64>,
    pub stream: bool,
    pub include_usage: bool,
    pub stream_options: Option<StreamOptions>,
    pub allowed_token_ids: Option<Vec<u32>>,
    pub bad_words: Option<Vec<String>>,
    pub add_special_tokens: Option<bool>,
    pub truncate_prompt_tokens: Option<i64>,
    pub truncation_side: Option<String>,
    /// Tokens of log-probabilities are named by their ids.
    pub tokens_as_ids: bool,
    pub returns_token_ids: bool,
    pub request_id: Option<String>,
    /// Samples of which the best are the choices (completions).
    pub best_of: Option<u64>,
    /// `max_tokens` may be 0: the prompt is read, and nothing follows.
    pub allows_no_tokens: bool,
    pub cache_salt: Option<String>,
    pub model: Option<String>,
    pub reasoning_effort: Option<String>,
    pub search: Option<Value>,
    pub speculative: Option<Value>,
    pub prediction: Option<Value>,
    pub store: Option<bool>,
    pub metadata: Option<BTreeMap<String, String>>,
    pub router_adaptation: Option<Value>,
    pub adaptation: Option<Value>,
}

/// A count within a limit.
pub(crate) fn count(
    name: &str,
    value: Option<u64>,
    default: u64,
    limit: usize,
) -> Result<usize, ApiError> {
    let value = value.unwrap_or(default);
    usize::try_from(value)
        .ok()
        .filter(|value| *value <= limit)
        .ok_or_else(|| {
            ApiError::invalid(name, format!("{name} must be at most {limit}, not {value}"))
        })
}

/// The limit of an answer's tokens by the newer of its two names, and the name that was used.
pub(crate) fn newer_limit(
    max_tokens: Option<i64>,
    max_completion_tokens: Option<i64>,
) -> Result<(Option<i64>, &'static str), ApiError> {
    let name = "max_completion_tokens";
    match (max_tokens, max_completion_tokens) {
        (_, None) => Ok((max_tokens, "max_tokens")),
        (Some(old), Some(new)) if old != new => {
            let message = format!("{name} ({new}) and max_tokens ({old}) differ: send one of them");
            Err(ApiError::invalid(name, message))
        }
        (_, Some(_)) => Ok((max_completion_tokens, name)),
    }
}

/// How many alternatives a `logprobs`-like parameter asks for; `None` when it is absent.
pub(crate) fn logprobs(name: &str, value: Option<u64>) -> Result<Option<usize>, ApiError> {
    let count = |value| count(name, Some(value), 0, MAX_LOGPROBS);
    value.map(count).transpose()
}
