//! One projection of every expert as one tensor: Hugging Face files hold each expert alone, or gate
//! and up of all together.

use std::borrow::Cow;

use ponder_kernels::DType;

use super::families::{ExpertsLayout, Family};
use super::safetensors::HfWeights;
use super::weights::{LoadError, RawTensor, joined};

/// What of the experts a GGUF name means, and where it may lie.
pub(super) struct ExpertsPart {
    /// All experts in one tensor.
    joined: String,
    layout: ExpertsLayout,
    /// Gate (0) or up (1) of what has both.
    half: Option<usize>,
    is_bias: bool,
    /// Around the number of an expert that lies alone.
    alone: [String; 2],
}

impl ExpertsPart {
    /// That of `blk.N.ffn_{gate,up,down}_exps.{weight,bias}`.
    pub(super) fn new(name: &str, family: &Family) -> Option<Self> {
        let (layer, part) = name.strip_prefix("blk.")?.split_once('.')?;
        let (part, kind) = part.rsplit_once('.')?;
        let part = part.strip_suffix("_exps")?;
        let index = ["ffn_gate", "ffn_up", "ffn_down"]
            .iter()
            .position(|p| *p == part)?;
        let half = (index < 2).then_some(index);
        let names = &family.hf_tensors;
        let own = names.expert[index];
        let moe = format!("model.layers.{layer}.{}", names.moe);
        let joined = names.joined_experts[usize::from(half.is_none())];
        Some(Self {
            joined: format!("{moe}.{joined}"),
            layout: names.experts_layout,
            half,
            is_bias: kind == "bias",
            alone: [format!("{moe}.experts."), format!(".{own}.{kind}")],
        })
    }

    fn of(&self, expert: usize) -> String {
        let [before, after] = &self.alone;
        format!("{before}{expert}{after}")
    }

    /// The tensor, `[num_experts, out_features, in_features]`, or `[num_experts, out_features]` of
    /// biases.
    pub(super) fn read<'a>(
        &self,
        weights: &'a HfWeights<'_>,
    ) -> Result<Option<RawTensor<'a>>, LoadError> {
        let together = match self.layout {
            ExpertsLayout::Halves => weights.raw(&self.joined)?.map(|all| match self.half {
                Some(half) => halved(all, half),
                None => all,
            }),
            ExpertsLayout::Turns if self.is_bias => {
                let bias = weights.raw(&format!("{}_bias", self.joined))?;
                bias.map(|bias| self.in_turns(bias))
            }
            ExpertsLayout::Turns => match weights.raw(&self.joined)? {
                Some(all) => Some(self.in_turns(transposed(all))),
                None => self.blocks(weights)?,
            },
        };
        match together {
            Some(together) => Ok(Some(together)),
            None => joined(|expert| self.of(expert), |name| weights.raw(name)),
        }
    }

    /// MXFP4 weights: codes `[num_experts, out_features, blocks, 16]` and the exponents of their
    /// scales `[num_experts, out_features, blocks]`, as blocks of GGUF's type.
    fn blocks(&self, weights: &HfWeights<'_>) -> Result<Option<RawTensor<'static>>, LoadError> {
        let [codes_name, scales_name] =
            ["blocks", "scales"].map(|part| format!("{}_{part}", self.joined));
        let (Some((shape, codes)), Some((scales_shape, scales))) =
            (weights.bytes(&codes_name)?, weights.bytes(&scales_name)?)
        else {
            return Ok(None);
        };
        let [experts, outputs, blocks, CODES_LEN] = shape[..] else {
            return Err(LoadError::WrongShape {
                name: codes_name,
                expected: vec![0, 0, 0, CODES_LEN],
                actual: shape.to_vec(),
            });
        };
        if scales_shape != &shape[..3] {
            return Err(LoadError::WrongShape {
                name: scales_name,
                expected: shape[..3].to_vec(),
                actual: scales_shape.to_vec(),
            });
        }
        // Gate and up take turns, so an odd number of outputs is no such pair.
        let (first, step) = self.half.map_or((0, 1), |half| (half, 2));
        if !outputs.is_multiple_of(step) {
            return Ok(None);
        }
        let codes = codes.chunks_exact((blocks * CODES_LEN).max(1));
        let of_outputs = codes.zip(scales.chunks_exact(blocks.max(1)));
        let num_blocks = experts * outputs / step * blocks;
        let mut data = Vec::with_capacity(num_blocks * (1 + CODES_LEN));
        for (codes, scales) in of_outputs.skip(first).step_by(step) {
            for (codes, scale) in codes.as_chunks().0.iter().zip(scales) {
                data.extend_from_slice(&gguf_block(codes, *scale));
            }
        }
        Ok(Some(RawTensor {
            dtype: DType::MXFP4,
            shape: vec![experts, outputs / step, blocks * 2 * CODES_LEN],
            data: Cow::Owned(data),
        }))
    }

    /// Every other output, where gate and up take turns: of `[num_experts, out_features]` or
    /// `[num_experts, out_features, …]`.
    fn in_turns<'a>(&self, all: RawTensor<'a>) -> RawTensor<'a> {
        let Some(half) = self.half else {
            return all;
        };
        let is_odd = |outputs: &usize| !outputs.is_multiple_of(2);
        if all.shape.get(1).is_some_and(is_odd) {
            // Refused by whoever wants a shape.
            return all;
        }
        let mut shape = all.shape;
        let num_outputs: usize = shape.iter().take(2).product();
        let output_len = all.data.len() / num_outputs.max(1);
        let outputs = all.data.chunks_exact(output_len.max(1));
        let data = outputs.skip(half).step_by(2).flatten().copied().collect();
        if let Some(width) = shape.get_mut(1) {
            *width /= 2;
        }
        RawTensor {
            dtype: all.dtype,
            shape,
            data: Cow::Owned(data),
        }
    }
}

