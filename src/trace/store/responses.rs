//! Responses that clients may ask for again: a table beside the traces', in the same file, by the
//! same writer, under the same retention.
//!
//! A row has its checksums in itself, before the payload: whoever asks for a response gets what was
//! written or word of damage, and no response changes its owner by a flipped bit.

use rusqlite::types::ValueRef;
use rusqlite::{Connection, OptionalExtension, Row, Transaction, params};
use serde::Serialize;

use super::columns::{Hash, hash};
use super::job::{Command, size_sql};
use super::{StoreError, TraceStore, payload};

/// Rows that one look at the table's age or size takes away.
const BATCH: i64 = 1000;
/// Everything but the payload.
const NAMES: &str = "number, id, owner, created, bytes, row_hash, payload_hash";

/// A response as it is written: packed by whoever asks for that, not by the writer.
#[derive(Debug, Clone)]
pub struct PackedResponse {
    id: String,
    created: u64,
    payload: Vec<u8>,
}

impl PackedResponse {
    /// `created` is in Unix seconds, `body` is what [`TraceStore::response`] gives back.
    pub fn of(id: &str, created: u64, body: &impl Serialize) -> Result<Self, StoreError> {
        Ok(Self {
            id: id.to_owned(),
            created,
            payload: payload::pack(body)?,
        })
    }
}

impl TraceStore {
    /// Whether the store keeps texts; without them there is nothing of a response to keep.
    pub fn keeps_texts(&self) -> bool {
        self.inner.keeps_texts
    }

    /// Keeps a response in the place of an earlier one of its id; returns once it is committed.
    pub async fn put_response(&self, row: PackedResponse, owner: u64) -> Result<(), StoreError> {
        self.ask(|done| Command::PutResponse { row, owner, done })
            .await
    }

    /// The JSON of an owner's response. Blocks on the disk.
    pub fn response(&self, id: &str, owner: u64) -> Result<Vec<u8>, StoreError> {
        let oldest = self.inner.retention.oldest();
        let found = self.read(|connection| find(connection, id))?;
        let (row, payload) = found.ok_or_else(|| StoreError::NotFound(id.to_owned()))?;
        let damaged = |reason: &str| StoreError::DamagedTrace {
            name: id.to_owned(),
            reason: reason.to_owned(),
        };
        let row = row.ok_or_else(|| damaged("its columns have another checksum"))?;
        if row.id != id {
            return Err(damaged("its index leads to another"));
        }
        if row.owner != owner as i64 || (row.created.max(0) as u64) < oldest {
            return Err(StoreError::NotFound(id.to_owned()));
        }
        if hash(&payload) != row.payload_hash {
            return Err(damaged("its payload has another checksum"));
        }
        payload::unpack(&payload, payload::MAX_RECORD_BYTES).map_err(|reason| damaged(&reason))
    }

    /// Deletes the response of an owner.
    pub async fn delete_response(&self, id: &str, owner: u64) -> Result<(), StoreError> {
        let id = id.to_owned();
        self.ask(|done| Command::DeleteResponse { id, owner, done })
            .await
    }
}

/// Everything that is stored of a response but its payload; intact.
struct Columns {
    number: i64,
    id: String,
    /// Uses all bits of its key's hash.
    owner: i64,
    created: i64,
    /// Of the payload.
    bytes: i64,
    payload_hash: Hash,
}

impl Columns {
    /// The columns of a row of [`NAMES`]; `None` if they are not what was written.
    fn read(row: &Row) -> Option<Self> {
        let number = |index: usize| match row.get_ref(index) {
            Ok(ValueRef::Integer(number)) => Some(number),
            _ => None,
        };
        let stored = |index: usize| match row.get_ref(index) {
            Ok(ValueRef::Blob(bytes)) => Hash::try_from(bytes).ok(),
            _ => None,
        };
        let id = match row.get_ref(1) {
            Ok(ValueRef::Text(text)) => std::str::from_utf8(text).ok()?.to_owned(),
            _ => return None,
        };
        let columns = Self {
            number: number(0)?,
            id,
            owner: number(2)?,
            created: number(3)?,
            bytes: number(4)?,
            payload_hash: stored(6)?,
        };
        (columns.hash() == stored(5)?).then_some(columns)
    }

    fn hash(&self) -> Hash {
        let mut bytes = Vec::with_capacity(128);
        for number in [self.owner, self.created, self.bytes] {
            bytes.extend(number.to_le_bytes());
        }
        bytes.extend(self.id.as_bytes());
        bytes.extend(self.payload_hash);
        hash(&bytes)
    }
}

type FoundRow = (Option<Columns>, Vec<u8>);

/// The row to which the index of ids leads, and its payload.
fn find(connection: &Connection, id: &str) -> Result<Option<FoundRow>, rusqlite::Error> {
    let sql = format!("SELECT {NAMES}, payload FROM responses WHERE id = ?1");
    let mut statement = connection.prepare_cached(&sql)?;
    let found = statement.query_row([id], |row| {
        let payload = match row.get_ref(7)? {
            ValueRef::Blob(bytes) => bytes.to_vec(),
            _ => Vec::new(),
        };
        Ok((Columns::read(row), payload))
    });
    found.optional()
}

