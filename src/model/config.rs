//! The sizes and variants of a model, read from GGUF metadata or a Hugging Face `config.json`.

use ponder_kernels::AttentionParams;
use serde_json::Value;

use super::claims;
use super::families::{AttentionSizes, Bias, Family};
use super::fields::{GgufFields, HfFields};
use super::gguf::GgufFile;
use super::mla::MlaConfig;
use super::moe::MoeConfig;
use super::ops::Needs;
use super::rope_config::{Heads, RopeConfig};

#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("architecture {0:?} is not supported (the native engine has {list})", list = Family::supported())]
    UnsupportedArchitecture(String),
    #[error("the model's configuration lacks {0:?}")]
    Missing(String),
    #[error("the model's configuration is inconsistent: {0}")]
    Invalid(String),
    #[error("the model has {0}, which is not supported")]
    Unsupported(String),
    #[error("RoPE scaling {0:?} is not supported (linear, llama3, longrope and yarn are)")]
    UnsupportedRopeScaling(String),
}

/// Longest context that a model may claim; the longest known is 10,485,760.
const MAX_CONTEXT: usize = 1 << 24;
/// Most layers of a model.
pub(super) const MAX_LAYERS: usize = 1024;

/// Everything but the weights.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelConfig {
    pub family: &'static Family,
    pub vocab_size: usize,
    pub hidden_size: usize,
    pub intermediate_size: usize,
    pub num_layers: usize,
    pub num_heads: usize,
    pub num_kv_heads: usize,
    pub head_dim: usize,
    pub max_position_embeddings: usize,
    pub rms_norm_eps: f32,
    pub rope: RopeConfig,
    /// Q, K and V have biases.
    pub qkv_bias: bool,
    pub sliding_window: Option<usize>,
    /// Multiplies q·k.
    pub attention_scale: f32,
    pub attention_softcap: Option<f32>,
    pub final_softcap: Option<f32>,
    /// Of models with mixture-of-experts layers.
    pub moe: Option<MoeConfig>,
    /// Of models whose attention reads a latent vector.
    pub mla: Option<MlaConfig>,
    /// Multiplies embeddings (Gemma, Granite).
    pub embedding_scale: f32,
    /// Multiplies what a sub-layer adds to the residual stream (Granite).
    pub residual_scale: f32,
    /// Divides the logits (Granite).
    pub logits_divisor: f32,
}

impl ModelConfig {
    /// What a layer's attention computes; `is_local`: it sees a window.
    pub(super) fn attention_params(&self, is_local: bool) -> AttentionParams {
        AttentionParams {
            num_heads: self.num_heads,
            num_kv_heads: self.num_kv_heads,
            head_dim: self.head_dim,
            scale: self.attention_scale,
            sliding_window: self.sliding_window.filter(|_| is_local),
            softcap: self.attention_softcap,
        }
    }

    pub fn from_gguf(file: &GgufFile) -> Result<Self, ConfigError> {
        let metadata = file.metadata();
        let missing = |key: &str| ConfigError::Missing(key.to_owned());
        let name = metadata
            .get_str("general.architecture")
            .ok_or_else(|| missing("general.architecture"))?;
        let fields = GgufFields { metadata, name };
        let num_experts = fields.size("expert_count")?;
        let family = Family::of_gguf(name, num_experts.is_some_and(|count| count > 0));
        let family = family.ok_or_else(|| ConfigError::UnsupportedArchitecture(name.to_owned()))?;
        let num_heads = fields.need_size("attention.head_count")?;
        let hidden_size = fields.need_size("embedding_length")?;
        let head_dim = fields
            .size("attention.key_length")?
            .or_else(|| hidden_size.checked_div(num_heads))
            .unwrap_or(0);
        let (embeddings, _) = file
            .tensor("token_embd.weight")
            .ok_or_else(|| missing("token_embd.weight"))?;
        let mla = MlaConfig::from_gguf(metadata, name, family)?;
        let head_dim = mla.as_ref().map_or(head_dim, MlaConfig::head_dim);
        let num_layers = fields.need_size("block_count")?;
        let heads = Heads {
            num_layers,
            head_dim,
            mla: mla.as_ref(),
        };
        let (rope, score_scale) = RopeConfig::from_gguf(file, name, family, heads)?;
        let sizes = AttentionSizes {
            num_layers,
            hidden_size,
            num_heads,
            head_dim,
        };
        let config = Self {
            family,
            vocab_size: embeddings.dimensions.get(1).copied().unwrap_or(0),
            hidden_size,
            intermediate_size: fields.need_size("feed_forward_length")?,
            num_layers,
            num_heads,
            num_kv_heads: match mla {
                Some(_) => num_heads,
                None => fields.size("attention.head_count_kv")?.unwrap_or(num_heads),
            },
            head_dim,
            max_position_embeddings: fields.need_size("context_length")?,
            rms_norm_eps: fields
                .number("attention.layer_norm_rms_epsilon")?
                .ok_or_else(|| missing("attention.layer_norm_rms_epsilon"))?,
            rope,
            qkv_bias: match family.qkv_bias {
                Bias::Never => false,
                Bias::Always => true,
                Bias::Stored => ["attn_q", "attn_qkv"]
                    .iter()
                    .any(|part| file.tensor(&format!("blk.0.{part}.bias")).is_some()),
            },
            sliding_window: fields
                .size("attention.sliding_window")?
                .filter(|window| *window > 0),
            attention_scale: score_scale
                * fields
                    .number("attention.scale")?
                    .unwrap_or_else(|| (family.attention_scale.gguf)(&sizes)),
            attention_softcap: fields.number("attn_logit_softcapping")?,
            final_softcap: fields.number("final_logit_softcapping")?,
            moe: MoeConfig::from_gguf(file, name, family)?,
            mla,
            embedding_scale: fields
                .number("embedding_scale")?
                .unwrap_or_else(|| family.embedding_scale(hidden_size)),
            residual_scale: fields.number("residual_scale")?.unwrap_or(1.0),
            logits_divisor: fields.number("logit_scale")?.unwrap_or(1.0),
        };
        claims::check_gguf(fields, &config)?;
        config.checked()
    }

