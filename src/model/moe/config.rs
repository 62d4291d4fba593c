//! The sizes and conventions of mixture-of-experts layers.

use ponder_kernels::{Gating, GroupScore, Groups, Scoring};
use serde_json::Value;

use crate::model::config::{ConfigError, MAX_LAYERS};
use crate::model::families::{Family, SharedWidth};
use crate::model::fields::{GgufFields, HfFields};
use crate::model::gguf::GgufFile;

/// Most groups of experts; DeepSeek-V3 has 8.
const MAX_GROUPS: usize = 64;

/// What a model's mixture-of-experts layers share. Which layers are such shows in the weights: they have a router.
#[derive(Debug, Clone, PartialEq)]
pub struct MoeConfig {
    pub num_experts: usize,
    /// Outputs of an expert's gate.
    pub intermediate_size: usize,
    /// Outputs of the gate of what every row goes through beside its experts.
    pub shared_intermediate_size: Option<usize>,
    pub gating: Gating,
}

impl MoeConfig {
    pub(in crate::model) fn from_gguf(
        file: &GgufFile,
        name: &str,
        family: &Family,
    ) -> Result<Option<Self>, ConfigError> {
        let metadata = file.metadata();
        let normalise = family.experts.is_some_and(|experts| experts.normalise);
        let fields = GgufFields { metadata, name };
        let size = |part: &str| {
            let value = fields.size(part)?;
            Ok::<_, ConfigError>(value.filter(|value| *value > 0))
        };
        let Some(num_experts) = size("expert_count")? else {
            return Ok(None);
        };
        let missing = |part: &str| ConfigError::Missing(format!("{name}.{part}"));
        // Files disagree on the keys of widths; tensors cannot. Dimensions are innermost first.
        let num_layers = size("block_count")?.unwrap_or(0).min(MAX_LAYERS);
        let width = |part: &str| {
            let tensor = |layer| file.tensor(&format!("blk.{layer}.{part}.weight"));
            let (info, _) = (0..num_layers).find_map(tensor)?;
            info.dimensions.get(1).copied()
        };
        const SOFTMAX: usize = 1;
        const SIGMOID: usize = 2;
        let scoring = match size("expert_gating_func")? {
            Some(SIGMOID) => Scoring::Sigmoid,
            None | Some(SOFTMAX) => Scoring::Softmax,
            Some(other) => {
                let what = format!("experts chosen by function {other}");
                return Err(ConfigError::Unsupported(what));
            }
        };
        let groups = size("expert_group_count")?.filter(|count| *count > 1);
        let num_chosen = size("expert_group_used_count")?;
        let groups = groups.map(|count| Groups {
            count,
            num_chosen: num_chosen.unwrap_or(count),
            score: group_score(scoring),
        });
        let gating = Gating {
            num_experts_per_tok: size("expert_used_count")?
                .ok_or_else(|| missing("expert_used_count"))?,
            scoring,
            normalise: fields.flag("expert_weights_norm")?.unwrap_or(normalise),
            scale: fields
                .number("expert_weights_scale")?
                .filter(|scale| *scale != 0.0)
                .unwrap_or(1.0),
            groups,
        };
        let config = Self {
            num_experts,
            intermediate_size: width("ffn_gate_exps")
                .or_else(|| width("ffn_gate.0"))
                .ok_or_else(|| ConfigError::Missing("blk.*.ffn_gate_exps.weight".to_owned()))?,
            shared_intermediate_size: width("ffn_gate_shexp"),
            gating,
        };
        config.checked().map(Some)
    }

    pub(in crate::model) fn from_hf(
        json: &Value,
        family: &Family,
    ) -> Result<Option<Self>, ConfigError> {
        let fields = HfFields(json);
        let mut num_experts = None;
        for key in ["num_experts", "num_local_experts", "n_routed_experts"] {
            num_experts = num_experts.or(fields.size(key)?);
        }
        let Some(num_experts) = num_experts else {
            return Ok(None);
        };
        let intermediate_size = match fields.size("moe_intermediate_size")? {
            Some(size) => Some(size),
            None => fields.size("intermediate_size")?,
        };
        let intermediate_size = intermediate_size
            .ok_or_else(|| ConfigError::Missing("moe_intermediate_size".to_owned()))?;
        let scoring = match fields.text("scoring_func")? {
            None | Some("softmax") => Scoring::Softmax,
            Some("sigmoid") => Scoring::Sigmoid,
            Some(other) => return Err(unknown("scoring_func", other)),
        };
        let is_grouped = match fields.text("topk_method")? {
            Some("greedy") => false,
            None | Some("group_limited_greedy" | "noaux_tc") => true,
            Some(other) => return Err(unknown("topk_method", other)),
        };
        let groups = fields
            .size("n_group")?
            .filter(|count| *count > 1 && is_grouped);
        let num_chosen = fields.size("topk_group")?;
        let groups = groups.map(|count| Groups {
            count,
            num_chosen: num_chosen.unwrap_or(count),
            score: group_score(scoring),
        });
        let of_family = family.experts.as_ref();
        let normalise = of_family.is_some_and(|experts| experts.normalise);
        let is_key_ignored = scoring != Scoring::Sigmoid
            && of_family.is_some_and(|experts| experts.normalise_key_needs_sigmoid);
        let scale = fields.number("routed_scaling_factor")?;
        let gating = Gating {
            num_experts_per_tok: fields.need_size("num_experts_per_tok")?,
            scoring,
            normalise: fields
                .flag("norm_topk_prob")?
                .filter(|_| !is_key_ignored)
                .unwrap_or(normalise),
            scale: scale.unwrap_or(1.0),
            groups,
        };
        let shared = match of_family.map(|experts| experts.shared) {
            None | Some(SharedWidth::None) => None,
            Some(SharedWidth::Key(key)) => fields.size(key)?,
            Some(SharedWidth::Experts(key)) => fields
                .size(key)?
                .map(|count| count.saturating_mul(intermediate_size)),
        };
        let config = Self {
            num_experts,
            intermediate_size,
            shared_intermediate_size: shared.filter(|size| *size > 0),
            gating,
        };
        config.checked().map(Some)
    }

    fn checked(self) -> Result<Self, ConfigError> {
        let invalid = |text: String| Err(ConfigError::Invalid(text));
        let Self {
            num_experts,
            gating,
            ..
        } = &self;
        let shared = self.shared_intermediate_size.unwrap_or(1);
        let widths = [self.intermediate_size, shared];
        if *num_experts > 1 << 16 || widths.iter().any(|width| !(1..=1 << 28).contains(width)) {
            return invalid(format!(
                "{num_experts} experts of {}",
                self.intermediate_size
            ));
        }
        let chosen = gating.num_experts_per_tok;
        let mut available = *num_experts;
        if let Some(groups) = gating.groups {
            let is_whole = num_experts.is_multiple_of(groups.count);
            if !is_whole || groups.count > MAX_GROUPS || groups.num_chosen > groups.count {
                return invalid(format!("{num_experts} experts in {groups:?}"));
            }
            available = num_experts / groups.count * groups.num_chosen;
        }
        if !(1..=available).contains(&chosen) {
            return invalid(format!("{chosen} of {available} experts a token"));
        }
        Ok(self)
    }
}

fn unknown(key: &str, value: &str) -> ConfigError {
    ConfigError::Unsupported(format!("{key} {value:?}"))
}

fn group_score(scoring: Scoring) -> GroupScore {
    match scoring {
        Scoring::Softmax => GroupScore::Best,
        Scoring::Sigmoid => GroupScore::BestTwo,
    }
}
