//! Ways to serve longer contexts than a model was first trained for: what becomes of its rotary
//! frequencies.

use serde_json::Value;

use super::config::ConfigError;
use super::families::Family;
use super::fields::{GgufFields, HfFields};
use super::gguf::GgufFile;
use super::rope_config::RopeConfig;

/// Rotations within the original context above which YaRN leaves a frequency alone, and below which it stretches it fully
/// (Peng et al. 2023, section 3.2).
const YARN_BETA_FAST: f64 = 32.0;
const YARN_BETA_SLOW: f64 = 1.0;

/// How rotary frequencies and attention's scores change.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct RopeScaling {
    /// Divides positions.
    pub linear: f32,
    /// `[rotary_dim / 2]`, divide the frequencies one by one.
    pub factors: Option<Vec<f32>>,
    /// What takes the factors' place in longer contexts.
    pub long: Option<LongRope>,
    /// Multiplies what is rotated of queries and of keys.
    pub magnitude: f64,
}

/// Long-rope's factors for contexts that are longer than the original one (Ding et al. 2024,
/// section 3). Which factors are used is settled when a model is loaded, by the context that it is
/// to serve: a cached key was rotated once and for all.
#[derive(Debug, Clone, PartialEq)]
pub struct LongRope {
    /// `[rotary_dim / 2]`
    pub factors: Vec<f32>,
    /// Up to so many positions the short factors count.
    pub original_context: usize,
}

const NONE: RopeScaling = RopeScaling {
    linear: 1.0,
    factors: None,
    long: None,
    magnitude: 1.0,
};

impl RopeScaling {
    /// The rotation that this scales, and what multiplies q·k: DeepSeek scales all of it
    /// (`scales_all`), others only what is rotated of queries and of keys.
    pub(super) fn into_rope(
        self,
        theta: f32,
        rotary_dim: usize,
        adjacent_pairs: bool,
        unrotated_layers: Vec<usize>,
        scales_all: bool,
    ) -> (RopeConfig, f32) {
        let (magnitude, score_scale) = match scales_all {
            true => (1.0, self.magnitude.powi(2) as f32),
            false => (self.magnitude as f32, 1.0),
        };
        let rope = RopeConfig {
            theta,
            rotary_dim,
            adjacent_pairs,
            linear_scale: self.linear,
            freq_factors: self.factors,
            long: self.long,
            magnitude,
            unrotated_layers,
        };
        (rope, score_scale)
    }

    /// Reads `rope_scaling` or `rope_parameters` of the `config.json` `json`.
    pub(super) fn from_hf(
        scaling: Option<&Value>,
        json: &Value,
        rotary_dim: usize,
        theta: f32,
    ) -> Result<Self, ConfigError> {
        let Some(scaling) = scaling.filter(|scaling| scaling.is_object()) else {
            return Ok(NONE);
        };
        let fields = HfFields(scaling);
        let number = |key: &str| {
            let number = fields.number(key)?.map(f64::from);
            number.ok_or_else(|| ConfigError::Missing(format!("rope_scaling.{key}")))
        };
        let kind = match fields.text("rope_type")? {
            Some(kind) => kind,
            None => fields.text("type")?.unwrap_or("default"),
        };
        match kind {
            "default" => Ok(NONE),
            "linear" => Ok(Self {
                linear: stretch(number("factor")?)? as f32,
                ..NONE
            }),
            "llama3" => {
                let (factor, low, high) = (
                    stretch(number("factor")?)?,
                    positive("low_freq_factor", number("low_freq_factor")?)?,
                    number("high_freq_factor")?,
                );
                let original = number("original_max_position_embeddings")?;
                let original = positive("original_max_position_embeddings", original)?;
                positive("high_freq_factor - low_freq_factor", high - low)?;
                let factors = (0..rotary_dim / 2)
                    .map(|i| {
                        llama3_factor(i, rotary_dim, theta, factor, low, high, original) as f32
                    })
                    .collect();
                Ok(Self {
                    factors: Some(factors),
                    ..NONE
                })
            }
            // Phi-3's first files call it "su", and some "yarn".
            "longrope" | "su" => Self::long_of_hf(fields, HfFields(json)),
            "yarn" if fields.get("long_factor").is_some() => {
                Self::long_of_hf(fields, HfFields(json))
            }
            "yarn" => Self::yarn_of_hf(fields, rotary_dim, theta),
            other => Err(ConfigError::UnsupportedRopeScaling(other.to_owned())),
        }
    }

