//! Device memory that is freed with its owner.

use std::marker::PhantomData;
use std::sync::Arc;

use crate::gpu::Inner;

/// Values that are their bytes: any bytes are a value, and none is padding that matters.
///
/// # Safety
/// `Self` is `Copy`, `#[repr(C)]` or a number, holds no pointer of the host, and every bit pattern is valid.
pub unsafe trait Plain: Copy + Default + Send + Sync + 'static {}

macro_rules! plain {
    ($($name:ty),*) => {
        $(
            // SAFETY: a number.
            unsafe impl Plain for $name {}
        )*
    };
}
plain!(u8, i8, u16, i16, u32, i32, u64, i64, f32, f64);

/// `len` values in device memory.
pub struct Buffer<T: Plain> {
    pub(crate) gpu: Arc<Inner>,
    pub(crate) address: u64,
    len: usize,
    values: PhantomData<T>,
}

impl<T: Plain> Buffer<T> {
    pub(crate) fn new(gpu: Arc<Inner>, address: u64, len: usize) -> Self {
        Self {
            gpu,
            address,
            len,
            values: PhantomData,
        }
    }

    /// Where the values begin, as a kernel takes it.
    pub fn address(&self) -> u64 {
        self.address
    }

    /// Where value `index` lies.
    ///
    /// # Panics
    /// When there is no such value.
    pub fn address_of(&self, index: usize) -> u64 {
        assert!(index <= self.len, "value {index} of {}", self.len);
        self.address + (index * size_of::<T>()) as u64
    }

    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub fn nbytes(&self) -> usize {
        self.len * size_of::<T>()
    }
}

impl<T: Plain> Drop for Buffer<T> {
    fn drop(&mut self) {
        self.gpu.free(self.address, self.nbytes());
    }
}
