//! Element by element.

use ponder_kernels::Glu;

use super::{FloatMatrix, Offsets, RowList, grid_of_parts, padded_quads, quads};
use crate::product::glu_kind;
use crate::{Activations, Args, CudaError, Gpu, Rows};

fn assert_same_shape(x: &Rows, h: &Rows) {
    let shape = (x.num_rows(), x.width());
    assert_eq!((h.num_rows(), h.width()), shape, "rows of the same shape");
}

/// `out[row] = scale * table[id]`, `[ids.len, in_features]`. The ids are below the table's
/// `out_features`.
pub fn embed_floats(
    gpu: &Gpu,
    table: &FloatMatrix,
    ids: RowList<'_>,
    scale: f32,
    out: &mut Rows,
) -> Result<(), CudaError> {
    let width = table.in_features();
    out.reshape(gpu, ids.len, width)?;
    let args = Args::new()
        .buffer(table.values())
        .value(ids.address())
        .value(out.address())
        .value(ids.len as u32)
        .value(width as u32)
        .value(scale);
    let grid = grid_of_parts(ids.len, quads(width));
    // SAFETY: `embed_floats(table, ids, out, num_rows, width, scale)`; the ids are the caller's.
    unsafe { gpu.launch("embed_floats", grid, &args) }
}

/// Rows as products read them.
pub fn quantise(gpu: &Gpu, x: &Rows, out: &mut Activations) -> Result<(), CudaError> {
    let (num_rows, width) = (x.num_rows(), x.width());
    out.reshape(gpu, num_rows, width)?;
    let args = Args::new()
        .value(x.address())
        .value(out.tiles())
        .value(out.floats())
        .value(num_rows as u32)
        .value(width as u32)
        .value(out.row_stride() as u32);
    let grid = grid_of_parts(num_rows, padded_quads(width));
    // SAFETY: `to_activations(x, tiles, floats, num_rows, width, row_stride)`; `out` has that
    // shape.
    unsafe { gpu.launch("to_activations", grid, &args) }
}

/// `gate = act(gate) * up`, and the same as products read it.
///
/// # Panics
/// When shapes do not fit.
pub fn activate(
    gpu: &Gpu,
    gate: &mut Rows,
    up: &Rows,
    glu: Glu,
    out: &mut Activations,
) -> Result<(), CudaError> {
    assert_same_shape(gate, up);
    let (num_rows, width) = (gate.num_rows(), gate.width());
    out.reshape(gpu, num_rows, width)?;
    let args = Args::new()
        .value(gate.address())
        .value(up.address())
        .value(out.tiles())
        .value(out.floats())
        .value(num_rows as u32)
        .value(width as u32)
        .value(out.row_stride() as u32)
        .value(glu_kind(glu));
    let grid = grid_of_parts(num_rows, padded_quads(width));
    // SAFETY: `activate_rows(gate, up, tiles, floats, num_rows, width, row_stride, glu)`; all have
    // that shape.
    unsafe { gpu.launch("activate_rows", grid, &args) }
}

/// `x += scale * h`
///
/// # Panics
/// When shapes do not fit.
pub fn add_scaled(gpu: &Gpu, x: &mut Rows, h: &Rows, scale: f32) -> Result<(), CudaError> {
    assert_same_shape(x, h);
    let num_values = x.num_rows() * x.width();
    let grid = grid_of_parts(1, quads(num_values));
    let args = Args::new()
        .value(x.address())
        .value(h.address())
        .value(u32::try_from(num_values).expect("fewer than 2^32 values"))
        .value(scale);
    // SAFETY: `add_scaled(x, h, num_values, scale)`; both have so many.
    unsafe { gpu.launch("add_scaled", grid, &args) }
}

/// `out += scale * sigmoid(weight) * h`, one weight a row (`[num_rows, 1]`).
///
/// # Panics
/// When shapes do not fit.
pub fn add_weighted(
    gpu: &Gpu,
    h: &Rows,
    weights: &Rows,
    scale: f32,
    out: &mut Rows,
) -> Result<(), CudaError> {
    assert_same_shape(out, h);
    let (num_rows, width) = (out.num_rows(), out.width());
    assert_eq!((weights.num_rows(), weights.width()), (num_rows, 1));
    let args = Args::new()
        .value(out.address())
        .value(h.address())
        .value(weights.address())
        .value(num_rows as u32)
        .value(width as u32)
        .value(scale);
    let grid = grid_of_parts(num_rows, quads(width));
    // SAFETY: `add_weighted(out, h, weights, num_rows, width, scale)`; the shapes fit.
    unsafe { gpu.launch("add_weighted", grid, &args) }
}

/// Adds to each row the offset that it has.
///
/// # Panics
/// Unless there is an offset, or none, for each row.
pub fn add_offsets(gpu: &Gpu, x: &mut Rows, offsets: Offsets<'_>) -> Result<(), CudaError> {
    let (num_rows, width) = (x.num_rows(), x.width());
    assert_eq!(offsets.of_row.len, num_rows, "an offset or none a row");
    let args = Args::new()
        .value(x.address())
        .buffer(offsets.values)
        .value(offsets.of_row.address())
        .value(num_rows as u32)
        .value(width as u32);
    let grid = grid_of_parts(num_rows, quads(width));
    // SAFETY: `add_offsets(x, offsets, offset_of_row, num_rows, width)`; the table is the caller's.
    unsafe { gpu.launch("add_offsets", grid, &args) }
}

/// `x = cap * tanh(factor * x / cap)`; without a cap `x *= factor`.
pub fn transform_logits(
    gpu: &Gpu,
    x: &mut Rows,
    factor: f32,
    softcap: Option<f32>,
) -> Result<(), CudaError> {
    let num_values = x.num_rows() * x.width();
    let args = Args::new()
        .value(x.address())
        .value(u32::try_from(num_values).expect("fewer than 2^32 values"))
        .value(factor)
        .value(softcap.unwrap_or(0.0));
    // SAFETY: `transform_logits(x, num_values, factor, cap)`; there are so many.
    unsafe { gpu.launch("transform_logits", grid_of_parts(1, num_values), &args) }
}

/// Keeps some rows, in place. `kept` ascends strictly and names rows of `x`.
///
/// # Panics
/// When more rows are to be kept than there are.
pub fn keep_rows(gpu: &Gpu, x: &mut Rows, kept: RowList<'_>) -> Result<(), CudaError> {
    assert!(kept.len <= x.num_rows(), "kept rows are rows");
    let width = x.width();
    let args = Args::new()
        .value(x.address())
        .value(kept.address())
        .value(kept.len as u32)
        .value(width as u32);
    x.truncate(kept.len);
    if kept.len == 0 {
        return Ok(());
    }
    // Few threads a block: a row is cut among more multiprocessors.
    let mut grid = grid_of_parts(1, quads(width));
    grid.threads = 32;
    grid.blocks[0] = quads(width).div_ceil(32) as u32;
    // SAFETY: `keep_rows(x, kept, num_kept, width)`; that the list ascends is the caller's.
    unsafe { gpu.launch("keep_rows", grid, &args) }
}
