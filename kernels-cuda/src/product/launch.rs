//! One launch: matrices of one type that multiply the same activations.

use ponder_kernels::Glu;

use super::layout::{Layout, M_BLOCK, WeightType};
use super::matrix::Matrix;
use super::plan::{MAX_TILE_ROWS, Tile};
use super::wide;
use super::workspace::Workspace;
use crate::tensors::K_BLOCK;
use crate::{Activations, Args, Buffer, CudaError, Gpu, Grid, Plain};

/// Matrices of one launch.
pub(super) const MAX_JOBS: usize = 3;

/// What becomes of a sum. As `product_results.cuh` counts.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Epilogue {
    Store,
    Add,
    /// `cap * tanh(x * scale / cap)`; a cap of zero is none.
    Logits {
        scale: f32,
        cap: f32,
    },
}

/// One matrix.
pub(super) struct LaunchJob<'a> {
    pub matrix: &'a Matrix,
    pub bias: Option<&'a Buffer<f32>>,
    /// `[rows, out_features]`; unused in a gated unit.
    pub out: u64,
    pub epilogue: Epilogue,
}

/// Where a gated unit's results go.
#[derive(Debug, Clone, Copy)]
pub(super) struct GluOut {
    pub kind: Glu,
    /// Activations in tiles, and from one k block's rows to the next's.
    pub tiles: u64,
    pub row_stride: usize,
    /// Null where they are not kept.
    pub floats: u64,
}

/// Rows that are sorted by expert.
#[derive(Clone, Copy)]
pub struct ExpertTiles<'a> {
    /// `[max_tiles, 4]` of u32: expert, first row (a multiple of 8), rows (0 in an unused tile), 0.
    /// Read from device memory when the product runs.
    pub table: &'a Buffer<u32>,
    pub max_tiles: usize,
    /// Rows of a tile at most: a multiple of 8, best 8, 16, 32, 64, or [`super::WIDE_TILE_ROWS`]
    /// where rows are many.
    pub tile_rows: usize,
}

/// Rows up to which matrices of two types share a launch: beyond, a launch more is little beside
/// its work.
const MAX_SHARED_ROWS: usize = 16;

/// Whether matrices of these layouts may be in one launch for so many rows.
pub(super) fn may_share(a: Layout, b: Layout, num_rows: usize) -> bool {
    a == b || (num_rows <= MAX_SHARED_ROWS && kernel_of_two(a, b, MAX_SHARED_ROWS).is_some())
}

/// A launch of products. All jobs have as many inputs, and matrices whose layouts may share a
/// launch.
pub(super) struct Launch<'a> {
    pub x: &'a Activations,
    /// One to three, in a gated unit two: gate and up.
    pub jobs: &'a [LaunchJob<'a>],
    pub glu: Option<GluOut>,
    pub experts: Option<ExpertTiles<'a>>,
}

#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
struct ProductJob {
    weights: u64,
    bias: u64,
    out: u64,
    expert_bytes: u64,
    out_features: u32,
    first_unit: u32,
    first_group: u32,
    num_parts: u32,
    part_blocks: u32,
    epilogue: u32,
    weight_type: u32,
    /// What C++ puts there, as a field: no byte of the arguments is without a value.
    padding: u32,
}

#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct ProductArgs {
    jobs: [ProductJob; MAX_JOBS],
    x: u64,
    row_tiles: u64,
    workspace: u64,
    counters: u64,
    glu_tiles: u64,
    glu_floats: u64,
    num_jobs: u32,
    num_groups: u32,
    num_rows: u32,
    row_stride: u32,
    k_blocks: u32,
    tile_rows: u32,
    glu_row_stride: u32,
    is_serial: u32,
    num_summed: u32,
    glu: u32,
    scale: f32,
    cap: f32,
    tile_splits: u32,
    padding: u32,
}

// SAFETY: numbers alone, without padding: eight-byte ones first, then an even number of four-byte
// ones.
unsafe impl Plain for ProductArgs {}

// The structs of `product_results.cuh`, as NVRTC lays them out.
const _: () = assert!(size_of::<ProductJob>() == 64 && size_of::<ProductArgs>() == 296);

/// As `activation.cuh` counts them.
pub fn glu_kind(glu: Glu) -> u32 {
    match glu {
        Glu::Silu => 0,
        Glu::GeluTanh => 1,
        Glu::ClampedSwish => 2,
    }
}

