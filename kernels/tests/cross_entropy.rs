//! Losses under a head, and their gradient, against plain code in f64.

mod common;

use common::{Random, product, quantised};
use ponder_kernels::cross_entropy::{CrossEntropy, Head};
use ponder_kernels::*;

const LEAST: f32 = 1e-3;

struct Case {
    dtype: DType,
    vocab_size: usize,
    hidden: usize,
    num_rows: usize,
    divisor: f32,
    softcap: Option<f32>,
}

/// Vocabularies of one and of several chunks, which end within a panel; rows of one and of several
/// blocks.
const CASES: [Case; 4] = [
    Case {
        dtype: DType::F32,
        vocab_size: 50,
        hidden: 40,
        num_rows: 3,
        divisor: 1.0,
        softcap: None,
    },
    Case {
        dtype: DType::Q8_0,
        vocab_size: 2503,
        hidden: 96,
        num_rows: 70,
        divisor: 1.0,
        softcap: None,
    },
    Case {
        dtype: DType::Q8_0,
        vocab_size: 1100,
        hidden: 64,
        num_rows: 9,
        divisor: 0.25,
        softcap: Some(5.0),
    },
    Case {
        dtype: DType::F16,
        vocab_size: 1024,
        hidden: 33,
        num_rows: 65,
        divisor: 2.0,
        softcap: None,
    },
];

#[test]
fn losses_and_gradients() {
    let pool = ThreadPool::eager(3);
    for case in CASES {
        let Case {
            dtype,
            vocab_size,
            hidden,
            num_rows,
            ..
        } = case;
        let (bytes, values) = quantised(dtype, vocab_size, hidden, 1);
        let weights = PackedMatrix::pack(&pool, dtype, &bytes, vocab_size, hidden).unwrap();
        let mut random = Random(2);
        let mut x = random.values(num_rows * hidden);
        x.iter_mut().for_each(|x| *x *= 1.5);
        let targets = (0..num_rows).map(|row| (row * 7919 + 5) % vocab_size);
        let targets: Vec<u32> = targets.map(|target| target as u32).collect();
        let head = Head {
            weights: &weights,
            divisor: case.divisor,
            softcap: case.softcap,
        };
        let mut input = Activations::with_capacity(num_rows, hidden, true);
        input.load(&pool, &x, num_rows, hidden);
        let found = head.cross_entropy(&pool, &input, &targets, Some(LEAST));
        // What the head gives, and what it was before it was capped.
        let logits = product(&pool, &weights, &x);
        let logits: Vec<f64> = logits.iter().map(|z| f64::from(*z)).collect();
        let mut by_rows = vec![0.5; x.len()];
        head.add_gradient(&pool, &found.errors, &mut by_rows);
        assert!(
            found
                .errors
                .is_sorted_by_key(|error| (error.token, error.row))
        );
        for (row, logits) in logits.chunks_exact(vocab_size).enumerate() {
            let own = found
                .errors
                .iter()
                .filter(|error| error.row as usize == row);
            let own: Vec<_> = own
                .map(|error| (error.token as usize, error.factor))
                .collect();
            let wanted = check_row(
                &case,
                logits,
                targets[row] as usize,
                found.losses[row],
                &own,
            );
            let out = &by_rows[row * hidden..][..hidden];
            for (column, out) in out.iter().enumerate() {
                let weight = |token: usize| f64::from(values[token * hidden + column]);
                let sum: f64 = wanted.iter().map(|(token, by)| by * weight(*token)).sum();
                assert!((f64::from(*out) - 0.5 - sum).abs() < 1e-4, "{out} {sum}");
            }
        }
        let same = |found: &CrossEntropy, other: &CrossEntropy| {
            assert_eq!(found.losses, other.losses);
            assert_eq!(found.errors, other.errors);
        };
        same(
            &found,
            &head.cross_entropy(&ThreadPool::new(1), &input, &targets, Some(LEAST)),
        );
        let without = head.cross_entropy(&pool, &input, &targets, None);
        assert_eq!((without.losses, without.errors.len()), (found.losses, 0));
    }
}

/// Checks one row's loss and which tokens it has; returns what their errors should be.
fn check_row(
    case: &Case,
    logits: &[f64],
    target: usize,
    loss: f64,
    found: &[(usize, f32)],
) -> Vec<(usize, f64)> {
    let final_logit = |logit: f64| {
        let logit = logit / f64::from(case.divisor);
        let cap = case.softcap.map(f64::from);
        cap.map_or(logit, |cap| cap * (logit / cap).tanh())
    };
    let exps: Vec<f64> = logits.iter().map(|z| final_logit(*z).exp()).collect();
    let sum: f64 = exps.iter().sum();
    let wanted = sum.ln() - final_logit(logits[target]);
    assert!((loss - wanted).abs() < 1e-4, "{loss} is not {wanted}");
    let is_found = |token: usize| found.iter().any(|(other, _)| *other == token);
    for (token, exp) in exps.iter().enumerate() {
        let probability = exp / sum;
        let is_likely = probability > f64::from(LEAST) * 1.001 || token == target;
        let is_unlikely = probability < f64::from(LEAST) * 0.999 && token != target;
        assert!(is_found(token) || !is_likely, "{token} of {probability}");
        assert!(!is_found(token) || !is_unlikely, "{token} of {probability}");
    }
    let errors = found.iter().map(|(token, factor)| {
        let probability = exps[*token] / sum;
        let capped = final_logit(logits[*token]);
        let slope = case
            .softcap
            .map_or(1.0, |cap| 1.0 - (capped / f64::from(cap)).powi(2));
        let error = probability - f64::from(u8::from(*token == target));
        let wanted = error * slope / f64::from(case.divisor) / case.num_rows as f64;
        let bound = 1e-4 * wanted.abs() + 1e-7;
        assert!(
            (f64::from(*factor) - wanted).abs() < bound,
            "{factor} {wanted}"
        );
        (*token, wanted)
    });
    errors.collect()
}

#[test]
fn every_instruction_set_passes_these_tests() {
    common::with_other_instruction_sets();
}
