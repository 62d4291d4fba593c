//! What happens to sums: biases, residuals, logits, gated units, and several matrices at once.

use ponder_kernels::{DType, Glu};

use super::super::launch::{GluOut, Launch};
use super::super::testing::{activations, random_blocks, read_rows, rounded, values_of};
use super::super::{Job, Matrix, Workspace, gate_up, head, project};
use super::{Case, random_rows};
use crate::{Activations, Gpu, Rows};

fn job<'a>(matrix: &'a Matrix, out: &'a mut Rows) -> Job<'a> {
    Job {
        matrix,
        bias: None,
        out,
        accumulate: false,
    }
}

#[test]
fn biases_and_residuals_are_added() {
    for num_rows in [1, 10, 70] {
        let case = Case::new(DType::Q5_1, 100, 576, 29);
        let values = random_rows(num_rows, 576, 31);
        let plain = case.project(&values);
        let bias = random_rows(1, 100, 37);
        let residual = random_rows(num_rows, 100, 41);
        let bias_buffer = case.gpu.upload(&bias).unwrap();
        let x = activations(&case.gpu, &values, 576);
        let mut out = Rows::default();
        let mut jobs = [Job {
            bias: Some(&bias_buffer),
            ..job(&case.matrix, &mut out)
        }];
        project(&case.gpu, &case.workspace, &x, &mut jobs).unwrap();
        let with_bias = read_rows(&case.gpu, &out);
        case.gpu
            .write(out.buffer_mut().unwrap(), 0, &residual)
            .unwrap();
        let mut jobs = [Job {
            bias: Some(&bias_buffer),
            accumulate: true,
            ..job(&case.matrix, &mut out)
        }];
        project(&case.gpu, &case.workspace, &x, &mut jobs).unwrap();
        let added = read_rows(&case.gpu, &out);
        for index in 0..plain.len() {
            let value = plain[index] + bias[index % 100];
            assert_eq!(with_bias[index], value);
            assert_eq!(added[index], residual[index] + value);
        }
    }
}

#[test]
fn logits_are_scaled_and_capped() {
    let case = Case::new(DType::Q6K, 130, 256, 43);
    let values = random_rows(3, 256, 47);
    let plain = case.project(&values);
    let x = activations(&case.gpu, &values, 256);
    for cap in [None, Some(0.25_f32)] {
        let mut out = Rows::default();
        head(
            &case.gpu,
            &case.workspace,
            &x,
            &case.matrix,
            0.5,
            cap,
            &mut out,
        )
        .unwrap();
        for (found, plain) in read_rows(&case.gpu, &out).into_iter().zip(&plain) {
            let scaled = plain * 0.5;
            let wanted = cap.map_or(scaled, |cap| cap * (scaled / cap).tanh());
            assert!(
                (found - wanted).abs() <= 1e-6 * wanted.abs(),
                "{found} for {wanted}"
            );
        }
    }
}

/// Matrices of several types and shapes, as queries, keys and values are.
#[test]
fn several_matrices_are_each_right() {
    // The first and the last share a kernel where rows are few; the second is alone in its own.
    let dtypes = [DType::Q6K, DType::Q8_0, DType::Q5K];
    let cases = [(0, 192), (1, 64), (2, 70)].map(|(i, outs)| Case::new(dtypes[i], outs, 768, 53));
    let gpu = &cases[0].gpu;
    let mut workspace = Workspace::new();
    let [q, k, v] = &cases;
    workspace
        .reserve(gpu, &[&q.matrix, &k.matrix, &v.matrix])
        .unwrap();
    for num_rows in [1, 20, 66] {
        let values = random_rows(num_rows, 768, 59);
        let x = activations(gpu, &values, 768);
        let mut outs: [Rows; 3] = Default::default();
        let mut jobs = cases.iter().zip(&mut outs);
        let mut jobs: Vec<_> = jobs.by_ref().map(|(c, out)| job(&c.matrix, out)).collect();
        project(gpu, &workspace, &x, &mut jobs).unwrap();
        for (case, out) in cases.iter().zip(&outs) {
            assert!(
                read_rows(gpu, out) == case.project(&values),
                "{num_rows} rows"
            );
        }
    }
}

fn glu(kind: Glu, gate: f32, up: f32) -> f32 {
    let inner = match kind {
        Glu::Silu => gate,
        Glu::GeluTanh => 2.0 * 0.797_884_6 * gate * (0.044_715 * gate).mul_add(gate, 1.0),
        Glu::ClampedSwish => {
            let (gate, up) = (gate.min(7.0), up.clamp(-7.0, 7.0));
            return gate / (1.0 + (-1.702 * gate).exp()) * (up + 1.0);
        }
    };
    gate / (1.0 + (-inner).exp()) * up
}

