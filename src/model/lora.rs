//! Low-rank adapters (LoRA, <https://arxiv.org/abs/2106.09685>) in PEFT's format: a folder with
//! `adapter_config.json` and `adapter_model.safetensors`.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::path::Path;

use ponder_kernels::reference;
use safetensors::SafeTensors;
use serde::Deserialize;
use xxhash_rust::xxh3::xxh3_128;

use super::config::ModelConfig;
use super::files::{MAX_ADAPTER_BYTES, MAX_JSON_BYTES, read_bounded};
use super::safetensors::dtype_of;

const CONFIG_FILE: &str = "adapter_config.json";
const WEIGHTS_FILE: &str = "adapter_model.safetensors";
/// Largest rank: above it an adapter costs as much as the layer it adapts.
const MAX_RANK: usize = 512;

/// Largest weight, with the scale in it: the largest number that half precision holds. Trained ones are below ten.
const MAX_WEIGHT: f32 = 65_504.0;

/// Why a folder is not an adapter for this model.
#[derive(Debug, thiserror::Error)]
pub enum LoraError {
    #[error("{file}: {message}")]
    Read { file: String, message: String },
    #[error("the adapter is {0}, which is not supported; plain LoRA is")]
    Unsupported(String),
    #[error(
        "the adapter changes {0}, which is not supported; the projections of attention and MLP are"
    )]
    Target(String),
    #[error("{name} is {actual:?}; this model needs {expected:?}")]
    Shape {
        name: String,
        actual: Vec<usize>,
        expected: Vec<usize>,
    },
    #[error("the adapter has {0} without its other half")]
    Half(String),
    #[error("{name}: {message}")]
    Values { name: String, message: String },
    #[error("the adapter has no weights")]
    Empty,
}

/// A matrix of a layer that an adapter may change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Target {
    Q,
    K,
    V,
    Output,
    Gate,
    Up,
    Down,
}

impl Target {
    pub const ALL: [Self; 7] = [
        Self::Q,
        Self::K,
        Self::V,
        Self::Output,
        Self::Gate,
        Self::Up,
        Self::Down,
    ];

    /// The module's name in Hugging Face models.
    fn module(self) -> &'static str {
        match self {
            Self::Q => "self_attn.q_proj",
            Self::K => "self_attn.k_proj",
            Self::V => "self_attn.v_proj",
            Self::Output => "self_attn.o_proj",
            Self::Gate => "mlp.gate_proj",
            Self::Up => "mlp.up_proj",
            Self::Down => "mlp.down_proj",
        }
    }

    /// `[out_features, in_features]`
    pub(super) fn shape(self, config: &ModelConfig) -> (usize, usize) {
        let (hidden, inner) = (config.hidden_size, config.intermediate_size);
        let kv = config.num_kv_heads * config.head_dim;
        let q = config.num_heads * config.head_dim;
        match self {
            Self::Q => (q, hidden),
            Self::K | Self::V => (kv, hidden),
            Self::Output => {
                let values = config
                    .mla
                    .as_ref()
                    .map_or(config.head_dim, |mla| mla.v_head_dim);
                (hidden, config.num_heads * values)
            }
            Self::Gate | Self::Up => (inner, hidden),
            Self::Down => (hidden, inner),
        }
    }
}

/// What an adapter adds to one matrix: `b · a`, the scale in `b` already.
#[derive(Debug, Clone, PartialEq)]
pub struct LowRank {
    pub rank: usize,
    pub out_features: usize,
    pub in_features: usize,
    /// `[rank, in_features]`
    pub a: Vec<f32>,
    /// `[out_features, rank]`
    pub b: Vec<f32>,
}

/// An adapter that fits a model.
#[derive(Debug, Clone, PartialEq)]
pub struct LoraAdapter {
    /// By layer; targets that it does not change are absent.
    pub layers: Vec<BTreeMap<Target, LowRank>>,
}

