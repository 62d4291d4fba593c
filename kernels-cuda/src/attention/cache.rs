//! The paged KV cache: f16 keys and values of all layers in blocks of tokens.

use crate::{Args, Buffer, CudaError, Gpu, Grid};

/// Head dims that attention has kernels for; others are padded with zeros to the next of them.
const PADDED_DIMS: [usize; 6] = [32, 64, 96, 128, 192, 256];
const COPY_THREADS: u32 = 256;
/// Values of 16 bytes.
const CHUNK_LEN: usize = 8;
const VALUE_BYTES: usize = 2;

/// The sizes of a KV cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KvShape {
    pub num_layers: usize,
    pub num_blocks: usize,
    /// Tokens of a block, at least one.
    pub block_size: usize,
    pub num_kv_heads: usize,
    /// At most 256.
    pub head_dim: usize,
}

/// Keys and values of every layer, `[num_layers, 2, num_blocks, num_kv_heads, block_size,
/// padded_dim]` of f16, keys before values. Dims past the head's are zeros.
pub struct KvCache {
    values: Buffer<u16>,
    shape: KvShape,
    padded_dim: usize,
    /// What [`Self::copy_blocks`] copies.
    pairs: Option<Buffer<u32>>,
}

/// What a head's dims are padded to; `None` where there is no kernel for so many.
pub(super) fn padded_dim(head_dim: usize) -> Option<usize> {
    let fits = |padded: &usize| *padded >= head_dim;
    PADDED_DIMS.into_iter().find(fits).filter(|_| head_dim > 0)
}

impl KvShape {
    /// Slots of a layer.
    pub fn num_slots(&self) -> usize {
        self.num_blocks * self.block_size
    }

    /// Bytes of the cache on a device; `None` where that is no number.
    ///
    /// # Errors
    /// When a size is one that the kernels do not have.
    fn len(&self) -> Result<Option<usize>, CudaError> {
        let Some(padded) = padded_dim(self.head_dim) else {
            let dim = self.head_dim;
            return Err(CudaError::Unsupported(format!(
                "attention with heads of {dim} elements: the kernels have 1 to 256"
            )));
        };
        if self.block_size == 0 || self.num_kv_heads == 0 {
            let message = "a KV cache without heads, or with blocks of no token";
            return Err(CudaError::Unsupported(message.to_owned()));
        }
        let rows = [self.num_blocks, self.num_kv_heads, self.block_size];
        let multiply = |product: usize, size: usize| product.checked_mul(size);
        let rows = rows.into_iter().try_fold(1, multiply);
        // Kernels count a layer's rows in 32 bits.
        let rows = rows.filter(|rows| *rows < u32::MAX as usize);
        Ok(rows.and_then(|rows| {
            [self.num_layers, 2, padded]
                .into_iter()
                .try_fold(rows, multiply)
        }))
    }
}

impl KvCache {
    /// A cache of zeros.
    ///
    /// # Errors
    /// Out of memory, with the MiB that were wanted; or when a size is one that the kernels do not
    /// have.
    pub fn new(gpu: &Gpu, shape: KvShape) -> Result<Self, CudaError> {
        let len = shape.len()?;
        let Some(len) = len.filter(|len| *len < isize::MAX as usize / VALUE_BYTES) else {
            return Err(CudaError::OutOfMemory {
                wanted: len.map_or(usize::MAX, |len| len.saturating_mul(VALUE_BYTES) >> 20),
                free: gpu.free_memory()? >> 20,
            });
        };
        Ok(Self {
            values: gpu.zeros(len)?,
            shape,
            padded_dim: padded_dim(shape.head_dim).unwrap_or_default(),
            pairs: None,
        })
    }

    pub fn shape(&self) -> &KvShape {
        &self.shape
    }

    /// Elements of a head with its padding.
    pub(super) fn padded_dim(&self) -> usize {
        self.padded_dim
    }

    /// Bytes of device memory.
    pub fn nbytes(&self) -> usize {
        self.values.nbytes()
    }

    /// Elements of one layer's keys.
    fn region_len(&self) -> usize {
        self.shape.num_slots() * self.shape.num_kv_heads * self.padded_dim
    }

    /// Of a layer's keys, and of its values.
    ///
    /// # Panics
    /// When there is no such layer.
    pub(super) fn addresses(&self, layer: usize) -> [u64; 2] {
        let num_layers = self.shape.num_layers;
        assert!(layer < num_layers, "layer {layer} of {num_layers}");
        [2 * layer, 2 * layer + 1].map(|region| self.values.address_of(region * self.region_len()))
    }

