//! How long each kernel takes: for tuning. Launches are timed one by one, so nothing overlaps and
//! graphs are not used.

use std::collections::BTreeMap;
use std::ptr;

use cudarc::driver::sys;

use super::CudaError;
use super::call::call;

/// Launches of one kernel.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct KernelTime {
    pub count: u64,
    pub milliseconds: f64,
}

/// Times by kernel.
pub type KernelTimes = BTreeMap<&'static str, KernelTime>;

/// Two events around a launch.
pub(crate) struct Timer {
    start: sys::CUevent,
    end: sys::CUevent,
    pub(crate) times: KernelTimes,
}

// SAFETY: events belong to the context, not to a thread.
unsafe impl Send for Timer {}

impl Timer {
    pub(crate) fn new() -> Result<Self, CudaError> {
        let (mut start, mut end) = (ptr::null_mut(), ptr::null_mut());
        // SAFETY: two new events, with timing.
        unsafe {
            call!(cuEventCreate(&mut start, 0))?;
            call!(cuEventCreate(&mut end, 0))?;
        }
        Ok(Self {
            start,
            end,
            times: KernelTimes::new(),
        })
    }

    /// Times what `launch` queues on `stream`.
    pub(crate) fn time(
        &mut self,
        kernel: &'static str,
        stream: sys::CUstream,
        launch: impl FnOnce() -> Result<(), CudaError>,
    ) -> Result<(), CudaError> {
        let mut milliseconds = 0.0;
        // SAFETY: the events are ours; both were recorded when their distance is asked for.
        unsafe {
            call!(cuEventRecord(self.start, stream))?;
            launch()?;
            call!(cuEventRecord(self.end, stream))?;
            call!(cuEventSynchronize(self.end))?;
            call!(cuEventElapsedTime(&mut milliseconds, self.start, self.end))?;
        }
        let time = self.times.entry(kernel).or_default();
        time.count += 1;
        time.milliseconds += f64::from(milliseconds);
        Ok(())
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        // SAFETY: ours, and not used again.
        unsafe {
            sys::cuEventDestroy_v2(self.start);
            sys::cuEventDestroy_v2(self.end);
        }
    }
}
