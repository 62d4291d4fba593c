//! The numbers of writes: none is ever given twice.
//!
//! A power cut, or a copy of the files that was not taken at one moment, loses the end of the
//! write-ahead log, and with it the latest numbers. Readers have seen them and ask for what comes
//! behind them. So numbers are reserved ahead: a reservation is forced to the disk before the first
//! of its numbers is used, and whoever opens a file that was not closed goes on behind what was
//! reserved. What was lost leaves a gap.

use rusqlite::{Connection, Transaction, TransactionBehavior};

use super::StoreError;

/// Numbers of one reservation: one wait for the disk in so many writes, and the gap that a file
/// which was not closed may get.
const STEP: u64 = 1 << 16;
const RESERVED: &str = "reserved_seq";

/// The number of the latest write that is in the file. There are three witnesses: a damaged counter hides no trace, and
/// takes no number that is there.
pub(super) fn last_seq(connection: &Connection) -> Result<u64, rusqlite::Error> {
    let largest = |sql: &str| -> Result<u64, rusqlite::Error> {
        let largest: Option<i64> = connection
            .prepare_cached(sql)?
            .query_row([], |row| row.get(0))?;
        Ok(largest.unwrap_or(0).max(0) as u64)
    };
    let witnesses = [
        counter(connection, "last_seq"),
        largest("SELECT max(seq) FROM traces"),
        largest("SELECT max(number) FROM checks"),
    ];
    // One that cannot be read says nothing.
    let larger = |a: Result<u64, _>, b: Result<u64, _>| match (a, b) {
        (Ok(a), Ok(b)) => Ok(a.max(b)),
        (Ok(number), Err(_)) | (Err(_), Ok(number)) => Ok(number),
        (Err(error), Err(_)) => Err(error),
    };
    witnesses.into_iter().reduce(larger).unwrap_or(Ok(0))
}

fn counter(connection: &Connection, name: &str) -> Result<u64, rusqlite::Error> {
    let value: i64 = connection
        .prepare_cached("SELECT value FROM counters WHERE name = ?1")?
        .query_row([name], |row| row.get(0))?;
    Ok(value.max(0) as u64)
}

/// `value` as the counter's, where that is less.
fn raise(connection: &Connection, name: &str, value: u64) -> Result<(), rusqlite::Error> {
    connection
        .prepare_cached("UPDATE counters SET value = max(value, ?2) WHERE name = ?1")?
        .execute(rusqlite::params![name, signed(value)])?;
    Ok(())
}

fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// One writer's view of the numbers; another process may write the same file.
#[derive(Debug)]
pub(super) struct Numbers {
    /// Numbers up to here may have been given before.
    floor: u64,
    /// As far as this writer knows.
    reserved: u64,
}

impl Numbers {
    pub fn open(connection: &Connection) -> Result<Self, rusqlite::Error> {
        let reserved = counter(connection, RESERVED)?;
        Ok(Self {
            floor: last_seq(connection)?.max(reserved),
            reserved,
        })
    }

    /// The largest number that may have been given.
    pub fn floor(&self) -> u64 {
        self.floor
    }

    /// A transaction, and the number behind which it may take `count` new ones.
    pub fn begin<'c>(
        &mut self,
        connection: &'c Connection,
        count: usize,
    ) -> Result<(Transaction<'c>, u64), StoreError> {
        loop {
            let last = self.floor.max(last_seq(connection)?);
            let wanted = last.saturating_add(count as u64);
            if wanted > i64::MAX as u64 {
                return Err(StoreError::Failed("no numbers are left".to_owned()));
            }
            if wanted > self.reserved {
                self.reserve(connection, wanted.saturating_add(STEP))?;
            }
            let transaction =
                Transaction::new_unchecked(connection, TransactionBehavior::Immediate)?;
            // Another process may have written, or closed the file, since.
            let last = self.floor.max(last_seq(&transaction)?);
            self.reserved = counter(&transaction, RESERVED)?;
            if last.saturating_add(count as u64) <= self.reserved {
                return Ok((transaction, last));
            }
        }
    }

    /// Reserves numbers up to `upto`, and waits until that is on the disk.
    fn reserve(&mut self, connection: &Connection, upto: u64) -> Result<(), rusqlite::Error> {
        let upto = upto.min(i64::MAX as u64);
        connection.pragma_update(None, "synchronous", "FULL")?;
        let written = raise(connection, RESERVED, upto);
        connection.pragma_update(None, "synchronous", "NORMAL")?;
        written?;
        self.reserved = upto;
        // Into the file itself, as far as no reader is in the way: then the whole log may be lost.
        let _ = connection.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(()));
        Ok(())
    }

    /// What this writer gave.
    pub fn advance(&mut self, last: u64) {
        self.floor = self.floor.max(last);
    }

    /// The end of an orderly close: the next opening goes on where this one stopped. In the log
    /// this follows all writes, so whoever finds it finds them too.
    pub fn release(&self, connection: &Connection) -> Result<(), rusqlite::Error> {
        let last = self.floor.max(last_seq(connection)?);
        if counter(connection, RESERVED)? == last && counter(connection, "last_seq")? == last {
            return Ok(());
        }
        let transaction = Transaction::new_unchecked(connection, TransactionBehavior::Immediate)?;
        raise(&transaction, "last_seq", self.floor)?;
        let last = last_seq(&transaction)?;
        transaction
            .prepare_cached("UPDATE counters SET value = ?2 WHERE name = ?1")?
            .execute(rusqlite::params![RESERVED, signed(last)])?;
        transaction.commit()
    }
}
