//! Products on the emulated device, against sums in f64 and against one another.

mod experts;
mod results;

use ponder_kernels::DType;

use super::launch::{Epilogue, Launch, LaunchJob};
use super::layout::TYPES;
use super::testing::{
    Random, activations, random_blocks, read_rows, rounded, rounded_weights, same_value,
};
use super::{Job, Matrix, Workspace, embed, project};
use crate::{Gpu, Rows};

/// Every number of rows that another tile, or another way to add parts, begins at.
const NUM_ROWS: [usize; 8] = [1, 2, 7, 8, 9, 17, 64, 65];

fn packed_types() -> impl Iterator<Item = DType> {
    TYPES.into_iter().filter(|dtype| *dtype != DType::F32)
}

fn random_rows(num_rows: usize, width: usize, seed: u64) -> Vec<f32> {
    let mut random = Random::new(seed);
    (0..num_rows * width).map(|_| random.unit()).collect()
}

/// A matrix, its weights as f32, and a workspace with room for its products.
struct Case {
    gpu: Gpu,
    matrix: Matrix,
    weights: Vec<f32>,
    workspace: Workspace,
}

impl Case {
    fn new(dtype: DType, out_features: usize, in_features: usize, seed: u64) -> Self {
        let gpu = Gpu::for_tests();
        let count = out_features * in_features;
        let data = random_blocks(dtype, count, seed);
        let matrix = Matrix::new(&gpu, dtype, &data, [1, out_features, in_features]).unwrap();
        let mut workspace = Workspace::new();
        workspace.reserve(&gpu, &[&matrix]).unwrap();
        Self {
            matrix,
            weights: rounded_weights(dtype, &data, count),
            workspace,
            gpu,
        }
    }

    fn project(&self, x: &[f32]) -> Vec<f32> {
        self.project_in(x, &self.workspace)
    }

    fn project_in(&self, x: &[f32], workspace: &Workspace) -> Vec<f32> {
        let x = activations(&self.gpu, x, self.matrix.in_features());
        let mut out = Rows::default();
        let job = Job {
            matrix: &self.matrix,
            bias: None,
            out: &mut out,
            accumulate: false,
        };
        project(&self.gpu, workspace, &x, &mut [job]).unwrap();
        read_rows(&self.gpu, &out)
    }

    fn job(&self, out: u64) -> LaunchJob<'_> {
        LaunchJob {
            matrix: &self.matrix,
            bias: None,
            out,
            epilogue: Epilogue::Store,
        }
    }

    /// By the kernels of every device, whatever this one has beside them.
    fn project_in_tiles(&self, x: &[f32]) -> Vec<f32> {
        let x = activations(&self.gpu, x, self.matrix.in_features());
        let mut out = Rows::default();
        out.reshape(&self.gpu, x.num_rows(), self.matrix.out_features())
            .unwrap();
        let launch = Launch {
            x: &x,
            jobs: &[self.job(out.address())],
            glu: None,
            experts: None,
        };
        // SAFETY: `out` has the product's shape.
        unsafe { launch.run_tiles(&self.gpu, &self.workspace) }.unwrap();
        read_rows(&self.gpu, &out)
    }

    /// Holds results against sums in f64: each of the additions in f32 may be off by half a unit of
    /// the largest partial sum.
    fn check(&self, x: &[f32], out: &[f32]) {
        let (width, outs) = (self.matrix.in_features(), self.matrix.out_features());
        for (x, out) in x.chunks_exact(width).zip(out.chunks_exact(outs)) {
            for (weights, out) in self.weights.chunks_exact(width).zip(out) {
                let (mut sum, mut size) = (0.0, 0.0);
                for (x, weight) in x.iter().zip(weights) {
                    let product = f64::from(rounded(*x)) * f64::from(*weight);
                    sum += product;
                    size += product.abs();
                }
                let bound = width as f64 * f64::from(f32::EPSILON) / 2.0 * size;
                let error = (f64::from(*out) - sum).abs();
                assert!(
                    error <= bound,
                    "{out} for {sum}: {error} is more than {bound}"
                );
            }
        }
    }
}

/// A width of whole blocks near `width`.
fn width_of(dtype: DType, width: usize) -> usize {
    width.next_multiple_of(dtype.block_size().max(32))
}

