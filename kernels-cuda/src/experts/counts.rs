//! How many rows each expert has had.

use super::{Routing, address};
use crate::rows::grid_of_parts;
use crate::{Args, Buffer, CudaError, Gpu};

/// Counts that grow on the device, `[num_layers, num_experts]`, until the host takes them.
pub struct ExpertCounts {
    totals: Buffer<u64>,
    num_experts: usize,
}

impl ExpertCounts {
    /// Zeros.
    pub fn new(gpu: &Gpu, num_layers: usize, num_experts: usize) -> Result<Self, CudaError> {
        Ok(Self {
            totals: gpu.zeros(num_layers * num_experts)?,
            num_experts,
        })
    }

    /// Counts where the rows of a layer went, if [`super::route`] was not told to. Rows that go
    /// nowhere do not count. `layer` is counted among those with experts.
    ///
    /// # Panics
    /// When there is no such layer, or it has other experts.
    pub fn add(&mut self, gpu: &Gpu, routing: &Routing, layer: usize) -> Result<(), CudaError> {
        if routing.num_rows() == 0 {
            return Ok(());
        }
        let num_experts = routing.num_experts();
        let args = Args::new()
            .value(self.of_layer(layer, num_experts))
            .value(address(&routing.buffers.counts))
            .value(num_experts as u32);
        let grid = grid_of_parts(1, num_experts);
        // SAFETY: `count_experts(totals, counts, num_experts)`; both have so many.
        unsafe { gpu.launch("count_experts", grid, &args) }
    }

    /// Where the counts of a layer lie.
    pub(super) fn of_layer(&self, layer: usize, num_experts: usize) -> u64 {
        let first = layer * self.num_experts;
        assert_eq!(num_experts, self.num_experts, "the same experts");
        assert!(first < self.totals.len(), "a layer with experts");
        self.totals.address_of(first)
    }

    /// Rows since the last call, `[num_layers, num_experts]`. Waits for the device.
    pub fn take(&mut self, gpu: &Gpu) -> Result<Vec<u64>, CudaError> {
        let mut totals = vec![0; self.totals.len()];
        gpu.read(&self.totals, 0, &mut totals)?;
        gpu.write(&mut self.totals, 0, &vec![0; totals.len()])?;
        Ok(totals)
    }
}
