//! Where the parts of latent attention's heads lie.

use super::norm::norm_starts;
use super::{Norm, grid_of_parts};
use crate::{Activations, Args, CudaError, Gpu, Plain, Rows};

/// Sizes of latent attention.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LatentShape {
    /// Elements of a query and key that are not rotated.
    pub nope_head_dim: usize,
    /// Those that are; of keys one for all heads.
    pub rope_head_dim: usize,
    /// At most the two together.
    pub v_head_dim: usize,
}

/// As `LatentShape` in `latent.cu`.
#[derive(Clone, Copy, Default)]
#[repr(C)]
struct ShapeArgs {
    num_rows: u32,
    num_heads: u32,
    nope: u32,
    rope: u32,
    v_dim: u32,
}

/// As `LatentSources` in `latent.cu`.
#[derive(Clone, Copy, Default)]
#[repr(C)]
struct SourceArgs {
    latent: u64,
    keys: u64,
    values: u64,
    latent_width: u32,
    key_stride: u32,
    value_stride: u32,
    // The struct ends at a multiple of 8.
    unused: u32,
}

// SAFETY: numbers without padding between them.
unsafe impl Plain for ShapeArgs {}
// SAFETY: numbers without padding between them.
unsafe impl Plain for SourceArgs {}

/// What was expanded from the latent vector of keys and values, head by head.
pub enum Expanded<'a> {
    /// `[num_rows, num_heads * (nope_head_dim + v_head_dim)]`, a head's key before its value.
    Joined(&'a Rows),
    /// `[num_rows, num_heads * nope_head_dim]` and `[num_rows, num_heads * v_head_dim]`
    Split(&'a Rows, &'a Rows),
}

/// Room for [`latent_values`].
#[derive(Default)]
pub struct LatentScratch(Rows);

impl LatentShape {
    /// Of queries and keys.
    pub fn head_dim(&self) -> usize {
        self.nope_head_dim + self.rope_head_dim
    }

    fn args(&self, num_rows: usize, num_heads: usize) -> ShapeArgs {
        assert!(self.v_head_dim <= self.head_dim(), "values fit heads");
        ShapeArgs {
            num_rows: num_rows as u32,
            num_heads: num_heads as u32,
            nope: self.nope_head_dim as u32,
            rope: self.rope_head_dim as u32,
            v_dim: self.v_head_dim as u32,
        }
    }
}

/// Queries with a head's rotated elements first: `wide` (`[num_rows, num_heads * head_dim]`) has
/// them last.
pub fn latent_queries(
    gpu: &Gpu,
    shape: &LatentShape,
    wide: &Rows,
    q: &mut Rows,
) -> Result<(), CudaError> {
    let (num_rows, width) = (wide.num_rows(), wide.width());
    assert!(width.is_multiple_of(shape.head_dim()), "whole heads");
    q.reshape(gpu, num_rows, width)?;
    let args = Args::new()
        .value(wide.address())
        .value(q.address())
        .value(shape.args(num_rows, width / shape.head_dim()));
    // SAFETY: `latent_queries(wide, q, shape)`; both have that shape.
    unsafe { gpu.launch("latent_queries", grid_of_parts(num_rows, width), &args) }
}

/// RMS norm of the first `norm.weight.len()` elements of each row of `latent`.
///
/// # Panics
/// When there are fewer.
pub fn latent_norm(
    gpu: &Gpu,
    latent: &Rows,
    norm: Norm<'_>,
    out: &mut Activations,
) -> Result<(), CudaError> {
    norm_starts(gpu, latent, norm, out)
}

/// Every head's key and value, `[num_rows, num_heads * head_dim]`: the rotated part of a key, one
/// for all heads, comes from the end of `latent`, the rest from `expanded`; values are padded with
/// zeros.
///
/// # Panics
/// When shapes do not fit.
pub fn latent_keys_values(
    gpu: &Gpu,
    shape: &LatentShape,
    latent: &Rows,
    expanded: &Expanded<'_>,
    [k, v]: [&mut Rows; 2],
) -> Result<(), CudaError> {
    let (nope, v_dim) = (shape.nope_head_dim, shape.v_head_dim);
    let num_rows = latent.num_rows();
    assert!(latent.width() >= shape.rope_head_dim, "a rotated part");
    let part = |rows: &Rows, len: usize| {
        let is_whole = rows.num_rows() == num_rows && rows.width().is_multiple_of(len.max(1));
        assert!(is_whole, "whole heads of each row");
        rows.width() / len.max(1)
    };
    // Where a head's key and value begin, and how far the next one's are.
    let (num_heads, keys, values, key_stride, value_stride) = match expanded {
        Expanded::Joined(joined) => {
            let values = joined.address() + (nope * size_of::<f32>()) as u64;
            let stride = nope + v_dim;
            (
                part(joined, stride),
                joined.address(),
                values,
                stride,
                stride,
            )
        }
        Expanded::Split(keys, values) => {
            let num_heads = part(values, v_dim);
            assert_eq!(keys.width(), num_heads * nope, "as many keys");
            assert_eq!(keys.num_rows(), num_rows, "as many rows");
            (num_heads, keys.address(), values.address(), nope, v_dim)
        }
    };
    let width = num_heads * shape.head_dim();
    k.reshape(gpu, num_rows, width)?;
    v.reshape(gpu, num_rows, width)?;
    let sources = SourceArgs {
        latent: latent.address(),
        keys,
        values,
        latent_width: latent.width() as u32,
        key_stride: key_stride as u32,
        value_stride: value_stride as u32,
        unused: 0,
    };
    let args = Args::new()
        .value(sources)
        .value(k.address())
        .value(v.address())
        .value(shape.args(num_rows, num_heads));
    // SAFETY: `latent_keys_values(from, k, v, shape)`; the shapes fit.
    unsafe { gpu.launch("latent_keys_values", grid_of_parts(num_rows, width), &args) }
}

/// Drops the padding of attention's result: `[num_rows, num_heads * head_dim]` becomes `[num_rows,
/// num_heads * v_head_dim]`.
///
/// # Panics
/// Unless rows are whole heads.
pub fn latent_values(
    gpu: &Gpu,
    shape: &LatentShape,
    rows: &mut Rows,
    scratch: &mut LatentScratch,
) -> Result<(), CudaError> {
    let (num_rows, head_dim) = (rows.num_rows(), shape.head_dim());
    assert!(rows.width().is_multiple_of(head_dim), "whole heads");
    let num_heads = rows.width() / head_dim;
    let width = num_heads * shape.v_head_dim;
    if width == rows.width() || num_rows == 0 {
        return rows.reshape(gpu, num_rows, width);
    }
    let packed = &mut scratch.0;
    packed.reshape(gpu, num_rows, width)?;
    let args = Args::new()
        .value(rows.address())
        .value(packed.address())
        .value(shape.args(num_rows, num_heads));
    // SAFETY: `latent_values(padded, out, shape)`; the shapes fit.
    unsafe { gpu.launch("latent_values", grid_of_parts(num_rows, width), &args) }?;
    // Back to where graphs expect them: the smaller shape fits the same buffer.
    rows.reshape(gpu, num_rows, width)?;
    let args = Args::new()
        .value(packed.address())
        .value(rows.address())
        .value((num_rows * width) as u32);
    // SAFETY: `copy_values(from, to, num_values)`; both have so many.
    unsafe { gpu.launch("copy_values", grid_of_parts(num_rows, width), &args) }
}
