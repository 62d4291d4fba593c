//! The head while it is trained, as tensors with gradients.

use std::collections::HashMap;

use candle_core::{D, DType, Tensor};
use candle_nn::{VarBuilder, VarMap};

use super::batch::Batch;
use super::random::Random;
use super::value_head::{TrainError, TrainOptions};
use crate::reward::head_tensors as names;

/// How much more the likelihood counts than one number of the state when a head starts to learn: it is one among
/// hundreds, and known to matter.
const LIKELIHOOD_SCALE: f32 = 4.0;

/// The head while it is trained; see [`crate::reward::ValueHead`] for its form.
pub(super) struct Head {
    mean: Tensor,
    inverse_std: Tensor,
    pub weights: VarMap,
}

impl Head {
    pub(super) fn new(
        train: &Batch,
        options: &TrainOptions,
        seed: u64,
    ) -> Result<Self, TrainError> {
        let (num_inputs, width) = (train.states.dim(D::Minus1)?, options.width);
        let mean = train.states.mean(0)?;
        let variance = train.states.broadcast_sub(&mean)?.sqr()?.mean(0)?;
        let mut inverse_std = (variance + 1e-6)?.sqrt()?.recip()?.to_vec1::<f32>()?;
        if let Some(last) = inverse_std.last_mut().filter(|_| options.reads_likelihood) {
            *last *= LIKELIHOOD_SCALE;
        }
        let inverse_std = Tensor::new(inverse_std, train.states.device())?;
        let weights = VarMap::new();
        let device = train.states.device();
        let builder = VarBuilder::from_varmap(&weights, DType::F32, device);
        let mut random = Random(seed);
        for (name, rows, columns) in [
            (names::INPUT_WEIGHT, width, num_inputs),
            (names::OUTPUT_WEIGHT, 1, width),
        ] {
            let bound = (3.0 / columns as f64).sqrt();
            let values: Vec<f32> = (0..rows * columns)
                .map(|_| ((random.uniform() * 2.0 - 1.0) * bound) as f32)
                .collect();
            builder.get((rows, columns), name)?;
            let values = Tensor::from_vec(values, (rows, columns), device)?;
            set(&weights, name, &values)?;
        }
        builder.get(width, names::INPUT_BIAS)?;
        builder.get(1, names::OUTPUT_BIAS)?;
        Ok(Self {
            mean,
            inverse_std,
            weights,
        })
    }

    fn tensor(&self, name: &str) -> Result<Tensor, TrainError> {
        let data = self.weights.data().lock();
        let data = data.unwrap_or_else(|poison| poison.into_inner());
        let var = data
            .get(name)
            .ok_or_else(|| TrainError::Data(format!("no tensor {name}")))?;
        Ok(var.as_tensor().clone())
    }

    /// Values in 0..=1, `[rows]`.
    pub(super) fn forward(&self, states: &Tensor) -> Result<Tensor, TrainError> {
        Ok(candle_nn::ops::sigmoid(&self.logits(states)?)?)
    }

    /// `[rows]`
    fn logits(&self, states: &Tensor) -> Result<Tensor, TrainError> {
        let x = states
            .broadcast_sub(&self.mean)?
            .broadcast_mul(&self.inverse_std)?;
        let hidden = x
            .matmul(&self.tensor(names::INPUT_WEIGHT)?.t()?)?
            .broadcast_add(&self.tensor(names::INPUT_BIAS)?)?
            .tanh()?;
        let out = hidden
            .matmul(&self.tensor(names::OUTPUT_WEIGHT)?.t()?)?
            .broadcast_add(&self.tensor(names::OUTPUT_BIAS)?)?;
        Ok(out.squeeze(1)?)
    }

    /// Squared error of the values, and `pairwise` times how far right answers are from being above wrong ones.
    pub(super) fn loss(&self, batch: &Batch, pairwise: f64) -> Result<Tensor, TrainError> {
        let logits = self.logits(&batch.states)?;
        let values = candle_nn::ops::sigmoid(&logits)?;
        let mse = (values - &batch.values)?.sqr()?.mean_all()?;
        let Some((right, wrong)) = batch.pairs.as_ref().filter(|_| pairwise > 0.0) else {
            return Ok(mse);
        };
        let margin = (logits.index_select(right, 0)? - logits.index_select(wrong, 0)?)?;
        // -ln sigmoid(margin)
        let ranked = candle_nn::ops::sigmoid(&margin)?.clamp(1e-6, 1.0)?.log()?;
        Ok((mse - (ranked.mean_all()? * pairwise)?)?)
    }

    pub(super) fn snapshot(&self) -> Result<HashMap<String, Tensor>, TrainError> {
        let mut tensors = HashMap::from([
            (names::MEAN.to_owned(), self.mean.clone()),
            (names::INVERSE_STD.to_owned(), self.inverse_std.clone()),
        ]);
        for name in [
            names::INPUT_WEIGHT,
            names::INPUT_BIAS,
            names::OUTPUT_WEIGHT,
            names::OUTPUT_BIAS,
        ] {
            tensors.insert(name.to_owned(), self.tensor(name)?.copy()?);
        }
        Ok(tensors)
    }

    pub(super) fn restore(&self, tensors: &HashMap<String, Tensor>) -> Result<(), TrainError> {
        for (name, tensor) in tensors {
            if self.tensor(name).is_ok() {
                set(&self.weights, name, tensor)?;
            }
        }
        Ok(())
    }
}

fn set(weights: &VarMap, name: &str, tensor: &Tensor) -> Result<(), TrainError> {
    let data = weights.data().lock();
    let data = data.unwrap_or_else(|poison| poison.into_inner());
    match data.get(name) {
        Some(var) => Ok(var.set(tensor)?),
        None => Err(TrainError::Data(format!("no tensor {name}"))),
    }
}