    fn long_of_hf(fields: HfFields<'_>, model: HfFields<'_>) -> Result<Self, ConfigError> {
        const ORIGINAL: &str = "original_max_position_embeddings";
        let missing = |key: &str| ConfigError::Missing(format!("rope_scaling.{key}"));
        let factors = |key: &str| fields.numbers(key)?.ok_or_else(|| missing(key));
        if let Some(key) = ["short_mscale", "long_mscale"]
            .iter()
            .find(|key| fields.get(key).is_some())
        {
            return Err(ConfigError::UnsupportedRopeScaling(format!(
                "longrope with {key}"
            )));
        }
        let original = match fields.size(ORIGINAL)? {
            Some(original) => original,
            None => model.size(ORIGINAL)?.ok_or_else(|| missing(ORIGINAL))?,
        };
        let original_context = positive("original context", original as f64)?;
        let factor = match fields.number("factor")? {
            Some(factor) => f64::from(factor),
            None => model.need_size("max_position_embeddings")? as f64 / original_context,
        };
        let magnitude = match fields.number("attention_factor")? {
            Some(named) => f64::from(named),
            None => long_magnitude(factor, original_context),
        };
        Ok(Self {
            factors: Some(factors("short_factor")?),
            long: Some(LongRope {
                factors: factors("long_factor")?,
                original_context: original,
            }),
            magnitude: positive("attention_factor", magnitude)?,
            ..NONE
        })
    }

    fn yarn_of_hf(
        fields: HfFields<'_>,
        rotary_dim: usize,
        theta: f32,
    ) -> Result<Self, ConfigError> {
        let optional = |key: &str| fields.number(key).map(|number| number.map(f64::from));
        let number = |key: &str| {
            optional(key)?.ok_or_else(|| ConfigError::Missing(format!("rope_scaling.{key}")))
        };
        let factor = stretch(number("factor")?)?;
        let all_dims = optional("mscale_all_dim")?.filter(|scale| *scale != 0.0);
        let heads = optional("mscale")?.filter(|scale| *scale != 0.0);
        if let (Some(all_dims), Some(heads)) = (all_dims, heads)
            && all_dims != heads
        {
            let message = format!("yarn with mscale {heads} and mscale_all_dim {all_dims}");
            return Err(ConfigError::UnsupportedRopeScaling(message));
        }
        let magnitude = magnitude(factor, all_dims.unwrap_or(1.0));
        let named = optional("attention_factor")?;
        if named.is_some_and(|named| (named - magnitude).abs() > MAGNITUDE_TOLERANCE) {
            let message = "yarn with an attention_factor of its own".to_owned();
            return Err(ConfigError::UnsupportedRopeScaling(message));
        }
        let yarn = Yarn {
            rotary_dim,
            theta,
            factor,
            original: number("original_max_position_embeddings")?,
            beta_fast: optional("beta_fast")?.unwrap_or(YARN_BETA_FAST),
            beta_slow: optional("beta_slow")?.unwrap_or(YARN_BETA_SLOW),
            truncates: fields.flag("truncate")?.unwrap_or(true),
        };
        Ok(Self {
            factors: Some(yarn.factors()?),
            magnitude,
            ..NONE
        })
    }

    /// Long-rope, whose two lists of factors are tensors of a GGUF file.
    fn long_of_gguf(file: &GgufFile, fields: GgufFields<'_>) -> Result<Option<Self>, ConfigError> {
        let [short, long] =
            ["short", "long"].map(|kind| tensor(file, &format!("rope_factors_{kind}.weight")));
        let (Some(short), Some(long)) = (short, long) else {
            return Ok(None);
        };
        let original = fields.size("rope.scaling.original_context_length")?;
        let original = original.map_or_else(|| fields.need_size("context_length"), Ok)?;
        let magnitude = fields.number("rope.scaling.attn_factor")?;
        let magnitude = positive("attn_factor", magnitude.map_or(1.0, f64::from))?;
        Ok(Some(Self {
            factors: Some(short),
            long: Some(LongRope {
                factors: long,
                original_context: original,
            }),
            magnitude,
            ..NONE
        }))
    }

