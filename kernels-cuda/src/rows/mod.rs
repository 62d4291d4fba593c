//! Operations row by row: embedding, norms, residuals, activations, latent heads, low-rank
//! adapters, products in f32.
//!
//! They queue launches whose grids follow from numbers of rows and shapes alone, so that a graph
//! may record them. Lists of rows and of offsets are read on the device: whoever uploads them sees
//! to it that they name rows that exist.

mod elementwise;
mod float_product;
mod latent;
mod low_rank;
mod norm;
#[cfg(all(test, feature = "emulator"))]
pub(crate) mod testing;
#[cfg(all(test, feature = "emulator"))]
mod tests;

pub use elementwise::{
    activate, add_offsets, add_scaled, add_weighted, embed_floats, keep_rows, quantise,
    transform_logits,
};
pub use float_product::{
    FloatExperts, FloatMatrix, gate_up, grouped_gate_up, grouped_project, project, project_add,
};
pub use latent::{
    Expanded, LatentScratch, LatentShape, latent_keys_values, latent_norm, latent_queries,
    latent_values,
};
pub use low_rank::{AdaptedInput, LowRank, LowRankScratch, add_low_rank};
pub use norm::{Norm, add_normed, final_norm, norm, norm_rows, read_normed};

use super::{Buffer, Grid};

/// In a table of offsets: nothing is added to this row.
pub const NO_OFFSET: u32 = u32::MAX;

/// Threads of a block where each has its own part of a row.
const THREADS: u32 = 256;

/// Some rows, by their indices in device memory.
#[derive(Clone, Copy)]
pub struct RowList<'a> {
    pub indices: &'a Buffer<u32>,
    /// Where the list begins.
    pub first: usize,
    pub len: usize,
}

impl<'a> RowList<'a> {
    /// A whole buffer.
    pub fn all(indices: &'a Buffer<u32>) -> Self {
        Self {
            indices,
            first: 0,
            len: indices.len(),
        }
    }

    /// Where the list begins, once it is known to lie in its buffer.
    fn address(self) -> u64 {
        let end = self.first + self.len;
        assert!(end <= self.indices.len(), "a list lies in its buffer");
        self.indices.address_of(self.first)
    }
}

/// What is added to rows, where something is.
#[derive(Clone, Copy)]
pub struct Offsets<'a> {
    /// `[num_offsets, width]`
    pub values: &'a Buffer<f32>,
    /// For each row the offset that is added to it, or [`NO_OFFSET`].
    pub of_row: RowList<'a>,
}

/// A thread for each of `num_rows * parts` parts of rows.
///
/// # Panics
/// When there are 2^32 parts or more: indices would not fit.
pub(crate) fn grid_of_parts(num_rows: usize, parts: usize) -> Grid {
    let count = u32::try_from(num_rows * parts).expect("fewer than 2^32 parts of rows");
    Grid {
        blocks: [count.div_ceil(THREADS), 1, 1],
        threads: THREADS,
        shared_bytes: 0,
    }
}

/// Quads of a row.
fn quads(width: usize) -> usize {
    width.div_ceil(4)
}

/// Quads of a row of activations, padding included.
fn padded_quads(width: usize) -> usize {
    width.next_multiple_of(super::tensors::K_BLOCK) / 4
}
