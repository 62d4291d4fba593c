//! Routing of mixtures of experts, and what lies around their products.
//!
//! The host never learns where rows go unless it asks: products read a table of tiles,
//! [`Routing::tiles`], that has room for the worst case. Rows sorted by expert begin at multiples
//! of eight for each expert, as the tiles of activations do; what lies between the last row of an
//! expert and the first of the next has no meaning.

mod counts;
mod route;
#[cfg(all(test, feature = "emulator"))]
mod tests;

pub use counts::ExpertCounts;
pub use route::{LiveRows, RouteParams, route};

use super::rows::grid_of_parts;
use super::tensors::{K_BLOCK, ROW_GROUP, grow};
use super::{Activations, Args, Buffer, CudaError, Gpu, Rows};

/// Heights of a product's tile.
const TILE_HEIGHTS: std::ops::RangeInclusive<usize> = 8..=256;

/// Where the rows of a step go. Buffers grow to the largest step and stay.
#[derive(Default)]
pub struct Routing {
    buffers: Buffers,
    num_rows: usize,
    num_experts: usize,
    num_chosen: usize,
    tile_height: usize,
}

#[derive(Default)]
struct Buffers {
    /// `[num_rows, num_chosen]`, highest score first.
    experts: Option<Buffer<u32>>,
    gates: Option<Buffer<f32>>,
    slots: Option<Buffer<u32>>,
    /// `[num_experts]`
    counts: Option<Buffer<u32>>,
    /// `[capacity]`
    sorted_rows: Option<Buffer<u32>>,
    /// `[max_tiles, 4]`
    tiles: Option<Buffer<u32>>,
}

fn address<T: super::Plain>(buffer: &Option<Buffer<T>>) -> u64 {
    buffer.as_ref().map_or(0, Buffer::address)
}

impl Routing {
    /// Makes room, so that routes of up to this size move no buffer. Tiles of any height fit.
    pub fn reserve(
        &mut self,
        gpu: &Gpu,
        num_rows: usize,
        num_experts: usize,
        num_chosen: usize,
    ) -> Result<(), CudaError> {
        let num_choices = num_rows * num_chosen;
        let busy = num_experts.min(num_choices);
        let lowest = *TILE_HEIGHTS.start();
        let buffers = &mut self.buffers;
        grow(gpu, &mut buffers.experts, num_choices)?;
        grow(gpu, &mut buffers.gates, num_choices)?;
        grow(gpu, &mut buffers.slots, num_choices)?;
        grow(gpu, &mut buffers.counts, num_experts)?;
        grow(gpu, &mut buffers.sorted_rows, capacity(num_choices, busy))?;
        grow(gpu, &mut buffers.tiles, 4 * (busy + num_choices / lowest))
    }

    pub fn num_rows(&self) -> usize {
        self.num_rows
    }

    pub fn num_experts(&self) -> usize {
        self.num_experts
    }

    /// Experts of a row.
    pub fn num_chosen(&self) -> usize {
        self.num_chosen
    }

    /// Most rows of a tile.
    pub fn tile_height(&self) -> usize {
        self.tile_height
    }

    fn num_choices(&self) -> usize {
        self.num_rows * self.num_chosen
    }

    /// Most experts that have rows.
    fn max_busy(&self) -> usize {
        self.num_experts.min(self.num_choices())
    }

    /// Rows sorted by expert with all padding there can be: a multiple of eight.
    pub fn capacity(&self) -> usize {
        capacity(self.num_choices(), self.max_busy())
    }

    /// Most tiles that have rows.
    pub fn max_tiles(&self) -> usize {
        self.max_busy() + self.num_choices() / self.tile_height.max(1)
    }

    /// Of the tiles, `[max_tiles, 4]` of u32: the expert, the first of the sorted rows (a multiple
    /// of eight), the number of rows (0: the tile is empty), 0.
    pub fn tiles(&self) -> u64 {
        address(&self.buffers.tiles)
    }

    /// The tiles; none before the first route.
    pub fn tiles_buffer(&self) -> Option<&Buffer<u32>> {
        self.buffers.tiles.as_ref()
    }

    /// Of the rows sorted by expert, `[capacity]` of u32; `u32::MAX` where there is none.
    pub fn sorted_rows(&self) -> u64 {
        address(&self.buffers.sorted_rows)
    }

    /// Where each row's choices lie among the sorted rows, `[num_rows, num_chosen]` of u32;
    /// `u32::MAX` for rows that go nowhere.
    pub fn slots(&self) -> u64 {
        address(&self.buffers.slots)
    }

