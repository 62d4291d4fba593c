//! The parts that every decoder is made of.

use super::config::ModelConfig;
use super::families::QkNorm;
use super::mla::LatentProjections;
use super::moe::Moe;
use super::ops::{Linear, Ops, WeightMatrix};
use super::weights::{LoadError, WeightSource, Weights};

pub(super) struct Attention<O: Ops> {
    pub norm: O::Vector,
    pub projections: Projections<O>,
    pub output: Linear<O>,
    pub q_norm: Option<O::Vector>,
    pub k_norm: Option<O::Vector>,
    pub post_norm: Option<O::Vector>,
    pub is_local: bool,
}

/// How queries, keys and values come from a row.
pub(super) enum Projections<O: Ops> {
    Plain {
        q: Linear<O>,
        k: Linear<O>,
        v: Linear<O>,
    },
    Latent(LatentProjections<O>),
}

/// What follows attention in a layer.
pub(super) enum FeedForward<O: Ops> {
    Mlp(Box<Mlp<O>>),
    Moe(Box<Moe<O>>),
}

pub(super) struct Mlp<O: Ops> {
    pub norm: O::Vector,
    pub gate: Linear<O>,
    pub up: Linear<O>,
    pub down: Linear<O>,
    pub post_norm: Option<O::Vector>,
}

pub(super) struct Layer<O: Ops> {
    pub attention: Attention<O>,
    pub feed_forward: FeedForward<O>,
}

impl<O: Ops> Layer<O> {
    pub(super) fn load(
        weights: &Weights<'_, impl WeightSource + ?Sized, O>,
        config: &ModelConfig,
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
        let post_width = config.family.post_norms.then_some(hidden);
        let (q_norm, k_norm) = match config.family.qk_norm {
            QkNorm::None => (None, None),
            QkNorm::Heads => (Some(config.head_dim), Some(config.head_dim)),
            QkNorm::Whole => (Some(q_width), Some(kv_width)),
        };
        let bias = config.family.qkv_bias;
        let projections = match &config.mla {
            Some(mla) => Projections::Latent(LatentProjections::load(weights, config, mla, index)?),
            None => Projections::Plain {
                q: linear("attn_q", q_width, hidden, bias)?,
                k: linear("attn_k", kv_width, hidden, bias)?,
                v: linear("attn_v", kv_width, hidden, bias)?,
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
            is_local: config.family.is_local(index),
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
    pub(super) fn moe(&self) -> Option<&Moe<O>> {
        match &self.feed_forward {
            FeedForward::Moe(moe) => Some(moe),
            FeedForward::Mlp(_) => None,
        }
    }

    pub(super) fn matrices(&self) -> Vec<&dyn WeightMatrix> {
        let mut matrices: Vec<&dyn WeightMatrix> = vec![&self.attention.output.weights];
        match &self.attention.projections {
            Projections::Plain { q, k, v } => {
                for linear in [q, k, v] {
                    matrices.push(&linear.weights);
                }
            }
            Projections::Latent(latent) => matrices.extend(latent.matrices()),
        }
        match &self.feed_forward {
            FeedForward::Mlp(mlp) => {
                for linear in [&mlp.gate, &mlp.up, &mlp.down] {
                    matrices.push(&linear.weights);
                }
            }
            FeedForward::Moe(moe) => matrices.extend(moe.matrices()),
        }
        matrices
    }
}
