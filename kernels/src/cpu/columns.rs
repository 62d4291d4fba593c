//! Weights read back with rows and columns exchanged: what products with a matrix's transpose read.
//!
//! A strip is sixteen columns (inputs) of a matrix. Its line `j` holds them of row `j`.

use std::ops::Range;

use half::{bf16, f16};

use crate::float_panel::{FloatPanel, LineF32};
use crate::panel::{BLOCK_INPUTS, Codes, LINE_BYTES, PANEL_ROWS, Panel};

/// Inputs of a line.
const GROUP: usize = 4;

/// Strips of a block of 32 columns.
pub(crate) const BLOCK_STRIPS: usize = BLOCK_INPUTS / PANEL_ROWS;

/// One panel's rows of a block of columns: a strip, then the other.
pub(crate) type PanelBlock = [[LineF32; PANEL_ROWS]; BLOCK_STRIPS];

/// See [`super::unpack_block`].
#[inline(always)]
pub(super) fn unpack_block<const FMA: bool>(panel: &Panel<'_>, block: usize, out: &mut PanelBlock) {
    let format = panel.format.codes;
    let bytes = &panel.codes[block * format.block_bytes()..][..format.block_bytes()];
    let (lines, _) = bytes.as_chunks::<LINE_BYTES>();
    let halves = panel.scales_of_rows(block);
    for (half, (strip, rows)) in out.iter_mut().zip(halves).enumerate() {
        // Each row's scale beside the codes of its four inputs of a line.
        let [scales, offsets] =
            rows.map(|values| -> [f32; LINE_BYTES] { std::array::from_fn(|i| values[i / GROUP]) });
        for part in 0..PANEL_ROWS / GROUP {
            let mut values = codes(format, lines, half * PANEL_ROWS / GROUP + part);
            for i in 0..LINE_BYTES {
                values[i] = scales[i] * values[i] + offsets[i];
            }
            for (line, values) in strip.iter_mut().zip(values.as_chunks::<GROUP>().0) {
                line[part * GROUP..][..GROUP].copy_from_slice(values);
            }
        }
    }
}

/// The codes of four inputs of every row.
#[inline(always)]
fn codes(format: Codes, lines: &[[u8; LINE_BYTES]], group: usize) -> [f32; LINE_BYTES] {
    let mut values = [0.0; LINE_BYTES];
    if format == Codes::Bits8 {
        for (value, byte) in values.iter_mut().zip(&lines[group]) {
            *value = f32::from(*byte as i8);
        }
        return values;
    }
    let nibbles = (group % GROUP, 4 * (group / GROUP), 15);
    let pairs = |first: usize| (first + group / GROUP, 2 * (group % GROUP), 3);
    // Which line, how far right, and which bits: of a code's low part and of the part above it.
    let ((line, shift, mask), above, place) = match format {
        Codes::Bits2 => (pairs(0), (0, 0, 0), 0),
        Codes::Bits3 => (pairs(0), (2, group, 1), 2),
        Codes::Bits5 => (nibbles, (4, group, 1), 4),
        Codes::Bits6 => (nibbles, pairs(4), 4),
        Codes::Bits4 | Codes::Bits8 | Codes::Named(_) => (nibbles, (0, 0, 0), 0),
    };
    for (index, value) in values.iter_mut().enumerate() {
        let high = (lines[above.0][index] >> above.1) & above.2;
        let code = (lines[line][index] >> shift) & mask | high << place;
        *value = match format {
            Codes::Named(codebook) => f32::from(codebook.values()[usize::from(code)]),
            _ => f32::from(code),
        };
    }
    values
}

/// The same of a float matrix with `in_features` columns; those behind the last are zero.
pub(crate) fn read_block(
    panel: &FloatPanel<'_>,
    block: usize,
    in_features: usize,
    out: &mut PanelBlock,
) {
    let inputs = block * BLOCK_INPUTS..((block + 1) * BLOCK_INPUTS).min(in_features);
    match panel {
        FloatPanel::F32(lines) => exchange(inputs, out, |input, lane| lines[input][lane]),
        FloatPanel::F16(lines) => exchange(inputs, out, |input, lane| {
            f16::from_bits(lines[input][lane]).to_f32()
        }),
        FloatPanel::BF16(lines) => exchange(inputs, out, |input, lane| {
            bf16::from_bits(lines[input / 2][2 * lane + input % 2]).to_f32()
        }),
    }
}

fn exchange(inputs: Range<usize>, out: &mut PanelBlock, value: impl Fn(usize, usize) -> f32) {
    if inputs.len() < BLOCK_INPUTS {
        *out = PanelBlock::default();
    }
    for (column, input) in inputs.enumerate() {
        let strip = &mut out[column / PANEL_ROWS];
        for (lane, line) in strip.iter_mut().enumerate() {
            line[column % PANEL_ROWS] = value(input, lane);
        }
    }
}
