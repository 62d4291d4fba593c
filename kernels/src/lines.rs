//! Buffers that begin at a cache line, so that vectors of a line are read by one access: a vector
//! across two lines takes two, which costs attention a tenth.

use std::ops::{Deref, DerefMut};

/// Bytes of a cache line.
const LINE_BYTES: usize = 64;

/// Values whose first one begins a cache line; memory is reused.
#[derive(Debug, Default)]
pub(crate) struct Lines<T> {
    /// Longer than `len` by a line.
    data: Vec<T>,
    start: usize,
    len: usize,
}

impl<T: Copy + Default> Lines<T> {
    /// As many values, whatever they are.
    pub(crate) fn resize(&mut self, len: usize) {
        let line = LINE_BYTES / size_of::<T>();
        if self.data.len() < len + line {
            self.data.resize(len + line, T::default());
            // Less than a line, or the platform cannot tell.
            let start = self.data.as_ptr().align_offset(LINE_BYTES);
            self.start = if start < line { start } else { 0 };
        }
        self.len = len;
    }

    /// Copies of `values` alone.
    pub(crate) fn set(&mut self, values: &[T]) {
        self.resize(values.len());
        self.copy_from_slice(values);
    }
}

impl<T> Deref for Lines<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.data[self.start..self.start + self.len]
    }
}

impl<T> DerefMut for Lines<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        &mut self.data[self.start..self.start + self.len]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_begin_at_a_line_however_often_they_grow() {
        let (mut floats, mut bytes) = (Lines::<f32>::default(), Lines::<u8>::default());
        assert!(floats.is_empty());
        for len in [1, 16, 7, 1000, 4096, 3, 70_000] {
            floats.resize(len);
            bytes.set(&vec![len as u8; len]);
            assert_eq!((floats.len(), bytes.len()), (len, len));
            assert_eq!(floats.as_ptr().align_offset(LINE_BYTES), 0);
            assert_eq!(bytes.as_ptr().align_offset(LINE_BYTES), 0);
            assert!(bytes.iter().all(|byte| *byte == len as u8));
        }
    }
}