#[test]
fn products_of_every_type_and_shape_are_right() {
    for dtype in packed_types() {
        for (out_features, width) in [(1, 32), (33, 96), (64, 576), (100, 32), (100, 576)] {
            let case = Case::new(dtype, out_features, width_of(dtype, width), 3);
            let x = random_rows(3, case.matrix.in_features(), 5);
            case.check(&x, &case.project(&x));
        }
    }
}

/// The law of rows, over all tiles, with parts computed apart and one after the other.
#[test]
fn a_row_has_the_same_bits_among_any_number_of_rows() {
    for dtype in packed_types() {
        let case = Case::new(dtype, 100, width_of(dtype, 576), 11);
        assert!(case.matrix.splits().num_parts > 1);
        let width = case.matrix.in_features();
        let x = random_rows(65, width, 13);
        let all = case.project_in_tiles(&x);
        case.check(&x, &all);
        for num_rows in NUM_ROWS {
            let some = case.project(&x[..num_rows * width]);
            assert!(some == all[..some.len()], "{dtype:?}: {num_rows} rows");
            let last = case.project(&x[(65 - num_rows) * width..]);
            assert!(
                last == all[all.len() - last.len()..],
                "{dtype:?}: {num_rows} last rows"
            );
        }
        let serial = case.project_in(&x[..9 * width], &Workspace::new());
        assert!(
            serial == all[..serial.len()],
            "{dtype:?}: without a workspace"
        );
    }
}

/// Three types of codes with many parts, where a block adds up what many left.
#[test]
fn many_parts_are_added_in_order() {
    for dtype in [DType::BF16, DType::Q8_0, DType::Q4K] {
        let case = Case::new(dtype, 65, 2304, 17);
        assert_eq!(case.matrix.splits().num_parts, 9);
        let x = random_rows(5, 2304, 19);
        let apart = case.project(&x);
        case.check(&x, &apart);
        assert!(apart == case.project_in(&x, &Workspace::new()));
    }
}

#[test]
fn embedded_rows_are_those_of_the_table() {
    for dtype in TYPES {
        let gpu = Gpu::for_tests();
        let (tokens, width) = (130, width_of(dtype, 288));
        let data = random_blocks(dtype, tokens * width, 23);
        let table = Matrix::new(&gpu, dtype, &data, [1, tokens, width]).unwrap();
        let mut values = vec![0.0; tokens * width];
        ponder_kernels::reference::dequantize(dtype, &data, &mut values);
        let ids: Vec<u32> = (0..131).collect();
        let mut out = Rows::default();
        let id_buffer = gpu.upload(&ids).unwrap();
        embed(&gpu, &table, &id_buffer, ids.len(), 3.0, &mut out).unwrap();
        let found = read_rows(&gpu, &out);
        for (index, found) in found.iter().enumerate() {
            let wanted = match values.get(index) {
                Some(value) if dtype == DType::F32 => value * 3.0,
                Some(value) => rounded(*value) * 3.0,
                // No such token.
                None => 0.0,
            };
            assert!(
                same_value(*found, wanted),
                "{dtype:?} {index}: {found} for {wanted}"
            );
        }
    }
}

#[test]
fn matrices_that_do_not_fit_are_errors() {
    let gpu = Gpu::for_tests();
    let data = vec![0; 144];
    for shape in [[1, 1, 512], [2, 1, 256], [1, 1, 100], [0, 1, 256]] {
        let result = Matrix::new(&gpu, DType::Q4K, &data, shape);
        assert!(matches!(result, Err(crate::CudaError::Unsupported(_))));
    }
    assert!(Matrix::new(&gpu, DType::Q4K, &data, [1, 1, 256]).is_ok());
}

#[test]
fn types_without_kernels_are_errors() {
    let gpu = Gpu::for_tests();
    for dtype in DType::ALL {
        let data = vec![0; dtype.byte_count(256).unwrap()];
        let result = Matrix::new(&gpu, dtype, &data, [1, 1, 256]);
        match (TYPES.contains(&dtype), result) {
            (true, Ok(_)) => {}
            (false, Err(crate::CudaError::Unsupported(told))) => {
                assert!(told.contains(dtype.name()), "{told}");
            }
            (_, result) => panic!("{dtype:?}: {:?}", result.map(|matrix| matrix.nbytes())),
        }
    }
}
