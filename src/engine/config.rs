//! Deriving the engine's sizes from a model and a memory budget.

use super::kv_sizes::LocalBlocks;
use super::speculative::{MAX_NUM_SPECULATIVE_TOKENS, SpeculativeConfig};
use crate::model::ModelInfo;

/// Tokens per KV block.
pub const DEFAULT_BLOCK_SIZE: usize = 16;
pub const DEFAULT_MAX_NUM_SEQS: usize = 64;
pub const DEFAULT_MAX_NUM_BATCHED_TOKENS: usize = 512;
/// Rows of a step on a GPU, whose products want many.
pub const DEFAULT_MAX_NUM_BATCHED_TOKENS_ON_GPU: usize = 2048;
pub const DEFAULT_MAX_NUM_WAITING_SEQS: usize = 1024;
/// Context served when the operator names none; longer ones cost RoPE tables and KV memory.
pub const DEFAULT_MAX_MODEL_LEN: usize = 8192;
/// Longest context of all, for models that are served beyond their own.
pub const LONGEST_MODEL_LEN: usize = 1 << 24;

/// Sizes of the engine; every limit is fixed when it starts.
#[derive(Debug, Clone, PartialEq)]
pub struct EngineConfig {
    /// Prompt plus output of one sequence.
    pub max_model_len: usize,
    /// Sequences in one step.
    pub max_num_seqs: usize,
    /// Rows (tokens) in one step; prefill is chunked to fit.
    pub max_num_batched_tokens: usize,
    /// Tokens per KV block.
    pub block_size: usize,
    pub num_blocks: usize,
    /// The pool of the layers with a sliding window; where there is none, the blocks hold the keys
    /// and values of all layers.
    pub local: Option<LocalBlocks>,
    pub enable_prefix_caching: bool,
    pub enable_chunked_prefill: bool,
    /// Sequences (not requests) that may wait for admission before submit answers `Overloaded`.
    pub max_num_waiting_seqs: usize,
    /// Whether several tenants use the engine, so that none may take all of it.
    pub is_shared: bool,
    pub speculative: SpeculativeConfig,
}

impl EngineConfig {
    /// Sequences of one tenant that run at once, and so of one request.
    pub fn max_num_seqs_of_one(&self) -> usize {
        match self.is_shared {
            true => (self.max_num_seqs - self.max_num_seqs / 4).max(1),
            false => self.max_num_seqs,
        }
    }

    /// Sequences of one tenant that run or wait.
    pub fn max_held_of_one(&self) -> usize {
        match self.is_shared {
            true => self.max_num_seqs + self.max_num_waiting_seqs / 2,
            false => usize::MAX,
        }
    }
}

/// What the operator chose; `None` means derive it.
#[derive(Debug, Clone, PartialEq)]
pub struct EngineOptions {
    pub max_model_len: Option<usize>,
    /// Whether `max_model_len` may be more than the model's context. The model was not trained on
    /// such positions: answers may be bad.
    pub allow_long_max_model_len: bool,
    pub max_num_seqs: usize,
    pub max_num_batched_tokens: usize,
    pub block_size: usize,
    pub kv_cache_bytes: usize,
    pub enable_prefix_caching: bool,
    pub enable_chunked_prefill: bool,
    pub max_num_waiting_seqs: usize,
    /// See [`EngineConfig::is_shared`].
    pub is_shared: bool,
    pub speculative: SpeculativeConfig,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    #[error("{name} must be at least {min}, not {actual}")]
    TooSmall {
        name: &'static str,
        min: usize,
        actual: usize,
    },
    #[error("num-speculative-tokens must be at most {limit}, not {actual}")]
    TooManyDrafts { limit: usize, actual: usize },
    #[error("block size {0} is not a multiple of 16")]
    BlockSize(usize),
    #[error(
        "max-model-len {asked} is more than the model's context of {limit} \
         (--allow-long-max-model-len serves it all the same)"
    )]
    ContextTooLong { asked: usize, limit: usize },
    #[error("max-model-len must be at most {limit}, not {asked}")]
    ModelLenTooLarge { asked: usize, limit: usize },
    #[error(
        "the KV cache of {available} tokens cannot hold one sequence of max-model-len {needed}: \
         raise --kv-cache-memory or lower --max-model-len"
    )]
    KvCacheTooSmall { needed: usize, available: usize },
}

impl EngineOptions {
    /// The context length that will be served by a model with this limit. To be asked before the
    /// model loads: its tables grow with it.
    pub fn served_model_len(&self, max_position_embeddings: usize) -> Result<usize, ConfigError> {
        let limit = max_position_embeddings;
        let asked = self
            .max_model_len
            .unwrap_or(limit.min(DEFAULT_MAX_MODEL_LEN));
        if asked > limit && !self.allow_long_max_model_len {
            return Err(ConfigError::ContextTooLong { asked, limit });
        }
        if asked > LONGEST_MODEL_LEN {
            let limit = LONGEST_MODEL_LEN;
            return Err(ConfigError::ModelLenTooLarge { asked, limit });
        }
        Ok(asked)
    }

