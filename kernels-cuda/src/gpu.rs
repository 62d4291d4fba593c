//! A device with its memory and one stream of launches.

use std::sync::Arc;

use super::driver::{CapturedGraph, Driver};
use super::timing::KernelTimes;
use super::{Args, Buffer, CudaError, Plain};

/// How many threads a kernel gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Grid {
    pub blocks: [u32; 3],
    /// Of a block.
    pub threads: u32,
    /// Dynamic shared memory of a block.
    pub shared_bytes: u32,
}

/// What kernels and plans need to know of a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Properties {
    pub name: String,
    /// Compute capability.
    pub major: u32,
    pub minor: u32,
    pub num_multiprocessors: usize,
    /// Shared memory that a block may have.
    pub max_shared_bytes: usize,
    pub total_memory: usize,
}

impl Properties {
    /// `sm_90a`: with the instructions of that architecture alone where it has such.
    pub fn arch(&self) -> String {
        let suffix = if self.major >= 9 { "a" } else { "" };
        format!("sm_{}{}{suffix}", self.major, self.minor)
    }

    /// Whether warpgroups multiply from shared memory (`wgmma`).
    pub fn has_wgmma(&self) -> bool {
        self.major == 9
    }
}

/// What runs launches.
pub(crate) enum Backend {
    Driver(Driver),
    #[cfg(feature = "emulator")]
    Emulator(crate::emulator::Emulator),
}

pub(crate) struct Inner {
    pub(crate) backend: Backend,
    properties: Properties,
    /// How often a buffer that launches may have seen was replaced.
    growths: std::sync::atomic::AtomicU64,
}

macro_rules! each {
    ($inner:expr, $backend:ident => $call:expr) => {
        match &$inner.backend {
            Backend::Driver($backend) => $call,
            #[cfg(feature = "emulator")]
            Backend::Emulator($backend) => $call,
        }
    };
}

impl Inner {
    pub(crate) fn free(&self, address: u64, nbytes: usize) {
        each!(self, backend => backend.free(address, nbytes));
    }
}

/// A device. Clones are the same device; launches, copies and reads happen in the order in which they are asked for.
#[derive(Clone)]
pub struct Gpu(Arc<Inner>);

/// Launches that were recorded and run again as one.
pub struct Graph {
    captured: Captured,
    /// Outlives the graph.
    _gpu: Gpu,
}

pub(crate) enum Captured {
    Driver(CapturedGraph),
    #[cfg(feature = "emulator")]
    Emulator(crate::emulator::Recording),
}

impl Gpu {
    /// Opens a device and compiles the kernels for it, or reads them from `cache_dir`.
    ///
    /// # Errors
    /// Without a driver, a device, a compiler, or on a device that is too old.
    pub fn open(index: usize, cache_dir: Option<&std::path::Path>) -> Result<Self, CudaError> {
        let (driver, properties) = Driver::open(index, cache_dir)?;
        Ok(Self(Arc::new(Inner {
            backend: Backend::Driver(driver),
            properties,
            growths: Default::default(),
        })))
    }

    /// A device made of this machine's processor: for tests.
    #[cfg(feature = "emulator")]
    pub fn emulated() -> Self {
        Self(Arc::new(Inner {
            backend: Backend::Emulator(crate::emulator::Emulator::new()),
            properties: crate::emulator::properties(),
            growths: Default::default(),
        }))
    }

    /// The emulated device; the first real one where `PONDER_TEST_GPU` is set.
    ///
    /// # Panics
    /// When that one does not open.
    #[cfg(feature = "emulator")]
    pub fn for_tests() -> Self {
        match std::env::var_os("PONDER_TEST_GPU") {
            Some(_) => Self::open(0, Some(&std::env::temp_dir().join("ponder-test-kernels")))
                .expect("PONDER_TEST_GPU is set: a GPU answers"),
            None => Self::emulated(),
        }
    }

    pub fn properties(&self) -> &Properties {
        &self.0.properties
    }

    /// Bytes of device memory that nobody uses.
    pub fn free_memory(&self) -> Result<usize, CudaError> {
        each!(self.0, backend => backend.free_memory())
    }

    /// `len` zeros.
    pub fn zeros<T: Plain>(&self, len: usize) -> Result<Buffer<T>, CudaError> {
        let nbytes = len * size_of::<T>();
        let address = each!(self.0, backend => backend.alloc(nbytes))?;
        Ok(Buffer::new(Arc::clone(&self.0), address, len))
    }

