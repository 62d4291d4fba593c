//! Products of packed weights and rows: projections, gated units, heads, experts, and rows of
//! embedding tables.
//!
//! `out[row][m] = sum over k of x[row][k] * w[m][k]` by the tensor cores, in bf16 with f32 sums.
//! The order of a sum follows from the weight's shape alone, so a row has the same bits beside any
//! other rows, in any number of them, and in every kernel here.

mod embed;
mod launch;
pub mod layout;
pub mod matrix;
pub mod pack;
pub mod plan;
#[cfg(test)]
mod testing;
#[cfg(all(test, feature = "emulator"))]
mod tests;
mod wide;
mod wide_plan;
pub mod workspace;

use ponder_kernels::Glu;

pub use embed::embed;
pub use launch::{ExpertTiles, glu_kind};
pub use layout::{Layout, M_BLOCK};
pub use matrix::Matrix;
pub use plan::Splits;
pub use wide::WIDE_TILE_ROWS;
pub use workspace::Workspace;

use crate::{Activations, Buffer, CudaError, Gpu, Rows};
use launch::{Epilogue, GluOut, Launch, LaunchJob, MAX_JOBS, may_share};

/// One product of a [`project`] call.
pub struct Job<'a> {
    pub matrix: &'a Matrix,
    /// `[out_features]`
    pub bias: Option<&'a Buffer<f32>>,
    /// `[num_rows, out_features]`
    pub out: &'a mut Rows,
    /// Add to `out` (a residual) instead of overwriting it.
    pub accumulate: bool,
}

/// `out = x w^T + bias`, or `out += x w^T + bias`, for matrices that multiply the same activations.
/// Those of one type share launches.
///
/// # Errors
/// For matrices of f32, which another kernel multiplies, and when the device fails.
///
/// # Panics
/// When shapes do not fit.
pub fn project(
    gpu: &Gpu,
    workspace: &Workspace,
    x: &Activations,
    jobs: &mut [Job<'_>],
) -> Result<(), CudaError> {
    for job in &mut *jobs {
        let shape = (x.num_rows(), job.matrix.out_features());
        check_inputs(x, job.matrix)?;
        check_bias(job.matrix, job.bias);
        if job.accumulate {
            assert_eq!(
                (job.out.num_rows(), job.out.width()),
                shape,
                "out is [rows, out]"
            );
        } else {
            job.out.reshape(gpu, shape.0, shape.1)?;
        }
    }
    let all: Vec<_> = jobs.iter().map(launch_job).collect();
    let mut is_done = vec![false; all.len()];
    while let Some(first) = is_done.iter().position(|is_done| !is_done) {
        let mut batch: Vec<LaunchJob<'_>> = Vec::with_capacity(MAX_JOBS);
        for (job, is_done) in all.iter().zip(&mut is_done).skip(first) {
            let may_join = |other: &LaunchJob<'_>| {
                let layouts = other.matrix.layout().zip(job.matrix.layout());
                layouts.is_some_and(|(a, b)| may_share(a, b, x.num_rows()))
            };
            if !*is_done && batch.len() < MAX_JOBS && batch.iter().all(may_join) {
                *is_done = true;
                batch.push(LaunchJob { ..*job });
            }
        }
        let launch = Launch {
            x,
            jobs: &batch,
            glu: None,
            experts: None,
        };
        // SAFETY: shapes were checked, outputs have them.
        unsafe { launch.run(gpu, workspace) }?;
    }
    Ok(())
}

fn launch_job<'a>(job: &'a Job<'_>) -> LaunchJob<'a> {
    LaunchJob {
        matrix: job.matrix,
        bias: job.bias,
        out: job.out.address(),
        epilogue: if job.accumulate {
            Epilogue::Add
        } else {
            Epilogue::Store
        },
    }
}

/// `out = act(x gate^T + bias) * (x up^T + bias)`: the bits of both projections followed by the
/// activation.
///
/// # Errors
/// As [`project`], and when the matrices are of different types.
///
/// # Panics
/// When shapes do not fit.
pub fn gate_up(
    gpu: &Gpu,
    workspace: &Workspace,
    x: &Activations,
    matrices: [&Matrix; 2],
    biases: [Option<&Buffer<f32>>; 2],
    glu: Glu,
    out: &mut Activations,
) -> Result<(), CudaError> {
    run_glu(gpu, workspace, (x, None), matrices, biases, glu, out)
}

/// [`gate_up`] of rows that are sorted by expert.
///
/// # Errors
/// As [`gate_up`].
///
/// # Panics
/// When shapes do not fit.
pub fn expert_gate_up(
    gpu: &Gpu,
    workspace: &Workspace,
    x: &Activations,
    tiles: ExpertTiles<'_>,
    matrices: [&Matrix; 2],
    glu: Glu,
    out: &mut Activations,
) -> Result<(), CudaError> {
    let biases = [None, None];
    run_glu(gpu, workspace, (x, Some(tiles)), matrices, biases, glu, out)
}

