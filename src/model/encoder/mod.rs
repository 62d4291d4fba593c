//! Encoders: models that read a whole text at once and make one vector, or one score, of it.
//!
//! BERT's forward pass in f32 over ragged rows: sequences of a batch lie one after the other, and
//! nothing is padded. A sequence's result depends on the sequence alone.

mod config;
mod forward;
mod load;
mod pooling;

use std::path::Path;
use std::sync::Arc;

use ponder_kernels::{DenseMatrix, FeedForward, LayerNorm, ThreadPool};

use super::config::ConfigError;
use super::safetensors::SafetensorsDir;
use super::weights::LoadError;
pub use config::{EncoderConfig, is_encoder};
pub use pooling::{Pooling, SentenceConfig, normalise};

/// One sequence of a batch.
#[derive(Debug, Clone, Copy)]
pub struct EncoderInput<'a> {
    pub token_ids: &'a [u32],
    /// Tokens from here on belong to the second text of a pair.
    pub second_from: usize,
}

/// Why an encoder cannot read a batch.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EncodeError {
    #[error("a sequence has {len} tokens; the model reads 1 to {max}")]
    Length { len: usize, max: usize },
    #[error("token id {id} is outside the vocabulary of {vocab_size}")]
    TokenOutOfRange { id: u32, vocab_size: usize },
    #[error("the model has no second kind of tokens: it does not read pairs")]
    NoPairs,
}

struct Layer {
    qkv: DenseMatrix,
    output: DenseMatrix,
    output_norm: LayerNorm,
    feed_forward: FeedForward,
    feed_forward_norm: LayerNorm,
}

/// What a cross-encoder has behind its last layer.
struct Classifier {
    pooler: DenseMatrix,
    head: DenseMatrix,
}

/// A loaded encoder.
pub struct Encoder {
    config: EncoderConfig,
    pool: Arc<ThreadPool>,
    /// `[vocab_size, hidden_size]`
    words: Vec<f32>,
    /// `[max_position_embeddings, hidden_size]`
    positions: Vec<f32>,
    /// `[type_vocab_size, hidden_size]`
    types: Vec<f32>,
    embedding_norm: LayerNorm,
    layers: Vec<Layer>,
    classifier: Option<Classifier>,
    scratch: forward::Scratch,
}

impl Encoder {
    /// Reads `config.json` and `*.safetensors` of a folder.
    pub fn load(folder: &Path, pool: Arc<ThreadPool>) -> Result<Self, EncoderError> {
        let folder = SafetensorsDir::open(folder)?;
        let config = EncoderConfig::new(folder.config())?;
        Ok(load::load(&folder, config, pool)?)
    }

    pub fn config(&self) -> &EncoderConfig {
        &self.config
    }
}

/// Why a folder is no encoder.
#[derive(Debug, thiserror::Error)]
pub enum EncoderError {
    #[error(transparent)]
    Files(#[from] super::safetensors::SafetensorsError),
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Load(#[from] LoadError),
}
