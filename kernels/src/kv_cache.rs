//! The paged KV cache: f16 keys and values of all layers in blocks of tokens.

use std::cell::RefCell;

use half::f16;
use half::slice::{HalfBitsSliceExt, HalfFloatSliceExt};

use crate::cpu::TILE_TOKENS;
use crate::error::KernelError;
use crate::memory::PageBuffer;
use crate::partition::{SharedSlice, for_rows};
use crate::pool::ThreadPool;

/// Bytes of an f16.
const VALUE_BYTES: usize = 2;

/// Keys and values of every layer.
///
/// A block of one layer and KV head is a dense tile: keys as `[head_dim, block_size]` (so that sixteen
/// tokens are scored with contiguous loads), values as `[block_size, head_dim]`.
pub struct KvCache {
    num_layers: usize,
    num_blocks: usize,
    block_size: usize,
    num_kv_heads: usize,
    head_dim: usize,
    keys: PageBuffer,
    values: PageBuffer,
}

impl KvCache {
    /// A zeroed cache; its memory is committed as blocks are first written.
    pub fn new(
        num_layers: usize,
        num_blocks: usize,
        block_size: usize,
        num_kv_heads: usize,
        head_dim: usize,
    ) -> Result<Self, KernelError> {
        if block_size == 0 || !block_size.is_multiple_of(TILE_TOKENS) {
            return Err(KernelError::BadKvShape(format!(
                "block size {block_size} is not a positive multiple of {TILE_TOKENS}"
            )));
        }
        let sizes = [num_layers, num_blocks, block_size, num_kv_heads, head_dim];
        let count = sizes
            .iter()
            .try_fold(1_usize, |product, size| product.checked_mul(*size));
        let bytes = count
            .and_then(|count| count.checked_mul(2 * VALUE_BYTES))
            .filter(|bytes| *bytes < isize::MAX as usize);
        let out_of_memory = KernelError::OutOfMemory {
            bytes: bytes.unwrap_or(usize::MAX),
        };
        let half = bytes.map(|bytes| bytes / 2);
        let buffer = || half.and_then(PageBuffer::zeroed);
        let (Some(keys), Some(values)) = (buffer(), buffer()) else {
            return Err(out_of_memory);
        };
        Ok(Self {
            num_layers,
            num_blocks,
            block_size,
            num_kv_heads,
            head_dim,
            keys,
            values,
        })
    }

    pub fn num_blocks(&self) -> usize {
        self.num_blocks
    }

    pub fn block_size(&self) -> usize {
        self.block_size
    }

    pub fn num_kv_heads(&self) -> usize {
        self.num_kv_heads
    }

    pub fn head_dim(&self) -> usize {
        self.head_dim
    }

    pub fn nbytes(&self) -> usize {
        self.keys.len() + self.values.len()
    }

    /// Where the tile of one layer, block and KV head begins.
    fn tile_at(&self, layer: usize, block: usize, kv_head: usize) -> usize {
        ((layer * self.num_blocks + block) * self.num_kv_heads + kv_head)
            * self.block_size
            * self.head_dim
    }

    /// `[head_dim, block_size]` f16 bits.
    pub(crate) fn keys(&self, layer: usize, block: usize, kv_head: usize) -> &[u16] {
        &self.keys.words()[self.tile_at(layer, block, kv_head)..][..self.block_size * self.head_dim]
    }

    /// `[block_size, head_dim]` f16 bits.
    pub(crate) fn values(&self, layer: usize, block: usize, kv_head: usize) -> &[u16] {
        &self.values.words()[self.tile_at(layer, block, kv_head)..]
            [..self.block_size * self.head_dim]
    }

    /// Reads keys and values of one layer and KV head back: those of `slots`, each `[slots, head_dim]`.
    ///
    /// # Panics
    /// When a slot does not exist.
    pub fn read(
        &self,
        layer: usize,
        kv_head: usize,
        slots: &[u32],
        keys: &mut Vec<f32>,
        values: &mut Vec<f32>,
    ) {
        keys.clear();
        values.clear();
        let float = |bits: &u16| f16::from_bits(*bits).to_f32();
        for slot in slots {
            let (block, offset) = (
                *slot as usize / self.block_size,
                *slot as usize % self.block_size,
            );
            assert!(block < self.num_blocks, "no such block");
            let tile = self.keys(layer, block, kv_head);
            let column = tile[offset..].iter().step_by(self.block_size);
            keys.extend(column.map(float));
            let tile = self.values(layer, block, kv_head);
            let row = &tile[offset * self.head_dim..][..self.head_dim];
            values.extend(row.iter().map(float));
        }
    }

