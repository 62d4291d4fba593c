//! RMS norms. All of them are one kernel: the same row gives the same bits, whatever becomes of it.

use super::{Offsets, RowList, quads};
use crate::{Activations, Args, Buffer, CudaError, Gpu, Grid, Plain, Rows};

/// Most threads of a row.
const MAX_THREADS: usize = 512;
const WARP: usize = 32;
/// Quads that a thread holds in registers while there are threads enough.
const NUM_HELD: usize = 4;

/// `x / sqrt(mean(x^2) + eps) * weight`
#[derive(Clone, Copy)]
pub struct Norm<'a> {
    /// `[width]`
    pub weight: &'a Buffer<f32>,
    pub eps: f32,
}

/// As `NormArgs` in `rows.cu`.
#[derive(Clone, Copy, Default)]
#[repr(C)]
struct NormArgs {
    x: u64,
    rows: u64,
    weight: u64,
    tiles: u64,
    out: u64,
    offsets: u64,
    offset_of_row: u64,
    x_stride: u32,
    width: u32,
    row_stride: u32,
    eps: f32,
}

// SAFETY: numbers without padding between them.
unsafe impl Plain for NormArgs {}

impl NormArgs {
    /// Of all rows, written nowhere yet.
    fn new(x: &Rows, norm: Norm<'_>) -> Self {
        let width = norm.weight.len();
        assert!((1..=x.width()).contains(&width), "a weight for each value");
        Self {
            x: x.address(),
            weight: norm.weight.address(),
            x_stride: x.width() as u32,
            width: width as u32,
            eps: norm.eps,
            ..Self::default()
        }
    }

    /// With [`Activations`] of `num_rows` as the target.
    fn into_activations(
        self,
        gpu: &Gpu,
        num_rows: usize,
        out: &mut Activations,
    ) -> Result<Self, CudaError> {
        out.reshape(gpu, num_rows, self.width as usize)?;
        Ok(Self {
            tiles: out.tiles(),
            out: out.floats(),
            row_stride: out.row_stride() as u32,
            ..self
        })
    }

    fn launch(self, gpu: &Gpu, num_rows: usize) -> Result<(), CudaError> {
        let grid = grid(num_rows, self.width as usize);
        // SAFETY: `new` and its callers checked the shapes of what lives in the buffers behind
        // these addresses.
        unsafe { gpu.launch("norm_rows", grid, &Args::new().value(self)) }
    }
}

/// A block a row. The number of threads, and with it the order of the sum, follows from the width
/// alone.
fn grid(num_rows: usize, width: usize) -> Grid {
    let threads = match quads(width) {
        quads if quads <= 256 * NUM_HELD => quads.next_multiple_of(WARP).min(256),
        _ => MAX_THREADS,
    };
    Grid {
        blocks: [num_rows as u32, 1, 1],
        threads: threads as u32,
        shared_bytes: 0,
    }
}

/// Rows, normed, as the next product reads them.
///
/// # Panics
/// Unless there is a weight for each value.
pub fn norm(gpu: &Gpu, x: &Rows, norm: Norm<'_>, out: &mut Activations) -> Result<(), CudaError> {
    final_norm(gpu, x, norm, None, out)
}

/// [`norm`], with offsets added after it. Rows without one keep the bits of [`norm`].
///
/// # Panics
/// When lengths do not fit.
pub fn final_norm(
    gpu: &Gpu,
    x: &Rows,
    norm: Norm<'_>,
    offsets: Option<Offsets<'_>>,
    out: &mut Activations,
) -> Result<(), CudaError> {
    assert_eq!(norm.weight.len(), x.width(), "a weight for each value");
    let mut args = NormArgs::new(x, norm).into_activations(gpu, x.num_rows(), out)?;
    if let Some(offsets) = offsets {
        assert_eq!(offsets.of_row.len, x.num_rows(), "an offset or none a row");
        args.offsets = offsets.values.address();
        args.offset_of_row = offsets.of_row.address();
    }
    args.launch(gpu, x.num_rows())
}

/// Norms the first `norm.weight.len()` values of each row.
pub(super) fn norm_starts(
    gpu: &Gpu,
    x: &Rows,
    norm: Norm<'_>,
    out: &mut Activations,
) -> Result<(), CudaError> {
    let args = NormArgs::new(x, norm).into_activations(gpu, x.num_rows(), out)?;
    args.launch(gpu, x.num_rows())
}

/// The norms of some rows of `x`, one after the other.
pub(super) fn norm_listed(
    gpu: &Gpu,
    x: &Rows,
    rows: RowList<'_>,
    norm: Norm<'_>,
    out: &mut Rows,
) -> Result<(), CudaError> {
    assert_eq!(norm.weight.len(), x.width(), "a weight for each value");
    out.reshape(gpu, rows.len, x.width())?;
    let args = NormArgs {
        rows: rows.address(),
        out: out.address(),
        ..NormArgs::new(x, norm)
    };
    args.launch(gpu, rows.len)
}

/// Norms rows in place.
///
/// # Panics
/// Unless there is a weight for each value.
pub fn norm_rows(gpu: &Gpu, x: &mut Rows, norm: Norm<'_>) -> Result<(), CudaError> {
    assert_eq!(norm.weight.len(), x.width(), "a weight for each value");
    let args = NormArgs {
        out: x.address(),
        ..NormArgs::new(x, norm)
    };
    args.launch(gpu, x.num_rows())
}

/// The norm of one row, on the host: `None` when there is no such row. Waits for the device.
///
/// # Panics
/// Unless there is a weight for each value.
pub fn read_normed(
    gpu: &Gpu,
    x: &Rows,
    row: usize,
    norm: Norm<'_>,
) -> Result<Option<Vec<f32>>, CudaError> {
    if row >= x.num_rows() {
        return Ok(None);
    }
    let width = x.width();
    assert_eq!(norm.weight.len(), width, "a weight for each value");
    let normed = gpu.zeros::<f32>(width)?;
    let args = NormArgs {
        x: x.address() + (row * width * size_of::<f32>()) as u64,
        out: normed.address(),
        ..NormArgs::new(x, norm)
    };
    args.launch(gpu, 1)?;
    let mut values = vec![0.0; width];
    gpu.read(&normed, 0, &mut values)?;
    Ok(Some(values))
}

/// `x += norm(h)`
///
/// # Panics
/// When shapes do not fit.
pub fn add_normed(gpu: &Gpu, x: &mut Rows, h: &Rows, norm: Norm<'_>) -> Result<(), CudaError> {
    let (num_rows, width) = (x.num_rows(), x.width());
    assert_eq!(
        (h.num_rows(), h.width()),
        (num_rows, width),
        "h is shaped as x"
    );
    assert_eq!(norm.weight.len(), width, "a weight for each value");
    let args = Args::new()
        .value(x.address())
        .value(h.address())
        .buffer(norm.weight)
        .value(width as u32)
        .value(norm.eps);
    // SAFETY: `add_normed(x, h, weight, width, eps)`; the shapes fit.
    unsafe { gpu.launch("add_normed", grid(num_rows, width), &args) }
}
