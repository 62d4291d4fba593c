//! The sizes and variants of a model, read from GGUF metadata or a Hugging Face `config.json`.

use serde_json::Value;

use super::gguf::GgufFile;

/// Decoder families that the native engine runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Architecture {
    Llama,
    Qwen2,
    Qwen3,
    Gemma3,
}

impl Architecture {
    pub const SUPPORTED: &'static str = "llama, qwen2, qwen3, gemma3";

    fn from_name(name: &str) -> Result<Self, ConfigError> {
        match name {
            "llama" => Ok(Self::Llama),
            "qwen2" => Ok(Self::Qwen2),
            "qwen3" => Ok(Self::Qwen3),
            "gemma3" | "gemma3_text" => Ok(Self::Gemma3),
            _ => Err(ConfigError::UnsupportedArchitecture(name.to_owned())),
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::Llama => "llama",
            Self::Qwen2 => "qwen2",
            Self::Qwen3 => "qwen3",
            Self::Gemma3 => "gemma3",
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("architecture {0:?} is not supported (the native engine has {list})", list = Architecture::SUPPORTED)]
    UnsupportedArchitecture(String),
    #[error("the model's configuration lacks {0:?}")]
    Missing(String),
    #[error("the model's configuration is inconsistent: {0}")]
    Invalid(String),
    #[error("RoPE scaling {0:?} is not supported (linear and llama3 are)")]
    UnsupportedRopeScaling(String),
}

/// Everything but the weights.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelConfig {
    pub architecture: Architecture,
    pub vocab_size: usize,
    pub hidden_size: usize,
    pub intermediate_size: usize,
    pub num_layers: usize,
    pub num_heads: usize,
    pub num_kv_heads: usize,
    pub head_dim: usize,
    pub max_position_embeddings: usize,
    pub rms_norm_eps: f32,
    pub rope_theta: f32,
    /// Positions are divided by this (linear scaling).
    pub rope_linear_scale: f32,
    /// Per-frequency divisors (llama 3).
    pub rope_freq_factors: Option<Vec<f32>>,
    pub sliding_window: Option<usize>,
    /// Multiplies q·k.
    pub attention_scale: f32,
    pub attention_softcap: Option<f32>,
    pub final_softcap: Option<f32>,
    /// Q and K rows are stored for adjacent-pair rotation (llama weights in GGUF files).
    pub rope_adjacent_pairs: bool,
}

impl ModelConfig {
    pub fn from_gguf(file: &GgufFile) -> Result<Self, ConfigError> {
        let metadata = file.metadata();
        let missing = |key: &str| ConfigError::Missing(key.to_owned());
        let name = metadata
            .get_str("general.architecture")
            .ok_or_else(|| missing("general.architecture"))?;
        let architecture = Architecture::from_name(name)?;
        let key = |part: &str| format!("{name}.{part}");
        let size = |part: &str| {
            let value = metadata.get_u32(&key(part)).map(|value| value as usize);
            value.ok_or_else(|| ConfigError::Missing(key(part)))
        };
        let num_heads = size("attention.head_count")?;
        let hidden_size = size("embedding_length")?;
        let head_dim = size("attention.key_length")
            .ok()
            .or_else(|| hidden_size.checked_div(num_heads))
            .unwrap_or(0);
        let (embeddings, _) = file
            .tensor("token_embd.weight")
            .ok_or_else(|| missing("token_embd.weight"))?;
        let scaling = metadata
            .get_str(&key("rope.scaling.type"))
            .unwrap_or("none");
        let rope_linear_scale = match scaling {
            "none" => 1.0,
            "linear" => metadata.get_f32(&key("rope.scaling.factor")).unwrap_or(1.0),
            other => return Err(ConfigError::UnsupportedRopeScaling(other.to_owned())),
        };
        let rope_freq_factors = file.tensor("rope_freqs.weight").map(|(info, data)| {
            let mut factors = vec![0.0; info.dimensions.iter().product()];
            ponder_kernels::reference::dequantize(info.dtype, data, &mut factors);
            factors
        });
        let num_layers = size("block_count")?;
        let config = Self {
            architecture,
            vocab_size: embeddings.dimensions.get(1).copied().unwrap_or(0),
            hidden_size,
            intermediate_size: size("feed_forward_length")?,
            num_layers,
            num_heads,
            num_kv_heads: size("attention.head_count_kv").unwrap_or(num_heads),
            head_dim,
            max_position_embeddings: size("context_length")?,
            rms_norm_eps: metadata
                .get_f32(&key("attention.layer_norm_rms_epsilon"))
                .ok_or_else(|| missing("attention.layer_norm_rms_epsilon"))?,
            rope_theta: metadata.get_f32(&key("rope.freq_base")).unwrap_or(10_000.0),
            rope_linear_scale,
            rope_freq_factors,
            sliding_window: size("attention.sliding_window").ok(),
            attention_scale: attention_scale(
                architecture,
                num_layers,
                hidden_size,
                num_heads,
                head_dim,
            ),
            attention_softcap: metadata.get_f32(&key("attn_logit_softcapping")),
            final_softcap: metadata.get_f32(&key("final_logit_softcapping")),
            rope_adjacent_pairs: architecture == Architecture::Llama,
        };
        config.checked()
    }

