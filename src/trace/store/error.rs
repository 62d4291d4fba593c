//! What can go wrong with the store.

use rusqlite::ErrorCode;

use super::MAX_QUEUED;
use super::payload::MAX_RECORD_BYTES;
use crate::trace::outcome::OutcomeError;

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
    /// SQLite cannot read a page that it needed.
    #[error("a part of the trace store cannot be read: {0}")]
    Unreadable(String),
    /// One trace is not as it was written; the others are.
    #[error("trace {name} is damaged ({reason}): what is stored is not what was written")]
    DamagedTrace { name: String, reason: String },
    #[error("a trace of more than {MAX_RECORD_BYTES} bytes of JSON is not kept")]
    TooLarge,
    /// The trace was written by somebody else meanwhile.
    #[error("trace {0} was changed by others at every attempt; try again")]
    Changed(String),
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
        match is_unreadable(&error) {
            true => Self::Unreadable(error.to_string()),
            false => Self::Failed(error.to_string()),
        }
    }
}

/// Whether SQLite met a page that is not what it should be, or that the disk does not give.
pub(super) fn is_unreadable(error: &rusqlite::Error) -> bool {
    matches!(
        error.sqlite_error_code(),
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase | ErrorCode::SystemIoFailure)
    )
}