fn run_glu(
    gpu: &Gpu,
    workspace: &Workspace,
    (x, experts): (&Activations, Option<ExpertTiles<'_>>),
    matrices: [&Matrix; 2],
    biases: [Option<&Buffer<f32>>; 2],
    kind: Glu,
    out: &mut Activations,
) -> Result<(), CudaError> {
    let [gate, up] = matrices;
    for (matrix, bias) in matrices.into_iter().zip(biases) {
        check_inputs(x, matrix)?;
        check_bias(matrix, bias);
        check_tiles(matrix, experts);
    }
    assert_eq!(gate.out_features(), up.out_features(), "gate and up");
    assert_eq!(gate.num_experts(), up.num_experts(), "gate and up");
    if gate.layout() != up.layout() {
        let (gate, up) = (gate.dtype().name(), up.dtype().name());
        return Err(CudaError::Unsupported(format!(
            "a gated unit of {gate} and {up} matrices is no single launch"
        )));
    }
    out.reshape(gpu, x.num_rows(), gate.out_features())?;
    let job = |(matrix, bias)| LaunchJob {
        matrix,
        bias,
        out: 0,
        epilogue: Epilogue::Store,
    };
    let launch = Launch {
        x,
        jobs: &[(gate, biases[0]), (up, biases[1])].map(job),
        glu: Some(GluOut {
            kind,
            tiles: out.tiles(),
            row_stride: out.row_stride(),
            floats: out.floats(),
        }),
        experts,
    };
    // SAFETY: shapes were checked, `out` has them.
    unsafe { launch.run(gpu, workspace) }
}

/// Logits: `out = cap * tanh(x w^T * scale / cap)`, without a cap `x w^T * scale`.
///
/// # Errors
/// As [`project`].
///
/// # Panics
/// When shapes do not fit.
pub fn head(
    gpu: &Gpu,
    workspace: &Workspace,
    x: &Activations,
    matrix: &Matrix,
    scale: f32,
    cap: Option<f32>,
    out: &mut Rows,
) -> Result<(), CudaError> {
    check_inputs(x, matrix)?;
    out.reshape(gpu, x.num_rows(), matrix.out_features())?;
    let epilogue = Epilogue::Logits {
        scale,
        cap: cap.unwrap_or(0.0),
    };
    run_one(gpu, workspace, (x, None), matrix, epilogue, out)
}

/// `out = x w^T` of rows that are sorted by expert; rows of no tile keep what they were.
///
/// # Errors
/// As [`project`].
///
/// # Panics
/// When shapes do not fit.
pub fn expert_project(
    gpu: &Gpu,
    workspace: &Workspace,
    x: &Activations,
    tiles: ExpertTiles<'_>,
    matrix: &Matrix,
    out: &mut Rows,
) -> Result<(), CudaError> {
    check_inputs(x, matrix)?;
    check_tiles(matrix, Some(tiles));
    out.reshape(gpu, x.num_rows(), matrix.out_features())?;
    run_one(
        gpu,
        workspace,
        (x, Some(tiles)),
        matrix,
        Epilogue::Store,
        out,
    )
}

fn run_one(
    gpu: &Gpu,
    workspace: &Workspace,
    (x, experts): (&Activations, Option<ExpertTiles<'_>>),
    matrix: &Matrix,
    epilogue: Epilogue,
    out: &Rows,
) -> Result<(), CudaError> {
    let job = LaunchJob {
        matrix,
        bias: None,
        out: out.address(),
        epilogue,
    };
    let launch = Launch {
        x,
        jobs: &[job],
        glu: None,
        experts,
    };
    // SAFETY: the callers checked shapes and gave `out` its own.
    unsafe { launch.run(gpu, workspace) }
}

fn check_inputs(x: &Activations, matrix: &Matrix) -> Result<(), CudaError> {
    assert_eq!(x.width(), matrix.in_features(), "inner sizes differ");
    if matrix.is_float() {
        let name = matrix.dtype().name();
        return Err(CudaError::Unsupported(format!(
            "{name} matrices are not packed for the tensor cores"
        )));
    }
    Ok(())
}

fn check_bias(matrix: &Matrix, bias: Option<&Buffer<f32>>) {
    if let Some(bias) = bias {
        assert_eq!(bias.len(), matrix.out_features(), "one bias per output");
    }
}

fn check_tiles(matrix: &Matrix, experts: Option<ExpertTiles<'_>>) {
    match experts {
        None => assert_eq!(matrix.num_experts(), 1, "experts need tiles"),
        Some(tiles) => {
            assert!(tiles.table.len() >= 4 * tiles.max_tiles, "a table's tiles");
            let rows = tiles.tile_rows;
            assert!(rows > 0 && rows.is_multiple_of(8), "rows of a tile");
        }
    }
}
