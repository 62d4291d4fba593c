//! From a row of logits to a token, in vLLM's order: logit bias, penalties, `min_tokens` mask,
//! temperature, min-p, top-k, top-p, draw.

use std::collections::HashMap;

use ponder_kernels::logits;

use super::request::{SamplingParams, TokenId};
use super::rng;
use super::sequence::Sequence;

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

impl Sampler {
    /// The next token of `sequence`, or `None` when the logits in `row` are not finite.
    pub(super) fn sample(&mut self, sequence: &Sequence, row: &[f32]) -> Option<TokenId> {
        let params = &sequence.params;
        let is_masked = sequence.num_output_tokens() < params.min_tokens;
        let is_changed = !params.logit_bias.is_empty() || has_penalties(params) || is_masked;
        if is_changed {
            self.logits.clear();
            self.logits.extend_from_slice(row);
            adjust(&mut self.logits, sequence, is_masked);
        }
        if params.temperature <= 0.0 {
            let (token_id, logit) = logits::argmax(if is_changed { &self.logits } else { row })?;
            return logit.is_finite().then_some(token_id as TokenId);
        }
        if !is_changed {
            self.logits.clear();
            self.logits.extend_from_slice(row);
        }
        for logit in &mut self.logits {
            *logit /= params.temperature;
        }
        let position = sequence.token_ids.len();
        let u = rng::uniform(params.seed, &sequence.branch_path, position);
        self.draw(params, u)
    }

