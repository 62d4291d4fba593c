//! Rows in device memory. Buffers grow to the largest step and stay where they are: graphs hold
//! their addresses.

use super::{Buffer, CudaError, Gpu};

/// Rows that are a tile's height past the last one may be read (never used): buffers have so many more.
const SLACK_ROWS: usize = 256;
/// Inputs of a product that lie together, and the multiple that a row's width is padded to.
pub const K_BLOCK: usize = 64;
/// Rows of a swizzled atom.
pub const ROW_GROUP: usize = 8;

/// `[num_rows, width]` of f32, row-major.
#[derive(Default)]
pub struct Rows {
    buffer: Option<Buffer<f32>>,
    num_rows: usize,
    width: usize,
}

impl Rows {
    /// Makes room for rows that are overwritten: what they hold has no meaning.
    pub fn reshape(&mut self, gpu: &Gpu, num_rows: usize, width: usize) -> Result<(), CudaError> {
        grow(gpu, &mut self.buffer, num_rows * width)?;
        (self.num_rows, self.width) = (num_rows, width);
        Ok(())
    }

    /// Keeps the first rows.
    pub fn truncate(&mut self, num_rows: usize) {
        self.num_rows = self.num_rows.min(num_rows);
    }

    pub fn num_rows(&self) -> usize {
        self.num_rows
    }

    pub fn width(&self) -> usize {
        self.width
    }

    /// Of all values; null before the first [`Self::reshape`].
    pub fn address(&self) -> u64 {
        self.buffer.as_ref().map_or(0, Buffer::address)
    }

    /// The whole buffer, which may be longer than the rows.
    pub fn buffer(&self) -> Option<&Buffer<f32>> {
        self.buffer.as_ref()
    }

    pub fn buffer_mut(&mut self) -> Option<&mut Buffer<f32>> {
        self.buffer.as_mut()
    }
}

/// Rows as products read them: bf16 in the swizzled tiles that the tensor cores take.
///
/// Inputs are cut into blocks of [`K_BLOCK`]. Element (row, k), with `block = k / 64`, `chunk = k % 64 / 8`, lies at byte
/// `(block * row_stride + row) * 128 + (chunk ^ (row % 8)) * 16 + k % 8 * 2`. Inputs past the width are zeros up to the next multiple of
/// 64; rows past the last one have no meaning.
#[derive(Default)]
pub struct Activations {
    tiles: Option<Buffer<u16>>,
    floats: Option<Buffer<f32>>,
    num_rows: usize,
    width: usize,
    keeps_floats: bool,
}

impl Activations {
    /// `keeps_floats`: the values are kept as f32 too, for matrices of f32.
    pub fn new(keeps_floats: bool) -> Self {
        Self {
            keeps_floats,
            ..Self::default()
        }
    }

    /// Makes room for rows that are overwritten.
    pub fn reshape(&mut self, gpu: &Gpu, num_rows: usize, width: usize) -> Result<(), CudaError> {
        (self.num_rows, self.width) = (num_rows, width);
        let padded = (self.row_stride() + SLACK_ROWS) * width.next_multiple_of(K_BLOCK);
        grow(gpu, &mut self.tiles, padded)?;
        if self.keeps_floats {
            grow(gpu, &mut self.floats, num_rows * width)?;
        }
        Ok(())
    }

    pub fn num_rows(&self) -> usize {
        self.num_rows
    }

    /// Rows from one block of inputs to the next.
    pub fn row_stride(&self) -> usize {
        self.num_rows.next_multiple_of(ROW_GROUP)
    }

    pub fn width(&self) -> usize {
        self.width
    }

    /// Of the tiles; null before the first [`Self::reshape`].
    pub fn tiles(&self) -> u64 {
        self.tiles.as_ref().map_or(0, Buffer::address)
    }

    /// What tests fill rows with.
    #[cfg(all(test, feature = "emulator"))]
    pub(crate) fn tiles_mut(&mut self) -> Option<&mut Buffer<u16>> {
        self.tiles.as_mut()
    }

    #[cfg(all(test, feature = "emulator"))]
    pub(crate) fn floats_mut(&mut self) -> Option<&mut Buffer<f32>> {
        self.floats.as_mut()
    }

    /// Of the f32 values (`[num_rows, width]`); null where they are not kept.
    pub fn floats(&self) -> u64 {
        self.floats.as_ref().map_or(0, Buffer::address)
    }

    pub fn keeps_floats(&self) -> bool {
        self.keeps_floats
    }

    /// The tiles and the f32 values.
    #[cfg(all(test, feature = "emulator"))]
    pub(crate) fn buffers(&self) -> (Option<&Buffer<u16>>, Option<&Buffer<f32>>) {
        (self.tiles.as_ref(), self.floats.as_ref())
    }
}

/// A buffer of at least `len` values; what it held is gone when it had to grow.
pub(crate) fn grow<T: super::Plain>(
    gpu: &Gpu,
    buffer: &mut Option<Buffer<T>>,
    len: usize,
) -> Result<(), CudaError> {
    if buffer.as_ref().is_none_or(|buffer| buffer.len() < len) {
        // The old one first: both may not fit.
        drop(buffer.take());
        *buffer = Some(gpu.zeros(len.max(1))?);
        gpu.note_growth();
    }
    Ok(())
}
