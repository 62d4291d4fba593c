//! Passes over rows of logits: vocabularies have 49 to 262 thousand of them.

use crate::cpu;

/// Logits whose largest, or whose weights' sum, is kept together.
pub const CHUNK: usize = 1024;

/// The largest logit and its index, ties to the lower index; `None` when no logit is above negative
/// infinity. NaN is never the largest.
pub fn argmax(logits: &[f32]) -> Option<(usize, f32)> {
    let (mut best, mut best_chunk) = (f32::NEG_INFINITY, None);
    for (index, chunk) in logits.chunks(CHUNK).enumerate() {
        let mut largest = f32::NEG_INFINITY;
        cpu::largest(chunk, &mut largest);
        if largest > best {
            (best, best_chunk) = (largest, Some(index));
        }
    }
    let first = best_chunk? * CHUNK;
    let within = logits[first..].iter().position(|logit| *logit == best)?;
    Some((first + within, best))
}

/// Writes `exp(logit - shift)` to `weights` and the sum of each [`CHUNK`] to `sums`; returns the sum of all.
/// A logit of negative infinity weighs 0. `shift` should be the largest logit.
pub fn weigh(logits: &[f32], shift: f32, weights: &mut Vec<f32>, sums: &mut Vec<f64>) -> f64 {
    weights.resize(logits.len(), 0.0);
    sums.clear();
    for (logits, weights) in logits.chunks(CHUNK).zip(weights.chunks_mut(CHUNK)) {
        let mut sum = 0.0;
        cpu::weigh(logits, shift, weights, &mut sum);
        sums.push(sum);
    }
    sums.iter().sum()
}

/// The sum of [`weigh`], without keeping the weights.
pub fn sum_exp(logits: &[f32], shift: f32) -> f64 {
    let mut weights = [0.0; CHUNK];
    let sums = logits.chunks(CHUNK).map(|chunk| {
        let mut sum = 0.0;
        cpu::weigh(chunk, shift, &mut weights[..chunk.len()], &mut sum);
        sum
    });
    sums.sum()
}

/// The ids of the `count` largest values, descending, ties to the lower id.
pub fn top(values: &[f32], count: usize) -> Vec<u32> {
    /// Values skipped together when none is large enough.
    const STRIDE: usize = 64;
    let count = count.min(values.len());
    if count == 0 {
        return Vec::new();
    }
    let by_value = |a: &u32, b: &u32| {
        let (left, right) = (values[*a as usize], values[*b as usize]);
        right.total_cmp(&left).then(a.cmp(b))
    };
    // Candidates gather until there are twice too many; then the smaller half goes.
    let mut ids: Vec<u32> = Vec::with_capacity(2 * count + STRIDE);
    let mut floor = f32::NEG_INFINITY;
    let mut is_full = false;
    for (index, chunk) in values.chunks(STRIDE).enumerate() {
        let mut largest = f32::NEG_INFINITY;
        cpu::largest(chunk, &mut largest);
        if is_full && largest <= floor {
            continue;
        }
        let first = index * STRIDE;
        let wanted = |offset: &usize| !is_full || chunk[*offset] > floor;
        ids.extend(
            (0..chunk.len())
                .filter(wanted)
                .map(|offset| (first + offset) as u32),
        );
        if ids.len() >= 2 * count {
            ids.select_nth_unstable_by(count - 1, by_value);
            ids.truncate(count);
            floor = values[ids[count - 1] as usize];
            // A NaN sorts above every number and is no floor to compare with.
            is_full = !floor.is_nan();
        }
    }
    if count < ids.len() {
        ids.select_nth_unstable_by(count - 1, by_value);
        ids.truncate(count);
    }
    ids.sort_unstable_by(by_value);
    ids
}
