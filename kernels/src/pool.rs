//! A persistent thread pool for short parallel sections.
//!
//! A decode step runs hundreds of sections of a few microseconds, so what a section costs beside
//! its work counts. Each worker has a cache line of its own, which the caller writes to start it
//! and reads to join it: a section touches the lines of the threads that take part and nobody
//! else's. The others watch their own lines, which stay in their caches.
//!
//! Workers spin between sections and park when the engine is idle, so an idle server uses no CPU.
//! Nobody waits for a worker that has not begun: the caller does its part as well.

use std::any::Any;
use std::cell::UnsafeCell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{JoinHandle, Thread};

use crate::cost::{JOIN_COST, Nanoseconds, Team};

/// Rounds of waiting before a worker parks: a few milliseconds, longer than a step of a small
/// model.
const SPIN_ROUNDS: usize = 20_000;
/// Rounds after which waiting starts to yield, so that oversubscribed cores make progress.
const SPIN_BEFORE_YIELD: usize = 2_000;
type Task = dyn Fn(usize, usize) + Sync + 'static;

/// A worker's part of a section.
#[derive(Clone, Copy)]
struct Part {
    task: *const Task,
    num_threads: usize,
}

/// Nothing to do; the part is the caller's to write.
const IDLE: u8 = 0;
/// A part waits to be taken, by the worker or by the caller.
const OFFERED: u8 = 1;
/// The worker runs the part.
const RUNNING: u8 = 2;
/// The worker shall end.
const STOPPED: u8 = 3;

/// What the caller and one worker share: two lines, because processors fetch lines in pairs.
#[repr(align(128))]
struct Slot {
    state: AtomicU8,
    /// Written while the state is `IDLE`, read by the worker while it is `RUNNING`.
    part: UnsafeCell<Option<Part>>,
}

// SAFETY: the state says whose turn it is to use `part`, and `run_on` keeps the task, which is
// `Sync`, alive until every part is done.
unsafe impl Send for Slot {}
// SAFETY: as above.
unsafe impl Sync for Slot {}

struct Shared {
    /// One a worker.
    slots: Box<[Slot]>,
    /// Which workers sleep or are about to. They are few bytes that are rarely written, so looking
    /// at them for each section costs nothing.
    is_parked: Box<[AtomicBool]>,
    /// Whether a section runs.
    is_busy: AtomicBool,
    has_panicked: AtomicBool,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

/// Threads that run one task together; the caller is thread 0.
pub struct ThreadPool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    /// To wake the workers by.
    threads: Vec<Thread>,
    join_cost: Nanoseconds,
}

impl ThreadPool {
    /// A pool of `num_threads` threads, the caller's included (at least one).
    pub fn new(num_threads: usize) -> Self {
        Self::with_join_cost(num_threads, JOIN_COST)
    }

    /// A pool that runs even the smallest section on as many threads as it has items: for tests.
    pub fn eager(num_threads: usize) -> Self {
        Self::with_join_cost(num_threads, Nanoseconds(f64::MIN_POSITIVE))
    }

    fn with_join_cost(num_threads: usize, join_cost: Nanoseconds) -> Self {
        let num_workers = num_threads.max(1) - 1;
        let slot = |_| Slot {
            state: AtomicU8::new(IDLE),
            part: UnsafeCell::new(None),
        };
        let shared = Arc::new(Shared {
            slots: (0..num_workers).map(slot).collect(),
            is_parked: (0..num_workers).map(|_| AtomicBool::new(false)).collect(),
            is_busy: AtomicBool::new(false),
            has_panicked: AtomicBool::new(false),
            panic: Mutex::new(None),
        });
        let workers = (0..num_workers)
            .filter_map(|index| {
                let shared = Arc::clone(&shared);
                std::thread::Builder::new()
                    .name(format!("ponder-kernel-{}", index + 1))
                    .spawn(move || shared.work(index))
                    .ok()
            })
            .collect::<Vec<_>>();
        assert_eq!(workers.len(), num_workers, "kernel threads could not start");
        let threads = workers.iter().map(|worker| worker.thread().clone());
        Self {
            threads: threads.collect(),
            shared,
            workers,
            join_cost,
        }
    }

