//! A persistent thread pool for short parallel sections.
//!
//! Workers spin briefly between sections (a decode step runs hundreds of them) and park when the
//! engine is idle, so an idle server uses no CPU.

use std::any::Any;
use std::cell::UnsafeCell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;

/// Rounds of spinning before a worker parks: tens of microseconds.
const SPIN_ROUNDS: usize = 20_000;
/// Rounds after which spinning starts to yield, so that oversubscribed cores make progress.
const SPIN_BEFORE_YIELD: usize = 2_000;

type Task = dyn Fn(usize, usize) + Sync + 'static;

/// The task of the running section. Valid from the moment `epoch` changes until `remaining` is 0.
#[derive(Clone, Copy)]
struct TaskPointer(*const Task);

// SAFETY: the pointee is `Sync`, and `run` keeps it alive until every worker has finished with it.
unsafe impl Send for TaskPointer {}

struct Shared {
    /// Number of sections started; workers run one task per increment.
    epoch: AtomicUsize,
    remaining: AtomicUsize,
    stop: AtomicBool,
    /// Written by `run` before `epoch` changes, read by workers after they saw it change.
    task: UnsafeCell<Option<TaskPointer>>,
    /// Whether a section runs.
    is_busy: AtomicBool,
    /// Workers that sleep or are about to.
    num_parked: AtomicUsize,
    parking: Mutex<()>,
    wake: Condvar,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    has_panicked: AtomicBool,
}

// SAFETY: `task` is written only while `is_busy` is held and no worker runs, and read only between an
// epoch's start and the decrement of `remaining` that `run` waits for.
unsafe impl Sync for Shared {}

/// Threads that run one task together; the caller is thread 0.
pub struct ThreadPool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
}

impl ThreadPool {
    /// A pool of `num_threads` threads, the caller's included (at least one).
    pub fn new(num_threads: usize) -> Self {
        let shared = Arc::new(Shared {
            epoch: AtomicUsize::new(0),
            remaining: AtomicUsize::new(0),
            stop: AtomicBool::new(false),
            task: UnsafeCell::new(None),
            is_busy: AtomicBool::new(false),
            num_parked: AtomicUsize::new(0),
            parking: Mutex::new(()),
            wake: Condvar::new(),
            panic: Mutex::new(None),
            has_panicked: AtomicBool::new(false),
        });
        let num_threads = num_threads.max(1);
        let workers = (1..num_threads)
            .filter_map(|thread| {
                let shared = Arc::clone(&shared);
                std::thread::Builder::new()
                    .name(format!("ponder-kernel-{thread}"))
                    .spawn(move || worker(&shared, thread, num_threads))
                    .ok()
            })
            .collect::<Vec<_>>();
        assert_eq!(
            workers.len(),
            num_threads - 1,
            "kernel threads could not start"
        );
        Self { shared, workers }
    }

    pub fn num_threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Calls `task(thread, num_threads)` on every thread and returns when all have finished. Takes no
    /// lock unless a worker sleeps. Sections run one at a time even when the pool is shared; a task must
    /// not start another.
    ///
    /// # Panics
    /// A panic of any thread is carried to the caller after the others have finished.
    pub fn run<'a>(&self, task: &'a (dyn Fn(usize, usize) + Sync + 'a)) {
        if self.workers.is_empty() {
            task(0, 1);
            return;
        }
        let shared = &*self.shared;
        let mut rounds = 0;
        while shared.is_busy.swap(true, Ordering::Acquire) {
            spin(&mut rounds);
        }
        // SAFETY: only the lifetime changes; this function returns after every worker is done.
        let pointer = unsafe {
            std::mem::transmute::<*const (dyn Fn(usize, usize) + Sync + 'a), *const Task>(task)
        };
        // SAFETY: `is_busy` is held and no worker runs.
        unsafe { *shared.task.get() = Some(TaskPointer(pointer)) };
        shared
            .remaining
            .store(self.workers.len(), Ordering::Relaxed);
        shared.start_epoch();
        let own = catch_unwind(AssertUnwindSafe(|| task(0, self.num_threads())));
        let mut rounds = 0;
        while shared.remaining.load(Ordering::Acquire) > 0 {
            spin(&mut rounds);
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

impl Shared {
    /// Lets every worker go once. Sequential consistency orders this against a worker that parks: either
    /// it sees the new epoch, or this sees it parked and wakes it.
    fn start_epoch(&self) {
        self.epoch.fetch_add(1, Ordering::SeqCst);
        if self.num_parked.load(Ordering::SeqCst) > 0 {
            let _parking = lock(&self.parking);
            self.wake.notify_all();
        }
    }
}

impl Drop for ThreadPool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        self.shared.start_epoch();
        for worker in self.workers.drain(..) {
            let _ = worker.join();
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poison| poison.into_inner())
}

fn spin(rounds: &mut usize) {
    *rounds += 1;
    if *rounds < SPIN_BEFORE_YIELD {
        std::hint::spin_loop();
    } else {
        std::thread::yield_now();
    }
}

fn worker(shared: &Shared, thread: usize, num_threads: usize) {
    let mut seen = 0;
    loop {
        wait_for_epoch(shared, seen);
        seen += 1;
        if shared.stop.load(Ordering::Relaxed) {
            return;
        }
        // SAFETY: the epoch has started, so the task is written and stays until `remaining` falls.
        let task = unsafe { *shared.task.get() };
        if let Some(TaskPointer(task)) = task {
            // SAFETY: `run` waits for `remaining`, so the task outlives this call.
            let task = unsafe { &*task };
            if let Err(payload) = catch_unwind(AssertUnwindSafe(|| task(thread, num_threads))) {
                *lock(&shared.panic) = Some(payload);
                shared.has_panicked.store(true, Ordering::Relaxed);
            }
        }
        shared.remaining.fetch_sub(1, Ordering::Release);
    }
}

fn wait_for_epoch(shared: &Shared, seen: usize) {
    let mut rounds = 0;
    while rounds < SPIN_ROUNDS {
        if shared.epoch.load(Ordering::Acquire) != seen {
            return;
        }
        spin(&mut rounds);
    }
    let mut parking = lock(&shared.parking);
    shared.num_parked.fetch_add(1, Ordering::SeqCst);
    while shared.epoch.load(Ordering::SeqCst) == seen {
        parking = shared
            .wake
            .wait(parking)
            .unwrap_or_else(|poison| poison.into_inner());
    }
    shared.num_parked.fetch_sub(1, Ordering::SeqCst);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_thread_runs_every_section_once() {
        let pool = ThreadPool::new(3);
        let counts: Vec<AtomicUsize> = (0..3).map(|_| AtomicUsize::new(0)).collect();
        for _ in 0..500 {
            pool.run(&|thread, num_threads| {
                assert_eq!(num_threads, 3);
                counts[thread].fetch_add(1, Ordering::Relaxed);
            });
        }
        assert!(
            counts
                .iter()
                .all(|count| count.load(Ordering::Relaxed) == 500)
        );
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_survives() {
        let pool = ThreadPool::new(2);
        let result = catch_unwind(AssertUnwindSafe(|| {
            pool.run(&|thread, _| assert_ne!(thread, 1, "worker fails"));
        }));
        assert!(result.is_err());
        let ran = AtomicUsize::new(0);
        pool.run(&|_, _| {
            ran.fetch_add(1, Ordering::Relaxed);
        });
        assert_eq!(ran.load(Ordering::Relaxed), 2);
    }
}