impl Launch<'_> {
    pub(super) fn layout(&self) -> Layout {
        let layout = self.jobs[0].matrix.layout();
        layout.expect("products of f32 matrices are another kernel's")
    }

    /// Where a job's differs from the first one's.
    pub(super) fn second_layout(&self) -> Option<Layout> {
        let layouts = self.jobs.iter().filter_map(|job| job.matrix.layout());
        layouts.into_iter().find(|layout| *layout != self.layout())
    }

    /// Matrices that make one result.
    fn num_summed(&self) -> usize {
        if self.glu.is_some() { 2 } else { 1 }
    }

    /// Tiles of rows of that height.
    fn num_tiles(&self, rows: usize) -> usize {
        match &self.experts {
            Some(experts) => experts.max_tiles * experts.tile_rows.div_ceil(rows),
            None => self.x.num_rows().div_ceil(rows),
        }
    }

    /// Blocks of a row tile, and groups of those that are added up.
    fn units(&self, tile: Tile) -> (usize, usize) {
        let mut units = 0;
        let mut groups = 0;
        for job in self.distinct_jobs() {
            let of_job = job.matrix.out_features().div_ceil(M_BLOCK * tile.m_blocks);
            let parts = if tile.is_serial {
                1
            } else {
                job.matrix.splits().num_parts * self.num_summed()
            };
            units += of_job * parts;
            groups += of_job;
        }
        (units, groups)
    }

    /// Jobs with units of their own: a gated unit's matrices share theirs.
    pub(super) fn distinct_jobs(&self) -> &[LaunchJob<'_>] {
        &self.jobs[..self.jobs.len() / self.num_summed()]
    }

    /// Parts are computed apart when rows are few and the workspace has room for their sums.
    fn tile(&self, workspace: &Workspace, max_shared_bytes: usize) -> Tile {
        let num_rows = match &self.experts {
            Some(experts) => experts.tile_rows,
            None => self.x.num_rows(),
        };
        let of = |is_serial| {
            let num_summed = self.num_summed();
            let first = Tile::for_rows(
                self.layout(),
                num_rows,
                is_serial,
                num_summed,
                max_shared_bytes,
            );
            let second = self.second_layout();
            let second = second.map(|it| Tile::new(it, first.rows, is_serial, num_summed));
            Tile {
                shared_bytes: second
                    .map_or(0, |tile| tile.shared_bytes)
                    .max(first.shared_bytes),
                ..first
            }
        };
        let apart = of(false);
        let num_tiles = self.num_tiles(apart.rows);
        let (units, groups) = self.units(apart);
        let needs_none = units == groups;
        let has_room =
            workspace.has_room(units * num_tiles * apart.unit_sums(), groups * num_tiles);
        let is_small = self.experts.is_some() || num_rows <= MAX_TILE_ROWS;
        if needs_none || (is_small && has_room) {
            return apart;
        }
        of(true)
    }

    pub(super) fn args(&self, tile: Tile, workspace: &Workspace) -> ProductArgs {
        let mut args = ProductArgs {
            x: self.x.tiles(),
            row_tiles: self.experts.map_or(0, |experts| experts.table.address()),
            workspace: workspace.sums(),
            counters: workspace.counters(),
            num_jobs: self.distinct_jobs().len() as u32,
            num_groups: self.units(tile).1 as u32,
            num_rows: self.x.num_rows() as u32,
            row_stride: self.x.row_stride() as u32,
            k_blocks: self.x.width().div_ceil(K_BLOCK) as u32,
            tile_rows: tile.rows as u32,
            is_serial: u32::from(tile.is_serial),
            num_summed: self.num_summed() as u32,
            tile_splits: self
                .experts
                .map_or(1, |experts| experts.tile_rows.div_ceil(tile.rows))
                as u32,
            ..ProductArgs::default()
        };
        if let Some(glu) = self.glu {
            args.glu_tiles = glu.tiles;
            args.glu_floats = glu.floats;
            args.glu_row_stride = glu.row_stride as u32;
            args.glu = glu_kind(glu.kind);
        }
        let (mut unit, mut group) = (0, 0);
        for (job, target) in self.jobs.iter().zip(&mut args.jobs) {
            let splits = job.matrix.splits();
            let groups = job.matrix.out_features().div_ceil(M_BLOCK * tile.m_blocks);
            *target = ProductJob {
                weights: job.matrix.address(),
                bias: job.bias.map_or(0, Buffer::address),
                out: job.out,
                expert_bytes: job.matrix.expert_bytes() as u64,
                out_features: job.matrix.out_features() as u32,
                first_unit: unit as u32,
                first_group: group as u32,
                num_parts: splits.num_parts as u32,
                part_blocks: splits.part_blocks as u32,
                epilogue: match job.epilogue {
                    Epilogue::Store => 0,
                    Epilogue::Add => 1,
                    Epilogue::Logits { .. } => 2,
                },
                weight_type: job.matrix.layout().map_or(0, Layout::number),
                padding: 0,
            };
            if let Epilogue::Logits { scale, cap } = job.epilogue {
                (args.scale, args.cap) = (scale, cap);
            }
            unit += groups * if tile.is_serial { 1 } else { splits.num_parts };
            group += groups;
        }
        args
    }

    /// # Safety
    /// The jobs' outputs, or those of the gated unit, are live buffers of `[x.num_rows(),
    /// out_features]`, and `x` has values.
    pub(super) unsafe fn run(&self, gpu: &Gpu, workspace: &Workspace) -> Result<(), CudaError> {
        if self.x.num_rows() == 0 {
            return Ok(());
        }
        if let Some(plan) = wide::plan(gpu, self, workspace) {
            // SAFETY: as the caller promises.
            return unsafe { wide::run(gpu, self, workspace, &plan) };
        }
        // SAFETY: as the caller promises.
        unsafe { self.run_tiles(gpu, workspace) }
    }

    /// [`Self::run`] without the kernels that some devices alone have.
    ///
    /// # Safety
    /// As [`Self::run`].
    pub(super) unsafe fn run_tiles(
        &self,
        gpu: &Gpu,
        workspace: &Workspace,
    ) -> Result<(), CudaError> {
        let tile = self.tile(workspace, gpu.properties().max_shared_bytes);
        let kernel = match self.second_layout() {
            None => kernel(self.layout(), tile.rows),
            Some(second) => kernel_of_two(self.layout(), second, tile.rows)
                .expect("layouts were found to share a launch"),
        };
        let grid = Grid {
            blocks: [
                self.units(tile).0 as u32,
                self.num_tiles(tile.rows) as u32,
                1,
            ],
            threads: tile.threads as u32,
            shared_bytes: tile.shared_bytes as u32,
        };
        let args = Args::new().value(self.args(tile, workspace));
        // SAFETY: the struct is the kernel's parameter; shapes were checked where the launch was
        // made.
        unsafe { gpu.launch(kernel, grid, &args) }
    }
}

