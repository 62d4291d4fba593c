//! Which experts a row goes to, and tables of the rows sorted by expert.

use ponder_kernels::{Gating, GroupScore, Scoring};

use super::{ExpertCounts, Routing, TILE_HEIGHTS, address};
use crate::tensors::ROW_GROUP;
use crate::{Args, Buffer, CudaError, Gpu, Grid, Plain, Rows};

/// Most experts of a layer: scores and keys of a row lie in shared memory.
const MAX_EXPERTS: usize = 4096;
/// Most groups of experts: each has a bit.
const MAX_GROUPS: usize = 64;
/// Threads of a block that makes tables: `TABLE_THREADS` in `route.cuh`.
const TABLE_THREADS: usize = 256;
/// Rows that one block routes, a warp each.
const MAX_FEW_ROWS: usize = TABLE_THREADS / 32;
/// Shared memory that every device gives a block.
const SURE_SHARED_BYTES: usize = 46 * 1024;

/// How many of a step's rows there really are: one number in device memory. The rows after them go
/// nowhere.
#[derive(Clone, Copy)]
pub struct LiveRows<'a> {
    pub counts: &'a Buffer<u32>,
    /// Which of the buffer's numbers it is.
    pub index: usize,
}

/// How rows are routed.
#[derive(Clone, Copy)]
pub struct RouteParams<'a> {
    pub gating: &'a Gating,
    /// `[num_experts]`: counts in the choice but not in the weights.
    pub bias: Option<&'a Buffer<f32>>,
    /// All rows are there without it.
    pub live: Option<LiveRows<'a>>,
    /// Most rows of a tile: a multiple of eight.
    pub tile_height: usize,
    /// Where to count the rows that each expert gets, and of which layer.
    pub counted: Option<(&'a ExpertCounts, usize)>,
}

impl<'a> RouteParams<'a> {
    /// Of rows that are all there, and not counted.
    pub fn new(gating: &'a Gating, tile_height: usize) -> Self {
        Self {
            gating,
            bias: None,
            live: None,
            tile_height,
            counted: None,
        }
    }
}

/// As `RouteArgs` in `route.cuh`.
#[derive(Clone, Copy, Default)]
#[repr(C)]
struct RouteArgs {
    logits: u64,
    bias: u64,
    num_live_rows: u64,
    experts: u64,
    gates: u64,
    num_experts: u32,
    num_chosen: u32,
    scoring: u32,
    normalises: u32,
    scale: f32,
    num_groups: u32,
    num_chosen_groups: u32,
    group_score: u32,
}

/// As `TableArgs` in `route.cuh`.
#[derive(Clone, Copy, Default)]
#[repr(C)]
struct TableArgs {
    experts: u64,
    counts: u64,
    sorted_rows: u64,
    slots: u64,
    tiles: u64,
    totals: u64,
    num_choices: u32,
    num_chosen: u32,
    num_experts: u32,
    capacity: u32,
    tile_height: u32,
    max_tiles: u32,
}

// SAFETY: numbers without padding between them.
unsafe impl Plain for RouteArgs {}
// SAFETY: numbers without padding between them.
unsafe impl Plain for TableArgs {}

fn check(gating: &Gating, num_experts: usize) -> Result<(), CudaError> {
    if num_experts > MAX_EXPERTS {
        let message = format!("{num_experts} experts; kernels route to at most {MAX_EXPERTS}");
        return Err(CudaError::Unsupported(message));
    }
    let mut available = num_experts;
    if let Some(groups) = gating.groups {
        let is_whole = num_experts.is_multiple_of(groups.count) && groups.count <= MAX_GROUPS;
        assert!(is_whole && groups.num_chosen <= groups.count, "groups");
        available = num_experts / groups.count * groups.num_chosen;
    }
    let chosen = gating.num_experts_per_tok;
    assert!((1..=available).contains(&chosen), "choose some experts");
    Ok(())
}

