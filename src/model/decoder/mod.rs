//! The forward pass: one static plan over the operations of a device.

mod check;
mod device;
mod forward;
mod kv;

use std::sync::Arc;

use ponder_kernels::KvDtype;

use self::kv::LocalPool;
use super::LoadOptions;
use super::adapted::Adapters;
use super::causal_lm::{LocalKv, ModelInfo};
use super::config::{ConfigError, ModelConfig};
use super::layer_step::Scratch;
use super::layers::{Attention, Layer};
use super::moe::{ExpertLoad, LayerRouting};
use super::ops::{CpuOps, KvShape, LogitsTransform, Ops, OpsError, RopeParams, WeightMatrix};
use super::profile::OperatorTimes;
use super::quantize::Quantizer;
use super::weights::{LoadError, WeightSource, Weights};

/// A decoder-only transformer of any supported family, run by `O`.
pub struct Decoder<O: Ops = CpuOps> {
    pub(super) ops: O,
    pub(super) config: ModelConfig,
    info: ModelInfo,
    pub(super) embeddings: O::Matrix,
    pub(super) layers: Vec<Layer<O>>,
    pub(super) output_norm: O::Vector,
    /// Absent when the head is tied to the embeddings.
    pub(super) head: Option<O::Matrix>,
    pub(super) rope: RopeTables<O>,
    /// Positions that the tables of angles cover.
    num_positions: usize,
    /// Of all layers, or of those without a window where the others have a pool of their own.
    pub(super) kv_cache: Option<O::KvCache>,
    pub(super) kv_shape: Option<KvShape>,
    local_pool: LocalPool<O>,
    kv_dtype: KvDtype,
    pub(super) scratch: Scratch<O>,
    pub(super) inputs: O::StepInputs,
    pub(super) adapters: Adapters<O>,
    pub(super) operator_times: Option<Arc<OperatorTimes>>,
    expert_load: Arc<ExpertLoad>,
    /// Of the last step, when somebody wants it.
    pub(super) routing: Option<Vec<LayerRouting>>,
}

impl<O: Ops> Decoder<O> {
    /// Packs the weights of `source`. RoPE tables cover `max_model_len` positions, or the context
    /// length of the configuration.
    pub fn load(
        ops: O,
        config: ModelConfig,
        source: &impl WeightSource,
        options: &LoadOptions,
    ) -> Result<Self, LoadError> {
        if let Some(what) = ops.lacks(config.needs()) {
            return Err(ConfigError::Unsupported(what.to_owned()).into());
        }
        let mut weights = Weights {
            source,
            ops: &ops,
            quantizer: None,
            pool: options.pool.as_deref(),
        };
        let has_head = weights.has("output.weight")?;
        weights.quantizer = options.quantize.map(|kind| Quantizer {
            kind,
            pool: options.pool(),
            head: match has_head {
                true => "output.weight",
                false => "token_embd.weight",
            },
        });
        let (vocab_size, hidden) = (config.vocab_size, config.hidden_size);
        let embeddings = weights.matrix("token_embd.weight", vocab_size, hidden)?;
        let head = has_head.then(|| weights.matrix("output.weight", vocab_size, hidden));
        let head = head.transpose()?;
        let mut layers = Vec::with_capacity(config.num_layers);
        for index in 0..config.num_layers {
            layers.push(Layer::load(&weights, &config, index)?);
            if let Some(progress) = &options.progress {
                progress(index + 1, config.num_layers);
            }
        }
        let output_norm = weights.vector("output_norm.weight", hidden)?;
        let num_positions = (options.max_model_len).unwrap_or(config.max_position_embeddings);
        let rope = rope_tables(&ops, &config, num_positions).map_err(|source| LoadError::Pack {
            name: "rope".to_owned(),
            source,
        })?;
        let mut info = info(&config, &layers, options.kv_cache_dtype);
        info.weight_bytes += embeddings.nbytes() + head.as_ref().map_or(0, WeightMatrix::nbytes);
        let with_experts = (0..layers.len()).filter(|index| layers[*index].moe().is_some());
        let expert_load = ExpertLoad::new(with_experts.collect(), info.num_experts.unwrap_or(0));
        let mut decoder = Self {
            ops,
            config,
            info,
            embeddings,
            layers,
            output_norm,
            head,
            rope,
            num_positions,
            kv_cache: None,
            kv_shape: None,
            local_pool: LocalPool::default(),
            kv_dtype: options.kv_cache_dtype,
            scratch: Scratch::default(),
            inputs: O::StepInputs::default(),
            adapters: Adapters::default(),
            operator_times: options.operator_times.clone(),
            routing: None,
            expert_load: Arc::new(expert_load),
        };
        decoder.info.local = decoder.local_kv();
        decoder.info.is_differentiable &= O::adaptable(&mut decoder).is_some();
        Ok(decoder)
    }

