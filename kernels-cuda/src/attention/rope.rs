//! Rotary position embeddings, and the way of keys and values into the cache.

use super::{KvCache, RopeKind, StepBuffers, StepPart};
use crate::{Args, Buffer, CudaError, Gpu, Grid, Plain, Rows};

/// Heads that a block rotates, a warp each.
const WARPS: usize = 4;

/// Cosines and sines of every position, computed on the host in f64.
pub struct RopeTable {
    /// `[num_positions, rotary_dim / 2]` of (cos, sin).
    angles: Buffer<f32>,
    rotary_dim: usize,
    num_positions: usize,
}

impl RopeTable {
    /// `freq_factors` (`[rotary_dim / 2]`) divide the inverse frequencies one by one;
    /// `linear_scale` divides positions; `magnitude` multiplies cosines and sines.
    pub fn new(
        gpu: &Gpu,
        rotary_dim: usize,
        num_positions: usize,
        theta: f32,
        freq_factors: Option<&[f32]>,
        linear_scale: f32,
        magnitude: f32,
    ) -> Result<Self, CudaError> {
        let half_dim = rotary_dim / 2;
        let frequency = |i: usize| {
            let power = 2.0 * i as f64 / rotary_dim as f64;
            let factor = freq_factors.and_then(|factors| factors.get(i)).copied();
            f64::from(theta).powf(-power)
                / f64::from(factor.unwrap_or(1.0))
                / f64::from(linear_scale)
        };
        let frequencies: Vec<f64> = (0..half_dim).map(frequency).collect();
        let mut angles: Vec<f32> = (0..num_positions)
            .flat_map(|position| {
                frequencies.iter().flat_map(move |frequency| {
                    let angle = position as f64 * frequency;
                    [angle.cos(), angle.sin()].map(|value| value as f32 * magnitude)
                })
            })
            .collect();
        // Where nothing rotates: no buffer is empty.
        angles.resize(angles.len().max(1), 0.0);
        Ok(Self {
            angles: gpu.upload(&angles)?,
            rotary_dim: 2 * half_dim,
            num_positions,
        })
    }
}

/// How queries and keys become what attention reads.
pub struct Rotation<'a> {
    pub table: &'a RopeTable,
    pub kind: RopeKind,
    /// `[head_dim]`: RMS norm on each head of Q, of K, before the rotation.
    pub q_norm: Option<&'a Buffer<f32>>,
    pub k_norm: Option<&'a Buffer<f32>>,
    pub eps: f32,
}

/// `RotateArgs` of `cache.cu`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct RotateArgs {
    q: u64,
    k: u64,
    v: u64,
    keys: u64,
    values: u64,
    angles: u64,
    q_norm: u64,
    k_norm: u64,
    positions: u64,
    slot_mapping: u64,
    num_heads: u32,
    num_kv_heads: u32,
    head_dim: u32,
    padded_dim: u32,
    block_size: u32,
    rotary_dim: u32,
    num_positions: u32,
    is_neox: u32,
    eps: f32,
    padding: u32,
}

// SAFETY: numbers, without holes.
unsafe impl Plain for RotateArgs {}

/// Norms and rotates the heads of Q and K to the positions of the step's rows, and writes K and V
/// to their slots of one layer. `q` is `[num_rows, num_heads * head_dim]` and rotated in place; `k`
/// and `v` are `[num_rows, num_kv_heads * head_dim]`, and stay as they are. Rows whose slot is
/// `u32::MAX` are not cached. Keys are rounded to f16; values too, within its finite range.
///
/// # Panics
/// When shapes do not fit, or the step has fewer rows.
pub fn rotate_and_cache(
    gpu: &Gpu,
    rotation: &Rotation<'_>,
    step: &StepBuffers,
    cache: &mut KvCache,
    layer: usize,
    [q, k, v]: [&mut Rows; 3],
) -> Result<(), CudaError> {
    let shape = *cache.shape();
    let (num_rows, head_dim) = (q.num_rows(), shape.head_dim);
    let kv_width = shape.num_kv_heads * head_dim;
    assert_eq!(q.width() % kv_width, 0, "q is [rows, heads * head_dim]");
    for rows in [&*k, &*v] {
        assert_eq!(rows.width(), kv_width, "[rows, kv_heads * head_dim]");
        assert_eq!(rows.num_rows(), num_rows, "as many rows as q has");
    }
    assert!(num_rows <= step.key().num_rows, "rows of the step");
    let table = rotation.table;
    assert!(table.rotary_dim <= head_dim && table.num_positions > 0);
    for norm in [rotation.q_norm, rotation.k_norm].into_iter().flatten() {
        assert_eq!(norm.len(), head_dim, "a weight for each element of a head");
    }
    let [keys, values] = cache.addresses(layer);
    let num_heads = q.width() / head_dim;
    let args = RotateArgs {
        q: q.address(),
        k: k.address(),
        v: v.address(),
        keys,
        values,
        angles: table.angles.address(),
        q_norm: rotation.q_norm.map_or(0, Buffer::address),
        k_norm: rotation.k_norm.map_or(0, Buffer::address),
        positions: step.address(StepPart::Positions),
        slot_mapping: step.address(StepPart::SlotMapping),
        num_heads: num_heads as u32,
        num_kv_heads: shape.num_kv_heads as u32,
        head_dim: head_dim as u32,
        padded_dim: cache.padded_dim() as u32,
        block_size: shape.block_size as u32,
        rotary_dim: table.rotary_dim as u32,
        num_positions: table.num_positions as u32,
        is_neox: u32::from(rotation.kind == RopeKind::Neox),
        eps: rotation.eps,
        padding: 0,
    };
    let heads = num_heads + 2 * shape.num_kv_heads;
    let grid = Grid {
        blocks: [num_rows as u32, heads.div_ceil(WARPS) as u32, 1],
        threads: 32 * WARPS as u32,
        shared_bytes: 0,
    };
    // SAFETY: shapes were checked; slots were when the step was uploaded, and positions are by the
    // kernel.
    unsafe { gpu.launch("rotate_and_cache", grid, &Args::new().value(args)) }
}
