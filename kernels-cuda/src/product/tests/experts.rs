//! Rows that are sorted by expert.

use ponder_kernels::{DType, Glu};

use super::super::launch::{Epilogue, Launch, LaunchJob};
use super::super::testing::{activations, random_blocks, read_rows, values_of};
use super::super::{
    ExpertTiles, Job, Matrix, Workspace, expert_gate_up, expert_project, gate_up, project,
};
use super::random_rows;
use crate::{Activations, Gpu, Rows};

const EXPERTS: usize = 3;
const OUT: usize = 100;
const WIDTH: usize = 512;

/// One matrix of all experts, and each expert's alone.
fn experts(gpu: &Gpu, dtype: DType, seed: u64) -> (Matrix, Vec<Matrix>) {
    let data = random_blocks(dtype, EXPERTS * OUT * WIDTH, seed);
    let all = Matrix::new(gpu, dtype, &data, [EXPERTS, OUT, WIDTH]).unwrap();
    let each = data.chunks_exact(data.len() / EXPERTS);
    let alone = each.map(|data| Matrix::new(gpu, dtype, data, [1, OUT, WIDTH]).unwrap());
    (all, alone.collect())
}

/// Expert 2 has 3 rows, expert 0 has 10; two tiles are unused.
const TABLE: [[u32; 4]; 6] = [
    [0, 8, 8, 0],
    [2, 0, 3, 0],
    [7, 9, 0, 0],
    [0, 16, 2, 0],
    [0, 0, 0, 0],
    [0, 0, 0, 0],
];

fn check(dtype: DType, has_workspace: bool) {
    let gpu = Gpu::for_tests();
    let (gate, gates) = experts(&gpu, dtype, 103);
    let (up, ups) = experts(&gpu, dtype, 107);
    let mut workspace = Workspace::new();
    if has_workspace {
        workspace
            .reserve_rows(&gpu, &[&gate, &up], 8 * TABLE.len())
            .unwrap();
    }
    let values = random_rows(24, WIDTH, 109);
    let x = activations(&gpu, &values, WIDTH);
    let buffer = gpu.upload(TABLE.as_flattened()).unwrap();
    let tiles = ExpertTiles {
        table: &buffer,
        max_tiles: TABLE.len(),
        tile_rows: 8,
    };
    let (mut out, mut activated) = (Rows::default(), Activations::new(false));
    expert_project(&gpu, &workspace, &x, tiles, &up, &mut out).unwrap();
    expert_gate_up(
        &gpu,
        &workspace,
        &x,
        tiles,
        [&gate, &up],
        Glu::Silu,
        &mut activated,
    )
    .unwrap();
    let (out, activated) = (read_rows(&gpu, &out), values_of(&gpu, &mut activated));
    let empty = Workspace::new();
    for [expert, first, num_rows, _] in TABLE {
        let (expert, rows) = (expert as usize, first as usize..(first + num_rows) as usize);
        if rows.is_empty() {
            continue;
        }
        let x = activations(&gpu, &values[rows.start * WIDTH..rows.end * WIDTH], WIDTH);
        let (mut dense, mut dense_activated) = (Rows::default(), Activations::new(false));
        let job = Job {
            matrix: &ups[expert],
            bias: None,
            out: &mut dense,
            accumulate: false,
        };
        project(&gpu, &empty, &x, &mut [job]).unwrap();
        let matrices = [&gates[expert], &ups[expert]];
        let none = [None, None];
        gate_up(
            &gpu,
            &empty,
            &x,
            matrices,
            none,
            Glu::Silu,
            &mut dense_activated,
        )
        .unwrap();
        let place = rows.start * OUT..rows.end * OUT;
        assert!(read_rows(&gpu, &dense) == out[place], "{dtype:?} {rows:?}");
        let place = rows.start * 128..rows.end * 128;
        let dense = values_of(&gpu, &mut dense_activated);
        assert!(dense == activated[place], "{dtype:?} {rows:?}");
    }
}

#[test]
fn experts_have_the_bits_of_dense_products() {
    for dtype in [DType::BF16, DType::Q4K, DType::Q6K, DType::Q8_0] {
        check(dtype, true);
        check(dtype, false);
    }
}

/// Tables for kernels of many rows have tiles that the others cut.
#[test]
fn tiles_higher_than_a_kernel_takes_are_cut() {
    let gpu = Gpu::for_tests();
    let (all, each) = experts(&gpu, DType::Q8_0, 113);
    let values = random_rows(88, WIDTH, 127);
    let x = activations(&gpu, &values, WIDTH);
    let table = gpu.upload(&[2, 0, 3, 0, 0, 8, 75, 0]).unwrap();
    let mut out = Rows::default();
    out.reshape(&gpu, 88, OUT).unwrap();
    let launch = Launch {
        x: &x,
        jobs: &[LaunchJob {
            matrix: &all,
            bias: None,
            out: out.address(),
            epilogue: Epilogue::Store,
        }],
        glu: None,
        experts: Some(ExpertTiles {
            table: &table,
            max_tiles: 2,
            tile_rows: 128,
        }),
    };
    // SAFETY: `out` has the product's shape.
    unsafe { launch.run_tiles(&gpu, &Workspace::new()) }.unwrap();
    let out = read_rows(&gpu, &out);
    for (expert, rows) in [(2, 0..3), (0, 8..83)] {
        let x = activations(&gpu, &values[rows.start * WIDTH..rows.end * WIDTH], WIDTH);
        let mut dense = Rows::default();
        let job = Job {
            matrix: &each[expert],
            bias: None,
            out: &mut dense,
            accumulate: false,
        };
        project(&gpu, &Workspace::new(), &x, &mut [job]).unwrap();
        let place = rows.start * OUT..rows.end * OUT;
        assert!(read_rows(&gpu, &dense) == out[place], "{rows:?}");
    }
}
