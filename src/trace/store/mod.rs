//! The embedded store of traces: SQLite with a write-ahead log.
//!
//! One thread writes, in batches: whoever waits for a trace waits for one commit, and a committed
//! trace survives the death of the process. Readers have connections of their own and hold them for
//! one page, so that a slow reader delays nobody. Every write gives the trace the next sequence
//! number (`seq`), in the order of commits: a reader that asks for what comes after a number misses
//! nothing, and sees a trace again when its outcome arrives. What is too old is seen by nobody from
//! that second on; the writer deletes it when it gets to it.
//!
//! A file that lies for weeks on a disk does not stay as it was written. Every row has checksums,
//! and whoever reads gets what was written or word of a damaged trace, and everything behind it.

mod check;
mod clock;
mod columns;
mod damage;
mod error;
mod job;
mod numbers;
mod payload;
mod query;
mod responses;
mod scan;
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
pub use error::StoreError;
pub use job::Revision;
pub use query::{Filter, Listing, Order, Page, Stored, Summary, Totals};
pub use responses::PackedResponse;

use super::outcome::OutcomeUpdate;
use super::record::TraceRecord;
use check::{Checker, Suspicion};
use columns::{Encoded, Entry};
use damage::DamageLog;
use job::Command;
use query::Found;
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
/// How often an outcome is taken again because its trace was written by somebody else meanwhile.
const MAX_REVISIONS: usize = 8;

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

