//! What readers ask.

use rusqlite::{Connection, OptionalExtension, Row, params};
use serde::Serialize;

use super::{Owner, StoreError, job};
use crate::trace::record::TraceRecord;

/// Compressed bytes and traces of one page: a reader holds its snapshot no longer than it takes to copy these.
const PAGE_BYTES: usize = 1 << 20;
const PAGE_TRACES: usize = 256;

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

/// A trace as it lies in the store.
#[derive(Debug, Clone)]
pub struct Stored {
    pub seq: u64,
    payload: Vec<u8>,
}

impl Stored {
    pub fn record(&self) -> Result<TraceRecord, StoreError> {
        job::decode(&self.payload)
    }

    /// The record as JSON, as it was written.
    pub fn json(&self) -> Result<Vec<u8>, StoreError> {
        zstd::stream::decode_all(self.payload.as_slice())
            .map_err(|error| StoreError::Failed(error.to_string()))
    }
}

/// The whole store in numbers.
#[derive(Debug, Clone, PartialEq, Serialize)]
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
}

/// The filter's conditions, its values from parameter 1 on.
const CONDITIONS: &str = "(?1 IS NULL OR owner = ?1)
    AND (?2 IS NULL OR model = ?2)
    AND (?3 IS NULL OR strategy = ?3)
    AND (?4 IS NULL OR value >= ?4)
    AND (?5 IS NULL OR outcome >= ?5)
    AND (?6 IS NULL OR has_outcome = ?6)
    AND (?7 IS NULL OR created >= ?7)
    AND (?8 IS NULL OR created < ?8)
    AND (?9 IS NULL OR NOT EXISTS (SELECT value FROM json_each(?9) EXCEPT SELECT value FROM json_each(tags)))";

/// Keys of owners use all bits.
fn key(owner: Owner) -> Option<i64> {
    owner.map(|owner| owner as i64)
}

/// Times and numbers of writes; a client may name any.
fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn rows<T>(
    connection: &Connection,
    sql: &str,
    filter: &Filter,
    (bound, limit): (Option<u64>, usize),
    mut each: impl FnMut(&Row) -> Result<Option<T>, rusqlite::Error>,
) -> Result<Vec<T>, rusqlite::Error> {
    let mut statement = connection.prepare_cached(sql)?;
    let tags = (!filter.tags.is_empty()).then(|| serde_json::json!(filter.tags).to_string());
    let mut rows = statement.query(params![
        key(filter.owner),
        filter.model,
        filter.strategy,
        filter.min_value,
        filter.min_outcome,
        filter.has_outcome,
        filter.created_from.map(signed),
        filter.created_before.map(signed),
        tags,
        bound.map(signed),
        limit as i64,
    ])?;
    let mut found = Vec::new();
    while let Some(row) = rows.next()? {
        match each(row)? {
            Some(item) => found.push(item),
            None => break,
        }
    }
    Ok(found)
}

pub(super) fn list(
    connection: &Connection,
    filter: &Filter,
    order: Order,
    after: Option<u64>,
    limit: usize,
) -> Result<Vec<Summary>, rusqlite::Error> {
    let order = match order {
        Order::NewestFirst => "(?10 IS NULL OR seq < ?10) ORDER BY seq DESC",
        Order::OldestFirst => "(?10 IS NULL OR seq > ?10) ORDER BY seq",
    };
    let sql = format!(
        "SELECT seq, id, revision, created, model, strategy, tags, value, outcome, num_nodes, num_tokens, bytes
         FROM traces WHERE {CONDITIONS} AND {order} LIMIT ?11"
    );
    rows(connection, &sql, filter, (after, limit), |row| {
        let tags: String = row.get(6)?;
        let number = |index: usize| row.get::<_, i64>(index).map(|number| number as u64);
        Ok(Some(Summary {
            seq: number(0)?,
            id: row.get(1)?,
            revision: number(2)?,
            created: number(3)?,
            model: row.get(4)?,
            strategy: row.get(5)?,
            tags: serde_json::from_str(&tags).unwrap_or_default(),
            value: row.get(7)?,
            outcome: row.get(8)?,
            num_nodes: number(9)?,
            num_tokens: number(10)?,
            bytes: number(11)?,
        }))
    })
}

pub(super) fn last_seq(connection: &Connection) -> Result<u64, rusqlite::Error> {
    let last: i64 = connection
        .prepare_cached("SELECT value FROM counters WHERE name = 'last_seq'")?
        .query_row([], |row| row.get(0))?;
    Ok(last as u64)
}

pub(super) fn page(
    connection: &Connection,
    filter: &Filter,
    from: u64,
) -> Result<Vec<Stored>, rusqlite::Error> {
    let sql = format!(
        "SELECT seq, payload FROM traces WHERE {CONDITIONS} AND seq >= ?10 ORDER BY seq LIMIT ?11"
    );
    let mut bytes = 0;
    rows(connection, &sql, filter, (Some(from), PAGE_TRACES), |row| {
        if bytes >= PAGE_BYTES {
            return Ok(None);
        }
        let payload: Vec<u8> = row.get(1)?;
        bytes += payload.len();
        let seq = row.get::<_, i64>(0)? as u64;
        Ok(Some(Stored { seq, payload }))
    })
}

pub(super) fn get(
    connection: &Connection,
    id: &str,
    owner: Owner,
    oldest: u64,
) -> Result<Option<Stored>, rusqlite::Error> {
    connection
        .prepare_cached(
            "SELECT seq, payload FROM traces
             WHERE id = ?1 AND (?2 IS NULL OR owner = ?2) AND created >= ?3",
        )?
        .query_row(params![id, key(owner), signed(oldest)], |row| {
            let seq = row.get::<_, i64>(0)? as u64;
            let payload = row.get(1)?;
            Ok(Stored { seq, payload })
        })
        .optional()
}

pub(super) fn totals(connection: &Connection, oldest: u64) -> Result<Totals, rusqlite::Error> {
    let oldest = signed(oldest);
    let mut statement = connection.prepare_cached(
        "SELECT strategy, count(*) FROM traces WHERE created >= ?1 GROUP BY strategy ORDER BY 2 DESC",
    )?;
    let strategies = statement.query_map([oldest], |row| {
        Ok((row.get(0)?, row.get::<_, i64>(1)? as u64))
    })?;
    let strategies = strategies.collect::<Result<_, _>>()?;
    connection.query_row(
        "SELECT count(*), coalesce(sum(num_nodes), 0), coalesce(sum(num_tokens), 0), coalesce(sum(bytes), 0),
             coalesce(sum(has_outcome), 0), avg(outcome), min(created), max(created)
         FROM traces WHERE created >= ?1",
        [oldest],
        |row| {
            let number = |index: usize| row.get::<_, i64>(index).map(|number| number as u64);
            let time = |index: usize| row.get::<_, Option<i64>>(index).map(|time| time.map(|time| time as u64));
            Ok(Totals {
                num_traces: number(0)?,
                num_nodes: number(1)?,
                num_tokens: number(2)?,
                bytes: number(3)?,
                num_with_outcome: number(4)?,
                mean_outcome: row.get(5)?,
                first_created: time(6)?,
                last_created: time(7)?,
                strategies,
            })
        },
    )
}
