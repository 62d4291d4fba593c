//! Panels back to floats, sixteen rows at once: what gradients read.

use crate::panel::{BLOCK_INPUTS, Codes, LINE_BYTES, PANEL_ROWS, Panel};

/// Inputs of a line.
const GROUP: usize = 4;
const GROUPS: usize = BLOCK_INPUTS / GROUP;

/// See [`super::unpack`].
#[inline(always)]
pub(super) fn unpack<const FMA: bool>(panel: &Panel<'_>, out: &mut [f32]) {
    let width = panel.blocks * BLOCK_INPUTS;
    let block_bytes = panel.format.codes.block_bytes();
    for (index, block) in panel.codes.chunks_exact(block_bytes).enumerate() {
        let lanes: [_; PANEL_ROWS] = std::array::from_fn(|lane| panel.subs(index, lane));
        let (lines, _) = block.as_chunks::<LINE_BYTES>();
        for group in 0..GROUPS {
            let values = codes(panel.format.codes, lines, group);
            let at = index * BLOCK_INPUTS + group * GROUP;
            for (lane, subs) in lanes.iter().enumerate() {
                let sub = subs[group * GROUP / (BLOCK_INPUTS / 2)];
                let out = &mut out[lane * width + at..][..GROUP];
                for i in 0..GROUP {
                    out[i] = sub.scale * values[GROUP * lane + i] + sub.offset;
                }
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
