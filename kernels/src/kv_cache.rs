//! The paged KV cache: keys and values of all layers in blocks of tokens, as f16 or as int8 codes.

use std::ops::Range;

use half::f16;

use crate::cpu::TILE_TOKENS;
use crate::error::KernelError;
use crate::kv_codes::{CodeLayout, GROUP, KEY_OFFSET};
use crate::kv_dtype::KvDtype;
use crate::kv_writer::{KvWriter, Target};
use crate::memory::PageBuffer;
use crate::partition::{SharedSlice, for_rows};
use crate::pool::ThreadPool;

/// Keys and values of every layer.
///
/// An f16 block of one layer and KV head is a dense tile: keys as `[head_dim, block_size]` (so that
/// sixteen tokens are scored with contiguous loads), values as `[block_size, head_dim]`. An int8
/// block is a row of tiles of sixteen tokens, as `kv_codes.rs` lays them out.
pub struct KvCache {
    dtype: KvDtype,
    num_layers: usize,
    num_blocks: usize,
    block_size: usize,
    num_kv_heads: usize,
    head_dim: usize,
    /// Bytes of sixteen tokens of one layer and KV head: of keys, of values.
    tile_bytes: [usize; 2],
    keys: PageBuffer,
    values: PageBuffer,
}

impl KvCache {
    /// A zeroed cache of f16; its memory is committed as blocks are first written.
    pub fn new(
        num_layers: usize,
        num_blocks: usize,
        block_size: usize,
        num_kv_heads: usize,
        head_dim: usize,
    ) -> Result<Self, KernelError> {
        let dtype = KvDtype::F16;
        Self::of(
            dtype,
            num_layers,
            num_blocks,
            block_size,
            num_kv_heads,
            head_dim,
        )
    }

    /// [`Self::new`], of any type.
    pub fn of(
        dtype: KvDtype,
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
        let bytes_of = |tile: usize| {
            let sizes = [
                block_size / TILE_TOKENS,
                num_kv_heads,
                num_blocks,
                num_layers,
            ];
            sizes
                .iter()
                .try_fold(tile, |product, size| product.checked_mul(*size))
                .filter(|bytes| *bytes < isize::MAX as usize / 2)
        };
        let tiles = dtype.tile_bytes(head_dim);
        let sizes = tiles.map(|tiles| tiles.map(bytes_of));
        let (Some(tiles), Some([Some(keys), Some(values)])) = (tiles, sizes) else {
            return Err(KernelError::OutOfMemory { bytes: usize::MAX });
        };
        let buffers = (PageBuffer::zeroed(keys), PageBuffer::zeroed(values));
        let (Some(keys), Some(values)) = buffers else {
            return Err(KernelError::OutOfMemory {
                bytes: keys + values,
            });
        };
        Ok(Self {
            dtype,
            num_layers,
            num_blocks,
            block_size,
            num_kv_heads,
            head_dim,
            tile_bytes: tiles,
            keys,
            values,
        })
    }

