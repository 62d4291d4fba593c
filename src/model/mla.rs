//! Multi-head latent attention (DeepSeek-V2, <https://arxiv.org/abs/2405.04434>, section 2.1): keys
//! and values of all heads are projected from one latent vector.
//!
//! Heads are expanded before they are cached: the cache holds keys and values as attention reads
//! them, not the latent. A head is laid out with its rotated part first, and values are padded with
//! zeros to the length of keys.

use ponder_kernels::{DType, reference};
use serde_json::Value;

use super::config::{ConfigError, ModelConfig};
use super::families::Family;
use super::fields::{GgufFields, HfFields};
use super::gguf::Metadata;
use super::ops::{Expanded, Linear, Ops, OpsError, WeightMatrix};
use super::weights::{LoadError, WeightSource, Weights};

/// Epsilon of the latents' norms, whatever the model's own is.
const LATENT_NORM_EPS: f32 = 1e-6;

/// The sizes of latent attention.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MlaConfig {
    /// Width of the queries' latent vector; `None` where they have none.
    pub q_lora_rank: Option<usize>,
    pub kv_lora_rank: usize,
    /// Elements of a query and key that are not rotated.
    pub nope_head_dim: usize,
    /// Those that are; of keys one for all heads.
    pub rope_head_dim: usize,
    pub v_head_dim: usize,
}

impl MlaConfig {
    pub(super) fn from_gguf(
        metadata: &Metadata,
        name: &str,
        family: &Family,
    ) -> Result<Option<Self>, ConfigError> {
        if !family.has_latent_attention {
            return Ok(None);
        }
        let fields = GgufFields { metadata, name };
        let size = |part: &str| {
            let value = fields.size(part)?;
            Ok::<_, ConfigError>(value.filter(|value| *value > 0))
        };
        let need = |part: &str| size(part)?.ok_or_else(|| ConfigError::Missing(fields.key(part)));
        let rope_head_dim = need("rope.dimension_count")?;
        // Newer files give the latent's sizes under the old keys, for a cache of latents.
        let key =
            size("attention.key_length_mla")?.map_or_else(|| need("attention.key_length"), Ok)?;
        let value = size("attention.value_length_mla")?
            .map_or_else(|| need("attention.value_length"), Ok)?;
        let config = Self {
            q_lora_rank: size("attention.q_lora_rank")?,
            kv_lora_rank: need("attention.kv_lora_rank")?,
            nope_head_dim: key.saturating_sub(rope_head_dim),
            rope_head_dim,
            v_head_dim: value,
        };
        config.checked().map(Some)
    }

    pub(super) fn from_hf(json: &Value, family: &Family) -> Result<Option<Self>, ConfigError> {
        if !family.has_latent_attention {
            return Ok(None);
        }
        let fields = HfFields(json);
        let config = Self {
            q_lora_rank: fields.size("q_lora_rank")?,
            kv_lora_rank: fields.need_size("kv_lora_rank")?,
            nope_head_dim: fields.need_size("qk_nope_head_dim")?,
            rope_head_dim: fields.need_size("qk_rope_head_dim")?,
            v_head_dim: fields.need_size("v_head_dim")?,
        };
        config.checked().map(Some)
    }

    fn checked(self) -> Result<Self, ConfigError> {
        let sizes = [
            self.q_lora_rank.unwrap_or(1),
            self.kv_lora_rank,
            self.nope_head_dim,
            self.rope_head_dim,
            self.v_head_dim,
        ];
        let is_sensible = sizes.iter().all(|size| (1..1 << 20).contains(size));
        if !is_sensible
            || !self.rope_head_dim.is_multiple_of(2)
            || self.v_head_dim > self.head_dim()
        {
            return Err(ConfigError::Invalid(format!(
                "latent attention of {self:?}"
            )));
        }
        Ok(self)
    }

    /// Of queries and keys.
    pub fn head_dim(&self) -> usize {
        self.nope_head_dim + self.rope_head_dim
    }
}

/// The projections of a layer's queries, keys and values.
pub(super) struct LatentProjections<O: Ops> {
    config: MlaConfig,
    /// Down-projection and norm of the queries' latent.
    q_down: Option<(Linear<O>, O::Vector)>,
    q: Linear<O>,
    /// `[kv_lora_rank + rope_head_dim, hidden_size]`
    kv_down: Linear<O>,
    kv_norm: O::Vector,
    kv: KvUp<O>,
}

/// From the latent to every head's unrotated key and value.
enum KvUp<O: Ops> {
    /// `[heads * (nope_head_dim + v_head_dim), kv_lora_rank]`
    Joined(Linear<O>),
    /// `[heads * nope_head_dim, kv_lora_rank]` and `[heads * v_head_dim, kv_lora_rank]`
    Split(Linear<O>, Linear<O>),
}

/// Buffers.
pub(super) struct LatentScratch<O: Ops> {
    /// `[rows, q_lora_rank]`, then `[rows, kv_lora_rank + rope_head_dim]`
    latent: O::Rows,
    pub activations: O::Activations,
    /// Queries, then what is expanded from the latent.
    wide: O::Rows,
    values: O::Rows,
}

impl<O: Ops> Default for LatentScratch<O> {
    fn default() -> Self {
        Self {
            latent: O::Rows::default(),
            activations: O::Activations::default(),
            wide: O::Rows::default(),
            values: O::Rows::default(),
        }
    }
}

