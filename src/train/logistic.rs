//! Logistic regression on a few features, and how good probabilities are.

/// What large weights cost, beside the log loss of one row: enough for a unique minimum.
const RIDGE: f64 = 1.0;
const MAX_STEPS: usize = 100;
/// Steps smaller than this change nothing.
const TOLERANCE: f64 = 1e-10;
/// Bins of equal width in which calibration is measured.
const NUM_BINS: usize = 10;

/// One observation.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Row<const N: usize> {
    pub features: [f64; N],
    /// In 0..=1.
    pub outcome: f64,
    pub weight: f64,
}

/// The model: log odds are the intercept and the weighed sum of the features.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Logistic<const N: usize> {
    pub intercept: f64,
    pub weights: [f64; N],
}

impl<const N: usize> Logistic<N> {
    /// The minimum of the log loss, by Newton's method on standardised features. A feature that
    /// never changes has no weight.
    pub fn fit(rows: &[Row<N>]) -> Self {
        let total: f64 = rows.iter().map(|row| row.weight).sum();
        let mean_of = |of: &dyn Fn(&Row<N>) -> f64| {
            rows.iter().map(|row| row.weight * of(row)).sum::<f64>() / total
        };
        let means: [f64; N] = std::array::from_fn(|at| mean_of(&|row| row.features[at]));
        let scales: [f64; N] = std::array::from_fn(|at| {
            let variance = mean_of(&|row| (row.features[at] - means[at]).powi(2));
            variance.sqrt()
        });
        let standard = |row: &Row<N>| -> Vec<f64> {
            let scaled = (0..N).map(|at| match scales[at] > 1e-9 {
                true => (row.features[at] - means[at]) / scales[at],
                false => 0.0,
            });
            std::iter::once(1.0).chain(scaled).collect()
        };
        let inputs: Vec<Vec<f64>> = rows.iter().map(standard).collect();
        let mut solution = vec![0.0; N + 1];
        for _ in 0..MAX_STEPS {
            let step = newton_step(rows, &inputs, &solution);
            solution
                .iter_mut()
                .zip(&step)
                .for_each(|(at, by)| *at += by);
            if step.iter().all(|by| by.abs() < TOLERANCE) {
                break;
            }
        }
        let weights: [f64; N] = std::array::from_fn(|at| match scales[at] > 1e-9 {
            true => solution[at + 1] / scales[at],
            false => 0.0,
        });
        let shift: f64 = weights
            .iter()
            .zip(means)
            .map(|(weight, mean)| weight * mean)
            .sum();
        Self {
            intercept: solution[0] - shift,
            weights,
        }
    }
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

/// `-H⁻¹ g` of the penalised log loss; the intercept, which comes first, costs nothing.
fn newton_step<const N: usize>(rows: &[Row<N>], inputs: &[Vec<f64>], solution: &[f64]) -> Vec<f64> {
    let size = solution.len();
    let mut gradient = vec![0.0; size];
    let mut hessian = vec![vec![0.0; size]; size];
    for at in 1..size {
        gradient[at] = RIDGE * solution[at];
        hessian[at][at] = RIDGE;
    }
    // Rows that are all right or all wrong leave the intercept without a minimum.
    hessian[0][0] = 1e-6;
    for (row, input) in rows.iter().zip(inputs) {
        let sum: f64 = input.iter().zip(solution).map(|(x, w)| x * w).sum();
        let probability = sigmoid(sum);
        let curvature = row.weight * probability * (1.0 - probability);
        for i in 0..size {
            gradient[i] += row.weight * (probability - row.outcome) * input[i];
            for j in 0..size {
                hessian[i][j] += curvature * input[i] * input[j];
            }
        }
    }
    let step = solve(hessian, gradient);
    // Far from the minimum Newton's step may be too long.
    let longest = step
        .iter()
        .fold(0.0, |longest: f64, by| longest.max(by.abs()));
    let scale = if longest > 4.0 { 4.0 / longest } else { 1.0 };
    step.into_iter().map(|by| -scale * by).collect()
}

/// Solves a symmetric, positive definite system by elimination with pivots.
fn solve(mut matrix: Vec<Vec<f64>>, mut right: Vec<f64>) -> Vec<f64> {
    let size = right.len();
    for at in 0..size {
        let largest = |a: &usize, b: &usize| matrix[*a][at].abs().total_cmp(&matrix[*b][at].abs());
        let pivot = (at..size).max_by(largest).unwrap_or(at);
        matrix.swap(at, pivot);
        right.swap(at, pivot);
        let (above, rows) = matrix.split_at_mut(at + 1);
        for (below, row) in (at + 1..size).zip(rows) {
            let factor = row[at] / above[at][at];
            for (value, by) in row[at..].iter_mut().zip(&above[at][at..]) {
                *value -= factor * by;
            }
            right[below] -= factor * right[at];
        }
    }
    for at in (0..size).rev() {
        let known: f64 = (at + 1..size)
            .map(|column| matrix[at][column] * right[column])
            .sum();
        right[at] = (right[at] - known) / matrix[at][at];
    }
    right
}

/// How good probabilities are.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Quality {
    /// Mean squared error, and that of always saying the mean outcome.
    pub brier: f64,
    pub brier_of_mean: f64,
    /// Expected calibration error over ten bins of equal width.
    pub ece: f64,
    /// The probability that a right answer gets a higher one than a wrong one; 0.5 without both.
    pub auc: f64,
}

