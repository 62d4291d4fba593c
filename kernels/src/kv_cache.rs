//! The paged KV cache: f16 keys and values of all layers in blocks of tokens.

use half::f16;
use half::slice::HalfFloatSliceExt;

use crate::cpu::TILE_TOKENS;
use crate::error::KernelError;
use crate::partition::{Chunks, SharedSlice};
use crate::pool::ThreadPool;

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
    keys: Vec<u16>,
    values: Vec<u16>,
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
            .and_then(|count| count.checked_mul(4))
            .unwrap_or(usize::MAX);
        let out_of_memory = KernelError::OutOfMemory { bytes };
        let (Some(count), true) = (count, bytes < isize::MAX as usize) else {
            return Err(out_of_memory);
        };
        let (Some(keys), Some(values)) = (zeroed(count), zeroed(count)) else {
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
        (self.keys.len() + self.values.len()) * 2
    }

    /// Where the tile of one layer, block and KV head begins.
    fn tile_at(&self, layer: usize, block: usize, kv_head: usize) -> usize {
        ((layer * self.num_blocks + block) * self.num_kv_heads + kv_head)
            * self.block_size
            * self.head_dim
    }

    /// `[head_dim, block_size]` f16 bits.
    pub(crate) fn keys(&self, layer: usize, block: usize, kv_head: usize) -> &[u16] {
        &self.keys[self.tile_at(layer, block, kv_head)..][..self.block_size * self.head_dim]
    }

    /// `[block_size, head_dim]` f16 bits.
    pub(crate) fn values(&self, layer: usize, block: usize, kv_head: usize) -> &[u16] {
        &self.values[self.tile_at(layer, block, kv_head)..][..self.block_size * self.head_dim]
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
        let (heads, head_dim, block_size) = (self.num_kv_heads, self.head_dim, self.block_size);
        let width = heads * head_dim;
        assert!(
            layer < self.num_layers,
            "layer {layer} of {}",
            self.num_layers
        );
        assert_eq!(
            k.len(),
            slot_mapping.len() * width,
            "k is [rows, kv_heads * head_dim]"
        );
        assert_eq!(v.len(), k.len(), "v is shaped as k");
        let num_slots = self.num_blocks * block_size;
        assert!(
            slot_mapping.iter().all(|slot| (*slot as usize) < num_slots),
            "slot out of range"
        );
        let layer_len = num_slots * width;
        let keys = SharedSlice::new(&mut self.keys[layer * layer_len..][..layer_len]);
        let values = SharedSlice::new(&mut self.values[layer * layer_len..][..layer_len]);
        // A KV head's tiles are written by one thread, so rows that share a block don't race.
        let write_head = |head: usize| {
            for (row, slot) in slot_mapping.iter().enumerate() {
                let (block, offset) = (*slot as usize / block_size, *slot as usize % block_size);
                let tile = (block * heads + head) * block_size * head_dim;
                let source = row * width + head * head_dim..row * width + (head + 1) * head_dim;
                // SAFETY: tiles of different heads are disjoint.
                let (key_tile, value_row) = unsafe {
                    (
                        keys.slice_mut(tile, block_size * head_dim),
                        values.slice_mut(tile + offset * head_dim, head_dim),
                    )
                };
                for (d, value) in k[source.clone()].iter().enumerate() {
                    key_tile[d * block_size + offset] = f16::from_f32(*value).to_bits();
                }
                use half::slice::HalfBitsSliceExt;
                value_row
                    .reinterpret_cast_mut::<f16>()
                    .convert_from_f32_slice(&v[source]);
            }
        };
        if slot_mapping.len() < 8 {
            (0..heads).for_each(write_head);
            return;
        }
        let chunks = Chunks::new(heads);
        pool.run(&|_, _| {
            while let Some(head) = chunks.take() {
                write_head(head);
            }
        });
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
                self.keys.copy_within(from..from + len, to);
                self.values.copy_within(from..from + len, to);
            }
        }
    }
}

/// Zeroed memory straight from the allocator, so that untouched pages stay uncommitted.
fn zeroed(count: usize) -> Option<Vec<u16>> {
    if count == 0 {
        return Some(Vec::new());
    }
    let layout = std::alloc::Layout::array::<u16>(count).ok()?;
    // SAFETY: the layout is not empty; all-zero bits are valid u16 values; the vector frees the memory
    // with the same layout.
    unsafe {
        let memory = std::alloc::alloc_zeroed(layout).cast::<u16>();
        (!memory.is_null()).then(|| Vec::from_raw_parts(memory, count, count))
    }
}