/// Bytes of a block's 32 codes.
const CODES_LEN: usize = 16;

/// A block as GGUF files hold it: the scale's exponent, then the codes. Their byte `i` has elements
/// `i` and `i + 16`, where that of released checkpoints has elements `2 i` and `2 i + 1` (the low
/// bits first).
fn gguf_block(codes: &[u8; CODES_LEN], scale: u8) -> [u8; 1 + CODES_LEN] {
    let code = |element: usize| (codes[element / 2] >> (4 * (element % 2))) & 15;
    std::array::from_fn(|at| match at.checked_sub(1) {
        None => scale,
        Some(byte) => code(byte) | (code(byte + CODES_LEN) << 4),
    })
}

/// The first or second half of every expert's outputs, of `[num_experts, 2 * out_features,
/// in_features]`.
fn halved(joined: RawTensor<'_>, half: usize) -> RawTensor<'static> {
    let [experts, outputs] = [0, 1].map(|axis| joined.shape.get(axis).copied().unwrap_or(0));
    let half_len = joined.data.len() / (2 * experts).max(1);
    let halves = joined.data.chunks_exact(half_len.max(1));
    let data = halves.skip(half).step_by(2).flatten().copied().collect();
    let mut shape = joined.shape;
    if let Some(width) = shape.get_mut(1) {
        *width = outputs / 2;
    }
    RawTensor {
        dtype: joined.dtype,
        shape,
        data: Cow::Owned(data),
    }
}

/// `[num_experts, out_features, in_features]` of `[num_experts, in_features, out_features]`. Other
/// shapes stay, and are refused by whoever wants a shape.
fn transposed(all: RawTensor<'_>) -> RawTensor<'_> {
    let [experts, inputs, outputs] = all.shape[..] else {
        return all;
    };
    let num_values = experts * inputs * outputs;
    if num_values == 0 {
        return all;
    }
    let value_len = all.data.len() / num_values;
    let mut data = Vec::with_capacity(all.data.len());
    for expert in all.data.chunks_exact(inputs * outputs * value_len) {
        for output in 0..outputs {
            for row in expert.chunks_exact(outputs * value_len) {
                data.extend_from_slice(&row[output * value_len..][..value_len]);
            }
        }
    }
    RawTensor {
        dtype: all.dtype,
        shape: vec![experts, outputs, inputs],
        data: Cow::Owned(data),
    }
}
