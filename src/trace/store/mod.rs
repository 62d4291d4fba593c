//! The embedded store of traces: SQLite with a write-ahead log.
//!
//! One thread writes, in batches: whoever waits for a trace waits for one commit, and a committed trace survives
//! the death of the process. Readers have connections of their own and hold them for one page, so that a slow reader
//! delays nobody. Every write gives the trace the next sequence number (`seq`), in the order of commits: a
//! reader that asks for what comes after a number misses nothing, and sees a trace again when its outcome arrives.
//! What is too old is seen by nobody from that second on; the writer deletes it when it gets to it.

mod clock;
mod job;
mod query;
mod schema;
mod writer;

use std::path::{Path, PathBuf};
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use rusqlite::Connection;
use tokio::sync::{oneshot, watch};

pub use clock::Clock;
use clock::Retention;
pub use query::{Filter, Order, Stored, Summary, Totals};

use super::outcome::{OutcomeError, OutcomeUpdate};
use super::record::TraceRecord;
use job::Command;
use writer::Writer;

/// Whose traces are meant: those of one API key, or all.
pub type Owner = Option<u64>;

/// Traces that may wait for the writer; more are dropped.
const MAX_QUEUED: usize = 1024;
/// Idle connections that are kept for readers.
const MAX_IDLE_READERS: usize = 4;
/// Largest file unless a flag says otherwise, in bytes of compressed traces.
pub const DEFAULT_MAX_BYTES: u64 = 4 << 30;
pub const DEFAULT_MAX_AGE: Duration = Duration::from_secs(30 * 24 * 3600);
const RETENTION_INTERVAL: Duration = Duration::from_secs(60);

#[derive(Debug, Clone)]
pub struct StoreOptions {
    /// The oldest traces are deleted beyond this age and size (compressed bytes).
    pub max_age: Duration,
    pub max_bytes: u64,
    /// Keep no texts and token ids.
    pub redact: bool,
    /// How often old traces are deleted when nothing is written.
    pub retention_interval: Duration,
    pub clock: Clock,
}

impl Default for StoreOptions {
    fn default() -> Self {
        Self {
            max_age: DEFAULT_MAX_AGE,
            max_bytes: DEFAULT_MAX_BYTES,
            redact: false,
            retention_interval: RETENTION_INTERVAL,
            clock: Clock::default(),
        }
    }
}

#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    #[error("the trace store {path} cannot be opened: {message}")]
    Open { path: String, message: String },
    #[error(
        "the trace store {path} is damaged ({message}); move the file away to start a new one, or save what is readable with `sqlite3 FILE .recover`"
    )]
    Damaged { path: String, message: String },
    #[error(
        "the trace store has format {found}, this ponder knows {known}: use the ponder that wrote it or a newer one"
    )]
    TooNew { found: i64, known: i64 },
    #[error("the trace store failed: {0}")]
    Failed(String),
    #[error("{MAX_QUEUED} traces wait for the disk already")]
    Full,
    #[error("the trace store is closed")]
    Closed,
    #[error("there is no trace {0}")]
    NotFound(String),
    #[error(transparent)]
    Outcome(#[from] OutcomeError),
}

impl From<rusqlite::Error> for StoreError {
    fn from(error: rusqlite::Error) -> Self {
        Self::Failed(error.to_string())
    }
}

struct Inner {
    path: PathBuf,
    /// What readers may still see.
    retention: Retention,
    commands: Mutex<Option<SyncSender<Command>>>,
    changes: watch::Receiver<u64>,
    readers: Mutex<Vec<Connection>>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// A cloneable handle. Methods that are not `async` block on the disk.
#[derive(Clone)]
pub struct TraceStore {
    inner: Arc<Inner>,
}

impl TraceStore {
    /// Opens or makes the store, brings its format up to date, checks it, and starts the writer.
    pub fn open(path: &Path, options: StoreOptions) -> Result<Self, StoreError> {
        if let Some(folder) = path
            .parent()
            .filter(|folder| !folder.as_os_str().is_empty())
        {
            std::fs::create_dir_all(folder).map_err(|error| StoreError::Open {
                path: path.display().to_string(),
                message: error.to_string(),
            })?;
        }
        let connection = schema::open(path)?;
        let retention = Retention::of(&options);
        let (writer, last) = Writer::new(connection, options)?;
        let (changed, changes) = watch::channel(last);
        let (commands, receiver) = sync_channel(MAX_QUEUED);
        let thread = std::thread::Builder::new()
            .name("trace-store".to_owned())
            .spawn(move || writer.run(&receiver, &changed))
            .map_err(|error| StoreError::Failed(error.to_string()))?;
        Ok(Self {
            inner: Arc::new(Inner {
                path: path.to_owned(),
                retention,
                commands: Mutex::new(Some(commands)),
                changes,
                readers: Mutex::new(Vec::new()),
                thread: Mutex::new(Some(thread)),
            }),
        })
    }

