//! An encoder that is served: its name, its limits, its thread.

use std::path::Path;
use std::sync::Arc;

use ponder_kernels::ThreadPool;

use super::{EncoderHandle, EncoderTokenizer, Limit, WorkerOptions};
use crate::model::encoder::{EncoderConfig, EncoderError, SentenceConfig};
use crate::model::{ConfigError, Encoder, ModelFiles, OpenError, Pooling};
use crate::text::{Tokenizer, TokenizerError};

/// Why an encoder cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum EncodingLoadError {
    #[error(transparent)]
    Encoder(#[from] EncoderError),
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Files(#[from] OpenError),
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    #[error("its tokenizer.json has no [CLS] and [SEP]: only BERT's WordPiece is read")]
    NoMarks,
    #[error("its tokenizer has ids up to {tokenizer}, its weights have {model} tokens")]
    Vocabulary { tokenizer: usize, model: usize },
    #[error("it gives {0} scores a pair; a cross-encoder that is served here gives one")]
    Labels(usize),
    #[error("the encoder's thread could not start: {0}")]
    Thread(#[from] std::io::Error),
}

/// How to serve an encoder.
#[derive(Debug, Clone, Copy)]
pub struct EncoderOptions {
    pub num_threads: usize,
    /// Another pooling than the folder's own.
    pub pooling: Option<Pooling>,
    pub worker: WorkerOptions,
}

/// What an encoder makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EncoderKind {
    /// A vector of a text.
    Embedder(Pooling),
    /// A score of a pair of texts.
    CrossEncoder,
}

/// An encoder that is served.
pub struct ServedEncoder {
    /// The name that requests use.
    pub name: String,
    pub kind: EncoderKind,
    pub config: EncoderConfig,
    pub tokenizer: EncoderTokenizer,
    pub handle: EncoderHandle,
    /// Tokens of a text, marks included.
    pub max_len: usize,
}

impl ServedEncoder {
    /// Loads a folder and starts its thread.
    ///
    /// # Errors
    /// When the folder holds no encoder that is known here.
    pub fn load(
        name: &str,
        folder: &Path,
        options: EncoderOptions,
    ) -> Result<Self, EncodingLoadError> {
        let pool = Arc::new(ThreadPool::new(options.num_threads));
        let encoder = Encoder::load(folder, pool)?;
        let sentence = SentenceConfig::read(folder)?;
        let tokenizer = Tokenizer::from_files(&ModelFiles::open(folder)?)?;
        let config = encoder.config().clone();
        let num_tokens = tokenizer.vocab_size();
        if num_tokens > config.vocab_size {
            return Err(EncodingLoadError::Vocabulary {
                tokenizer: num_tokens - 1,
                model: config.vocab_size,
            });
        }
        let kind = match config.num_labels {
            // Sentence-transformers' own default.
            None => EncoderKind::Embedder(
                options
                    .pooling
                    .or(sentence.pooling)
                    .unwrap_or(Pooling::Mean),
            ),
            Some(1) => EncoderKind::CrossEncoder,
            Some(other) => return Err(EncodingLoadError::Labels(other)),
        };
        let longest = config.max_position_embeddings;
        Ok(Self {
            name: name.to_owned(),
            kind,
            tokenizer: EncoderTokenizer::new(tokenizer, &sentence)
                .ok_or(EncodingLoadError::NoMarks)?,
            max_len: sentence.max_seq_length.unwrap_or(longest).min(longest),
            handle: EncoderHandle::start(encoder, kind, options.worker)?,
            config,
        })
    }

    /// Texts of more tokens than the model reads are refused.
    pub fn limit(&self) -> Limit {
        Limit::Refuse(self.max_len)
    }
}
