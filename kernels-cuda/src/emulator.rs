//! A device made of this machine's processor: the same kernels, compiled by the system's C++
//! compiler, run thread by thread. For tests.
//!
//! Launches run when they are asked for. What the hardware would not say is an error here: a
//! barrier that not all threads reach, arguments of the wrong size, writes past a buffer or past
//! shared memory; memory that nobody wrote reads as NaN. With `PONDER_EMULATOR_ORDER=reverse`
//! blocks and threads take their turns from the last to the first, which a correct kernel cannot
//! tell.

mod library;
#[cfg(test)]
mod tests;

use std::alloc::{Layout, alloc, dealloc};
use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::{Args, CudaError, Grid, Properties};

const GIB: usize = 1 << 30;
const TOTAL_MEMORY: usize = 16 * GIB;
/// As large as the 256 rows that kernels may read past an end, where rows are short.
const CANARY_BYTES: usize = 4096;
const ALIGNMENT: usize = 256;
const CANARY: u8 = 0xA5;
/// `cudaErrorLaunchFailure`
const LAUNCH_FAILED: u32 = 719;
/// `cudaErrorStreamCaptureUnsupported`
const NOT_WHILE_CAPTURING: u32 = 900;

/// An emulated device.
#[derive(Default)]
pub(crate) struct Emulator {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// By address.
    allocations: HashMap<u64, Layout>,
    used: usize,
    /// Launches recorded since the capture began.
    capturing: Option<Vec<Launch>>,
}

/// Launches that run again as one.
pub(crate) struct Recording(Vec<Launch>);

#[derive(Clone)]
struct Launch {
    kernel: &'static str,
    grid: Grid,
    args: Args,
}

/// What the emulated device claims to be.
pub(crate) fn properties() -> Properties {
    Properties {
        name: "emulator".to_owned(),
        major: 9,
        minor: 0,
        num_multiprocessors: 132,
        max_shared_bytes: 227 * 1024,
        total_memory: TOTAL_MEMORY,
    }
}

fn failure(call: &'static str, code: u32, message: String) -> CudaError {
    CudaError::Driver {
        call,
        code,
        message,
        is_sticky: code == LAUNCH_FAILED,
    }
}

impl Emulator {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Refuses what a stream that is being captured refuses.
    fn check_idle(&self, call: &'static str) -> Result<(), CudaError> {
        match self.state().capturing {
            None => Ok(()),
            Some(_) => Err(failure(
                call,
                NOT_WHILE_CAPTURING,
                "a capture is under way".to_owned(),
            )),
        }
    }

    /// Zeros, between canaries.
    pub(crate) fn alloc(&self, nbytes: usize) -> Result<u64, CudaError> {
        self.check_idle("alloc")?;
        let mut state = self.state();
        let out_of_memory = CudaError::OutOfMemory {
            wanted: nbytes >> 20,
            free: (TOTAL_MEMORY - state.used) >> 20,
        };
        if nbytes > TOTAL_MEMORY - state.used {
            return Err(out_of_memory);
        }
        let Ok(layout) = Layout::from_size_align(nbytes + 2 * CANARY_BYTES, ALIGNMENT) else {
            return Err(out_of_memory);
        };
        // SAFETY: the canaries make the size positive; all writes stay within it.
        let address = unsafe {
            let start = alloc(layout);
            if start.is_null() {
                return Err(out_of_memory);
            }
            start.write_bytes(CANARY, CANARY_BYTES);
            start.add(CANARY_BYTES).write_bytes(0, nbytes);
            let end = start.add(CANARY_BYTES + nbytes);
            end.write_bytes(CANARY, CANARY_BYTES);
            start as u64 + CANARY_BYTES as u64
        };
        state.allocations.insert(address, layout);
        state.used += nbytes;
        Ok(address)
    }

