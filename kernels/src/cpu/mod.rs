//! The one place that chooses an instruction set.

mod portable;
#[cfg(target_arch = "x86_64")]
mod x86;

use std::ops::Range;
use std::sync::OnceLock;

use crate::activations::{Activations, QuantisedRow};
use crate::matrix::{PANEL_ROWS, PackedMatrix};

/// An instruction set with kernels of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Isa {
    Portable,
    #[cfg(target_arch = "x86_64")]
    Avx2,
}

impl Isa {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Isa::Portable => "portable",
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => "avx2",
        }
    }
}

/// The best instruction set of this machine, found once.
pub(crate) fn isa() -> Isa {
    static ISA: OnceLock<Isa> = OnceLock::new();
    *ISA.get_or_init(|| {
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c")
        {
            return Isa::Avx2;
        }
        Isa::Portable
    })
}

/// Receives the results of one activation row for one panel: `(row, [PANEL_ROWS] values)`.
pub(crate) type Sink<'a> = dyn Fn(usize, &[f32; PANEL_ROWS]) + 'a;

/// The product of some activation rows with one panel of output rows.
pub(crate) fn panel_product(
    x: &Activations,
    weights: &PackedMatrix,
    panel: usize,
    rows: Range<usize>,
    sink: &Sink<'_>,
) {
    match isa() {
        Isa::Portable => portable::panel_product(x, weights, panel, rows, sink),
        #[cfg(target_arch = "x86_64")]
        // SAFETY: `isa` found AVX2, FMA and F16C on this machine.
        Isa::Avx2 => unsafe { x86::panel_product(x, weights, panel, rows, sink) },
    }
}

/// Quantises one row whose length is a multiple of 32.
pub(crate) fn quantise_row(x: &[f32], target: QuantisedRow<'_>) {
    match isa() {
        Isa::Portable => portable::quantise_row(x, target),
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        Isa::Avx2 => unsafe { x86::quantise_row(x, target) },
    }
}

/// Runs `body` compiled for the machine's best instruction set.
#[inline]
pub(crate) fn attend_tile(tile: &TileInput<'_>, states: &mut [QueryState<'_>]) {
    match isa() {
        Isa::Portable => portable::attend_tile::<false>(tile, states),
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        Isa::Avx2 => unsafe { x86::attend_tile(tile, states) },
    }
}

pub(crate) use portable::{QueryState, TILE_TOKENS, TileInput};

/// Converts f16 bits to f32.
#[inline]
pub(crate) fn widen_halves(source: &[u16], out: &mut [f32]) {
    match isa() {
        Isa::Portable => portable::widen_halves(source, out),
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        Isa::Avx2 => unsafe { x86::widen_halves(source, out) },
    }
}

/// `gate[i] = silu(gate[i]) * up[i]`
pub(crate) fn silu_mul(gate: &mut [f32], up: &[f32]) {
    match isa() {
        Isa::Portable => portable::silu_mul::<false>(gate, up),
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        Isa::Avx2 => unsafe { x86::silu_mul(gate, up) },
    }
}

/// `gate[i] = gelu_tanh(gate[i]) * up[i]`
pub(crate) fn gelu_tanh_mul(gate: &mut [f32], up: &[f32]) {
    match isa() {
        Isa::Portable => portable::gelu_tanh_mul::<false>(gate, up),
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        Isa::Avx2 => unsafe { x86::gelu_tanh_mul(gate, up) },
    }
}
