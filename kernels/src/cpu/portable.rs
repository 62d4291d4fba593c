//! Kernels in plain Rust. The bodies marked `inline(always)` are also compiled by `x86` under its
//! instruction set, where `FMA` turns on fused multiply-add.

use std::ops::Range;

use half::f16;

use super::Sink;
use crate::activations::{Activations, QuantisedRow};
use crate::matrix::{BLOCK_INPUTS, Codes, PANEL_ROWS, PackedMatrix, Storage, UnpackedRow};

/// Keys and values processed together by attention.
pub(crate) const TILE_TOKENS: usize = 16;
/// Queries whose scores are computed together, so that their sums hide each other's latency.
const TILE_QUERIES: usize = 4;
/// Float weights widened to f32 at a time.
const WIDEN_CHUNK: usize = 256;
/// Partial sums of a float dot product.
const LANES: usize = 16;

#[inline(always)]
fn fma<const FMA: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FMA { a.mul_add(b, c) } else { a * b + c }
}

/// e^x for `x` in -87..=88, clamped outside; relative error below 3e-7.
///
/// Cephes' `expf` reduction, written so that it vectorises: the rounding constant 1.5 * 2^23 leaves
/// the integer part in the low bits.
#[inline(always)]
pub(super) fn exp<const FMA: bool>(x: f32) -> f32 {
    const MAGIC: f32 = 12_582_912.0;
    let x = x.clamp(-87.0, 88.0);
    let shifted = fma::<FMA>(x, std::f32::consts::LOG2_E, MAGIC);
    let n = shifted - MAGIC;
    let r = fma::<FMA>(n, -0.693_359_4, x);
    let r = fma::<FMA>(n, 2.121_944_4e-4, r);
    let mut p = 1.987_569_1e-4;
    for coefficient in [
        1.398_199_9e-3,
        8.333_452e-3,
        4.166_579_6e-2,
        1.666_666_5e-1,
        5e-1,
    ] {
        p = fma::<FMA>(p, r, coefficient);
    }
    let y = fma::<FMA>(p * r, r, r) + 1.0;
    let power = shifted
        .to_bits()
        .wrapping_sub(MAGIC.to_bits())
        .wrapping_add(127)
        << 23;
    y * f32::from_bits(power)
}

pub(super) fn panel_product(
    x: &Activations,
    weights: &PackedMatrix,
    panel: usize,
    rows: Range<usize>,
    sink: &Sink<'_>,
) {
    match &weights.storage {
        Storage::Panels { codes, bytes } => quantised_panel(x, *codes, bytes, panel, rows, sink),
        _ => float_panel::<false>(x, weights, panel, rows, widen_halves, sink),
    }
}

fn quantised_panel(
    x: &Activations,
    codes: Codes,
    bytes: &[u8],
    panel: usize,
    rows: Range<usize>,
    sink: &Sink<'_>,
) {
    let blocks = x.in_features / BLOCK_INPUTS;
    let panel_bytes = blocks * codes.block_bytes();
    let panel = &bytes[panel * panel_bytes..][..panel_bytes];
    for row in rows {
        let mut sums = [0.0_f32; PANEL_ROWS];
        for (lane, sum) in sums.iter_mut().enumerate() {
            for (index, block) in panel.chunks_exact(codes.block_bytes()).enumerate() {
                let weights = UnpackedRow::read(codes, block, lane);
                let at = row * x.in_features + index * BLOCK_INPUTS;
                let inputs = &x.codes[at..at + BLOCK_INPUTS];
                let scale = x.scales[row * blocks + index];
                let dot = |range: Range<usize>| -> i32 {
                    range
                        .map(|at| i32::from(weights.codes[at]) * i32::from(inputs[at]))
                        .sum()
                };
                if codes == Codes::Bits6 {
                    for half in 0..2 {
                        let offset = 32 * x.half_sums[2 * (row * blocks + index) + half];
                        let dot = dot(16 * half..16 * half + 16) - offset;
                        *sum += dot as f32 * (weights.subs[half].scale * scale);
                    }
                } else {
                    *sum += dot(0..BLOCK_INPUTS) as f32 * (weights.subs[0].scale * scale);
                    *sum += weights.subs[0].offset * x.sums[row * blocks + index];
                }
            }
        }
        sink(row, &sums);
    }
}

/// The product with one panel of float weights; `widen` turns f16 bits into f32.
#[inline(always)]
pub(super) fn float_panel<const FMA: bool>(
    x: &Activations,
    weights: &PackedMatrix,
    panel: usize,
    rows: Range<usize>,
    widen: impl Fn(&[u16], &mut [f32]) + Copy,
    sink: &Sink<'_>,
) {
    let mut row = rows.start;
    while row + TILE_QUERIES <= rows.end {
        float_tile::<FMA, TILE_QUERIES>(x, weights, panel, row, widen, sink);
        row += TILE_QUERIES;
    }
    while row < rows.end {
        float_tile::<FMA, 1>(x, weights, panel, row, widen, sink);
        row += 1;
    }
}