    /// Reads `config.json`; multimodal files nest the text model under `text_config`.
    pub fn from_hf(json: &Value) -> Result<Self, ConfigError> {
        let json = json.get("text_config").unwrap_or(json);
        let size = |key: &str| {
            let value = json.get(key).and_then(Value::as_u64);
            value.and_then(|value| usize::try_from(value).ok())
        };
        let need = |key: &str| size(key).ok_or_else(|| ConfigError::Missing(key.to_owned()));
        let number = |key: &str| {
            json.get(key)
                .and_then(Value::as_f64)
                .map(|value| value as f32)
        };
        let model_type = json
            .get("model_type")
            .and_then(Value::as_str)
            .unwrap_or_default();
        let architecture = Architecture::from_name(model_type)?;
        let num_heads = need("num_attention_heads")?;
        let hidden_size = need("hidden_size")?;
        let head_dim = size("head_dim")
            .or_else(|| hidden_size.checked_div(num_heads))
            .unwrap_or(0);
        let num_layers = need("num_hidden_layers")?;
        let rope_theta = number("rope_theta").unwrap_or(10_000.0);
        let (rope_linear_scale, rope_freq_factors) =
            hf_rope_scaling(json.get("rope_scaling"), head_dim, rope_theta)?;
        let config = Self {
            architecture,
            vocab_size: need("vocab_size")?,
            hidden_size,
            intermediate_size: need("intermediate_size")?,
            num_layers,
            num_heads,
            num_kv_heads: size("num_key_value_heads").unwrap_or(num_heads),
            head_dim,
            max_position_embeddings: need("max_position_embeddings")?,
            rms_norm_eps: number("rms_norm_eps").unwrap_or(1e-6),
            rope_theta,
            rope_linear_scale,
            rope_freq_factors,
            sliding_window: size("sliding_window"),
            attention_scale: match number("query_pre_attn_scalar") {
                Some(scalar) if architecture == Architecture::Gemma3 => 1.0 / scalar.sqrt(),
                _ => 1.0 / (head_dim as f32).sqrt(),
            },
            attention_softcap: number("attn_logit_softcapping"),
            final_softcap: number("final_logit_softcapping"),
            rope_adjacent_pairs: false,
        };
        config.checked()
    }

    fn checked(self) -> Result<Self, ConfigError> {
        let invalid = |text: String| Err(ConfigError::Invalid(text));
        let sizes = [
            ("vocab_size", self.vocab_size),
            ("hidden_size", self.hidden_size),
            ("intermediate_size", self.intermediate_size),
            ("num_layers", self.num_layers),
            ("num_heads", self.num_heads),
            ("num_kv_heads", self.num_kv_heads),
            ("head_dim", self.head_dim),
            ("context length", self.max_position_embeddings),
        ];
        for (name, value) in sizes {
            if value == 0 || value > 1 << 28 {
                return invalid(format!("{name} is {value}"));
            }
        }
        if self.num_layers > 1024 {
            return invalid(format!("{} layers", self.num_layers));
        }
        if !self.num_heads.is_multiple_of(self.num_kv_heads) {
            return invalid(format!(
                "{} heads do not divide into {} KV heads",
                self.num_heads, self.num_kv_heads
            ));
        }
        if !self.head_dim.is_multiple_of(2) {
            return invalid(format!("head_dim {} is odd", self.head_dim));
        }
        let factors = self.rope_freq_factors.as_ref().map(Vec::len);
        if factors.is_some_and(|len| len < self.head_dim / 2) {
            return invalid("too few RoPE frequency factors".to_owned());
        }
        Ok(self)
    }
}

/// Gemma 3's 27B scales by the hidden size per head, every other model by the head size.
fn attention_scale(
    architecture: Architecture,
    num_layers: usize,
    hidden_size: usize,
    num_heads: usize,
    head_dim: usize,
) -> f32 {
    const GEMMA3_27B_LAYERS: usize = 62;
    let width = match architecture {
        Architecture::Gemma3 if num_layers == GEMMA3_27B_LAYERS => hidden_size / num_heads.max(1),
        _ => head_dim,
    };
    1.0 / (width.max(1) as f32).sqrt()
}

type RopeScaling = (f32, Option<Vec<f32>>);

fn hf_rope_scaling(
    scaling: Option<&Value>,
    head_dim: usize,
    theta: f32,
) -> Result<RopeScaling, ConfigError> {
    let Some(scaling) = scaling.filter(|scaling| scaling.is_object()) else {
        return Ok((1.0, None));
    };
    let number = |key: &str| {
        let value = scaling.get(key).and_then(Value::as_f64);
        value.ok_or_else(|| ConfigError::Missing(format!("rope_scaling.{key}")))
    };
    let kind = scaling
        .get("rope_type")
        .or_else(|| scaling.get("type"))
        .and_then(Value::as_str)
        .unwrap_or("default");
    match kind {
        "default" => Ok((1.0, None)),
        "linear" => Ok((number("factor")? as f32, None)),
        "llama3" => {
            let (factor, low, high) = (
                number("factor")?,
                number("low_freq_factor")?,
                number("high_freq_factor")?,
            );
            let original = number("original_max_position_embeddings")?;
            let factors = (0..head_dim / 2)
                .map(|i| llama3_factor(i, head_dim, theta, factor, low, high, original) as f32)
                .collect();
            Ok((1.0, Some(factors)))
        }
        other => Err(ConfigError::UnsupportedRopeScaling(other.to_owned())),
    }
}

/// Long wavelengths are stretched by `factor`, short ones kept, those between blended (the rule of
/// transformers' `_compute_llama3_parameters`).
fn llama3_factor(
    index: usize,
    head_dim: usize,
    theta: f32,
    factor: f64,
    low: f64,
    high: f64,
    original: f64,
) -> f64 {
    let frequency = f64::from(theta).powf(-2.0 * index as f64 / head_dim as f64);
    let wavelength = 2.0 * std::f64::consts::PI / frequency;
    if wavelength < original / high {
        1.0
    } else if wavelength > original / low {
        factor
    } else {
        let smooth = (original / wavelength - low) / (high - low);
        1.0 / ((1.0 - smooth) / factor + smooth)
    }
}
