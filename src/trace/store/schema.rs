//! The file: its tables, its format's versions, and the check when it is opened.

use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, OpenFlags};

use super::StoreError;

/// How long a writer waits for another process that writes.
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);

/// What brings a file from one version to the next; `user_version` is how many were applied.
const MIGRATIONS: &[&str] = &["
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
"];

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
    let mut connection = Connection::open(path).map_err(failed)?;
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
    let version: i64 = connection
        .pragma_query_value(None, "user_version", |row| row.get(0))
        .map_err(failed)?;
    let known = MIGRATIONS.len() as i64;
    if version > known {
        return Err(StoreError::TooNew {
            found: version,
            known,
        });
    }
    migrate(&mut connection).map_err(failed)?;
    Ok(connection)
}

/// What is wrong with the file, if anything.
fn check(connection: &Connection) -> Result<Option<String>, rusqlite::Error> {
    let word: String = connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
    Ok((word != "ok").then_some(word))
}

fn migrate(connection: &mut Connection) -> Result<(), rusqlite::Error> {
    // The version is read under the lock: two processes may open a new file at once.
    let transaction =
        connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
    let version: i64 = transaction.pragma_query_value(None, "user_version", |row| row.get(0))?;
    let applied = usize::try_from(version).unwrap_or_default();
    for migration in MIGRATIONS.iter().skip(applied) {
        transaction.execute_batch(migration)?;
    }
    transaction.pragma_update(None, "user_version", MIGRATIONS.len() as i64)?;
    transaction.commit()
}

pub(super) fn open_to_read(path: &Path) -> Result<Connection, StoreError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(BUSY_TIMEOUT)?;
    Ok(connection)
}
