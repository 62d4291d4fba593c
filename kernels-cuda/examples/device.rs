//! How fast single kernels are on a GPU, as shares of what its memory and its tensor cores could
//! do.
//!
//!     cargo run --release -p ponder-kernels-cuda --example device -- [FILTER]
//!
//! Each line is the median of several replays of a graph of launches, over matrices that no cache
//! holds together.

use std::time::Instant;

use ponder_kernels::{DType, Glu};
use ponder_kernels_cuda::attention::{
    AttentionParams, AttentionPlan, AttentionRows, KvCache, KvShape, PlanShape, StepBuffers,
    StepInputs, attention,
};
use ponder_kernels_cuda::product::{Job, Matrix, Workspace, gate_up, head, project};
use ponder_kernels_cuda::rows::{Norm, norm, quantise};
use ponder_kernels_cuda::sample::{SampleBuffers, SampleRow, SlotSpec};
use ponder_kernels_cuda::{Activations, CudaError, Gpu, Rows};

const REPLAYS: usize = 7;
/// Bytes of weights that a measurement goes through, so that they come from memory.
const MANY_BYTES: usize = 400 << 20;

struct Bench {
    gpu: Gpu,
    filter: String,
}

/// What a launch does at least.
#[derive(Clone, Copy, Default)]
struct Work {
    bytes: f64,
    flops: f64,
}

impl Bench {
    fn is_wanted(&self, name: &str) -> bool {
        name.contains(&self.filter)
    }

    /// Times `count` launches that were recorded together.
    fn report(
        &self,
        name: &str,
        work: Work,
        count: usize,
        mut launches: impl FnMut() -> Result<(), CudaError>,
    ) -> Result<(), CudaError> {
        launches()?;
        let graph = self.gpu.capture(&mut launches)?;
        self.gpu.replay(&graph)?;
        self.gpu.synchronize()?;
        let mut times: Vec<f64> = Vec::new();
        for _ in 0..REPLAYS {
            let started = Instant::now();
            self.gpu.replay(&graph)?;
            self.gpu.synchronize()?;
            times.push(started.elapsed().as_secs_f64() / count as f64);
        }
        times.sort_by(f64::total_cmp);
        let seconds = times[REPLAYS / 2];
        println!(
            "{name:<44} {:>9.2} us {:>8.0} GB/s {:>7.1} TFLOP/s",
            seconds * 1e6,
            work.bytes / seconds / 1e9,
            work.flops / seconds / 1e12
        );
        Ok(())
    }

    fn activations(&self, num_rows: usize, width: usize) -> Result<Activations, CudaError> {
        let values: Vec<f32> = (0..num_rows * width).map(noise).collect();
        let mut rows = Rows::default();
        rows.reshape(&self.gpu, num_rows, width)?;
        if let Some(buffer) = rows.buffer_mut() {
            self.gpu.write(buffer, 0, &values)?;
        }
        let mut out = Activations::new(false);
        quantise(&self.gpu, &rows, &mut out)?;
        Ok(out)
    }

    /// As many matrices as no cache holds.
    fn matrices(&self, dtype: DType, shape: [usize; 2]) -> Result<Vec<Matrix>, CudaError> {
        let bytes = weights(dtype, shape[0] * shape[1]);
        let count = MANY_BYTES.div_ceil(bytes.len()).clamp(2, 24);
        let new = |_| Matrix::new(&self.gpu, dtype, &bytes, [1, shape[0], shape[1]]);
        (0..count).map(new).collect()
    }

    fn product(
        &self,
        dtype: DType,
        [outs, ins]: [usize; 2],
        all_rows: &[usize],
    ) -> Result<(), CudaError> {
        let label = format!("project {} {outs}x{ins}", dtype.name());
        if !self.is_wanted(&label) {
            return Ok(());
        }
        let matrices = self.matrices(dtype, [outs, ins])?;
        let mut workspace = Workspace::new();
        workspace.reserve(&self.gpu, &[&matrices[0]])?;
        for num_rows in all_rows {
            let x = self.activations(*num_rows, ins)?;
            let mut out = Rows::default();
            let work = Work {
                bytes: matrices[0].nbytes() as f64,
                flops: 2.0 * (num_rows * outs * ins) as f64,
            };
            let name = format!("{label} x{num_rows}");
            self.report(&name, work, matrices.len(), || {
                for matrix in &matrices {
                    let job = Job {
                        matrix,
                        bias: None,
                        out: &mut out,
                        accumulate: false,
                    };
                    project(&self.gpu, &workspace, &x, &mut [job])?;
                }
                Ok(())
            })?;
        }
        Ok(())
    }

