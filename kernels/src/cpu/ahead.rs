//! Asking for weights before they are used.

use super::prefetch::{DISTANCE, prefetch_line};
use crate::panel::{LINE_BYTES, Panel};

/// The same of AMX's pipeline, measured on another machine: past the page, which the hardware's own
/// prefetching does not cross.
pub(super) const AMX_DISTANCE: usize = 8 << 10;

/// Fraction bits of [`Ahead::lines_per_turn`].
const FRACTION_BITS: u32 = 16;

/// The cache lines that shall be fetched during a walk over a panel, in equal parts for its turns.
/// They go into the second-level cache: lines from memory hold up others on their way into the
/// first (28 against 32 GB/s).
#[derive(Clone, Copy)]
pub(super) struct Ahead {
    start: *const u8,
    lines_per_turn: usize,
    /// Turns that came before.
    first_turn: usize,
}

impl Ahead {
    /// While a panel is multiplied as it is read from memory, one turn a block: as many lines some
    /// way behind it.
    pub(super) fn of_packed(panel: &Panel<'_>) -> Self {
        let start = panel.codes.as_ptr().wrapping_add(DISTANCE);
        Self::new(start, panel, panel.blocks)
    }

    /// While a panel is multiplied that was unpacked before: the panel that follows.
    pub(super) fn of_next(panel: &Panel<'_>, turns: usize) -> Self {
        let start = panel.codes.as_ptr().wrapping_add(panel.bytes());
        Self::new(start, panel, turns)
    }

    /// Asks at once for the first lines of a panel that nobody asked for before.
    pub(super) fn begin(panel: &Panel<'_>) {
        for line in 0..DISTANCE / LINE_BYTES {
            prefetch_line(panel.codes.as_ptr().wrapping_add(line * LINE_BYTES));
        }
    }

    fn new(start: *const u8, panel: &Panel<'_>, turns: usize) -> Self {
        let lines = panel.bytes() / LINE_BYTES;
        Self {
            start,
            lines_per_turn: (lines << FRACTION_BITS).div_ceil(turns.max(1)),
            first_turn: 0,
        }
    }

    /// The same after so many turns.
    pub(super) fn after(self, turns: usize) -> Self {
        Self {
            first_turn: self.first_turn + turns,
            ..self
        }
    }

    /// Those of turn `turn`.
    #[inline(always)]
    pub(super) fn fetch(self, turn: usize) {
        let turn = self.first_turn + turn;
        let [from, to] = [turn, turn + 1].map(|turn| (turn * self.lines_per_turn) >> FRACTION_BITS);
        for line in from..to {
            prefetch_line(self.start.wrapping_add(line * LINE_BYTES));
        }
    }
}

/// Asks for `count` lines from `start` on, into the first-level cache.
#[inline(always)]
pub(super) fn fetch_lines(start: *const u8, count: usize) {
    use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
    for line in 0..count {
        // SAFETY: a prefetch reads nothing, and needs only SSE, which x86-64 has.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(start.wrapping_add(line * LINE_BYTES).cast()) };
    }
}