    /// Writes rows of one layer; `k` and `v` are `[num_rows, num_kv_heads * head_dim]`, and row `i` goes
    /// to `slot_mapping[i] = block * block_size + offset`. Slots must differ from each other.
    ///
    /// # Panics
    /// When a slot or a length does not fit.
    pub fn write(
        &mut self,
        pool: &ThreadPool,
        layer: usize,
        slot_mapping: &[u32],
        k: &[f32],
        v: &[f32],
    ) {
        let width = self.num_kv_heads * self.head_dim;
        assert_eq!(
            k.len(),
            slot_mapping.len() * width,
            "k is [rows, kv_heads * head_dim]"
        );
        assert_eq!(v.len(), k.len(), "v is shaped as k");
        let writer = self.writer(layer, slot_mapping);
        for_rows(pool, slot_mapping.len(), 2 * width, |row| {
            let range = row * width..(row + 1) * width;
            // SAFETY: each row is written once.
            unsafe { writer.write(row, &k[range.clone()], &v[range]) };
        });
    }

    /// For writing the rows of one layer from several threads. Slots must differ from each other.
    ///
    /// # Panics
    /// When the layer or a slot does not exist.
    pub(crate) fn writer<'a>(&'a mut self, layer: usize, slot_mapping: &'a [u32]) -> KvWriter<'a> {
        assert!(
            layer < self.num_layers,
            "layer {layer} of {}",
            self.num_layers
        );
        let num_slots = self.num_blocks * self.block_size;
        assert!(
            slot_mapping.iter().all(|slot| (*slot as usize) < num_slots),
            "slot out of range"
        );
        let layer_len = num_slots * self.num_kv_heads * self.head_dim;
        let range = layer * layer_len..(layer + 1) * layer_len;
        KvWriter {
            num_kv_heads: self.num_kv_heads,
            head_dim: self.head_dim,
            block_size: self.block_size,
            slot_mapping,
            keys: SharedSlice::new(&mut self.keys.words_mut()[range.clone()]),
            values: SharedSlice::new(&mut self.values.words_mut()[range]),
        }
    }

    /// Copies whole blocks `(source, destination)` in every layer.
    ///
    /// # Panics
    /// When a block does not exist.
    pub fn copy_blocks(&mut self, copies: &[(u32, u32)]) {
        let len = self.num_kv_heads * self.block_size * self.head_dim;
        for (source, destination) in copies {
            let (source, destination) = (*source as usize, *destination as usize);
            assert!(
                source < self.num_blocks && destination < self.num_blocks,
                "no such block"
            );
            for layer in 0..self.num_layers {
                let from = self.tile_at(layer, source, 0);
                let to = self.tile_at(layer, destination, 0);
                self.keys.words_mut().copy_within(from..from + len, to);
                self.values.words_mut().copy_within(from..from + len, to);
            }
        }
    }
}

thread_local! {
    /// A row of keys as f16 bits, before they are scattered.
    static ROW: RefCell<Vec<u16>> = const { RefCell::new(Vec::new()) };
}

/// Writes rows of one layer.
pub(crate) struct KvWriter<'a> {
    num_kv_heads: usize,
    head_dim: usize,
    block_size: usize,
    slot_mapping: &'a [u32],
    keys: SharedSlice<'a, u16>,
    values: SharedSlice<'a, u16>,
}

impl KvWriter<'_> {
    /// Writes row `row` of the batch; `k` and `v` are `[num_kv_heads * head_dim]`.
    ///
    /// # Safety
    /// No two threads may write the same row.
    pub(crate) unsafe fn write(&self, row: usize, k: &[f32], v: &[f32]) {
        let (head_dim, block_size) = (self.head_dim, self.block_size);
        let slot = self.slot_mapping[row] as usize;
        let (block, offset) = (slot / block_size, slot % block_size);
        ROW.with_borrow_mut(|bits| {
            bits.resize(head_dim, 0);
            for head in 0..self.num_kv_heads {
                let tile = (block * self.num_kv_heads + head) * block_size * head_dim;
                let source = head * head_dim..(head + 1) * head_dim;
                let halves: &mut [f16] = bits.reinterpret_cast_mut();
                halves.convert_from_f32_slice(&k[source.clone()]);
                for (d, bits) in bits.iter().enumerate() {
                    // SAFETY: a slot's column belongs to this row.
                    unsafe { self.keys.write(tile + d * block_size + offset, *bits) };
                }
                // SAFETY: a slot's values belong to this row.
                let values = unsafe { self.values.slice_mut(tile + offset * head_dim, head_dim) };
                values
                    .reinterpret_cast_mut::<f16>()
                    .convert_from_f32_slice(&v[source]);
            }
        });
    }
}