    fn gated(&self, dtype: DType, [outs, ins]: [usize; 2], all: &[usize]) -> Result<(), CudaError> {
        let label = format!("gate_up {} {outs}x{ins}", dtype.name());
        if !self.is_wanted(&label) {
            return Ok(());
        }
        let (gates, ups) = (
            self.matrices(dtype, [outs, ins])?,
            self.matrices(dtype, [outs, ins])?,
        );
        let mut workspace = Workspace::new();
        workspace.reserve(&self.gpu, &[&gates[0], &ups[0]])?;
        for num_rows in all {
            let x = self.activations(*num_rows, ins)?;
            let mut out = Activations::new(false);
            let work = Work {
                bytes: 2.0 * gates[0].nbytes() as f64,
                flops: 4.0 * (num_rows * outs * ins) as f64,
            };
            self.report(&format!("{label} x{num_rows}"), work, gates.len(), || {
                for (gate, up) in gates.iter().zip(&ups) {
                    let (biases, glu) = ([None, None], Glu::Silu);
                    gate_up(&self.gpu, &workspace, &x, [gate, up], biases, glu, &mut out)?;
                }
                Ok(())
            })?;
        }
        Ok(())
    }

    fn head_and_samples(&self, [outs, ins]: [usize; 2], all: &[usize]) -> Result<(), CudaError> {
        if !self.is_wanted("head and sample") {
            return Ok(());
        }
        let matrix = &self.matrices(DType::BF16, [outs, ins])?[0];
        let mut workspace = Workspace::new();
        workspace.reserve(&self.gpu, &[matrix])?;
        for num_rows in all {
            let x = self.activations(*num_rows, ins)?;
            let mut out = Rows::default();
            let work = Work {
                bytes: matrix.nbytes() as f64,
                flops: 2.0 * (num_rows * outs * ins) as f64,
            };
            self.report(&format!("head {outs}x{ins} x{num_rows}"), work, 1, || {
                head(&self.gpu, &workspace, &x, matrix, 1.0, None, &mut out)
            })?;
            let mut buffers = SampleBuffers::new(&self.gpu, 256, outs)?;
            for (name, temperature, top_p) in [("greedy", 0.0, 1.0), ("top-p 0.9", 0.8, 0.9)] {
                let specs: Vec<_> = (0..*num_rows)
                    .map(|row| {
                        SlotSpec::Sample(SampleRow {
                            temperature,
                            top_p,
                            uniform: 0.4,
                            ..SampleRow::greedy(row as u32)
                        })
                    })
                    .collect();
                let shape = buffers.prepare(&self.gpu, &specs, &[], *num_rows, *num_rows)?;
                let work = Work {
                    bytes: (num_rows * outs * 4) as f64,
                    flops: 0.0,
                };
                self.report(
                    &format!("sample {name} {outs} x{num_rows}"),
                    work,
                    1,
                    || buffers.launch(&self.gpu, &out, shape),
                )?;
            }
        }
        Ok(())
    }

    fn norms(&self, width: usize) -> Result<(), CudaError> {
        if !self.is_wanted("norm") {
            return Ok(());
        }
        let weight = self.gpu.upload(&vec![1.0_f32; width])?;
        for num_rows in [1, 64, 2048] {
            let mut x = Rows::default();
            x.reshape(&self.gpu, num_rows, width)?;
            let mut out = Activations::new(false);
            let work = Work {
                bytes: (num_rows * width * 6) as f64,
                flops: 0.0,
            };
            self.report(&format!("norm {width} x{num_rows}"), work, 20, || {
                let weight = &weight;
                (0..20).try_for_each(|_| norm(&self.gpu, &x, Norm { weight, eps: 1e-5 }, &mut out))
            })?;
        }
        Ok(())
    }

