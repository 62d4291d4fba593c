//! How a model turns queries and keys by their positions, as files tell it.

use ponder_kernels::RopeKind;
use serde_json::Value;

use super::config::{ConfigError, MAX_LAYERS};
use super::families::Family;
use super::fields::{GgufFields, HfFields};
use super::gguf::GgufFile;
use super::mla::MlaConfig;
use super::ops::RopeParams;
use super::rope_scaling::{LongRope, RopeScaling};

/// The base where files do not say.
const DEFAULT_THETA: f32 = 10_000.0;

/// The rotation of queries and keys.
#[derive(Debug, Clone, PartialEq)]
pub struct RopeConfig {
    pub theta: f32,
    /// Elements of a head that are rotated, the first ones.
    pub rotary_dim: usize,
    /// Q and K rows are stored for adjacent-pair rotation (llama weights in GGUF files).
    pub adjacent_pairs: bool,
    /// Positions are divided by this (linear scaling).
    pub linear_scale: f32,
    /// `[rotary_dim / 2]`, divide the frequencies one by one (llama 3, YaRN, the short ones of
    /// long-rope).
    pub freq_factors: Option<Vec<f32>>,
    /// What takes their place where longer contexts are served.
    pub long: Option<LongRope>,
    /// Multiplies what is rotated (long-rope, YaRN).
    pub magnitude: f32,
    /// Layers that leave queries and keys as they are.
    pub unrotated_layers: Vec<usize>,
}

/// The sizes that a rotation depends on.
#[derive(Debug, Clone, Copy)]
pub(super) struct Heads<'a> {
    pub num_layers: usize,
    pub head_dim: usize,
    pub mla: Option<&'a MlaConfig>,
}

impl RopeConfig {
    /// The rotation, and what it multiplies q·k by.
    pub(super) fn from_gguf(
        file: &GgufFile,
        name: &str,
        family: &Family,
        heads: Heads<'_>,
    ) -> Result<(Self, f32), ConfigError> {
        let fields = GgufFields {
            metadata: file.metadata(),
            name,
        };
        let theta = fields.number("rope.freq_base")?.unwrap_or(DEFAULT_THETA);
        let partial = match family.partial_rotary {
            Some(_) => fields.size("rope.dimension_count")?,
            None => None,
        };
        let rotary_dim = heads.rotary_dim(partial)?;
        let scaling = RopeScaling::from_gguf(file, name, family, rotary_dim, theta)?;
        let unrotated = every(family.unrotated_every, heads.num_layers);
        let is_adjacent = family.adjacent_pairs.gguf;
        let scales_all = heads.mla.is_some();
        Ok(scaling.into_rope(theta, rotary_dim, is_adjacent, unrotated, scales_all))
    }

    /// The same from a `config.json`.
    pub(super) fn from_hf(
        json: &Value,
        family: &Family,
        heads: Heads<'_>,
    ) -> Result<(Self, f32), ConfigError> {
        let fields = HfFields(json);
        let rope = rope_of_hf(fields, family)?;
        let nested = rope.map(HfFields);
        let nested_theta = nested.map(|rope| rope.number("rope_theta")).transpose()?;
        let theta = fields.number("rope_theta")?.or(nested_theta.flatten());
        let theta = theta.unwrap_or(DEFAULT_THETA);
        let partial = partial_rotary(fields, nested)?;
        let partial = match (partial, family.partial_rotary) {
            (part, Some(usual)) => Some(share(part.unwrap_or(usual), heads.head_dim)?),
            (None | Some(1.0), None) => None,
            (Some(part), None) => {
                let what = format!("partial_rotary_factor {part}");
                return Err(ConfigError::Unsupported(what));
            }
        };
        let rotary_dim = heads.rotary_dim(partial)?;
        let scaling = RopeScaling::from_hf(rope, json, rotary_dim, theta)?;
        let unrotated = unrotated_of_hf(fields, family, heads.num_layers)?;
        let is_adjacent = family.adjacent_pairs.hf;
        let scales_all = heads.mla.is_some();
        Ok(scaling.into_rope(theta, rotary_dim, is_adjacent, unrotated, scales_all))
    }

    /// Which elements of a head rotate together.
    pub fn kind(&self) -> RopeKind {
        match self.adjacent_pairs {
            true => RopeKind::Norm,
            false => RopeKind::Neox,
        }
    }

    pub fn rotates(&self, layer: usize) -> bool {
        !self.unrotated_layers.contains(&layer)
    }

