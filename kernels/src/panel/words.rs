//! Panel lines from the words of common blocks, four codes at a time.
//!
//! A line holds four inputs of a row in one word, and so do most GGUF blocks: what
//! [`reference::split_codes`](crate::reference) takes apart into codes and `pack_codes` joins
//! again, these join at once. Their lines are the same.

use super::{BLOCK_INPUTS, Codes, LINE_BYTES};
use crate::dtype::DType;

const NIBBLES: u32 = 0x0f0f_0f0f;
const PAIRS: u32 = 0x0303_0303;
const BITS: u32 = 0x0101_0101;

/// The codes of one row's source blocks, where the lines of its panel have them.
pub(super) struct Lane<'a> {
    /// Of one source block: as many packed blocks as its values fill.
    lines: &'a mut [[u8; LINE_BYTES]],
    at: usize,
}

impl<'a> Lane<'a> {
    pub(super) fn new(codes: &'a mut [u8], lane: usize) -> Self {
        Self {
            lines: codes.as_chunks_mut().0,
            at: 4 * lane,
        }
    }

    #[inline(always)]
    fn put(&mut self, line: usize, word: u32) {
        self.lines[line][self.at..][..4].copy_from_slice(&word.to_le_bytes());
    }
}

/// Word `index` of a block's bytes from `at` on.
#[inline(always)]
fn word(block: &[u8], at: usize, index: usize) -> u32 {
    let at = at + 4 * index;
    u32::from_le_bytes([block[at], block[at + 1], block[at + 2], block[at + 3]])
}

/// Bit `4 g + i` of `bits` as bit `g` of byte `i`: the bits of 32 codes as their line has them.
///
/// The digits of a bit's place are exchanged one after the other (Knuth, The Art of Computer
/// Programming 4A, 7.1.3: delta swaps): each time the uppermost with another.
#[inline(always)]
fn transposed(mut bits: u32) -> u32 {
    for (digit, places) in [(2, 0xf0f0), (0, 0xaaaa), (3, 0xff00), (1, 0xcccc)] {
        let distance = 16 - (1 << digit);
        let differing = ((bits >> distance) ^ bits) & places;
        bits ^= differing ^ (differing << distance);
    }
    bits
}

/// Whether [`pack_block`] packs blocks of this type.
pub(super) fn has(dtype: DType) -> bool {
    match dtype {
        DType::Q4_0 | DType::Q4_1 | DType::IQ4_NL | DType::MXFP4 | DType::IQ4_XS => true,
        DType::Q5_0 | DType::Q5_1 | DType::Q8_0 => true,
        DType::Q2K | DType::Q3K | DType::Q4K | DType::Q5K | DType::Q6K => true,
        DType::IQ2_XXS | DType::IQ2_XS | DType::IQ2_S | DType::IQ3_XXS | DType::IQ3_S => false,
        DType::F32 | DType::F16 | DType::BF16 => false,
    }
}

/// Packs the codes of one source block, of a type that [`has`] knows.
#[inline(always)]
pub(super) fn pack_block(dtype: DType, block: &[u8], lane: &mut Lane<'_>) {
    match dtype {
        DType::Q4_0 | DType::IQ4_NL => nibbles(&block[2..18], 0, lane),
        DType::Q4_1 => nibbles(&block[4..20], 0, lane),
        DType::MXFP4 => nibbles(&block[1..17], 0, lane),
        DType::IQ4_XS => {
            for index in 0..8 {
                nibbles(&block[8 + 16 * index..][..16], 4 * index, lane);
            }
        }
        DType::Q5_0 => {
            nibbles(&block[6..22], 0, lane);
            lane.put(4, transposed(word(&block[..22], 2, 0)));
        }
        DType::Q5_1 => {
            nibbles(&block[8..24], 0, lane);
            lane.put(4, transposed(word(&block[..24], 4, 0)));
        }
        DType::Q8_0 => {
            let block = &block[2..34];
            for line in 0..8 {
                lane.put(line, word(block, 0, line));
            }
        }
        DType::Q4K => k45(&block[16..144], None, lane),
        DType::Q5K => k45(&block[48..176], Some(&block[16..48]), lane),
        DType::Q6K => k6(&block[..192], lane),
        DType::Q2K => k23(&block[16..80], None, lane),
        DType::Q3K => k23(&block[32..96], Some(&block[..32]), lane),
        _ => unreachable!("the type has no words of codes; this is a bug"),
    }
}

