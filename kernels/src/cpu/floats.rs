//! Which kernel multiplies float weights.

use std::ops::Range;
use std::sync::OnceLock;

use super::columns::{BLOCK_STRIPS, PanelBlock};
use super::transposed::StripSums;
use crate::activations::Activations;
use crate::float_panel::{FloatPanels, LineBF16};
use crate::panel::Panel;
#[cfg(target_arch = "x86_64")]
use crate::panel::{Codes, Scales};

/// The variable that, set to 1, chooses as [`use_bf16_activations`] does, where nobody calls that.
const BF16_VARIABLE: &str = "PONDER_BF16_ACTIVATIONS";

static ROUNDS_TO_BF16: OnceLock<bool> = OnceLock::new();

/// See [`crate::use_bf16_activations`].
pub(crate) fn use_bf16_activations(is_wanted: bool) -> bool {
    *ROUNDS_TO_BF16.get_or_init(|| is_wanted && can_multiply_bf16()) == is_wanted
}

/// Whether products with bf16 weights read activations rounded to bf16, two inputs an instruction.
pub(crate) fn multiplies_bf16() -> bool {
    let is_wanted = || std::env::var_os(BF16_VARIABLE).is_some_and(|value| value == "1");
    *ROUNDS_TO_BF16.get_or_init(|| is_wanted() && can_multiply_bf16())
}

/// Whether the machine multiplies pairs of bf16, and the instruction set in use may.
pub(crate) fn can_multiply_bf16() -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        use super::{Isa, isa};

        matches!(isa(), Isa::Avx512 | Isa::Amx) && is_x86_feature_detected!("avx512bf16")
    }
    #[cfg(not(target_arch = "x86_64"))]
    false
}

/// See [`super::panels_product`].
pub(super) fn product(
    x: &Activations,
    weights: &FloatPanels,
    panels: Range<usize>,
    rows: Range<usize>,
    out: &mut [f32],
) {
    #[cfg(target_arch = "x86_64")]
    if weights.is_bf16() && multiplies_bf16() {
        // SAFETY: `multiplies_bf16` found AVX-512 F and BF16 on this machine.
        return unsafe { super::bf16::product(x, weights, panels, rows, out) };
    }
    super::float_product(x, weights, panels, rows, out);
}

/// Reads a panel's rows of a block of columns back, rounded to bf16 and with two rows side by side
/// in each line of `out`, a strip and the other. `room` is overwritten.
///
/// # Panics
/// Where [`can_multiply_bf16`] is false.
pub(crate) fn pair_block(
    panel: &Panel<'_>,
    block: usize,
    room: &mut PanelBlock,
    out: [&mut [LineBF16]; BLOCK_STRIPS],
) {
    assert!(can_multiply_bf16(), "this is a bug");
    #[cfg(target_arch = "x86_64")]
    {
        if let (Codes::Bits8, Scales::Half { zero: 0 }) = (panel.format.codes, panel.format.scales)
        {
            let [[scales, _], _] = panel.scales_of_rows(block);
            let bytes = panel.format.codes.block_bytes();
            let lines = panel.codes[block * bytes..][..bytes].as_chunks().0;
            let lines = lines.try_into().expect("a block of bytes has eight lines");
            // SAFETY: `can_multiply_bf16` found AVX-512 F, BW and BF16 on this machine.
            return unsafe { super::pair_block::pair_bytes(lines, &scales, out) };
        }
        super::unpack_block(panel, block, room);
        for (rows, out) in room.iter().zip(out) {
            // SAFETY: as above.
            unsafe { super::transposed_bf16::pair_lines(rows, out) };
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (panel, block, room, out);
}

/// `sums[row] += sum_j x[row][j] * lines[j]` for two strips of lines, of pairs rounded to bf16.
///
/// # Panics
/// Where [`can_multiply_bf16`] is false, and where lengths do not fit.
pub(crate) fn add_transposed_pairs(
    x: &[&[[u16; 2]]],
    lines: [&[LineBF16]; 2],
    sums: &mut [StripSums],
) {
    assert!(can_multiply_bf16(), "this is a bug");
    #[cfg(target_arch = "x86_64")]
    // SAFETY: `can_multiply_bf16` found AVX-512 F and BF16 on this machine.
    unsafe {
        super::transposed_bf16::add_transposed(x, lines, sums);
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (x, lines, sums);
}
