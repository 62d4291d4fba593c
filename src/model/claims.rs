//! What a configuration claims and the native engine does not do: refused, since it would answer something else than the
//! model does.

use ponder_kernels::Glu;
use serde_json::Value;

use super::config::{ConfigError, ModelConfig};
use super::families::Family;
use super::fields::{GgufFields, HfFields};

/// A name that transformers has for each activation.
fn activation(name: &str) -> Option<Glu> {
    match name {
        "silu" | "swish" => Some(Glu::Silu),
        "gelu_pytorch_tanh" | "gelu_new" | "gelu_fast" => Some(Glu::GeluTanh),
        _ => None,
    }
}

fn refuse<T>(what: String) -> Result<T, ConfigError> {
    Err(ConfigError::Unsupported(what))
}

/// Flags that mean something else than the forward pass does when they are true.
const FLAGS: [&str; 4] = ["mlp_bias", "use_parallel_residual", "alibi", "use_qk_norm"];

/// What a `config.json` says beyond what [`ModelConfig`] holds.
pub(super) fn check_hf(json: &Value, family: &Family) -> Result<(), ConfigError> {
    let fields = HfFields(json);
    // Where both are given the latter counts.
    for key in ["hidden_activation", "hidden_act"] {
        let Some(name) = fields.text(key)? else {
            continue;
        };
        if activation(name) != Some(family.glu) {
            return refuse(format!("{key} {name:?} in a {} model", family.name));
        }
        break;
    }
    if let Some(key) = FLAGS.iter().find(|key| json[**key] == true) {
        return refuse((*key).to_owned());
    }
    if fields.flag("attention_bias")? == Some(true) && !family.qkv_bias {
        return refuse(format!("attention_bias in a {} model", family.name));
    }
    if fields.get("clip_qkv").is_some() {
        return refuse("clamping Q, K and V (clip_qkv)".to_owned());
    }
    if fields.get("quantization_config").is_some() {
        return refuse("a quantization_config; GGUF files of this model are read".to_owned());
    }
    if let Some(factor) = fields.number("partial_rotary_factor")?
        && factor != 1.0
    {
        return refuse(format!("partial_rotary_factor {factor}"));
    }
    check_windows(fields, family)
}

/// Which layers attend through a sliding window is the family's; a file must agree.
fn check_windows(fields: HfFields<'_>, family: &Family) -> Result<(), ConfigError> {
    if let Some(kinds) = fields.get("layer_types").and_then(Value::as_array) {
        for (layer, kind) in kinds.iter().enumerate() {
            let expected = match family.is_local(layer) {
                true => "sliding_attention",
                false => "full_attention",
            };
            if kind != expected {
                return refuse(format!("layer {layer} of kind {kind} in {}", family.name));
            }
        }
    }
    let Some(local) = family.local_layers else {
        let window = fields.size("sliding_window")?.unwrap_or(0);
        let context = fields.size("max_position_embeddings")?.unwrap_or(0);
        let first_layer = fields.size("max_window_layers")?;
        let num_layers = fields.size("num_hidden_layers")?.unwrap_or(0);
        let is_used = fields.flag("use_sliding_window")?.unwrap_or(true)
            && first_layer.is_none_or(|first| first < num_layers);
        if (1..context).contains(&window) && is_used {
            return refuse(format!("a sliding window of {window} in {}", family.name));
        }
        return Ok(());
    };
    if let Some(pattern) = fields.size("sliding_window_pattern")?
        && pattern != local.global_every
    {
        return refuse(format!("one global layer in {pattern}"));
    }
    if let Some(theta) = fields.number("rope_local_base_freq")?
        && theta != local.rope_theta
    {
        return refuse(format!("rope_local_base_freq {theta}"));
    }
    Ok(())
}

/// What a GGUF file's metadata says beyond what [`ModelConfig`] holds.
pub(super) fn check_gguf(fields: GgufFields<'_>, config: &ModelConfig) -> Result<(), ConfigError> {
    if fields
        .number("attention.clamp_kqv")?
        .is_some_and(|limit| limit > 0.0)
    {
        return refuse("clamping Q, K and V".to_owned());
    }
    if fields.flag("attention.causal")? == Some(false) {
        return refuse("attention that sees later tokens".to_owned());
    }
    if fields.flag("use_parallel_residual")? == Some(true) {
        return refuse("use_parallel_residual".to_owned());
    }
    if let Some(rotated) = fields.size("rope.dimension_count")?
        && rotated != config.rotary_dim()
    {
        let dims = config.rotary_dim();
        return refuse(format!(
            "rotation of {rotated} dimensions where a head has {dims}"
        ));
    }
    if config.mla.is_none()
        && let Some(width) = fields.size("attention.value_length")?
        && width != config.head_dim
    {
        let dims = config.head_dim;
        return refuse(format!(
            "values of {width} dimensions where keys have {dims}"
        ));
    }
    for part in ["rope.scaling.attn_factor", "rope.scale_linear"] {
        if let Some(factor) = fields.number(part)?
            && factor != 1.0
        {
            return refuse(format!("{part} {factor}"));
        }
    }
    Ok(())
}

/// Numbers of a configuration that no model can have.
pub(super) fn check_numbers(config: &ModelConfig) -> Result<(), ConfigError> {
    let positive = [
        ("rms_norm_eps", Some(config.rms_norm_eps)),
        ("RoPE's scaling factor", Some(config.rope_linear_scale)),
        ("the scale of attention", Some(config.attention_scale)),
        ("the soft cap of attention", config.attention_softcap),
        ("the soft cap of logits", config.final_softcap),
        ("the scale of embeddings", Some(config.embedding_scale)),
        ("the scale of residuals", Some(config.residual_scale)),
        ("what divides logits", Some(config.logits_divisor)),
        (
            "the scale of experts",
            config.moe.as_ref().map(|moe| moe.gating.scale),
        ),
    ];
    for (what, value) in positive {
        if value.is_some_and(|value| !(value.is_finite() && value > 0.0)) {
            let value = value.unwrap_or(f32::NAN);
            return Err(ConfigError::Invalid(format!("{what} is {value}")));
        }
    }
    if config.rms_norm_eps >= 1.0 {
        let eps = config.rms_norm_eps;
        return Err(ConfigError::Invalid(format!("rms_norm_eps is {eps}")));
    }
    if !(config.rope_theta.is_finite() && config.rope_theta > 1.0) {
        let theta = config.rope_theta;
        return Err(ConfigError::Invalid(format!("RoPE's base is {theta}")));
    }
    let factors = config.rope_freq_factors.iter().flatten();
    if let Some(factor) = factors.copied().find(|f| !(f.is_finite() && *f > 0.0)) {
        return Err(ConfigError::Invalid(format!(
            "a RoPE frequency factor is {factor}"
        )));
    }
    Ok(())
}
