//! All kernels on a real device: the bits of those for few rows, and times. Ignored where there is
//! none: `cargo test -p ponder-kernels-cuda --release --features emulator wide_products_on_a_device
//! -- --ignored --nocapture`

use std::time::Instant;

use ponder_kernels::{DType, Glu};

use super::*;
use crate::product::Matrix;
use crate::product::launch::{Epilogue, GluOut, LaunchJob};
use crate::product::testing::{activations, random_blocks, read_rows, values_of};
use crate::{Activations, Rows};

const TYPES: [DType; 4] = [DType::BF16, DType::Q4K, DType::Q6K, DType::Q8_0];
const NUM_ROWS: [usize; 5] = [64, 128, 256, 512, 2048];
/// Where parts of more rows than this are not spread: too much would be written.
const MAX_SPREAD_ROWS: usize = 512;
const NUM_RUNS: u32 = 10;

/// Matrices of a model of eight billion weights: outputs, inputs, whether they are a gated unit.
const SHAPES: [(&str, &[usize], usize, bool); 4] = [
    ("q, k, v", &[4096, 1024, 1024], 4096, false),
    ("o", &[4096], 4096, false),
    ("gate, up", &[14336, 14336], 4096, true),
    ("down", &[4096], 14336, false),
];

/// Where the products of one shape go.
struct Outputs {
    rows: Vec<Rows>,
    unit: Activations,
}

impl Outputs {
    fn new(gpu: &Gpu, matrices: &[Matrix], num_rows: usize) -> Self {
        let mut rows: Vec<Rows> = matrices.iter().map(|_| Rows::default()).collect();
        for (rows, matrix) in rows.iter_mut().zip(matrices) {
            rows.reshape(gpu, num_rows, matrix.out_features()).unwrap();
        }
        let mut unit = Activations::new(false);
        unit.reshape(gpu, num_rows, matrices[0].out_features())
            .unwrap();
        Self { rows, unit }
    }

    /// Bits of all results, row by row.
    fn bits(&mut self, gpu: &Gpu, is_pair: bool) -> Vec<Vec<u32>> {
        let of_row = |row: &[f32]| row.iter().map(|x| x.to_bits()).collect();
        if is_pair {
            let width = self.unit.width();
            return values_of(gpu, &mut self.unit)
                .chunks_exact(width)
                .map(of_row)
                .collect();
        }
        let outputs = self.rows.iter().map(|rows| {
            let values = read_rows(gpu, rows);
            let rows: Vec<Vec<u32>> = values.chunks_exact(rows.width()).map(of_row).collect();
            rows
        });
        let add = |mut all: Vec<Vec<u32>>, other: Vec<Vec<u32>>| {
            for (row, more) in all.iter_mut().zip(other) {
                row.extend(more);
            }
            all
        };
        outputs.reduce(add).expect("there are matrices")
    }
}

/// One launch of all matrices; with the kernels for few rows where `kind` is none. Microseconds, or
/// none where the kernel cannot.
fn run_all(
    gpu: &Gpu,
    x: &Activations,
    matrices: &[Matrix],
    outputs: &Outputs,
    workspace: &Workspace,
    kind: Option<Kind>,
    is_pair: bool,
) -> Option<f64> {
    let jobs: Vec<LaunchJob<'_>> = matrices
        .iter()
        .zip(&outputs.rows)
        .map(|(matrix, rows)| LaunchJob {
            matrix,
            bias: None,
            out: rows.address(),
            epilogue: Epilogue::Store,
        })
        .collect();
    let launch = Launch {
        x,
        jobs: &jobs,
        glu: is_pair.then(|| GluOut {
            kind: Glu::Silu,
            tiles: outputs.unit.tiles(),
            row_stride: outputs.unit.row_stride(),
            floats: 0,
        }),
        experts: None,
    };
    let wide_jobs = super::jobs(&launch);
    let plan = match kind {
        None => None,
        Some(kind) => Some(shape(&launch, &wide_jobs).plan_with(kind, gpu.properties())?),
    };
    let once = || match &plan {
        // SAFETY: outputs have the rows and widths of the launch.
        None => unsafe { launch.run_tiles(gpu, workspace) }.unwrap(),
        Some(plan) => {
            assert!(workspace.has_room(plan.num_sums, plan.num_counters));
            // SAFETY: as above.
            unsafe { run(gpu, &launch, workspace, plan) }.unwrap();
        }
    };
    once();
    gpu.synchronize().unwrap();
    let start = Instant::now();
    for _ in 0..NUM_RUNS {
        once();
    }
    gpu.synchronize().unwrap();
    Some(start.elapsed().as_secs_f64() * 1e6 / f64::from(NUM_RUNS))
}

/// How many kernels gave other bits than those for few rows.
fn check_shape(gpu: &Gpu, dtype: DType, shape_idx: usize) -> usize {
    let (name, outs, width, is_pair) = SHAPES[shape_idx];
    let matrix = |out: &usize| {
        let bytes = random_blocks(dtype, out * width, *out as u64);
        Matrix::new(gpu, dtype, &bytes, [1, *out, width]).unwrap()
    };
    let matrices: Vec<Matrix> = outs.iter().map(matrix).collect();
    let mut workspace = Workspace::new();
    let all: Vec<&Matrix> = matrices.iter().collect();
    workspace.reserve_rows(gpu, &all, MAX_SPREAD_ROWS).unwrap();
    let values = random_blocks(DType::BF16, NUM_ROWS[4] * width, 1);
    let values: Vec<f32> = values
        .as_chunks::<2>()
        .0
        .iter()
        .map(|bytes| half::bf16::from_le_bytes(*bytes).to_f32())
        .collect();
    let weights: usize = outs.iter().map(|out| out * width).sum();
    let (mut expected, mut num_wrong) = (Vec::new(), 0);
    for num_rows in NUM_ROWS {
        let x = activations(gpu, &values[..num_rows * width], width);
        let kinds = Kind::ALL.into_iter().filter(|kind| {
            num_rows > MAX_TILE_ROWS && (!kind.is_spread() || num_rows <= MAX_SPREAD_ROWS)
        });
        let kinds = std::iter::once(None).chain(kinds.map(Some));
        for kind in kinds {
            let mut outputs = Outputs::new(gpu, &matrices, num_rows);
            let time = run_all(gpu, &x, &matrices, &outputs, &workspace, kind, is_pair);
            let Some(time) = time else { continue };
            let flops = 2.0 * (weights * num_rows) as f64 / time / 1e6;
            let bits = outputs.bits(gpu, is_pair);
            if expected.is_empty() {
                expected.clone_from(&bits);
            }
            let wrong = bits.iter().zip(&expected).position(|(a, b)| a != b);
            num_wrong += usize::from(wrong.is_some());
            let kind = kind.map_or("few rows".to_owned(), |kind| format!("{kind:?}"));
            println!(
                "{} {name:9} {num_rows:5} rows {kind:9} {time:8.1} us {flops:6.0} TFLOP/s{}",
                dtype.name(),
                wrong.map_or(String::new(), |row| format!(", WRONG from row {row}"))
            );
        }
    }
    num_wrong
}

#[test]
#[ignore = "needs a device with wgmma"]
fn wide_products_on_a_device() {
    let gpu = Gpu::open(0, None).unwrap();
    let mut num_wrong = 0;
    for dtype in TYPES {
        for index in 0..SHAPES.len() {
            num_wrong += check_shape(&gpu, dtype, index);
        }
    }
    assert_eq!(
        num_wrong, 0,
        "kernels with other bits than those for few rows"
    );
}
