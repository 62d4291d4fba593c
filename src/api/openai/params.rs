//! The parameters that chat and completions share, and their ranges.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;
use utoipa::ToSchema;

use crate::api::config::{
    MAX_LOGIT_BIAS, MAX_LOGPROBS, MAX_STOP_STRING_BYTES, MAX_STOP_STRINGS, MAX_STOP_TOKEN_IDS,
};
use crate::api::error::ApiError;
use crate::engine::SamplingParams;
use crate::text::Tokenizer;

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
    #[serde(default)]
    pub include_usage: bool,
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
            pub n: Option<u64>,
            pub max_tokens: Option<i64>,
            /// 0 to 2; 0 is greedy.
            pub temperature: Option<f64>,
            pub top_p: Option<f64>,
            /// 0 or -1 turns it off.
            pub top_k: Option<i64>,
            pub min_p: Option<f64>,
            pub presence_penalty: Option<f64>,
            pub frequency_penalty: Option<f64>,
            pub repetition_penalty: Option<f64>,
            /// Token ids to values in -100..=100.
            pub logit_bias: Option<std::collections::BTreeMap<String, f64>>,
            pub seed: Option<i64>,
            pub stop: Option<$crate::api::openai::params::OneOrMany>,
            pub stop_token_ids: Option<Vec<u32>>,
            pub include_stop_str_in_output: Option<bool>,
            pub ignore_eos: Option<bool>,
            pub min_tokens: Option<u64>,
            pub skip_special_tokens: Option<bool>,
            pub prompt_logprobs: Option<u64>,
            pub stream: Option<bool>,
            pub stream_options: Option<$crate::api::openai::params::StreamOptions>,
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
            /// `{"type": "text"}`, `json_object`, `{"type": "json_schema", "json_schema": {…}}` or a `structural_tag`.
            #[schema(value_type = Option<Object>)]
            pub response_format: Option<serde_json::Value>,
            /// vLLM's: one of `json`, `regex`, `choice`, `grammar`, `json_object` and `structural_tag`.
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

            /// What the answer must look like.
            pub(crate) fn structured(&self) -> $crate::api::openai::structured::StructuredFields {
                $crate::api::openai::structured::StructuredFields {
                    response_format: self.response_format.clone(),
                    structured_outputs: self.structured_outputs.clone(),
                    guided_json: self.guided_json.clone(),
                    guided_regex: self.guided_regex.clone(),
                    guided_choice: self.guided_choice.clone(),
                    guided_grammar: self.guided_grammar.clone(),
                    guided_json_object: self.guided_json_object,
                    guided_decoding_backend: self.guided_decoding_backend.clone(),
                    guided_whitespace_pattern: self.guided_whitespace_pattern.clone(),
                    grammar: self.grammar.clone(),
                    json_schema: self.json_schema.clone(),
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
                        .is_some_and(|options| options.include_usage),
                    cache_salt: self.cache_salt.clone(),
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

fn in_range(
    name: &str,
    value: Option<f64>,
    default: f64,
    low: f64,
    high: f64,
) -> Result<f32, ApiError> {
    let value = value.unwrap_or(default);
    if value.is_finite() && (low..=high).contains(&value) {
        return Ok(value as f32);
    }
    Err(ApiError::invalid(
        name,
        format!("{name} must be between {low} and {high}, not {value}"),
    ))
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

/// How many alternatives a `logprobs`-like parameter asks for; `None` when it is absent.
pub(crate) fn logprobs(name: &str, value: Option<u64>) -> Result<Option<usize>, ApiError> {
    let count = |value| count(name, Some(value), 0, MAX_LOGPROBS);
    value.map(count).transpose()
}

impl SharedParams {
    /// Checks every range. `max_tokens` of `None` means up to the context's end.
    pub(crate) fn sampling(
        &self,
        tokenizer: &Tokenizer,
        logprobs: Option<usize>,
        max_tokens_name: &str,
    ) -> Result<SamplingParams, ApiError> {
        let max_tokens = match self.max_tokens {
            None => usize::MAX,
            Some(value) => usize::try_from(value)
                .ok()
                .filter(|value| *value > 0)
                .ok_or_else(|| {
                    let message = format!("{max_tokens_name} must be at least 1, not {value}");
                    ApiError::invalid(max_tokens_name, message)
                })?,
        };
        let top_k = match self.top_k {
            None | Some(-1) => 0,
            Some(value) => usize::try_from(value).map_err(|_| {
                ApiError::invalid("top_k", format!("top_k must be -1 or more, not {value}"))
            })?,
        };
        let top_p = in_range("top_p", self.top_p, 1.0, 0.0, 1.0)?;
        if top_p == 0.0 {
            return Err(ApiError::invalid("top_p", "top_p must be above 0"));
        }
        let repetition_penalty = in_range(
            "repetition_penalty",
            self.repetition_penalty,
            1.0,
            0.0,
            100.0,
        )?;
        if repetition_penalty == 0.0 {
            return Err(ApiError::invalid(
                "repetition_penalty",
                "repetition_penalty must be above 0",
            ));
        }
        let min_tokens = count("min_tokens", self.min_tokens, 0, max_tokens)?;
        Ok(SamplingParams {
            temperature: in_range("temperature", self.temperature, 1.0, 0.0, 2.0)?,
            top_k,
            top_p,
            min_p: in_range("min_p", self.min_p, 0.0, 0.0, 1.0)?,
            repetition_penalty,
            presence_penalty: in_range("presence_penalty", self.presence_penalty, 0.0, -2.0, 2.0)?,
            frequency_penalty: in_range(
                "frequency_penalty",
                self.frequency_penalty,
                0.0,
                -2.0,
                2.0,
            )?,
            logit_bias: self.logit_bias(tokenizer.vocab_size())?,
            seed: self.seed.map_or_else(random_seed, |seed| seed as u64),
            max_tokens,
            min_tokens,
            ignore_eos: self.ignore_eos,
            eos_token_ids: tokenizer.end_of_generation_ids().to_vec(),
            stop_token_ids: self.stop_token_ids(tokenizer.vocab_size())?,
            logprobs,
            prompt_logprobs: None,
            hidden_state: false,
        })
    }

    fn logit_bias(&self, vocab_size: usize) -> Result<Vec<(u32, f32)>, ApiError> {
        let entries = self.logit_bias.iter().flatten();
        let invalid = |message: String| ApiError::invalid("logit_bias", message);
        if self
            .logit_bias
            .as_ref()
            .is_some_and(|bias| bias.len() > MAX_LOGIT_BIAS)
        {
            return Err(invalid(format!(
                "logit_bias takes at most {MAX_LOGIT_BIAS} entries"
            )));
        }
        entries
            .map(|(key, value)| {
                let token_id = key
                    .parse::<u32>()
                    .ok()
                    .filter(|id| (*id as usize) < vocab_size);
                let token_id = token_id
                    .ok_or_else(|| invalid(format!("logit_bias: {key:?} is not a token id")))?;
                let bias = in_range("logit_bias", Some(*value), 0.0, -100.0, 100.0)?;
                Ok((token_id, bias))
            })
            .collect()
    }

    fn stop_token_ids(&self, vocab_size: usize) -> Result<Vec<u32>, ApiError> {
        let ids = self.stop_token_ids.clone().unwrap_or_default();
        if ids.len() > MAX_STOP_TOKEN_IDS {
            let message = format!("stop_token_ids takes at most {MAX_STOP_TOKEN_IDS} ids");
            return Err(ApiError::invalid("stop_token_ids", message));
        }
        match ids.iter().find(|id| **id as usize >= vocab_size) {
            Some(bad) => {
                let message =
                    format!("stop_token_ids: {bad} is outside the vocabulary of {vocab_size}");
                Err(ApiError::invalid("stop_token_ids", message))
            }
            None => Ok(ids),
        }
    }

    pub(crate) fn stops(&self) -> Result<Vec<String>, ApiError> {
        let stops = self
            .stop
            .clone()
            .map(OneOrMany::into_vec)
            .unwrap_or_default();
        if stops.len() > MAX_STOP_STRINGS {
            let message = format!("stop takes at most {MAX_STOP_STRINGS} strings");
            return Err(ApiError::invalid("stop", message));
        }
        if stops
            .iter()
            .any(|stop| stop.is_empty() || stop.len() > MAX_STOP_STRING_BYTES)
        {
            let message = format!("a stop string has 1 to {MAX_STOP_STRING_BYTES} bytes");
            return Err(ApiError::invalid("stop", message));
        }
        Ok(stops)
    }
}

/// A seed for a request that names none.
fn random_seed() -> u64 {
    // JavaScript keeps 53 bits of a number, and the seed must survive a trip through a client.
    uuid::Uuid::new_v4().as_u64_pair().0 >> 11
}