    /// The weights of the chosen experts' results, `[num_rows, num_chosen]` of f32.
    pub fn gates(&self) -> u64 {
        address(&self.buffers.gates)
    }

    /// The chosen experts and the weights of their results, `[num_rows, num_chosen]`, highest score
    /// first. Waits for the device.
    pub fn read(&self, gpu: &Gpu) -> Result<(Vec<u32>, Vec<f32>), CudaError> {
        let mut experts = vec![0; self.num_choices()];
        let mut gates = vec![0.0; self.num_choices()];
        if let (Some(of_experts), Some(of_gates)) = (&self.buffers.experts, &self.buffers.gates) {
            gpu.read(of_experts, 0, &mut experts)?;
            gpu.read(of_gates, 0, &mut gates)?;
        }
        Ok((experts, gates))
    }
}

/// Each busy expert's rows are padded to a multiple of eight.
fn capacity(num_choices: usize, busy: usize) -> usize {
    (num_choices + busy * (ROW_GROUP - 1)).next_multiple_of(ROW_GROUP)
}

/// As `GatherArgs` in `experts.cu`.
#[derive(Clone, Copy, Default)]
#[repr(C)]
struct GatherArgs {
    tiles: u64,
    floats: u64,
    out_tiles: u64,
    out_floats: u64,
    sorted_rows: u64,
    capacity: u32,
    width: u32,
    row_stride: u32,
    out_row_stride: u32,
}

/// As `CombineArgs` in `experts.cu`.
#[derive(Clone, Copy, Default)]
#[repr(C)]
struct CombineArgs {
    out: u64,
    results: u64,
    gates: u64,
    slots: u64,
    num_rows: u32,
    num_chosen: u32,
    width: u32,
    scale: f32,
}

// SAFETY: numbers without padding between them.
unsafe impl super::Plain for GatherArgs {}
// SAFETY: numbers without padding between them.
unsafe impl super::Plain for CombineArgs {}

/// Copies rows to where their experts' products read them, `[capacity, width]`.
///
/// # Panics
/// When `x` has not the rows that were routed, or `out` keeps floats and `x` does not.
pub fn gather(
    gpu: &Gpu,
    x: &Activations,
    routing: &Routing,
    out: &mut Activations,
) -> Result<(), CudaError> {
    assert_eq!(x.num_rows(), routing.num_rows, "the rows that were routed");
    let (capacity, width) = (routing.capacity(), x.width());
    out.reshape(gpu, capacity, width)?;
    let keeps_floats = out.keeps_floats();
    assert!(x.keeps_floats() || !keeps_floats, "floats to copy");
    let args = GatherArgs {
        tiles: x.tiles(),
        floats: if keeps_floats { x.floats() } else { 0 },
        out_tiles: out.tiles(),
        out_floats: out.floats(),
        sorted_rows: routing.sorted_rows(),
        capacity: capacity as u32,
        width: width as u32,
        row_stride: x.row_stride() as u32,
        out_row_stride: out.row_stride() as u32,
    };
    let chunks = width.next_multiple_of(K_BLOCK) / 8;
    let grid = grid_of_parts(capacity, chunks);
    // SAFETY: the sorted rows are rows of `x`, `out` has room for the capacity.
    unsafe { gpu.launch("gather_rows", grid, &Args::new().value(args)) }
}

/// `out[row] += scale * sum of gate * result` over a row's experts, in the order of their scores.
/// `results` is `[capacity, width]`.
///
/// # Panics
/// When shapes do not fit.
pub fn combine(
    gpu: &Gpu,
    routing: &Routing,
    results: &Rows,
    scale: f32,
    out: &mut Rows,
) -> Result<(), CudaError> {
    let (num_rows, width) = (out.num_rows(), out.width());
    assert_eq!(num_rows, routing.num_rows, "the rows that were routed");
    let shape = (routing.capacity(), width);
    assert_eq!((results.num_rows(), results.width()), shape, "a row a slot");
    let args = CombineArgs {
        out: out.address(),
        results: results.address(),
        gates: routing.gates(),
        slots: routing.slots(),
        num_rows: num_rows as u32,
        num_chosen: routing.num_chosen as u32,
        width: width as u32,
        scale,
    };
    let grid = grid_of_parts(num_rows, width.div_ceil(4));
    // SAFETY: slots lie below the capacity; the shapes fit.
    unsafe { gpu.launch("combine_experts", grid, &Args::new().value(args)) }
}
