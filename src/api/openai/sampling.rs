//! The ranges of the parameters that chat and completions share.

use super::params::{OneOrMany, SharedParams, count};
use crate::api::config::{
    MAX_LOGIT_BIAS, MAX_STOP_STRING_BYTES, MAX_STOP_STRINGS, MAX_STOP_TOKEN_IDS,
};
use crate::api::error::ApiError;
use crate::api::request_id::{MAX_ID_CHARS, is_id};
use crate::engine::SamplingParams;
use crate::text::Tokenizer;

/// Longest `cache_salt` (vLLM's limit).
const MAX_SALT_CHARS: usize = 1024;

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

impl SharedParams {
    /// Checks every range. `max_tokens` of `None` means up to the context's end.
    pub(crate) fn sampling(
        &self,
        tokenizer: &Tokenizer,
        logprobs: Option<usize>,
        max_tokens_name: &str,
    ) -> Result<SamplingParams, ApiError> {
        self.check_stream_options()?;
        self.check_names()?;
        if self.stream && self.prompt_logprobs.is_some() {
            let message = "streams have no place for prompt_logprobs: leave stream out";
            return Err(ApiError::invalid("prompt_logprobs", message));
        }
        let least = if self.allows_no_tokens { 0 } else { 1 };
        let max_tokens = self.max_tokens(least, max_tokens_name)?;
        let top_k = match self.top_k {
            None | Some(-1) => 0,
            Some(value) => usize::try_from(value).map_err(|_| {
                ApiError::invalid("top_k", format!("top_k must be -1 or more, not {value}"))
            })?,
        };
        let temperature = in_range("temperature", self.temperature, 1.0, 0.0, 2.0)?;
        // The likeliest token is the whole of the smallest share.
        let (temperature, top_p) = match in_range("top_p", self.top_p, 1.0, 0.0, 1.0)? {
            0.0 => (0.0, 1.0),
            top_p => (temperature, top_p),
        };
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
            temperature,
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

    /// The limit of an answer's tokens, which is at least `least`.
    fn max_tokens(&self, least: usize, name: &str) -> Result<usize, ApiError> {
        let Some(value) = self.max_tokens.filter(|value| *value != -1) else {
            return Ok(usize::MAX);
        };
        let max_tokens = usize::try_from(value).ok();
        max_tokens.filter(|value| *value >= least).ok_or_else(|| {
            let message = format!("{name} must be at least {least} (or -1), not {value}");
            ApiError::invalid(name, message)
        })
    }

    fn check_stream_options(&self) -> Result<(), ApiError> {
        let Some(options) = &self.stream_options else {
            return Ok(());
        };
        if !self.stream {
            let message = "stream_options needs stream: true; leave stream_options out";
            return Err(ApiError::invalid("stream_options", message));
        }
        for (name, value, advice) in [
            (
                "stream_options.include_obfuscation",
                options.include_obfuscation,
                "chunks have no padding",
            ),
            (
                "stream_options.continuous_usage_stats",
                options.continuous_usage_stats,
                "use include_usage, which tells the usage in the last chunk",
            ),
        ] {
            if value == Some(true) {
                return Err(ApiError::invalid(
                    name,
                    format!("{name} must be false: {advice}"),
                ));
            }
        }
        Ok(())
    }

    fn check_names(&self) -> Result<(), ApiError> {
        let salt = self.cache_salt.as_deref();
        if salt.is_some_and(|salt| salt.is_empty() || salt.chars().count() > MAX_SALT_CHARS) {
            let message = format!("cache_salt has 1 to {MAX_SALT_CHARS} characters");
            return Err(ApiError::invalid("cache_salt", message));
        }
        let id = self.request_id.as_deref();
        if id.is_some_and(|id| !is_id(id)) {
            let message = format!(
                "request_id has 1 to {MAX_ID_CHARS} ASCII letters, digits and punctuation marks"
            );
            return Err(ApiError::invalid("request_id", message));
        }
        Ok(())
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
