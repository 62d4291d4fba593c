//! Where the parts of a product meet.

use super::layout::M_BLOCK;
use super::matrix::Matrix;
use super::plan::MAX_TILE_ROWS;
use crate::{Buffer, CudaError, Gpu};

/// Least rows of a tile.
const MIN_TILE_ROWS: usize = 8;

/// Sums of parts, and counters of those that have come. One serves all products of a stream: they
/// run one after the other.
#[derive(Default)]
pub struct Workspace {
    sums: Option<Buffer<f32>>,
    /// Zeros between launches.
    counters: Option<Buffer<u32>>,
}

impl Workspace {
    pub fn new() -> Self {
        Self::default()
    }

    /// Makes room for a product of up to 64 rows with matrices that are multiplied in one call.
    pub fn reserve(&mut self, gpu: &Gpu, matrices: &[&Matrix]) -> Result<(), CudaError> {
        self.reserve_rows(gpu, matrices, MAX_TILE_ROWS)
    }

    /// Makes room for so many rows, those that only fill tiles counted: experts' tiles together.
    /// Products that find no room here have the same results, a little later when rows are few.
    pub fn reserve_rows(
        &mut self,
        gpu: &Gpu,
        matrices: &[&Matrix],
        num_rows: usize,
    ) -> Result<(), CudaError> {
        let (mut sums, mut counters) = (0, 0);
        for matrix in matrices {
            // A unit takes up to two blocks of outputs.
            let m_blocks = matrix.out_features().div_ceil(M_BLOCK).next_multiple_of(2);
            sums += m_blocks * M_BLOCK * matrix.splits().num_parts * num_rows;
            counters += m_blocks * num_rows.div_ceil(MIN_TILE_ROWS);
        }
        if self.sums.as_ref().is_none_or(|buffer| buffer.len() < sums) {
            drop(self.sums.take());
            self.sums = Some(gpu.zeros(sums)?);
            gpu.note_growth();
        }
        if self.num_counters() < counters {
            drop(self.counters.take());
            self.counters = Some(gpu.zeros(counters)?);
            gpu.note_growth();
        }
        Ok(())
    }

    fn num_counters(&self) -> usize {
        self.counters.as_ref().map_or(0, Buffer::len)
    }

    /// Whether so many sums and groups find room.
    pub(super) fn has_room(&self, num_sums: usize, num_groups: usize) -> bool {
        let sums = self.sums.as_ref().map_or(0, Buffer::len);
        num_sums <= sums && num_groups <= self.num_counters()
    }

    /// Null before the first reservation.
    pub(super) fn sums(&self) -> u64 {
        self.sums.as_ref().map_or(0, Buffer::address)
    }

    pub(super) fn counters(&self) -> u64 {
        self.counters.as_ref().map_or(0, Buffer::address)
    }
}