/// The fields of PEFT's `LoraConfig` that matter to inference.
#[derive(Debug, Deserialize)]
struct Config {
    peft_type: String,
    r: usize,
    lora_alpha: f64,
    #[serde(default)]
    use_rslora: bool,
    #[serde(default)]
    use_dora: bool,
    #[serde(default)]
    fan_in_fan_out: bool,
    bias: Option<String>,
    modules_to_save: Option<Vec<String>>,
    #[serde(default)]
    rank_pattern: BTreeMap<String, usize>,
    #[serde(default)]
    alpha_pattern: BTreeMap<String, f64>,
}

impl Config {
    fn check(&self) -> Result<(), LoraError> {
        let refuse = |what: &str| Err(LoraError::Unsupported(what.to_owned()));
        if self.peft_type != "LORA" {
            return refuse(&self.peft_type);
        }
        if self.use_dora {
            return refuse("DoRA");
        }
        if self.fan_in_fan_out {
            return refuse("stored with fan_in_fan_out");
        }
        if self.bias.as_deref().is_some_and(|bias| bias != "none") {
            return refuse("one with biases");
        }
        let alphas = self.alpha_pattern.values().chain([&self.lora_alpha]);
        if let Some(alpha) = alphas.copied().find(|alpha| !alpha.is_finite()) {
            return refuse(&format!("one of alpha {alpha}"));
        }
        if self.r == 0 || self.rank_pattern.values().any(|rank| *rank == 0) {
            return refuse("one of rank 0");
        }
        if let Some(module) = self.modules_to_save.iter().flatten().next() {
            return Err(LoraError::Target(module.clone()));
        }
        Ok(())
    }

    /// `alpha / r`, or `alpha / sqrt(r)` (rsLoRA), of one module.
    fn scale(&self, module: &str, rank: usize) -> f64 {
        // PEFT matches a pattern's key with the end of the module's path.
        let own = self
            .alpha_pattern
            .iter()
            .find(|(key, _)| module == key.as_str() || module.ends_with(&format!(".{key}")));
        let alpha = own.map_or(self.lora_alpha, |(_, alpha)| *alpha);
        match self.use_rslora {
            true => alpha / (rank as f64).sqrt(),
            false => alpha / rank as f64,
        }
    }
}

/// One half of a [`LowRank`].
struct Half {
    shape: Vec<usize>,
    values: Vec<f32>,
}

impl LoraAdapter {
    /// Reads a folder and checks that it fits the model.
    pub fn read(folder: &Path, config: &ModelConfig) -> Result<Self, LoraError> {
        Ok(Self::read_hashed(folder, config)?.0)
    }

    /// [`Self::read`], with a hash of the weights' bytes.
    pub fn read_hashed(folder: &Path, config: &ModelConfig) -> Result<(Self, u128), LoraError> {
        let file = |name: &str, max_bytes: u64| {
            let path = folder.join(name);
            read_bounded(&path, max_bytes).map_err(|error| LoraError::Read {
                file: path.display().to_string(),
                message: error.to_string(),
            })
        };
        let weights = file(WEIGHTS_FILE, MAX_ADAPTER_BYTES)?;
        let adapter = Self::parse(&file(CONFIG_FILE, MAX_JSON_BYTES)?, &weights, config)?;
        Ok((adapter, xxh3_128(&weights)))
    }

    /// The same from the contents of the two files.
    pub fn parse(json: &[u8], weights: &[u8], config: &ModelConfig) -> Result<Self, LoraError> {
        let failed = |file: &str, message: String| LoraError::Read {
            file: file.to_owned(),
            message,
        };
        let lora: Config =
            serde_json::from_slice(json).map_err(|error| failed(CONFIG_FILE, error.to_string()))?;
        lora.check()?;
        let tensors = SafeTensors::deserialize(weights)
            .map_err(|error| failed(WEIGHTS_FILE, error.to_string()))?;
        let mut halves: BTreeMap<(usize, Target), [Option<Half>; 2]> = BTreeMap::new();
        for (name, view) in tensors.iter() {
            let (layer, target, half) =
                place(name, config).ok_or_else(|| LoraError::Target(name.to_owned()))?;
            let dtype = dtype_of(view.dtype()).ok_or_else(|| {
                failed(WEIGHTS_FILE, format!("{name} has type {:?}", view.dtype()))
            })?;
            let mut values = vec![0.0; view.shape().iter().product()];
            reference::dequantize(dtype, view.data(), &mut values);
            let shape = view.shape().to_vec();
            halves.entry((layer, target)).or_default()[half] = Some(Half { shape, values });
        }
        if halves.is_empty() {
            return Err(LoraError::Empty);
        }
        let mut layers = vec![BTreeMap::new(); config.num_layers];
        for ((layer, target), halves) in halves {
            let low_rank = join(&lora, config, (layer, target), halves)?;
            layers[layer].insert(target, low_rank);
        }
        Ok(Self { layers })
    }
}

