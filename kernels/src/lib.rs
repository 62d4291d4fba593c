//! CPU kernels of Ponder: packed quantised matrices, paged attention and row operations.
//!
//! This crate and `kernels-cuda` are the only ones of the workspace with `unsafe`. It knows nothing
//! of models.
//!
//! **Determinism law.** A result row depends only on its own inputs: never on the other rows of the
//! call or on the number of threads. Work is split by output rows and heads, never along the
//! reduction axis, and the one-row and many-row paths perform the same operations per element.

pub mod activations;
pub mod attention;
mod attention_gradient;
mod attention_params;
mod attention_tile;
mod codebook;
pub mod cost;
mod cpu;
pub mod cross_entropy;
pub mod dense;
pub mod dtype;
pub mod elementwise;
pub mod error;
pub mod experts;
mod float_panel;
pub mod gating;
mod gradient_rows;
pub mod gradients;
pub mod kv_cache;
mod kv_codes;
mod kv_dtype;
mod kv_writer;
mod lines;
pub mod logits;
pub mod low_rank;
pub mod mapped_file;
pub mod matmul;
pub mod matrix;
mod memory;
pub mod norm;
mod panel;
mod partition;
pub mod pool;
pub mod quantise;
pub mod reference;
pub mod roofline;
pub mod rope;
pub mod self_attention;
pub mod transposed;

pub use activations::Activations;
pub use attention::{
    AttentionParams, AttentionPlan, AttentionRows, paged_attention, paged_attention_with_sinks,
};
pub use dense::{Activation, DenseMatrix, FeedForward, LayerNorm};
pub use dtype::DType;
pub use elementwise::Glu;
pub use error::KernelError;
pub use experts::{ExpertMatrix, experts_glu, experts_matmul};
pub use gating::{Gating, GroupScore, Groups, Routes, Scoring};
pub use gradient_rows::GradientRows;
pub use kv_cache::KvCache;
pub use kv_dtype::KvDtype;
pub use low_rank::{
    Addition, Factors, LowRank, LowRankScratch, Reads, glu_adapted, matmul_adapted,
};
pub use mapped_file::MappedFile;
pub use matmul::{Product, matmul, matmul_glu, matmul_many};
pub use matrix::PackedMatrix;
pub use memory::return_freed_memory;
pub use pool::ThreadPool;
pub use roofline::Roofline;
pub use rope::{RopeKind, RopeTable, Rotation, rotate_and_cache};
pub use self_attention::{SelfAttention, self_attention};
pub use transposed::{experts_transposed_from_rows, experts_transposed_to_rows, matmul_transposed};

/// The instruction set the kernels run with on this machine.
pub fn isa() -> &'static str {
    cpu::isa().name()
}

/// Chooses, for the whole process, whether products with bf16 weights read activations rounded to
/// bf16 (`vdpbf16ps`): about twice as fast, and what torch and llama.cpp do with such weights.
/// Otherwise, and with all other weights, products read f32.
///
/// False where that is not how products work: the machine cannot, or the choice was made before, at
/// the first product at the latest.
pub fn use_bf16_activations(is_wanted: bool) -> bool {
    cpu::use_bf16_activations(is_wanted)
}

/// What [`use_bf16_activations`] has chosen, or `PONDER_BF16_ACTIVATIONS=1` where it was not
/// called.
pub fn rounds_to_bf16() -> bool {
    cpu::multiplies_bf16()
}

/// The instruction sets that this machine has kernels for, best first; `PONDER_ISA` names the one to use.
pub fn available_isas() -> Vec<&'static str> {
    cpu::Isa::available()
        .into_iter()
        .map(cpu::Isa::name)
        .collect()
}
