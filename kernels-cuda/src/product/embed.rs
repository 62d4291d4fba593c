//! Rows of embedding tables.

use ponder_kernels::DType;

use super::matrix::Matrix;
use crate::tensors::K_BLOCK;
use crate::{Args, Buffer, CudaError, Gpu, Grid, Plain, Rows};

/// Threads of a block; each takes 16 values.
const THREADS: usize = 64;
const VALUES_PER_THREAD: usize = K_BLOCK / 4;

#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
struct EmbedArgs {
    table: u64,
    token_ids: u64,
    out: u64,
    num_tokens: u32,
    in_features: u32,
    scale: f32,
    padding: u32,
}

// SAFETY: numbers alone, without padding: eight-byte ones first, then an even number of four-byte
// ones.
unsafe impl Plain for EmbedArgs {}

/// `out[row] = table[token_ids[row]] * scale`, `[num_rows, in_features]`. Values of packed tables
/// are rounded to bf16, as products have them; ids past the table's end give zeros.
///
/// # Errors
/// When the device fails.
///
/// # Panics
/// When there are fewer ids than rows.
pub fn embed(
    gpu: &Gpu,
    table: &Matrix,
    token_ids: &Buffer<u32>,
    num_rows: usize,
    scale: f32,
    out: &mut Rows,
) -> Result<(), CudaError> {
    assert!(token_ids.len() >= num_rows, "one id for each row");
    let width = table.in_features();
    out.reshape(gpu, num_rows, width)?;
    let args = EmbedArgs {
        table: table.address(),
        token_ids: token_ids.address(),
        out: out.address(),
        num_tokens: table.out_features() as u32,
        in_features: width as u32,
        scale,
        padding: 0,
    };
    let threads = width.next_multiple_of(K_BLOCK) / VALUES_PER_THREAD;
    let grid = Grid {
        blocks: [num_rows as u32, threads.div_ceil(THREADS) as u32, 1],
        threads: THREADS as u32,
        shared_bytes: 0,
    };
    // SAFETY: the struct is the kernel's parameter; `out` has the rows, ids are checked by the
    // kernel.
    unsafe { gpu.launch(kernel(table.dtype()), grid, &Args::new().value(args)) }
}

fn kernel(dtype: DType) -> &'static str {
    match dtype {
        DType::F32 => "embed_f32",
        DType::F16 | DType::BF16 => "embed_bf16",
        DType::Q4_0 => "embed_q4_0",
        DType::Q4_1 => "embed_q4_1",
        DType::Q5_0 => "embed_q5_0",
        DType::Q5_1 => "embed_q5_1",
        DType::Q8_0 => "embed_q8_0",
        DType::Q4K => "embed_q4_k",
        DType::Q5K => "embed_q5_k",
        DType::Q6K => "embed_q6_k",
        _ => unreachable!("this is a bug: there is no matrix of another type"),
    }
}
