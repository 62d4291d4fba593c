//! The launches of attention.

use super::cache::KvCache;
use super::{AttentionParams, StepBuffers, StepPart};
use crate::{Args, CudaError, Gpu, Grid, Plain, Rows};

const TILE_TOKENS: usize = 32;
const VALUE_BYTES: usize = 2;
const WARP: u32 = 32;
const WIDE_WARPS: usize = 4;
const WIDE_STAGES: usize = 2;
/// Queries of a warp, whose merged states a folded unit keeps in shared memory.
const WARP_QUERIES: usize = 16;

/// Bytes of a k step of a warp's queries.
const STEP_BYTES: usize = 512;
/// Dims of a k step.
const STEP_DIMS: usize = 16;

/// The kernels of a head's padded dims, with the constants that `attention_thin.cu` and `attention_wide.cu` give them.
struct Kernels {
    padded_dim: usize,
    thin: &'static str,
    wide: &'static str,
    /// Values are attended in so many parts.
    num_parts: usize,
    /// Tiles in shared memory of a thin unit.
    thin_stages: usize,
    /// K steps of queries in registers of thin and wide units; the others are in shared memory.
    thin_kept: usize,
    wide_kept: usize,
}

macro_rules! kernels {
    ($($dim:literal: $num_parts:literal, $stages:literal, $thin_kept:literal, $wide_kept:literal;)*) => {
        [$(Kernels {
            padded_dim: $dim,
            thin: concat!("attention_thin_", $dim),
            wide: concat!("attention_wide_", $dim),
            num_parts: $num_parts,
            thin_stages: $stages,
            thin_kept: $thin_kept,
            wide_kept: $wide_kept,
        }),*]
    };
}

const KERNELS: [Kernels; 6] = kernels! {
    32: 1, 4, 2, 2;
    64: 1, 4, 4, 2;
    96: 1, 3, 6, 4;
    128: 1, 3, 8, 3;
    192: 2, 3, 8, 10;
    256: 2, 3, 8, 8;
};

impl Kernels {
    /// A tile of keys and (a part of) values.
    fn stage_bytes(&self) -> usize {
        TILE_TOKENS * (self.padded_dim + self.part_dim()) * VALUE_BYTES
    }

    fn part_dim(&self) -> usize {
        self.padded_dim / self.num_parts
    }

    /// Queries of a warp that are not in registers.
    fn query_bytes(&self, num_kept: usize) -> usize {
        (self.padded_dim / STEP_DIMS - num_kept) * STEP_BYTES
    }

    fn thin_bytes(&self) -> usize {
        self.thin_stages * self.stage_bytes() + self.query_bytes(self.thin_kept)
    }

    fn wide_bytes(&self) -> usize {
        let merged = WARP_QUERIES * self.part_dim() * size_of::<f32>();
        let of_warp = merged + self.query_bytes(self.wide_kept);
        WIDE_STAGES * self.stage_bytes() + WIDE_WARPS * of_warp
    }
}

/// `AttentionArgs` of `attention.cuh`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct AttentionArgs {
    q: u64,
    out: u64,
    keys: u64,
    values: u64,
    units: u64,
    rows: u64,
    tables: u64,
    states: u64,
    num_heads: u32,
    num_kv_heads: u32,
    head_dim: u32,
    block_size: u32,
    split_tokens: u32,
    window: u32,
    score_scale: f32,
    cap: f32,
    block_shift: u32,
    padding: u32,
}

/// `CombineArgs` of `attention_combine.cu`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct CombineArgs {
    out: u64,
    rows: u64,
    states: u64,
    head_dim: u32,
    split_tokens: u32,
    window: u32,
    padding: u32,
}

// SAFETY: numbers, without holes.
unsafe impl Plain for AttentionArgs {}
// SAFETY: numbers, without holes.
unsafe impl Plain for CombineArgs {}

