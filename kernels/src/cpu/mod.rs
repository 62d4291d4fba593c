//! The one place that chooses kernels by the instruction set.

#[cfg(target_arch = "x86_64")]
mod ahead;
#[cfg(target_arch = "x86_64")]
mod amx;
mod attend;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "x86_64")]
mod bf16;
mod codes;
mod columns;
mod cross_entropy;
mod encode;
mod float;
mod floats;
mod gradients;
mod isa;
mod kv;
mod low_rank;
mod outer;
#[cfg(target_arch = "x86_64")]
mod pair_block;
mod portable;
mod prefetch;
mod quantise;
mod rows;
mod tile;
mod transposed;
#[cfg(target_arch = "x86_64")]
mod transposed_bf16;
mod vector;
mod widen;

use std::ops::Range;

pub(crate) use attend::{QueryState, TILE_TOKENS, queries_at_once};
pub(crate) use columns::{BLOCK_STRIPS, PanelBlock, read_block};
pub(crate) use cross_entropy::RunningSum;
pub(crate) use floats::{
    add_transposed_pairs, can_multiply_bf16, multiplies_bf16, pair_block, use_bf16_activations,
};
pub(crate) use isa::{Isa, isa};
pub(crate) use kv::{CodeTile, QueryCodes};
pub(crate) use low_rank::LowRankTile;
pub(crate) use prefetch::{begin_at, prefetch};
pub(crate) use tile::{TileData, TileInput};
pub(crate) use transposed::{StripSums, TRANSPOSED_ROWS};

use crate::activations::{Activations, BlockInfo, Corrections};
use crate::dtype::DType;
use crate::float_panel::{FloatPanels, LineF32};
use crate::matrix::PackedMatrix;
use crate::panel::{PANEL_ROWS, Panel};

/// Up to this many rows go to AVX-512, which needs no unpacked panel for them: tiles would be half
/// empty.
#[cfg(target_arch = "x86_64")]
const AMX_MIN_ROWS: usize = 8;

/// A panel unpacked to bytes, so that many activation rows share the work; reused by a thread.
#[derive(Debug, Default)]
pub(crate) struct DecodedPanel {
    lines: Vec<Line>,
    /// How this thread's AMX tiles are configured.
    #[cfg(target_arch = "x86_64")]
    tiles: Option<(usize, usize)>,
    /// So it stays on its thread.
    _thread: std::marker::PhantomData<*const ()>,
}

/// 64 bytes on their own cache line.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
struct Line([u8; 64]);

impl DecodedPanel {
    /// Room for `count` lines.
    #[cfg(target_arch = "x86_64")]
    fn lines(&mut self, count: usize) -> &mut [Line] {
        if self.lines.len() < count {
            self.lines.resize(count, Line([0; 64]));
        }
        &mut self.lines[..count]
    }
}

/// Most panels of a [`panels_product`] call.
pub(crate) const MAX_PANELS: usize = 8;

/// The product of some activation rows with panels `panels` of output rows; `out` is
/// `[panels.len(), rows.len(), PANEL_ROWS]`.
///
/// An element's operations do not depend on how many rows or panels there are.
pub(crate) fn panels_product(
    x: &Activations,
    weights: &PackedMatrix,
    panels: Range<usize>,
    rows: Range<usize>,
    decoded: &mut DecodedPanel,
    out: &mut [f32],
) {
    let panel_len = rows.len() * PANEL_ROWS;
    assert_eq!(out.len(), panels.len() * panel_len, "this is a bug");
    assert!(
        rows.end <= x.num_rows && panels.len() <= MAX_PANELS,
        "this is a bug"
    );
    if let Some(floats) = weights.floats() {
        return floats::product(x, floats, panels, rows, out);
    }
    #[cfg(target_arch = "x86_64")]
    if let (Isa::Amx, Some(first)) = (isa(), weights.panel(panels.start))
        && rows.len() > AMX_MIN_ROWS
        && amx::has_tiles(first.format)
    {
        let mut quantised = [first; MAX_PANELS];
        for (index, panel) in panels.clone().enumerate() {
            quantised[index] = weights.panel(panel).unwrap_or(first);
        }
        let quantised = &quantised[..panels.len()];
        // SAFETY: `isa` found AVX-512 and AMX on this machine.
        return unsafe { amx::panels_product(x, quantised, rows, decoded, out) };
    }
    for (panel, out) in panels.zip(out.chunks_exact_mut(panel_len)) {
        panel_product(x, weights, panel, rows.clone(), decoded, out);
    }
}

