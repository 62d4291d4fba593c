//! Arguments of a kernel, in the order of its parameters.

use super::{Buffer, Plain};

/// Most bytes of all arguments.
const MAX_BYTES: usize = 1024;

/// Values of a kernel's parameters. Each lies aligned to 16 bytes, as structs passed by value may want.
#[derive(Clone)]
pub struct Args {
    bytes: Box<Storage>,
    used: usize,
    offsets: Vec<usize>,
    /// In bytes.
    sizes: Vec<usize>,
}

#[derive(Clone)]
#[repr(C, align(16))]
struct Storage([u8; MAX_BYTES]);

impl Default for Args {
    fn default() -> Self {
        Self::new()
    }
}

impl Args {
    pub fn new() -> Self {
        Self {
            bytes: Box::new(Storage([0; MAX_BYTES])),
            used: 0,
            offsets: Vec::with_capacity(16),
            sizes: Vec::with_capacity(16),
        }
    }

    /// A number, or a `#[repr(C)]` struct.
    ///
    /// # Panics
    /// When all arguments together pass 1 KiB.
    #[must_use]
    pub fn value<T: Plain>(mut self, value: T) -> Self {
        let size = size_of::<T>();
        assert!(self.used + size <= MAX_BYTES, "arguments of at most 1 KiB");
        // SAFETY: `value` is plain bytes, and there is room for them.
        unsafe {
            let source = (&raw const value).cast::<u8>();
            std::ptr::copy_nonoverlapping(source, self.bytes.0.as_mut_ptr().add(self.used), size);
        }
        self.offsets.push(self.used);
        self.sizes.push(size);
        self.used = (self.used + size).next_multiple_of(16);
        self
    }

    /// Where a buffer begins.
    #[must_use]
    pub fn buffer<T: Plain>(self, buffer: &Buffer<T>) -> Self {
        self.value(buffer.address())
    }

    /// Where a buffer begins; null without one.
    #[must_use]
    pub fn optional<T: Plain>(self, buffer: Option<&Buffer<T>>) -> Self {
        self.value(buffer.map_or(0, Buffer::address))
    }

    /// As the driver takes them: a pointer to each.
    pub(crate) fn pointers(&self) -> Vec<*mut std::ffi::c_void> {
        let start = self.bytes.0.as_ptr();
        let at = |offset: &usize| start.wrapping_add(*offset).cast_mut().cast();
        self.offsets.iter().map(at).collect()
    }

    /// Bytes of each.
    #[cfg(feature = "emulator")]
    pub(crate) fn sizes(&self) -> &[usize] {
        &self.sizes
    }
}