    pub fn dtype(&self) -> KvDtype {
        self.dtype
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

    /// How int8 tiles lie.
    pub(crate) fn layout(&self) -> CodeLayout {
        CodeLayout {
            head_dim: self.head_dim,
        }
    }

    /// The place of a block of one layer and KV head among all of them.
    fn block_at(&self, layer: usize, block: usize, kv_head: usize) -> usize {
        (layer * self.num_blocks + block) * self.num_kv_heads + kv_head
    }

    /// The place, among all tiles, of the one that begins at token `offset` of a block.
    fn tile_at(&self, layer: usize, block: usize, kv_head: usize, offset: usize) -> usize {
        let tiles = self.block_size / TILE_TOKENS;
        self.block_at(layer, block, kv_head) * tiles + offset / TILE_TOKENS
    }

    /// Bytes of a block of one layer and KV head: of keys, of values.
    fn block_bytes(&self) -> [usize; 2] {
        self.tile_bytes
            .map(|tile| tile * (self.block_size / TILE_TOKENS))
    }

    /// All bytes of a block of keys and of values.
    pub(crate) fn bytes(&self, layer: usize, block: usize, kv_head: usize) -> [&[u8]; 2] {
        let at = self.block_at(layer, block, kv_head);
        let [keys, values] = self.block_bytes();
        [
            &self.keys[at * keys..][..keys],
            &self.values[at * values..][..values],
        ]
    }

    /// `[head_dim, block_size]` f16 bits, of an f16 cache.
    pub(crate) fn keys(&self, layer: usize, block: usize, kv_head: usize) -> &[u16] {
        let len = self.block_size * self.head_dim;
        &self.keys.words()[self.block_at(layer, block, kv_head) * len..][..len]
    }

    /// `[block_size, head_dim]` f16 bits, of an f16 cache.
    pub(crate) fn values(&self, layer: usize, block: usize, kv_head: usize) -> &[u16] {
        let len = self.block_size * self.head_dim;
        &self.values.words()[self.block_at(layer, block, kv_head) * len..][..len]
    }

    /// Codes and scales of keys, of the tile that begins at token `offset` of a block of an int8
    /// cache.
    pub(crate) fn key_codes(
        &self,
        layer: usize,
        block: usize,
        kv_head: usize,
        offset: usize,
    ) -> (&[u8], &[u16]) {
        let at = self.tile_at(layer, block, kv_head, offset) * self.tile_bytes[0];
        let len = self.layout().key_codes_len();
        let scales = &self.keys.words()[(at + len) / 2..][..self.layout().num_scales()];
        (&self.keys[at..at + len], scales)
    }

    /// The same of values.
    pub(crate) fn value_codes(
        &self,
        layer: usize,
        block: usize,
        kv_head: usize,
        offset: usize,
    ) -> (&[i8], &[u16]) {
        let at = self.tile_at(layer, block, kv_head, offset) * self.tile_bytes[1];
        let len = self.layout().value_codes_len();
        let scales = &self.values.words()[(at + len) / 2..][..self.layout().num_scales()];
        (&self.values.signed()[at..at + len], scales)
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
        for slot in slots {
            let (block, offset) = (
                *slot as usize / self.block_size,
                *slot as usize % self.block_size,
            );
            assert!(block < self.num_blocks, "no such block");
            match self.dtype {
                KvDtype::F16 => self.read_halves([layer, block, kv_head], offset, keys, values),
                KvDtype::Q8_0 => self.read_codes([layer, block, kv_head], offset, keys, values),
            }
        }
    }

    fn read_halves(
        &self,
        [layer, block, kv_head]: [usize; 3],
        offset: usize,
        keys: &mut Vec<f32>,
        values: &mut Vec<f32>,
    ) {
        let float = |bits: &u16| f16::from_bits(*bits).to_f32();
        let tile = self.keys(layer, block, kv_head);
        let column = tile[offset..].iter().step_by(self.block_size);
        keys.extend(column.map(float));
        let tile = self.values(layer, block, kv_head);
        let row = &tile[offset * self.head_dim..][..self.head_dim];
        values.extend(row.iter().map(float));
    }

    fn read_codes(
        &self,
        [layer, block, kv_head]: [usize; 3],
        offset: usize,
        keys: &mut Vec<f32>,
        values: &mut Vec<f32>,
    ) {
        let (token, layout) = (offset % TILE_TOKENS, self.layout());
        let (codes, scales) = self.key_codes(layer, block, kv_head, offset);
        let scale = |scales: &[u16], dim: usize| {
            f16::from_bits(scales[dim / GROUP * TILE_TOKENS + token]).to_f32()
        };
        keys.extend((0..self.head_dim).map(|dim| {
            let code = codes[layout.key_code_at(token, dim)].wrapping_sub(KEY_OFFSET) as i8;
            f32::from(code) * scale(scales, dim)
        }));
        let (codes, scales) = self.value_codes(layer, block, kv_head, offset);
        let codes = codes[token * self.head_dim..][..self.head_dim].iter();
        let value = |(dim, code): (usize, &i8)| f32::from(*code) * scale(scales, dim);
        values.extend(codes.enumerate().map(value));
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
        let of_layer = |block_bytes: usize| {
            let len = self.num_blocks * self.num_kv_heads * block_bytes;
            layer * len..(layer + 1) * len
        };
        let [keys, values] = self.block_bytes().map(of_layer);
        let target = match self.dtype {
            KvDtype::F16 => {
                let halves = |bytes: Range<usize>| bytes.start / 2..bytes.end / 2;
                Target::Halves {
                    keys: SharedSlice::new(&mut self.keys.words_mut()[halves(keys)]),
                    values: SharedSlice::new(&mut self.values.words_mut()[halves(values)]),
                }
            }
            KvDtype::Q8_0 => Target::Codes {
                keys: SharedSlice::new(&mut self.keys[keys]),
                values: SharedSlice::new(&mut self.values[values]),
            },
        };
        KvWriter {
            num_kv_heads: self.num_kv_heads,
            head_dim: self.head_dim,
            block_size: self.block_size,
            tile_bytes: self.tile_bytes,
            slot_mapping,
            target,
        }
    }

    /// Copies whole blocks `(source, destination)` in every layer.
    ///
    /// # Panics
    /// When a block does not exist.
    pub fn copy_blocks(&mut self, copies: &[(u32, u32)]) {
        let block_bytes = self.block_bytes();
        for (source, destination) in copies {
            let (source, destination) = (*source as usize, *destination as usize);
            assert!(
                source < self.num_blocks && destination < self.num_blocks,
                "no such block"
            );
            for layer in 0..self.num_layers {
                let from = self.block_at(layer, source, 0);
                let to = self.block_at(layer, destination, 0);
                let buffers = [&mut self.keys, &mut self.values];
                for (buffer, bytes) in buffers.into_iter().zip(block_bytes) {
                    let len = self.num_kv_heads * bytes;
                    buffer.copy_within(from * bytes..from * bytes + len, to * bytes);
                }
            }
        }
    }
}
