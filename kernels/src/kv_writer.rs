//! Writing keys and values into the cache, row by row.

use std::cell::RefCell;

use half::f16;
use half::slice::{HalfBitsSliceExt, HalfFloatSliceExt};

use crate::cpu::{self, TILE_TOKENS};
use crate::kv_codes::{CodeLayout, KEY_OFFSET, QUAD};
use crate::partition::SharedSlice;

/// A head's key or value, before it is scattered.
#[derive(Default)]
struct Scratch {
    halves: Vec<u16>,
    codes: Vec<i8>,
    scales: Vec<u16>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// The memory of one layer's keys and values.
pub(crate) enum Target<'a> {
    /// f16 bits.
    Halves {
        keys: SharedSlice<'a, u16>,
        values: SharedSlice<'a, u16>,
    },
    /// Tiles of codes.
    Codes {
        keys: SharedSlice<'a, u8>,
        values: SharedSlice<'a, u8>,
    },
}

/// Writes rows of one layer.
pub(crate) struct KvWriter<'a> {
    pub num_kv_heads: usize,
    pub head_dim: usize,
    pub block_size: usize,
    /// Bytes of a tile of keys and of values.
    pub tile_bytes: [usize; 2],
    pub slot_mapping: &'a [u32],
    pub target: Target<'a>,
}

impl KvWriter<'_> {
    /// Writes row `row` of the batch; `k` and `v` are `[num_kv_heads * head_dim]`.
    ///
    /// # Safety
    /// No two threads may write the same row.
    pub(crate) unsafe fn write(&self, row: usize, k: &[f32], v: &[f32]) {
        let slot = self.slot_mapping[row] as usize;
        let (block, offset) = (slot / self.block_size, slot % self.block_size);
        SCRATCH.with_borrow_mut(|scratch| {
            let heads = k
                .chunks_exact(self.head_dim)
                .zip(v.chunks_exact(self.head_dim));
            for (head, (k, v)) in heads.enumerate().take(self.num_kv_heads) {
                let block = block * self.num_kv_heads + head;
                // SAFETY: a slot's memory belongs to this row.
                unsafe {
                    match &self.target {
                        Target::Halves { keys, values } => {
                            self.write_halves([keys, values], block, offset, [k, v], scratch);
                        }
                        Target::Codes { keys, values } => {
                            self.write_codes([keys, values], block, offset, [k, v], scratch);
                        }
                    }
                }
            }
        });
    }

    /// `block` counts the blocks of all KV heads.
    ///
    /// # Safety
    /// No other thread may write this token.
    unsafe fn write_halves(
        &self,
        [keys, values]: [&SharedSlice<'_, u16>; 2],
        block: usize,
        offset: usize,
        [k, v]: [&[f32]; 2],
        scratch: &mut Scratch,
    ) {
        let (head_dim, block_size) = (self.head_dim, self.block_size);
        let tile = block * block_size * head_dim;
        scratch.halves.resize(head_dim, 0);
        let halves: &mut [f16] = scratch.halves.reinterpret_cast_mut();
        halves.convert_from_f32_slice(k);
        for (d, bits) in scratch.halves.iter().enumerate() {
            // SAFETY: a slot's column belongs to this token.
            unsafe { keys.write(tile + d * block_size + offset, *bits) };
        }
        // SAFETY: a slot's values belong to this token.
        let values = unsafe { values.slice_mut(tile + offset * head_dim, head_dim) };
        values
            .reinterpret_cast_mut::<f16>()
            .convert_from_f32_slice(v);
    }

    /// As above.
    ///
    /// # Safety
    /// No other thread may write this token.
    unsafe fn write_codes(
        &self,
        [keys, values]: [&SharedSlice<'_, u8>; 2],
        block: usize,
        offset: usize,
        [k, v]: [&[f32]; 2],
        scratch: &mut Scratch,
    ) {
        let layout = CodeLayout {
            head_dim: self.head_dim,
        };
        let tiles = block * (self.block_size / TILE_TOKENS) + offset / TILE_TOKENS;
        let token = offset % TILE_TOKENS;
        let Scratch { codes, scales, .. } = scratch;
        scales.resize(layout.num_groups(), 0);
        codes.clear();
        codes.resize(layout.num_quads() * QUAD, 0);
        cpu::encode_codes(k, &mut codes[..k.len()], scales);
        let tile = tiles * self.tile_bytes[0];
        for (quad, codes) in codes.chunks_exact(QUAD).enumerate() {
            let at = tile + layout.key_code_at(token, quad * QUAD);
            // SAFETY: a token's codes in a tile belong to this row.
            let target = unsafe { keys.slice_mut(at, QUAD) };
            for (target, code) in target.iter_mut().zip(codes) {
                *target = (*code as u8).wrapping_add(KEY_OFFSET);
            }
        }
        // SAFETY: so do its scales.
        unsafe { write_scales(keys, tile + layout.key_codes_len(), token, scales) };
        codes.resize(v.len(), 0);
        cpu::encode_codes(v, codes, scales);
        let tile = tiles * self.tile_bytes[1];
        let at = tile + token * self.head_dim;
        // SAFETY: as above.
        let target = unsafe { values.slice_mut(at, self.head_dim) };
        for (target, code) in target.iter_mut().zip(codes) {
            *target = *code as u8;
        }
        // SAFETY: as above.
        unsafe { write_scales(values, tile + layout.value_codes_len(), token, scales) };
    }
}

/// Writes a token's scales into those of its tile, which begin at `start`.
///
/// # Safety
/// No other thread may write this token.
unsafe fn write_scales(target: &SharedSlice<'_, u8>, start: usize, token: usize, scales: &[u16]) {
    for (group, scale) in scales.iter().enumerate() {
        let at = start + (group * TILE_TOKENS + token) * size_of::<u16>();
        // SAFETY: by the caller's promise.
        let target = unsafe { target.slice_mut(at, size_of::<u16>()) };
        target.copy_from_slice(&scale.to_ne_bytes());
    }
}
