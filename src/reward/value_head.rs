//! A small head on the policy's own final hidden state: the value of an answer so far, without a
//! forward pass of its own.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use futures::future::{BoxFuture, FutureExt};
use safetensors::{Dtype, SafeTensors};

use super::{Candidate, Scorer, ScorerError, Taps};

/// Names of the file's tensors, all f32. `W` is the head's width; `H` the number of its inputs: the policy's hidden
/// size, and one more where the head also reads the mean log-probability of the answer's tokens, as its last input.
pub mod tensors {
    /// `[H]`: subtracted from a state.
    pub const MEAN: &str = "mean";
    /// `[H]`: multiplied with what is left.
    pub const INVERSE_STD: &str = "inverse_std";
    /// `[W, H]`
    pub const INPUT_WEIGHT: &str = "input.weight";
    /// `[W]`
    pub const INPUT_BIAS: &str = "input.bias";
    /// `[1, W]`
    pub const OUTPUT_WEIGHT: &str = "output.weight";
    /// `[1]`
    pub const OUTPUT_BIAS: &str = "output.bias";
}

/// Largest number of a head. Sums of products of two such numbers and a state stay finite in f32.
pub(super) const MAX_NUMBER: f32 = 1e9;

/// Why a file is not a value head.
#[derive(Debug, thiserror::Error)]
pub enum ValueHeadError {
    #[error(transparent)]
    Io(#[from] std::io::Error),
    #[error("not a safetensors file: {0}")]
    Format(#[from] safetensors::SafeTensorError),
    #[error("tensor {name}: {message}")]
    Tensor { name: &'static str, message: String },
    #[error("the head reads states of {actual} numbers; this model's have {expected}")]
    HiddenSize { expected: usize, actual: usize },
}

/// `sigmoid(output(tanh(input((x - mean) * inverse_std))))`
#[derive(Debug, Clone)]
pub struct ValueHead {
    hidden_size: usize,
    mean: Vec<f32>,
    inverse_std: Vec<f32>,
    input_weight: Vec<f32>,
    input_bias: Vec<f32>,
    output_weight: Vec<f32>,
    output_bias: f32,
}

impl ValueHead {
    /// Reads a file for a policy with this hidden size.
    pub fn load(path: &Path, hidden_size: usize) -> Result<Self, ValueHeadError> {
        let bytes = std::fs::read(path)?;
        let file = SafeTensors::deserialize(&bytes)?;
        let mean = floats(&file, tensors::MEAN)?;
        let num_inputs = mean.len();
        if num_inputs != hidden_size && num_inputs != hidden_size + 1 {
            return Err(ValueHeadError::HiddenSize {
                expected: hidden_size,
                actual: mean.len(),
            });
        }
        let input_bias = floats(&file, tensors::INPUT_BIAS)?;
        let width = input_bias.len();
        let output_bias = sized(&file, tensors::OUTPUT_BIAS, 1)?;
        Ok(Self {
            hidden_size,
            inverse_std: sized(&file, tensors::INVERSE_STD, num_inputs)?,
            input_weight: sized(&file, tensors::INPUT_WEIGHT, width * num_inputs)?,
            output_weight: sized(&file, tensors::OUTPUT_WEIGHT, width)?,
            output_bias: output_bias.first().copied().unwrap_or(0.0),
            mean,
            input_bias,
        })
    }

    /// Whether the head reads the answer's likelihood beside the state.
    pub fn reads_likelihood(&self) -> bool {
        self.mean.len() > self.hidden_size
    }

    /// The value of a state, in 0..=1. `likelihood` is the mean log-probability of the answer's tokens.
    pub fn value(&self, state: &[f32], likelihood: f32) -> f64 {
        let inputs = state.iter().chain(std::iter::once(&likelihood));
        let scaled = inputs.zip(&self.mean).zip(&self.inverse_std);
        let x: Vec<f32> = scaled
            .map(|((x, mean), inverse)| (x - mean) * inverse)
            .collect();
        let rows = self.input_weight.chunks_exact(self.mean.len().max(1));
        let hidden = rows.zip(&self.input_bias).map(|(row, bias)| {
            let dot: f32 = row.iter().zip(&x).map(|(w, x)| w * x).sum();
            (dot + bias).tanh()
        });
        let sum: f32 = hidden.zip(&self.output_weight).map(|(h, w)| h * w).sum();
        let value = 1.0 / (1.0 + f64::from(-(sum + self.output_bias)).exp());
        // A state that is not finite has no value.
        if value.is_nan() { 0.0 } else { value }
    }
}

fn floats(file: &SafeTensors<'_>, name: &'static str) -> Result<Vec<f32>, ValueHeadError> {
    let error = |message: String| ValueHeadError::Tensor { name, message };
    let tensor = file
        .tensor(name)
        .map_err(|source| error(source.to_string()))?;
    if tensor.dtype() != Dtype::F32 {
        return Err(error(format!("is {:?}, not F32", tensor.dtype())));
    }
    let (values, _) = tensor.data().as_chunks::<4>();
    let values: Vec<f32> = values
        .iter()
        .map(|bytes| f32::from_le_bytes(*bytes))
        .collect();
    match values.iter().all(|value| value.abs() <= MAX_NUMBER) {
        true => Ok(values),
        false => Err(error(format!(
            "holds numbers that are not finite or above {MAX_NUMBER}"
        ))),
    }
}

fn sized(
    file: &SafeTensors<'_>,
    name: &'static str,
    len: usize,
) -> Result<Vec<f32>, ValueHeadError> {
    let values = floats(file, name)?;
    match values.len() == len {
        true => Ok(values),
        false => Err(ValueHeadError::Tensor {
            name,
            message: format!("has {} numbers, not {len}", values.len()),
        }),
    }
}

/// The scorer of a [`ValueHead`]. A candidate without a state (cut off in the middle) has value 0.
#[derive(Debug, Clone)]
pub struct ValueHeadScorer(pub Arc<ValueHead>);

impl Scorer for ValueHeadScorer {
    fn kind(&self) -> &'static str {
        "value_head"
    }

    fn scores_steps(&self) -> bool {
        true
    }

    fn taps(&self) -> Taps {
        Taps {
            hidden_state: true,
            logprobs: self.0.reads_likelihood(),
        }
    }

    fn score<'a>(
        &'a self,
        candidates: &'a [Candidate],
        _: Option<Instant>,
    ) -> BoxFuture<'a, Result<Vec<f64>, ScorerError>> {
        let value = |candidate: &Candidate| {
            let likelihood = candidate.logprob / candidate.num_tokens.max(1) as f64;
            let state = candidate.hidden_state.as_ref();
            state.map_or(0.0, |state| self.0.value(state, likelihood as f32))
        };
        let scores = candidates.iter().map(value).collect();
        async { Ok(scores) }.boxed()
    }
}
