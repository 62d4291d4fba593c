//! Models of real shapes with made-up weights: what they cost to run is measured without a
//! download.

use std::borrow::Cow;
use std::sync::OnceLock;

use half::{bf16, f16};
use ponder_kernels::DType;
use serde_json::Value;

use super::LoadOptions;
use super::config::{ConfigError, ModelConfig};
use super::decoder::Decoder;
use super::families::shapes::{SHAPES, Shape};
use super::ops::Ops;
use super::testing::uniform;
use super::weights::{LoadError, RawTensor, WeightSource};

/// Bytes of random blocks that tensors are cut from. No cache holds a model's worth of them.
const POOL_BYTES: usize = 64 << 20;
/// Tensors begin at other places of the pool, so many blocks apart.
const POOL_STEP: usize = 1013;

/// How a made-up model's weights are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Storage {
    Bf16,
    Q8_0,
    /// llama.cpp's mix: Q4_K, with Q6_K for the head and some layers' values and down projections.
    Q4KM,
}

/// A shape and a storage, as `8b:bf16` names them.
#[derive(Clone)]
pub struct RandomModel {
    name: String,
    config: Value,
    storage: Storage,
    sizes: &'static Shape,
}

impl std::fmt::Debug for RandomModel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.name)
    }
}

impl std::str::FromStr for RandomModel {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let (shape, storage) = name.split_once(':').unwrap_or((name, "bf16"));
        let sizes = SHAPES.iter().find(|known| known.name == shape);
        let sizes = sizes.ok_or_else(|| format!("{shape:?} is none of 0.5b, 1.5b and 8b"))?;
        let storage = match storage {
            "bf16" => Storage::Bf16,
            "q8_0" => Storage::Q8_0,
            "q4_k_m" => Storage::Q4KM,
            other => return Err(format!("{other:?} is none of bf16, q8_0 and q4_k_m")),
        };
        if storage == Storage::Q4KM && !sizes.hidden_size.is_multiple_of(256) {
            return Err(format!("{shape} has no whole blocks of q4_k_m"));
        }
        Ok(Self {
            name: name.to_owned(),
            config: sizes.config(),
            storage,
            sizes,
        })
    }
}

/// Whole random blocks of a type, with scales that keep activations finite.
fn pool(dtype: DType) -> &'static [u8] {
    static BF16: OnceLock<Vec<u8>> = OnceLock::new();
    static Q8_0: OnceLock<Vec<u8>> = OnceLock::new();
    static Q4K: OnceLock<Vec<u8>> = OnceLock::new();
    static Q6K: OnceLock<Vec<u8>> = OnceLock::new();
    let cell = match dtype {
        DType::BF16 => &BF16,
        DType::Q8_0 => &Q8_0,
        DType::Q4K => &Q4K,
        _ => &Q6K,
    };
    cell.get_or_init(|| {
        let mut state = dtype.ggml_id().into();
        let block_bytes = dtype.block_bytes();
        let mut all = vec![0; POOL_BYTES / block_bytes * block_bytes];
        for block in all.chunks_exact_mut(block_bytes) {
            fill(dtype, block, &mut state);
        }
        all
    })
}

fn fill(dtype: DType, block: &mut [u8], state: &mut u64) {
    if dtype == DType::BF16 {
        let value = bf16::from_f32(0.03 * uniform(state));
        return block.copy_from_slice(&value.to_le_bytes());
    }
    for bytes in block.chunks_mut(4) {
        let noise = uniform(state).to_bits().wrapping_mul(0x9E37_79B9);
        bytes.copy_from_slice(&noise.to_be_bytes()[..bytes.len()]);
    }
    // Where the f16 scales lie in a block, and how large they make values.
    let scales: &[(usize, f32)] = match dtype {
        DType::Q8_0 => &[(0, 2e-4)],
        DType::Q4K => &[(0, 3e-5), (2, 2e-4)],
        _ => &[(208, 1e-5)],
    };
    for (at, scale) in scales {
        block[*at..at + 2].copy_from_slice(&f16::from_f32(*scale).to_le_bytes());
    }
}

impl RandomModel {
    /// Its sizes.
    pub fn config(&self) -> Result<ModelConfig, ConfigError> {
        ModelConfig::from_hf(&self.config)
    }

    /// The model on the device that `ops` runs on.
    pub fn load<O: Ops>(&self, ops: O, options: LoadOptions) -> Result<Decoder<O>, LoadError> {
        Decoder::load(ops, self.config()?, self, &options)
    }