/// The columns of a response, if it is there and an owner's.
fn of_owner(
    transaction: &Transaction,
    id: &str,
    owner: u64,
) -> Result<Option<(i64, i64)>, rusqlite::Error> {
    let sql = format!(
        "SELECT number, {} FROM responses WHERE id = ?1 AND owner = ?2",
        size_sql()
    );
    let mut statement = transaction.prepare_cached(&sql)?;
    let found = statement.query_row(params![id, owner as i64], |row| {
        Ok((row.get(0)?, row.get(1)?))
    });
    found.optional()
}

/// Writes a response, in the place of an earlier one. How many bytes more the table holds.
pub(super) fn put(
    transaction: &Transaction,
    row: &PackedResponse,
    owner: u64,
) -> Result<i64, StoreError> {
    let before = of_owner(transaction, &row.id, owner)?;
    let columns = Columns {
        number: 0,
        id: row.id.clone(),
        owner: owner as i64,
        created: i64::try_from(row.created).unwrap_or(i64::MAX),
        bytes: row.payload.len() as i64,
        payload_hash: hash(&row.payload),
    };
    // The number stays: it says which response is the oldest.
    transaction
        .prepare_cached(
            "INSERT INTO responses (number, id, owner, created, bytes, row_hash, payload_hash, payload)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)
             ON CONFLICT (number) DO UPDATE SET created = ?4, bytes = ?5, row_hash = ?6,
                 payload_hash = ?7, payload = ?8",
        )?
        .execute(params![
            before.map(|(number, _)| number),
            columns.id,
            columns.owner,
            columns.created,
            columns.bytes,
            columns.hash(),
            columns.payload_hash,
            row.payload,
        ])?;
    Ok(columns.bytes - before.map_or(0, |(_, bytes)| bytes))
}

/// Deletes a response. How many bytes it held.
pub(super) fn delete(transaction: &Transaction, id: &str, owner: u64) -> Result<i64, StoreError> {
    let found = of_owner(transaction, id, owner)?;
    let (number, bytes) = found.ok_or_else(|| StoreError::NotFound(id.to_owned()))?;
    remove(transaction, number)?;
    Ok(bytes)
}

fn remove(transaction: &Transaction, number: i64) -> Result<(), rusqlite::Error> {
    transaction
        .prepare_cached("DELETE FROM responses WHERE number = ?1")?
        .execute([number])?;
    Ok(())
}

/// Bytes of all payloads.
pub(super) fn total(connection: &Connection) -> Result<u64, rusqlite::Error> {
    let sql = format!("SELECT coalesce(sum({}), 0) FROM responses", size_sql());
    let bytes: i64 = connection.query_row(&sql, [], |row| row.get(0))?;
    Ok(bytes.max(0) as u64)
}

/// Deletes responses that were created before `oldest`, and the oldest ones until no more than
/// `most` bytes are left of `bytes`. How many were deleted. A damaged row has no age.
pub(super) fn retire(
    transaction: &Transaction,
    oldest: u64,
    most: u64,
    bytes: &mut u64,
) -> Result<usize, rusqlite::Error> {
    let mut num_deleted = 0;
    let mut from = i64::MIN;
    let bound = i64::try_from(oldest).unwrap_or(i64::MAX);
    // The plus signs keep SQLite from walking the whole table by number.
    let sql = format!(
        "SELECT {NAMES} FROM responses INDEXED BY responses_created
         WHERE created < ?1 AND +number > ?2 ORDER BY +number LIMIT ?3"
    );
    loop {
        let mut statement = transaction.prepare_cached(&sql)?;
        let rows = statement.query_map(params![bound, from, BATCH], |row| {
            Ok((row.get::<_, i64>(0)?, Columns::read(row)))
        })?;
        let rows = rows.collect::<Result<Vec<_>, _>>()?;
        let Some((last, _)) = rows.last() else {
            break;
        };
        from = *last;
        for columns in rows.into_iter().filter_map(|(_, columns)| columns) {
            remove(transaction, columns.number)?;
            *bytes = bytes.saturating_sub(columns.bytes.max(0) as u64);
            num_deleted += 1;
        }
    }
    while *bytes > most {
        let sql = format!(
            "SELECT number, {} FROM responses ORDER BY number LIMIT 1",
            size_sql()
        );
        let mut statement = transaction.prepare_cached(&sql)?;
        let first = statement.query_row([], |row| Ok((row.get(0)?, row.get::<_, i64>(1)?)));
        let Some((number, size)) = first.optional()? else {
            *bytes = 0;
            break;
        };
        remove(transaction, number)?;
        *bytes = bytes.saturating_sub(size.max(0) as u64);
        num_deleted += 1;
    }
    Ok(num_deleted)
}
