//! The file: its tables, its format's versions, and the check when it is opened.

use std::path::Path;
use std::time::Duration;

use rusqlite::types::ValueRef;
use rusqlite::{Connection, OpenFlags, Transaction, TransactionBehavior, params};

use super::StoreError;
use super::columns::{Columns, NAMES, NUM_COLUMNS, hash};

/// How long a writer waits for another process that writes.
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);

/// What brings a file from one version to the next; `user_version` is how many were applied.
const MIGRATIONS: &[&str] = &[
    "
    CREATE TABLE traces (
        -- The number of the trace's latest write.
        seq INTEGER PRIMARY KEY,
        id TEXT NOT NULL UNIQUE,
        revision INTEGER NOT NULL,
        -- Of the API key.
        owner INTEGER NOT NULL,
        created INTEGER NOT NULL,
        model TEXT NOT NULL,
        strategy TEXT NOT NULL,
        tags TEXT NOT NULL,
        value REAL,
        outcome REAL,
        has_outcome INTEGER NOT NULL,
        num_nodes INTEGER NOT NULL,
        num_tokens INTEGER NOT NULL,
        bytes INTEGER NOT NULL,
        -- The record as JSON, compressed by zstd.
        payload BLOB NOT NULL
    );
    CREATE INDEX traces_created ON traces (created);
    CREATE INDEX traces_owner ON traces (owner, seq);
    CREATE TABLE counters (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
    INSERT INTO counters VALUES ('last_seq', 0);
",
    // Again where it was interrupted. An old file does not say how it was closed: its next number
    // is one that no reader can have seen.
    "
    CREATE TABLE IF NOT EXISTS checks (
        -- The trace's `seq`. Not in its table, where it would lie behind the payload.
        number INTEGER PRIMARY KEY,
        row_hash BLOB NOT NULL,
        payload_hash BLOB NOT NULL
    );
    INSERT OR IGNORE INTO counters
        SELECT 'reserved_seq', iif(value > 0, value + 65536, 0) FROM counters WHERE name = 'last_seq';
",
    "
    CREATE TABLE IF NOT EXISTS responses (
        -- In the order of their beginnings.
        number INTEGER PRIMARY KEY,
        id TEXT NOT NULL UNIQUE,
        -- Of the API key.
        owner INTEGER NOT NULL,
        created INTEGER NOT NULL,
        bytes INTEGER NOT NULL,
        row_hash BLOB NOT NULL,
        payload_hash BLOB NOT NULL,
        -- The response and its input as JSON, compressed by zstd.
        payload BLOB NOT NULL
    );
    CREATE INDEX IF NOT EXISTS responses_created ON responses (created);
",
];
/// The first version whose rows have checksums.
const CHECKED: i64 = 2;
/// Rows, and bytes of payload, that get their checksums in one transaction.
const BATCH_ROWS: usize = 256;
const BATCH_BYTES: usize = 32 << 20;

/// The writer's connection.
pub(super) fn open(path: &Path) -> Result<Connection, StoreError> {
    let name = path.display().to_string();
    let failed = |error: rusqlite::Error| {
        let message = error.to_string();
        let path = name.clone();
        match error.sqlite_error_code() {
            Some(rusqlite::ErrorCode::NotADatabase | rusqlite::ErrorCode::DatabaseCorrupt) => {
                StoreError::Damaged { path, message }
            }
            _ => StoreError::Open { path, message },
        }
    };
    let connection = Connection::open(path).map_err(failed)?;
    connection.busy_timeout(BUSY_TIMEOUT).map_err(failed)?;
    // Freed pages go back to the system, see Writer::retain. Only has an effect on a new file.
    connection
        .pragma_update(None, "auto_vacuum", "INCREMENTAL")
        .map_err(failed)?;
    connection
        .pragma_update(None, "journal_mode", "WAL")
        .map_err(failed)?;
    // A commit is in the log file when it returns: the process may die. Only a power cut can take the last ones.
    connection
        .pragma_update(None, "synchronous", "NORMAL")
        .map_err(failed)?;
    check(&connection)
        .map_err(failed)?
        .map_or(Ok(()), |message| {
            let path = name.clone();
            Err(StoreError::Damaged { path, message })
        })?;
    let found = version(&connection).map_err(failed)?;
    let known = MIGRATIONS.len() as i64;
    if found > known {
        return Err(StoreError::TooNew { found, known });
    }
    migrate(&connection).map_err(failed)?;
    Ok(connection)
}

/// What is wrong with the file, if anything.
fn check(connection: &Connection) -> Result<Option<String>, rusqlite::Error> {
    let word: String = connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
    Ok((word != "ok").then_some(word))
}

fn version(connection: &Connection) -> Result<i64, rusqlite::Error> {
    connection.pragma_query_value(None, "user_version", |row| row.get(0))
}

fn begin(connection: &Connection) -> Result<Transaction<'_>, rusqlite::Error> {
    Transaction::new_unchecked(connection, TransactionBehavior::Immediate)
}