    pub fn num_threads(&self) -> usize {
        self.workers.len() + 1
    }

    pub(crate) fn team(&self) -> Team {
        Team {
            num_threads: self.num_threads(),
            join_cost: self.join_cost,
        }
    }

    /// [`Self::run_on`] all threads.
    ///
    /// # Panics
    /// As there.
    pub fn run<'a>(&self, task: &'a (dyn Fn(usize, usize) + Sync + 'a)) {
        self.run_on(self.num_threads(), task);
    }

    /// Calls `task(part, num_threads)` once for each part in `0..num_threads` and returns when all
    /// have finished. Each part runs on a thread of its own, or on the caller's where a thread
    /// comes too late: a part must not wait for another, except for work that it has seen begun.
    /// Takes no lock. Sections run one at a time even when the pool is shared; a task must not
    /// start another.
    ///
    /// # Panics
    /// A panic of any part is carried to the caller after the others have finished.
    pub fn run_on<'a>(&self, num_threads: usize, task: &'a (dyn Fn(usize, usize) + Sync + 'a)) {
        let num_threads = num_threads.clamp(1, self.num_threads());
        if num_threads == 1 {
            task(0, 1);
            return;
        }
        let shared = &*self.shared;
        let mut rounds = 0;
        while shared.is_busy.swap(true, Ordering::Acquire) {
            wait(&mut rounds);
        }
        // SAFETY: only the lifetime changes; this function returns after every part is done.
        let erased = unsafe {
            std::mem::transmute::<*const (dyn Fn(usize, usize) + Sync + 'a), *const Task>(task)
        };
        let slots = &shared.slots[..num_threads - 1];
        for slot in slots {
            let part = Part {
                task: erased,
                num_threads,
            };
            // SAFETY: `is_busy` is held and the last section has ended, so the state is `IDLE`.
            unsafe { *slot.part.get() = Some(part) };
            slot.state.store(OFFERED, Ordering::Release);
        }
        // A worker that parks at this moment may be missed: then its part is done here.
        for (is_parked, thread) in shared.is_parked.iter().zip(&self.threads[..slots.len()]) {
            if is_parked.load(Ordering::Relaxed) {
                thread.unpark();
            }
        }
        let mut own = catch_unwind(AssertUnwindSafe(|| task(0, num_threads)));
        for (index, slot) in slots.iter().enumerate() {
            if slot.take_offer(IDLE) {
                let part = catch_unwind(AssertUnwindSafe(|| task(index + 1, num_threads)));
                own = own.and(part);
            }
        }
        let mut rounds = 0;
        for slot in slots {
            while slot.state.load(Ordering::Acquire) != IDLE {
                wait(&mut rounds);
            }
        }
        let worker_panic = if shared.has_panicked.swap(false, Ordering::Relaxed) {
            lock(&shared.panic).take()
        } else {
            None
        };
        shared.is_busy.store(false, Ordering::Release);
        if let Some(payload) = own.err().or(worker_panic) {
            resume_unwind(payload);
        }
    }
}

impl Slot {
    /// Takes the part that is offered, if it still is.
    fn take_offer(&self, next: u8) -> bool {
        self.state.load(Ordering::Relaxed) == OFFERED
            && self
                .state
                .compare_exchange(OFFERED, next, Ordering::Acquire, Ordering::Relaxed)
                .is_ok()
    }
}

impl Shared {
    /// A worker's life.
    fn work(&self, index: usize) {
        let slot = &self.slots[index];
        loop {
            self.wait_for_offer(index);
            if slot.state.load(Ordering::Relaxed) == STOPPED {
                return;
            }
            if !slot.take_offer(RUNNING) {
                continue;
            }
            // SAFETY: the state is `RUNNING`, so the part was written before and stays.
            if let Some(part) = unsafe { *slot.part.get() } {
                // SAFETY: `run_on` waits for this part, so the task outlives the call.
                let task = unsafe { &*part.task };
                let call = || task(index + 1, part.num_threads);
                if let Err(payload) = catch_unwind(AssertUnwindSafe(call)) {
                    *lock(&self.panic) = Some(payload);
                    self.has_panicked.store(true, Ordering::Relaxed);
                }
            }
            slot.state.store(IDLE, Ordering::Release);
        }
    }