    /// llama.cpp's choice for `Q4_K_M`.
    fn takes_more_bits(&self, part: &str, layer: usize) -> bool {
        let eighth = self.sizes.num_layers / 8;
        let is_among =
            layer < eighth || layer >= 7 * self.sizes.num_layers / 8 || (layer - eighth) % 3 == 2;
        is_among && (part.starts_with("attn_v") || part.starts_with("ffn_down"))
    }

    fn dtype(&self, name: &str) -> DType {
        let is_head = name == "output.weight" || (self.sizes.is_tied && name.starts_with("token"));
        let more = name.strip_prefix("blk.").and_then(|name| {
            let (layer, part) = name.split_once('.')?;
            Some(self.takes_more_bits(part, layer.parse().ok()?))
        });
        match self.storage {
            Storage::Bf16 => DType::BF16,
            Storage::Q8_0 => DType::Q8_0,
            Storage::Q4KM if is_head || more == Some(true) => DType::Q6K,
            Storage::Q4KM => DType::Q4K,
        }
    }

    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        let s = self.sizes;
        let head_dim = s.hidden_size / s.num_heads;
        let (q, kv) = (s.num_heads * head_dim, s.num_kv_heads * head_dim);
        let part = match name.strip_prefix("blk.") {
            Some(rest) => rest.split_once('.')?.1,
            None => name,
        };
        let has_bias = s.has_bias;
        Some(match part {
            "token_embd.weight" => vec![s.vocab_size, s.hidden_size],
            "output.weight" if !s.is_tied => vec![s.vocab_size, s.hidden_size],
            "output_norm.weight" | "attn_norm.weight" | "ffn_norm.weight" => vec![s.hidden_size],
            "attn_q.weight" => vec![q, s.hidden_size],
            "attn_k.weight" | "attn_v.weight" => vec![kv, s.hidden_size],
            "attn_q.bias" if has_bias => vec![q],
            "attn_k.bias" | "attn_v.bias" if has_bias => vec![kv],
            "attn_output.weight" => vec![s.hidden_size, q],
            "ffn_gate.weight" | "ffn_up.weight" => vec![s.intermediate_size, s.hidden_size],
            "ffn_down.weight" => vec![s.hidden_size, s.intermediate_size],
            _ => return None,
        })
    }
}

impl WeightSource for RandomModel {
    fn tensor(&self, name: &str) -> Result<Option<RawTensor<'_>>, LoadError> {
        let Some(shape) = self.shape(name) else {
            return Ok(None);
        };
        if let [width] = shape[..] {
            let value: f32 = if name.ends_with("bias") { 0.01 } else { 1.0 };
            let data = value.to_le_bytes().repeat(width);
            return Ok(Some(RawTensor {
                dtype: DType::F32,
                shape,
                data: Cow::Owned(data),
            }));
        }
        let dtype = self.dtype(name);
        let unsupported = || LoadError::UnsupportedType {
            name: name.to_owned(),
            dtype: dtype.name().to_owned(),
        };
        let nbytes = dtype.byte_count(shape.iter().product());
        let nbytes = nbytes.ok_or_else(unsupported)?;
        let pool = pool(dtype);
        let start: usize = name.bytes().map(usize::from).sum::<usize>() * POOL_STEP;
        let start = start * dtype.block_bytes() % pool.len();
        let mut data = Vec::with_capacity(nbytes);
        data.extend_from_slice(&pool[start..][..nbytes.min(pool.len() - start)]);
        while data.len() < nbytes {
            let rest = nbytes - data.len();
            data.extend_from_slice(&pool[..rest.min(pool.len())]);
        }
        Ok(Some(RawTensor {
            dtype,
            shape,
            data: Cow::Owned(data),
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_tensor_of_every_shape_is_there() {
        for name in ["0.5b:bf16", "0.5b:q8_0", "1.5b:q4_k_m", "8b:q4_k_m"] {
            let model: RandomModel = name.parse().unwrap();
            let config = model.config().unwrap();
            assert_eq!(config.num_layers, model.sizes.num_layers);
            let q = model.tensor("blk.0.attn_q.weight").unwrap().unwrap();
            let finite = crate::model::finite::is_finite(q.dtype, &q.data);
            assert!(finite, "{name}");
            assert_eq!(
                Some(q.data.len()),
                q.dtype.byte_count(q.shape.iter().product())
            );
        }
        assert!("0.5b:q4_k_m".parse::<RandomModel>().is_err());
        assert!("7b:bf16".parse::<RandomModel>().is_err());
    }
}
