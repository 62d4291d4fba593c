//! The one thread that writes.

use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use rusqlite::{Connection, Transaction, TransactionBehavior, params};
use tokio::sync::watch;

use super::clock::Retention;
use super::job::{Answer, Command, Job, unanswered};
use super::query::last_seq;
use super::{StoreError, StoreOptions};

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
    /// When old traces were deleted last.
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
            retention: Retention::of(&options),
            options,
            bytes: bytes as u64,
            retained: None,
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
            if self.time_to_retention().is_zero() || self.bytes > self.options.max_bytes {
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
            oldest: self.retention.oldest(),
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

    /// Deletes what is too old or too much, the oldest first: all of it or, on an error, nothing.
    fn retain(&mut self) -> Result<(), StoreError> {
        let oldest = i64::try_from(self.retention.oldest()).unwrap_or(i64::MAX);
        let transaction = self
            .connection
            .transaction_with_behavior(TransactionBehavior::Immediate)?;
        let (mut bytes, mut num_deleted) = (self.bytes, 0);
        loop {
            let excess = bytes.saturating_sub(self.options.max_bytes);
            let batch = match expired(&transaction, oldest)? {
                batch if batch.is_empty() && excess > 0 => first_of(&transaction, excess)?,
                batch => batch,
            };
            if batch.is_empty() {
                break;
            }
            for (seq, size) in batch {
                transaction.execute("DELETE FROM traces WHERE seq = ?1", [seq])?;
                bytes = bytes.saturating_sub(size as u64);
                num_deleted += 1;
            }
        }
        transaction.commit()?;
        self.bytes = bytes;
        if num_deleted > 0 {
            tracing::info!("{num_deleted} old traces were deleted");
            self.connection
                .execute_batch("PRAGMA incremental_vacuum;")?;
        }
        Ok(())
    }
}

/// Some of the traces that were created before `oldest`: their numbers and sizes.
fn expired(transaction: &Transaction, oldest: i64) -> Result<Vec<(i64, i64)>, rusqlite::Error> {
    let mut statement =
        transaction.prepare_cached("SELECT seq, bytes FROM traces WHERE created < ?1 LIMIT ?2")?;
    let rows = statement.query_map(params![oldest, RETENTION_BATCH as i64], |row| {
        Ok((row.get(0)?, row.get(1)?))
    })?;
    rows.collect()
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