    /// Copies whole blocks `(source, destination)` in every layer, in order: a later pair may read
    /// what an earlier one wrote.
    ///
    /// # Errors
    /// When a block does not exist, or the device fails.
    pub fn copy_blocks(&mut self, gpu: &Gpu, copies: &[(u32, u32)]) -> Result<(), CudaError> {
        let num_blocks = self.shape.num_blocks;
        let exists = |block: u32| (block as usize) < num_blocks;
        if !copies.iter().all(|(from, to)| exists(*from) && exists(*to)) {
            let message = format!("a copy of a block that is none of {num_blocks}");
            return Err(CudaError::Unsupported(message));
        }
        let words: Vec<u32> = copies.iter().flat_map(|(from, to)| [*from, *to]).collect();
        if self
            .pairs
            .as_ref()
            .is_none_or(|pairs| pairs.len() < words.len())
        {
            self.pairs = Some(gpu.zeros(words.len().next_power_of_two().max(64))?);
        }
        let Some(pairs) = &mut self.pairs else {
            return Ok(());
        };
        gpu.write(pairs, 0, &words)?;
        let mut first = 0;
        for len in independent_runs(copies) {
            self.launch_copies(gpu, first, len)?;
            first += len;
        }
        Ok(())
    }

    fn launch_copies(&self, gpu: &Gpu, first: usize, len: usize) -> Result<(), CudaError> {
        let Some(pairs) = &self.pairs else {
            return Ok(());
        };
        let shape = &self.shape;
        let block_len = shape.num_kv_heads * shape.block_size * self.padded_dim;
        let args = Args::new()
            .buffer(&self.values)
            .value(pairs.address_of(2 * first))
            .value(shape.num_blocks as u32)
            .value((block_len / CHUNK_LEN) as u32);
        let grid = Grid {
            blocks: [len as u32, 2 * shape.num_layers as u32, 1],
            threads: COPY_THREADS,
            shared_bytes: 0,
        };
        // SAFETY: the pairs were uploaded and name blocks of the cache; the sizes are the cache's.
        unsafe { gpu.launch("copy_blocks", grid, &args) }
    }

    /// Reads keys and values of one layer and KV head back: those of `slots`, each `[slots,
    /// head_dim]` of f16 bits. For tests.
    ///
    /// # Panics
    /// When a slot, a head or a layer does not exist.
    pub fn read(
        &self,
        gpu: &Gpu,
        layer: usize,
        kv_head: usize,
        slots: &[u32],
    ) -> Result<[Vec<u16>; 2], CudaError> {
        let KvShape {
            num_layers,
            block_size,
            num_kv_heads,
            head_dim,
            ..
        } = self.shape;
        assert!(layer < num_layers && kv_head < num_kv_heads);
        let mut all = [Vec::new(), Vec::new()];
        for (part, out) in all.iter_mut().enumerate() {
            for slot in slots {
                let slot = *slot as usize;
                assert!(slot < self.shape.num_slots(), "slot {slot}");
                let row = (slot / block_size * num_kv_heads + kv_head) * block_size;
                let start = (row + slot % block_size) * self.padded_dim;
                let mut values = vec![0; head_dim];
                let start = (2 * layer + part) * self.region_len() + start;
                gpu.read(&self.values, start, &mut values)?;
                out.extend(values);
            }
        }
        Ok(all)
    }
}

/// How many pairs at a time can be copied in any order: none reads or writes a block that another
/// of them writes.
fn independent_runs(copies: &[(u32, u32)]) -> Vec<usize> {
    let (mut runs, mut len) = (Vec::new(), 0);
    let mut read = std::collections::HashSet::new();
    let mut written = std::collections::HashSet::new();
    for (from, to) in copies {
        if written.contains(from) || written.contains(to) || read.contains(to) {
            runs.push(len);
            len = 0;
            read.clear();
            written.clear();
        }
        read.insert(*from);
        written.insert(*to);
        len += 1;
    }
    if len > 0 {
        runs.push(len);
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::independent_runs;

    #[test]
    fn copies_that_meet_are_done_one_after_the_other() {
        assert_eq!(independent_runs(&[]), Vec::<usize>::new());
        assert_eq!(independent_runs(&[(1, 2), (1, 3), (4, 5)]), [3]);
        // Reads what was written, writes what was read, writes twice.
        assert_eq!(independent_runs(&[(1, 2), (2, 3)]), [1, 1]);
        assert_eq!(independent_runs(&[(1, 2), (3, 1)]), [1, 1]);
        assert_eq!(independent_runs(&[(1, 2), (3, 2), (5, 6)]), [1, 2]);
    }
}