    /// Buffers for steps of up to `max_num_rows` rows.
    fn allocate_scratch(&mut self, max_num_rows: usize) -> Result<(), OpsError> {
        let config = &self.config;
        let reads_floats = |matrix: &dyn WeightMatrix| matrix.reads_floats();
        let head = self.head.as_ref().unwrap_or(&self.embeddings);
        let has_floats = head.reads_floats()
            || (self.layers.iter()).any(|layer| layer.matrices().into_iter().any(reads_floats));
        let experts = self.layers.iter().filter_map(Layer::moe);
        let mut experts = experts.flat_map(|moe| moe.expert_matrices());
        let has_float_experts = experts.any(reads_floats);
        let q_width = config.num_heads * config.head_dim;
        let activations = |width| self.ops.activations(max_num_rows, width, has_floats);
        self.scratch.activations = activations(q_width.max(config.hidden_size))?;
        self.scratch.gated = activations(config.intermediate_size)?;
        self.scratch.latent.activations = self.ops.activations(0, 0, true)?;
        self.scratch.moe.routing = self.ops.routing(has_float_experts)?;
        Ok(())
    }

    fn logits_transform(&self) -> LogitsTransform {
        LogitsTransform {
            divisor: self.config.logits_divisor,
            softcap: self.config.final_softcap,
        }
    }
}

/// The angles of a model's layers.
pub(super) struct RopeTables<O: Ops> {
    pub global: O::RopeTable,
    /// Of layers with a sliding window, where they have their own.
    local: Option<O::RopeTable>,
    /// Of layers that leave queries and keys as they are.
    unrotated: Option<O::RopeTable>,
}

impl<O: Ops> RopeTables<O> {
    pub fn of(&self, attention: &Attention<O>) -> &O::RopeTable {
        let own = match (attention.is_rotated, attention.is_local) {
            (false, _) => self.unrotated.as_ref(),
            (true, true) => self.local.as_ref(),
            (true, false) => None,
        };
        own.unwrap_or(&self.global)
    }
}

fn rope_tables<O: Ops>(
    ops: &O,
    config: &ModelConfig,
    num_positions: usize,
) -> Result<RopeTables<O>, OpsError> {
    let global = config.rope.params(num_positions);
    let local = config.family.local_layers.and_then(|local| {
        Some(RopeParams {
            rotary_dim: config.head_dim,
            theta: local.rope_theta?,
            freq_factors: None,
            linear_scale: 1.0,
            magnitude: 1.0,
            ..global
        })
    });
    // No element rotates.
    let unrotated = (!config.rope.unrotated_layers.is_empty()).then_some(RopeParams {
        rotary_dim: 0,
        freq_factors: None,
        ..global
    });
    let table = |params: Option<RopeParams<'_>>| {
        let table = params.map(|params| ops.rope_table(&params));
        table.transpose()
    };
    Ok(RopeTables {
        global: ops.rope_table(&global)?,
        local: table(local)?,
        unrotated: table(unrotated)?,
    })
}

/// What the engine is told of a model, its layers' weights counted.
fn info<O: Ops>(config: &ModelConfig, layers: &[Layer<O>], kv_dtype: KvDtype) -> ModelInfo {
    let matrices = layers.iter().flat_map(Layer::matrices);
    let kv_bytes = config.num_kv_heads * kv_dtype.token_bytes(config.head_dim);
    ModelInfo {
        vocab_size: config.vocab_size,
        max_position_embeddings: config.max_position_embeddings,
        num_layers: config.num_layers,
        hidden_size: config.hidden_size,
        kv_bytes_per_token: config.num_layers * kv_bytes,
        weight_bytes: matrices.map(|matrix| matrix.nbytes()).sum(),
        architecture: config.family.name.to_owned(),
        num_experts: config.moe.as_ref().map(|moe| moe.num_experts),
        is_differentiable: config.mla.is_none() && !config.family.attention_sinks,
        local: None,
    }
}
