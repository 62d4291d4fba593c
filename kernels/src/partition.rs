//! Splitting an output buffer among threads without copies.

use std::marker::PhantomData;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::cost::{self, Nanoseconds, Team};
use crate::pool::ThreadPool;

/// A mutable slice that several threads write at disjoint places.
pub(crate) struct SharedSlice<'a, T> {
    start: *mut T,
    len: usize,
    _borrow: PhantomData<&'a mut [T]>,
}

// SAFETY: access goes through methods whose callers promise that nobody writes what another has.
unsafe impl<T: Send> Send for SharedSlice<'_, T> {}
// SAFETY: as above; `slice` shares values.
unsafe impl<T: Send + Sync> Sync for SharedSlice<'_, T> {}

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

    /// # Safety
    /// Nobody may write the range while the result lives.
    pub(crate) unsafe fn slice(&self, start: usize, len: usize) -> &[T] {
        assert!(
            start <= self.len && len <= self.len - start,
            "this is a bug"
        );
        // SAFETY: in bounds by the assertion; not written by the caller's promise.
        unsafe { std::slice::from_raw_parts(self.start.add(start), len) }
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

/// Time that it takes to take a chunk while other threads do: the counter's cache line goes from
/// core to core.
const TAKE_COST: Nanoseconds = Nanoseconds(50.0);
/// The part of a section that its counter's line may be on its way.
const TAKES_SHARE: f64 = 0.25;
/// Most chunks of a thread. A slow one holds up the others by its own chunks at most.
const CHUNKS_PER_THREAD_MAX: usize = 8;
/// The share of its chunks, as a fraction, that a thread has for itself: neighbours, so that it
/// reads one long run of memory. The others go to whichever thread asks first.
const OWN_CHUNKS: (usize, usize) = (3, 4);

/// How a section's items are divided: into chunks of neighbours, which share cache lines.
pub(crate) struct Division {
    num_threads: usize,
    /// Items of a chunk.
    pub chunk_len: usize,
    /// Of [`OWN_CHUNKS`], or just a first one each.
    own_chunks: (usize, usize),
}

impl Division {
    /// For items of about the same size. Threads take chunks one after the other, so that with `k`
    /// threads of `m` chunks each a section of `work / k` waits `k * m * TAKE_COST` for its counter
    /// at most. Of the chunk lengths that keep the busiest thread shortest, the smallest is chosen.
    pub(crate) fn new(team: Team, work: Nanoseconds, num_items: usize) -> Self {
        let num_threads = team.threads_for(work, num_items);
        let affordable = TAKES_SHARE * work.0 / (TAKE_COST.0 * (num_threads * num_threads) as f64);
        let per_thread = match num_threads {
            // Nobody to wait for, but weights that are read again for other rows stay in the cache.
            1 => CHUNKS_PER_THREAD_MAX,
            _ => (affordable as usize).clamp(1, CHUNKS_PER_THREAD_MAX),
        };
        let lens = (1..=per_thread).map(|count| num_items.div_ceil(num_threads * count).max(1));
        let of_busiest = |len: usize| num_items.div_ceil(len).div_ceil(num_threads) * len;
        let chunk_len = lens.min_by_key(|len| (of_busiest(*len), *len));
        Self {
            num_threads,
            chunk_len: chunk_len.unwrap_or(1),
            own_chunks: OWN_CHUNKS,
        }
    }

    /// The same for items of different sizes: a thread has just a first chunk for itself.
    pub(crate) fn of_uneven(mut self) -> Self {
        self.own_chunks = (0, 1);
        self
    }

    /// Calls `body` for every chunk of `0..num_chunks`.
    pub(crate) fn for_chunks(
        &self,
        pool: &ThreadPool,
        num_chunks: usize,
        body: impl Fn(usize) + Sync,
    ) {
        self.for_chunks_after(pool, num_chunks, || (), body);
    }

    /// [`Self::for_chunks`], where each thread that takes part calls `first` before its chunks.
    pub(crate) fn for_chunks_after(
        &self,
        pool: &ThreadPool,
        num_chunks: usize,
        first: impl Fn() + Sync,
        body: impl Fn(usize) + Sync,
    ) {
        let num_threads = self.num_threads.min(num_chunks);
        if num_threads <= 1 {
            first();
            (0..num_chunks).for_each(body);
            return;
        }
        let (part, whole) = self.own_chunks;
        let own = (num_chunks / num_threads * part / whole).max(1);
        let chunks = Chunks {
            own,
            next: Counter(AtomicUsize::new(num_threads * own)),
            count: num_chunks,
        };
        pool.run_on(num_threads, &|thread, _| {
            first();
            chunks.for_each(thread, &body);
        });
    }
}

/// A counter on its own cache lines, away from what threads only read.
#[repr(align(128))]
pub(crate) struct Counter(pub AtomicUsize);

/// Hands out chunk numbers `0..count`: to each thread some neighbours, the others to whichever asks
/// first.
struct Chunks {
    /// A thread's neighbours.
    own: usize,
    next: Counter,
    count: usize,
}

impl Chunks {
    fn for_each(&self, thread: usize, mut body: impl FnMut(usize)) {
        (thread * self.own..(thread + 1) * self.own).for_each(&mut body);
        // Looking first spares the line a last round among the threads.
        while self.next.0.load(Ordering::Relaxed) < self.count {
            let chunk = self.next.0.fetch_add(1, Ordering::Relaxed);
            if chunk >= self.count {
                return;
            }
            body(chunk);
        }
    }
}

/// Calls `body` for ranges that cover `0..num_items`, on as many threads as the work is worth.
/// Items should cost about the same.
pub(crate) fn for_ranges(
    pool: &ThreadPool,
    work: Nanoseconds,
    num_items: usize,
    body: impl Fn(Range<usize>) + Sync,
) {
    for_ranges_after(pool, work, num_items, || (), body);
}

/// [`for_ranges`], where each thread that takes part calls `first` before its ranges.
pub(crate) fn for_ranges_after(
    pool: &ThreadPool,
    work: Nanoseconds,
    num_items: usize,
    first: impl Fn() + Sync,
    body: impl Fn(Range<usize>) + Sync,
) {
    if num_items <= 1 {
        // A decode step's single row: not even to be divided.
        first();
        (0..num_items).for_each(|item| body(item..item + 1));
        return;
    }
    let division = Division::new(pool.team(), work, num_items);
    let chunk_len = division.chunk_len;
    division.for_chunks_after(pool, num_items.div_ceil(chunk_len), first, |chunk| {
        let start = chunk * chunk_len;
        body(start..(start + chunk_len).min(num_items));
    });
}

/// Calls `body` for every item of `0..num_items`, which may cost very different times, on as many
/// threads as the work is worth: each thread takes one item after the other.
pub(crate) fn for_each(
    pool: &ThreadPool,
    work: Nanoseconds,
    num_items: usize,
    body: impl Fn(usize) + Sync,
) {
    let division = Division {
        num_threads: pool.team().threads_for(work, num_items),
        chunk_len: 1,
        own_chunks: (0, 1),
    };
    division.for_chunks(pool, num_items, body);
}

/// Calls `body` for every row in `0..num_rows` of `width` values, on as many threads as they are
/// worth.
pub(crate) fn for_rows(
    pool: &ThreadPool,
    num_rows: usize,
    width: usize,
    body: impl Fn(usize) + Sync,
) {
    for_ranges(pool, cost::values(num_rows * width), num_rows, |rows| {
        rows.for_each(&body);
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_cover_all_items_once_whatever_the_work() {
        let check = |pool: &ThreadPool, work: f64, num_items: usize| {
            let counts: Vec<AtomicUsize> = (0..num_items).map(|_| AtomicUsize::new(0)).collect();
            let count = |item: usize| counts[item].fetch_add(1, Ordering::Relaxed);
            for_ranges(pool, Nanoseconds(work), num_items, |items| {
                assert!(!items.is_empty());
                for item in items {
                    count(item);
                }
            });
            for_each(pool, Nanoseconds(work), num_items, |item| {
                count(item);
            });
            assert!(counts.into_iter().all(|count| count.into_inner() == 2));
        };
        for pool in [ThreadPool::new(4), ThreadPool::eager(3)] {
            for work in [0.0, 3_000.0, 20_000.0, 1e7] {
                for num_items in [0, 1, 3, 4, 7, 36, 1000] {
                    check(&pool, work, num_items);
                }
            }
        }
    }

    #[test]
    fn chunks_are_as_many_as_their_counter_can_serve() {
        let division = |microseconds: f64, num_items| {
            let of = Division::new(Team::new(16), Nanoseconds(microseconds * 1000.0), num_items);
            (of.num_threads, of.chunk_len)
        };
        assert_eq!(division(5.0, 36), (3, 6));
        // Two chunks of five would keep a thread longer than one of nine.
        assert_eq!(division(60.0, 96), (11, 9));
        assert_eq!(division(60.0, 110), (11, 5));
        // A long one: eight chunks a thread.
        assert_eq!(division(5_000.0, 3072), (16, 24));
        assert_eq!(division(5_000.0, 0), (1, 1));
        assert_eq!(division(0.1, 80), (1, 10));
    }
}