    /// Draws from the filtered softmax of `self.logits` by inverting its cumulative distribution.
    fn draw(&mut self, params: &SamplingParams, u: f64) -> Option<TokenId> {
        let (_, max) = logits::argmax(&self.logits).filter(|(_, max)| max.is_finite())?;
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

/// The probability of a token under unmodified logits.
pub(super) fn confidence(row: &[f32], token_id: TokenId) -> f32 {
    let logit = row[token_id as usize];
    // Of what is drafted the largest logit is most often the token's own.
    let max = logits::argmax(row).map_or(logit, |(_, max)| max);
    (f64::from((logit - max).exp()) / logits::sum_exp(row, max)) as f32
}

fn has_penalties(params: &SamplingParams) -> bool {
    params.repetition_penalty != 1.0
        || params.presence_penalty != 0.0
        || params.frequency_penalty != 0.0
}

fn adjust(logits: &mut [f32], sequence: &Sequence, is_masked: bool) {
    let params = &sequence.params;
    for (token_id, bias) in &params.logit_bias {
        if let Some(logit) = logits.get_mut(*token_id as usize) {
            *logit += bias;
        }
    }
    if has_penalties(params) {
        let mut counts: HashMap<TokenId, u32> = HashMap::new();
        for token_id in &sequence.token_ids[..sequence.num_prompt_tokens] {
            counts.entry(*token_id).or_default();
        }
        for token_id in &sequence.token_ids[sequence.num_prompt_tokens..] {
            *counts.entry(*token_id).or_default() += 1;
        }
        for (token_id, count) in counts {
            let Some(logit) = logits.get_mut(token_id as usize) else {
                continue;
            };
            *logit = if *logit > 0.0 {
                *logit / params.repetition_penalty
            } else {
                *logit * params.repetition_penalty
            };
            if count > 0 {
                *logit -= params.presence_penalty + params.frequency_penalty * count as f32;
            }
        }
    }
    if is_masked {
        for token_id in params.eos_token_ids.iter().chain(&params.stop_token_ids) {
            if let Some(logit) = logits.get_mut(*token_id as usize) {
                *logit = f32::NEG_INFINITY;
            }
        }
    }
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
mod tests {
    use super::*;
    use crate::engine::request::{GenerateRequest, RequestId};

    fn sequence(
        params: SamplingParams,
        token_ids: &[TokenId],
        num_prompt_tokens: usize,
    ) -> Sequence {
        let request = GenerateRequest::new(token_ids.to_vec(), params);
        Sequence {
            num_prompt_tokens,
            ..Sequence::new(RequestId(0), request)
        }
    }

    /// Frequencies of 20,000 draws that differ in their seed.
    fn frequencies(params: &SamplingParams, logits: &[f32]) -> Vec<f64> {
        let mut sampler = Sampler::default();
        let mut counts = vec![0.0; logits.len()];
        for seed in 0..20_000 {
            let params = SamplingParams {
                seed,
                ..params.clone()
            };
            let token = sampler
                .sample(&sequence(params, &[1, 2], 2), logits)
                .unwrap();
            counts[token as usize] += 1.0 / 20_000.0;
        }
        counts
    }

    fn assert_close(actual: &[f64], expected: &[f64]) {
        for (a, b) in actual.iter().zip(expected) {
            // Four standard errors of a frequency over 20,000 draws.
            let bound = 4.0 * (b * (1.0 - b) / 20_000.0).sqrt() + 1e-9;
            assert!((a - b).abs() <= bound, "{actual:?} is not {expected:?}");
        }
    }

    fn logits_of(probabilities: &[f32]) -> Vec<f32> {
        probabilities.iter().map(|p| p.ln()).collect()
    }

    #[test]
    fn draws_follow_the_filtered_softmax() {
        let logits = logits_of(&[0.1, 0.4, 0.2, 0.3]);
        let params = SamplingParams::default();
        assert_close(&frequencies(&params, &logits), &[0.1, 0.4, 0.2, 0.3]);
        let top_k = SamplingParams {
            top_k: 2,
            ..params.clone()
        };
        assert_close(
            &frequencies(&top_k, &logits),
            &[0.0, 4.0 / 7.0, 0.0, 3.0 / 7.0],
        );
        let top_p = SamplingParams {
            top_p: 0.65,
            ..params.clone()
        };
        assert_close(
            &frequencies(&top_p, &logits),
            &[0.0, 4.0 / 7.0, 0.0, 3.0 / 7.0],
        );
        let both = SamplingParams {
            top_k: 3,
            top_p: 0.75,
            ..params.clone()
        };
        assert_close(
            &frequencies(&both, &logits),
            &[0.0, 4.0 / 7.0, 0.0, 3.0 / 7.0],
        );
        let min_p = SamplingParams {
            min_p: 0.45,
            ..params.clone()
        };
        assert_close(
            &frequencies(&min_p, &logits),
            &[0.0, 4.0 / 9.0, 2.0 / 9.0, 3.0 / 9.0],
        );
        let cold = SamplingParams {
            temperature: 0.5,
            ..params
        };
        let squares: Vec<f64> = [0.01, 0.16, 0.04, 0.09].iter().map(|p| p / 0.3).collect();
        assert_close(&frequencies(&cold, &logits), &squares);
    }

    #[test]
    fn a_wide_nucleus_is_found_past_the_first_look() {
        let logits = vec![0.0; 1000];
        let params = SamplingParams {
            top_p: 0.5,
            ..SamplingParams::default()
        };
        let counts = frequencies(&params, &logits);
        assert_eq!(counts.iter().filter(|count| **count > 0.0).count(), 500);
    }

    #[test]
    fn greedy_takes_the_lowest_of_equals_and_refuses_nan() {
        let params = SamplingParams {
            temperature: 0.0,
            ..SamplingParams::default()
        };
        let mut sampler = Sampler::default();
        let sequence = sequence(params, &[0], 1);
        assert_eq!(sampler.sample(&sequence, &[0.0, 2.0, 2.0]), Some(1));
        assert_eq!(sampler.sample(&sequence, &[f32::NAN; 3]), None);
        assert_eq!(sampler.sample(&sequence, &[f32::NEG_INFINITY; 3]), None);
    }

    #[test]
    fn penalties_bias_and_masks_equal_their_definitions() {
        let params = SamplingParams {
            temperature: 0.0,
            repetition_penalty: 2.0,
            presence_penalty: 0.5,
            frequency_penalty: 0.25,
            logit_bias: vec![(3, 10.0)],
            min_tokens: 9,
            eos_token_ids: vec![4],
            ..SamplingParams::default()
        };
        // Token 0 is in the prompt, token 1 twice in the output.
        let sequence = sequence(params, &[0, 1, 1], 1);
        let mut logits = [4.0, 4.0, -1.0, -4.0, 99.0];
        adjust(&mut logits, &sequence, true);
        assert_eq!(logits, [2.0, 2.0 - 0.5 - 0.5, -1.0, 6.0, f32::NEG_INFINITY]);
    }
}