    /// Reads `config.json`; multimodal files nest the text model under `text_config`.
    pub fn from_hf(json: &Value) -> Result<Self, ConfigError> {
        let json = json.get("text_config").unwrap_or(json);
        let fields = HfFields(json);
        let model_type = json
            .get("model_type")
            .and_then(Value::as_str)
            .unwrap_or_default();
        let family = Family::of_hf(model_type)
            .ok_or_else(|| ConfigError::UnsupportedArchitecture(model_type.to_owned()))?;
        claims::check_hf(json, family)?;
        let num_heads = fields.need_size("num_attention_heads")?;
        let hidden_size = fields.need_size("hidden_size")?;
        let head_dim = fields
            .size("head_dim")?
            .or_else(|| hidden_size.checked_div(num_heads))
            .unwrap_or(0);
        let num_layers = fields.need_size("num_hidden_layers")?;
        let mla = MlaConfig::from_hf(json, family)?;
        let head_dim = mla.as_ref().map_or(head_dim, MlaConfig::head_dim);
        let heads = Heads {
            num_layers,
            head_dim,
            mla: mla.as_ref(),
        };
        let (rope, score_scale) = RopeConfig::from_hf(json, family, heads)?;
        let config = Self {
            family,
            vocab_size: fields.need_size("vocab_size")?,
            hidden_size,
            intermediate_size: fields.need_size("intermediate_size")?,
            num_layers,
            num_heads,
            num_kv_heads: match mla {
                Some(_) => num_heads,
                None => fields.size("num_key_value_heads")?.unwrap_or(num_heads),
            },
            head_dim,
            max_position_embeddings: fields.need_size("max_position_embeddings")?,
            rms_norm_eps: fields.number("rms_norm_eps")?.unwrap_or(1e-6),
            rope,
            qkv_bias: match family.qkv_bias {
                Bias::Never => false,
                Bias::Always => true,
                Bias::Stored => fields.flag("attention_bias")?.unwrap_or(false),
            },
            sliding_window: fields.size("sliding_window")?.filter(|window| *window > 0),
            attention_scale: score_scale * (family.attention_scale.hf)(json, head_dim),
            attention_softcap: fields.number("attn_logit_softcapping")?,
            final_softcap: fields.number("final_logit_softcapping")?,
            moe: MoeConfig::from_hf(json, family)?,
            mla,
            embedding_scale: fields
                .number("embedding_multiplier")?
                .unwrap_or_else(|| family.embedding_scale(hidden_size)),
            residual_scale: fields.number("residual_multiplier")?.unwrap_or(1.0),
            logits_divisor: fields.number("logits_scaling")?.unwrap_or(1.0),
        };
        config.checked()
    }

    /// What the model asks of a device.
    pub(super) fn needs(&self) -> Needs {
        let family = self.family;
        Needs {
            attention_sinks: family.attention_sinks,
            expert_biases: family.experts.is_some_and(|experts| experts.has_biases),
        }
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
        if self.max_position_embeddings > MAX_CONTEXT {
            return invalid(format!("a context of {}", self.max_position_embeddings));
        }
        if self.num_layers > MAX_LAYERS {
            return invalid(format!("{} layers", self.num_layers));
        }
        if !self.num_heads.is_multiple_of(self.num_kv_heads) {
            return invalid(format!(
                "{} heads do not divide into {} KV heads",
                self.num_heads, self.num_kv_heads
            ));
        }
        if self.family.experts.is_some() != self.moe.is_some() {
            return invalid(format!("{} and experts", self.family.name));
        }
        claims::check_numbers(&self)?;
        if !self.head_dim.is_multiple_of(2) {
            return invalid(format!("head_dim {} is odd", self.head_dim));
        }
        let rotary_dim = self.rope.rotary_dim;
        if !rotary_dim.is_multiple_of(2) || !(1..=self.head_dim).contains(&rotary_dim) {
            let head_dim = self.head_dim;
            return invalid(format!("rotation of {rotary_dim} of {head_dim} elements"));
        }
        let factors = self.rope.all_factors();
        if factors.iter().flatten().any(|f| f.len() < rotary_dim / 2) {
            return invalid("too few RoPE frequency factors".to_owned());
        }
        Ok(self)
    }
}
