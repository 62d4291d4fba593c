//! Models: files, configuration, weights and the forward pass. Knows nothing of scheduling.

pub mod adapt;
mod adapted;
pub mod catalogue;
pub mod causal_lm;
mod claims;
pub mod config;
pub mod decoder;
pub mod encoder;
pub mod families;
mod fields;
pub mod files;
mod finite;
pub mod gguf;
mod joined_experts;
mod layer_step;
mod layers;
pub mod lora;
mod mistaken;
mod mla;
mod moe;
pub mod ops;
pub mod profile;
mod quantize;
mod random;
mod read_ahead;
mod rope_config;
mod rope_scaling;
pub mod safetensors;
mod shards;
pub mod skip;
mod skip_search;
pub mod steering;
#[doc(hidden)]
pub mod testing;
mod weights;

use std::sync::Arc;

use ponder_kernels::{KvDtype, ThreadPool};

pub use adapt::{AdaptationConfig, AdaptationMethod, AdaptationPhase, AdaptationReport};
pub use causal_lm::*;
pub use config::{ConfigError, ModelConfig};
pub use decoder::Decoder;
pub use encoder::{Encoder, EncoderInput, Pooling};
pub use families::Family;
pub use files::{ModelFiles, OpenError};
pub use lora::{LoraAdapter, LoraError};
pub use mla::MlaConfig;
pub use moe::{ExpertLoad, LayerRouting, MoeConfig};
pub use ops::{CpuOps, CudaOps, Ops, StepKey};
pub use profile::{Operator, OperatorTimes};
pub use quantize::Quantization;
pub use random::RandomModel;
pub use read_ahead::ReadAhead;
pub use rope_config::RopeConfig;
pub use skip::{SkipSet, SubLayer};
pub use skip_search::{Probe, SkipCosts};
pub use steering::Steering;
pub use weights::LoadError;

/// How to load a model.
#[derive(Clone, Default)]
pub struct LoadOptions {
    /// Of the pool that is made when there is no `pool`.
    pub num_threads: usize,
    /// Threads shared with another model: the two must not run at once.
    pub pool: Option<Arc<ThreadPool>>,
    /// Positions to prepare for; the model's own context length when absent.
    pub max_model_len: Option<usize>,
    /// What float weights become, where they do not stay floats.
    pub quantize: Option<Quantization>,
    /// What keys and values are kept as.
    pub kv_cache_dtype: KvDtype,
    /// Where to count the time of each operator.
    pub operator_times: Option<Arc<OperatorTimes>>,
    /// Told how many layers are loaded, of how many.
    pub progress: Option<LoadProgress>,
}

/// Hears `(done, total)` while a model is loaded.
pub type LoadProgress = Arc<dyn Fn(usize, usize) + Send + Sync>;

impl LoadOptions {
    /// The threads that were given, or new ones.
    pub fn pool(&self) -> Arc<ThreadPool> {
        let new = || Arc::new(ThreadPool::new(self.num_threads.max(1)));
        self.pool.clone().unwrap_or_else(new)
    }
}

/// Reads the configuration, repacks the weights and plans the forward pass.
pub fn load(files: &ModelFiles, options: LoadOptions) -> Result<Box<dyn CausalLm>, LoadError> {
    Ok(Box::new(load_decoder(files, options)?))
}

/// [`load`], for those who look inside.
pub fn load_decoder(files: &ModelFiles, options: LoadOptions) -> Result<Decoder, LoadError> {
    load_on(CpuOps::new(options.pool()), files, options)
}

/// [`load`] onto the device that `ops` runs on.
pub fn load_on<O: Ops>(
    ops: O,
    files: &ModelFiles,
    options: LoadOptions,
) -> Result<Decoder<O>, LoadError> {
    let config = files.config()?;
    Ok(match files {
        ModelFiles::Gguf(file) => Decoder::load(ops, config, file, &options)?,
        ModelFiles::Safetensors(folder) => {
            let source = safetensors::HfWeights::new(folder, config.family);
            Decoder::load(ops, config, &source, &options)?
        }
    })
}
