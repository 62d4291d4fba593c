//! Asking for memory before it is read.

#[cfg(target_arch = "x86_64")]
use super::ahead::Ahead;
use crate::matrix::PackedMatrix;

/// How far ahead of its use a panel is asked for. A panel of 1,536 inputs is 14 KiB, so the next
/// one is on its way from its first line to its last, scales among them. On two cores of a Zen 4 12
/// to 64 KiB read qwen2.5-coder-1.5b's weights at 30 to 34 GB/s of the 35 that there were, and 8
/// KiB of the codes alone at 22 (`cargo bench -p ponder-kernels --bench stream`).
pub(super) const DISTANCE: usize = 16 << 10;

/// Asks for the first lines of panel `panel`, before a run of products begins there.
pub(crate) fn begin_at(weights: &PackedMatrix, panel: usize) {
    #[cfg(target_arch = "x86_64")]
    if let Some(panel) = weights.panel(panel) {
        Ahead::begin(&panel);
    }
}

/// Asks for the cache lines of `data` ahead of their use; the first of them when there are more
/// than `max_lines`.
#[inline]
pub(crate) fn prefetch<T>(data: &[T], max_lines: usize) {
    let lines = size_of_val(data).div_ceil(64).min(max_lines);
    for line in 0..lines {
        prefetch_line(data.as_ptr().cast::<u8>().wrapping_add(64 * line));
    }
}

/// Asks for the cache line of `address`, into the second-level cache.
#[inline(always)]
pub(super) fn prefetch_line(address: *const u8) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        // SAFETY: a prefetch reads nothing, and needs only SSE, which x86-64 has.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(address.cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = address;
}
