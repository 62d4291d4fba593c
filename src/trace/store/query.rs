//! What readers ask. Filters look at columns whose checksum is right, here rather than in SQL: a
//! damaged row is told to whoever reads over it, and is never taken for another's.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;

use rusqlite::{Connection, OptionalExtension};
use serde::Serialize;

use super::columns::{Columns, Entry, NAMES};
use super::scan::{Direction, START, Scanned, payload, scan};
use super::{Owner, StoreError, numbers, payload as payloads};
use crate::trace::record::TraceRecord;

/// Compressed bytes and traces of one page: a reader holds its snapshot no longer than it takes to copy these.
const PAGE_BYTES: usize = 1 << 20;
const PAGE_TRACES: usize = 256;
/// Rows that are looked at for one page, and for one step of a list.
const PAGE_ROWS: usize = 1 << 14;
/// Rows of a list between two looks at whether anybody still wants it.
const ROWS_PER_LOOK: usize = 256;

/// Which traces; what is `None` does not matter.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Filter {
    pub owner: Owner,
    pub model: Option<String>,
    pub strategy: Option<String>,
    /// All of them must be there.
    pub tags: Vec<String>,
    /// Of the chosen answer.
    pub min_value: Option<f64>,
    pub min_outcome: Option<f64>,
    pub has_outcome: Option<bool>,
    /// Unix seconds, the first included.
    pub created_from: Option<u64>,
    pub created_before: Option<u64>,
}

impl Filter {
    fn takes(&self, columns: &Columns) -> bool {
        let created = columns.created.max(0) as u64;
        let is_text = |wanted: &Option<String>, text: &str| {
            wanted.as_ref().is_none_or(|wanted| wanted == text)
        };
        let is_least = |least: Option<f64>, number: Option<f64>| {
            least.is_none_or(|least| number.is_some_and(|number| number >= least))
        };
        let has_tags = || {
            let tags = columns.tags();
            self.tags.iter().all(|tag| tags.contains(tag))
        };
        self.owner.is_none_or(|owner| owner as i64 == columns.owner)
            && is_text(&self.model, &columns.model)
            && is_text(&self.strategy, &columns.strategy)
            && is_least(self.min_value, columns.value)
            && is_least(self.min_outcome, columns.outcome)
            && self
                .has_outcome
                .is_none_or(|wanted| wanted == (columns.has_outcome != 0))
            && self
                .created_from
                .is_none_or(|from| created >= from.min(i64::MAX as u64))
            && self
                .created_before
                .is_none_or(|before| created < before.min(i64::MAX as u64))
            && (self.tags.is_empty() || has_tags())
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Order {
    #[default]
    NewestFirst,
    OldestFirst,
}

/// A trace without its tree.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Summary {
    pub id: String,
    /// The number of its latest write, see `after`.
    pub seq: u64,
    pub revision: u64,
    pub created: u64,
    pub model: String,
    pub strategy: String,
    pub tags: Vec<String>,
    pub value: Option<f64>,
    pub outcome: Option<f64>,
    pub num_nodes: u64,
    pub num_tokens: u64,
    /// Compressed.
    pub bytes: u64,
}

/// Some traces without their trees.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Listing {
    pub traces: Vec<Summary>,
    /// Numbers of damaged traces between them, which the filter may mean or not.
    pub damaged: Vec<u64>,
}

/// A trace as it lies in the store; its checksums are right.
#[derive(Debug, Clone)]
pub struct Stored {
    pub seq: u64,
    payload: Vec<u8>,
}

impl Stored {
    pub fn record(&self) -> Result<TraceRecord, StoreError> {
        payloads::decode(&self.payload).map_err(|reason| self.damaged(reason))
    }

    /// The record as JSON, as it was written.
    pub fn json(&self) -> Result<Vec<u8>, StoreError> {
        payloads::unpack(&self.payload, payloads::MAX_RECORD_BYTES)
            .map_err(|reason| self.damaged(reason))
    }

    fn damaged(&self, reason: String) -> StoreError {
        StoreError::DamagedTrace {
            name: format!("number {}", self.seq),
            reason,
        }
    }
}

