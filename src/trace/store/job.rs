//! What the writer is told to do, and doing it inside a transaction.

use rusqlite::{OptionalExtension, Transaction, params};
use tokio::sync::oneshot;

use super::{Owner, StoreError};
use crate::trace::outcome::OutcomeUpdate;
use crate::trace::record::{PLAIN, TraceRecord};

/// A good ratio for its time: a trace takes about a millisecond a megabyte.
const COMPRESSION_LEVEL: i32 = 3;

type Done<T> = oneshot::Sender<Result<T, StoreError>>;

pub(super) enum Command {
    Put {
        record: Box<TraceRecord>,
        owner: u64,
        done: Done<()>,
    },
    Outcome {
        id: String,
        owner: Owner,
        update: OutcomeUpdate,
        done: Done<TraceRecord>,
    },
    Delete {
        id: String,
        owner: Owner,
        done: Done<()>,
    },
}

/// What a command came to, told once its batch is committed.
pub(super) enum Answer {
    Unit(Done<()>, Result<(), StoreError>),
    Record(Done<TraceRecord>, Result<Box<TraceRecord>, StoreError>),
}

impl Answer {
    pub fn send(self, committed: Result<(), &StoreError>) {
        let failed = committed.err().cloned();
        // Who asked may be gone.
        match self {
            Self::Unit(done, result) => {
                let _ = done.send(failed.map_or(result, Err));
            }
            Self::Record(done, result) => {
                let result = result.map(|record| *record);
                let _ = done.send(failed.map_or(result, Err));
            }
        }
    }
}

/// The answer of a command that never ran; the batch's own error is told instead.
pub(super) fn unanswered(command: Command) -> Answer {
    match command {
        Command::Put { done, .. } | Command::Delete { done, .. } => {
            Answer::Unit(done, Err(StoreError::Closed))
        }
        Command::Outcome { done, .. } => Answer::Record(done, Err(StoreError::Closed)),
    }
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
}

impl Job<'_> {
    pub fn run(&mut self, command: Command) -> Answer {
        match command {
            Command::Put {
                record,
                owner,
                done,
            } => Answer::Unit(done, self.put(*record, owner)),
            Command::Outcome {
                id,
                owner,
                update,
                done,
            } => Answer::Record(done, self.outcome(&id, owner, &update).map(Box::new)),
            Command::Delete { id, owner, done } => Answer::Unit(done, self.delete(&id, owner)),
        }
    }

    /// Where a trace is looked for: its id, whose it is, and since when.
    fn place<'p>(&self, id: &'p str, owner: Owner) -> (&'p str, Option<i64>, i64) {
        let oldest = i64::try_from(self.oldest).unwrap_or(i64::MAX);
        (id, owner.map(|owner| owner as i64), oldest)
    }

    fn put(&mut self, mut record: TraceRecord, owner: u64) -> Result<(), StoreError> {
        if self.redact {
            record.redact();
        }
        let row = Row::of(&record)?;
        self.transaction
            .prepare_cached(
                "INSERT INTO traces (seq, id, revision, owner, created, model, strategy, tags, value, outcome,
                     has_outcome, num_nodes, num_tokens, bytes, payload)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15)",
            )?
            .execute(params![
                self.seq as i64 + 1,
                record.id,
                record.revision as i64,
                owner as i64,
                i64::try_from(record.created).unwrap_or(i64::MAX),
                record.model,
                record.strategy,
                row.tags,
                row.value,
                row.outcome,
                row.has_outcome,
                row.num_nodes,
                row.num_tokens,
                row.payload.len() as i64,
                row.payload,
            ])?;
        self.seq += 1;
        self.bytes += row.payload.len() as i64;
        Ok(())
    }

    fn outcome(
        &mut self,
        id: &str,
        owner: Owner,
        update: &OutcomeUpdate,
    ) -> Result<TraceRecord, StoreError> {
        let found = self
            .transaction
            .prepare_cached(
                "SELECT payload FROM traces
                 WHERE id = ?1 AND (?2 IS NULL OR owner = ?2) AND created >= ?3",
            )?
            .query_row(self.place(id, owner), |row| row.get::<_, Vec<u8>>(0))
            .optional()?;
        let before = found.ok_or_else(|| StoreError::NotFound(id.to_owned()))?;
        let mut record = decode(&before)?;
        record.apply(update)?;
        let row = Row::of(&record)?;
        self.transaction
            .prepare_cached(
                "UPDATE traces SET seq = ?2, revision = ?3, value = ?4, outcome = ?5, has_outcome = ?6,
                     bytes = ?7, payload = ?8 WHERE id = ?1",
            )?
            .execute(params![
                id,
                self.seq as i64 + 1,
                record.revision as i64,
                row.value,
                row.outcome,
                row.has_outcome,
                row.payload.len() as i64,
                row.payload,
            ])?;
        self.seq += 1;
        self.bytes += row.payload.len() as i64 - before.len() as i64;
        Ok(record)
    }

    fn delete(&mut self, id: &str, owner: Owner) -> Result<(), StoreError> {
        let bytes = self
            .transaction
            .prepare_cached(
                "DELETE FROM traces
                 WHERE id = ?1 AND (?2 IS NULL OR owner = ?2) AND created >= ?3 RETURNING bytes",
            )?
            .query_row(self.place(id, owner), |row| row.get::<_, i64>(0))
            .optional()?;
        self.bytes -= bytes.ok_or_else(|| StoreError::NotFound(id.to_owned()))?;
        Ok(())
    }
}

/// What the columns say of a record.
struct Row {
    tags: String,
    value: Option<f64>,
    outcome: Option<f64>,
    has_outcome: bool,
    num_nodes: i64,
    num_tokens: i64,
    payload: Vec<u8>,
}

impl Row {
    fn of(record: &TraceRecord) -> Result<Self, StoreError> {
        let failed = |error: &dyn std::fmt::Display| StoreError::Failed(error.to_string());
        let json = serde_json::to_vec(record).map_err(|error| failed(&error))?;
        let payload = zstd::bulk::compress(&json, COMPRESSION_LEVEL);
        Ok(Self {
            tags: serde_json::to_string(&record.tags).map_err(|error| failed(&error))?,
            // Nobody valued a plain answer.
            value: record
                .best()
                .filter(|_| record.strategy != PLAIN)
                .map(|best| record.nodes[best].value),
            outcome: record.chosen_outcome(),
            has_outcome: record.has_outcome(),
            num_nodes: record.nodes.len().saturating_sub(1) as i64,
            num_tokens: record.usage.completion_tokens as i64,
            payload: payload.map_err(|error| failed(&error))?,
        })
    }
}

/// A stored record.
pub(super) fn decode(payload: &[u8]) -> Result<TraceRecord, StoreError> {
    let json = zstd::stream::decode_all(payload);
    let json = json.map_err(|error| StoreError::Failed(error.to_string()))?;
    serde_json::from_slice(&json).map_err(|error| StoreError::Failed(error.to_string()))
}
