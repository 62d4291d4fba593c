//! From a path to a running mistralrs engine.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize};

use ::mistralrs::core::MistralRsBuilder;
use ::mistralrs::{
    AnyModelBuilder, Device, DeviceMapSetting, GgufModelBuilder, MistralRs, ModelBuilder,
    ModelCategory, TokenSource, parse_isq_value,
};
use dashmap::DashMap;
use tokio::sync::Semaphore;

use super::{MistralrsEngine, Shared};
use crate::engine::backend::Capability;
use crate::engine::config::DEFAULT_MAX_MODEL_LEN;
use crate::engine::request::EngineConfig;
use crate::engine::speculative::SpeculativeConfig;
use crate::model::ModelInfo;
use crate::model::gguf::split::PartName;

/// What the operator chose.
#[derive(Debug, Clone)]
pub struct MistralrsOptions {
    /// A GGUF file, or a folder with config.json and safetensors.
    pub path: PathBuf,
    /// In-situ quantisation, as mistralrs names it (`4`, `Q4K`, `Q8_0`, …).
    pub isq: Option<String>,
    pub num_threads: usize,
    pub max_model_len: Option<usize>,
    pub max_num_seqs: usize,
    pub max_num_waiting_seqs: usize,
    /// Tokens that the tokenizer knows.
    pub vocab_size: usize,
}

/// Why the model does not run.
#[derive(Debug, thiserror::Error)]
pub enum MistralrsError {
    #[error("--isq {value}: {message}")]
    Isq { value: String, message: String },
    #[error("max-model-len {asked} is more than the model's context of {limit}")]
    ContextTooLong { asked: usize, limit: usize },
    #[error("{0} models do not generate text")]
    Category(String),
    #[error("the model has no tokenizer that mistralrs can read")]
    NoTokenizer,
    #[error("mistralrs cannot load the model: {0}")]
    Load(String),
}

impl MistralrsEngine {
    /// Loads the model and starts mistralrs. Not inside an async runtime: it blocks.
    pub fn load(options: &MistralrsOptions) -> Result<Self, MistralrsError> {
        // Only the first caller of a process sets the size of its pool; later ones share it.
        let pool = rayon::ThreadPoolBuilder::new().num_threads(options.num_threads);
        let _ = pool.build_global();
        let builder = builder(options)?;
        let load = |error: &dyn ToString| MistralrsError::Load(error.to_string());
        let mut runtime = tokio::runtime::Builder::new_multi_thread();
        let runtime = runtime.worker_threads(1).enable_all();
        let runtime = runtime.build().map_err(|error| load(&error))?;
        let (runner, filler, category) = runtime.block_on(start(builder))?;
        let mut capabilities = Vec::new();
        match &category {
            ModelCategory::Text => {}
            ModelCategory::Multimodal { .. } => capabilities.push(Capability::Vision),
            other => return Err(MistralrsError::Category(format!("{other:?}"))),
        }
        let limit = runner.max_sequence_length(None).ok().flatten();
        let limit = limit.unwrap_or(DEFAULT_MAX_MODEL_LEN);
        let asked = options.max_model_len;
        let max_model_len = asked.unwrap_or(limit.min(DEFAULT_MAX_MODEL_LEN));
        if max_model_len > limit {
            return Err(MistralrsError::ContextTooLong {
                asked: max_model_len,
                limit,
            });
        }
        let shared = Shared {
            config: config(options, max_model_len),
            info: info(options, limit),
            category,
            filler,
            images: Arc::new(Semaphore::new(1)),
            drivers: DashMap::new(),
            num_waiting: AtomicUsize::new(0),
            num_running: AtomicUsize::new(0),
            num_branches_running: AtomicUsize::new(0),
            prompt_tokens: AtomicU64::new(0),
            generation_tokens: AtomicU64::new(0),
            is_closed: AtomicBool::new(false),
            next_id: AtomicU64::new(0),
        };
        Ok(Self {
            shared: Arc::new(shared),
            runner,
            runtime: Some(runtime),
            capabilities,
        })
    }
}

