//! What a request may ask for, and rows of logits, extremes included.

use proptest::prelude::*;
use proptest::sample::select;

use crate::sample::{SampleRow, ScoreRow, SlotSpec};

/// A spec with lists of its own.
#[derive(Debug, Clone)]
pub(super) struct Owned {
    row: u32,
    numbers: (f32, usize, f32, f32, f64),
    bias: Vec<(u32, f32)>,
    counts: Vec<(u32, u32)>,
    penalties: (f32, f32, f32),
    ends: Vec<u32>,
    mask: Option<u32>,
    reports: (Option<usize>, Option<usize>),
    score: Option<(u32, usize)>,
}

impl Owned {
    pub(super) fn spec(&self, vocab: usize) -> SlotSpec<'_> {
        if let Some((token_id, num_top)) = self.score {
            return SlotSpec::Score(ScoreRow {
                row: self.row,
                token_id: token_id % vocab as u32,
                num_top,
            });
        }
        let (temperature, top_k, top_p, min_p, uniform) = self.numbers;
        let (repetition_penalty, presence_penalty, frequency_penalty) = self.penalties;
        SlotSpec::Sample(SampleRow {
            row: self.row,
            temperature,
            top_k,
            top_p,
            min_p,
            uniform,
            logit_bias: &self.bias,
            counts: &self.counts,
            repetition_penalty,
            presence_penalty,
            frequency_penalty,
            ends: [&self.ends, &self.ends[..self.ends.len().min(1)]],
            mask: self.mask,
            num_logprobs: self.reports.0,
            num_alternatives: self.reports.1,
        })
    }
}

const NUM_ROWS: usize = 3;
const NUM_MASKS: usize = 2;

pub(super) fn uniform() -> impl Strategy<Value = f64> {
    // 1.0 is no draw that the engine makes, but leaves a sliver past the last token, as rounding
    // may.
    let extremes = [0.0, 1.0 - f64::EPSILON / 2.0, 1.0, 0.5, 1e-300];
    prop_oneof![3 => 0.0..1.0_f64, 2 => select(extremes.to_vec())]
}

pub(super) fn unique<T: std::fmt::Debug>(
    value: impl Strategy<Value = T>,
    vocab: usize,
) -> impl Strategy<Value = Vec<(u32, T)>> {
    // A few tokens lie past the vocabulary.
    let list = prop::collection::vec((0..vocab as u32 + 3, value), 0..40);
    list.prop_map(|mut list| {
        list.sort_by_key(|(token_id, _)| *token_id);
        list.dedup_by_key(|(token_id, _)| *token_id);
        list.reverse();
        list
    })
}

pub(super) fn maybe<T: std::fmt::Debug + Default>(
    strategy: impl Strategy<Value = T>,
) -> impl Strategy<Value = T> {
    prop_oneof![1 => strategy, 1 => Just(()).prop_map(|()| T::default())]
}

pub(super) fn owned(vocab: usize) -> impl Strategy<Value = Owned> {
    let temperatures = vec![0.0, 1.0, 1.0, 0.7, 0.3, 1.7, 8.0, 1e-6, 1e-38, 1e6];
    let top_ks = vec![0, 0, 0, 1, 5, 40, 64, 65, 100, 700, 1_000_000];
    let top_ps = vec![1.0, 1.0, 0.95, 0.9, 0.5, 1e-9, 0.0, 0.999_999];
    let min_ps = vec![0.0, 0.0, 0.05, 0.5, 1.0, 1e-3, 1e-6, 1e-30];
    let biases = prop_oneof![4 => -5.0..5.0_f32, 1 => select(vec![100.0, -100.0, 3e38, -3e38])];
    let penalties = (
        select(vec![1.0, 1.3, 0.5, 1e38, 1e-38]),
        select(vec![0.0, 1.5, -2.0]),
        select(vec![0.0, 0.7, -0.3, 1e38]),
    );
    let reports = (
        prop::option::of(select(vec![0_usize, 1, 5, 20])),
        prop::option::of(select(vec![0_usize, 3, 8])),
    );
    (
        0..NUM_ROWS as u32,
        (
            select(temperatures),
            select(top_ks),
            select(top_ps),
            select(min_ps),
            uniform(),
        ),
        maybe(unique(biases, vocab)),
        maybe(unique(0..4_u32, vocab)),
        penalties,
        maybe(prop::collection::vec(0..vocab as u32 + 3, 0..6)),
        prop::option::of(0..NUM_MASKS as u32),
        reports,
        prop::option::weighted(0.1, (0..u32::MAX, select(vec![0_usize, 1, 20]))),
    )
        .prop_map(|all| Owned {
            row: all.0,
            numbers: all.1,
            bias: all.2,
            counts: all.3,
            penalties: all.4,
            ends: all.5,
            mask: all.6,
            reports: all.7,
            score: all.8,
        })
}