/// Layer, target and half (0: A, 1: B) of a tensor's name.
fn place(name: &str, config: &ModelConfig) -> Option<(usize, Target, usize)> {
    let (_, rest) = name.split_once("layers.")?;
    let (layer, rest) = rest.split_once('.')?;
    let (module, half) = rest.split_once(".lora_")?;
    let half = match half {
        "A.weight" | "A.default.weight" => 0,
        "B.weight" | "B.default.weight" => 1,
        _ => return None,
    };
    let is_there = |target: &Target| match target {
        Target::Q | Target::K | Target::V => config.mla.is_none(),
        Target::Output => true,
        Target::Gate | Target::Up | Target::Down => config.moe.is_none(),
    };
    let target = Target::ALL.into_iter().find(|t| t.module() == module);
    let target = target.filter(is_there)?;
    let layer = layer
        .parse()
        .ok()
        .filter(|layer| *layer < config.num_layers)?;
    Some((layer, target, half))
}

fn join(
    lora: &Config,
    config: &ModelConfig,
    (layer, target): (usize, Target),
    [a, b]: [Option<Half>; 2],
) -> Result<LowRank, LoraError> {
    let module = format!("model.layers.{layer}.{}", target.module());
    let (Some(a), Some(b)) = (a, b) else {
        return Err(LoraError::Half(module));
    };
    let (out_features, in_features) = target.shape(config);
    let of_pattern = lora
        .rank_pattern
        .iter()
        .find(|(key, _)| module.ends_with(&format!(".{key}")));
    let named = of_pattern.map_or(lora.r, |(_, rank)| *rank);
    // The weights know the rank; the configuration must agree, since the scale depends on it.
    let rank = a.shape.first().copied().unwrap_or(0);
    for (half, expected) in [(&a, [named, in_features]), (&b, [out_features, named])] {
        if half.shape != expected || !(1..=MAX_RANK).contains(&rank) {
            return Err(LoraError::Shape {
                name: module,
                actual: half.shape.clone(),
                expected: expected.to_vec(),
            });
        }
    }
    let scale = lora.scale(&module, rank) as f32;
    let mut b: Vec<f32> = b.values.iter().map(|value| value * scale).collect();
    for (half, values) in [("A", &a.values), ("B, scaled,", &b)] {
        if let Some(value) = values.iter().find(|v| v.is_nan() || v.abs() > MAX_WEIGHT) {
            return Err(LoraError::Values {
                name: module,
                message: format!("{half} holds {value}; a weight is {MAX_WEIGHT} at most"),
            });
        }
    }
    let is_reordered = config.rope.adjacent_pairs && !config.family.adjacent_pairs.hf;
    if matches!(target, Target::Q | Target::K) && is_reordered {
        b = adjacent_pairs(&b, config.head_dim, rank);
    }
    Ok(LowRank {
        rank,
        out_features,
        in_features,
        a: a.values,
        b,
    })
}

/// GGUF files of llama models hold the rows of Q and K in another order than Hugging Face does: the two halves of a
/// head interleaved, so that what is rotated together lies side by side.
fn adjacent_pairs(rows: &[f32], head_dim: usize, width: usize) -> Vec<f32> {
    let mut ordered = vec![0.0; rows.len()];
    for (index, row) in rows.chunks_exact(width).enumerate() {
        let (head, at) = (index / head_dim, index % head_dim);
        let half = head_dim / 2;
        let to = head * head_dim + (at % half) * 2 + at / half;
        ordered[to * width..(to + 1) * width].copy_from_slice(row);
    }
    ordered
}
