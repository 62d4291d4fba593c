//! Why a kernel refuses its input.

/// Sizes or types that do not fit together.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KernelError {
    #[error(
        "a matrix of {out_features} x {in_features} {dtype} takes {expected} bytes, not {actual}"
    )]
    WrongByteCount {
        dtype: &'static str,
        out_features: usize,
        in_features: usize,
        expected: usize,
        actual: usize,
    },
    #[error(
        "{dtype} packs {block_size} values together; rows of {in_features} do not divide by it"
    )]
    RaggedBlock {
        dtype: &'static str,
        block_size: usize,
        in_features: usize,
    },
    #[error("a matrix of {out_features} x {in_features} is empty or too large")]
    BadShape {
        out_features: usize,
        in_features: usize,
    },
    #[error("{bytes} bytes are needed, which this machine cannot allocate")]
    OutOfMemory { bytes: usize },
    #[error("weights cannot be quantised to {0}")]
    CannotQuantise(&'static str),
    #[error("{0}")]
    BadKvShape(String),
}
