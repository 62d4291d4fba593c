//! Weights that share samples out, and draws by them.

use xxhash_rust::xxh3::Xxh3;

/// Keeps these numbers apart from those that tokens are drawn with.
const DOMAIN: &[u8] = b"search";
/// Scores are kept this far from 0 and 1, where a logit is infinite (its_hub's `_inv_sigmoid`).
const LEAST_DOUBT: f64 = 1e-7;

/// `exp(x / temperature)` of each number over that of the highest: a softmax that is not divided by
/// its sum.
pub(super) fn exponentials(numbers: &[f64], temperature: f64) -> Vec<f64> {
    let highest = numbers.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let weight = |x: &f64| ((x - highest) / temperature).exp();
    numbers.iter().map(weight).collect()
}

/// The log-odds of a score in 0..=1.
pub(super) fn logit(score: f64) -> f64 {
    let score = score.clamp(LEAST_DOUBT, 1.0 - LEAST_DOUBT);
    (score / (1.0 - score)).ln()
}

/// A uniform number in 0..1. It follows from the search's seed and the draw's place in the search
/// alone: the same request draws the same.
pub(super) fn uniform(seed: u64, place: [usize; 3]) -> f64 {
    let mut hasher = Xxh3::with_seed(seed);
    hasher.update(DOMAIN);
    for part in place {
        hasher.update(&(part as u64).to_le_bytes());
    }
    (hasher.digest() >> 11) as f64 / (1_u64 << 53) as f64
}

/// The index that a uniform number chooses in proportion to weights of which one is above 0.
pub(super) fn choose(weights: &[f64], uniform: f64) -> usize {
    let mut left = uniform * weights.iter().sum::<f64>();
    for (index, weight) in weights.iter().enumerate() {
        left -= weight;
        if left < 0.0 {
            return index;
        }
    }
    // Rounding left something over.
    let last = weights.iter().rposition(|weight| *weight > 0.0);
    last.unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_are_those_of_a_softmax() {
        let weights = exponentials(&[0.9, 0.5, 0.9], 0.2);
        assert_eq!((weights[0], weights[2]), (1.0, 1.0));
        assert!((weights[1] - (-2.0_f64).exp()).abs() < 1e-12);
        assert_eq!(logit(0.5), 0.0);
        assert!((logit(0.8) - 4.0_f64.ln()).abs() < 1e-12);
        assert!(logit(0.0).is_finite() && logit(1.0).is_finite());
        assert!((logit(1.0) + logit(0.0)).abs() < 1e-6);
        // Weights of logits at temperature 1 are odds: 0.8 counts four times as much as 0.5.
        let odds = exponentials(&[logit(0.8), logit(0.5)], 1.0);
        assert!((odds[0] / odds[1] - 4.0).abs() < 1e-9);
    }

    #[test]
    fn draws_follow_the_weights_and_differ_by_every_part_of_their_place() {
        let weights = [1.0, 0.0, 3.0];
        for (uniform, expected) in [(0.0, 0), (0.249, 0), (0.25, 2), (0.999, 2), (1.0, 2)] {
            assert_eq!(choose(&weights, uniform), expected, "{uniform}");
        }
        let mut counts = [0_u32; 3];
        for draw in 0..4000 {
            counts[choose(&weights, uniform(5, [0, 1, draw]))] += 1;
        }
        assert_eq!(counts[1], 0);
        // Four standard deviations of 27.
        assert!(counts[0].abs_diff(1000) < 110, "{counts:?}");
        let places = [[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]];
        let mut draws: Vec<f64> = places.map(|place| uniform(5, place)).to_vec();
        draws.push(uniform(6, [0, 0, 0]));
        for (at, draw) in draws.iter().enumerate() {
            assert!(draws[..at].iter().all(|other| other != draw));
        }
    }
}