    /// Values in a buffer of their own.
    pub fn upload<T: Plain>(&self, values: &[T]) -> Result<Buffer<T>, CudaError> {
        let mut buffer = self.zeros(values.len())?;
        self.write(&mut buffer, 0, values)?;
        Ok(buffer)
    }

    /// Copies values to the device, in the order of launches. `values` may change once this returns.
    ///
    /// # Panics
    /// When they do not fit.
    pub fn write<T: Plain>(
        &self,
        buffer: &mut Buffer<T>,
        first: usize,
        values: &[T],
    ) -> Result<(), CudaError> {
        assert!(first + values.len() <= buffer.len(), "values fit a buffer");
        let (address, source) = (buffer.address_of(first), values.as_ptr().cast());
        // SAFETY: both sides have that many bytes.
        unsafe { each!(self.0, backend => backend.write(address, source, size_of_val(values))) }
    }

    /// Waits for all launches so far, and reads.
    ///
    /// # Panics
    /// When the buffer has no such values.
    pub fn read<T: Plain>(
        &self,
        buffer: &Buffer<T>,
        first: usize,
        out: &mut [T],
    ) -> Result<(), CudaError> {
        assert!(first + out.len() <= buffer.len(), "values of a buffer");
        let (address, target) = (buffer.address_of(first), out.as_mut_ptr().cast());
        // SAFETY: both sides have that many bytes.
        unsafe { each!(self.0, backend => backend.read(address, target, size_of_val(out))) }
    }

    /// Copies values between buffers, in the order of launches.
    ///
    /// # Panics
    /// When either has no such values.
    pub fn copy<T: Plain>(
        &self,
        from: &Buffer<T>,
        first: usize,
        to: &mut Buffer<T>,
        target: usize,
        len: usize,
    ) -> Result<(), CudaError> {
        assert!(first + len <= from.len() && target + len <= to.len());
        let (from, to) = (from.address_of(first), to.address_of(target));
        // SAFETY: both sides have that many bytes.
        unsafe { each!(self.0, backend => backend.copy(from, to, len * size_of::<T>())) }
    }

    /// Queues a kernel.
    ///
    /// # Safety
    /// The arguments are the kernel's parameters, and what it reads and writes through them lies in live buffers.
    pub(crate) unsafe fn launch(
        &self,
        kernel: &'static str,
        grid: Grid,
        args: &Args,
    ) -> Result<(), CudaError> {
        if grid.blocks.contains(&0) {
            return Ok(());
        }
        // SAFETY: as the caller promises.
        unsafe { each!(self.0, backend => backend.launch(kernel, grid, args)) }
    }

    /// A buffer of rows was replaced by a larger one: graphs that hold its address are void.
    pub(crate) fn note_growth(&self) {
        self.0
            .growths
            .fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    }

    /// How often buffers of rows were replaced.
    pub fn num_growths(&self) -> u64 {
        self.0.growths.load(std::sync::atomic::Ordering::Relaxed)
    }

    /// Starts or ends the timing of kernels, one by one; gives what was timed so far.
    pub fn time_kernels(&self, is_on: bool) -> Result<KernelTimes, CudaError> {
        match &self.0.backend {
            Backend::Driver(driver) => driver.time_kernels(is_on),
            #[cfg(feature = "emulator")]
            Backend::Emulator(_) => Ok(KernelTimes::new()),
        }
    }

    /// Whether kernels are timed: graphs are not used meanwhile.
    pub fn is_timing(&self) -> bool {
        match &self.0.backend {
            Backend::Driver(driver) => driver.is_timing(),
            #[cfg(feature = "emulator")]
            Backend::Emulator(_) => false,
        }
    }

    /// Records what `launches` queues, without running it.
    pub fn capture(
        &self,
        launches: impl FnOnce() -> Result<(), CudaError>,
    ) -> Result<Graph, CudaError> {
        each!(self.0, backend => backend.begin_capture())?;
        let result = launches();
        let captured = each!(self.0, backend => backend.end_capture());
        result?;
        Ok(Graph {
            captured: captured?,
            _gpu: self.clone(),
        })
    }

    /// Queues everything that was recorded.
    pub fn replay(&self, graph: &Graph) -> Result<(), CudaError> {
        each!(self.0, backend => backend.replay(&graph.captured))
    }

    /// Waits for all launches so far.
    pub fn synchronize(&self) -> Result<(), CudaError> {
        each!(self.0, backend => backend.synchronize())
    }
}
