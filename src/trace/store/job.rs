//! What the writer is told to do, and doing it inside a transaction.

use rusqlite::{OptionalExtension, Transaction, params};
use tokio::sync::oneshot;

use super::columns::{Columns, Encoded, Entry, hash};
use super::query::find;
use super::responses::{self, PackedResponse};
use super::{Owner, StoreError};
use crate::trace::record::TraceRecord;

type Done<T> = oneshot::Sender<Result<T, StoreError>>;

pub(super) enum Command {
    Put {
        record: Box<TraceRecord>,
        owner: u64,
        done: Done<()>,
    },
    /// The next revision of a trace, made by whoever asks: unpacking and packing a large one would
    /// keep everybody's traces waiting.
    Revise {
        revision: Box<Revision>,
        done: Done<()>,
    },
    Delete {
        id: String,
        owner: Owner,
        done: Done<()>,
    },
    PutResponse {
        row: PackedResponse,
        owner: u64,
        done: Done<()>,
    },
    DeleteResponse {
        id: String,
        owner: u64,
        done: Done<()>,
    },
    /// Makes indexes again from their table.
    Rebuild {
        indexes: Vec<&'static str>,
        done: Done<()>,
    },
}

/// What is to be written in the place of a trace, if that is still there as it was read.
pub struct Revision {
    /// The row that was read.
    pub(super) before: Entry,
    pub(super) after: Encoded,
}

/// What a command came to, told once its batch is committed.
pub(super) struct Answer {
    done: Done<()>,
    result: Result<(), StoreError>,
}

impl Answer {
    pub fn send(self, committed: Result<(), &StoreError>) {
        let failed = committed.err().cloned();
        // Who asked may be gone.
        let _ = self.done.send(failed.map_or(self.result, Err));
    }

    /// Whether a part of the file could not be read.
    pub fn met_damage(&self) -> bool {
        matches!(self.result, Err(StoreError::Unreadable(_)))
    }
}

/// The answer of a command that never ran; the batch's own error is told instead.
pub(super) fn unanswered(command: Command) -> Answer {
    let (Command::Put { done, .. }
    | Command::Delete { done, .. }
    | Command::Revise { done, .. }
    | Command::PutResponse { done, .. }
    | Command::DeleteResponse { done, .. }
    | Command::Rebuild { done, .. }) = command;
    let result = Err(StoreError::Closed);
    Answer { done, result }
}

/// One command inside a transaction.
pub(super) struct Job<'t> {
    pub transaction: &'t Transaction<'t>,
    pub redact: bool,
    /// Traces that were created before are not there any more.
    pub oldest: u64,
    /// The number of the latest write, and the compressed bytes of all traces.
    pub seq: u64,
    pub bytes: i64,
    /// Compressed bytes of all responses.
    pub response_bytes: i64,
}

