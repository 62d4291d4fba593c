//! Splitting an output buffer among threads without copies.

use std::marker::PhantomData;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::pool::ThreadPool;

/// A mutable slice that several threads write at disjoint places.
pub(crate) struct SharedSlice<'a, T> {
    start: *mut T,
    len: usize,
    _borrow: PhantomData<&'a mut [T]>,
}

// SAFETY: access goes through `slice_mut`, whose callers promise disjoint ranges.
unsafe impl<T: Send> Send for SharedSlice<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for SharedSlice<'_, T> {}

impl<'a, T> SharedSlice<'a, T> {
    pub(crate) fn new(slice: &'a mut [T]) -> Self {
        Self {
            start: slice.as_mut_ptr(),
            len: slice.len(),
            _borrow: PhantomData,
        }
    }

    /// # Safety
    /// No two live results of this method may overlap.
    #[allow(clippy::mut_from_ref)]
    pub(crate) unsafe fn slice_mut(&self, start: usize, len: usize) -> &mut [T] {
        assert!(
            start <= self.len && len <= self.len - start,
            "this is a bug"
        );
        // SAFETY: in bounds by the assertion; disjoint by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(start), len) }
    }

    /// Writes one element.
    ///
    /// # Safety
    /// Nobody else may use the element at the same time.
    pub(crate) unsafe fn write(&self, at: usize, value: T) {
        assert!(at < self.len, "this is a bug");
        // SAFETY: in bounds by the assertion; unshared by the caller's promise.
        unsafe { self.start.add(at).write(value) };
    }
}

/// Hands out chunk numbers `0..count` to whichever thread asks first.
pub(crate) struct Chunks {
    next: AtomicUsize,
    count: usize,
}

impl Chunks {
    pub(crate) fn new(count: usize) -> Self {
        Self {
            next: AtomicUsize::new(0),
            count,
        }
    }

    pub(crate) fn take(&self) -> Option<usize> {
        let chunk = self.next.fetch_add(1, Ordering::Relaxed);
        (chunk < self.count).then_some(chunk)
    }
}

/// Rows below which one thread is faster than waking the others.
const ROWS_PARALLEL: usize = 4;
/// Most rows a thread takes at once: neighbours share cache lines of the KV cache.
const ROWS_AT_ONCE: usize = 16;
/// Times a thread comes back for more rows, so that a slow one doesn't hold up the others.
const TURNS: usize = 4;

/// Calls `body` for every row in `0..num_rows`, on all threads when there are enough rows.
pub(crate) fn for_rows(pool: &ThreadPool, num_rows: usize, body: impl Fn(usize) + Sync) {
    if num_rows < ROWS_PARALLEL {
        (0..num_rows).for_each(body);
        return;
    }
    let at_once = (num_rows / (pool.num_threads() * TURNS)).clamp(1, ROWS_AT_ONCE);
    let chunks = Chunks::new(num_rows.div_ceil(at_once));
    pool.run(&|_, _| {
        while let Some(chunk) = chunks.take() {
            let first = chunk * at_once;
            (first..(first + at_once).min(num_rows)).for_each(&body);
        }
    });
}