/// Rows of different spreads, some with ties, some with values that are no numbers.
pub(super) fn logits(vocab: usize) -> impl Strategy<Value = Vec<f32>> {
    let row = (
        any::<u64>(),
        select(vec![0.0, 0.5, 3.0, 12.0, 60.0, 1e20]),
        select(vec![0.0, 0.0, 0.25, 4.0]),
        prop::collection::vec(
            (
                0..vocab,
                select(vec![f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 30.0, 3e38]),
            ),
            0..3,
        ),
        0..4_u32,
    );
    let row = row.prop_map(move |(seed, spread, step, extremes, has_extremes)| {
        let mut state = seed | 1;
        let mut row: Vec<f32> = (0..vocab).map(|_| normal(&mut state) * spread).collect();
        if step > 0.0 {
            row.iter_mut().for_each(|x| *x = (*x / step).round() * step);
        }
        // No negative zeros: the host's `top` takes them for zeros in some places only.
        row.iter_mut().for_each(|x| *x += 0.0);
        if has_extremes == 0 {
            extremes.iter().for_each(|(at, value)| row[*at] = *value);
        }
        row
    });
    prop::collection::vec(row, NUM_ROWS).prop_map(|rows| rows.concat())
}

/// About normally distributed.
pub(super) fn normal(state: &mut u64) -> f32 {
    let mut sum = -6.0;
    for _ in 0..12 {
        *state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        sum += (*state >> 40) as f32 / (1_u64 << 24) as f32;
    }
    sum
}

pub(super) fn masks(vocab: usize) -> impl Strategy<Value = Vec<Vec<u32>>> {
    let words = vocab.div_ceil(32);
    let dense = prop::collection::vec(any::<u32>(), words);
    let sparse = prop::collection::vec(select(vec![0, 0, 0, 1 << 7, 1, u32::MAX]), words);
    let none = prop::collection::vec(Just(0), words);
    let short = prop::collection::vec(any::<u32>(), words / 2);
    let mask = prop_oneof![3 => dense, 3 => sparse, 1 => none, 1 => short];
    prop::collection::vec(mask, NUM_MASKS)
}

pub(super) type Case = (usize, Vec<f32>, Vec<Vec<u32>>, Vec<Owned>);

pub(super) fn case() -> impl Strategy<Value = Case> {
    let sizes = [
        1, 2, 31, 33, 64, 100, 1000, 1023, 1024, 1025, 2049, 4096, 4100, 5003, 8192,
    ];
    select(sizes.to_vec()).prop_flat_map(|vocab| {
        let specs = prop::collection::vec(owned(vocab), 6);
        (Just(vocab), logits(vocab), masks(vocab), specs)
    })
}

/// A spec of the likeliest tokens, without anything else.
pub(super) fn nuclei(num_rows: u32) -> impl Strategy<Value = SampleRow<'static>> {
    (
        0..num_rows,
        select(vec![0, 65, 100, 300, 700]),
        select(vec![0.5, 0.8, 0.9, 0.99, 1.0]),
        select(vec![0.0, 0.003, 0.01, 0.03, 0.1]),
        uniform(),
    )
        .prop_map(|(row, top_k, top_p, min_p, uniform)| SampleRow {
            temperature: 1.0,
            top_k,
            top_p,
            min_p,
            uniform,
            ..SampleRow::greedy(row)
        })
}