impl Quality {
    /// Of probabilities beside outcomes, each with its weight.
    pub(super) fn of(said: &[(f64, f64, f64)]) -> Self {
        let total: f64 = said.iter().map(|(_, _, weight)| weight).sum();
        if total <= 0.0 {
            return Self {
                auc: 0.5,
                ..Self::default()
            };
        }
        let mean = said.iter().map(|(_, outcome, w)| w * outcome).sum::<f64>() / total;
        let square = |by: &dyn Fn(f64) -> f64| {
            let errors = said
                .iter()
                .map(|(p, outcome, w)| w * (by(*p) - outcome).powi(2));
            errors.sum::<f64>() / total
        };
        let mut bins = [(0.0, 0.0); NUM_BINS];
        for (probability, outcome, weight) in said {
            let bin = ((probability * NUM_BINS as f64) as usize).min(NUM_BINS - 1);
            bins[bin].0 += weight * probability;
            bins[bin].1 += weight * outcome;
        }
        let gaps = bins.iter().map(|(said, was)| (said - was).abs());
        Self {
            brier: square(&|probability| probability),
            brier_of_mean: square(&|_| mean),
            ece: gaps.sum::<f64>() / total,
            auc: auc(said),
        }
    }
}

fn auc(said: &[(f64, f64, f64)]) -> f64 {
    let mut sorted = said.to_vec();
    sorted.sort_unstable_by(|a, b| a.0.total_cmp(&b.0));
    let (mut sum, mut wrong_below, mut rights) = (0.0, 0.0, 0.0);
    for equal in sorted.chunk_by(|a, b| a.0 == b.0) {
        let right: f64 = equal.iter().map(|(_, outcome, w)| w * outcome).sum();
        let wrong: f64 = equal
            .iter()
            .map(|(_, outcome, w)| w * (1.0 - outcome))
            .sum();
        sum += right * (wrong_below + wrong / 2.0);
        wrong_below += wrong;
        rights += right;
    }
    match rights * wrong_below > 0.0 {
        true => sum / (rights * wrong_below),
        false => 0.5,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::random::Random;

    #[test]
    fn the_weights_that_made_the_outcomes_are_found() {
        let mut random = Random(7);
        let row = |_| {
            let features = [random.uniform() * 4.0 - 2.0, random.uniform() * 10.0, 3.0];
            let probability = sigmoid(0.5 + 2.0 * features[0] - 0.3 * features[1]);
            Row {
                features,
                // The probability itself: the minimum is exact but for the ridge.
                outcome: probability,
                weight: 10.0,
            }
        };
        let rows: Vec<Row<3>> = (0..2000).map(row).collect();
        let model = Logistic::fit(&rows);
        assert!((model.intercept - 0.5).abs() < 0.01, "{model:?}");
        assert!((model.weights[0] - 2.0).abs() < 0.01, "{model:?}");
        assert!((model.weights[1] + 0.3).abs() < 0.01, "{model:?}");
        assert_eq!(model.weights[2], 0.0);
    }

    #[test]
    fn one_outcome_alone_has_a_model() {
        let row = |x: f64| Row {
            features: [x],
            outcome: 1.0,
            weight: 1.0,
        };
        let model = Logistic::fit(&[row(0.0), row(1.0), row(2.0)]);
        assert!(
            model.intercept.is_finite() && model.intercept > 3.0,
            "{model:?}"
        );
        assert!(model.weights[0].abs() < 0.01, "{model:?}");
    }

    #[test]
    fn quality_equals_its_definitions() {
        let said = [
            (0.9, 1.0, 1.0),
            (0.8, 0.0, 1.0),
            (0.3, 0.0, 2.0),
            (0.8, 1.0, 1.0),
        ];
        let quality = Quality::of(&said);
        assert!((quality.brier - (0.01 + 0.64 + 0.18 + 0.04) / 5.0).abs() < 1e-12);
        assert!((quality.brier_of_mean - 0.24).abs() < 1e-12);
        // Bins of 0.3 (twice), 0.8 (twice) and 0.9.
        assert!((quality.ece - (0.6 + 0.6 + 0.1) / 5.0).abs() < 1e-12);
        // Of six pairs: 0.9 above all three, 0.8 above two and beside one.
        assert!((quality.auc - 5.5 / 6.0).abs() < 1e-12);
        assert_eq!(Quality::of(&[]).auc, 0.5);
    }
}
