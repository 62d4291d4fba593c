//! The one thread that writes.

use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use rusqlite::{Connection, Transaction, TransactionBehavior, params};
use tokio::sync::watch;

use super::check::Suspicion;
use super::clock::Retention;
use super::job::{Answer, Command, Job, remove, size_sql, unanswered};
use super::numbers::Numbers;
use super::query::entry;
use super::{StoreError, StoreOptions, responses};

/// Commands of one commit.
const MAX_BATCH: usize = 256;
/// Traces that one retention deletes at once.
const RETENTION_BATCH: usize = 1000;

pub(super) struct Writer {
    connection: Connection,
    options: StoreOptions,
    retention: Retention,
    /// Compressed bytes of all committed traces.
    bytes: u64,
    /// The same of all responses.
    response_bytes: u64,
    /// When old traces were deleted last.
    retained: Option<Instant>,
    numbers: Numbers,
    suspicion: Suspicion,
}

impl Writer {
    /// The writer and the largest number that may have been given.
    pub fn new(
        connection: Connection,
        options: StoreOptions,
        suspicion: Suspicion,
    ) -> Result<(Self, u64), StoreError> {
        let sql = format!("SELECT coalesce(sum({}), 0) FROM traces", size_sql());
        let bytes: i64 = connection.query_row(&sql, [], |row| row.get(0))?;
        let response_bytes = responses::total(&connection)?;
        let numbers = Numbers::open(&connection)?;
        let last = numbers.floor();
        let writer = Self {
            connection,
            retention: Retention::of(&options),
            options,
            bytes: bytes as u64,
            response_bytes,
            retained: None,
            numbers,
            suspicion,
        };
        Ok((writer, last))
    }