    /// `batch` sequences with `num_rows` new rows each, over `shared` common tokens and `own` ones.
    fn attention(
        &self,
        name: &str,
        [num_heads, num_kv_heads]: [usize; 2],
        [batch, num_rows, shared, own]: [usize; 4],
    ) -> Result<(), CudaError> {
        let label = format!("attention {name} {num_heads}/{num_kv_heads}");
        if !self.is_wanted(&label) {
            return Ok(());
        }
        let (head_dim, block_size, num_layers) = (128, 16, 4);
        let blocks = |tokens: usize| tokens.div_ceil(block_size);
        let num_blocks = blocks(shared) + batch * blocks(own) + 1;
        let cache = KvCache::new(
            &self.gpu,
            KvShape {
                num_layers,
                num_blocks,
                block_size,
                num_kv_heads,
                head_dim,
            },
        )?;
        let tables: Vec<Vec<u32>> = (0..batch)
            .map(|sequence| {
                let first = blocks(shared) + sequence * blocks(own);
                let own = first..first + blocks(own);
                (0..blocks(shared))
                    .chain(own)
                    .map(|block| block as u32)
                    .collect()
            })
            .collect();
        let context_len = shared + own;
        let sequences: Vec<AttentionRows<'_>> = tables
            .iter()
            .map(|table| AttentionRows {
                block_table: table,
                num_rows,
                context_len,
                leaves: &[],
            })
            .collect();
        let shape = PlanShape {
            num_heads,
            num_kv_heads,
            head_dim,
            num_blocks,
            block_size,
            num_multiprocessors: self.gpu.properties().num_multiprocessors,
        };
        let mut plan = AttentionPlan::default();
        plan.plan(&shape, &sequences)?;
        let total = batch * num_rows;
        let positions: Vec<u32> = (0..total)
            .map(|row| (context_len - num_rows + row % num_rows) as u32)
            .collect();
        let ids = vec![0; total];
        let inputs = StepInputs {
            token_ids: Some(&ids),
            positions: &positions,
            slot_mapping: &vec![u32::MAX; total],
            logits_rows: &[],
            num_rows: total,
            num_logits_rows: 0,
        };
        let mut step = StepBuffers::default();
        step.upload(&self.gpu, &shape, &inputs, &plan)?;
        let (mut q, mut out) = (Rows::default(), Rows::default());
        q.reshape(&self.gpu, total, num_heads * head_dim)?;
        let params = AttentionParams {
            num_heads,
            num_kv_heads,
            head_dim,
            scale: 0.09,
            sliding_window: None,
            softcap: None,
        };
        let seen = if num_rows > 1 {
            context_len / 2
        } else {
            context_len
        };
        let work = Work {
            bytes: ((shared + batch * own) * num_kv_heads * head_dim * 4) as f64,
            flops: 4.0 * (total * seen * num_heads * head_dim) as f64,
        };
        self.report(&label, work, num_layers, || {
            (0..num_layers).try_for_each(|layer| {
                attention(&self.gpu, &params, &cache, layer, &step, &q, &mut out)
            })
        })
    }
}

/// In -1..1, the same for the same index.
fn noise(index: usize) -> f32 {
    let bits = (index as u32).wrapping_mul(0x9E37_79B9) ^ 0x5bd1_e995;
    (bits.wrapping_mul(0x85eb_ca6b) >> 8) as f32 / 8_388_608.0 - 1.0
}

/// Random codes with small scales.
fn weights(dtype: DType, count: usize) -> Vec<u8> {
    let mut block: Vec<u8> = (0..(1 << 16) * dtype.block_bytes())
        .map(|index| (noise(index) * 127.0) as i8 as u8)
        .collect();
    for bytes in block.chunks_exact_mut(dtype.block_bytes()) {
        match dtype {
            DType::BF16 => bytes[1] = 0x3c | (bytes[1] & 0x80),
            DType::Q4K => bytes[..4].copy_from_slice(&[0, 0x10, 0, 0x10]),
            DType::Q6K => bytes[208..].copy_from_slice(&[0, 0x10]),
            _ => bytes[..2].copy_from_slice(&[0, 0x10]),
        }
    }
    let nbytes = dtype.byte_count(count).expect("whole blocks");
    block.into_iter().cycle().take(nbytes).collect()
}

fn main() -> Result<(), CudaError> {
    let started = Instant::now();
    let gpu = Gpu::open(0, None)?;
    println!(
        "{:?}, kernels ready in {:.2} s",
        gpu.properties(),
        started.elapsed().as_secs_f64()
    );
    let filter = std::env::args().nth(1).unwrap_or_default();
    let bench = Bench { gpu, filter };
    let few = [1, 4, 16, 32, 64];
    let many = [128, 256, 512, 2048];
    let all: Vec<usize> = few.into_iter().chain(many).collect();
    bench.norms(4096)?;
    for shape in [[4096, 4096], [1024, 4096], [4096, 14_336], [1536, 8960]] {
        bench.product(DType::BF16, shape, &all)?;
    }
    bench.gated(DType::BF16, [14_336, 4096], &all)?;
    bench.gated(DType::BF16, [8960, 1536], &all)?;
    for dtype in [DType::Q4K, DType::Q6K, DType::Q8_0] {
        bench.product(dtype, [4096, 14_336], &[1, 16, 64, 2048])?;
    }
    bench.product(DType::Q4K, [4096, 4096], &[1, 16, 64, 2048])?;
    bench.gated(DType::Q4K, [14_336, 4096], &[1, 16, 64, 2048])?;
    bench.head_and_samples([128_256, 4096], &[1, 16, 64])?;
    bench.attention("decode 1 of 512", [32, 8], [1, 1, 0, 512])?;
    bench.attention("decode 1 of 8192", [32, 8], [1, 1, 0, 8192])?;
    bench.attention("decode 64 of 512", [32, 8], [64, 1, 0, 512])?;
    bench.attention("decode 64 of 512", [12, 2], [64, 1, 0, 512])?;
    bench.attention("64 leaves over 4000", [32, 8], [64, 1, 4000, 32])?;
    bench.attention("64 apart of 4032", [32, 8], [64, 1, 0, 4032])?;
    bench.attention("prefill 2048", [32, 8], [1, 2048, 0, 2048])?;
    Ok(())
}