/// Some traces in the order of their writes.
#[derive(Debug, Clone, Default)]
pub struct Page {
    pub traces: Vec<Stored>,
    /// Numbers of damaged traces between them, which the filter may mean or not.
    pub damaged: Vec<u64>,
    /// Where to go on; `None` when nothing follows for now.
    pub next: Option<u64>,
}

/// The whole store in numbers.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Totals {
    pub num_traces: u64,
    pub num_nodes: u64,
    pub num_tokens: u64,
    /// Compressed bytes of the traces.
    pub bytes: u64,
    pub num_with_outcome: u64,
    /// Mean outcome of the chosen answers where it is known.
    pub mean_outcome: Option<f64>,
    /// Unix seconds.
    pub first_created: Option<u64>,
    pub last_created: Option<u64>,
    /// Traces of each strategy.
    pub strategies: Vec<(String, u64)>,
    /// Traces whose columns are damaged; they are in no other number.
    pub num_damaged: u64,
}

/// Times and numbers of writes; a client may name any.
fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// Up to `limit` summaries behind `after`. `is_wanted` is asked now and then; the list ends early if it says no.
pub(super) fn list(
    connection: &Connection,
    filter: &Filter,
    order: Order,
    after: Option<u64>,
    limit: usize,
    is_wanted: &dyn Fn() -> bool,
) -> Result<Listing, rusqlite::Error> {
    let after = after.map(signed);
    let (direction, bound) = match order {
        Order::NewestFirst => (Direction::Down, after.map_or(i64::MAX, |after| after - 1)),
        Order::OldestFirst => (
            Direction::Up,
            after.map_or(START, |after| after.saturating_add(1)),
        ),
    };
    let mut found = Listing::default();
    let mut damaged = BTreeSet::new();
    let mut num_rows = 0;
    scan(connection, direction, bound, |row| {
        num_rows += 1;
        match row {
            Scanned::Damaged(seq) if damaged.len() < PAGE_ROWS => {
                damaged.insert(seq);
            }
            Scanned::Damaged(_) => {}
            Scanned::Intact(entry) if filter.takes(&entry.columns) => {
                found.traces.push(entry.columns.summary());
            }
            Scanned::Intact(_) => {}
        }
        let is_over = found.traces.len() >= limit || num_rows % ROWS_PER_LOOK == 0 && !is_wanted();
        flow(is_over)
    })?;
    found.damaged = damaged.into_iter().collect();
    Ok(found)
}

fn flow(is_over: bool) -> ControlFlow<()> {
    match is_over {
        true => ControlFlow::Break(()),
        false => ControlFlow::Continue(()),
    }
}

pub(super) fn page(
    connection: &Connection,
    filter: &Filter,
    from: u64,
) -> Result<Page, rusqlite::Error> {
    let mut page = Page::default();
    let mut damaged = BTreeSet::new();
    let (mut num_rows, mut num_bytes) = (0, 0);
    // Behind all intact rows that were looked at.
    let mut next = from;
    let mut is_cut = false;
    let bound = if from == 0 { START } else { signed(from) };
    scan(connection, Direction::Up, bound, |row| {
        num_rows += 1;
        match row {
            Scanned::Damaged(seq) => {
                damaged.insert(seq);
            }
            Scanned::Intact(entry) => {
                let seq = entry.columns.seq as u64;
                next = seq.saturating_add(1);
                if filter.takes(&entry.columns) {
                    match payload(connection, &entry) {
                        Ok(payload) => {
                            num_bytes += payload.len();
                            page.traces.push(Stored { seq, payload });
                        }
                        Err(_) => {
                            damaged.insert(seq);
                        }
                    }
                }
            }
        }
        is_cut =
            num_rows >= PAGE_ROWS || num_bytes >= PAGE_BYTES || page.traces.len() >= PAGE_TRACES;
        flow(is_cut)
    })?;
    if is_cut {
        // Behind damaged rows too, if nothing else was met; a number beyond the end is no place.
        let last = numbers::last_seq(connection)?;
        let behind = damaged.range(..=last).next_back().map(|seq| seq + 1);
        let is_stuck = next == from;
        page.next = Some(match is_stuck {
            true => behind.unwrap_or(0).max(from.saturating_add(1)),
            false => next,
        });
    }
    page.damaged = damaged.into_iter().collect();
    Ok(page)
}

/// What there is under an id.
pub(super) enum Found {
    Intact(Box<Entry>, Stored),
    Damaged { seq: u64, reason: String },
    Nothing,
}