struct Inner {
    path: PathBuf,
    /// What readers may still see.
    retention: Retention,
    commands: Mutex<Option<SyncSender<Command>>>,
    changes: watch::Receiver<u64>,
    readers: Mutex<Vec<Connection>>,
    thread: Mutex<Option<JoinHandle<()>>>,
    damage: DamageLog,
    checker: Checker,
    keeps_texts: bool,
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
        let (retention, keeps_texts) = (Retention::of(&options), !options.redact);
        let (suspicion, suspicions) = Suspicion::channel();
        let checker = Checker::new(Some(suspicion.clone()));
        let (writer, last) = Writer::new(connection, options, suspicion)?;
        let (changed, changes) = watch::channel(last);
        let (commands, receiver) = sync_channel(MAX_QUEUED);
        let failed = |error: std::io::Error| StoreError::Failed(error.to_string());
        let thread = std::thread::Builder::new()
            .name("trace-store".to_owned())
            .spawn(move || writer.run(&receiver, &changed))
            .map_err(failed)?;
        let inner = Arc::new(Inner {
            path: path.to_owned(),
            retention,
            commands: Mutex::new(Some(commands)),
            changes,
            readers: Mutex::new(Vec::new()),
            thread: Mutex::new(Some(thread)),
            damage: DamageLog::default(),
            checker,
            keeps_texts,
        });
        let started = inner.checker.start(Arc::downgrade(&inner), suspicions);
        started.map_err(failed)?;
        Ok(Self { inner })
    }

    /// Opens a store that another process may be writing; nothing can be written through this handle. A file of an older
    /// version is brought up to date first.
    pub fn open_to_read(path: &Path) -> Result<Self, StoreError> {
        let failed = |error: rusqlite::Error| StoreError::Open {
            path: path.display().to_string(),
            message: error.to_string(),
        };
        let connection = schema::open_to_read(path).map_err(failed)?;
        if schema::is_older(&connection).map_err(failed)? {
            schema::open(path)?;
        }
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
                damage: DamageLog::default(),
                checker: Checker::none(),
                keeps_texts: true,
            }),
        })
    }

    /// The number of the latest write that is in the file.
    pub fn last_seq(&self) -> Result<u64, StoreError> {
        self.read(numbers::last_seq)
    }

    /// The largest number that a reader of this store can have seen, now or before a part of it was lost.
    pub fn largest_seq(&self) -> Result<u64, StoreError> {
        Ok(self.last_seq()?.max(*self.inner.changes.borrow()))
    }

    /// Damaged traces that were met since the store was opened, up to 65,536.
    pub fn num_damaged(&self) -> u64 {
        self.inner.damage.num_damaged()
    }

    /// Indexes that were made again since the store was opened, because they were wrong.
    pub fn num_rebuilt_indexes(&self) -> u64 {
        self.inner.damage.num_rebuilt()
    }

    /// A trace that turned out to be damaged after it was read: its record does not unpack.
    pub fn note_damaged(&self, seq: u64, error: &StoreError) {
        self.inner.damage.note(seq, &error.to_string());
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

    /// Takes an oracle's word and returns the trace with the values that follow from it. Blocks on the disk before it
    /// waits; a server does the two parts by themselves, see [`Self::prepare_outcome`].
    pub async fn set_outcome(
        &self,
        id: &str,
        owner: Owner,
        update: OutcomeUpdate,
    ) -> Result<TraceRecord, StoreError> {
        for _ in 0..MAX_REVISIONS {
            let (revision, record) = self.prepare_outcome(id, owner, &update)?;
            match self.revise(revision).await {
                Err(StoreError::Changed(_)) => {}
                result => return result.map(|()| record),
            }
        }
        Err(StoreError::Changed(id.to_owned()))
    }

    /// The trace with an oracle's word, ready to be written by [`Self::revise`]. Unpacks and packs it here rather than
    /// in the writer, which all others wait for.
    pub fn prepare_outcome(
        &self,
        id: &str,
        owner: Owner,
        update: &OutcomeUpdate,
    ) -> Result<(Revision, TraceRecord), StoreError> {
        let oldest = self.inner.retention.oldest();
        let found = self.read(|connection| query::get(connection, id, owner, oldest))?;
        let (entry, stored) = self.intact(id, found)?;
        let mut record = stored.record()?;
        record.apply(update)?;
        let after = Encoded::of(&record, entry.columns.owner)?;
        let revision = Revision {
            before: entry,
            after,
        };
        Ok((revision, record))
    }

    /// Writes what was prepared; [`StoreError::Changed`] if the trace was written by somebody else since.
    pub async fn revise(&self, revision: Revision) -> Result<(), StoreError> {
        let revision = Box::new(revision);
        self.ask(|done| Command::Revise { revision, done }).await
    }

    pub async fn delete(&self, id: &str, owner: Owner) -> Result<(), StoreError> {
        let id = id.to_owned();
        self.ask(|done| Command::Delete { id, owner, done }).await
    }

    async fn ask(
        &self,
        command: impl FnOnce(oneshot::Sender<Result<(), StoreError>>) -> Command,
    ) -> Result<(), StoreError> {
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
        let found = self.read(|connection| query::get(connection, id, owner, oldest))?;
        self.intact(id, found).map(|(_, stored)| stored)
    }

    fn intact(&self, id: &str, found: Found) -> Result<(Entry, Stored), StoreError> {
        match found {
            Found::Intact(entry, stored) => Ok((*entry, stored)),
            Found::Nothing => Err(StoreError::NotFound(id.to_owned())),
            Found::Damaged { seq, reason } => {
                self.inner.damage.note(seq, &reason);
                // It may be the index that led to another's row.
                self.inner.checker.suspect();
                Err(StoreError::DamagedTrace {
                    name: id.to_owned(),
                    reason,
                })
            }
        }
    }

    /// Summaries in the order of their writes, or newest first, from `after` on (a `seq`).
    pub fn list(
        &self,
        filter: &Filter,
        order: Order,
        after: Option<u64>,
        limit: usize,
    ) -> Result<Listing, StoreError> {
        self.list_while(filter, order, after, limit, &|| true)
    }

    /// The same, but that it ends early once `is_wanted` says no: a filter that takes nothing looks at every row.
    pub fn list_while(
        &self,
        filter: &Filter,
        order: Order,
        after: Option<u64>,
        limit: usize,
        is_wanted: &dyn Fn() -> bool,
    ) -> Result<Listing, StoreError> {
        let filter = self.inner.retention.narrowed(filter);
        let listing = self
            .read(|connection| query::list(connection, &filter, order, after, limit, is_wanted))?;
        self.note(&listing.damaged);
        Ok(listing)
    }

    /// Whole traces from `from` on, in the order of their writes.
    pub fn page(&self, filter: &Filter, from: u64) -> Result<Page, StoreError> {
        let filter = self.inner.retention.narrowed(filter);
        let page = self.read(|connection| query::page(connection, &filter, from))?;
        self.note(&page.damaged);
        Ok(page)
    }

    fn note(&self, damaged: &[u64]) {
        for seq in damaged {
            self.inner.damage.note(*seq, "its checksum is another");
        }
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
        drop(readers);
        result.map_err(|error| {
            if error::is_unreadable(&error) {
                self.inner.checker.suspect();
            }
            error.into()
        })
    }

    /// Writes what waits, and ends the writer. Blocks.
    pub fn close(&self) {
        lock(&self.inner.commands).take();
        let thread = lock(&self.inner.thread).take();
        if let Some(thread) = thread {
            let _ = thread.join();
        }
        self.inner.checker.close();
    }
}

/// What is stored of a trace, as a record or what is wrong with it: any bytes may be given.
#[doc(hidden)]
pub fn decode_stored(payload: &[u8]) -> Result<TraceRecord, String> {
    payload::decode(payload)
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