    /// Until all handles are gone.
    pub fn run(mut self, commands: &Receiver<Command>, changed: &watch::Sender<u64>) {
        let mut batch = Vec::new();
        loop {
            match commands.recv_timeout(self.time_to_retention()) {
                Ok(first) => batch.push(first),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
            while batch.len() < MAX_BATCH
                && let Ok(next) = commands.try_recv()
            {
                batch.push(next);
            }
            if !batch.is_empty() {
                self.write(&mut batch, changed);
            }
            let bytes = self.bytes.saturating_add(self.response_bytes);
            if self.time_to_retention().is_zero() || bytes > self.options.max_bytes {
                self.retained = Some(Instant::now());
                if let Err(error) = self.retain() {
                    if matches!(error, StoreError::Unreadable(_)) {
                        self.suspicion.raise();
                    }
                    tracing::warn!("old traces could not be deleted: {error}");
                }
            }
        }
        if let Err(error) = self.numbers.release(&self.connection) {
            tracing::debug!("the trace store's numbers go on behind a gap: {error}");
        }
        // The log is folded into the file, so that one file is left.
        let _ = self
            .connection
            .pragma_update(None, "wal_checkpoint", "TRUNCATE");
    }

    /// How long nothing needs to be deleted for its age.
    fn time_to_retention(&self) -> Duration {
        let interval = self.options.retention_interval;
        let left = |at: Instant| interval.saturating_sub(at.elapsed());
        self.retained.map_or(Duration::ZERO, left)
    }

    fn write(&mut self, batch: &mut Vec<Command>, changed: &watch::Sender<u64>) {
        let mut answers = Vec::with_capacity(batch.len());
        let committed = self.commit(batch, &mut answers);
        if let Ok(last) = committed {
            changed.send_if_modified(|seq| std::mem::replace(seq, last) != last);
        }
        let committed = committed.map(|_| ());
        let is_unreadable = matches!(committed, Err(StoreError::Unreadable(_)));
        if is_unreadable || answers.iter().any(Answer::met_damage) {
            self.suspicion.raise();
        }
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
        let begun = self.numbers.begin(&self.connection, commands.len());
        let (transaction, seq) = match begun {
            Ok(begun) => begun,
            // Answers are owed even when nothing can be written.
            Err(error) => {
                answers.extend(commands.map(unanswered));
                return Err(error);
            }
        };
        let mut job = Job {
            transaction: &transaction,
            redact: self.options.redact,
            oldest: self.retention.oldest(),
            seq,
            bytes: self.bytes as i64,
            response_bytes: self.response_bytes as i64,
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
        let response_bytes = job.response_bytes;
        transaction.execute(
            "UPDATE counters SET value = ?1 WHERE name = 'last_seq'",
            [last as i64],
        )?;
        transaction.commit()?;
        self.numbers.advance(last);
        self.bytes = bytes.max(0) as u64;
        self.response_bytes = response_bytes.max(0) as u64;
        Ok(last)
    }

    /// Deletes what is too old or too much, the oldest first: all of it or, on an error, nothing.
    /// Where there is too much, responses have half of the room at most.
    fn retain(&mut self) -> Result<(), StoreError> {
        let oldest = i64::try_from(self.retention.oldest()).unwrap_or(i64::MAX);
        let transaction =
            Transaction::new_unchecked(&self.connection, TransactionBehavior::Immediate)?;
        let max_bytes = self.options.max_bytes;
        let (mut bytes, mut response_bytes) = (self.bytes, self.response_bytes);
        let most = (max_bytes / 2).max(max_bytes.saturating_sub(bytes));
        let oldest_response = self.retention.oldest();
        let num_responses =
            responses::retire(&transaction, oldest_response, most, &mut response_bytes)?;
        let mut num_deleted = 0;
        let mut place = (i64::MIN, i64::MIN);
        loop {
            let expired = expired(&transaction, oldest, &mut place)?;
            let batch = match expired {
                Some(batch) => batch,
                None => {
                    let excess = excess(
                        &transaction,
                        bytes,
                        max_bytes.saturating_sub(response_bytes),
                    )?;
                    let batch = first_of(&transaction, excess)?;
                    if batch.is_empty() {
                        break;
                    }
                    batch
                }
            };
            for (seq, size) in batch {
                remove(&transaction, seq)?;
                bytes = bytes.saturating_sub(size as u64);
                num_deleted += 1;
            }
        }
        transaction.commit()?;
        self.bytes = bytes;
        self.response_bytes = response_bytes;
        if num_deleted + num_responses > 0 {
            tracing::info!("{num_deleted} old traces and {num_responses} responses were deleted");
            self.connection
                .execute_batch("PRAGMA incremental_vacuum;")?;
        }
        Ok(())
    }
}

/// Bytes that are too many. Sizes that a damaged column claims cannot make it more than the file has.
fn excess(transaction: &Transaction, bytes: u64, max_bytes: u64) -> Result<u64, rusqlite::Error> {
    if bytes <= max_bytes {
        return Ok(0);
    }
    let number = |name: &str| -> Result<u64, rusqlite::Error> {
        let number: i64 = transaction.pragma_query_value(None, name, |row| row.get(0))?;
        Ok(number.max(0) as u64)
    };
    let used = number("page_count")?.saturating_sub(number("freelist_count")?);
    let in_file = used.saturating_mul(number("page_size")?);
    Ok(bytes.min(in_file).saturating_sub(max_bytes))
}

/// Some of the traces that were created before `oldest`: their numbers and sizes. `place` is how far the index was read.
/// `None` at its end. A trace is as old as its intact row says, not the index; a damaged row has no age, and stays until it
/// is deleted for its size or by its id.
fn expired(
    transaction: &Transaction,
    oldest: i64,
    place: &mut (i64, i64),
) -> Result<Option<Vec<(i64, i64)>>, rusqlite::Error> {
    let mut statement = transaction.prepare_cached(
        "SELECT created, seq FROM traces INDEXED BY traces_created
         WHERE created < ?1 AND (created > ?2 OR created = ?2 AND seq > ?3)
         ORDER BY created, seq LIMIT ?4",
    )?;
    let bounds = params![oldest, place.0, place.1, RETENTION_BATCH as i64];
    let rows = statement.query_map(bounds, |row| Ok((row.get(0)?, row.get(1)?)))?;
    let found = rows.collect::<Result<Vec<(i64, i64)>, _>>()?;
    let Some(last) = found.last() else {
        return Ok(None);
    };
    *place = *last;
    let mut expired = Vec::new();
    for (_, seq) in found {
        let entry = entry(transaction, seq)?;
        if let Some(entry) = entry.filter(|entry| entry.columns.created < oldest) {
            expired.push((seq, entry.columns.bytes));
        }
    }
    Ok(Some(expired))
}

/// The oldest traces that hold `excess` bytes together.
fn first_of(transaction: &Transaction, excess: u64) -> Result<Vec<(i64, i64)>, rusqlite::Error> {
    let mut found = Vec::new();
    if excess == 0 {
        return Ok(found);
    }
    let sql = format!(
        "SELECT seq, {} FROM traces ORDER BY seq LIMIT ?1",
        size_sql()
    );
    let mut statement = transaction.prepare_cached(&sql)?;
    let rows = statement.query_map([RETENTION_BATCH as i64], |row| {
        Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?))
    })?;
    let mut sum = 0_u64;
    for row in rows {
        let row = row?;
        sum = sum.saturating_add(row.1 as u64);
        found.push(row);
        if sum >= excess {
            break;
        }
    }
    Ok(found)
}
