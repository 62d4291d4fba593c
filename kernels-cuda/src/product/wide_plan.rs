//! Which kernel takes a product of many rows on devices with `wgmma`.
//!
//! Results are those of the kernels for few rows, bit by bit: the parts of k come from the weight's
//! shape, and every kernel sums them in the same order. So the choice may depend on the number of
//! rows.

use super::launch::MAX_JOBS;
use super::layout::{Layout, M_BLOCK};
use super::workspace::Workspace;
use crate::tensors::K_BLOCK;
use crate::{Plain, Properties};

/// As in `wide.cuh`.
const RING_OFFSET: usize = 1024;
const MAX_STAGES: usize = 16;
const LINE_BYTES: usize = 128;
const ATOM_BYTES: usize = 1024;
const WARPGROUP: usize = 128;
const NUM_CONSUMERS: usize = 2 * WARPGROUP;
pub(super) const NUM_THREADS: usize = NUM_CONSUMERS + WARPGROUP;
/// As in `wide_epilogue.cuh`: an exchange and 16 lines, each in two turns.
const GATED_SCRATCH_BYTES: usize = 2 * (4096 + 16 * LINE_BYTES);
/// A ring of one stage does not overlap anything.
const MIN_STAGES: usize = 2;

/// What a multiprocessor of an H100 does in a cycle: multiply-adds, bytes from the second-level
/// cache, its share of bytes from memory, bytes of sums that it stores.
const MACS_PER_CYCLE: f64 = 2048.0;
const CACHE_BYTES_PER_CYCLE: f64 = 48.0;
const MEMORY_BYTES_PER_CYCLE: f64 = 13.0;
const STORE_BYTES_PER_CYCLE: f64 = 32.0;
/// Instructions that take apart 64 x 64 quantised weights, in cycles of a multiprocessor.
const UNPACK_CYCLES: f64 = 150.0;
/// What is done at the same time as something longer still costs this share.
const OVERLAP_LOSS: f64 = 0.1;
/// Cycles until the first stage is there, and what a part's end costs beside its bytes.
const START_CYCLES: f64 = 2000.0;
const PART_CYCLES: f64 = 400.0;

/// One matrix of a launch, or a pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct WideJob {
    pub out_features: usize,
    /// Parts of k.
    pub num_parts: usize,
}

/// Products of one launch: all of one type, all with the same rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct WideShape<'a> {
    pub layout: Layout,
    pub in_features: usize,
    /// One where it is a pair.
    pub jobs: &'a [WideJob],
    /// Gate and up, which make a gated unit.
    pub is_pair: bool,
    pub rows: RowTiles,
}

/// How rows come to the tiles of a product.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RowTiles {
    /// All of them, in tiles of what height is best.
    All { num_rows: usize },
    /// By a table in device memory, of tiles of up to `height` rows.
    Table { max_tiles: usize, height: usize },
}

/// The kernels of a type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// A block goes through all parts of its sums.
    High,
    Low,
    /// Parts are work of their own; the block that comes last adds them.
    Spread,
    /// So too, and both warpgroups have the same features, each with half of the rows.
    FlatHigh,
    FlatLow,
}

impl Kind {
    pub(super) const ALL: [Self; 5] = [
        Self::High,
        Self::Low,
        Self::Spread,
        Self::FlatHigh,
        Self::FlatLow,
    ];

    /// Rows of a tile.
    pub(super) fn height(self) -> usize {
        match self {
            Self::High | Self::FlatHigh => 256,
            Self::Low | Self::Spread | Self::FlatLow => 128,
        }
    }

    /// Blocks of 64 features of a tile.
    fn m_blocks(self) -> usize {
        match self {
            Self::High | Self::Low | Self::Spread => 2,
            Self::FlatHigh | Self::FlatLow => 1,
        }
    }

    pub(super) fn is_spread(self) -> bool {
        !matches!(self, Self::High | Self::Low)
    }

    /// f32 sums of a tile.
    fn num_sums(self) -> usize {
        self.m_blocks() * M_BLOCK * self.height()
    }

    /// Of a thread, over parts and in shared memory: `SHARED_TOTALS` in `wide.cuh`.
    fn shared_totals(self, layout: Layout) -> usize {
        match self {
            Self::High if layout.code_bits == 16 => 80,
            // Taking weights apart needs registers too.
            Self::High => 96,
            Self::Low => 8,
            _ => 0,
        }
    }

    fn stage_bytes(self, layout: Layout) -> usize {
        let weights = self.m_blocks() * (layout.header_bytes() + layout.block_bytes());
        self.height() * LINE_BYTES + weights.next_multiple_of(ATOM_BYTES)
    }
}

/// A launch, apart from addresses.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct WidePlan {
    pub kind: Kind,
    pub launch: WideLaunch,
    /// Each takes items in turn.
    pub num_blocks: usize,
    pub shared_bytes: usize,
    /// What is expected, of an H100's clock.
    pub cycles: f64,
    /// Sums that blocks leave for each other, and counters of arrivals.
    pub num_sums: usize,
    pub num_counters: usize,
}

/// As in `wide.cuh`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(C)]
pub(super) struct WideLaunch {
    pub first_item: [u32; MAX_JOBS + 1],
    pub num_tiles: u32,
    pub num_stages: u32,
    pub scratch_bytes: u32,
}

// SAFETY: numbers without padding between them.
unsafe impl Plain for WideLaunch {}

/// Cycles of what overlaps.
fn together(cycles: &[f64]) -> f64 {
    let longest = cycles.iter().copied().fold(0.0, f64::max);
    let all: f64 = cycles.iter().sum();
    longest + OVERLAP_LOSS * (all - longest)
}

