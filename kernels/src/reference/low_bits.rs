//! Blocks of two and three bits a weight, and the I-quants.

use super::{MAX_BLOCK, grids};
use crate::dtype::DType;

/// Codes of Q2_K and Q3_K: pairs of bits, of 128 values in 32 bytes; in Q3_K a third bit of each.
pub(super) fn split_k23_codes(dtype: DType, block: &[u8], codes: &mut [u8; MAX_BLOCK]) {
    let low = if dtype == DType::Q2K { 16 } else { 32 };
    for (index, codes) in codes.chunks_exact_mut(32).enumerate() {
        let bytes = &block[low + 32 * (index / 4)..][..32];
        for (code, byte) in codes.iter_mut().zip(bytes) {
            *code = (byte >> (2 * (index % 4))) & 3;
        }
        if dtype == DType::Q3K {
            for (code, byte) in codes.iter_mut().zip(&block[..32]) {
                *code |= ((byte >> index) & 1) << 2;
            }
        }
    }
}

/// The scales of a Q3_K block, less the 32 that the format adds.
pub(super) fn q3k_factors(block: &[u8]) -> [i8; 16] {
    let bytes = &block[96..108];
    std::array::from_fn(|index| {
        let low = (bytes[index % 8] >> (4 * (index / 8))) & 15;
        let high = (bytes[8 + index % 4] >> (2 * (index / 4))) & 3;
        (low | high << 4) as i8 - 32
    })
}

/// The scales of an IQ4_XS block's eight sub-blocks.
pub(super) fn iq4_xs_factors(block: &[u8]) -> [i8; 16] {
    let high = u16::from_le_bytes([block[2], block[3]]);
    std::array::from_fn(|index| {
        if index >= 8 {
            return 0;
        }
        let low = (block[4 + index / 2] >> (4 * (index % 2))) & 15;
        (low | ((high >> (2 * index)) as u8 & 3) << 4) as i8 - 32
    })
}

fn word(block: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([block[at], block[at + 1], block[at + 2], block[at + 3]])
}

/// The scales of IQ2 and IQ3 blocks as odd numbers: of 16 values in IQ2_XS and IQ2_S, else of 32.
pub(super) fn grid_factors(dtype: DType, block: &[u8]) -> [i8; 16] {
    std::array::from_fn(|index| {
        let nibble = |at: usize| (block[at + index / 2] >> (4 * (index % 2))) & 15;
        let scale = match dtype {
            DType::IQ2_XS => nibble(66),
            DType::IQ2_S => nibble(74),
            _ if index >= 8 => return 0,
            DType::IQ2_XXS => (word(block, 2 + 8 * index + 4) >> 28) as u8,
            DType::IQ3_XXS => (word(block, 66 + 4 * index) >> 28) as u8,
            _ => nibble(106),
        };
        2 * scale as i8 + 1
    })
}

/// Seven signs and the eighth that makes their number even.
fn even_signs(seven: u32) -> u8 {
    let seven = seven as u8 & 127;
    seven | ((seven.count_ones() as u8 & 1) << 7)
}

/// Codes of an IQ2 block: levels of a grid, with the sign in bit 3.
pub(super) fn split_iq2_codes(dtype: DType, block: &[u8], codes: &mut [u8; MAX_BLOCK]) {
    for (index, codes) in codes.chunks_exact_mut(8).enumerate() {
        let (sub, part) = (index / 4, index % 4);
        let (levels, signs) = match dtype {
            DType::IQ2_XXS => {
                let at = 2 + 8 * sub;
                let entry = usize::from(block[at + part]);
                let signs = even_signs(word(block, at + 4) >> (7 * part));
                (grids::IQ2_XXS[entry], signs)
            }
            DType::IQ2_XS => {
                let both = u16::from_le_bytes([block[2 + 2 * index], block[3 + 2 * index]]);
                let entry = usize::from(both & 511);
                (grids::IQ2_XS[entry], even_signs(u32::from(both >> 9)))
            }
            _ => {
                let high = usize::from(block[66 + sub] >> (2 * part)) & 3;
                let entry = usize::from(block[2 + index]) | high << 8;
                (grids::IQ2_S[entry], block[34 + index])
            }
        };
        for (i, code) in codes.iter_mut().enumerate() {
            let sign = (signs >> i) & 1;
            *code = (levels >> (2 * i)) as u8 & 3 | sign << 3;
        }
    }
}

/// Codes of an IQ3 block: levels of a grid, with the sign in bit 3.
pub(super) fn split_iq3_codes(dtype: DType, block: &[u8], codes: &mut [u8; MAX_BLOCK]) {
    for (index, codes) in codes.chunks_exact_mut(4).enumerate() {
        let entry = usize::from(block[2 + index]);
        let (levels, signs) = if dtype == DType::IQ3_XXS {
            let signs = word(block, 66 + 4 * (index / 8)) >> (7 * (index / 2 % 4));
            (grids::IQ3_XXS[entry], even_signs(signs))
        } else {
            let high = usize::from(block[66 + index / 8] >> (index % 8)) & 1;
            (grids::IQ3_S[entry | high << 8], block[74 + index / 2])
        };
        for (i, code) in codes.iter_mut().enumerate() {
            let sign = (signs >> (4 * (index % 2) + i)) & 1;
            *code = (levels >> (3 * i)) as u8 & 7 | sign << 3;
        }
    }
}
