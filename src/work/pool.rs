//! A few threads of low priority for work of unknown size.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::available_parallelism;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::INLINE_BYTES;
use super::budget::{Budget, Stop, thread_time};
use super::fair::FairQueue;

/// Pieces of work that may wait for a thread, of all tenants together.
pub const DEFAULT_MAX_QUEUED: usize = 1024;
/// Processor time of one piece of work.
const MAX_CPU: Duration = Duration::from_millis(500);
/// Templates and parsers recurse on these threads.
const STACK_BYTES: usize = 16 << 20;

/// How many threads a pool has unless a flag says otherwise: never fewer than two, so that one tenant
/// cannot hold all of them.
pub fn default_threads() -> usize {
    available_parallelism().map_or(2, |cores| (cores.get() / 2).max(2))
}

/// Why work was not done.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WorkError {
    #[error("the request's deadline passed before {0} was done")]
    Deadline(&'static str),
    #[error(
        "{what} took more than {max_cpu:?} of processor time, which is the limit of one request: send less, or something simpler"
    )]
    Spent {
        what: &'static str,
        max_cpu: Duration,
    },
    #[error("{max_queued} pieces of work wait for a thread already")]
    Full { max_queued: usize },
    #[error("{0} failed inside the server; this is a bug")]
    Panicked(&'static str),
    #[error("the server is shutting down")]
    Closed,
}

#[derive(Debug, Clone)]
pub struct PoolOptions {
    /// Of the threads.
    pub name: &'static str,
    pub num_threads: usize,
    /// Pieces that may wait; one tenant may take half of these places.
    pub max_queued: usize,
    /// Processor time of one piece of work.
    pub max_cpu: Duration,
    /// Whether there are several tenants: then one of them leaves a thread to the others.
    pub is_shared: bool,
    /// Added to the threads' niceness (Linux): they yield to the engine.
    pub niceness: i32,
}

impl Default for PoolOptions {
    fn default() -> Self {
        Self {
            name: "ponder-work",
            num_threads: default_threads(),
            max_queued: DEFAULT_MAX_QUEUED,
            max_cpu: MAX_CPU,
            is_shared: false,
            niceness: 10,
        }
    }
}

impl PoolOptions {
    /// Threads that one tenant may hold at once.
    fn max_running(&self) -> usize {
        match self.is_shared {
            true => self.num_threads.saturating_sub(1).max(1),
            false => self.num_threads,
        }
    }

    /// Places in the queue that one tenant may hold at once.
    fn max_queued_of_one(&self) -> usize {
        match self.is_shared {
            true => self.max_queued.div_ceil(2),
            false => self.max_queued,
        }
    }
}

type Job = Box<dyn FnOnce(Budget) + Send>;

struct Waiting {
    budget: Budget,
    job: Job,
}

struct State {
    queue: FairQueue<Waiting>,
    num_threads: usize,
    num_idle: usize,
    is_closed: bool,
}

struct Shared {
    options: PoolOptions,
    state: Mutex<State>,
    wake: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Ends the threads with the last handle.
struct Owner(Arc<Shared>);

impl Drop for Owner {
    fn drop(&mut self) {
        self.0.lock().is_closed = true;
        self.0.wake.notify_all();
    }
}

/// Threads that do what clients make the server do. Cheap to clone; a thread starts when there is
/// work for it.
#[derive(Clone)]
pub struct WorkPool {
    owner: Arc<Owner>,
}

impl Default for WorkPool {
    fn default() -> Self {
        Self::new(PoolOptions::default())
    }
}

impl std::fmt::Debug for WorkPool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "WorkPool({:?})", self.owner.0.options)
    }
}

/// What a job left: nothing when it panicked.
type Outcome<T> = Result<T, WorkError>;

impl WorkPool {
    pub fn new(options: PoolOptions) -> Self {
        let state = State {
            queue: FairQueue::new(),
            num_threads: 0,
            num_idle: 0,
            is_closed: false,
        };
        let shared = Shared {
            options,
            state: Mutex::new(state),
            wake: Condvar::new(),
        };
        Self {
            owner: Arc::new(Owner(Arc::new(shared))),
        }
    }

    /// Pieces that wait for a thread.
    pub fn num_waiting(&self) -> usize {
        self.owner.0.lock().queue.num_waiting()
    }

