//! Products of many rows give the bits of those of few rows, whatever the kernel.

#[path = "wide_gated.rs"]
mod gated_units;

use ponder_kernels::{DType, Glu};

use super::*;
use crate::product::launch::{Epilogue, GluOut, LaunchJob};
use crate::product::layout::TYPES;
use crate::product::testing::{Random, activations, random_blocks, read_rows, values_of};
use crate::product::{ExpertTiles, Job, Matrix, gate_up, head, project};
use crate::{Activations, Buffer, Rows};

const IN_FEATURES: usize = 768;
const NUM_ROWS: usize = 300;
/// Fewer than there are items: blocks take several, and their rings go on.
const NUM_BLOCKS: usize = 2;

fn packed_types() -> impl Iterator<Item = DType> {
    let types = TYPES.into_iter();
    types.filter(|dtype| !matches!(dtype, DType::F32 | DType::F16))
}

fn matrix(gpu: &Gpu, dtype: DType, shape: [usize; 3], seed: u64) -> Matrix {
    let bytes = random_blocks(dtype, shape.iter().product(), seed);
    Matrix::new(gpu, dtype, &bytes, shape).unwrap()
}

fn random_values(len: usize, seed: u64) -> Vec<f32> {
    let mut random = Random::new(seed);
    (0..len).map(|_| random.unit()).collect()
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|x| x.to_bits()).collect()
}

/// With room for everything in these tests.
fn workspace(gpu: &Gpu, matrices: &[&Matrix]) -> Workspace {
    let mut workspace = Workspace::new();
    workspace.reserve_rows(gpu, matrices, 1024).unwrap();
    workspace
}

/// Rows of values, and results of the kernels for few rows.
struct FewRows<'a> {
    gpu: &'a Gpu,
    x: &'a [f32],
    width: usize,
}

impl FewRows<'_> {
    fn run(&self, mut product: impl FnMut(&Activations) -> Vec<f32>) -> Vec<f32> {
        let chunks = self.x.chunks(MAX_TILE_ROWS * self.width);
        chunks
            .flat_map(|rows| product(&activations(self.gpu, rows, self.width)))
            .collect()
    }
}

fn store(matrix: &Matrix, out: u64) -> LaunchJob<'_> {
    LaunchJob {
        matrix,
        bias: None,
        out,
        epilogue: Epilogue::Store,
    }
}

/// Runs a launch with a kernel of choice; false where it cannot take it.
fn run_with(gpu: &Gpu, launch: &Launch<'_>, workspace: &Workspace, kind: Kind) -> bool {
    let jobs = jobs(launch);
    let Some(mut plan) = shape(launch, &jobs).plan_with(kind, gpu.properties()) else {
        return false;
    };
    assert!(
        workspace.has_room(plan.num_sums, plan.num_counters),
        "{kind:?}"
    );
    plan.num_blocks = plan.num_blocks.min(NUM_BLOCKS);
    // SAFETY: the tests give outputs of the right shapes.
    unsafe { run(gpu, launch, workspace, &plan) }.unwrap();
    true
}

/// One matrix without frills, by all kernels.
fn check_type(dtype: DType, num_rows: usize, out_features: usize, in_features: usize) {
    let gpu = Gpu::for_tests();
    let x_values = random_values(num_rows * in_features, 1);
    let matrix = matrix(&gpu, dtype, [1, out_features, in_features], 2);
    let workspace = workspace(&gpu, &[&matrix]);
    let few = FewRows {
        gpu: &gpu,
        x: &x_values,
        width: in_features,
    };
    let mut out = Rows::default();
    let expected = few.run(|x| {
        let job = Job {
            matrix: &matrix,
            bias: None,
            out: &mut out,
            accumulate: false,
        };
        project(&gpu, &workspace, x, &mut [job]).unwrap();
        read_rows(&gpu, &out)
    });
    let x = activations(&gpu, &x_values, in_features);
    for kind in Kind::ALL {
        let mut out = Rows::default();
        out.reshape(&gpu, num_rows, out_features).unwrap();
        let launch = Launch {
            x: &x,
            jobs: &[store(&matrix, out.address())],
            glu: None,
            experts: None,
        };
        assert!(run_with(&gpu, &launch, &workspace, kind));
        let out = read_rows(&gpu, &out);
        assert!(bits(&out) == bits(&expected), "{dtype:?} {kind:?}");
    }
}

#[test]
fn every_type_and_kernel_gives_the_bits_of_few_rows() {
    for dtype in packed_types() {
        check_type(dtype, 130, 136, IN_FEATURES);
    }
}

