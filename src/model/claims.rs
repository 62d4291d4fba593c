//! What a configuration claims and the native engine does not do: refused, since it would answer
//! something else than the model does.

use ponder_kernels::Glu;
use serde_json::Value;

use super::config::{ConfigError, ModelConfig};
use super::families::{Bias, ExpertsLayout, Family};
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
        let named = activation(name).map(|named| match family.glu {
            // Families with this unit call it by what its sigmoid is near.
            Glu::ClampedSwish if named == Glu::Silu => Glu::ClampedSwish,
            _ => named,
        });
        if named != Some(family.glu) {
            return refuse(format!("{key} {name:?} in a {} model", family.name));
        }
        break;
    }
    if let Some(key) = FLAGS.iter().find(|key| json[**key] == true) {
        return refuse((*key).to_owned());
    }
    if fields.flag("attention_bias")? == Some(true) && family.qkv_bias == Bias::Never {
        return refuse(format!("attention_bias in a {} model", family.name));
    }
    if fields.get("clip_qkv").is_some() {
        return refuse("clamping Q, K and V (clip_qkv)".to_owned());
    }
    if let Some(method) = fields.get("quantization_config") {
        let is_read = family.hf_tensors.experts_layout == ExpertsLayout::Turns
            && HfFields(method).text("quant_method")? == Some("mxfp4");
        if !is_read {
            return refuse("a quantization_config; GGUF files of this model are read".to_owned());
        }
    }
    for (key, done) in [("swiglu_limit", Glu::LIMIT), ("swiglu_alpha", Glu::SLOPE)] {
        if let Some(value) = fields.number(key)?
            && (value != done || family.glu != Glu::ClampedSwish)
        {
            return refuse(format!("{key} {value}"));
        }
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
        && Some(pattern) != local.global_every
    {
        return refuse(format!("one global layer in {pattern}"));
    }
    if let Some(theta) = fields.number("rope_local_base_freq")?
        && Some(theta) != local.rope_theta
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
        && rotated != config.rope.rotary_dim
    {
        let dims = config.rope.rotary_dim;
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
        let is_done = config.rope.long.is_some() && part == "rope.scaling.attn_factor";
        if let Some(factor) = fields.number(part)?
            && factor != 1.0
            && !is_done
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
        ("RoPE's scaling factor", Some(config.rope.linear_scale)),
        ("RoPE's magnitude", Some(config.rope.magnitude)),
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
    let theta = config.rope.theta;
    if !(theta.is_finite() && theta > 1.0) {
        return Err(ConfigError::Invalid(format!("RoPE's base is {theta}")));
    }
    let factors = config.rope.all_factors().into_iter().flatten().flatten();
    if let Some(factor) = factors.copied().find(|f| !(f.is_finite() && *f > 0.0)) {
        return Err(ConfigError::Invalid(format!(
            "a RoPE frequency factor is {factor}"
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::model::families::FAMILIES;
    use crate::model::testing::TinyModel;

    fn config(kind: &str) -> Value {
        json!({"model_type": kind, "vocab_size": 260, "hidden_size": 64, "intermediate_size": 8,
            "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "rms_norm_eps": 1e-5,
            "max_position_embeddings": 4096, "rope_theta": 10000.0, "hidden_act": "silu"})
    }

    fn read(changes: Value) -> Result<ModelConfig, ConfigError> {
        let kind = changes["model_type"].as_str().unwrap_or("llama");
        let mut json = config(kind);
        for (key, value) in changes.as_object().unwrap() {
            json[key] = value.clone();
        }
        ModelConfig::from_hf(&json)
    }

    #[test]
    fn claims_of_a_config_json_that_are_not_kept_are_refused() {
        for changes in [
            json!({"hidden_act": "relu"}),
            json!({"hidden_act": "gelu"}),
            json!({"hidden_act": 7}),
            json!({"hidden_activation": "gelu_pytorch_tanh"}),
            json!({"attention_bias": true}),
            json!({"mlp_bias": true}),
            json!({"clip_qkv": 8.0}),
            json!({"quantization_config": {"quant_method": "awq"}}),
            json!({"partial_rotary_factor": 0.5}),
            json!({"sliding_window": 64}),
            json!({"layer_types": ["full_attention", "sliding_attention"]}),
            json!({"attn_logit_softcapping": 0.0}),
            json!({"final_logit_softcapping": -30.0}),
            json!({"rms_norm_eps": 0.0}),
            json!({"rms_norm_eps": -1e-6}),
            json!({"rms_norm_eps": 1.0}),
            json!({"rms_norm_eps": 1e-300}),
            json!({"rms_norm_eps": "small"}),
            json!({"rope_theta": 0.0}),
            json!({"rope_theta": -10000.0}),
            json!({"rope_theta": 1e300}),
            json!({"num_key_value_heads": -1}),
            json!({"num_key_value_heads": 3}),
            json!({"num_key_value_heads": 0}),
            json!({"max_position_embeddings": 1u64 << 60}),
            json!({"logits_scaling": 0.0}),
            json!({"residual_multiplier": 0.0}),
            json!({"embedding_multiplier": 1e308}),
            json!({"rope_scaling": "linear"}),
            json!({"rope_scaling": {"type": "dynamic", "factor": 2.0}}),
            json!({"rope_scaling": {"type": 1, "factor": 2.0}}),
            json!({"rope_scaling": {"type": "linear", "factor": 0.0}}),
            json!({"rope_scaling": {"type": "linear", "factor": 0.5}}),
            json!({"rope_scaling": {"type": "linear", "factor": 1e300}}),
            json!({"rope_scaling": {"type": "linear"}}),
            json!({"rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 4.0,
                "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}}),
            json!({"rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 0.0,
                "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}}),
            json!({"rope_scaling": {"rope_type": "yarn", "factor": -4.0, "original_max_position_embeddings": 64}}),
            json!({"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 0}}),
            json!({"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64,
                "attention_factor": 3.0}}),
            json!({"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64,
                "beta_slow": 0.0}}),
            json!({"head_dim": 1_u64 << 62, "rope_scaling": {"rope_type": "llama3", "factor": 8.0,
                "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}}),
            json!({"model_type": "smollm3", "attention_bias": true}),
            json!({"rope_parameters": {"full_attention": {"rope_theta": 1e6},
                "sliding_attention": {"rope_theta": 5.0}}}),
            json!({"model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 2, "scoring_func": "odd"}),
            json!({"model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 2, "topk_method": "odd"}),
            json!({"model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 2,
                "routed_scaling_factor": 0.0}),
            json!({"model_type": "mixtral", "num_local_experts": "4", "num_experts_per_tok": 2}),
        ] {
            let result = read(changes.clone());
            assert!(result.is_err(), "{changes} was accepted");
        }
    }

    #[test]
    fn what_is_done_is_accepted() {
        for changes in [
            json!({}),
            json!({"hidden_act": "swish", "attention_bias": false, "mlp_bias": false, "clip_qkv": null}),
            json!({"model_type": "qwen2", "sliding_window": 64, "use_sliding_window": false, "max_window_layers": 28}),
            json!({"model_type": "qwen2", "sliding_window": 64, "max_window_layers": 28, "use_sliding_window": true}),
            json!({"sliding_window": 4096, "partial_rotary_factor": 1.0}),
            json!({"rope_scaling": {"type": "linear", "factor": 2.0}}),
            json!({"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64,
                "attention_factor": 1.1386}}),
            json!({"rope_scaling": null, "rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}),
        ] {
            let result = read(changes.clone());
            assert!(result.is_ok(), "{changes}: {result:?}");
        }
        let theta = read(
            json!({"rope_theta": null, "rope_parameters": {"full_attention": {"rope_theta": 5e5}}}),
        );
        assert_eq!(theta.unwrap().rope.theta, 5e5);
    }

    /// Half of GLM-4's heads does not rotate, nor do some layers of SmolLM3.
    #[test]
    fn yarn_multiplies_what_rotates_and_nothing_else() {
        let yarn =
            json!({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64});
        for kind in ["llama", "glm4", "smollm3"] {
            let plain = read(json!({"model_type": kind})).unwrap();
            let scaled = read(json!({"model_type": kind, "rope_scaling": yarn})).unwrap();
            assert_eq!(plain.rope.magnitude, 1.0, "{kind}");
            assert_eq!(scaled.attention_scale, plain.attention_scale, "{kind}");
            let magnitude = 0.1 * 4.0_f32.ln() + 1.0;
            let is_near = (scaled.rope.magnitude - magnitude).abs() < 1e-6;
            assert!(is_near, "{kind}: {}", scaled.rope.magnitude);
        }
    }

    #[test]
    fn windows_are_those_of_the_family() {
        let local = |family: &&Family| family.local_layers.is_some();
        let family = FAMILIES.iter().copied().find(local).unwrap();
        let kind = family.hf_names[0];
        let with = |changes: Value| {
            let mut all = json!({"model_type": kind, "hidden_act": "gelu_pytorch_tanh", "sliding_window": 64});
            all.as_object_mut()
                .unwrap()
                .extend(changes.as_object().unwrap().clone());
            read(all)
        };
        assert!(with(json!({})).is_ok());
        assert!(
            with(json!({"rope_local_base_freq": 10000.0, "sliding_window_pattern": 6})).is_ok()
        );
        assert!(with(json!({"layer_types": ["sliding_attention", "sliding_attention"]})).is_ok());
        assert!(with(json!({"layer_types": ["full_attention", "sliding_attention"]})).is_err());
        assert!(with(json!({"rope_local_base_freq": 20000.0})).is_err());
        assert!(with(json!({"sliding_window_pattern": 4})).is_err());
        assert!(with(json!({"hidden_act": "silu"})).is_err());
        assert!(with(json!({"query_pre_attn_scalar": -256})).is_err());
        assert!(with(json!({"query_pre_attn_scalar": 0})).is_err());
    }

    #[test]
    fn claims_of_gguf_metadata_are_checked_too() {
        use crate::model::gguf::GgufFile;
        use crate::model::testing::GgufWriter;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.gguf");
        let model = TinyModel::random("llama", 1);
        let read = |extra: &dyn Fn(&mut GgufWriter)| {
            std::fs::write(&path, model.to_gguf_with(|writer| extra(writer))).unwrap();
            ModelConfig::from_gguf(&GgufFile::open(&path).unwrap())
        };
        assert!(read(&|_| {}).is_ok());
        assert!(read(&|w| w.u32("llama.rope.dimension_count", 32)).is_ok());
        let bad: [&dyn Fn(&mut GgufWriter); 14] = [
            &|w| w.u32("llama.rope.dimension_count", 16),
            &|w| w.f32("llama.attn_logit_softcapping", 0.0),
            &|w| w.f32("llama.final_logit_softcapping", f32::NAN),
            &|w| w.f32("llama.attention.scale", f32::INFINITY),
            &|w| w.f32("llama.attention.scale", -1.0),
            &|w| w.f32("llama.logit_scale", 0.0),
            &|w| w.f32("llama.attention.clamp_kqv", 8.0),
            &|w| w.string("llama.rope.scaling.type", "longrope"),
            &|w| {
                w.string("llama.rope.scaling.type", "linear");
                w.f32("llama.rope.scaling.factor", 0.0);
            },
            &|w| {
                w.string("llama.rope.scaling.type", "yarn");
                w.f32("llama.rope.scaling.factor", f32::NAN);
            },
            &|w| w.f32("llama.rope.scaling.attn_factor", 2.0),
            &|w| w.f32("llama.rope.scale_linear", 4.0),
            &|w| w.string("llama.embedding_scale", "large"),
            &|w| w.f32_tensor("rope_freqs.weight", &[16], &[0.0; 16]),
        ];
        for (index, extra) in bad.into_iter().enumerate() {
            let result = read(extra);
            assert!(result.is_err(), "number {index} was accepted");
        }
    }
}
