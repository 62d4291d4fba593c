//! CUDA kernels of Ponder: products of packed weights, paged attention, row operations, experts and
//! sampling.
//!
//! Nothing of CUDA is needed to build. The driver and NVRTC are opened at run time; the kernels
//! (`kernels/*.cu`) are compiled for the device at hand at first start, and cached. With the
//! feature `emulator` the same launches run on the processor, for tests.
//!
//! **Law of rows.** A row of a result depends on its own inputs alone, bit by bit: never on the
//! rows beside it, on how many there are, or on where they lie. The order of a reduction follows
//! from the weight's shape and from constants.

pub mod args;
pub mod attention;
pub mod buffer;
mod call;
pub mod compile;
mod driver;
#[cfg(feature = "emulator")]
mod emulator;
pub mod error;
pub mod experts;
pub mod gpu;
mod nvrtc;
pub mod product;
pub mod rows;
pub mod sample;
mod staging;
pub mod tensors;
pub mod timing;

pub use args::Args;
pub use buffer::{Buffer, Plain};
pub use error::CudaError;
pub use gpu::{Gpu, Graph, Grid, Properties};
pub use tensors::{Activations, Rows};
