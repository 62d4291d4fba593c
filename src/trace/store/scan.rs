//! Rows in the order of their numbers, whatever lies between them.
//!
//! A row that is not as it was written is told by its number. Where SQLite cannot read a page at
//! all, the next number that it can read is looked for, and what lies between is told as damaged.

use std::ops::ControlFlow;

use rusqlite::{Connection, Statement, params};

use super::columns::{Entry, NAMES};
use super::error::is_unreadable;
use super::numbers;

/// Unreadable places that one scan passes by; a file with more is beyond reading.
const MAX_PLACES: usize = 256;
/// Numbers that are named of one unreadable place.
const MAX_NAMED: i64 = 4096;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Direction {
    Up,
    Down,
}

/// One row, or what is left of it.
pub(super) enum Scanned {
    Intact(Entry),
    /// By its number, as far as that can be told.
    Damaged(u64),
}

impl Direction {
    fn sql(self) -> String {
        let (bound, order) = match self {
            Self::Up => ("seq >= ?1", "seq"),
            Self::Down => ("seq <= ?1", "seq DESC"),
        };
        format!(
            "SELECT {NAMES}, row_hash, payload_hash FROM traces LEFT JOIN checks ON number = seq
             WHERE {bound} ORDER BY {order}"
        )
    }

    /// The number `distance` behind `seq`.
    fn step(self, seq: i64, distance: i64) -> Option<i64> {
        match self {
            Self::Up => seq.checked_add(distance),
            Self::Down => seq.checked_sub(distance).filter(|seq| *seq >= 0),
        }
    }

    /// Whether `seq` comes before `bound`: a damaged tree may give a row twice.
    fn is_before(self, seq: i64, bound: i64) -> bool {
        match self {
            Self::Up => seq < bound,
            Self::Down => seq > bound,
        }
    }
}

/// Where everything lies behind; a damaged number may be less than 0.
pub(super) const START: i64 = i64::MIN;

/// Gives each row from `bound` on (included) to `each`, until that breaks.
pub(super) fn scan(
    connection: &Connection,
    direction: Direction,
    mut bound: i64,
    mut each: impl FnMut(Scanned) -> ControlFlow<()>,
) -> Result<(), rusqlite::Error> {
    let mut statement = connection.prepare_cached(&direction.sql())?;
    for _ in 0..MAX_PLACES {
        let error = match read(&mut statement, direction, &mut bound, &mut each) {
            Ok(()) => return Ok(()),
            Err(error) if is_unreadable(&error) => error,
            Err(error) => return Err(error),
        };
        tracing::debug!("the trace store cannot be read at {bound}: {error}");
        let last = numbers::last_seq(connection).map_or(i64::MAX, |last| last as i64);
        // A reader may begin anywhere before the first number, or behind the last.
        bound = match direction {
            Direction::Up => bound.max(0),
            Direction::Down => bound.min(last),
        };
        let next = behind(&mut statement, direction, bound, last);
        let end = next.unwrap_or(match direction {
            Direction::Up => last.saturating_add(1),
            Direction::Down => -1,
        });
        for seq in between(connection, bound, end) {
            if each(Scanned::Damaged(seq)).is_break() {
                return Ok(());
            }
        }
        match next {
            Some(next) => bound = next,
            None => return Ok(()),
        }
    }
    Ok(())
}

/// Rows until `each` breaks or a page cannot be read; `bound` is behind the last intact one then.
fn read(
    statement: &mut Statement,
    direction: Direction,
    bound: &mut i64,
    each: &mut impl FnMut(Scanned) -> ControlFlow<()>,
) -> Result<(), rusqlite::Error> {
    let mut rows = statement.query(params![*bound])?;
    while let Some(row) = rows.next()? {
        let scanned = match Entry::read(row) {
            Some(entry) if direction.is_before(entry.columns.seq, *bound) => continue,
            Some(entry) => {
                // No number is the largest one, see `numbers`.
                *bound = direction.step(entry.columns.seq, 1).unwrap_or(*bound);
                Scanned::Intact(entry)
            }
            // A row's key is read even where nothing else is.
            None => Scanned::Damaged(row.get::<_, i64>(0).unwrap_or(*bound).max(0) as u64),
        };
        if each(scanned).is_break() {
            return Ok(());
        }
    }
    Ok(())
}

/// The number nearest behind `bad` from which SQLite can read, up to `last`.
fn behind(statement: &mut Statement, direction: Direction, bad: i64, last: i64) -> Option<i64> {
    let mut is_readable = |seq: i64| {
        let mut rows = statement.query(params![seq]).ok()?;
        rows.next().ok().map(|_| ())
    };
    // Doubles the distance until something can be read, then halves what is between.
    let (mut near, mut far) = (0, 1);
    loop {
        let seq = direction.step(bad, far)?;
        if is_readable(seq).is_some() {
            break;
        }
        if direction == Direction::Up && seq > last {
            return None;
        }
        (near, far) = (far, far.checked_mul(2)?);
    }
    while far - near > 1 {
        let middle = near + (far - near) / 2;
        match is_readable(direction.step(bad, middle)?) {
            Some(()) => far = middle,
            None => near = middle,
        }
    }
    direction.step(bad, far)
}

/// The numbers of traces from `from` up to `end` (not included), either of which may be larger; `from` itself
/// where nothing says which these are.
fn between(connection: &Connection, from: i64, end: i64) -> Vec<u64> {
    let (low, high) = match from <= end {
        true => (from, end.saturating_sub(1)),
        false => (end.saturating_add(1), from),
    };
    let named = || -> Result<Vec<u64>, rusqlite::Error> {
        let sql =
            "SELECT number FROM checks WHERE number BETWEEN ?1 AND ?2 ORDER BY number LIMIT ?3";
        let mut statement = connection.prepare_cached(sql)?;
        let numbers = statement.query_map(params![low, high, MAX_NAMED], |row| {
            row.get::<_, i64>(0).map(|number| number as u64)
        })?;
        numbers.collect()
    };
    match named() {
        Ok(numbers) if !numbers.is_empty() => numbers,
        _ => vec![from.max(0) as u64],
    }
}

/// The payload of a row, if it is what was written; else why not.
pub(super) fn payload(connection: &Connection, entry: &Entry) -> Result<Vec<u8>, String> {
    let read = connection
        .prepare_cached("SELECT payload FROM traces WHERE seq = ?1")
        .and_then(|mut statement| {
            statement.query_row([entry.columns.seq], |row| {
                Ok(row.get_ref(0)?.as_bytes().map(<[u8]>::to_vec).ok())
            })
        });
    match read {
        Ok(Some(payload)) if super::columns::hash(&payload) == entry.payload_hash => Ok(payload),
        Ok(_) => Err("its payload has another checksum".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}