impl<O: Ops> LatentProjections<O> {
    pub(super) fn load(
        weights: &Weights<'_, impl WeightSource + ?Sized, O>,
        model: &ModelConfig,
        mla: &MlaConfig,
        index: usize,
    ) -> Result<Self, LoadError> {
        let (hidden, num_heads) = (model.hidden_size, model.num_heads);
        let name = |part: &str| format!("blk.{index}.{part}.weight");
        let q_width = num_heads * mla.head_dim();
        let linear = |name: &str, out_features: usize, in_features: usize| {
            let weights = weights.matrix(name, out_features, in_features)?;
            Ok::<_, LoadError>(Linear::plain(weights))
        };
        let (q_down, q) = match mla.q_lora_rank {
            Some(rank) => {
                let norm = weights.vector(&name("attn_q_a_norm"), rank)?;
                let down = linear(&name("attn_q_a"), rank, hidden)?;
                let up = linear(&name("attn_q_b"), q_width, rank)?;
                (Some((down, norm)), up)
            }
            None => (None, linear(&name("attn_q"), q_width, hidden)?),
        };
        let rank = mla.kv_lora_rank;
        let kv = if weights.has(&name("attn_kv_b"))? {
            let width = num_heads * (mla.nope_head_dim + mla.v_head_dim);
            KvUp::Joined(linear(&name("attn_kv_b"), width, rank)?)
        } else {
            let keys = transposed_keys(weights, &name("attn_k_b"), num_heads, mla)?;
            let shape = [num_heads, mla.v_head_dim, rank];
            let values = weights.stacked(&name("attn_v_b"), shape)?;
            KvUp::Split(Linear::plain(keys), Linear::plain(values))
        };
        Ok(Self {
            config: mla.clone(),
            q_down,
            q,
            kv_down: linear(&name("attn_kv_a_mqa"), rank + mla.rope_head_dim, hidden)?,
            kv_norm: weights.vector(&name("attn_kv_a_norm"), rank)?,
            kv,
        })
    }

    pub(super) fn matrices(&self) -> impl Iterator<Item = &dyn WeightMatrix> {
        let (first, second) = match &self.kv {
            KvUp::Joined(joined) => (joined, None),
            KvUp::Split(keys, values) => (keys, Some(values)),
        };
        let q_down = self.q_down.iter().map(|(down, _)| down);
        let linears = [&self.q, &self.kv_down, first].into_iter();
        let linears = linears.chain(second).chain(q_down);
        linears.map(|linear| &linear.weights as &dyn WeightMatrix)
    }

    /// Fills `q`, `k` and `v` (`[rows, num_heads * head_dim]`, the rotated part of a head first) from normed rows.
    pub(super) fn project(
        &self,
        ops: &mut O,
        x: &O::Activations,
        scratch: &mut LatentScratch<O>,
        [q, k, v]: [&mut O::Rows; 3],
    ) -> Result<(), OpsError> {
        let (mla, s, eps) = (&self.config, scratch, LATENT_NORM_EPS);
        match &self.q_down {
            Some((down, norm)) => {
                ops.project(x, [down], [&mut s.latent])?;
                ops.norm(&s.latent, norm, eps, &mut s.activations)?;
                ops.project(&s.activations, [&self.q], [&mut s.wide])?;
            }
            None => ops.project(x, [&self.q], [&mut s.wide])?,
        }
        ops.latent_queries(mla, &s.wide, q)?;
        ops.project(x, [&self.kv_down], [&mut s.latent])?;
        ops.latent_norm(mla, &s.latent, &self.kv_norm, eps, &mut s.activations)?;
        let expanded = match &self.kv {
            KvUp::Joined(both) => {
                ops.project(&s.activations, [both], [&mut s.wide])?;
                Expanded::Joined(&s.wide)
            }
            KvUp::Split(keys, values) => {
                let outs = [&mut s.wide, &mut s.values];
                ops.project(&s.activations, [keys, values], outs)?;
                Expanded::Split(&s.wide, &s.values)
            }
        };
        ops.latent_keys_values(mla, &s.latent, expanded, [k, v])
    }
}

/// Newer GGUF files hold the keys' up-projection transposed, head by head (`[heads, kv_lora_rank, nope_head_dim]`), for attention
/// over latents.
fn transposed_keys<O: Ops>(
    weights: &Weights<'_, impl WeightSource + ?Sized, O>,
    name: &str,
    num_heads: usize,
    mla: &MlaConfig,
) -> Result<O::Matrix, LoadError> {
    let (rank, nope) = (mla.kv_lora_rank, mla.nope_head_dim);
    let tensor = weights.tensor(name, &[num_heads, rank, nope])?;
    let mut values = vec![0.0; num_heads * rank * nope];
    reference::dequantize(tensor.dtype, &tensor.data, &mut values);
    let mut bytes = Vec::with_capacity(4 * values.len());
    for head in values.chunks_exact(rank * nope) {
        for key in 0..nope {
            for latent in 0..rank {
                bytes.extend(head[latent * nope + key].to_le_bytes());
            }
        }
    }
    weights.pack(name, DType::F32, &bytes, num_heads * nope, rank)
}