#[inline(always)]
#[allow(clippy::needless_range_loop)] // `lane` numbers a weight row and a column of `out`.
fn float_tile<const FMA: bool, const ROWS: usize>(
    x: &Activations,
    weights: &PackedMatrix,
    panel: usize,
    first_row: usize,
    widen: impl Fn(&[u16], &mut [f32]),
    sink: &Sink<'_>,
) {
    let k = x.in_features;
    let mut out = [[0.0_f32; PANEL_ROWS]; ROWS];
    let lanes = PANEL_ROWS.min(weights.out_features() - panel * PANEL_ROWS);
    let mut buffer = [0.0_f32; WIDEN_CHUNK];
    for lane in 0..lanes {
        let weight_row = (panel * PANEL_ROWS + lane) * k;
        let mut sums = [[0.0_f32; LANES]; ROWS];
        let mut tails = [0.0_f32; ROWS];
        for start in (0..k).step_by(WIDEN_CHUNK) {
            let len = WIDEN_CHUNK.min(k - start);
            let range = weight_row + start..weight_row + start + len;
            let chunk: &[f32] = match &weights.storage {
                Storage::F32(values) => &values[range],
                Storage::F16(values) => {
                    widen(&values[range], &mut buffer[..len]);
                    &buffer[..len]
                }
                Storage::BF16(values) => {
                    for (wide, bits) in buffer.iter_mut().zip(&values[range]) {
                        *wide = f32::from_bits(u32::from(*bits) << 16);
                    }
                    &buffer[..len]
                }
                Storage::Panels { .. } => unreachable!("quantised panels have their own kernel"),
            };
            let (groups, rest) = chunk.as_chunks::<LANES>();
            for r in 0..ROWS {
                let inputs = &x.values[(first_row + r) * k + start..][..len];
                let (input_groups, input_rest) = inputs.as_chunks::<LANES>();
                for (group, inputs) in groups.iter().zip(input_groups) {
                    for i in 0..LANES {
                        sums[r][i] = fma::<FMA>(group[i], inputs[i], sums[r][i]);
                    }
                }
                for (weight, input) in rest.iter().zip(input_rest) {
                    tails[r] = fma::<FMA>(*weight, *input, tails[r]);
                }
            }
        }
        for r in 0..ROWS {
            out[r][lane] = tree_sum(sums[r]) + tails[r];
        }
    }
    for (r, values) in out.iter().enumerate() {
        sink(first_row + r, values);
    }
}

/// Adds lanes pairwise, always in the same order.
#[inline(always)]
fn tree_sum(mut lanes: [f32; LANES]) -> f32 {
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            lanes[i] += lanes[i + width];
        }
        width /= 2;
    }
    lanes[0]
}

#[inline(always)]
pub(super) fn quantise_row(x: &[f32], target: QuantisedRow<'_>) {
    let (blocks, _) = x.as_chunks::<BLOCK_INPUTS>();
    let (codes, _) = target.codes.as_chunks_mut::<BLOCK_INPUTS>();
    for (index, (block, codes)) in blocks.iter().zip(codes).enumerate() {
        let mut largest = [0.0_f32; 8];
        for group in block.as_chunks::<8>().0 {
            for i in 0..8 {
                largest[i] = largest[i].max(group[i].abs());
            }
        }
        let largest = largest.iter().fold(0.0_f32, |a, b| a.max(*b));
        let scale = largest / 127.0;
        let inverse = if largest > 0.0 { 127.0 / largest } else { 0.0 };
        let mut halves = [0_i32; 2];
        for i in 0..BLOCK_INPUTS {
            // The product is within -127..=127 up to rounding, so the cast never saturates.
            let code = (block[i] * inverse).round_ties_even() as i32;
            codes[i] = code as i8;
            halves[i / 16] += code;
        }
        target.scales[index] = scale;
        target.sums[index] = scale * (halves[0] + halves[1]) as f32;
        target.half_sums[2 * index] = halves[0];
        target.half_sums[2 * index + 1] = halves[1];
    }
}

pub(super) fn widen_halves(source: &[u16], out: &mut [f32]) {
    for (out, bits) in out.iter_mut().zip(source) {
        *out = f16::from_bits(*bits).to_f32();
    }
}

/// Sixteen keys and values of one KV head, widened.
pub(crate) struct TileInput<'a> {
    /// `[head_dim, TILE_TOKENS]`
    pub keys: &'a [f32],
    /// `[TILE_TOKENS, head_dim]`
    pub values: &'a [f32],
    pub scale: f32,
    pub softcap: Option<f32>,
}

/// One query (a row and head) and its running softmax.
pub(crate) struct QueryState<'a> {
    /// `[head_dim]`
    pub query: &'a [f32],
    /// `[head_dim]`, the unnormalised output.
    pub out: &'a mut [f32],
    pub max: f32,
    pub sum: f32,
    /// Tokens of the tile that this query may see; empty means the tile is not for it.
    pub visible: Range<usize>,
}

