//! The sizes and variants of a model, read from GGUF metadata or a Hugging Face `config.json`.

use ponder_kernels::RopeKind;
use serde_json::Value;

use super::claims;
use super::families::{AttentionSizes, Family};
use super::fields::{GgufFields, HfFields};
use super::gguf::GgufFile;
use super::mla::MlaConfig;
use super::moe::MoeConfig;
use super::rope_scaling::RopeScaling;

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
    #[error("RoPE scaling {0:?} is not supported (linear, llama3 and yarn are)")]
    UnsupportedRopeScaling(String),
}

/// Longest context that a model may claim; the longest known is 10,485,760.
const MAX_CONTEXT: usize = 1 << 24;

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
        let rope_theta = fields.number("rope.freq_base")?.unwrap_or(10_000.0);
        let mla = MlaConfig::from_gguf(metadata, name, family)?;
        let head_dim = mla.as_ref().map_or(head_dim, MlaConfig::head_dim);
        let rotary_dim = mla.as_ref().map_or(head_dim, |mla| mla.rope_head_dim);
        let scaling = RopeScaling::from_gguf(file, name, rotary_dim, rope_theta)?;
        let num_layers = fields.need_size("block_count")?;
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
            rope_theta,
            rope_linear_scale: scaling.linear,
            rope_freq_factors: scaling.factors,
            sliding_window: fields
                .size("attention.sliding_window")?
                .filter(|window| *window > 0),
            attention_scale: scaling.score_scale
                * fields
                    .number("attention.scale")?
                    .unwrap_or_else(|| (family.attention_scale.gguf)(&sizes)),
            attention_softcap: fields.number("attn_logit_softcapping")?,
            final_softcap: fields.number("final_logit_softcapping")?,
            rope_adjacent_pairs: family.adjacent_pairs.gguf,
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
        let rotary_dim = mla.as_ref().map_or(head_dim, |mla| mla.rope_head_dim);
        let (rope, nested_theta) = rope_of_hf(fields, family)?;
        let rope_theta = fields.number("rope_theta")?.or(nested_theta);
        let rope_theta = rope_theta.unwrap_or(10_000.0);
        let scaling = RopeScaling::from_hf(rope, rotary_dim, rope_theta)?;
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
            rope_theta,
            rope_linear_scale: scaling.linear,
            rope_freq_factors: scaling.factors,
            sliding_window: fields.size("sliding_window")?.filter(|window| *window > 0),
            attention_scale: scaling.score_scale * (family.attention_scale.hf)(json, head_dim),
            attention_softcap: fields.number("attn_logit_softcapping")?,
            final_softcap: fields.number("final_logit_softcapping")?,
            rope_adjacent_pairs: family.adjacent_pairs.hf,
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

    /// Which elements of a head rotate together.
    pub fn rope_kind(&self) -> RopeKind {
        match self.rope_adjacent_pairs {
            true => RopeKind::Norm,
            false => RopeKind::Neox,
        }
    }

    /// Elements of a head that are rotated.
    pub fn rotary_dim(&self) -> usize {
        self.mla
            .as_ref()
            .map_or(self.head_dim, |mla| mla.rope_head_dim)
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
        if self.num_layers > 1024 {
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
        let factors = self.rope_freq_factors.as_ref().map(Vec::len);
        let rotary_dim = self.rotary_dim();
        if factors.is_some_and(|len| len < rotary_dim / 2) {
            return invalid("too few RoPE frequency factors".to_owned());
        }
        Ok(self)
    }
}

/// How positions are rotated, and the base where it lies inside: transformers 5 writes `rope_parameters`, one for
/// each kind of layer where there are several.
fn rope_of_hf<'a>(
    fields: HfFields<'a>,
    family: &Family,
) -> Result<(Option<&'a Value>, Option<f32>), ConfigError> {
    let rope = fields
        .get("rope_parameters")
        .or_else(|| fields.get("rope_scaling"));
    let Some(rope) = rope else {
        return Ok((None, None));
    };
    if !rope.is_object() {
        return Err(ConfigError::Invalid(
            "the scaling of RoPE is no object".to_owned(),
        ));
    }
    let kinds = HfFields(rope);
    let global = kinds.get("full_attention").unwrap_or(rope);
    if let Some(local) = kinds.get("sliding_attention").map(HfFields) {
        let theta = local.number("rope_theta")?;
        let expected = family.local_layers.map(|layers| layers.rope_theta);
        let kind = local.text("rope_type")?.unwrap_or("default");
        if kind != "default" || theta.is_some() && theta != expected {
            let what = "a sliding window with angles of its own".to_owned();
            return Err(ConfigError::Unsupported(what));
        }
    }
    Ok((Some(global), HfFields(global).number("rope_theta")?))
}
