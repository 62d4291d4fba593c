//! The parts that every decoder is made of, and the differences an architecture may choose.

use ponder_kernels::{Glu, PackedMatrix, RopeKind};

use super::config::{Architecture, ModelConfig};
use super::weights::{LoadError, WeightSource, Weights};
use super::{gemma3, llama, qwen2, qwen3};

/// What differs between architectures.
#[derive(Debug, Clone, Copy)]
pub(super) struct ArchitecturePlan {
    pub rope_kind: RopeKind,
    pub qkv_bias: bool,
    /// RMS norm on each head of Q and K before the rotation.
    pub qk_norm: bool,
    /// RMS norms on the outputs of attention and MLP.
    pub post_norms: bool,
    pub glu: Glu,
    pub embedding_scale: f32,
    /// RoPE base of layers with a sliding window.
    pub local_rope_theta: Option<f32>,
    /// Whether a layer attends through the sliding window.
    pub is_local: fn(usize) -> bool,
}

impl ArchitecturePlan {
    pub(super) fn new(config: &ModelConfig) -> Self {
        match config.architecture {
            Architecture::Llama => llama::plan(config),
            Architecture::Qwen2 => qwen2::plan(config),
            Architecture::Qwen3 => qwen3::plan(config),
            Architecture::Gemma3 => gemma3::plan(config),
        }
    }
}

/// A matrix with an optional bias.
pub(super) struct Linear {
    pub weights: PackedMatrix,
    pub bias: Option<Vec<f32>>,
}

pub(super) struct Attention {
    pub norm: Vec<f32>,
    pub q: Linear,
    pub k: Linear,
    pub v: Linear,
    pub output: Linear,
    pub q_norm: Option<Vec<f32>>,
    pub k_norm: Option<Vec<f32>>,
    pub post_norm: Option<Vec<f32>>,
    pub is_local: bool,
}

pub(super) struct Mlp {
    pub norm: Vec<f32>,
    pub gate: Linear,
    pub up: Linear,
    pub down: Linear,
    pub post_norm: Option<Vec<f32>>,
}

pub(super) struct Layer {
    pub attention: Attention,
    pub mlp: Mlp,
}

impl Layer {
    pub(super) fn load(
        weights: &Weights<'_, impl WeightSource + ?Sized>,
        config: &ModelConfig,
        plan: &ArchitecturePlan,
        index: usize,
    ) -> Result<Self, LoadError> {
        let hidden = config.hidden_size;
        let q_width = config.num_heads * config.head_dim;
        let kv_width = config.num_kv_heads * config.head_dim;
        let name = |part: &str| format!("blk.{index}.{part}.weight");
        let linear = |part: &str, out_features: usize, in_features: usize, bias: bool| {
            Ok::<_, LoadError>(Linear {
                weights: weights.matrix(&name(part), out_features, in_features)?,
                bias: if bias {
                    Some(weights.vector(&format!("blk.{index}.{part}.bias"), out_features)?)
                } else {
                    None
                },
            })
        };
        let norm = |part: &str, width: usize, wanted: bool| {
            let norm = wanted.then(|| weights.vector(&name(part), width));
            norm.transpose()
        };
        Ok(Self {
            attention: Attention {
                norm: weights.vector(&name("attn_norm"), hidden)?,
                q: linear("attn_q", q_width, hidden, plan.qkv_bias)?,
                k: linear("attn_k", kv_width, hidden, plan.qkv_bias)?,
                v: linear("attn_v", kv_width, hidden, plan.qkv_bias)?,
                output: linear("attn_output", hidden, q_width, false)?,
                q_norm: norm("attn_q_norm", config.head_dim, plan.qk_norm)?,
                k_norm: norm("attn_k_norm", config.head_dim, plan.qk_norm)?,
                post_norm: norm("post_attention_norm", hidden, plan.post_norms)?,
                is_local: (plan.is_local)(index),
            },
            mlp: Mlp {
                norm: weights.vector(&name("ffn_norm"), hidden)?,
                gate: linear("ffn_gate", config.intermediate_size, hidden, false)?,
                up: linear("ffn_up", config.intermediate_size, hidden, false)?,
                down: linear("ffn_down", hidden, config.intermediate_size, false)?,
                post_norm: norm("post_ffw_norm", hidden, plan.post_norms)?,
            },
        })
    }

    pub(super) fn matrices(&self) -> impl Iterator<Item = &PackedMatrix> {
        let (attention, mlp) = (&self.attention, &self.mlp);
        [
            &attention.q,
            &attention.k,
            &attention.v,
            &attention.output,
            &mlp.gate,
            &mlp.up,
            &mlp.down,
        ]
        .into_iter()
        .map(|linear| &linear.weights)
    }
}
