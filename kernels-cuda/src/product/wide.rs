//! Products that warpgroups compute (`wgmma`, sm_90a): many rows at once, with the bits of the
//! other kernels.

use super::launch::Launch;
use super::layout::{Layout, WeightType};
use super::plan::{MAX_TILE_ROWS, Tile};
use super::wide_plan::{Kind, NUM_THREADS, RowTiles, WideJob, WidePlan, WideShape};
use super::workspace::Workspace;
use crate::{Args, CudaError, Gpu, Grid};

/// Rows of an expert's tile ([`super::ExpertTiles`]) that is the best where rows are many.
pub const WIDE_TILE_ROWS: usize = 128;

fn shape<'a>(launch: &Launch<'_>, jobs: &'a [WideJob]) -> WideShape<'a> {
    WideShape {
        layout: launch.layout(),
        in_features: launch.x.width(),
        jobs,
        is_pair: launch.glu.is_some(),
        rows: match launch.experts {
            None => RowTiles::All {
                num_rows: launch.x.num_rows(),
            },
            Some(experts) => RowTiles::Table {
                max_tiles: experts.max_tiles,
                height: experts.tile_rows,
            },
        },
    }
}

fn jobs(launch: &Launch<'_>) -> Vec<WideJob> {
    let jobs = launch.distinct_jobs().iter();
    jobs.map(|job| WideJob {
        out_features: job.matrix.out_features(),
        num_parts: job.matrix.splits().num_parts,
    })
    .collect()
}

/// How warpgroups compute this launch; `None` where they do not: on other devices, and for few
/// rows.
pub(super) fn plan(gpu: &Gpu, launch: &Launch<'_>, workspace: &Workspace) -> Option<WidePlan> {
    let num_rows = match launch.experts {
        None => launch.x.num_rows(),
        Some(experts) => experts.tile_rows,
    };
    let is_for_few = num_rows <= MAX_TILE_ROWS || launch.second_layout().is_some();
    if is_for_few || !gpu.properties().has_wgmma() {
        return None;
    }
    shape(launch, &jobs(launch)).plan(gpu.properties(), workspace)
}

/// # Safety
/// As [`Launch::run`]. `plan` was made for this launch and this workspace.
pub(super) unsafe fn run(
    gpu: &Gpu,
    launch: &Launch<'_>,
    workspace: &Workspace,
    plan: &WidePlan,
) -> Result<(), CudaError> {
    let grid = Grid {
        blocks: [plan.num_blocks as u32, 1, 1],
        threads: NUM_THREADS as u32,
        shared_bytes: plan.shared_bytes as u32,
    };
    // What only the other kernels read.
    let any_tile = Tile::new(launch.layout(), MAX_TILE_ROWS, false, 1);
    let args = Args::new()
        .value(launch.args(any_tile, workspace))
        .value(plan.launch);
    let kernel = kernel(launch.layout(), plan.kind);
    // SAFETY: the structs are the kernel's parameters; shapes were checked where the launch was
    // made.
    unsafe { gpu.launch(kernel, grid, &args) }
}

macro_rules! kernels {
    ($layout:expr, $kind:expr, $($variant:ident $name:literal),*) => {
        match ($layout.weight_type, $kind) {
            $(
                (WeightType::$variant, Kind::High) => concat!("product_wide_256_", $name),
                (WeightType::$variant, Kind::Low) => concat!("product_wide_128_", $name),
                (WeightType::$variant, Kind::Spread) => concat!("product_wide_spread_128_", $name),
                (WeightType::$variant, Kind::FlatHigh) => concat!("product_wide_flat_128_", $name),
                (WeightType::$variant, Kind::FlatLow) => concat!("product_wide_flat_64_", $name),
            )*
        }
    };
}

/// The kernel of a type and a kind of tile.
fn kernel(layout: Layout, kind: Kind) -> &'static str {
    kernels!(
        layout, kind, Bf16 "bf16", Q4_0 "q4_0", Q4_1 "q4_1", Q5_0 "q5_0", Q5_1 "q5_1", Q8_0 "q8_0", Q4K "q4_k", Q5K "q5_k",
        Q6K "q6_k"
    )
}

#[cfg(all(test, feature = "emulator"))]
#[path = "tests/wide.rs"]
mod tests;

#[cfg(all(test, feature = "emulator"))]
#[path = "tests/wide_device.rs"]
mod device_tests;
