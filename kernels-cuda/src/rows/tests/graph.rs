use ponder_kernels::Glu;

use crate::rows::testing::*;
use crate::rows::{
    AdaptedInput, FloatMatrix, LatentScratch, LatentShape, LowRank, LowRankScratch, Norm, RowList,
    add_low_rank, add_scaled, gate_up, keep_rows, latent_values, norm, project,
};
use crate::{Activations, Buffer, CudaError, Gpu, Rows};

const NUM_ROWS: usize = 6;
const WIDTH: usize = 40;
const SHAPE: LatentShape = LatentShape {
    nope_head_dim: 6,
    rope_head_dim: 4,
    v_head_dim: 8,
};

/// Weights, lists and rows of a small layer.
struct Layer {
    weight: Buffer<f32>,
    matrices: [FloatMatrix; 3],
    low_rank: [FloatMatrix; 2],
    listed: Buffer<u32>,
    kept: Buffer<u32>,
    x: Rows,
    activations: Activations,
    gated: Activations,
    gates: [Rows; 2],
    h: Rows,
    of_adapter: LowRankScratch,
    of_latent: LatentScratch,
}

impl Layer {
    fn new(gpu: &Gpu) -> Self {
        let matrix = |seed, outs: usize, ins: usize| {
            FloatMatrix::upload(gpu, &random(seed, outs * ins), [outs, ins]).expect("memory")
        };
        Self {
            weight: gpu.upload(&random(1, WIDTH)).expect("memory"),
            matrices: [
                matrix(2, 12, WIDTH),
                matrix(3, 12, WIDTH),
                matrix(4, WIDTH, 12),
            ],
            low_rank: [matrix(5, 2, WIDTH), matrix(6, WIDTH, 2)],
            listed: gpu.upload(&[0, 4]).expect("memory"),
            kept: gpu.upload(&[1, 3, 4]).expect("memory"),
            x: rows_of(gpu, &vec![0.0; NUM_ROWS * WIDTH], WIDTH),
            activations: Activations::new(true),
            gated: Activations::new(true),
            gates: Default::default(),
            h: Rows::default(),
            of_adapter: LowRankScratch::default(),
            of_latent: LatentScratch::default(),
        }
    }

    fn run(&mut self, gpu: &Gpu) -> Result<(), CudaError> {
        let params = Norm {
            weight: &self.weight,
            eps: 1e-5,
        };
        let [gate, up, down] = &self.matrices;
        let [of_gate, of_up] = &mut self.gates;
        self.x.reshape(gpu, NUM_ROWS, WIDTH)?;
        norm(gpu, &self.x, params, &mut self.activations)?;
        let scratch = [of_gate, of_up];
        let (x, out) = (&self.activations, &mut self.gated);
        gate_up(gpu, x, [gate, up], Glu::GeluTanh, scratch, out)?;
        project(gpu, &self.gated, down, None, &mut self.h)?;
        let factors = LowRank {
            down: &self.low_rank[0],
            up: &self.low_rank[1],
        };
        let input = AdaptedInput::Normed {
            rows: &self.x,
            norm: params,
        };
        let products = [(Some(factors), &mut self.h)];
        let list = RowList::all(&self.listed);
        add_low_rank(gpu, &mut self.of_adapter, list, input, products)?;
        add_scaled(gpu, &mut self.x, &self.h, 0.5)?;
        keep_rows(gpu, &mut self.x, RowList::all(&self.kept))?;
        latent_values(gpu, &SHAPE, &mut self.x, &mut self.of_latent)
    }

    fn set(&mut self, gpu: &Gpu, seed: u64) {
        let values = random(seed, NUM_ROWS * WIDTH);
        let buffer = self.x.buffer_mut().expect("shaped");
        gpu.write(buffer, 0, &values).expect("fits");
    }
}

#[test]
fn recorded_operations_give_the_bits_of_queued_ones() {
    let gpu = Gpu::for_tests();
    let (mut queued, mut recorded) = (Layer::new(&gpu), Layer::new(&gpu));
    // Buffers grow before the recording.
    recorded.run(&gpu).expect("launch");
    let growths = gpu.num_growths();
    let graph = gpu.capture(|| recorded.run(&gpu)).expect("captured");
    assert_eq!(gpu.num_growths(), growths);
    for seed in [10, 11] {
        queued.set(&gpu, seed);
        queued.run(&gpu).expect("launch");
        recorded.set(&gpu, seed);
        gpu.replay(&graph).expect("launch");
        let expected = values_of(&gpu, &queued.x);
        assert_eq!(expected.len(), 3 * WIDTH / 10 * 8);
        assert_bits(&values_of(&gpu, &recorded.x), &expected);
    }
}