impl Job<'_> {
    pub fn run(&mut self, command: Command) -> Answer {
        let (done, result) = match command {
            Command::Put {
                record,
                owner,
                done,
            } => (done, self.whole(|job| job.put(*record, owner))),
            Command::Revise { revision, done } => (done, self.whole(|job| job.revise(*revision))),
            Command::Delete { id, owner, done } => (done, self.whole(|job| job.delete(&id, owner))),
            Command::PutResponse { row, owner, done } => {
                (done, self.whole(|job| job.put_response(&row, owner)))
            }
            Command::DeleteResponse { id, owner, done } => {
                (done, self.whole(|job| job.delete_response(&id, owner)))
            }
            Command::Rebuild { indexes, done } => (done, self.whole(|job| job.rebuild(&indexes))),
        };
        Answer { done, result }
    }

    /// All of a command or, on an error, nothing: the others of its transaction are still written.
    fn whole(
        &mut self,
        work: impl FnOnce(&mut Self) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        let before = (self.seq, self.bytes, self.response_bytes);
        self.transaction
            .prepare_cached("SAVEPOINT command")?
            .execute([])?;
        let result = work(self);
        if result.is_err() {
            (self.seq, self.bytes, self.response_bytes) = before;
            // A full disk may have taken the whole transaction back already.
            let _ = self.transaction.execute_batch("ROLLBACK TO command");
        }
        let _ = self
            .transaction
            .prepare_cached("RELEASE command")
            .and_then(|mut statement| statement.execute([]));
        result
    }

    fn put(&mut self, mut record: TraceRecord, owner: u64) -> Result<(), StoreError> {
        if self.redact {
            record.redact();
        }
        let encoded = Encoded::of(&record, owner as i64)?;
        self.insert(encoded)
    }

    fn insert(&mut self, encoded: Encoded) -> Result<(), StoreError> {
        let Encoded { columns, payload } = encoded;
        let row = Columns {
            seq: self.seq as i64 + 1,
            ..columns
        };
        self.transaction
            .prepare_cached(
                "INSERT INTO traces (seq, id, revision, owner, created, model, strategy, tags, value, outcome,
                     has_outcome, num_nodes, num_tokens, bytes, payload)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15)",
            )?
            .execute(params![
                row.seq,
                row.id,
                row.revision,
                row.owner,
                row.created,
                row.model,
                row.strategy,
                row.tags,
                row.value,
                row.outcome,
                row.has_outcome,
                row.num_nodes,
                row.num_tokens,
                row.bytes,
                payload,
            ])?;
        let payload_hash = hash(&payload);
        // A row that lost its trace may be left there.
        self.transaction
            .prepare_cached("INSERT OR REPLACE INTO checks VALUES (?1, ?2, ?3)")?
            .execute(params![row.seq, row.hash(&payload_hash), payload_hash])?;
        self.seq += 1;
        self.bytes += row.bytes;
        Ok(())
    }

    fn revise(&mut self, revision: Revision) -> Result<(), StoreError> {
        let Revision { before, after } = revision;
        let id = &before.columns.id;
        let found = find(self.transaction, id, None, self.oldest)?;
        let place = found.ok_or_else(|| StoreError::NotFound(id.clone()))?;
        let is_same = place
            .entry
            .is_some_and(|found| found.columns == before.columns);
        if !is_same {
            return Err(StoreError::Changed(id.clone()));
        }
        remove(self.transaction, before.columns.seq)?;
        self.bytes -= before.columns.bytes;
        self.insert(after)
    }

    fn delete(&mut self, id: &str, owner: Owner) -> Result<(), StoreError> {
        // A damaged trace goes too, if it says that it is the owner's.
        let found = find(self.transaction, id, owner, self.oldest)?;
        let place = found.ok_or_else(|| StoreError::NotFound(id.to_owned()))?;
        if place.entry.is_none() && !has_id(self.transaction, place.seq, id)? {
            // The index leads to another trace.
            return Err(StoreError::Unreadable(format!("the index of {id}")));
        }
        let bytes = size(self.transaction, place.seq)?;
        remove(self.transaction, place.seq)?;
        self.bytes -= bytes;
        Ok(())
    }

    fn put_response(&mut self, row: &PackedResponse, owner: u64) -> Result<(), StoreError> {
        self.response_bytes += responses::put(self.transaction, row, owner)?;
        Ok(())
    }

    fn delete_response(&mut self, id: &str, owner: u64) -> Result<(), StoreError> {
        self.response_bytes -= responses::delete(self.transaction, id, owner)?;
        Ok(())
    }

    fn rebuild(&self, indexes: &[&str]) -> Result<(), StoreError> {
        for index in indexes {
            self.transaction
                .execute_batch(&format!("REINDEX {index}"))?;
        }
        Ok(())
    }
}

/// Whether the table itself, not its index, has this id at a number.
fn has_id(transaction: &Transaction, seq: i64, id: &str) -> Result<bool, rusqlite::Error> {
    let found = transaction
        .prepare_cached("SELECT id FROM traces NOT INDEXED WHERE seq = ?1")?
        .query_row([seq], |row| {
            Ok(row.get_ref(0)?.as_bytes() == Ok(id.as_bytes()))
        })
        .optional()?;
    Ok(found.unwrap_or(false))
}

/// Takes a row and its checksums away.
pub(super) fn remove(transaction: &Transaction, seq: i64) -> Result<(), rusqlite::Error> {
    transaction
        .prepare_cached("DELETE FROM traces WHERE seq = ?1")?
        .execute([seq])?;
    transaction
        .prepare_cached("DELETE FROM checks WHERE number = ?1")?
        .execute([seq])?;
    Ok(())
}

/// No payload is larger; a column that says so is damaged.
const MAX_PAYLOAD_BYTES: i64 = 1 << 30;

/// Bytes of payload, as SQL, within what they can be: sums of them do not overflow.
pub(super) fn size_sql() -> String {
    format!("min(max(CAST(bytes AS INTEGER), 0), {MAX_PAYLOAD_BYTES})")
}

fn size(transaction: &Transaction, seq: i64) -> Result<i64, rusqlite::Error> {
    let sql = format!("SELECT {} FROM traces WHERE seq = ?1", size_sql());
    transaction
        .prepare_cached(&sql)?
        .query_row([seq], |row| row.get(0))
}
