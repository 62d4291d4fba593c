//! Where int8 keys and values lie: tiles of sixteen tokens of one KV head, as products read them.
//!
//! Each [`GROUP`] values of a token share an f16 scale, as in ggml's Q8_0. Codes are in -127..=127.

use crate::cpu::TILE_TOKENS;

/// Values that share a scale.
pub(crate) const GROUP: usize = 32;
/// Dimensions of a key whose codes lie side by side: what one int8 dot product takes.
pub(crate) const QUAD: usize = 4;
/// What makes a signed code of a key an unsigned byte.
pub(crate) const KEY_OFFSET: u8 = 128;
/// Bytes of a scale.
const SCALE_BYTES: usize = 2;
/// Bytes of a cache line; tiles begin on one.
const LINE_BYTES: usize = 64;

/// A tile of keys is `[quads, TILE_TOKENS, QUAD]` bytes, each a code plus [`KEY_OFFSET`], and its
/// scales; a tile of values `[TILE_TOKENS, head_dim]` signed bytes and its scales. Scales are
/// `[groups, TILE_TOKENS]` f16.
#[derive(Debug, Clone, Copy)]
pub(crate) struct CodeLayout {
    pub head_dim: usize,
}

impl CodeLayout {
    /// Quads of a key; the last is filled up with zeros.
    pub(crate) fn num_quads(self) -> usize {
        self.head_dim.div_ceil(QUAD)
    }

    /// Scales of a token.
    pub(crate) fn num_groups(self) -> usize {
        self.head_dim.div_ceil(GROUP)
    }

    /// Bytes of a tile's codes.
    pub(crate) fn key_codes_len(self) -> usize {
        self.num_quads() * QUAD * TILE_TOKENS
    }

    /// Bytes of a tile's codes.
    pub(crate) fn value_codes_len(self) -> usize {
        self.head_dim * TILE_TOKENS
    }

    pub(crate) fn num_scales(self) -> usize {
        self.num_groups() * TILE_TOKENS
    }

    fn tile_bytes(self, codes_len: usize) -> Option<usize> {
        let scales = self.num_scales().checked_mul(SCALE_BYTES)?;
        codes_len
            .checked_add(scales)?
            .checked_next_multiple_of(LINE_BYTES)
    }

    /// Bytes of a tile of keys; `None` when they cannot be counted.
    pub(crate) fn key_tile_bytes(self) -> Option<usize> {
        let padded = self.head_dim.checked_next_multiple_of(QUAD)?;
        self.tile_bytes(padded.checked_mul(TILE_TOKENS)?)
    }

    /// Bytes of a tile of values; `None` when they cannot be counted.
    pub(crate) fn value_tile_bytes(self) -> Option<usize> {
        self.tile_bytes(self.head_dim.checked_mul(TILE_TOKENS)?)
    }

    /// Where the code of a key's dimension lies in its tile.
    pub(crate) fn key_code_at(self, token: usize, dim: usize) -> usize {
        (dim / QUAD * TILE_TOKENS + token) * QUAD + dim % QUAD
    }
}
