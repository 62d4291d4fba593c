//! What one more answer is worth: how much the best value is expected to rise with it. Sampling
//! goes on while that is more than the answer costs: Weitzman's rule for boxes that all cost the
//! same, with a posterior in place of the distribution, which nobody knows ("Optimal Stopping vs
//! Best-of-N", arXiv 2510.01394, bounds it from above instead).

/// What is believed of the values before the first: mean and variance of the uniform distribution,
/// with the weight of one answer.
const PRIOR_MEAN: f64 = 0.5;
const PRIOR_VARIANCE: f64 = 1.0 / 12.0;
const PRIOR_WEIGHT: f64 = 1.0;
/// Panels of Simpson's rule: the density is smooth, and six digits are more than is known of it.
const NUM_PANELS: usize = 128;

/// What a value says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scale {
    /// How good an answer is.
    Graded,
    /// 1.0 that it is right; less says how far a wrong one came.
    Decisive,
}

/// How much the next answer is expected to raise the best of `values`, all in 0..=1.
pub(super) fn expected_improvement(values: &[f64], scale: Scale) -> f64 {
    let best = values.iter().copied().fold(0.0, f64::max);
    match scale {
        Scale::Graded => Predictive::new(values).expected_above(best),
        // Laplace's rule of succession: none of these was right, or nothing more would be asked.
        Scale::Decisive => (1.0 - best) / (values.len() as f64 + 2.0),
    }
}

/// The next value's distribution given those before, taken for normal with unknown mean and
/// variance (a normal-inverse-gamma prior): Student's t, of which the part in 0..=1 counts.
struct Predictive {
    degrees: f64,
    location: f64,
    /// Square of its scale.
    spread: f64,
}

impl Predictive {
    fn new(values: &[f64]) -> Self {
        let count = values.len() as f64;
        let mean = values.iter().sum::<f64>() / count.max(1.0);
        let sum_squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
        let weight = PRIOR_WEIGHT + count;
        let shape = 1.0 + count / 2.0;
        let shift = PRIOR_WEIGHT * count * (mean - PRIOR_MEAN).powi(2) / weight;
        let rate = PRIOR_VARIANCE + (sum_squares + shift) / 2.0;
        Self {
            degrees: 2.0 * shape,
            location: (PRIOR_WEIGHT * PRIOR_MEAN + count * mean) / weight,
            spread: rate * (weight + 1.0) / (shape * weight),
        }
    }

    /// Up to a factor.
    fn density(&self, value: f64) -> f64 {
        let square = (value - self.location).powi(2) / (self.spread * self.degrees);
        (1.0 + square).powf(-(self.degrees + 1.0) / 2.0)
    }

    /// `E[max(V - best, 0)]`
    fn expected_above(&self, best: f64) -> f64 {
        let above = simpson(best, 1.0, |value| (value - best) * self.density(value));
        above / simpson(0.0, 1.0, |value| self.density(value))
    }
}

fn simpson(from: f64, to: f64, f: impl Fn(f64) -> f64) -> f64 {
    let width = (to - from) / NUM_PANELS as f64;
    let inner = (1..NUM_PANELS).map(|panel| {
        let weight = if panel % 2 == 1 { 4.0 } else { 2.0 };
        weight * f(from + width * panel as f64)
    });
    (f(from) + inner.sum::<f64>() + f(to)) * width / 3.0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn graded(values: &[f64]) -> f64 {
        expected_improvement(values, Scale::Graded)
    }

    #[test]
    fn the_predictive_distribution_is_students() {
        // The posterior of 0.2, 0.4, 0.9, and the integral of its density in two million panels.
        let predictive = Predictive::new(&[0.2, 0.4, 0.9]);
        assert_eq!(predictive.degrees, 5.0);
        assert!((predictive.location - 0.5).abs() < 1e-12);
        assert!((predictive.spread - (1.0 / 12.0 + 0.13) / 2.0).abs() < 1e-12);
        assert!((graded(&[0.2, 0.4, 0.9]) - 0.002_564_462_845_5).abs() < 1e-9);
    }

    #[test]
    fn what_is_known_lowers_what_is_hoped_for() {
        // A high first value leaves little, a low one much.
        assert!(graded(&[0.97]) < 0.001);
        assert!(graded(&[0.3]) > 0.05);
        // The more answers agree on a value, the less the next is expected to be another.
        let same: Vec<f64> = (1..=8).map(|n| graded(&vec![0.3; n])).collect();
        assert!(same.windows(2).all(|pair| pair[1] < pair[0]), "{same:?}");
        // The more they differ, the more may come.
        assert!(graded(&[0.6, 0.4, 0.2]) > graded(&[0.6, 0.3, 0.3]));
        // Nothing is above 1.
        assert_eq!(graded(&[1.0, 0.2]), 0.0);
    }

    #[test]
    fn wrong_answers_leave_laplaces_hope() {
        assert_eq!(expected_improvement(&[0.0; 8], Scale::Decisive), 0.1);
        assert_eq!(expected_improvement(&[0.5, 0.0], Scale::Decisive), 0.125);
    }
}