impl WideShape<'_> {
    /// Work of a block at a time, by job: its parts are several where they are spread.
    fn num_items(&self, kind: Kind, job: &WideJob, num_tiles: usize) -> usize {
        let taken = if self.is_pair { 1 } else { kind.m_blocks() };
        let m_tiles = job.out_features.div_ceil(M_BLOCK).div_ceil(taken);
        let parts = if kind.is_spread() { job.num_parts } else { 1 };
        m_tiles * num_tiles * parts
    }

    fn is_split(&self) -> bool {
        self.jobs.iter().any(|job| job.num_parts > 1)
    }

    /// Shared memory of a warpgroup beside the ring: totals over parts, or what it exchanges with
    /// the other.
    fn scratch_bytes(&self, kind: Kind) -> usize {
        let totals = match self.is_split() {
            true => kind.shared_totals(self.layout) * WARPGROUP * size_of::<f32>(),
            false => 0,
        };
        totals.max(if self.is_pair { GATED_SCRATCH_BYTES } else { 0 })
    }

    /// The plan with a kernel; `None` where it cannot take these products.
    pub(super) fn plan_with(&self, kind: Kind, device: &Properties) -> Option<WidePlan> {
        let num_tiles = match self.rows {
            RowTiles::All { num_rows } => num_rows.div_ceil(kind.height()),
            RowTiles::Table { height, .. } if height > kind.height() => return None,
            RowTiles::Table { max_tiles, .. } => max_tiles,
        };
        if self.is_pair && kind.m_blocks() == 1 {
            return None;
        }
        let scratch_bytes = self.scratch_bytes(kind);
        let around = RING_OFFSET + 2 * scratch_bytes;
        let stage_bytes = kind.stage_bytes(self.layout);
        let num_stages = device.max_shared_bytes.checked_sub(around)? / stage_bytes;
        let num_stages = num_stages.min(MAX_STAGES);
        if num_stages < MIN_STAGES {
            return None;
        }
        let mut first_item = [0; MAX_JOBS + 1];
        for index in 0..MAX_JOBS {
            let job = self.jobs.get(index);
            let items = job.map_or(0, |job| self.num_items(kind, job, num_tiles));
            first_item[index + 1] = first_item[index] + items as u32;
        }
        let num_items = first_item[MAX_JOBS] as usize;
        let leaves_parts = kind.is_spread() && self.is_split();
        let shared = if leaves_parts { num_items } else { 0 };
        Some(WidePlan {
            kind,
            launch: WideLaunch {
                first_item,
                num_tiles: num_tiles as u32,
                num_stages: num_stages as u32,
                scratch_bytes: scratch_bytes as u32,
            },
            num_blocks: num_items.min(device.num_multiprocessors),
            shared_bytes: around + num_stages * stage_bytes,
            cycles: self.estimate(kind, num_tiles, device),
            num_sums: shared * kind.num_sums(),
            num_counters: shared,
        })
    }

    /// Cycles until the last block is done.
    fn estimate(&self, kind: Kind, num_tiles: usize, device: &Properties) -> f64 {
        let num_blocks = self.in_features.div_ceil(K_BLOCK) as f64;
        let multiplies = (kind.num_sums() * K_BLOCK) as f64 / MACS_PER_CYCLE;
        let loads = kind.stage_bytes(self.layout) as f64 / CACHE_BYTES_PER_CYCLE;
        let unpacks = match self.layout.code_bits {
            16 => 0.0,
            // Both warpgroups of a flat tile do the same.
            _ => 2.0 * UNPACK_CYCLES,
        };
        let block = together(&[multiplies, loads, unpacks]);
        let store = (kind.num_sums() * size_of::<f32>()) as f64 / STORE_BYTES_PER_CYCLE;
        let kept = (kind.shared_totals(self.layout) * NUM_CONSUMERS * size_of::<f32>()) as f64;
        let (mut work, mut longest, mut tail, mut bytes) = (0.0, 0.0_f64, 0.0_f64, 0);
        let matrices = if self.is_pair { 2 } else { 1 };
        for job in self.jobs {
            let parts = job.num_parts as f64;
            let is_apart = kind.is_spread() && job.num_parts > 1;
            let item = if is_apart {
                // Who comes last reads all parts.
                tail = tail.max(parts * store + store);
                num_blocks / parts * block + store
            } else {
                let part_end = PART_CYCLES + 2.0 * kept / LINE_BYTES as f64;
                num_blocks * block + (parts - 1.0) * part_end + store
            };
            work += self.num_items(kind, job, num_tiles) as f64 * item;
            longest = longest.max(item);
            bytes += self.layout.matrix_bytes(job.out_features, self.in_features) * matrices;
        }
        // All blocks are busy until the last round, of which some are not.
        let num_multiprocessors = device.num_multiprocessors as f64;
        let rounds = (work / longest / num_multiprocessors).ceil();
        let memory = bytes as f64 / (MEMORY_BYTES_PER_CYCLE * num_multiprocessors);
        START_CYCLES + together(&[rounds * longest, memory]) + tail
    }

    /// The plan that is done first, of those whose parts find room.
    pub(super) fn plan(&self, device: &Properties, workspace: &Workspace) -> Option<WidePlan> {
        let plans = Kind::ALL.into_iter();
        let plans = plans.filter_map(|kind| self.plan_with(kind, device));
        let fitting = plans.filter(|plan| workspace.has_room(plan.num_sums, plan.num_counters));
        fitting.min_by(|a, b| a.cycles.total_cmp(&b.cycles))
    }
}

#[cfg(test)]
#[path = "tests/wide_plan.rs"]
mod tests;