fn builder(options: &MistralrsOptions) -> Result<AnyModelBuilder, MistralrsError> {
    let refused = |value: &String, message: String| MistralrsError::Isq {
        value: value.clone(),
        message,
    };
    let isq = |value: &String| {
        let parsed = parse_isq_value(value, Some(&Device::Cpu));
        parsed.map_err(|message| refused(value, message))
    };
    let isq = options.isq.as_ref().map(isq).transpose()?;
    let path = &options.path;
    if path.is_dir() {
        let mut builder = ModelBuilder::new(path.display())
            .with_token_source(TokenSource::None)
            .with_max_num_seqs(options.max_num_seqs)
            .with_prefix_cache_n(None)
            .with_device_mapping(DeviceMapSetting::dummy())
            .with_force_cpu();
        if let Some(isq) = isq {
            builder = builder.with_isq(isq);
        }
        return Ok(builder.into());
    }
    if let Some(value) = &options.isq {
        return Err(refused(
            value,
            "GGUF files are quantised already".to_owned(),
        ));
    }
    let folder = path.parent().map(|folder| folder.display().to_string());
    let file = path.file_name().unwrap_or_default().to_string_lossy();
    let files = match PartName::parse(&file) {
        Some(part) => part.all(),
        None => vec![file.into_owned()],
    };
    let builder = GgufModelBuilder::new(folder.unwrap_or_default(), files)
        .with_token_source(TokenSource::None)
        .with_max_num_seqs(options.max_num_seqs)
        .with_prefix_cache_n(None)
        .with_device_mapping(DeviceMapSetting::dummy())
        .with_force_cpu();
    Ok(builder.into())
}

/// The engine, a token of plain text, and what kind of model it is.
async fn start(
    builder: AnyModelBuilder,
) -> Result<(Arc<MistralRs>, u32, ModelCategory), MistralrsError> {
    let built = builder.build_pipeline().await;
    let (pipeline, scheduler, _) =
        built.map_err(|error| MistralrsError::Load(format!("{error:#}")))?;
    let (category, filler) = {
        let pipeline = pipeline.lock().await;
        let tokenizer = pipeline.tokenizer();
        let tokenizer = tokenizer.ok_or(MistralrsError::NoTokenizer)?;
        let encoded = tokenizer.encode_fast("a", false);
        let encoded = encoded.map_err(|error| MistralrsError::Load(error.to_string()))?;
        let filler = encoded.get_ids().last().copied();
        (
            pipeline.category(),
            filler.ok_or(MistralrsError::NoTokenizer)?,
        )
    };
    // Its prefix cache is never emptied on a CPU, and it is one for all tenants. Which tokens end an answer is decided here.
    let runner = MistralRsBuilder::new(pipeline, scheduler, false, None)
        .with_no_prefix_cache(true)
        .with_disable_eos_stop(true)
        .build()
        .await;
    Ok((runner, filler, category))
}

/// Limits; the KV cache is mistralrs's own and has no blocks here.
fn config(options: &MistralrsOptions, max_model_len: usize) -> EngineConfig {
    EngineConfig {
        max_model_len,
        max_num_seqs: options.max_num_seqs,
        max_num_batched_tokens: max_model_len,
        block_size: 0,
        num_blocks: 0,
        local: None,
        enable_prefix_caching: false,
        enable_chunked_prefill: false,
        max_num_waiting_seqs: options.max_num_waiting_seqs,
        is_shared: false,
        speculative: SpeculativeConfig::default(),
    }
}

fn info(options: &MistralrsOptions, max_position_embeddings: usize) -> ModelInfo {
    ModelInfo {
        vocab_size: options.vocab_size,
        max_position_embeddings,
        num_layers: 0,
        hidden_size: 0,
        kv_bytes_per_token: 0,
        weight_bytes: 0,
        architecture: "mistralrs".to_owned(),
        num_experts: None,
        is_differentiable: false,
        local: None,
    }
}