    fn wait_for_offer(&self, index: usize) {
        let state = &self.slots[index].state;
        let mut rounds = 0;
        while rounds < SPIN_ROUNDS {
            if state.load(Ordering::Relaxed) != IDLE {
                return;
            }
            wait(&mut rounds);
        }
        self.is_parked[index].store(true, Ordering::SeqCst);
        while state.load(Ordering::SeqCst) == IDLE {
            std::thread::park();
        }
        self.is_parked[index].store(false, Ordering::Relaxed);
    }
}

impl Drop for ThreadPool {
    fn drop(&mut self) {
        for (slot, thread) in self.shared.slots.iter().zip(&self.threads) {
            slot.state.store(STOPPED, Ordering::SeqCst);
            // Unlike an offer this must not be missed; an unpark before a park ends the park.
            thread.unpark();
        }
        for worker in self.workers.drain(..) {
            let _ = worker.join();
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poison| poison.into_inner())
}

/// One round of waiting.
pub(crate) fn wait(rounds: &mut usize) {
    *rounds += 1;
    if *rounds < SPIN_BEFORE_YIELD {
        std::hint::spin_loop();
    } else {
        std::thread::yield_now();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;

    #[test]
    fn every_part_of_every_section_runs_once() {
        let pool = ThreadPool::new(3);
        for round in 0..1500 {
            let wanted = 1 + round % 3;
            let counts: Vec<AtomicUsize> = (0..3).map(|_| AtomicUsize::new(0)).collect();
            pool.run_on(wanted, &|part, num_threads| {
                assert_eq!(num_threads, wanted);
                counts[part].fetch_add(1, Ordering::Relaxed);
            });
            let counts = counts.into_iter().map(AtomicUsize::into_inner);
            let expected = (0..3).map(|part| usize::from(part < wanted));
            assert!(counts.eq(expected));
        }
    }

    #[test]
    fn sections_of_several_callers_run_one_at_a_time() {
        let pool = ThreadPool::new(4);
        let (running, sections) = (AtomicUsize::new(0), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            for caller in 0..3 {
                let (pool, running, sections) = (&pool, &running, &sections);
                scope.spawn(move || {
                    for round in 0..300 {
                        pool.run_on(2 + (caller + round) % 3, &|part, num_threads| {
                            assert!(running.fetch_add(1, Ordering::SeqCst) < num_threads);
                            sections.fetch_add(usize::from(part == 0), Ordering::Relaxed);
                            running.fetch_sub(1, Ordering::SeqCst);
                        });
                    }
                });
            }
        });
        assert_eq!(sections.into_inner(), 900);
    }

    #[test]
    fn a_worker_that_sleeps_holds_nobody_up_and_wakes() {
        let pool = ThreadPool::new(2);
        while !pool.shared.is_parked[0].load(Ordering::SeqCst) {
            std::thread::yield_now();
        }
        let caller = std::thread::current().id();
        let mut num_elsewhere = 0;
        for _ in 0..200_000 {
            let elsewhere = AtomicUsize::new(0);
            pool.run_on(2, &|_, _| {
                let is_here = std::thread::current().id() == caller;
                elsewhere.fetch_add(usize::from(!is_here), Ordering::Relaxed);
            });
            num_elsewhere += elsewhere.into_inner();
            if num_elsewhere > 0 {
                break;
            }
            std::thread::yield_now();
        }
        assert!(num_elsewhere > 0, "the worker took part again");
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_survives() {
        let pool = ThreadPool::new(2);
        for failing in 0..2 {
            let result = catch_unwind(AssertUnwindSafe(|| {
                pool.run(&|part, _| assert_ne!(part, failing, "a part fails"));
            }));
            assert!(result.is_err());
        }
        let ran = AtomicUsize::new(0);
        pool.run(&|_, _| {
            ran.fetch_add(1, Ordering::Relaxed);
        });
        assert_eq!(ran.load(Ordering::Relaxed), 2);
    }
}
