//! Pinned memory that copies to and from the device go through: only from there does the copy
//! engine run beside everything else.

use std::ptr;

use cudarc::driver::sys::{self};

use super::CudaError;
use super::call::call;

/// Slots that copies take in turn: while one is filled, those before it are under way.
const NUM_SLOTS: usize = 4;
/// Bytes of a slot.
const SLOT_BYTES: usize = 8 << 20;
/// Copies begin so aligned.
const ALIGNMENT: usize = 256;

struct Slot {
    memory: *mut u8,
    /// Recorded behind the last copy out of this slot.
    event: sys::CUevent,
    used: usize,
}

/// A ring of pinned slots beside a stream.
pub(crate) struct Staging {
    stream: sys::CUstream,
    slots: Vec<Slot>,
    current: usize,
    /// Where reads arrive.
    arrivals: *mut u8,
}

// SAFETY: pinned memory and events belong to the context, not to a thread.
unsafe impl Send for Staging {}

fn pinned() -> Result<*mut u8, CudaError> {
    let mut memory = ptr::null_mut();
    // SAFETY: a new allocation.
    unsafe { call!(cuMemAllocHost_v2(&mut memory, SLOT_BYTES)) }?;
    Ok(memory.cast())
}

impl Staging {
    pub(crate) fn new(stream: sys::CUstream) -> Result<Self, CudaError> {
        let slot = |_| {
            let mut event = ptr::null_mut();
            // SAFETY: a new event, without timing (2).
            unsafe { call!(cuEventCreate(&mut event, 2)) }?;
            let memory = pinned()?;
            let used = 0;
            Ok(Slot {
                memory,
                event,
                used,
            })
        };
        Ok(Self {
            stream,
            slots: (0..NUM_SLOTS).map(slot).collect::<Result<_, CudaError>>()?,
            current: 0,
            arrivals: pinned()?,
        })
    }

    /// Goes to the next slot, once the copies out of it are over.
    fn turn(&mut self) -> Result<(), CudaError> {
        let full = &self.slots[self.current];
        // SAFETY: the event is ours.
        unsafe { call!(cuEventRecord(full.event, self.stream)) }?;
        self.current = (self.current + 1) % NUM_SLOTS;
        let next = &mut self.slots[self.current];
        // SAFETY: an event that was never recorded is over.
        unsafe { call!(cuEventSynchronize(next.event)) }?;
        next.used = 0;
        Ok(())
    }

    /// Copies to the device in the order of the stream. The source may change once this returns.
    ///
    /// # Safety
    /// Both sides have `nbytes` bytes.
    pub(crate) unsafe fn write(
        &mut self,
        address: u64,
        source: *const u8,
        nbytes: usize,
    ) -> Result<(), CudaError> {
        let mut done = 0;
        while done < nbytes {
            if self.slots[self.current].used >= SLOT_BYTES {
                self.turn()?;
            }
            let slot = &mut self.slots[self.current];
            let len = (nbytes - done).min(SLOT_BYTES - slot.used);
            // SAFETY: the part lies within both; the slot's earlier copies read other bytes of it.
            unsafe {
                let memory = slot.memory.add(slot.used);
                ptr::copy_nonoverlapping(source.add(done), memory, len);
                let target = address + done as u64;
                call!(cuMemcpyHtoDAsync_v2(
                    target,
                    memory.cast(),
                    len,
                    self.stream
                ))?;
            }
            slot.used = (slot.used + len).next_multiple_of(ALIGNMENT);
            done += len;
        }
        Ok(())
    }

    /// Waits for everything before, and copies from the device.
    ///
    /// # Safety
    /// Both sides have `nbytes` bytes.
    pub(crate) unsafe fn read(
        &mut self,
        address: u64,
        target: *mut u8,
        nbytes: usize,
    ) -> Result<(), CudaError> {
        let mut done = 0;
        while done < nbytes {
            let len = (nbytes - done).min(SLOT_BYTES);
            // SAFETY: the part lies within both; nobody else has the arrivals' memory.
            unsafe {
                let source = address + done as u64;
                call!(cuMemcpyDtoHAsync_v2(
                    self.arrivals.cast(),
                    source,
                    len,
                    self.stream
                ))?;
                call!(cuStreamSynchronize(self.stream))?;
                ptr::copy_nonoverlapping(self.arrivals, target.add(done), len);
            }
            done += len;
        }
        Ok(())
    }

    /// Gives the memory back. Not used again.
    pub(crate) fn release(&mut self) {
        // SAFETY: ours; the stream is idle.
        unsafe {
            for slot in self.slots.drain(..) {
                sys::cuEventDestroy_v2(slot.event);
                sys::cuMemFreeHost(slot.memory.cast());
            }
            sys::cuMemFreeHost(self.arrivals.cast());
        }
    }
}