macro_rules! kernels {
    ($layout:expr, $rows:expr, $($variant:ident $name:literal),*) => {
        match ($layout.weight_type, $rows) {
            $(
                (WeightType::$variant, 8) => concat!("product_", $name, "_8"),
                (WeightType::$variant, 16) => concat!("product_", $name, "_16"),
                (WeightType::$variant, 32) => concat!("product_", $name, "_32"),
                (WeightType::$variant, _) => concat!("product_", $name, "_64"),
            )*
        }
    };
}

/// The kernel of a type and a tile's rows.
fn kernel(layout: Layout, rows: usize) -> &'static str {
    kernels!(
        layout, rows, Bf16 "bf16", Q4_0 "q4_0", Q4_1 "q4_1", Q5_0 "q5_0", Q5_1 "q5_1", Q8_0 "q8_0", Q4K "q4_k", Q5K "q5_k",
        Q6K "q6_k"
    )
}

/// The kernel of two types, in either order.
fn kernel_of_two(a: Layout, b: Layout, rows: usize) -> Option<&'static str> {
    use WeightType::{Q4K, Q5K, Q6K};
    match (a.weight_type, b.weight_type, rows) {
        (Q4K, Q6K, 8) | (Q6K, Q4K, 8) => Some("product_q4_k_q6_k_8"),
        (Q4K, Q6K, 16) | (Q6K, Q4K, 16) => Some("product_q4_k_q6_k_16"),
        (Q5K, Q6K, 8) | (Q6K, Q5K, 8) => Some("product_q5_k_q6_k_8"),
        (Q5K, Q6K, 16) | (Q6K, Q5K, 16) => Some("product_q5_k_q6_k_16"),
        _ => None,
    }
}
