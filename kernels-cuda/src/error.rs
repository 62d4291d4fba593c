//! What can go wrong with a device.

/// Why a device is of no use, or why an operation on it failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CudaError {
    #[error("no NVIDIA driver: libcuda cannot be opened; install the driver, or use --device cpu")]
    NoDriver,
    #[error("no CUDA device {index}: the driver sees {count}")]
    NoDevice { index: usize, count: usize },
    #[error(
        "libnvrtc cannot be opened and no compiled kernels are cached for {arch}; install the CUDA toolkit or the wheel \
         nvidia-cuda-nvrtc, and put its folder on LD_LIBRARY_PATH"
    )]
    NoCompiler { arch: String },
    #[error("{name} has compute capability {major}.{minor}; Ponder's kernels need 8.0 or newer")]
    TooOld {
        name: String,
        major: u32,
        minor: u32,
    },
    #[error("out of device memory: {wanted} MiB wanted, {free} MiB free")]
    OutOfMemory { wanted: usize, free: usize },
    #[error("kernel {file} does not compile for {arch}: {log}")]
    Compile {
        file: &'static str,
        arch: String,
        log: String,
    },
    #[error("{call} failed: {message} (CUDA error {code})")]
    Driver {
        call: &'static str,
        code: u32,
        message: String,
        /// The device is of no more use to this process.
        is_sticky: bool,
    },
    /// A size, a type or a variant that the kernels do not have.
    #[error("{0}")]
    Unsupported(String),
}
