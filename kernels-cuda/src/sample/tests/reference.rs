//! The engine's sampler in plain Rust, as the device must equal it.

use ponder_kernels::logits::{self, CHUNK};

use crate::sample::{Alternatives, Logprobs, SampleRow, SampledRow, ScoreRow};

const NUCLEUS_FIRST: usize = 64;
const ROUND: f32 = 12_582_912.0;

/// `ponder_kernels`' exponential with fused multiply-add, whatever this machine has.
fn exp(x: f32) -> f32 {
    let x = x.clamp(-87.0, 88.0);
    let shifted = x.mul_add(std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = n.mul_add(-0.693_359_4, x);
    let r = n.mul_add(2.121_944_4e-4, r);
    let mut p = 1.987_569_1e-4_f32;
    for coefficient in [
        1.398_199_9e-3,
        8.333_452e-3,
        4.166_579_6e-2,
        1.666_666_5e-1,
        5e-1,
    ] {
        p = p.mul_add(r, coefficient);
    }
    let y = (p * r).mul_add(r, r) + 1.0;
    let power = shifted
        .to_bits()
        .wrapping_sub(ROUND.to_bits())
        .wrapping_add(127)
        << 23;
    y * f32::from_bits(power)
}

/// Weights, the sums of their chunks, and the sum of all.
pub(super) fn weigh(logits: &[f32], shift: f32) -> (Vec<f32>, Vec<f64>, f64) {
    let weight = |x: &f32| match x - shift {
        shifted if shifted < -87.0 => 0.0,
        shifted => exp(shifted),
    };
    let weights: Vec<f32> = logits.iter().map(weight).collect();
    let sum = |chunk: &[f32]| {
        let mut sums = [0.0_f64; 8];
        let (groups, rest) = chunk.as_chunks::<8>();
        for group in groups {
            for i in 0..8 {
                sums[i] += f64::from(group[i]);
            }
        }
        let rest: f64 = rest.iter().map(|weight| f64::from(*weight)).sum();
        sums.iter().sum::<f64>() + rest
    };
    let sums: Vec<f64> = weights.chunks(CHUNK).map(sum).collect();
    let total = sums.iter().sum();
    (weights, sums, total)
}

fn adjust(logits: &mut [f32], row: &SampleRow<'_>, mask: Option<&[u32]>) {
    let within_range = |logit: f32| logit.clamp(f32::MIN, f32::MAX);
    for (token_id, bias) in row.logit_bias {
        if let Some(logit) = logits.get_mut(*token_id as usize) {
            *logit = within_range(*logit + bias);
        }
    }
    for (token_id, count) in row.counts {
        let Some(logit) = logits.get_mut(*token_id as usize) else {
            continue;
        };
        let mut penalised = match *logit > 0.0 {
            true => *logit / row.repetition_penalty,
            false => *logit * row.repetition_penalty,
        };
        if *count > 0 {
            penalised -= row.presence_penalty + row.frequency_penalty * *count as f32;
        }
        *logit = within_range(penalised);
    }
    for token_id in row.ends.iter().copied().flatten() {
        if let Some(logit) = logits.get_mut(*token_id as usize) {
            *logit = f32::NEG_INFINITY;
        }
    }
    for (index, logit) in logits.iter_mut().enumerate() {
        let word = mask.and_then(|words| words.get(index / 32));
        if word.is_some_and(|word| word >> (index % 32) & 1 == 0) {
            *logit = f32::NEG_INFINITY;
        }
    }
}

fn is_finite(logits: &[f32]) -> bool {
    logits::argmax(logits).is_some_and(|(_, max)| max.is_finite())
}

pub(super) fn token(
    row: &SampleRow<'_>,
    mask: Option<&[u32]>,
    raw: &[f32],
) -> Result<u32, SampledRow> {
    let mut logits = raw.to_vec();
    adjust(&mut logits, row, mask);
    let best = logits::argmax(&logits).filter(|(_, max)| max.is_finite());
    let Some((token_id, max)) = best else {
        return Err(match is_finite(raw) {
            true => SampledRow::NothingAllowed,
            false => SampledRow::NotFinite,
        });
    };
    if row.temperature <= 0.0 {
        return Ok(token_id as u32);
    }
    let offset = match (max / row.temperature).is_finite() {
        true => 0.0,
        false => max,
    };
    for logit in &mut logits {
        *logit = (*logit - offset) / row.temperature;
    }
    let max = (max - offset) / row.temperature;
    draw(row, &logits, max).ok_or(SampledRow::NotFinite)
}

fn draw(row: &SampleRow<'_>, logits: &[f32], max: f32) -> Option<u32> {
    let (weights, sums, total) = weigh(logits, max);
    if !total.is_finite() {
        return None;
    }
    if row.top_k == 0 && row.top_p >= 1.0 && row.min_p <= 0.0 {
        return invert_all(&weights, &sums, row.uniform * total);
    }
    let limit = match row.top_k {
        0 => logits.len(),
        top_k => top_k.min(logits.len()),
    };
    let floor = f64::from(row.min_p);
    let mut count = NUCLEUS_FIRST.min(limit);
    loop {
        let ids = logits::top(logits, count);
        let weight = |id: &u32| f64::from(weights[*id as usize]);
        let candidates: Vec<f64> = ids.iter().map(weight).collect();
        let kept = candidates.iter().take_while(|weight| **weight >= floor);
        let kept = kept.count().max(1);
        let is_whole = count == limit || kept < count;
        let mass = if is_whole {
            candidates[..kept].iter().sum()
        } else if limit < logits.len() {
            let all = logits::top(logits, limit);
            all.iter().map(weight).filter(|w| *w >= floor).sum()
        } else if floor > 0.0 {
            let all = weights.iter().map(|weight| f64::from(*weight));
            all.filter(|weight| *weight >= floor).sum()
        } else {
            total
        };
        let len = nucleus(&candidates[..kept], f64::from(row.top_p) * mass);
        match len.or(is_whole.then_some(kept)) {
            Some(len) => return invert(&candidates[..len], row.uniform).map(|index| ids[index]),
            None => count = (count * 8).min(limit),
        }
    }
}

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

fn invert_all(weights: &[f32], sums: &[f64], mut rest: f64) -> Option<u32> {
    for (index, (sum, chunk)) in sums.iter().zip(weights.chunks(CHUNK)).enumerate() {
        if rest >= *sum {
            rest -= sum;
            continue;
        }
        for (offset, weight) in chunk.iter().enumerate() {
            let weight = f64::from(*weight);
            if rest < weight {
                return Some((index * CHUNK + offset) as u32);
            }
            rest -= weight;
        }
    }
    let last = weights.iter().rposition(|weight| *weight > 0.0)?;
    Some(last as u32)
}

fn invert(weights: &[f64], u: f64) -> Option<usize> {
    let total: f64 = weights.iter().sum();
    let mut rest = u * total;
    for (index, weight) in weights.iter().enumerate() {
        if rest < *weight {
            return Some(index);
        }
        rest -= weight;
    }
    weights.iter().rposition(|weight| *weight > 0.0)
}

pub(super) fn logprobs(raw: &[f32], token_id: u32, num_top: usize) -> Option<Logprobs> {
    let (_, max) = logits::argmax(raw).filter(|(_, max)| max.is_finite())?;
    let total = f64::from(max) + weigh(raw, max).2.ln();
    let logprob = |id: u32| (f64::from(raw[id as usize]) - total) as f32;
    total.is_finite().then(|| Logprobs {
        token_id,
        logprob: logprob(token_id),
        top: (logits::top(raw, num_top).into_iter())
            .map(|id| (id, logprob(id)))
            .collect(),
    })
}

fn confidence(raw: &[f32], token_id: u32) -> f32 {
    let logit = raw[token_id as usize];
    let max = logits::argmax(raw).map_or(logit, |(_, max)| max);
    (f64::from((logit - max).exp()) / weigh(raw, max).2) as f32
}

pub(super) fn sampled(row: &SampleRow<'_>, mask: Option<&[u32]>, raw: &[f32]) -> SampledRow {
    let token_id = match token(row, mask, raw) {
        Ok(token_id) => token_id,
        Err(row) => return row,
    };
    SampledRow::Token {
        token_id,
        logprobs: (row.num_logprobs).and_then(|num_top| logprobs(raw, token_id, num_top)),
        alternatives: row.num_alternatives.map(|count| Alternatives {
            probability: confidence(raw, token_id),
            others: (logits::top(raw, 1 + count).into_iter())
                .filter(|other| *other != token_id)
                .map(|other| (other, confidence(raw, other)))
                .collect(),
        }),
    }
}

pub(super) fn scored(row: &ScoreRow, raw: &[f32]) -> SampledRow {
    SampledRow::Score(logprobs(raw, row.token_id, row.num_top))
}
