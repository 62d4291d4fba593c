//! Gated units and experts by warpgroups.

use super::*;

/// A gated unit of all rows, or of rows by a table.
fn gated(
    gpu: &Gpu,
    x: &Activations,
    matrices: [&Matrix; 2],
    biases: [Option<&Buffer<f32>>; 2],
    experts: Option<ExpertTiles<'_>>,
    (workspace, kind): (&Workspace, Kind),
) -> Option<[Vec<f32>; 2]> {
    let mut out = Activations::new(true);
    let out_features = matrices[0].out_features();
    out.reshape(gpu, x.num_rows(), out_features).unwrap();
    let jobs = [0, 1].map(|index| LaunchJob {
        bias: biases[index],
        ..store(matrices[index], 0)
    });
    let launch = Launch {
        x,
        jobs: &jobs,
        glu: Some(GluOut {
            kind: Glu::Silu,
            tiles: out.tiles(),
            row_stride: out.row_stride(),
            floats: out.floats(),
        }),
        experts,
    };
    run_with(gpu, &launch, workspace, kind).then(|| results(gpu, &mut out))
}

/// Values of tiles, padding included, and those that are kept as f32.
fn results(gpu: &Gpu, x: &mut Activations) -> [Vec<f32>; 2] {
    let mut floats = vec![0.0; x.num_rows() * x.width()];
    gpu.read(x.floats_mut().unwrap(), 0, &mut floats).unwrap();
    [values_of(gpu, x), floats]
}

#[test]
fn gated_units_have_the_bits_of_few_rows() {
    let gpu = Gpu::for_tests();
    let (num_rows, out_features) = (141, 100);
    let x_values = random_values(num_rows * IN_FEATURES, 1);
    for dtype in [DType::BF16, DType::Q5K] {
        let shape = [1, out_features, IN_FEATURES];
        let matrices = [4, 5].map(|seed| matrix(&gpu, dtype, shape, seed));
        let matrices = matrices.each_ref();
        let biases = [6, 7].map(|seed| gpu.upload(&random_values(out_features, seed)).unwrap());
        let biases = [Some(&biases[0]), Some(&biases[1])];
        let workspace = workspace(&gpu, &matrices);
        let mut expected: [Vec<f32>; 2] = Default::default();
        for rows in x_values.chunks(MAX_TILE_ROWS * IN_FEATURES) {
            let x = activations(&gpu, rows, IN_FEATURES);
            let mut out = Activations::new(true);
            gate_up(&gpu, &workspace, &x, matrices, biases, Glu::Silu, &mut out).unwrap();
            for (all, some) in expected.iter_mut().zip(results(&gpu, &mut out)) {
                all.extend(some);
            }
        }
        let x = activations(&gpu, &x_values, IN_FEATURES);
        let mut num_kernels = 0;
        for kind in Kind::ALL {
            let target = (&workspace, kind);
            let Some(values) = gated(&gpu, &x, matrices, biases, None, target) else {
                continue;
            };
            num_kernels += 1;
            for (values, expected) in values.iter().zip(&expected) {
                assert!(bits(values) == bits(expected), "{dtype:?} {kind:?}");
            }
        }
        assert_eq!(num_kernels, 3, "all kernels that have both matrices' rows");
    }
}

fn by_few_rows(gpu: &Gpu, workspace: &Workspace, x: &Activations, matrix: &Matrix) -> Vec<f32> {
    let mut rows = Rows::default();
    head(gpu, workspace, x, matrix, 1.0, None, &mut rows).unwrap();
    read_rows(gpu, &rows)
}

fn gated_by_few_rows(
    gpu: &Gpu,
    workspace: &Workspace,
    x: &Activations,
    pair: &[Matrix; 2],
) -> Vec<f32> {
    let (mut unit, glu) = (Activations::new(true), Glu::Silu);
    gate_up(
        gpu,
        workspace,
        x,
        pair.each_ref(),
        [None; 2],
        glu,
        &mut unit,
    )
    .unwrap();
    let [_, floats] = results(gpu, &mut unit);
    floats
}

/// Expert, first row, rows; a tile without rows between them.
const TILES: [[u32; 4]; 5] = [
    [2, 0, 128, 0],
    [2, 128, 9, 0],
    [0; 4],
    [0, 144, 77, 0],
    [1, 224, 1, 0],
];

#[test]
fn experts_have_the_bits_of_their_rows_alone() {
    let gpu = Gpu::for_tests();
    let (num_experts, out_features, width) = (3, 100, 256);
    let table = TILES;
    let num_rows = 232;
    let x_values = random_values(num_rows * width, 1);
    let x = activations(&gpu, &x_values, width);
    let buffer = gpu.upload(table.as_flattened()).unwrap();
    let tiles = ExpertTiles {
        table: &buffer,
        max_tiles: table.len(),
        tile_rows: WIDE_TILE_ROWS,
    };
    let shape = [num_experts, out_features, width];
    let bytes = [8, 9].map(|seed| random_blocks(DType::Q8_0, shape.iter().product(), seed));
    let matrices = bytes
        .each_ref()
        .map(|bytes| Matrix::new(&gpu, DType::Q8_0, bytes, shape).unwrap());
    let workspace = workspace(&gpu, &matrices.each_ref());
    let expert_bytes = bytes[0].len() / num_experts;
    let of_expert = |index: usize, expert: usize| {
        let bytes = &bytes[index][expert * expert_bytes..][..expert_bytes];
        Matrix::new(&gpu, DType::Q8_0, bytes, [1, out_features, width]).unwrap()
    };
    for kind in Kind::ALL {
        let mut out = Rows::default();
        out.reshape(&gpu, num_rows, out_features).unwrap();
        let launch = Launch {
            x: &x,
            jobs: &[store(&matrices[0], out.address())],
            glu: None,
            experts: Some(tiles),
        };
        assert!(run_with(&gpu, &launch, &workspace, kind));
        let out = read_rows(&gpu, &out);
        let target = (&workspace, kind);
        let gated = gated(
            &gpu,
            &x,
            matrices.each_ref(),
            [None; 2],
            Some(tiles),
            target,
        );
        for [expert, first, count, _] in table.map(|tile| tile.map(|x| x as usize)) {
            if count == 0 {
                continue;
            }
            let few = FewRows {
                gpu: &gpu,
                x: &x_values[first * width..][..count * width],
                width,
            };
            let pair = [0, 1].map(|index| of_expert(index, expert));
            let expected = few.run(|x| by_few_rows(&gpu, &workspace, x, &pair[0]));
            let mine = &out[first * out_features..][..count * out_features];
            assert!(bits(mine) == bits(&expected), "{kind:?} {expert}");
            let Some([_, floats]) = &gated else { continue };
            let expected = few.run(|x| gated_by_few_rows(&gpu, &workspace, x, &pair));
            let mine = &floats[first * out_features..][..count * out_features];
            assert!(bits(mine) == bits(&expected), "gated {kind:?} {expert}");
        }
        // Rows of no tile keep what they were.
        let skipped = &out[137 * out_features..144 * out_features];
        assert!(skipped.iter().all(|x| *x == 0.0));
    }
}
