//! Bayesian optimisation over subsets of a fixed size, as SWIFT's released code does it with the
//! package bayesian-optimization: a Gaussian process with a Matérn 5/2 kernel, noise 1e-2, and the
//! upper confidence bound.

/// Weight of the deviation in the bound (the package's default).
const KAPPA: f64 = 2.576;
/// Variance of the scores' noise (`alpha` in SWIFT's code).
const NOISE: f64 = 1e-2;
/// Subsets among which the bound is maximised.
const NUM_PROPOSALS: usize = 512;

/// Scores of the subsets that were tried.
#[derive(Default)]
pub(super) struct Process {
    points: Vec<Vec<bool>>,
    scores: Vec<f64>,
}

impl Process {
    pub fn add(&mut self, point: Vec<bool>, score: f64) {
        self.points.push(point);
        self.scores.push(score);
    }

    /// Of many subsets that `propose` draws, the one with the highest bound.
    pub fn suggest(&self, mut propose: impl FnMut() -> Vec<bool>) -> Vec<bool> {
        let mean = self.scores.iter().sum::<f64>() / self.scores.len().max(1) as f64;
        let centred: Vec<f64> = self.scores.iter().map(|score| score - mean).collect();
        let scale = centred.iter().map(|score| score * score).sum::<f64>();
        let scale = (scale / self.scores.len().max(1) as f64).sqrt().max(1e-6);
        let factor = self.cholesky();
        let targets: Vec<f64> = centred.iter().map(|score| score / scale).collect();
        let weights = backward(&factor, &forward(&factor, &targets));
        let bound = |point: &[bool]| {
            let kernel: Vec<f64> = self
                .points
                .iter()
                .map(|other| matern(point, other))
                .collect();
            let mean: f64 = kernel.iter().zip(&weights).map(|(k, w)| k * w).sum();
            let solved = forward(&factor, &kernel);
            let variance = 1.0 - solved.iter().map(|value| value * value).sum::<f64>();
            mean + KAPPA * variance.max(0.0).sqrt()
        };
        let proposals: Vec<Vec<bool>> = (0..NUM_PROPOSALS).map(|_| propose()).collect();
        let scored = proposals.into_iter().map(|point| (bound(&point), point));
        let best = scored.max_by(|a, b| a.0.total_cmp(&b.0));
        best.map(|(_, point)| point).unwrap_or_default()
    }

    /// The lower factor of the kernel matrix.
    fn cholesky(&self) -> Vec<Vec<f64>> {
        let n = self.points.len();
        let mut factor = vec![vec![0.0; n]; n];
        for i in 0..n {
            for j in 0..=i {
                let noise = if i == j { NOISE } else { 0.0 };
                let dot: f64 = (0..j).map(|k| factor[i][k] * factor[j][k]).sum();
                let rest = matern(&self.points[i], &self.points[j]) + noise - dot;
                factor[i][j] = if i == j {
                    rest.max(1e-12).sqrt()
                } else {
                    rest / factor[j][j]
                };
            }
        }
        factor
    }
}

/// Matérn 5/2 with length 1 over the Euclidean distance of 0/1 vectors.
fn matern(a: &[bool], b: &[bool]) -> f64 {
    let distance = a.iter().zip(b).filter(|(a, b)| a != b).count() as f64;
    let scaled = (5.0 * distance).sqrt();
    (1.0 + scaled + scaled * scaled / 3.0) * (-scaled).exp()
}

fn forward(factor: &[Vec<f64>], right: &[f64]) -> Vec<f64> {
    let mut solved = vec![0.0; right.len()];
    for i in 0..right.len() {
        let dot: f64 = (0..i).map(|k| factor[i][k] * solved[k]).sum();
        solved[i] = (right[i] - dot) / factor[i][i];
    }
    solved
}

fn backward(factor: &[Vec<f64>], right: &[f64]) -> Vec<f64> {
    let n = right.len();
    let mut solved = vec![0.0; n];
    for i in (0..n).rev() {
        let dot: f64 = (i + 1..n).map(|k| factor[k][i] * solved[k]).sum();
        solved[i] = (right[i] - dot) / factor[i][i];
    }
    solved
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_prefers_what_resembles_the_best_points() {
        let mut process = Process::default();
        let point = |bits: [u8; 6]| bits.map(|bit| bit == 1).to_vec();
        process.add(point([1, 1, 1, 0, 0, 0]), 1.0);
        process.add(point([0, 0, 0, 1, 1, 1]), 0.0);
        process.add(point([0, 0, 1, 1, 1, 0]), 0.1);
        process.add(point([1, 0, 1, 0, 1, 0]), 0.6);
        let near = point([1, 1, 0, 1, 0, 0]);
        let far = point([0, 0, 0, 1, 1, 0]);
        let mut proposals = [near.clone(), far].into_iter().cycle();
        assert_eq!(process.suggest(|| proposals.next().unwrap()), near);
    }

    #[test]
    fn the_factor_solves_the_kernel() {
        let mut process = Process::default();
        for bits in 0..5_u8 {
            process.add((0..4).map(|bit| bits >> bit & 1 == 1).collect(), 0.0);
        }
        let factor = process.cholesky();
        let right = [1.0, -2.0, 0.5, 3.0, 0.0];
        let solved = backward(&factor, &forward(&factor, &right));
        for (i, expected) in right.iter().enumerate() {
            let row = process.points.iter().enumerate().map(|(j, other)| {
                let noise = if i == j { NOISE } else { 0.0 };
                (matern(&process.points[i], other) + noise) * solved[j]
            });
            assert!((row.sum::<f64>() - expected).abs() < 1e-9);
        }
    }
}