#[test]
fn every_kernel_gives_them_for_shapes_that_fill_no_tile() {
    // One part, and one that is shorter than the others; a last tile of one row, and of one block
    // of outputs.
    for (num_rows, out_features, in_features) in [(65, 64, 80), (257, 330, 1100), (300, 1, 256)] {
        check_type(DType::BF16, num_rows, out_features, in_features);
    }
}

#[test]
fn jobs_share_a_launch_and_end_as_they_are_told() {
    let gpu = Gpu::for_tests();
    let x_values = random_values(NUM_ROWS * IN_FEATURES, 1);
    let sizes = [200, 64, 72];
    let matrices =
        [0, 1, 2].map(|i| matrix(&gpu, DType::Q4K, [1, sizes[i], IN_FEATURES], i as u64));
    let biases = [0, 1].map(|i| gpu.upload(&random_values(sizes[i], 5)).unwrap());
    let biases: [Option<&Buffer<f32>>; 3] = [Some(&biases[0]), Some(&biases[1]), None];
    let accumulates = [true, false, true];
    let workspace = workspace(&gpu, &matrices.each_ref());
    let before: [Vec<f32>; 3] = sizes.map(|size| random_values(NUM_ROWS * size, 9));
    let start = |index: usize, first: usize, num_rows: usize| {
        let mut rows = Rows::default();
        rows.reshape(&gpu, num_rows, sizes[index]).unwrap();
        let values = &before[index][first * sizes[index]..][..num_rows * sizes[index]];
        gpu.write(rows.buffer_mut().unwrap(), 0, values).unwrap();
        rows
    };
    let mut expected: [Vec<f32>; 3] = Default::default();
    for first in (0..NUM_ROWS).step_by(MAX_TILE_ROWS) {
        let num_rows = MAX_TILE_ROWS.min(NUM_ROWS - first);
        let values = &x_values[first * IN_FEATURES..][..num_rows * IN_FEATURES];
        let x = activations(&gpu, values, IN_FEATURES);
        for index in 0..3 {
            let mut out = start(index, first, num_rows);
            let job = Job {
                matrix: &matrices[index],
                bias: biases[index],
                out: &mut out,
                accumulate: accumulates[index],
            };
            project(&gpu, &workspace, &x, &mut [job]).unwrap();
            expected[index].extend(read_rows(&gpu, &out));
        }
    }
    let x = activations(&gpu, &x_values, IN_FEATURES);
    for kind in Kind::ALL {
        let outs = [0, 1, 2].map(|index| start(index, 0, NUM_ROWS));
        let jobs = [0, 1, 2].map(|index| LaunchJob {
            bias: biases[index],
            epilogue: match accumulates[index] {
                true => Epilogue::Add,
                false => Epilogue::Store,
            },
            ..store(&matrices[index], outs[index].address())
        });
        let launch = Launch {
            x: &x,
            jobs: &jobs,
            glu: None,
            experts: None,
        };
        assert!(run_with(&gpu, &launch, &workspace, kind));
        for (out, expected) in outs.iter().zip(&expected) {
            assert!(bits(&read_rows(&gpu, out)) == bits(expected), "{kind:?}");
        }
    }
}

#[test]
fn logits_are_scaled_and_capped() {
    let gpu = Gpu::for_tests();
    let (num_rows, out_features) = (140, 150);
    let x_values = random_values(num_rows * IN_FEATURES, 1);
    let matrix = matrix(&gpu, DType::Q6K, [1, out_features, IN_FEATURES], 3);
    let workspace = workspace(&gpu, &[&matrix]);
    for cap in [None, Some(0.5)] {
        let few = FewRows {
            gpu: &gpu,
            x: &x_values,
            width: IN_FEATURES,
        };
        let mut out = Rows::default();
        let expected = few.run(|x| {
            head(&gpu, &workspace, x, &matrix, 0.3, cap, &mut out).unwrap();
            read_rows(&gpu, &out)
        });
        let x = activations(&gpu, &x_values, IN_FEATURES);
        for kind in Kind::ALL {
            let mut out = Rows::default();
            out.reshape(&gpu, num_rows, out_features).unwrap();
            let job = LaunchJob {
                epilogue: Epilogue::Logits {
                    scale: 0.3,
                    cap: cap.unwrap_or(0.0),
                },
                ..store(&matrix, out.address())
            };
            let launch = Launch {
                x: &x,
                jobs: &[job],
                glu: None,
                experts: None,
            };
            assert!(run_with(&gpu, &launch, &workspace, kind));
            assert!(
                bits(&read_rows(&gpu, &out)) == bits(&expected),
                "{kind:?} {cap:?}"
            );
        }
    }
}
