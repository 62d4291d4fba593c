//! `--embedding-model`, `--rerank-model`: encoders beside the model, or alone.

use std::path::Path;

use anyhow::{Context, bail};
use clap::{Args, ValueEnum};

use super::engine_args::EngineArgs;
use super::setup::{locate, model_name};
use crate::api::ServedEncoders;
use crate::encoding::{EncoderKind, EncoderOptions, ServedEncoder, WorkerOptions};
use crate::model::encoder::{SentenceConfig, is_encoder};
use crate::model::gguf::Metadata;
use crate::model::{ModelFiles, Pooling};

/// Texts that may wait for an encoder: with the longest texts, 32 MB of tokens.
const DEFAULT_MAX_QUEUED_TEXTS: usize = 16_384;

/// Flags of encoders.
#[derive(Debug, Clone, Args)]
pub struct EncoderArgs {
    /// Encoder for /v1/embeddings: a name of the catalogue, or a folder
    #[arg(
        long,
        env = "PONDER_EMBEDDING_MODEL",
        value_name = "MODEL",
        help_heading = "Embeddings"
    )]
    pub embedding_model: Option<String>,
    /// Cross-encoder for /v1/rerank and /score: a folder
    #[arg(
        long,
        env = "PONDER_RERANK_MODEL",
        value_name = "MODEL",
        help_heading = "Embeddings"
    )]
    pub rerank_model: Option<String>,
    /// How token states become one vector [default: what the model's folder says; else last for
    /// models that write, mean for encoders]
    #[arg(
        long,
        env = "PONDER_POOLING_TYPE",
        value_enum,
        help_heading = "Embeddings"
    )]
    pub pooling_type: Option<PoolingArg>,
    /// Most texts that may wait for an encoder; further requests get 429
    #[arg(long, env = "PONDER_MAX_QUEUED_TEXTS", default_value_t = DEFAULT_MAX_QUEUED_TEXTS, help_heading = "Limits")]
    pub max_queued_texts: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum PoolingArg {
    /// The last token's state
    Last,
    /// The mean of all states
    Mean,
    /// The first token's state
    Cls,
}

impl From<PoolingArg> for Pooling {
    fn from(pooling: PoolingArg) -> Self {
        match pooling {
            PoolingArg::Last => Self::Last,
            PoolingArg::Mean => Self::Mean,
            PoolingArg::Cls => Self::Cls,
        }
    }
}

impl EncoderArgs {
    /// Loads the encoders that flags name; first the model itself where it is one, `alone` with its
    /// name and folder.
    pub(super) fn load(
        &self,
        engine: &EngineArgs,
        alone: Option<(&str, &Path)>,
    ) -> anyhow::Result<ServedEncoders> {
        let options = EncoderOptions {
            num_threads: engine.num_threads(),
            pooling: self.pooling_type.map(Pooling::from),
            worker: WorkerOptions {
                max_queued: self.max_queued_texts,
                is_shared: engine.is_shared,
            },
        };
        let mut all: Vec<ServedEncoder> = Vec::new();
        if let Some((name, path)) = alone {
            all.push(load_one(name, path, options).with_context(|| engine.model.clone())?);
        }
        for (flag, model, is_embedder) in [
            ("--embedding-model", &self.embedding_model, true),
            ("--rerank-model", &self.rerank_model, false),
        ] {
            let Some(model) = model else {
                continue;
            };
            let context = || format!("{flag} {model}");
            let path = locate(model).with_context(context)?;
            let encoder = load_one(&model_name(model), &path, options).with_context(context)?;
            match (encoder.kind, is_embedder) {
                (EncoderKind::CrossEncoder, true) => {
                    bail!("{flag} {model} is a cross-encoder: name it with --rerank-model")
                }
                (EncoderKind::Embedder(_), false) => {
                    bail!("{flag} {model} makes vectors: name it with --embedding-model")
                }
                _ => {}
            }
            let is_taken = |name: &str| all.iter().any(|other| other.name == name);
            if is_taken(&encoder.name) {
                let name = &encoder.name;
                bail!("{flag} {model}: another encoder is served as {name}");
            }
            all.push(encoder);
        }
        Ok(ServedEncoders {
            all,
            are_alone: alone.is_some(),
        })
    }

    /// How the states of the model that writes become vectors.
    pub(super) fn decoder_pooling(&self, files: &ModelFiles) -> Pooling {
        if let Some(pooling) = self.pooling_type {
            return pooling.into();
        }
        // What cannot be read of it is no reason not to write answers.
        let declared = match files {
            ModelFiles::Safetensors(folder) => SentenceConfig::read(folder.path())
                .ok()
                .and_then(|config| config.pooling),
            ModelFiles::Gguf(file) => gguf_pooling(file.metadata()),
        };
        let known = declared.filter(|pooling| *pooling != Pooling::Max);
        known.unwrap_or(Pooling::Last)
    }
}

fn load_one(name: &str, path: &Path, options: EncoderOptions) -> anyhow::Result<ServedEncoder> {
    if !is_encoder(path) {
        bail!("not the folder of a BERT model: config.json must say \"model_type\": \"bert\"");
    }
    Ok(ServedEncoder::load(name, path, options)?)
}

/// What a GGUF file declares, in llama.cpp's numbers.
fn gguf_pooling(metadata: &Metadata) -> Option<Pooling> {
    let architecture = metadata.get_str("general.architecture")?;
    match metadata.get_u64(&format!("{architecture}.pooling_type"))? {
        1 => Some(Pooling::Mean),
        2 => Some(Pooling::Cls),
        3 => Some(Pooling::Last),
        _ => None,
    }
}
