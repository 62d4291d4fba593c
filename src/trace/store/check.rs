//! Whether the indexes say what the table says.
//!
//! Opening a file checks its tables and the shape of its trees, not what indexes hold: that would
//! take too long before serving. So it is done afterwards, by a thread of its own with a reader's
//! connection, some rows at a time: no snapshot lives longer than it takes to look these up, and
//! the thread rests as long as it worked. An index that is wrong is made again from its table.

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rusqlite::{Connection, Transaction, TransactionBehavior, params};

use super::columns::Columns;
use super::job::Command;
use super::scan::{Direction, START, Scanned, scan};
use super::{Inner, StoreError, lock, schema};

/// Rows of one snapshot.
const SLICE_ROWS: usize = 512;
/// Between two checks that something unreadable asked for.
const MIN_INTERVAL: Duration = Duration::from_secs(600);

/// The indexes, each with how a row is found in it.
const INDEXES: [(&str, &str); 3] = [
    ("sqlite_autoindex_traces_1", "id = ?2"),
    ("traces_created", "created = ?2"),
    ("traces_owner", "owner = ?2"),
];

/// Asks for a check; asking often is asking once.
#[derive(Debug, Clone)]
pub(super) struct Suspicion(SyncSender<()>);

impl Suspicion {
    pub fn raise(&self) {
        // One that waits already is enough.
        let _ = self.0.try_send(());
    }

    pub fn channel() -> (Self, Receiver<()>) {
        let (sender, receiver) = sync_channel(1);
        (Self(sender), receiver)
    }
}

/// The thread that checks.
pub(super) struct Checker {
    suspicion: Mutex<Option<Suspicion>>,
    stop: Arc<AtomicBool>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Checker {
    /// Of a store that only reads: there is nothing to repair with.
    pub fn none() -> Self {
        Self::new(None)
    }

    pub fn new(suspicion: Option<Suspicion>) -> Self {
        Self {
            suspicion: Mutex::new(suspicion),
            stop: Arc::default(),
            thread: Mutex::new(None),
        }
    }

    pub fn start(
        &self,
        store: Weak<Inner>,
        suspicions: Receiver<()>,
    ) -> Result<(), std::io::Error> {
        let stop = Arc::clone(&self.stop);
        let thread = std::thread::Builder::new()
            .name("trace-check".to_owned())
            .spawn(move || watch(&store, &suspicions, &stop))?;
        *lock(&self.thread) = Some(thread);
        Ok(())
    }

    /// Something was read that an index should not say.
    pub fn suspect(&self) {
        if let Some(suspicion) = &*lock(&self.suspicion) {
            suspicion.raise();
        }
    }

    /// Ends the thread; `Drop` does it without waiting.
    pub fn close(&self) {
        self.stop.store(true, Ordering::Release);
        // The writer may still hold the channel: it is word, not the channel's end, that wakes the thread.
        if let Some(suspicion) = lock(&self.suspicion).take() {
            suspicion.raise();
        }
        let thread = lock(&self.thread).take();
        if let Some(thread) = thread {
            let _ = thread.join();
        }
    }
}

impl Drop for Checker {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
    }
}

/// Checks once, and again when there is reason to.
fn watch(store: &Weak<Inner>, suspicions: &Receiver<()>, stop: &AtomicBool) {
    loop {
        let checked = Instant::now();
        match check(store, stop) {
            Ok(()) => {}
            Err(error) => tracing::warn!("the trace store's indexes were not checked: {error}"),
        }
        // Until the store and its writer are gone.
        loop {
            if suspicions.recv().is_err() || stop.load(Ordering::Acquire) {
                return;
            }
            if checked.elapsed() >= MIN_INTERVAL {
                break;
            }
        }
    }
}

/// Checks all indexes and makes those again that are wrong.
fn check(store: &Weak<Inner>, stop: &AtomicBool) -> Result<(), StoreError> {
    let path = match store.upgrade() {
        Some(store) => store.path.clone(),
        None => return Ok(()),
    };
    let connection = schema::open_to_read(&path)?;
    let mut wrong: Vec<&'static str> = Vec::new();
    let mut from = Some(START);
    while let Some(at) = from {
        let started = Instant::now();
        if stop.load(Ordering::Acquire) {
            return Ok(());
        }
        let slice = slice(&connection, at)?;
        from = slice.next;
        let Some(store) = store.upgrade() else {
            return Ok(());
        };
        for seq in slice.damaged {
            store.damage.note(seq, "its columns have another checksum");
        }
        for index in slice.wrong {
            if !wrong.contains(&index) {
                wrong.push(index);
            }
        }
        drop(store);
        std::thread::sleep(started.elapsed());
    }
    if wrong.is_empty() {
        return Ok(());
    }
    let Some(store) = store.upgrade() else {
        return Ok(());
    };
    rebuild(&store, wrong)
}

fn rebuild(store: &Inner, wrong: Vec<&'static str>) -> Result<(), StoreError> {
    let names = wrong.join(", ");
    tracing::warn!(
        "the trace store's indexes {names} do not say what its table says: they are made again"
    );
    let num_indexes = wrong.len();
    let commands = lock(&store.commands).clone().ok_or(StoreError::Closed)?;
    let (done, answer) = tokio::sync::oneshot::channel();
    let command = Command::Rebuild {
        indexes: wrong,
        done,
    };
    // Waits where the queue is full.
    commands.send(command).map_err(|_| StoreError::Closed)?;
    drop(commands);
    answer.blocking_recv().map_err(|_| StoreError::Closed)??;
    store.damage.rebuilt(num_indexes);
    Ok(())
}

#[derive(Debug, Default)]
struct Slice {
    damaged: Vec<u64>,
    wrong: Vec<&'static str>,
    /// Where the next one begins.
    next: Option<i64>,
}

/// Looks some rows up in all indexes, in one snapshot.
fn slice(connection: &Connection, from: i64) -> Result<Slice, rusqlite::Error> {
    let transaction = Transaction::new_unchecked(connection, TransactionBehavior::Deferred)?;
    let mut slice = Slice::default();
    let mut rows = Vec::new();
    scan(&transaction, Direction::Up, from, |row| {
        match row {
            Scanned::Intact(entry) => rows.push(entry.columns),
            // What its key would be is not known.
            Scanned::Damaged(seq) => slice.damaged.push(seq),
        }
        match rows.len() >= SLICE_ROWS {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        }
    })?;
    if rows.len() >= SLICE_ROWS {
        slice.next = rows.last().and_then(|row| row.seq.checked_add(1));
    }
    for (index, condition) in INDEXES {
        let is_right = |row: &Columns| is_found(&transaction, index, condition, row);
        for row in &rows {
            if !is_right(row)? {
                slice.wrong.push(index);
                break;
            }
        }
    }
    Ok(slice)
}

/// Whether an index leads to a row by that row's key.
fn is_found(
    transaction: &Transaction,
    index: &str,
    condition: &str,
    row: &Columns,
) -> Result<bool, rusqlite::Error> {
    let sql = format!("SELECT 1 FROM traces INDEXED BY {index} WHERE seq = ?1 AND {condition}");
    let mut statement = transaction.prepare_cached(&sql)?;
    let found = match condition {
        "id = ?2" => statement.exists(params![row.seq, row.id]),
        "created = ?2" => statement.exists(params![row.seq, row.created]),
        _ => statement.exists(params![row.seq, row.owner]),
    };
    match found {
        // An index that cannot be read is as wrong as one that lies.
        Err(error) if super::error::is_unreadable(&error) => Ok(false),
        found => found,
    }
}
