//! Draws against their definitions, and the extremes that a request may carry.

use super::*;
use crate::engine::request::{GenerateRequest, RequestId};
use crate::engine::sequence::{SeqId, Sequence};

fn spec(params: SamplingParams, token_ids: &[TokenId], num_prompt_tokens: usize) -> SampleSpec {
    let request = GenerateRequest::new(token_ids.to_vec(), params);
    let sequence = Sequence {
        num_prompt_tokens,
        ..Sequence::new(SeqId(0), RequestId(0), request)
    };
    sequence.sample_spec(0, &[])
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
            .sample(&spec(params, &[1, 2], 2), None, logits)
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
    let spec = spec(params, &[0], 1);
    let mut sample = |row: &[f32]| sampler.sample(&spec, None, row);
    assert_eq!(sample(&[0.0, 2.0, 2.0]), Ok(1));
    assert_eq!(sample(&[f32::NAN; 3]), Err(SampleError::NotFinite));
    assert_eq!(sample(&[f32::NEG_INFINITY; 3]), Err(SampleError::NotFinite));
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
    let spec = spec(params, &[0, 1, 1], 1);
    let mut logits = [4.0, 4.0, -1.0, -4.0, 99.0];
    adjust(&mut logits, &spec);
    assert_eq!(logits, [2.0, 2.0 - 0.5 - 0.5, -1.0, 6.0, f32::NEG_INFINITY]);
}

/// The smallest and largest numbers that a request may carry.
#[test]
fn legal_extremes_give_tokens() {
    let logits = [3.0, 40.0, -7.0, 39.0];
    let mut sampler = Sampler::default();
    for tiny in [1e-39, f32::MIN_POSITIVE, 1e-20, 1e-5] {
        for temperature in [0.0, tiny, 1.0] {
            for repetition_penalty in [tiny, 1.0, 1e38] {
                let params = SamplingParams {
                    temperature,
                    repetition_penalty,
                    logit_bias: vec![(0, 100.0)],
                    frequency_penalty: 2.0,
                    ..SamplingParams::default()
                };
                let sampled = sampler.sample(&spec(params, &[1, 3, 3], 2), None, &logits);
                assert!(sampled.is_ok(), "{temperature} {repetition_penalty}");
            }
        }
    }
    let cold = SamplingParams {
        temperature: 1e-39,
        ..SamplingParams::default()
    };
    for seed in 0..50 {
        let params = SamplingParams {
            seed,
            ..cold.clone()
        };
        let sampled = sampler.sample(&spec(params, &[1], 1), None, &logits);
        assert_eq!(sampled, Ok(1), "the limit is the likeliest token");
    }
}

#[test]
fn a_mask_leaves_what_it_allows_or_says_that_nothing_is_left() {
    let mut sampler = Sampler::default();
    let mut mask = TokenMask::none(4);
    let spec = spec(SamplingParams::default(), &[1], 1);
    let row = [9.0, 0.0, 1.0, 2.0];
    let nothing = sampler.sample(&spec, Some(&mask), &row);
    assert_eq!(nothing, Err(SampleError::NothingAllowed));
    mask.allow(2);
    assert_eq!(sampler.sample(&spec, Some(&mask), &row), Ok(2));
}