impl RouteArgs {
    fn new(params: &RouteParams<'_>, logits: &Rows, routing: &Routing) -> Self {
        let gating = params.gating;
        let groups = gating.groups;
        let is_by_two = groups.is_some_and(|groups| groups.score == GroupScore::BestTwo);
        Self {
            logits: logits.address(),
            bias: params.bias.map_or(0, Buffer::address),
            num_live_rows: params.live.map_or(0, |live| {
                assert!(live.index < live.counts.len(), "a number of the buffer");
                live.counts.address_of(live.index)
            }),
            experts: address(&routing.buffers.experts),
            gates: routing.gates(),
            num_experts: routing.num_experts as u32,
            num_chosen: routing.num_chosen as u32,
            scoring: u32::from(gating.scoring == Scoring::Sigmoid),
            normalises: u32::from(gating.normalise),
            scale: gating.scale,
            num_groups: groups.map_or(0, |groups| groups.count as u32),
            num_chosen_groups: groups.map_or(0, |groups| groups.num_chosen as u32),
            group_score: u32::from(is_by_two),
        }
    }
}

impl TableArgs {
    fn new(params: &RouteParams<'_>, routing: &Routing) -> Self {
        let num_experts = routing.num_experts;
        let totals = params
            .counted
            .map(|(counts, layer)| counts.of_layer(layer, num_experts));
        Self {
            experts: address(&routing.buffers.experts),
            counts: address(&routing.buffers.counts),
            sorted_rows: routing.sorted_rows(),
            slots: routing.slots(),
            tiles: routing.tiles(),
            totals: totals.unwrap_or(0),
            num_choices: routing.num_choices() as u32,
            num_chosen: routing.num_chosen as u32,
            num_experts: num_experts as u32,
            capacity: routing.capacity() as u32,
            tile_height: routing.tile_height as u32,
            max_tiles: routing.max_tiles() as u32,
        }
    }
}

/// Routes rows by their router logits (`[num_rows, num_experts]`), and sorts them by expert for
/// products in tiles. A row's route depends on its own logits alone; of equal scores the lower
/// expert wins.
///
/// # Errors
/// When the device fails, or with more experts than kernels route to.
///
/// # Panics
/// When lengths do not fit, or more experts are to be chosen than there are.
pub fn route(
    gpu: &Gpu,
    params: &RouteParams<'_>,
    logits: &Rows,
    routing: &mut Routing,
) -> Result<(), CudaError> {
    let (num_rows, num_experts) = (logits.num_rows(), logits.width());
    let (gating, height) = (params.gating, params.tile_height);
    check(gating, num_experts)?;
    let has_biases = params.bias.is_none_or(|bias| bias.len() == num_experts);
    assert!(has_biases, "a bias for each expert");
    let is_height = TILE_HEIGHTS.contains(&height) && height.is_multiple_of(ROW_GROUP);
    assert!(is_height, "tiles of whole groups of rows");
    let num_chosen = gating.num_experts_per_tok;
    routing.reserve(gpu, num_rows, num_experts, num_chosen)?;
    (routing.num_rows, routing.num_experts) = (num_rows, num_experts);
    (routing.num_chosen, routing.tile_height) = (num_chosen, height);
    if num_rows == 0 {
        return Ok(());
    }
    let args = RouteArgs::new(params, logits, routing);
    let tables = TableArgs::new(params, routing);
    let shared_words = (2 * MAX_FEW_ROWS + 2) * num_experts + TABLE_THREADS;
    let is_few = num_rows <= MAX_FEW_ROWS
        && routing.num_choices() <= TABLE_THREADS
        && 4 * shared_words <= SURE_SHARED_BYTES;
    if is_few {
        let grid = grid(1, TABLE_THREADS, shared_words);
        // SAFETY: the buffers have room for so many rows and experts, and for the worst case of
        // tables.
        return unsafe { gpu.launch("route_few", grid, &Args::new().value(args).value(tables)) };
    }
    let of_rows = grid(num_rows, 32, 2 * num_experts + num_chosen);
    let of_experts = grid(num_experts, TABLE_THREADS, num_experts);
    // SAFETY: as above; the chosen experts are experts, or none.
    unsafe {
        gpu.launch("route", of_rows, &Args::new().value(args))?;
        gpu.launch("expert_tables", of_experts, &Args::new().value(tables))
    }
}

fn grid(blocks: usize, threads: usize, shared_words: usize) -> Grid {
    Grid {
        blocks: [blocks as u32, 1, 1],
        threads: threads as u32,
        shared_bytes: (4 * shared_words) as u32,
    }
}