/// Adds one tile to each query's running softmax. A query's operations do not depend on the others.
#[inline(always)]
pub(super) fn attend_tile<const FMA: bool>(tile: &TileInput<'_>, states: &mut [QueryState<'_>]) {
    let mut chunks = states.chunks_exact_mut(TILE_QUERIES);
    for states in chunks.by_ref() {
        attend_queries::<FMA, TILE_QUERIES>(tile, states);
    }
    for state in chunks.into_remainder() {
        attend_queries::<FMA, 1>(tile, std::slice::from_mut(state));
    }
}

#[inline(always)]
fn attend_queries<const FMA: bool, const N: usize>(
    tile: &TileInput<'_>,
    states: &mut [QueryState<'_>],
) {
    let head_dim = states[0].query.len();
    let mut scores = [[0.0_f32; TILE_TOKENS]; N];
    let (keys, _) = tile.keys.as_chunks::<TILE_TOKENS>();
    for (d, keys) in keys.iter().enumerate().take(head_dim) {
        for n in 0..N {
            let q = states[n].query[d];
            for t in 0..TILE_TOKENS {
                scores[n][t] = fma::<FMA>(q, keys[t], scores[n][t]);
            }
        }
    }
    for (scores, state) in scores.iter_mut().zip(states) {
        if !state.visible.is_empty() {
            update_state::<FMA>(tile, scores, state);
        }
    }
}

#[inline(always)]
fn update_state<const FMA: bool>(
    tile: &TileInput<'_>,
    scores: &mut [f32; TILE_TOKENS],
    state: &mut QueryState<'_>,
) {
    for score in scores.iter_mut() {
        *score *= tile.scale;
    }
    if let Some(cap) = tile.softcap {
        for score in scores.iter_mut() {
            *score = cap * (*score / cap).tanh();
        }
    }
    let mut max = state.max;
    for score in &scores[state.visible.clone()] {
        max = max.max(*score);
    }
    let mut weights = [0.0_f32; TILE_TOKENS];
    for t in 0..TILE_TOKENS {
        weights[t] = exp::<FMA>(scores[t] - max);
    }
    for (t, weight) in weights.iter_mut().enumerate() {
        if !state.visible.contains(&t) {
            *weight = 0.0;
        }
    }
    let correction = if state.max == f32::NEG_INFINITY {
        0.0
    } else {
        exp::<FMA>(state.max - max)
    };
    let tile_sum: f32 = tree_sum(weights);
    state.sum = fma::<FMA>(state.sum, correction, tile_sum);
    state.max = max;
    add_values::<FMA>(tile.values, &weights, correction, state.out);
}

/// `out = out * correction + sum_t weights[t] * values[t]`, 32 dimensions at a time in registers.
#[inline(always)]
fn add_values<const FMA: bool>(
    values: &[f32],
    weights: &[f32; TILE_TOKENS],
    correction: f32,
    out: &mut [f32],
) {
    const WIDTH: usize = 32;
    let head_dim = out.len();
    let mut start = 0;
    while start + WIDTH <= head_dim {
        let mut sums = [0.0_f32; WIDTH];
        for i in 0..WIDTH {
            sums[i] = out[start + i] * correction;
        }
        for (t, weight) in weights.iter().enumerate() {
            let row = &values[t * head_dim + start..][..WIDTH];
            for i in 0..WIDTH {
                sums[i] = fma::<FMA>(*weight, row[i], sums[i]);
            }
        }
        out[start..start + WIDTH].copy_from_slice(&sums);
        start += WIDTH;
    }
    for d in start..head_dim {
        let mut sum = out[d] * correction;
        for (t, weight) in weights.iter().enumerate() {
            sum = fma::<FMA>(*weight, values[t * head_dim + d], sum);
        }
        out[d] = sum;
    }
}

#[inline(always)]
pub(super) fn silu_mul<const FMA: bool>(gate: &mut [f32], up: &[f32]) {
    for (gate, up) in gate.iter_mut().zip(up) {
        *gate = *gate / (1.0 + exp::<FMA>(-*gate)) * up;
    }
}

/// The tanh form of GELU: `x * sigmoid(2 u)` with `u = sqrt(2 / pi) (x + 0.044715 x^3)`.
#[inline(always)]
pub(super) fn gelu_tanh_mul<const FMA: bool>(gate: &mut [f32], up: &[f32]) {
    const SQRT_2_OVER_PI: f32 = 0.797_884_6;
    for (gate, up) in gate.iter_mut().zip(up) {
        let x = *gate;
        let u = SQRT_2_OVER_PI * x * fma::<FMA>(0.044_715 * x, x, 1.0);
        *gate = x / (1.0 + exp::<FMA>(-2.0 * u)) * up;
    }
}
