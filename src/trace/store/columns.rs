//! A row beside its payload, and the checksums that say whether a row is as it was written.
//!
//! SQLite has no checksums: a flipped bit in a row is read as another value. Each row has two, in a
//! table of their own: of the payload, and of all columns and the payload's. A list is sure of what
//! it says without reading payloads; and no trace changes its owner by a flipped bit.

use rusqlite::Row;
use rusqlite::types::ValueRef;
use xxhash_rust::xxh3::xxh3_128;

use super::{StoreError, Summary, payload};
use crate::trace::record::{PLAIN, TraceRecord};

pub(super) type Hash = [u8; 16];

pub(super) fn hash(bytes: &[u8]) -> Hash {
    xxh3_128(bytes).to_le_bytes()
}

/// Everything that is stored of a trace but its payload, as SQLite has it.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Columns {
    pub seq: i64,
    pub id: String,
    pub revision: i64,
    /// Uses all bits of its key's hash.
    pub owner: i64,
    pub created: i64,
    pub model: String,
    pub strategy: String,
    /// A list, as JSON.
    pub tags: String,
    pub value: Option<f64>,
    pub outcome: Option<f64>,
    pub has_outcome: i64,
    pub num_nodes: i64,
    pub num_tokens: i64,
    /// Of the payload.
    pub bytes: i64,
}

/// A row that is as it was written, as far as its columns say.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub columns: Columns,
    pub payload_hash: Hash,
}

/// The columns in the order of the fields.
pub(super) const NAMES: &str =
    "seq, id, revision, owner, created, model, strategy, tags, value, outcome,
    has_outcome, num_nodes, num_tokens, bytes";
/// How many these are: what is selected after them begins here.
pub(super) const NUM_COLUMNS: usize = 14;

/// A record as it is written.
pub(super) struct Encoded {
    /// Without a number.
    pub columns: Columns,
    pub payload: Vec<u8>,
}

impl Encoded {
    pub fn of(record: &TraceRecord, owner: i64) -> Result<Self, StoreError> {
        let failed = |error: serde_json::Error| StoreError::Failed(error.to_string());
        let payload = payload::encode(record)?;
        let signed = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
        let columns = Columns {
            seq: 0,
            id: record.id.clone(),
            revision: signed(record.revision),
            owner,
            created: signed(record.created),
            model: record.model.clone(),
            strategy: record.strategy.clone(),
            tags: serde_json::to_string(&record.tags).map_err(failed)?,
            // Nobody valued a plain answer.
            value: record
                .best()
                .filter(|_| record.strategy != PLAIN)
                .and_then(|best| real(record.nodes[best].value)),
            outcome: record.chosen_outcome().and_then(real),
            has_outcome: i64::from(record.has_outcome()),
            num_nodes: record.nodes.len().saturating_sub(1) as i64,
            num_tokens: signed(record.usage.completion_tokens),
            bytes: payload.len() as i64,
        };
        Ok(Self { columns, payload })
    }
}

/// A number as SQLite keeps it: there is no NaN, and one zero.
fn real(number: f64) -> Option<f64> {
    (!number.is_nan()).then_some(number + 0.0)
}

impl Columns {
    /// The columns of a row that begins with [`NAMES`]; `None` where one has not its type.
    pub fn read(row: &Row) -> Option<Self> {
        let number = |index: usize| match row.get_ref(index) {
            Ok(ValueRef::Integer(number)) => Some(number),
            _ => None,
        };
        let text = |index: usize| match row.get_ref(index) {
            Ok(ValueRef::Text(text)) => std::str::from_utf8(text).ok().map(str::to_owned),
            _ => None,
        };
        let maybe = |index: usize| match row.get_ref(index) {
            Ok(ValueRef::Null) => Some(None),
            Ok(ValueRef::Real(number)) => Some(Some(number)),
            _ => None,
        };
        Some(Self {
            seq: number(0)?,
            id: text(1)?,
            revision: number(2)?,
            owner: number(3)?,
            created: number(4)?,
            model: text(5)?,
            strategy: text(6)?,
            tags: text(7)?,
            value: maybe(8)?,
            outcome: maybe(9)?,
            has_outcome: number(10)?,
            num_nodes: number(11)?,
            num_tokens: number(12)?,
            bytes: number(13)?,
        })
    }

    /// Of all columns and the payload's checksum. Each text stands with its length, so that no two
    /// rows give the same bytes.
    pub fn hash(&self, payload_hash: &Hash) -> Hash {
        let mut bytes = Vec::with_capacity(256);
        for number in [
            self.seq,
            self.revision,
            self.owner,
            self.created,
            self.has_outcome,
            self.num_nodes,
            self.num_tokens,
            self.bytes,
        ] {
            bytes.extend(number.to_le_bytes());
        }
        for text in [&self.id, &self.model, &self.strategy, &self.tags] {
            bytes.extend((text.len() as u64).to_le_bytes());
            bytes.extend(text.as_bytes());
        }
        for number in [self.value, self.outcome] {
            bytes.push(u8::from(number.is_some()));
            bytes.extend(number.map_or(0, f64::to_bits).to_le_bytes());
        }
        bytes.extend(payload_hash);
        hash(&bytes)
    }

    pub fn tags(&self) -> Vec<String> {
        serde_json::from_str(&self.tags).unwrap_or_default()
    }

    pub fn summary(self) -> Summary {
        Summary {
            seq: self.seq as u64,
            revision: self.revision as u64,
            created: self.created as u64,
            tags: self.tags(),
            id: self.id,
            model: self.model,
            strategy: self.strategy,
            value: self.value,
            outcome: self.outcome,
            num_nodes: self.num_nodes as u64,
            num_tokens: self.num_tokens as u64,
            bytes: self.bytes as u64,
        }
    }
}

impl Entry {
    /// The columns of a row of [`NAMES`], `row_hash` and `payload_hash`; `None` if they are not
    /// what was written.
    pub fn read(row: &Row) -> Option<Self> {
        let columns = Columns::read(row)?;
        let stored = |index: usize| match row.get_ref(index) {
            Ok(ValueRef::Blob(bytes)) => Hash::try_from(bytes).ok(),
            _ => None,
        };
        let (row_hash, payload_hash) = (stored(NUM_COLUMNS)?, stored(NUM_COLUMNS + 1)?);
        let is_intact = columns.seq >= 0 && columns.hash(&payload_hash) == row_hash;
        is_intact.then_some(Self {
            columns,
            payload_hash,
        })
    }
}
