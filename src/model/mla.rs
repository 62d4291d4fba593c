//! Multi-head latent attention (DeepSeek-V2, <https://arxiv.org/abs/2405.04434>, section 2.1): keys and values of all heads are
//! projected from one latent vector.
//!
//! Heads are expanded before they are cached: the cache holds keys and values as attention reads them, not the latent. A head is
//! laid out with its rotated part first, and values are padded with zeros to the length of keys.

use ponder_kernels::norm::rms_norm_in_place;
use ponder_kernels::{Activations, DType, PackedMatrix, ThreadPool, matmul, reference};
use serde_json::Value;

use super::config::{Architecture, ConfigError, ModelConfig};
use super::gguf::Metadata;
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
        architecture: Architecture,
    ) -> Result<Option<Self>, ConfigError> {
        if architecture != Architecture::DeepseekV2 {
            return Ok(None);
        }
        let size = |part: &str| {
            let value = metadata.get_u32(&format!("{name}.{part}"));
            value.map(|value| value as usize).filter(|value| *value > 0)
        };
        let need =
            |part: &str| size(part).ok_or_else(|| ConfigError::Missing(format!("{name}.{part}")));
        let rope_head_dim = need("rope.dimension_count")?;
        // Newer files give the latent's sizes under the old keys, for a cache of latents.
        let key =
            size("attention.key_length_mla").map_or_else(|| need("attention.key_length"), Ok)?;
        let value = size("attention.value_length_mla")
            .map_or_else(|| need("attention.value_length"), Ok)?;
        let config = Self {
            q_lora_rank: size("attention.q_lora_rank"),
            kv_lora_rank: need("attention.kv_lora_rank")?,
            nope_head_dim: key.saturating_sub(rope_head_dim),
            rope_head_dim,
            v_head_dim: value,
        };
        config.checked().map(Some)
    }

    pub(super) fn from_hf(
        json: &Value,
        architecture: Architecture,
    ) -> Result<Option<Self>, ConfigError> {
        if architecture != Architecture::DeepseekV2 {
            return Ok(None);
        }
        let size = |key: &str| {
            let value = json.get(key).and_then(Value::as_u64);
            value.and_then(|value| usize::try_from(value).ok())
        };
        let need = |key: &str| size(key).ok_or_else(|| ConfigError::Missing(key.to_owned()));
        let config = Self {
            q_lora_rank: size("q_lora_rank"),
            kv_lora_rank: need("kv_lora_rank")?,
            nope_head_dim: need("qk_nope_head_dim")?,
            rope_head_dim: need("qk_rope_head_dim")?,
            v_head_dim: need("v_head_dim")?,
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
pub(super) struct LatentProjections {
    config: MlaConfig,
    num_heads: usize,
    /// Down-projection and norm of the queries' latent.
    q_down: Option<(PackedMatrix, Vec<f32>)>,
    q: PackedMatrix,
    /// `[kv_lora_rank + rope_head_dim, hidden_size]`
    kv_down: PackedMatrix,
    kv_norm: Vec<f32>,
    kv: KvUp,
}

/// From the latent to every head's unrotated key and value.
enum KvUp {
    /// `[heads * (nope_head_dim + v_head_dim), kv_lora_rank]`
    Joined(PackedMatrix),
    /// `[heads * nope_head_dim, kv_lora_rank]` and `[heads * v_head_dim, kv_lora_rank]`
    Split(PackedMatrix, PackedMatrix),
}

/// Buffers.
#[derive(Default)]
pub(super) struct LatentScratch {
    latent: Vec<f32>,
    compressed: Vec<f32>,
    activations: Option<Activations>,
    wide: Vec<f32>,
    values: Vec<f32>,
}

impl LatentProjections {
    pub(super) fn load(
        weights: &Weights<'_, impl WeightSource + ?Sized>,
        model: &ModelConfig,
        mla: &MlaConfig,
        index: usize,
    ) -> Result<Self, LoadError> {
        let (hidden, num_heads) = (model.hidden_size, model.num_heads);
        let name = |part: &str| format!("blk.{index}.{part}.weight");
        let q_width = num_heads * mla.head_dim();
        let (q_down, q) = match mla.q_lora_rank {
            Some(rank) => {
                let norm = weights.vector(&name("attn_q_a_norm"), rank)?;
                let down = weights.matrix(&name("attn_q_a"), rank, hidden)?;
                let up = weights.matrix(&name("attn_q_b"), q_width, rank)?;
                (Some((down, norm)), up)
            }
            None => (None, weights.matrix(&name("attn_q"), q_width, hidden)?),
        };
        let rank = mla.kv_lora_rank;
        let kv = if weights.has(&name("attn_kv_b"))? {
            let width = num_heads * (mla.nope_head_dim + mla.v_head_dim);
            KvUp::Joined(weights.matrix(&name("attn_kv_b"), width, rank)?)
        } else {
            let keys = transposed_keys(weights, &name("attn_k_b"), num_heads, mla)?;
            let shape = [num_heads, mla.v_head_dim, rank];
            let values = weights.stacked(&name("attn_v_b"), shape)?;
            KvUp::Split(keys, values)
        };
        Ok(Self {
            config: mla.clone(),
            num_heads,
            q_down,
            q,
            kv_down: weights.matrix(&name("attn_kv_a_mqa"), rank + mla.rope_head_dim, hidden)?,
            kv_norm: weights.vector(&name("attn_kv_a_norm"), rank)?,
            kv,
        })
    }

    pub(super) fn matrices(&self) -> impl Iterator<Item = &PackedMatrix> {
        let (first, second) = match &self.kv {
            KvUp::Joined(joined) => (joined, None),
            KvUp::Split(keys, values) => (keys, Some(values)),
        };
        let q_down = self.q_down.iter().map(|(down, _)| down);
        [&self.q, &self.kv_down, first]
            .into_iter()
            .chain(second)
            .chain(q_down)
    }

    /// Fills `q`, `k` and `v` (`[rows, num_heads * head_dim]`, the rotated part of a head first) from normed rows.
    pub(super) fn project(
        &self,
        pool: &ThreadPool,
        x: &Activations,
        scratch: &mut LatentScratch,
        [q, k, v]: [&mut [f32]; 3],
    ) {
        let mla = &self.config;
        let num_rows = x.num_rows();
        let s = scratch;
        let latent = s
            .activations
            .get_or_insert_with(|| Activations::with_capacity(0, 0, true));
        s.wide.resize(q.len(), 0.0);
        match &self.q_down {
            Some((down, norm)) => {
                s.latent.resize(num_rows * norm.len(), 0.0);
                matmul(pool, x, down, None, &mut s.latent);
                latent.load_normed(pool, &s.latent, norm, LATENT_NORM_EPS);
                matmul(pool, latent, &self.q, None, &mut s.wide);
            }
            None => matmul(pool, x, &self.q, None, &mut s.wide),
        }
        let (nope, rope) = (mla.nope_head_dim, mla.rope_head_dim);
        let heads = s.wide.chunks_exact(mla.head_dim());
        for (q, head) in q.chunks_exact_mut(mla.head_dim()).zip(heads) {
            q[..rope].copy_from_slice(&head[nope..]);
            q[rope..].copy_from_slice(&head[..nope]);
        }
        let rank = mla.kv_lora_rank;
        s.latent.resize(num_rows * (rank + rope), 0.0);
        matmul(pool, x, &self.kv_down, None, &mut s.latent);
        s.compressed.clear();
        for row in s.latent.chunks_exact(rank + rope) {
            s.compressed.extend_from_slice(&row[..rank]);
        }
        rms_norm_in_place(pool, &mut s.compressed, &self.kv_norm, LATENT_NORM_EPS);
        latent.load(pool, &s.compressed, num_rows, rank);
        let parts = self.expand(pool, latent, &mut s.wide, &mut s.values);
        v.fill(0.0);
        let width = self.num_heads * mla.head_dim();
        for row in 0..num_rows {
            let shared = &s.latent[row * (rank + rope) + rank..][..rope];
            let (keys, values) = (
                &mut k[row * width..][..width],
                &mut v[row * width..][..width],
            );
            let heads = keys.chunks_exact_mut(mla.head_dim());
            let heads = heads.zip(values.chunks_exact_mut(mla.head_dim()));
            for (head, (key, value)) in heads.enumerate() {
                let index = row * self.num_heads + head;
                key[..rope].copy_from_slice(shared);
                key[rope..].copy_from_slice(&s.wide[index * parts.stride..][..nope]);
                let own = &parts.values(&s.wide, &s.values)[index * parts.stride_v..];
                value[..mla.v_head_dim].copy_from_slice(&own[..mla.v_head_dim]);
            }
        }
    }

    fn expand(
        &self,
        pool: &ThreadPool,
        latent: &Activations,
        wide: &mut Vec<f32>,
        values: &mut Vec<f32>,
    ) -> Parts {
        let (nope, v) = (self.config.nope_head_dim, self.config.v_head_dim);
        let num_heads = latent.num_rows() * self.num_heads;
        match &self.kv {
            KvUp::Joined(matrix) => {
                wide.resize(num_heads * (nope + v), 0.0);
                matmul(pool, latent, matrix, None, wide);
                Parts {
                    stride: nope + v,
                    stride_v: nope + v,
                    joined_at: Some(nope),
                }
            }
            KvUp::Split(k_up, v_up) => {
                wide.resize(num_heads * nope, 0.0);
                values.resize(num_heads * v, 0.0);
                matmul(pool, latent, k_up, None, wide);
                matmul(pool, latent, v_up, None, values);
                Parts {
                    stride: nope,
                    stride_v: v,
                    joined_at: None,
                }
            }
        }
    }
}

/// Where heads lie in what was expanded.
struct Parts {
    stride: usize,
    stride_v: usize,
    /// Where a head's value follows its key.
    joined_at: Option<usize>,
}

impl Parts {
    fn values<'a>(&self, wide: &'a [f32], values: &'a [f32]) -> &'a [f32] {
        self.joined_at.map_or(values, |at| &wide[at..])
    }
}

/// Keeps the first `v_head_dim` elements of each head of attention's result, `[rows, num_heads * head_dim]`.
pub(super) fn keep_values(mla: &MlaConfig, attended: &mut Vec<f32>) {
    let (head_dim, v) = (mla.head_dim(), mla.v_head_dim);
    let num_heads = attended.len() / head_dim;
    for head in 0..num_heads {
        attended.copy_within(head * head_dim..head * head_dim + v, head * v);
    }
    attended.truncate(num_heads * v);
}

/// Newer GGUF files hold the keys' up-projection transposed, head by head (`[heads, kv_lora_rank, nope_head_dim]`), for attention
/// over latents.
fn transposed_keys(
    weights: &Weights<'_, impl WeightSource + ?Sized>,
    name: &str,
    num_heads: usize,
    mla: &MlaConfig,
) -> Result<PackedMatrix, LoadError> {
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
