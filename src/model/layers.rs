//! The parts that every decoder is made of.

use super::config::ModelConfig;
use super::families::QkNorm;
use super::mla::LatentProjections;
use super::moe::Moe;
use super::ops::{Linear, Ops, WeightMatrix};
use super::weights::{LoadError, Outputs, WeightSource, Weights};

pub(super) struct Attention<O: Ops> {
    pub norm: O::Vector,
    pub projections: Projections<O>,
    pub output: Linear<O>,
    /// `[num_heads]`, a score of each head beside those of the tokens.
    pub sinks: Option<O::Vector>,
    pub q_norm: Option<O::Vector>,
    pub k_norm: Option<O::Vector>,
    pub post_norm: Option<O::Vector>,
    pub is_local: bool,
    /// Queries and keys turn by their positions.
    pub is_rotated: bool,
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

impl<O: Ops> Projections<O> {
    /// Queries, keys and values from a tensor each, or from one that has all their outputs.
    fn load(
        weights: &Weights<'_, impl WeightSource + ?Sized, O>,
        config: &ModelConfig,
        index: usize,
    ) -> Result<Self, LoadError> {
        let in_features = config.hidden_size;
        let kv_heads = config.num_kv_heads;
        let widths = [config.num_heads, kv_heads, kv_heads].map(|heads| heads * config.head_dim);
        let outputs: usize = widths.iter().sum();
        let is_joined = weights.has(&format!("blk.{index}.attn_qkv.weight"))?;
        let mut first = 0;
        let mut next = |own: &str, width: usize| {
            let outputs = match is_joined {
                true => Outputs::among(first..first + width, outputs),
                false => Outputs::all(width),
            };
            first += width;
            let part = if is_joined { "attn_qkv" } else { own };
            let [matrix, bias] =
                ["weight", "bias"].map(|kind| format!("blk.{index}.{part}.{kind}"));
            Ok::<_, LoadError>(Linear {
                weights: weights.outputs(&matrix, &outputs, in_features)?,
                bias: (config.qkv_bias)
                    .then(|| weights.values(&bias, &outputs))
                    .transpose()?,
            })
        };
        let [q, k, v] = widths;
        Ok(Self::Plain {
            q: next("attn_q", q)?,
            k: next("attn_k", k)?,
            v: next("attn_v", v)?,
        })
    }
}

/// The gate and up projections, `[inner, hidden]` each: of a tensor each, or the gate's outputs
/// before those of up in one.
fn gate_and_up<O: Ops>(
    weights: &Weights<'_, impl WeightSource + ?Sized, O>,
    index: usize,
    [inner, hidden]: [usize; 2],
) -> Result<[Linear<O>; 2], LoadError> {
    let [gate, up] = ["gate", "up"].map(|part| format!("blk.{index}.ffn_{part}.weight"));
    let is_joined = !weights.has(&gate)? && weights.num_outputs(&up)? == Some(2 * inner);
    let places = match is_joined {
        true => [0..inner, inner..2 * inner].map(|rows| (&up, Outputs::among(rows, 2 * inner))),
        false => [(&gate, Outputs::all(inner)), (&up, Outputs::all(inner))],
    };
    let [gate, up] = places.map(|(name, outputs)| weights.outputs(name, &outputs, hidden));
    Ok([Linear::plain(gate?), Linear::plain(up?)])
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
        let linear = |part: &str, out_features: usize, in_features: usize| {
            let weights = weights.matrix(&name(part), out_features, in_features)?;
            Ok::<_, LoadError>(Linear::plain(weights))
        };
        let vector = |part: &str, width: Option<usize>| {
            let vector = width.map(|width| weights.vector(&name(part), width));
            vector.transpose()
        };
        let post_width = config.family.post_norms.then_some(hidden);
        let (q_norm, k_norm) = match config.family.qk_norm {
            QkNorm::None => (None, None),
            QkNorm::Heads => (Some(config.head_dim), Some(config.head_dim)),
            QkNorm::Whole => (Some(q_width), Some(kv_width)),
        };
        let projections = match &config.mla {
            Some(mla) => Projections::Latent(LatentProjections::load(weights, config, mla, index)?),
            None => Projections::load(weights, config, index)?,
        };
        let v_head_dim = config
            .mla
            .as_ref()
            .map_or(config.head_dim, |mla| mla.v_head_dim);
        let family = config.family;
        let num_sinks = family.attention_sinks.then_some(config.num_heads);
        let attention = Attention {
            norm: weights.vector(&name("attn_norm"), hidden)?,
            projections,
            output: Linear {
                bias: (family.output_bias)
                    .then(|| weights.vector(&format!("blk.{index}.attn_output.bias"), hidden))
                    .transpose()?,
                ..linear("attn_output", hidden, config.num_heads * v_head_dim)?
            },
            sinks: vector("attn_sinks", num_sinks)?,
            q_norm: vector("attn_q_norm", q_norm)?,
            k_norm: vector("attn_k_norm", k_norm)?,
            post_norm: vector("post_attention_norm", post_width)?,
            is_local: family.is_local(index),
            is_rotated: config.rope.rotates(index),
        };
        let has_router = weights.has(&name("ffn_gate_inp"))?;
        let feed_forward = match config.moe.as_ref().filter(|_| has_router) {
            Some(moe) => FeedForward::Moe(Box::new(Moe::load(weights, config, moe, index)?)),
            None => {
                let inner = config.intermediate_size;
                let [gate, up] = gate_and_up(weights, index, [inner, hidden])?;
                FeedForward::Mlp(Box::new(Mlp {
                    norm: weights.vector(&name(family.ffn_norm), hidden)?,
                    gate,
                    up,
                    down: linear("ffn_down", hidden, inner)?,
                    post_norm: vector("post_ffw_norm", post_width)?,
                }))
            }
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
