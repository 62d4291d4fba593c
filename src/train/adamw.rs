//! AdamW (arXiv 1711.05101, algorithm 2).

/// Decay of the mean of gradients, and of their squares; the paper's defaults.
const BETAS: (f64, f64) = (0.9, 0.999);
const EPSILON: f64 = 1e-8;

/// The optimiser of one vector of weights.
pub(super) struct AdamW {
    learning_rate: f64,
    weight_decay: f64,
    step: i32,
    mean: Vec<f64>,
    square: Vec<f64>,
}

impl AdamW {
    pub(super) fn new(num_weights: usize, learning_rate: f64, weight_decay: f64) -> Self {
        Self {
            learning_rate,
            weight_decay,
            step: 0,
            mean: vec![0.0; num_weights],
            square: vec![0.0; num_weights],
        }
    }

    pub(super) fn step(&mut self, weights: &mut [f32], gradient: &[f32]) {
        self.step += 1;
        let kept = 1.0 - self.learning_rate * self.weight_decay;
        let scale = |beta: f64| 1.0 / (1.0 - beta.powi(self.step));
        let (mean_scale, square_scale) = (scale(BETAS.0), scale(BETAS.1));
        let moments = self.mean.iter_mut().zip(&mut self.square);
        for ((weight, slope), (mean, square)) in weights.iter_mut().zip(gradient).zip(moments) {
            let slope = f64::from(*slope);
            *mean = BETAS.0 * *mean + (1.0 - BETAS.0) * slope;
            *square = BETAS.1 * *square + (1.0 - BETAS.1) * slope * slope;
            let by = *mean * mean_scale / ((*square * square_scale).sqrt() + EPSILON);
            *weight = (f64::from(*weight) * kept - self.learning_rate * by) as f32;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_step_has_the_learning_rates_length_and_decay_pulls_to_zero() {
        let mut optimiser = AdamW::new(2, 0.1, 0.5);
        let mut weights = [1.0, -2.0];
        optimiser.step(&mut weights, &[3.0, 0.0]);
        assert!((weights[0] - (0.95 - 0.1)).abs() < 1e-6, "{weights:?}");
        assert!((weights[1] + 1.9).abs() < 1e-6, "{weights:?}");
    }

    #[test]
    fn finds_a_minimum() {
        let mut optimiser = AdamW::new(1, 0.05, 0.0);
        let mut weights = [4.0_f32];
        for _ in 0..500 {
            let slope = 2.0 * (weights[0] - 1.0);
            optimiser.step(&mut weights, &[slope]);
        }
        assert!((weights[0] - 1.0).abs() < 1e-2, "{weights:?}");
    }
}
