//! The parts that every decoder is made of, and the differences an architecture may choose.

use ponder_kernels::{Glu, PackedMatrix, RopeKind};

use super::config::{Architecture, ModelConfig};
use super::mla::LatentProjections;
use super::moe::Moe;
use super::weights::{LoadError, WeightSource, Weights};
use super::{gemma3, llama, olmoe, qwen2, qwen3};

/// What differs between architectures.
#[derive(Debug, Clone, Copy)]
pub(super) struct ArchitecturePlan {
    pub rope_kind: RopeKind,
    pub qkv_bias: bool,
    pub qk_norm: QkNorm,
    /// RMS norms on the outputs of attention and MLP.
    pub post_norms: bool,
    pub glu: Glu,
    pub embedding_scale: f32,
    /// RoPE base of layers with a sliding window.
    pub local_rope_theta: Option<f32>,
    /// Whether a layer attends through the sliding window.
    pub is_local: fn(usize) -> bool,
}

/// RMS norm of Q and K before the rotation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum QkNorm {
    None,
    /// Each head on its own.
    Heads,
    /// All heads as one vector.
    Whole,
}

impl ArchitecturePlan {
    pub(super) fn new(config: &ModelConfig) -> Self {
        match config.architecture {
            // Their feed-forward layers have experts; what else differs is in the configuration.
            Architecture::Mixtral | Architecture::GraniteMoe | Architecture::DeepseekV2 => {
                llama::plan(config)
            }
            Architecture::Llama => llama::plan(config),
            Architecture::Qwen2 | Architecture::Qwen2Moe => qwen2::plan(config),
            Architecture::Qwen3 | Architecture::Qwen3Moe => qwen3::plan(config),
            Architecture::Olmoe => olmoe::plan(config),
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
    pub projections: Projections,
    pub output: Linear,
    pub q_norm: Option<Vec<f32>>,
    pub k_norm: Option<Vec<f32>>,
    pub post_norm: Option<Vec<f32>>,
    pub is_local: bool,
}

/// How queries, keys and values come from a row.
pub(super) enum Projections {
    Plain { q: Linear, k: Linear, v: Linear },
    Latent(LatentProjections),
}

/// What follows attention in a layer.
pub(super) enum FeedForward {
    Mlp(Box<Mlp>),
    Moe(Box<Moe>),
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
    pub feed_forward: FeedForward,
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
        let norm = |part: &str, width: Option<usize>| {
            let norm = width.map(|width| weights.vector(&name(part), width));
            norm.transpose()
        };
        let post_width = plan.post_norms.then_some(hidden);
        let (q_norm, k_norm) = match plan.qk_norm {
            QkNorm::None => (None, None),
            QkNorm::Heads => (Some(config.head_dim), Some(config.head_dim)),
            QkNorm::Whole => (Some(q_width), Some(kv_width)),
        };
        let projections = match &config.mla {
            Some(mla) => Projections::Latent(LatentProjections::load(weights, config, mla, index)?),
            None => Projections::Plain {
                q: linear("attn_q", q_width, hidden, plan.qkv_bias)?,
                k: linear("attn_k", kv_width, hidden, plan.qkv_bias)?,
                v: linear("attn_v", kv_width, hidden, plan.qkv_bias)?,
            },
        };
        let v_head_dim = config
            .mla
            .as_ref()
            .map_or(config.head_dim, |mla| mla.v_head_dim);
        let attention = Attention {
            norm: weights.vector(&name("attn_norm"), hidden)?,
            projections,
            output: linear("attn_output", hidden, config.num_heads * v_head_dim, false)?,
            q_norm: norm("attn_q_norm", q_norm)?,
            k_norm: norm("attn_k_norm", k_norm)?,
            post_norm: norm("post_attention_norm", post_width)?,
            is_local: (plan.is_local)(index),
        };
        let has_router = weights.has(&name("ffn_gate_inp"))?;
        let feed_forward = match config.moe.as_ref().filter(|_| has_router) {
            Some(moe) => FeedForward::Moe(Box::new(Moe::load(weights, config, moe, index)?)),
            None => FeedForward::Mlp(Box::new(Mlp {
                norm: weights.vector(&name("ffn_norm"), hidden)?,
                gate: linear("ffn_gate", config.intermediate_size, hidden, false)?,
                up: linear("ffn_up", config.intermediate_size, hidden, false)?,
                down: linear("ffn_down", hidden, config.intermediate_size, false)?,
                post_norm: norm("post_ffw_norm", post_width)?,
            })),
        };
        Ok(Self {
            attention,
            feed_forward,
        })
    }

    /// The layer's experts, where it has any.
    pub(super) fn moe(&self) -> Option<&Moe> {
        match &self.feed_forward {
            FeedForward::Moe(moe) => Some(moe),
            FeedForward::Mlp(_) => None,
        }
    }

    pub(super) fn matrices(&self) -> impl Iterator<Item = &PackedMatrix> {
        let (plain, latent) = match &self.attention.projections {
            Projections::Plain { q, k, v } => (Some([q, k, v].map(|l| &l.weights)), None),
            Projections::Latent(latent) => (None, Some(latent.matrices())),
        };
        let (mlp, moe) = match &self.feed_forward {
            FeedForward::Mlp(mlp) => {
                let linears = [&mlp.gate, &mlp.up, &mlp.down];
                (Some(linears.map(|linear| &linear.weights)), None)
            }
            FeedForward::Moe(moe) => (None, Some(moe.matrices())),
        };
        let plain = plain.into_iter().flatten();
        let mlp = mlp.into_iter().flatten();
        plain
            .chain(latent.into_iter().flatten())
            .chain([&self.attention.output.weights])
            .chain(mlp)
            .chain(moe.into_iter().flatten())
    }
}