    /// Opens a store that another process may be writing; nothing can be written through this handle.
    pub fn open_to_read(path: &Path) -> Result<Self, StoreError> {
        let connection = schema::open_to_read(path).map_err(|error| StoreError::Open {
            path: path.display().to_string(),
            message: error.to_string(),
        })?;
        let (_, changes) = watch::channel(0);
        Ok(Self {
            inner: Arc::new(Inner {
                path: path.to_owned(),
                // How long traces are kept is the writing process's business.
                retention: Retention::default(),
                commands: Mutex::new(None),
                changes,
                readers: Mutex::new(vec![connection]),
                thread: Mutex::new(None),
            }),
        })
    }

    /// The number of the latest write.
    pub fn last_seq(&self) -> Result<u64, StoreError> {
        self.read(query::last_seq)
    }

    /// Keeps a trace; returns once it is committed. The queue being full is an error at once.
    pub async fn put(&self, record: TraceRecord, owner: u64) -> Result<(), StoreError> {
        self.ask(|done| Command::Put {
            record: Box::new(record),
            owner,
            done,
        })
        .await
    }

    /// Takes an oracle's word and returns the trace with the values that follow from it.
    pub async fn set_outcome(
        &self,
        id: &str,
        owner: Owner,
        update: OutcomeUpdate,
    ) -> Result<TraceRecord, StoreError> {
        let id = id.to_owned();
        self.ask(|done| Command::Outcome {
            id,
            owner,
            update,
            done,
        })
        .await
    }

    pub async fn delete(&self, id: &str, owner: Owner) -> Result<(), StoreError> {
        let id = id.to_owned();
        self.ask(|done| Command::Delete { id, owner, done }).await
    }

    async fn ask<T>(
        &self,
        command: impl FnOnce(oneshot::Sender<Result<T, StoreError>>) -> Command,
    ) -> Result<T, StoreError> {
        let commands = lock(&self.inner.commands).clone();
        let commands = commands.ok_or(StoreError::Closed)?;
        let (done, answer) = oneshot::channel();
        commands
            .try_send(command(done))
            .map_err(|error| match error {
                TrySendError::Full(_) => StoreError::Full,
                TrySendError::Disconnected(_) => StoreError::Closed,
            })?;
        drop(commands);
        answer.await.map_err(|_| StoreError::Closed)?
    }

    /// The latest sequence number, and word of each new one.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.inner.changes.clone()
    }

    pub fn get(&self, id: &str, owner: Owner) -> Result<Stored, StoreError> {
        let oldest = self.inner.retention.oldest();
        self.read(|connection| query::get(connection, id, owner, oldest))?
            .ok_or_else(|| StoreError::NotFound(id.to_owned()))
    }

    /// Summaries in the order of their writes, or newest first, from `after` on (a `seq`).
    pub fn list(
        &self,
        filter: &Filter,
        order: Order,
        after: Option<u64>,
        limit: usize,
    ) -> Result<Vec<Summary>, StoreError> {
        let filter = self.inner.retention.narrowed(filter);
        self.read(|connection| query::list(connection, &filter, order, after, limit))
    }

    /// Whole traces from `from` on, in the order of their writes.
    pub fn page(&self, filter: &Filter, from: u64) -> Result<Vec<Stored>, StoreError> {
        let filter = self.inner.retention.narrowed(filter);
        self.read(|connection| query::page(connection, &filter, from))
    }

    pub fn totals(&self) -> Result<Totals, StoreError> {
        let oldest = self.inner.retention.oldest();
        self.read(|connection| query::totals(connection, oldest))
    }

    fn read<T>(
        &self,
        job: impl FnOnce(&Connection) -> Result<T, rusqlite::Error>,
    ) -> Result<T, StoreError> {
        let idle = lock(&self.inner.readers).pop();
        let connection = match idle {
            Some(connection) => connection,
            None => schema::open_to_read(&self.inner.path)?,
        };
        let result = job(&connection);
        let mut readers = lock(&self.inner.readers);
        if readers.len() < MAX_IDLE_READERS {
            readers.push(connection);
        }
        Ok(result?)
    }

    /// Writes what waits, and ends the writer. Blocks.
    pub fn close(&self) {
        lock(&self.inner.commands).take();
        let thread = lock(&self.inner.thread).take();
        if let Some(thread) = thread {
            let _ = thread.join();
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