/// Causal attention over the block tables, leaves of draft trees included. The rows' own keys and
/// values are in the cache. `q` and `out` are `[num_rows, num_heads * head_dim]`; `out` gets its
/// shape. Queries and weights are rounded to f16, sums are f32. Rows of `q` past those of the plan
/// (the padding of a graph) leave theirs of `out` as they are.
///
/// # Panics
/// When shapes differ from those that the step was planned for.
pub fn attention(
    gpu: &Gpu,
    params: &AttentionParams,
    cache: &KvCache,
    layer: usize,
    step: &StepBuffers,
    q: &Rows,
    out: &mut Rows,
) -> Result<(), CudaError> {
    let (shape, of_cache) = (step.shape(), cache.shape());
    let shape = shape.expect("a step is uploaded before it is attended; this is a bug");
    assert_eq!(
        [params.num_heads, params.num_kv_heads, params.head_dim],
        [shape.num_heads, shape.num_kv_heads, shape.head_dim],
        "heads as they were planned for"
    );
    assert_eq!(
        [
            of_cache.num_kv_heads,
            of_cache.head_dim,
            of_cache.num_blocks,
            of_cache.block_size
        ],
        [
            shape.num_kv_heads,
            shape.head_dim,
            shape.num_blocks,
            shape.block_size
        ],
        "the cache that was planned for"
    );
    assert_eq!(
        q.width(),
        params.num_heads * params.head_dim,
        "q is [rows, heads * head_dim]"
    );
    assert_eq!(q.num_rows(), step.key().num_rows, "rows of the step");
    out.reshape(gpu, q.num_rows(), q.width())?;
    let kernels = KERNELS
        .iter()
        .find(|kernels| kernels.padded_dim == cache.padded_dim());
    let kernels = kernels.expect("a cache has dims of a kernel; this is a bug");
    let args = arguments(params, cache, layer, step, [q.address(), out.address()]);
    for part in [StepPart::WideUnits, StepPart::ThinUnits] {
        launch_units(gpu, kernels, part, step, args)?;
    }
    match step.key().has_states {
        true => launch_combine(gpu, kernels, step, &args),
        false => Ok(()),
    }
}

/// Of all launches; the units are missing.
fn arguments(
    params: &AttentionParams,
    cache: &KvCache,
    layer: usize,
    step: &StepBuffers,
    [q, out]: [u64; 2],
) -> AttentionArgs {
    let [keys, values] = cache.addresses(layer);
    let block_size = cache.shape().block_size;
    let log2_e = std::f32::consts::LOG2_E;
    let (score_scale, cap) = match params.softcap {
        Some(cap) => (params.scale / cap, cap * log2_e),
        None => (params.scale * log2_e, 0.0),
    };
    let window = params.sliding_window.map_or(u32::MAX, |window| {
        u32::try_from(window).unwrap_or(u32::MAX).max(1)
    });
    AttentionArgs {
        q,
        out,
        keys,
        values,
        units: 0,
        rows: step.address(StepPart::Rows),
        tables: step.address(StepPart::Tables),
        states: step.states(),
        num_heads: params.num_heads as u32,
        num_kv_heads: params.num_kv_heads as u32,
        head_dim: params.head_dim as u32,
        block_size: block_size as u32,
        split_tokens: step.split_tokens() as u32,
        window,
        score_scale,
        cap,
        block_shift: match block_size.is_power_of_two() {
            true => block_size.ilog2(),
            false => u32::MAX,
        },
        padding: 0,
    }
}

fn launch_units(
    gpu: &Gpu,
    kernels: &Kernels,
    part: StepPart,
    step: &StepBuffers,
    mut args: AttentionArgs,
) -> Result<(), CudaError> {
    let is_wide = part == StepPart::WideUnits;
    let (kernel, num_units, num_warps, shared_bytes) = match is_wide {
        true => (
            kernels.wide,
            step.key().num_wide,
            WIDE_WARPS as u32,
            kernels.wide_bytes(),
        ),
        false => (kernels.thin, step.key().num_thin, 1, kernels.thin_bytes()),
    };
    args.units = step.address(part);
    let grid = Grid {
        blocks: [
            num_units as u32 * args.num_kv_heads,
            kernels.num_parts as u32,
            1,
        ],
        threads: WARP * num_warps,
        shared_bytes: shared_bytes as u32,
    };
    // SAFETY: the plan names rows of the batch, blocks of the cache and states that there is room
    // for; shapes were checked.
    unsafe { gpu.launch(kernel, grid, &Args::new().value(args)) }
}

fn launch_combine(
    gpu: &Gpu,
    kernels: &Kernels,
    step: &StepBuffers,
    args: &AttentionArgs,
) -> Result<(), CudaError> {
    let combine = CombineArgs {
        out: args.out,
        rows: args.rows,
        states: args.states,
        head_dim: args.head_dim,
        split_tokens: args.split_tokens,
        window: args.window,
        padding: 0,
    };
    let grid = Grid {
        blocks: [step.key().num_rows as u32, args.num_heads, 1],
        threads: kernels.padded_dim as u32,
        shared_bytes: 0,
    };
    // SAFETY: as for the units, which wrote the states.
    unsafe { gpu.launch("attention_combine", grid, &Args::new().value(combine)) }
}