fn migrate(connection: &Connection) -> Result<(), rusqlite::Error> {
    // The version is read under the lock: two processes may open a new file at once.
    let transaction = begin(connection)?;
    let found = version(&transaction)?;
    let applied = usize::try_from(found).unwrap_or_default();
    for migration in MIGRATIONS.iter().skip(applied) {
        transaction.execute_batch(migration)?;
    }
    let is_checked = found == 0 || found >= CHECKED;
    if is_checked && applied < MIGRATIONS.len() {
        transaction.pragma_update(None, "user_version", MIGRATIONS.len() as i64)?;
    }
    transaction.commit()?;
    if found < CHECKED && found > 0 {
        tracing::info!("the traces get checksums; this takes a reading of the file, once");
        while !stamp(connection)? {}
    }
    Ok(())
}

/// Gives some more rows of an old file their checksums, as they are: what was damaged before cannot
/// be told any more, but by what does not unpack. The last time also raises the file's version.
/// Whether that was the last time.
fn stamp(connection: &Connection) -> Result<bool, rusqlite::Error> {
    let transaction = begin(connection)?;
    if version(&transaction)? >= CHECKED {
        return Ok(true);
    }
    let mut num_rows = 0;
    {
        let from: i64 = transaction.query_row(
            "SELECT coalesce(max(number), -1) + 1 FROM checks",
            [],
            |row| row.get(0),
        )?;
        let sql = format!("SELECT {NAMES}, payload FROM traces WHERE seq >= ?1 ORDER BY seq");
        let mut statement = transaction.prepare_cached(&sql)?;
        let mut rows = statement.query([from])?;
        let mut num_bytes = 0;
        while num_rows < BATCH_ROWS
            && num_bytes < BATCH_BYTES
            && let Some(row) = rows.next()?
        {
            num_rows += 1;
            // A row of other types was damaged already. It gets sums that are none, so that the
            // next batch begins behind it.
            let seq: i64 = row.get(0)?;
            let (row_hash, payload_hash) = match (Columns::read(row), row.get_ref(NUM_COLUMNS)?) {
                (Some(columns), ValueRef::Blob(payload)) => {
                    num_bytes += payload.len();
                    let payload_hash = hash(payload);
                    (columns.hash(&payload_hash).to_vec(), payload_hash.to_vec())
                }
                _ => (Vec::new(), Vec::new()),
            };
            transaction
                .prepare_cached("INSERT INTO checks VALUES (?1, ?2, ?3)")?
                .execute(params![seq, row_hash, payload_hash])?;
        }
    }
    if num_rows == 0 {
        transaction.pragma_update(None, "user_version", MIGRATIONS.len() as i64)?;
    }
    transaction.commit()?;
    Ok(num_rows == 0)
}

/// Whether a file's rows have no checksums yet.
pub(super) fn is_older(connection: &Connection) -> Result<bool, rusqlite::Error> {
    Ok((1..CHECKED).contains(&version(connection)?))
}

/// A reader's connection.
pub(super) fn open_to_read(path: &Path) -> Result<Connection, rusqlite::Error> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(BUSY_TIMEOUT)?;
    Ok(connection)
}
