//! From a row of logits to a token, in vLLM's order: logit bias, penalties, `min_tokens` mask,
//! temperature, min-p, top-k, top-p, draw.

mod masked;

use ponder_kernels::logits;

use super::executor::SampleSpec;
use super::request::{SamplingParams, TokenId, TokenMask};

/// Candidates looked at first when only the most likely tokens can be drawn.
const NUCLEUS_FIRST: usize = 64;

/// Reused buffers.
#[derive(Debug, Default)]
pub(super) struct Sampler {
    logits: Vec<f32>,
    /// Unnormalised probabilities, the largest 1, and the sums of their chunks.
    weights: Vec<f32>,
    sums: Vec<f64>,
    /// Weights of the likeliest tokens.
    candidates: Vec<f64>,
}

/// Why a row gives no token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SampleError {
    /// The logits are not finite numbers.
    NotFinite,
    /// Masks leave no token.
    NothingAllowed,
}

impl Sampler {
    /// The token that `spec` draws from the logits in `row` under a mask.
    pub(super) fn sample(
        &mut self,
        spec: &SampleSpec,
        mask: Option<&TokenMask>,
        row: &[f32],
    ) -> Result<TokenId, SampleError> {
        let params = &spec.params;
        let mask = mask.filter(|mask| !mask.allows_all());
        let is_greedy = params.temperature <= 0.0;
        let (is_changed, best) = match (changes_logits(spec), mask) {
            (false, None) => (false, logits::argmax(row)),
            (false, Some(mask)) if is_greedy => {
                (false, masked::argmax(mask, row, &mut self.logits))
            }
            (is_adjusted, _) => {
                self.logits.clear();
                self.logits.extend_from_slice(row);
                if is_adjusted {
                    adjust(&mut self.logits, spec);
                }
                if let Some(mask) = mask {
                    mask.apply(&mut self.logits);
                }
                (true, logits::argmax(&self.logits))
            }
        };
        let best = best.filter(|(_, max)| max.is_finite());
        let Some((token_id, max)) = best else {
            let is_finite = logits::argmax(row).is_some_and(|(_, max)| max.is_finite());
            return Err(match is_finite {
                true => SampleError::NothingAllowed,
                false => SampleError::NotFinite,
            });
        };
        if is_greedy {
            return Ok(token_id as TokenId);
        }
        if !is_changed {
            self.logits.clear();
            self.logits.extend_from_slice(row);
        }
        let max = cool(&mut self.logits, params.temperature, max);
        self.draw(params, spec.uniform, max)
            .ok_or(SampleError::NotFinite)
    }

    /// Draws from the filtered softmax of `self.logits`, the largest of which is `max`, by inverting its cumulative distribution.
    fn draw(&mut self, params: &SamplingParams, u: f64, max: f32) -> Option<TokenId> {
        let total = logits::weigh(&self.logits, max, &mut self.weights, &mut self.sums);
        if !total.is_finite() {
            return None;
        }
        if params.top_k == 0 && params.top_p >= 1.0 && params.min_p <= 0.0 {
            return invert_all(&self.weights, &self.sums, u * total);
        }
        let vocab_size = self.logits.len();
        let limit = if params.top_k == 0 {
            vocab_size
        } else {
            params.top_k.min(vocab_size)
        };
        let mut count = NUCLEUS_FIRST.min(limit);
        loop {
            let ids = logits::top(&self.logits, count);
            let weight = |id: &TokenId| f64::from(self.weights[*id as usize]);
            self.candidates.clear();
            self.candidates.extend(ids.iter().map(weight));
            // The largest logit weighs 1. top-p is taken of what min-p and top-k leave.
            let floor = f64::from(params.min_p);
            let candidates = &self.candidates;
            let kept = candidates
                .iter()
                .take_while(|weight| **weight >= floor)
                .count()
                .max(1);
            let is_whole = count == limit || kept < count;
            let mass = if is_whole {
                candidates[..kept].iter().sum()
            } else {
                self.mass(limit, floor, total)
            };
            match nucleus(&candidates[..kept], f64::from(params.top_p) * mass) {
                Some(len) => return invert(&candidates[..len], u).map(|index| ids[index]),
                None if is_whole => return invert(&candidates[..kept], u).map(|index| ids[index]),
                None => count = (count * 8).min(limit),
            }
        }
    }