    /// Does `job` on a thread of the pool when it is the tenant's turn. The job looks at its budget
    /// and gives up with the [`Stop`] that it found. Whoever drops the future ends the job. `what`
    /// names the work in errors, as "tokenising the prompt".
    pub async fn run<T: Send + 'static>(
        &self,
        what: &'static str,
        tenant: u64,
        deadline: Option<Instant>,
        job: impl FnOnce(&Budget) -> Result<T, Stop> + Send + 'static,
    ) -> Outcome<T> {
        let shared = &self.owner.0;
        let max_cpu = shared.options.max_cpu;
        let explain = move |stop| match stop {
            Stop::Deadline => WorkError::Deadline(what),
            Stop::Spent => WorkError::Spent { what, max_cpu },
            // Nobody reads it.
            Stop::Abandoned => WorkError::Closed,
        };
        let (sender, receiver) = oneshot::channel();
        let flag = Arc::new(AtomicBool::new(false));
        let budget = Budget::new(deadline, Arc::clone(&flag));
        let work = move |budget: Budget| {
            let done = catch_unwind(AssertUnwindSafe(|| job(&budget)));
            let done = match done {
                Ok(done) => done.map_err(explain),
                Err(_) => Err(WorkError::Panicked(what)),
            };
            let _ = sender.send(done);
        };
        let id = shared.submit(tenant, budget, Box::new(work))?;
        let _ticket = Ticket {
            shared,
            tenant,
            id,
            flag,
        };
        let done = async { receiver.await.unwrap_or(Err(WorkError::Closed)) };
        match deadline {
            None => done.await,
            // Work that waits for its turn does not look at the clock itself.
            Some(at) => tokio::time::timeout_at(at.into(), done)
                .await
                .unwrap_or(Err(WorkError::Deadline(what))),
        }
    }
}

impl WorkPool {
    /// Does a job that may fail on its own account: at once if its input has few bytes
    /// ([`INLINE_BYTES`]), else as [`Self::run`] does. An error of a job whose budget is over is the
    /// budget's.
    pub async fn run_sized<T: Send + 'static, E: From<WorkError> + Send + 'static>(
        &self,
        num_bytes: usize,
        what: &'static str,
        tenant: u64,
        deadline: Option<Instant>,
        job: impl FnOnce(&Budget) -> Result<T, E> + Send + 'static,
    ) -> Result<T, E> {
        if num_bytes <= INLINE_BYTES {
            let budget = Budget::until(deadline);
            return job(&budget).map_err(|error| match budget.check() {
                Err(_) => WorkError::Deadline(what).into(),
                Ok(()) => error,
            });
        }
        let done = self.run(what, tenant, deadline, |budget| match job(budget) {
            Ok(done) => Ok(Ok(done)),
            Err(error) => budget.check().map(|()| Err(error)),
        });
        done.await?
    }
}

/// A piece of work that somebody waits for: it ends with whoever waits.
struct Ticket<'p> {
    shared: &'p Shared,
    tenant: u64,
    id: u64,
    flag: Arc<AtomicBool>,
}

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        self.flag.store(true, Ordering::Release);
        let removed = self.shared.lock().queue.remove(self.tenant, self.id);
        // What the work holds is given back outside of the lock.
        drop(removed);
    }
}

impl Shared {
    fn submit(self: &Arc<Self>, tenant: u64, budget: Budget, job: Job) -> Result<u64, WorkError> {
        let options = &self.options;
        let mut state = self.lock();
        if state.is_closed {
            return Err(WorkError::Closed);
        }
        if state.queue.num_waiting() >= options.max_queued
            || state.queue.num_waiting_of(tenant) >= options.max_queued_of_one()
        {
            let max_queued = options.max_queued;
            return Err(WorkError::Full { max_queued });
        }
        let id = state.queue.push(tenant, Waiting { budget, job });
        // One that is idle may have been woken for another piece and not have taken it yet.
        if state.num_idle < state.queue.num_waiting() && state.num_threads < options.num_threads {
            let own = Arc::clone(self);
            let thread = std::thread::Builder::new()
                .name(options.name.to_owned())
                .stack_size(STACK_BYTES)
                .spawn(move || own.serve());
            match thread {
                Ok(_) => state.num_threads += 1,
                Err(_) if state.num_threads > 0 => {}
                Err(_) => {
                    state.queue.remove(tenant, id);
                    let max_queued = options.max_queued;
                    return Err(WorkError::Full { max_queued });
                }
            }
        }
        drop(state);
        self.wake.notify_one();
        Ok(id)
    }

    /// A thread's life.
    fn serve(&self) {
        lower_priority(self.options.niceness);
        let mut state = self.lock();
        loop {
            let Some((tenant, waiting)) = state.queue.pop(self.options.max_running()) else {
                if state.is_closed {
                    return;
                }
                state.num_idle += 1;
                state = self
                    .wake
                    .wait(state)
                    .unwrap_or_else(PoisonError::into_inner);
                state.num_idle -= 1;
                continue;
            };
            drop(state);
            let used = self.work(waiting);
            state = self.lock();
            state.queue.done(tenant, used);
            // A tenant that was at its share may go on, on a thread that found nothing to do before.
            if state.queue.num_waiting() > 0 {
                self.wake.notify_one();
            }
        }
    }

    /// Does one piece and tells what it used: the time that it held the thread.
    fn work(&self, waiting: Waiting) -> Duration {
        let Waiting { mut budget, job } = waiting;
        let (started, cpu) = (Instant::now(), thread_time());
        budget.begin(self.options.max_cpu);
        job(budget);
        started.elapsed().max(thread_time().saturating_sub(cpu))
    }
}

/// Makes the calling thread yield to others. On Linux niceness belongs to threads; elsewhere to
/// processes, where it would slow the engine down.
#[cfg(target_os = "linux")]
pub fn lower_priority(niceness: i32) {
    let _ = rustix::process::nice(niceness);
}

#[cfg(not(target_os = "linux"))]
pub fn lower_priority(_: i32) {}

#[cfg(test)]
mod tests;