/// A gated unit by the kernels of every device, one part after the other where rows are many.
fn glu_in_tiles(x: &Activations, cases: [&Case; 2], kind: Glu) -> Vec<f32> {
    let gpu = &cases[0].gpu;
    let mut out = Activations::new(false);
    let outs = cases[0].matrix.out_features();
    out.reshape(gpu, x.num_rows(), outs).unwrap();
    let launch = Launch {
        x,
        jobs: &cases.map(|case| case.job(0)),
        glu: Some(GluOut {
            kind,
            tiles: out.tiles(),
            row_stride: out.row_stride(),
            floats: 0,
        }),
        experts: None,
    };
    // SAFETY: `out` has the product's shape.
    unsafe { launch.run_tiles(gpu, &Workspace::new()) }.unwrap();
    values_of(gpu, &mut out)
}

/// A gated unit has the sums of its projections, and zeros past its width.
#[test]
fn gated_units_are_projections_and_an_activation() {
    for (dtype, kind) in [
        (DType::BF16, Glu::Silu),
        (DType::Q4K, Glu::Silu),
        (DType::Q4_0, Glu::GeluTanh),
    ] {
        let (gate, up) = (
            Case::new(dtype, 100, 768, 61),
            Case::new(dtype, 100, 768, 67),
        );
        let gpu = &gate.gpu;
        let mut workspace = Workspace::new();
        let matrices = [&gate.matrix, &up.matrix];
        workspace.reserve(gpu, &matrices).unwrap();
        let values = random_rows(66, 768, 71);
        let (gates, ups) = (gate.project(&values), up.project(&values));
        let mut all = Vec::new();
        for num_rows in [66, 1, 9, 33] {
            let x = activations(gpu, &values[..num_rows * 768], 768);
            let mut out = Activations::new(true);
            gate_up(gpu, &workspace, &x, matrices, [None, None], kind, &mut out).unwrap();
            let tiles = values_of(gpu, &mut out);
            assert!(
                tiles == glu_in_tiles(&x, [&gate, &up], kind),
                "{dtype:?} {num_rows}"
            );
            if num_rows == 66 {
                all = tiles.clone();
            }
            assert!(tiles == all[..tiles.len()], "{dtype:?} {num_rows}");
            for (row, tiles) in tiles.chunks_exact(128).enumerate() {
                assert!(tiles[100..].iter().all(|value| value.to_bits() == 0));
                for (m, found) in tiles[..100].iter().enumerate() {
                    let wanted = glu(kind, gates[row * 100 + m], ups[row * 100 + m]);
                    let error = (found - rounded(wanted)).abs();
                    // The bits of `exp` are each library's own: now and then another bf16 is the
                    // nearest.
                    assert!(error <= wanted.abs() / 128.0, "{found} for {wanted}");
                }
            }
        }
    }
}

#[test]
fn gated_units_keep_floats_and_add_biases() {
    let (gate, up) = (
        Case::new(DType::Q8_0, 96, 64, 73),
        Case::new(DType::Q8_0, 96, 64, 79),
    );
    let gpu = &gate.gpu;
    let mut workspace = Workspace::new();
    workspace.reserve(gpu, &[&gate.matrix, &up.matrix]).unwrap();
    let values = random_rows(3, 64, 83);
    let bias = random_rows(2, 96, 89);
    let buffers = [0, 1].map(|i| gpu.upload(&bias[i * 96..(i + 1) * 96]).unwrap());
    let x = activations(gpu, &values, 64);
    let mut out = Activations::new(true);
    let biases = [Some(&buffers[0]), Some(&buffers[1])];
    let matrices = [&gate.matrix, &up.matrix];
    gate_up(gpu, &workspace, &x, matrices, biases, Glu::Silu, &mut out).unwrap();
    let mut floats = vec![0.0_f32; 3 * 96];
    gpu.read(out.floats_mut().unwrap(), 0, &mut floats).unwrap();
    let tiles = values_of(gpu, &mut out);
    let (gates, ups) = (gate.project(&values), up.project(&values));
    for (index, found) in floats.iter().enumerate() {
        let (gate, up) = (
            gates[index] + bias[index % 96],
            ups[index] + bias[96 + index % 96],
        );
        let wanted = glu(Glu::Silu, gate, up);
        assert!(
            (found - wanted).abs() <= 1e-6 * wanted.abs(),
            "{found} for {wanted}"
        );
        assert_eq!(tiles[index / 96 * 128 + index % 96], rounded(*found));
    }
}

#[test]
fn matrices_of_f32_are_refused() {
    let gpu = Gpu::for_tests();
    let data = random_blocks(DType::F32, 64 * 64, 97);
    let matrix = Matrix::new(&gpu, DType::F32, &data, [1, 64, 64]).unwrap();
    assert!(matrix.is_float() && matrix.floats().unwrap().len() == 64 * 64);
    let x = activations(&gpu, &random_rows(1, 64, 101), 64);
    let mut out = Rows::default();
    let result = project(&gpu, &Workspace::new(), &x, &mut [job(&matrix, &mut out)]);
    assert!(matches!(result, Err(crate::CudaError::Unsupported(_))));
}