    /// Reads the metadata of architecture `name` and the factors some files carry as a tensor.
    pub(super) fn from_gguf(
        file: &GgufFile,
        name: &str,
        family: &Family,
        rotary_dim: usize,
        theta: f32,
    ) -> Result<Self, ConfigError> {
        let fields = GgufFields {
            metadata: file.metadata(),
            name,
        };
        let number = |part: &str| fields.number(&format!("rope.scaling.{part}"));
        if let Some(long) = Self::long_of_gguf(file, fields)? {
            return Ok(long);
        }
        let factors = tensor(file, "rope_freqs.weight");
        let kind = file
            .metadata()
            .get_str(&format!("{name}.rope.scaling.type"));
        match kind.unwrap_or("none") {
            "none" => Ok(Self { factors, ..NONE }),
            "linear" => Ok(Self {
                linear: stretch(f64::from(number("factor")?.unwrap_or(1.0)))? as f32,
                factors,
                ..NONE
            }),
            "yarn" => {
                let missing =
                    |part: &str| ConfigError::Missing(format!("{name}.rope.scaling.{part}"));
                let factor = number("factor")?.ok_or_else(|| missing("factor"))?;
                let factor = stretch(f64::from(factor))?;
                let original = fields
                    .size("rope.scaling.original_context_length")?
                    .ok_or_else(|| missing("original_context_length"))?;
                let yarn = Yarn {
                    rotary_dim,
                    theta,
                    factor,
                    original: original as f64,
                    beta_fast: number("yarn_beta_fast")?.map_or(YARN_BETA_FAST, f64::from),
                    beta_slow: number("yarn_beta_slow")?.map_or(YARN_BETA_SLOW, f64::from),
                    truncates: family.yarn_truncates,
                };
                // Files hold `0.1 * mscale_all_dim`.
                let all_dims = number("yarn_log_multiplier")?.filter(|scale| *scale != 0.0);
                let all_dims = all_dims.map_or(1.0, |scale| f64::from(scale) / MAGNITUDE_SLOPE);
                Ok(Self {
                    factors: Some(yarn.factors()?),
                    magnitude: magnitude(factor, all_dims),
                    ..NONE
                })
            }
            other => Err(ConfigError::UnsupportedRopeScaling(other.to_owned())),
        }
    }
}

/// The values of a tensor of factors.
fn tensor(file: &GgufFile, name: &str) -> Option<Vec<f32>> {
    let (info, data) = file.tensor(name)?;
    let mut factors = vec![0.0; info.dimensions.iter().product()];
    ponder_kernels::reference::dequantize(info.dtype, data, &mut factors);
    Some(factors)
}

/// What YaRN multiplies queries and keys by (section 3.4).
fn magnitude(factor: f64, scale: f64) -> f64 {
    if factor <= 1.0 {
        return 1.0;
    }
    MAGNITUDE_SLOPE * scale * factor.ln() + 1.0
}

const MAGNITUDE_SLOPE: f64 = 0.1;

/// What long-rope multiplies queries and keys by: `sqrt(1 + ln(factor) / ln(original))` (Ding et
/// al. 2024, section 4.1; the rule of transformers' `_compute_longrope_parameters`).
fn long_magnitude(factor: f64, original: f64) -> f64 {
    match factor <= 1.0 {
        true => 1.0,
        false => (1.0 + factor.ln() / original.ln()).sqrt(),
    }
}

/// An `attention_factor` that says what is computed anyway may be rounded.
const MAGNITUDE_TOLERANCE: f64 = 1e-3;

/// A number of the configuration that must be positive.
fn positive(what: &str, value: f64) -> Result<f64, ConfigError> {
    match value.is_finite() && value > 0.0 {
        true => Ok(value),
        false => Err(ConfigError::Invalid(format!("RoPE's {what} is {value}"))),
    }
}

/// A factor by which contexts are stretched.
fn stretch(factor: f64) -> Result<f64, ConfigError> {
    match factor.is_finite() && factor >= 1.0 {
        true => Ok(factor),
        false => Err(ConfigError::Invalid(format!(
            "RoPE's scaling factor is {factor}"
        ))),
    }
}

struct Yarn {
    rotary_dim: usize,
    theta: f32,
    factor: f64,
    /// Positions of the context before it was stretched.
    original: f64,
    beta_fast: f64,
    beta_slow: f64,
    /// The bounds of what is blended are whole numbers.
    truncates: bool,
}

impl Yarn {
    /// Frequencies that turn often in the original context are kept, those that turn less than once are divided by
    /// `factor`, those between are blended (section 3.2).
    fn factors(&self) -> Result<Vec<f32>, ConfigError> {
        positive("original context", self.original)?;
        positive("beta_slow", self.beta_slow)?;
        positive("beta_fast", self.beta_fast)?;
        let dim = self.rotary_dim as f64;
        let theta = f64::from(self.theta);
        let turning = |rotations: f64| {
            let turns = rotations * 2.0 * std::f64::consts::PI;
            dim * (self.original / turns).ln() / (2.0 * theta.ln())
        };
        let (mut low, mut high) = (turning(self.beta_fast), turning(self.beta_slow));
        if self.truncates {
            (low, high) = (low.floor(), high.ceil());
        }
        let low = low.max(0.0);
        let mut high = high.min(dim - 1.0);
        if low == high {
            high += 0.001;
        }
        Ok((0..self.rotary_dim / 2)
            .map(|index| {
                let stretched = ((index as f64 - low) / (high - low)).clamp(0.0, 1.0);
                (1.0 / (stretched / self.factor + 1.0 - stretched)) as f32
            })
            .collect())
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