    /// The weight that the `limit` likeliest tokens of at least `floor` have together.
    fn mass(&self, limit: usize, floor: f64, total: f64) -> f64 {
        if limit < self.logits.len() {
            let ids = logits::top(&self.logits, limit);
            let weights = ids.iter().map(|id| f64::from(self.weights[*id as usize]));
            return weights.filter(|weight| *weight >= floor).sum();
        }
        if floor > 0.0 {
            let weights = self.weights.iter().map(|weight| f64::from(*weight));
            return weights.filter(|weight| *weight >= floor).sum();
        }
        total
    }
}

/// Divides by the temperature. Where a tiny one would carry the largest logit past what f32 can hold, the distances to that logit are
/// divided instead: the same distribution. Returns the largest.
fn cool(logits: &mut [f32], temperature: f32, max: f32) -> f32 {
    let offset = match (max / temperature).is_finite() {
        true => 0.0,
        false => max,
    };
    for logit in logits {
        *logit = (*logit - offset) / temperature;
    }
    (max - offset) / temperature
}

/// The probability of a token under unmodified logits.
pub(super) fn confidence(row: &[f32], token_id: TokenId) -> f32 {
    let logit = row[token_id as usize];
    // Of what is drafted the largest logit is most often the token's own.
    let max = logits::argmax(row).map_or(logit, |(_, max)| max);
    (f64::from((logit - max).exp()) / logits::sum_exp(row, max)) as f32
}

/// Whether tokens so far count.
pub(super) fn has_penalties(params: &SamplingParams) -> bool {
    params.repetition_penalty != 1.0
        || params.presence_penalty != 0.0
        || params.frequency_penalty != 0.0
}

fn changes_logits(spec: &SampleSpec) -> bool {
    !spec.params.logit_bias.is_empty() || !spec.counts.is_empty() || spec.masks_ends
}

fn adjust(logits: &mut [f32], spec: &SampleSpec) {
    let params = &spec.params;
    for (token_id, bias) in &params.logit_bias {
        if let Some(logit) = logits.get_mut(*token_id as usize) {
            *logit = within_range(*logit + bias);
        }
    }
    for (token_id, count) in &spec.counts {
        let Some(logit) = logits.get_mut(*token_id as usize) else {
            continue;
        };
        let mut penalised = if *logit > 0.0 {
            *logit / params.repetition_penalty
        } else {
            *logit * params.repetition_penalty
        };
        if *count > 0 {
            penalised -= params.presence_penalty + params.frequency_penalty * *count as f32;
        }
        *logit = within_range(penalised);
    }
    if spec.masks_ends {
        for token_id in params.eos_token_ids.iter().chain(&params.stop_token_ids) {
            if let Some(logit) = logits.get_mut(*token_id as usize) {
                *logit = f32::NEG_INFINITY;
            }
        }
    }
}

/// A legal penalty may carry a logit past what f32 can hold: it stays at the end of the range. NaN stays NaN.
fn within_range(logit: f32) -> f32 {
    logit.clamp(f32::MIN, f32::MAX)
}

/// The shortest prefix of `weights` that reaches `mass`.
fn nucleus(weights: &[f64], mass: f64) -> Option<usize> {
    let mut sum = 0.0;
    for (index, weight) in weights.iter().enumerate() {
        sum += weight;
        if sum >= mass {
            return Some(index + 1);
        }
    }
    None
}

/// The first index whose cumulative weight exceeds `rest`; `sums` are those of the weights' chunks.
fn invert_all(weights: &[f32], sums: &[f64], mut rest: f64) -> Option<TokenId> {
    for (index, (sum, chunk)) in sums.iter().zip(weights.chunks(logits::CHUNK)).enumerate() {
        if rest >= *sum {
            rest -= sum;
            continue;
        }
        for (offset, weight) in chunk.iter().enumerate() {
            let weight = f64::from(*weight);
            if rest < weight {
                return Some((index * logits::CHUNK + offset) as TokenId);
            }
            rest -= weight;
        }
    }
    // Rounding may leave a sliver: it belongs to the last token that can be drawn.
    let last = weights.iter().rposition(|weight| *weight > 0.0)?;
    Some(last as TokenId)
}

/// The first index whose cumulative weight exceeds `u` of the total.
fn invert(weights: &[f64], u: f64) -> Option<usize> {
    let total: f64 = weights.iter().sum();
    let mut rest = u * total;
    for (index, weight) in weights.iter().enumerate() {
        if rest < *weight {
            return Some(index);
        }
        rest -= weight;
    }
    // Rounding may leave a sliver: it belongs to the last token that can be drawn.
    weights.iter().rposition(|weight| *weight > 0.0)
}

#[cfg(test)]
mod tests;