/// Sixteen bytes whose low nibbles are the first half of a block, high nibbles the second: so they
/// lie in its lines, too.
#[inline(always)]
fn nibbles(bytes: &[u8], first: usize, lane: &mut Lane<'_>) {
    for line in 0..4 {
        lane.put(first + line, word(bytes, 0, line));
    }
}

/// 32 bytes have a block in their low nibbles and the next one in their high ones; `high` has the
/// fifth bit of block `b` in bit `b`.
#[inline(always)]
fn k45(low: &[u8], high: Option<&[u8]>, lane: &mut Lane<'_>) {
    let codes = if high.is_some() {
        Codes::Bits5
    } else {
        Codes::Bits4
    };
    let lines = codes.block_bytes() / LINE_BYTES;
    for pair in 0..4 {
        let low = &low[32 * pair..][..32];
        let (first, second) = (2 * pair * lines, (2 * pair + 1) * lines);
        for line in 0..4 {
            let (a, b) = (word(low, 0, line), word(low, 0, line + 4));
            lane.put(first + line, (a & NIBBLES) | ((b & NIBBLES) << 4));
            lane.put(second + line, ((a >> 4) & NIBBLES) | (b & !NIBBLES));
        }
        if let Some(high) = high {
            lane.put(first + 4, bits(high, 2 * pair));
            lane.put(second + 4, bits(high, 2 * pair + 1));
        }
    }
}

/// Bit `bit` of each of 32 bytes, as a line has the bits of a block.
#[inline(always)]
fn bits(bytes: &[u8], bit: usize) -> u32 {
    (0..8).fold(0, |line, g| {
        line | (((word(bytes, 0, g) >> bit) & BITS) << g)
    })
}

/// Bits `shift` and `shift + 1` of each of sixteen bytes, as a line has the pairs of half a block.
#[inline(always)]
fn pairs(bytes: &[u8], shift: usize) -> u32 {
    (0..4).fold(0, |line, g| {
        line | (((word(bytes, 0, g) >> shift) & PAIRS) << (2 * g))
    })
}

/// 128 values have the low nibbles of their first half in the low, of their second in the high
/// nibbles of 64 bytes, and the bits above of quarter `q` in pair `q` of 32 bytes.
#[inline(always)]
fn k6(block: &[u8], lane: &mut Lane<'_>) {
    let lines = Codes::Bits6.block_bytes() / LINE_BYTES;
    for index in 0..8 {
        let (part, quarter) = (index / 4, index % 4);
        let low = &block[64 * part + 32 * (quarter % 2)..][..BLOCK_INPUTS];
        let high = &block[128 + 32 * part..][..BLOCK_INPUTS];
        let first = index * lines;
        for line in 0..4 {
            let (a, b) = (word(low, 0, line), word(low, 0, line + 4));
            let word = match quarter < 2 {
                true => (a & NIBBLES) | ((b & NIBBLES) << 4),
                false => ((a >> 4) & NIBBLES) | (b & !NIBBLES),
            };
            lane.put(first + line, word);
        }
        for half in 0..2 {
            lane.put(first + 4 + half, pairs(&high[16 * half..], 2 * quarter));
        }
    }
}

/// 128 values have their pairs of bits in 32 bytes; `high` has the third bit of block `b` in bit
/// `b`.
#[inline(always)]
fn k23(low: &[u8], high: Option<&[u8]>, lane: &mut Lane<'_>) {
    let codes = if high.is_some() {
        Codes::Bits3
    } else {
        Codes::Bits2
    };
    let lines = codes.block_bytes() / LINE_BYTES;
    for index in 0..8 {
        let low = &low[32 * (index / 4)..][..BLOCK_INPUTS];
        for half in 0..2 {
            let word = pairs(&low[16 * half..], 2 * (index % 4));
            lane.put(index * lines + half, word);
        }
        if let Some(high) = high {
            lane.put(index * lines + 2, bits(high, index));
        }
    }
}
