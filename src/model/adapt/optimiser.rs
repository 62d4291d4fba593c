//! Adam (Kingma and Ba 2015) with decoupled weight decay (Loshchilov and Hutter 2019).

const BETA_1: f64 = 0.9;
const BETA_2: f64 = 0.999;

/// State of one vector.
#[derive(Debug, Clone)]
pub(super) struct Adam {
    epsilon: f64,
    weight_decay: f64,
    step: i32,
    m: Vec<f64>,
    v: Vec<f64>,
}

impl Adam {
    pub(super) fn new(len: usize, epsilon: f64, weight_decay: f64) -> Self {
        Self {
            epsilon,
            weight_decay,
            step: 0,
            m: vec![0.0; len],
            v: vec![0.0; len],
        }
    }

    /// Moves `values` against `gradient`.
    pub(super) fn update(&mut self, values: &mut [f32], gradient: &[f32], learning_rate: f64) {
        self.step += 1;
        let corrections = [BETA_1, BETA_2].map(|beta| 1.0 - beta.powi(self.step));
        let moments = self.m.iter_mut().zip(&mut self.v);
        for ((value, gradient), (m, v)) in values.iter_mut().zip(gradient).zip(moments) {
            let gradient = f64::from(*gradient);
            *m = BETA_1 * *m + (1.0 - BETA_1) * gradient;
            *v = BETA_2 * *v + (1.0 - BETA_2) * gradient * gradient;
            let scale = (*v / corrections[1]).sqrt() + self.epsilon;
            let decayed = f64::from(*value) * (1.0 - learning_rate * self.weight_decay);
            *value = (decayed - learning_rate * *m / corrections[0] / scale) as f32;
        }
    }
}