pub(super) fn get(
    connection: &Connection,
    id: &str,
    owner: Owner,
    oldest: u64,
) -> Result<Found, rusqlite::Error> {
    match find(connection, id, owner, oldest)? {
        Some(place) => load(connection, place),
        None => Ok(Found::Nothing),
    }
}

/// What is at a place.
pub(super) fn load(connection: &Connection, place: Place) -> Result<Found, rusqlite::Error> {
    let seq = place.seq as u64;
    let damaged = |reason: String| Found::Damaged { seq, reason };
    let Some(entry) = place.entry else {
        return Ok(damaged("its columns have another checksum".to_owned()));
    };
    Ok(match payload(connection, &entry) {
        Ok(payload) => Found::Intact(Box::new(entry), Stored { seq, payload }),
        Err(reason) => damaged(reason),
    })
}

/// The row of a number, if it is intact.
pub(super) fn entry(connection: &Connection, seq: i64) -> Result<Option<Entry>, rusqlite::Error> {
    let sql = format!(
        "SELECT {NAMES}, row_hash, payload_hash FROM traces LEFT JOIN checks ON number = seq WHERE seq = ?1"
    );
    let entry = connection
        .prepare_cached(&sql)?
        .query_row([seq], |row| Ok(Entry::read(row)))
        .optional()?;
    Ok(entry.flatten())
}

/// A row that is found by its id.
pub(super) struct Place {
    pub seq: i64,
    /// `None` where the row is damaged, or the index led to another's.
    pub entry: Option<Entry>,
}

/// The row of an id, if it is the owner's and not too old, as far as it says.
pub(super) fn find(
    connection: &Connection,
    id: &str,
    owner: Owner,
    oldest: u64,
) -> Result<Option<Place>, rusqlite::Error> {
    let sql = format!(
        "SELECT {NAMES}, row_hash, payload_hash FROM traces LEFT JOIN checks ON number = seq WHERE id = ?1"
    );
    let place = connection
        .prepare_cached(&sql)?
        .query_row([id], |row| {
            let entry = Entry::read(row).filter(|entry| entry.columns.id == id);
            let is_owners = match (owner, row.get::<_, i64>(3)) {
                (None, _) => true,
                (Some(owner), Ok(found)) => owner as i64 == found,
                (Some(_), Err(_)) => false,
            };
            let is_old = entry
                .as_ref()
                .is_some_and(|entry| entry.columns.created < signed(oldest));
            let place = Place {
                seq: row.get(0)?,
                entry,
            };
            Ok((is_owners && !is_old).then_some(place))
        })
        .optional()?;
    Ok(place.flatten())
}

pub(super) fn totals(connection: &Connection, oldest: u64) -> Result<Totals, rusqlite::Error> {
    let mut totals = Totals::default();
    let mut strategies: BTreeMap<String, u64> = BTreeMap::new();
    let (mut sum, mut num_told) = (0.0, 0_u64);
    let mut damaged = BTreeSet::new();
    scan(connection, Direction::Up, START, |row| {
        match row {
            Scanned::Damaged(seq) => {
                damaged.insert(seq);
            }
            Scanned::Intact(entry) if entry.columns.created >= signed(oldest) => {
                let columns = entry.columns;
                let created = Some(columns.created as u64);
                totals.num_traces += 1;
                totals.num_nodes += columns.num_nodes as u64;
                totals.num_tokens += columns.num_tokens as u64;
                totals.bytes += columns.bytes as u64;
                totals.num_with_outcome += u64::from(columns.has_outcome != 0);
                totals.first_created = totals
                    .first_created
                    .map_or(created, |first| Some(first).min(created));
                totals.last_created = totals.last_created.max(created);
                if let Some(outcome) = columns.outcome {
                    sum += outcome;
                    num_told += 1;
                }
                *strategies.entry(columns.strategy).or_default() += 1;
            }
            Scanned::Intact(_) => {}
        }
        ControlFlow::Continue(())
    })?;
    totals.mean_outcome = (num_told > 0).then(|| sum / num_told as f64);
    totals.num_damaged = damaged.len() as u64;
    totals.strategies = strategies.into_iter().collect();
    // Most first; equals by name.
    totals
        .strategies
        .sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    Ok(totals)
}