    /// The angles of a context of so many tokens.
    pub(super) fn params(&self, num_positions: usize) -> RopeParams<'_> {
        let long = self.long.as_ref();
        let long = long.filter(|long| num_positions > long.original_context);
        let short = self.freq_factors.as_deref();
        RopeParams {
            rotary_dim: self.rotary_dim,
            num_positions,
            theta: self.theta,
            freq_factors: long.map_or(short, |long| Some(&long.factors)),
            linear_scale: self.linear_scale,
            magnitude: self.magnitude,
        }
    }

    /// All factors of frequencies, whatever context they are for.
    pub(super) fn all_factors(&self) -> [Option<&[f32]>; 2] {
        let long = self.long.as_ref().map(|long| &long.factors[..]);
        [self.freq_factors.as_deref(), long]
    }
}

impl Heads<'_> {
    /// Elements of a head that rotate: so many as a file says, or all.
    fn rotary_dim(&self, partial: Option<usize>) -> Result<usize, ConfigError> {
        let rotary_dim = match self.mla {
            Some(mla) => mla.rope_head_dim,
            None => partial.unwrap_or(self.head_dim),
        };
        match rotary_dim <= MAX_ROTARY_DIM {
            true => Ok(rotary_dim),
            false => Err(ConfigError::Invalid(format!(
                "a rotation of {rotary_dim} elements"
            ))),
        }
    }
}

/// The layers that one in so many is, counted from one.
fn every(interval: Option<usize>, num_layers: usize) -> Vec<usize> {
    let is_one = |layer: &usize| {
        interval.is_some_and(|every| every > 0 && (layer + 1).is_multiple_of(every))
    };
    (0..num_layers.min(MAX_LAYERS)).filter(is_one).collect()
}

/// A list of frequencies has a bound before the configuration's sizes are checked.
const MAX_ROTARY_DIM: usize = 1 << 20;

/// `no_rope_layers` has a 1 for each layer that rotates.
fn unrotated_of_hf(
    fields: HfFields<'_>,
    family: &Family,
    num_layers: usize,
) -> Result<Vec<usize>, ConfigError> {
    let Some(usual) = family.unrotated_every else {
        return match fields.get("no_rope_layers") {
            None => Ok(Vec::new()),
            Some(_) => Err(ConfigError::Unsupported("no_rope_layers".to_owned())),
        };
    };
    let Some(listed) = fields.get("no_rope_layers") else {
        let interval = fields.size("no_rope_layer_interval")?.unwrap_or(usual);
        return Ok(every(Some(interval), num_layers));
    };
    let invalid = || ConfigError::Invalid(format!("no_rope_layers of {num_layers} layers"));
    let listed = listed.as_array().ok_or_else(invalid)?;
    let rotates = listed.iter().map(|value| match value {
        Value::Bool(rotates) => Ok(*rotates),
        value => value
            .as_u64()
            .map(|rotates| rotates != 0)
            .ok_or_else(invalid),
    });
    let rotates = rotates.collect::<Result<Vec<bool>, _>>()?;
    if rotates.len() < num_layers {
        return Err(invalid());
    }
    Ok((0..num_layers).filter(|layer| !rotates[*layer]).collect())
}

/// Of the configuration, or beside what scales the rotation.
fn partial_rotary(
    fields: HfFields<'_>,
    nested: Option<HfFields<'_>>,
) -> Result<Option<f32>, ConfigError> {
    let key = "partial_rotary_factor";
    let nested = nested.map(|rope| rope.number(key)).transpose()?;
    Ok(fields.number(key)?.or(nested.flatten()))
}

/// A part of a head.
fn share(part: f32, head_dim: usize) -> Result<usize, ConfigError> {
    match part > 0.0 && part <= 1.0 {
        true => Ok((part * head_dim as f32) as usize),
        false => Err(ConfigError::Invalid(format!(
            "partial_rotary_factor is {part}"
        ))),
    }
}

/// What says how positions are rotated: transformers 5 writes `rope_parameters`, one for each kind
/// of layer where there are several.
fn rope_of_hf<'a>(fields: HfFields<'a>, family: &Family) -> Result<Option<&'a Value>, ConfigError> {
    let rope = fields
        .get("rope_parameters")
        .or_else(|| fields.get("rope_scaling"));
    let Some(rope) = rope else {
        return Ok(None);
    };
    if !rope.is_object() {
        return Err(ConfigError::Invalid(
            "the scaling of RoPE is not an object".to_owned(),
        ));
    }
    let kinds = HfFields(rope);
    let global = kinds.get("full_attention").unwrap_or(rope);
    if let Some(local) = kinds.get("sliding_attention").map(HfFields) {
        let theta = local.number("rope_theta")?;
        let expected = family.local_layers.and_then(|layers| layers.rope_theta);
        let kind = local.text("rope_type")?.unwrap_or("default");
        if kind != "default" || theta.is_some() && theta != expected {
            let what = "a sliding window with angles of its own".to_owned();
            return Err(ConfigError::Unsupported(what));
        }
    }
    Ok(Some(global))
}