    /// Checks every limit and sizes the KV cache; never more blocks than all sequences could use.
    pub fn resolve(&self, info: &ModelInfo) -> Result<EngineConfig, ConfigError> {
        let num_drafts = self.speculative.num_speculative_tokens;
        for (name, min, actual) in [
            ("max-num-seqs", 1, self.max_num_seqs),
            ("max-num-batched-tokens", 1, self.max_num_batched_tokens),
            ("block-size", 16, self.block_size),
            ("num-speculative-tokens", 1, num_drafts),
            ("prompt-lookup-min", 1, self.speculative.prompt_lookup_min),
        ] {
            if actual < min {
                return Err(ConfigError::TooSmall { name, min, actual });
            }
        }
        if num_drafts > MAX_NUM_SPECULATIVE_TOKENS {
            return Err(ConfigError::TooManyDrafts {
                limit: MAX_NUM_SPECULATIVE_TOKENS,
                actual: num_drafts,
            });
        }
        if !self.block_size.is_multiple_of(16) {
            return Err(ConfigError::BlockSize(self.block_size));
        }
        if self.max_num_batched_tokens < self.max_num_seqs {
            return Err(ConfigError::TooSmall {
                name: "max-num-batched-tokens",
                min: self.max_num_seqs,
                actual: self.max_num_batched_tokens,
            });
        }
        let max_model_len = self.served_model_len(info.max_position_embeddings)?;
        if max_model_len < 2 {
            return Err(ConfigError::TooSmall {
                name: "max-model-len",
                min: 2,
                actual: max_model_len,
            });
        }
        let mut config = EngineConfig {
            max_model_len,
            max_num_seqs: self.max_num_seqs,
            max_num_batched_tokens: self.max_num_batched_tokens,
            block_size: self.block_size,
            num_blocks: 0,
            local: None,
            enable_prefix_caching: self.enable_prefix_caching,
            enable_chunked_prefill: self.enable_chunked_prefill,
            max_num_waiting_seqs: self.max_num_waiting_seqs,
            is_shared: self.is_shared,
            speculative: self.speculative.clone(),
        };
        self.size_kv_cache(info, &mut config);
        let available = config.num_blocks * self.block_size;
        if available < max_model_len {
            return Err(ConfigError::KvCacheTooSmall {
                needed: max_model_len,
                available,
            });
        }
        Ok(config)
    }
}

impl Default for EngineOptions {
    fn default() -> Self {
        Self {
            max_model_len: None,
            allow_long_max_model_len: false,
            max_num_seqs: DEFAULT_MAX_NUM_SEQS,
            max_num_batched_tokens: DEFAULT_MAX_NUM_BATCHED_TOKENS,
            block_size: DEFAULT_BLOCK_SIZE,
            kv_cache_bytes: 1 << 30,
            enable_prefix_caching: true,
            enable_chunked_prefill: true,
            max_num_waiting_seqs: DEFAULT_MAX_NUM_WAITING_SEQS,
            is_shared: false,
            speculative: SpeculativeConfig::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: usize = 32_768;

    fn served(asked: Option<usize>, allow_long: bool) -> Result<usize, ConfigError> {
        let options = EngineOptions {
            max_model_len: asked,
            allow_long_max_model_len: allow_long,
            ..EngineOptions::default()
        };
        options.served_model_len(OWN)
    }

    #[test]
    fn a_context_beyond_the_models_own_must_be_allowed() {
        let too_long = |asked| Err(ConfigError::ContextTooLong { asked, limit: OWN });
        for (asked, plain) in [
            (None, Ok(DEFAULT_MAX_MODEL_LEN)),
            (Some(OWN), Ok(OWN)),
            (Some(OWN + 1), too_long(OWN + 1)),
        ] {
            assert_eq!(served(asked, false), plain);
            assert_eq!(
                served(asked, true),
                Ok(asked.unwrap_or(DEFAULT_MAX_MODEL_LEN))
            );
        }
    }

    #[test]
    fn a_context_beyond_all_is_refused() {
        assert_eq!(served(Some(LONGEST_MODEL_LEN), true), Ok(LONGEST_MODEL_LEN));
        for asked in [LONGEST_MODEL_LEN + 1, usize::MAX] {
            let limit = LONGEST_MODEL_LEN;
            let refused = Err(ConfigError::ModelLenTooLarge { asked, limit });
            assert_eq!(served(Some(asked), true), refused);
        }
    }
}
