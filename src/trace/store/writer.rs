//! The one thread that writes.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rusqlite::{Connection, OptionalExtension, Transaction, TransactionBehavior, params};
use tokio::sync::{mpsc, oneshot, watch};

use super::query::last_seq;
use super::{Owner, StoreError, StoreOptions};
use crate::trace::outcome::OutcomeUpdate;
use crate::trace::record::{PLAIN, TraceRecord};

/// Commands of one commit.
const MAX_BATCH: usize = 256;
/// A good ratio for its time: a trace takes about a millisecond a megabyte.
const COMPRESSION_LEVEL: i32 = 3;
/// How often the oldest traces are looked at.
const RETENTION_INTERVAL: Duration = Duration::from_secs(60);
/// Traces that one retention deletes at once.
const RETENTION_BATCH: usize = 1000;

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
enum Answer {
    Unit(Done<()>, Result<(), StoreError>),
    Record(Done<TraceRecord>, Result<Box<TraceRecord>, StoreError>),
}

impl Answer {
    fn send(self, committed: Result<(), &StoreError>) {
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

pub(super) struct Writer {
    connection: Connection,
    options: StoreOptions,
    /// Compressed bytes of all traces.
    bytes: u64,
    retained: Option<Instant>,
}

impl Writer {
    /// The writer and the latest sequence number.
    pub fn new(connection: Connection, options: StoreOptions) -> Result<(Self, u64), StoreError> {
        let bytes: i64 =
            connection.query_row("SELECT coalesce(sum(bytes), 0) FROM traces", [], |row| {
                row.get(0)
            })?;
        let last = last_seq(&connection)?;
        let writer = Self {
            connection,
            options,
            bytes: bytes as u64,
            retained: None,
        };
        Ok((writer, last))
    }

    /// Until all handles are gone.
    pub fn run(mut self, mut commands: mpsc::Receiver<Command>, changed: &watch::Sender<u64>) {
        let mut batch = Vec::new();
        while let Some(first) = commands.blocking_recv() {
            batch.push(first);
            while batch.len() < MAX_BATCH
                && let Ok(next) = commands.try_recv()
            {
                batch.push(next);
            }
            self.write(&mut batch, changed);
            let is_due = self
                .retained
                .is_none_or(|at| at.elapsed() >= RETENTION_INTERVAL);
            if is_due || self.bytes > self.options.max_bytes {
                self.retained = Some(Instant::now());
                if let Err(error) = self.retain() {
                    tracing::warn!("old traces could not be deleted: {error}");
                }
            }
        }
        // The log is folded into the file, so that one file is left.
        let _ = self
            .connection
            .pragma_update(None, "wal_checkpoint", "TRUNCATE");
    }

    fn write(&mut self, batch: &mut Vec<Command>, changed: &watch::Sender<u64>) {
        let mut answers = Vec::with_capacity(batch.len());
        let committed = self.commit(batch, &mut answers);
        if let Ok(last) = committed {
            changed.send_if_modified(|seq| std::mem::replace(seq, last) != last);
        }
        let committed = committed.map(|_| ());
        for answer in answers {
            answer.send(committed.as_ref().copied());
        }
    }

    /// All commands in one transaction; the latest sequence number after it. On an error none took place.
    fn commit(
        &mut self,
        batch: &mut Vec<Command>,
        answers: &mut Vec<Answer>,
    ) -> Result<u64, StoreError> {
        let mut commands = batch.drain(..);
        let begun = self
            .connection
            .transaction_with_behavior(TransactionBehavior::Immediate);
        let begun = begun.and_then(|begun| Ok((last_seq(&begun)?, begun)));
        let (seq, transaction) = match begun {
            Ok(begun) => begun,
            // Answers are owed even when nothing can be written.
            Err(error) => {
                answers.extend(commands.map(unanswered));
                return Err(error.into());
            }
        };
        let mut job = Job {
            transaction: &transaction,
            redact: self.options.redact,
            seq,
            bytes: self.bytes as i64,
        };
        while let Some(command) = commands.next() {
            answers.push(job.run(command));
            // A full or failing disk takes the whole transaction back; what follows would not be in one.
            if transaction.is_autocommit() {
                answers.extend(commands.map(unanswered));
                let message = "the disk is full or failed; nothing of this batch was kept";
                return Err(StoreError::Failed(message.to_owned()));
            }
        }
        let (last, bytes) = (job.seq, job.bytes);
        transaction.execute(
            "UPDATE counters SET value = ?1 WHERE name = 'last_seq'",
            [last as i64],
        )?;
        transaction.commit()?;
        self.bytes = bytes.max(0) as u64;
        Ok(last)
    }

    /// Deletes what is too old or too much, the oldest first.
    fn retain(&mut self) -> Result<(), StoreError> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let now = now.map_or(0, |now| now.as_secs());
        let oldest = now.saturating_sub(self.options.max_age.as_secs());
        let transaction = self
            .connection
            .transaction_with_behavior(TransactionBehavior::Immediate)?;
        let mut deleted = 0;
        loop {
            let excess = self.bytes.saturating_sub(self.options.max_bytes);
            let batch: Vec<(i64, i64)> = {
                let mut statement = transaction
                    .prepare_cached("SELECT seq, bytes FROM traces WHERE created < ?1 LIMIT ?2")?;
                let rows = statement
                    .query_map(params![oldest as i64, RETENTION_BATCH as i64], |row| {
                        Ok((row.get(0)?, row.get(1)?))
                    })?;
                rows.collect::<Result<_, _>>()?
            };
            let batch = match batch.is_empty() {
                false => batch,
                true if excess > 0 => first_of(&transaction, excess)?,
                true => break,
            };
            if batch.is_empty() {
                break;
            }
            for (seq, bytes) in batch {
                transaction.execute("DELETE FROM traces WHERE seq = ?1", [seq])?;
                self.bytes = self.bytes.saturating_sub(bytes as u64);
                deleted += 1;
            }
        }
        transaction.commit()?;
        if deleted > 0 {
            tracing::info!("{deleted} old traces were deleted");
            self.connection
                .execute_batch("PRAGMA incremental_vacuum;")?;
        }
        Ok(())
    }
}

/// The oldest traces that hold `excess` bytes together.
fn first_of(transaction: &Transaction, excess: u64) -> Result<Vec<(i64, i64)>, rusqlite::Error> {
    let mut statement =
        transaction.prepare_cached("SELECT seq, bytes FROM traces ORDER BY seq LIMIT ?1")?;
    let rows = statement.query_map([RETENTION_BATCH as i64], |row| {
        Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?))
    })?;
    let mut found = Vec::new();
    let mut sum = 0;
    for row in rows {
        let row = row?;
        sum += row.1 as u64;
        found.push(row);
        if sum >= excess {
            break;
        }
    }
    Ok(found)
}

/// The answer of a command that never ran; the batch's own error is told instead.
fn unanswered(command: Command) -> Answer {
    match command {
        Command::Put { done, .. } | Command::Delete { done, .. } => {
            Answer::Unit(done, Err(StoreError::Closed))
        }
        Command::Outcome { done, .. } => Answer::Record(done, Err(StoreError::Closed)),
    }
}

/// One command inside a transaction.
struct Job<'t> {
    transaction: &'t Transaction<'t>,
    redact: bool,
    seq: u64,
    bytes: i64,
}

impl Job<'_> {
    fn run(&mut self, command: Command) -> Answer {
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
                record.created as i64,
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
                "SELECT payload FROM traces WHERE id = ?1 AND (?2 IS NULL OR owner = ?2)",
            )?
            .query_row(params![id, owner.map(|owner| owner as i64)], |row| {
                row.get::<_, Vec<u8>>(0)
            })
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
                "DELETE FROM traces WHERE id = ?1 AND (?2 IS NULL OR owner = ?2) RETURNING bytes",
            )?
            .query_row(params![id, owner.map(|owner| owner as i64)], |row| {
                row.get::<_, i64>(0)
            })
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