/// The product of some activation rows with one panel.
fn panel_product(
    x: &Activations,
    weights: &PackedMatrix,
    panel: usize,
    rows: Range<usize>,
    decoded: &mut DecodedPanel,
    out: &mut [f32],
) {
    let quantised = weights.panel(panel).expect("this is a bug");
    match isa() {
        Isa::Portable => portable::panel_product(x, quantised, rows, out),
        #[cfg(target_arch = "x86_64")]
        // SAFETY: `isa` found AVX2, FMA and F16C on this machine.
        Isa::Avx2 => unsafe { avx2::panel_product(x, quantised, rows, out) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: `isa` found AVX-512 F, BW, DQ, VL and VNNI on this machine.
        Isa::Avx512 | Isa::Amx => unsafe {
            avx512::panel_product(x, quantised, rows, decoded, out)
        },
    }
}

/// Plain Rust, compiled once for every instruction set: `FMA` turns on fused multiply-add.
macro_rules! compiled_for_each_isa {
    ($($(#[$doc:meta])* $module:ident::$name:ident($($arg:ident: $type:ty),*);)*) => {$(
        $(#[$doc])*
        pub(crate) fn $name($($arg: $type),*) {
            match isa() {
                Isa::Portable => $module::$name::<false>($($arg),*),
                #[cfg(target_arch = "x86_64")]
                Isa::Avx2 => {
                    #[target_feature(enable = "avx2,fma,f16c")]
                    fn compiled($($arg: $type),*) {
                        $module::$name::<true>($($arg),*);
                    }
                    // SAFETY: `isa` found these on this machine.
                    unsafe { compiled($($arg),*) }
                }
                #[cfg(target_arch = "x86_64")]
                Isa::Avx512 | Isa::Amx => {
                    #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
                    fn compiled($($arg: $type),*) {
                        $module::$name::<true>($($arg),*);
                    }
                    // SAFETY: `isa` found these on this machine.
                    unsafe { compiled($($arg),*) }
                }
            }
        }
    )*};
}

compiled_for_each_isa! {
    /// `x = x / sqrt(mean(x^2) + eps) * weight`
    rows::rms_norm_row(x: &mut [f32], weight: &[f32], eps: f32);
    /// Whole blocks of Q8_0, Q4_K or Q6_K from their values; `out` is zeroed.
    quantise::quantise_values(dtype: DType, x: &[f32], out: &mut [u8]);
    /// Rounds to the nearest bf16, ties to even.
    rows::round_to_bf16(x: &[f32], out: &mut [u16]);
    /// The largest of `x` and `out`; NaN is never larger.
    rows::largest(x: &[f32], out: &mut f32);
    /// `weights[i] = exp(x[i] - shift)`, 0 for negative infinity, and their sum.
    rows::weigh(x: &[f32], shift: f32, weights: &mut [f32], sum: &mut f64);
    /// `x += y`
    rows::add_assign(x: &mut [f32], y: &[f32]);
    /// Replaces `gate` and `up` by the gradients by them; `by_result` is that by `silu(gate) * up`.
    gradients::silu_gradient(gate: &mut [f32], up: &mut [f32], by_result: &[f32]);
    /// The same of `gelu_tanh(gate) * up`.
    gradients::gelu_tanh_gradient(gate: &mut [f32], up: &mut [f32], by_result: &[f32]);
    /// The same of the unit of [`crate::Glu::ClampedSwish`].
    gradients::clamped_swish_gradient(gate: &mut [f32], up: &mut [f32], by_result: &[f32]);
    /// The sum of the products of two rows.
    gradients::dot(a: &[f32], b: &[f32], sum: &mut f32);
    /// Scales one row's scores of a tile of tokens; those of tokens that it does not see become
    /// negative infinity. Takes the largest into `largest`.
    gradients::mask_scores(
        scores: &mut [f32],
        seen: Range<usize>,
        scale: f32,
        largest: &mut f32
    );
    /// Turns whole groups of 16 scores into `exp(score - shift)`, and adds their sum and that of
    /// their products with `slopes` to `sums`.
    gradients::weigh_scores(
        scores: &mut [f32],
        slopes: &[f32],
        shift: f32,
        sums: &mut [f64; 2]
    );
    /// `weights *= factor`, and then `slopes = weights * (slopes - mean) * scale`.
    gradients::score_gradient(
        weights: &mut [f32],
        slopes: &mut [f32],
        factor: f32,
        mean: f32,
        scale: f32
    );
    /// Adds the gradient by a row that is normalised: `J^T by_normed`.
    gradients::rms_norm_gradient(
        x: &[f32],
        weight: &[f32],
        eps: f32,
        by_normed: &[f32],
        out: &mut [f32]
    );
    /// Reads a panel's rows of a block of columns back as f32, rows and columns exchanged.
    columns::unpack_block(panel: &Panel<'_>, block: usize, out: &mut PanelBlock);
    /// Codes of a head's key or value with an f16 scale for each group of it.
    codes::encode_codes(x: &[f32], codes: &mut [i8], scales: &mut [u16]);
    /// Codes of a query with a scale for each group of it, and the sums of each group's codes.
    codes::encode_query(x: &[f32], codes: &mut [i8], scales: &mut [f32], sums: &mut [i32]);
    /// Reads the values of a tile back: `codes` and `out` are `[TILE_TOKENS, head_dim]`, `scales`
    /// `[groups, TILE_TOKENS]`.
    codes::widen_codes(codes: &[i8], scales: &[f32], out: &mut [f32]);
    /// `gate[i] = silu(gate[i]) * up[i]`
    rows::silu_mul(gate: &mut [f32], up: &[f32]);
    /// `gate[i] = gelu_tanh(gate[i]) * up[i]`
    rows::gelu_tanh_mul(gate: &mut [f32], up: &[f32]);
    /// See [`crate::Glu::ClampedSwish`].
    rows::clamped_swish_mul(gate: &mut [f32], up: &[f32]);
    /// `x = (x - mean) / sqrt(variance + eps) * weight + bias`
    encode::layer_norm_row(x: &mut [f32], weight: &[f32], bias: &[f32], eps: f32);
    /// `x * (1 + erf(x / sqrt(2))) / 2`
    encode::gelu(x: &mut [f32]);
    /// The tanh form of GELU.
    encode::gelu_tanh(x: &mut [f32]);
    /// Rotates pairs `(low[i], high[i])` by `angles[i]` (cos, sin).
    rows::rotate_halves(low: &mut [f32], high: &mut [f32], angles: &[(f32, f32)]);
}

/// Converts f16 bits to f32.
#[inline]
pub(crate) fn widen_halves(source: &[u16], out: &mut [f32]) {
    match isa() {
        Isa::Portable => rows::widen_halves(source, out),
        #[cfg(target_arch = "x86_64")]
        // SAFETY: `isa` found AVX2 and F16C on this machine.
        Isa::Avx2 => unsafe { avx2::widen_halves(source, out) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: `isa` found AVX-512 F on this machine.
        Isa::Avx512 | Isa::Amx => unsafe { avx512::widen_halves(source, out) },
    }
}

/// As above, for bodies written with [`vector::Vector`].
macro_rules! vectors_for_each_isa {
    ($($(#[$doc:meta])* $module:ident::$name:ident($($arg:ident: $type:ty),*);)*) => {$(
        $(#[$doc])*
        pub(crate) fn $name($($arg: $type),*) {
            match isa() {
                Isa::Portable => $module::$name::<vector::Plain>($($arg),*),
                #[cfg(target_arch = "x86_64")]
                Isa::Avx2 => {
                    #[target_feature(enable = "avx2,fma,f16c")]
                    fn compiled($($arg: $type),*) {
                        $module::$name::<vector::Avx>($($arg),*);
                    }
                    // SAFETY: `isa` found these on this machine.
                    unsafe { compiled($($arg),*) }
                }
                #[cfg(target_arch = "x86_64")]
                Isa::Avx512 | Isa::Amx => {
                    #[target_feature(
                        enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni"
                    )]
                    fn compiled($($arg: $type),*) {
                        $module::$name::<vector::Avx512>($($arg),*);
                    }
                    // SAFETY: `isa` found these on this machine.
                    unsafe { compiled($($arg),*) }
                }
            }
        }
    )*};
}

vectors_for_each_isa! {
    /// Reads whole groups of 128 values, as fast as they come: the largest of them and `largest`.
    rows::read_floats(x: &[f32], largest: &mut f32);
    /// The product of some rows with panels of float weights, widened to f32; `out` is
    /// `[panels.len(), rows.len(), PANEL_ROWS]`.
    float::float_product(
        x: &Activations,
        weights: &FloatPanels,
        panels: Range<usize>,
        rows: Range<usize>,
        out: &mut [f32]
    );
    /// Quantises whole blocks of 32 values.
    rows::quantise_row(
        x: &[f32],
        codes: &mut [i8],
        infos: &mut [BlockInfo],
        corrections: &mut [Corrections]
    );
    /// Takes a tile of logits (`[panels, sums.len()]` lines) into each row's sum; `largest` are the
    /// tile's own.
    cross_entropy::weigh_tile(tile: &[LineF32], sums: &mut [RunningSum], largest: &mut [f32]);
    /// `sums[row] += sum_j x[row][j] * lines[j]` for two strips of lines.
    transposed::add_transposed(x: &[&[f32]], lines: [&[LineF32]; 2], sums: &mut [StripSums]);
    /// `out[row, i] += sum_j x[row * stride + j] * weights[j, i]`; rows of `weights` and `out` have `width` values.
    outer::add_outer(x: &[f32], stride: usize, weights: &[f32], out: &mut [f32], width: usize);
    /// The same with rows and columns of `x` exchanged: `out[row, i] += sum_j x[j * stride + row] *
    /// weights[j, i]`.
    outer::add_outer_exchanged(
        x: &[f32],
        stride: usize,
        weights: &[f32],
        out: &mut [f32],
        width: usize
    );
    /// Adds what an adapter's second factor makes of some rows to tiles of `tile_rows` rows, one a
    /// panel.
    low_rank::add_low_rank(add: &LowRankTile<'_>, tiles: &mut [f32], tile_rows: usize);
    /// Adds one tile of [`TileData::Floats`] to each query's running softmax; `outs` is
    /// `[states.len(), head_dim]`, the unnormalised outputs. The next three take the other tiles.
    attend::attend_floats(tile: &TileInput<'_>, states: &mut [QueryState], outs: &mut [f32]);
    attend::attend_halves(tile: &TileInput<'_>, states: &mut [QueryState], outs: &mut [f32]);
    attend::attend_coded_keys(tile: &TileInput<'_>, states: &mut [QueryState], outs: &mut [f32]);
    attend::attend_codes(tile: &TileInput<'_>, states: &mut [QueryState], outs: &mut [f32]);
}

/// Multiply-adds of one round of [`dot_rounds`].
pub(crate) const MACS_PER_DOT_ROUND: usize = 8 * 512;

/// The int8 multiply-adds of the kernels, on registers alone: eight sums, so that none waits for itself.
pub(crate) fn dot_rounds(rounds: usize) -> i32 {
    match isa() {
        Isa::Portable => rows::dot_rounds(rounds),
        #[cfg(target_arch = "x86_64")]
        // SAFETY: `isa` found AVX2 on this machine.
        Isa::Avx2 => unsafe { avx2::dot_rounds(rounds) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: `isa` found AVX-512 VNNI on this machine.
        Isa::Avx512 | Isa::Amx => unsafe { avx512::dot_rounds(rounds) },
    }
}