    /// # Panics
    /// When a kernel wrote before or past the buffer.
    pub(crate) fn free(&self, address: u64, nbytes: usize) {
        let mut state = self.state();
        let Some(layout) = state.allocations.remove(&address) else {
            panic!("{address:#x} is no buffer of this device");
        };
        state.used -= nbytes;
        drop(state);
        let start = (address - CANARY_BYTES as u64) as *mut u8;
        // SAFETY: `alloc` made it with that layout, and it was still in the table.
        let damage = unsafe {
            let bytes = std::slice::from_raw_parts(start, layout.size());
            let (before, rest) = bytes.split_at(CANARY_BYTES);
            let before = before.iter().rposition(|byte| *byte != CANARY);
            let after = rest[nbytes..].iter().position(|byte| *byte != CANARY);
            dealloc(start, layout);
            (before.map(|at| CANARY_BYTES - at), after)
        };
        if damage != (None, None) && !std::thread::panicking() {
            let (before, after) = damage;
            panic!(
                "a kernel wrote outside a buffer of {nbytes} bytes: {before:?} bytes before it, {after:?} past its end"
            );
        }
    }

    pub(crate) fn free_memory(&self) -> Result<usize, CudaError> {
        Ok(TOTAL_MEMORY - self.state().used)
    }

    /// # Safety
    /// Both sides have that many bytes.
    pub(crate) unsafe fn write(
        &self,
        address: u64,
        source: *const u8,
        nbytes: usize,
    ) -> Result<(), CudaError> {
        self.check_idle("write")?;
        // SAFETY: as the caller promises.
        unsafe { std::ptr::copy_nonoverlapping(source, address as *mut u8, nbytes) };
        Ok(())
    }

    /// # Safety
    /// Both sides have that many bytes.
    pub(crate) unsafe fn read(
        &self,
        address: u64,
        target: *mut u8,
        nbytes: usize,
    ) -> Result<(), CudaError> {
        self.check_idle("read")?;
        // SAFETY: as the caller promises.
        unsafe { std::ptr::copy_nonoverlapping(address as *const u8, target, nbytes) };
        Ok(())
    }

    /// # Safety
    /// Both sides have that many bytes.
    pub(crate) unsafe fn copy(&self, from: u64, to: u64, nbytes: usize) -> Result<(), CudaError> {
        self.check_idle("copy")?;
        // SAFETY: as the caller promises; the sides may overlap.
        unsafe { std::ptr::copy(from as *const u8, to as *mut u8, nbytes) };
        Ok(())
    }

    /// # Safety
    /// The arguments are the kernel's parameters, and what they point to is there.
    pub(crate) unsafe fn launch(
        &self,
        kernel: &'static str,
        grid: Grid,
        args: &Args,
    ) -> Result<(), CudaError> {
        let launch = Launch {
            kernel,
            grid,
            args: args.clone(),
        };
        if let Some(recorded) = &mut self.state().capturing {
            recorded.push(launch);
            return Ok(());
        }
        // SAFETY: as the caller promises.
        unsafe { library::run(&launch) }
    }

    pub(crate) fn synchronize(&self) -> Result<(), CudaError> {
        self.check_idle("synchronize")
    }

    pub(crate) fn begin_capture(&self) -> Result<(), CudaError> {
        self.check_idle("begin_capture")?;
        self.state().capturing = Some(Vec::new());
        Ok(())
    }

    pub(crate) fn end_capture(&self) -> Result<super::gpu::Captured, CudaError> {
        match self.state().capturing.take() {
            Some(launches) => Ok(super::gpu::Captured::Emulator(Recording(launches))),
            None => Err(failure(
                "end_capture",
                NOT_WHILE_CAPTURING,
                "no capture is under way".to_owned(),
            )),
        }
    }

    pub(crate) fn replay(&self, captured: &super::gpu::Captured) -> Result<(), CudaError> {
        self.check_idle("replay")?;
        let super::gpu::Captured::Emulator(recording) = captured else {
            unreachable!("an emulated device records for itself");
        };
        for launch in &recording.0 {
            // SAFETY: whoever recorded the launch promised that its buffers outlive the graph.
            unsafe { library::run(launch)? };
        }
        Ok(())
    }
}
