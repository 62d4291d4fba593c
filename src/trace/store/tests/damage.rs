//! Bits that flip in rows: nothing is served that was not written, and all else is.

use rusqlite::types::Value;
use rusqlite::{Connection, params};

use super::support::{Folder, fill, list_all, read_all, trace};
use crate::trace::OutcomeUpdate;
use crate::trace::store::{Filter, Order, StoreError, StoreOptions, Summary, TraceStore};

const NAMES: [&str; 4] = ["trace-a", "trace-b", "trace-c", "trace-d"];
/// The trace that is damaged.
const SEQ: i64 = 2;
const OWNER: u64 = 7;

struct Damaged {
    _folder: Folder,
    connection: Connection,
    reader: TraceStore,
    summaries: Vec<Summary>,
}

impl Damaged {
    fn new() -> Self {
        let folder = Folder::new();
        let store = folder.open(StoreOptions::default());
        fill(&store, &NAMES, OWNER);
        store.close();
        let connection = Connection::open(folder.file()).unwrap();
        let reader = TraceStore::open_to_read(&folder.file()).unwrap();
        let (summaries, damaged) = list_all(&reader, Order::OldestFirst);
        assert_eq!((summaries.len(), damaged.len()), (4, 0));
        Self {
            _folder: folder,
            connection,
            reader,
            summaries,
        }
    }

    /// Only what was written is served; `is_damaged`: and the damaged trace is told, not served.
    fn check(&self, what: &str, is_damaged: bool) {
        let intact = |name: &str| !is_damaged || name != NAMES[1];
        for order in [Order::OldestFirst, Order::NewestFirst] {
            let (mut traces, damaged) = list_all(&self.reader, order);
            if order == Order::NewestFirst {
                traces.reverse();
            }
            let expected: Vec<Summary> = self
                .summaries
                .iter()
                .filter(|it| intact(&it.id))
                .cloned()
                .collect();
            assert_eq!(traces, expected, "{what}");
            assert_eq!(!damaged.is_empty(), is_damaged, "{what}");
        }
        self.check_payloads(what, is_damaged);
    }

    fn check_payloads(&self, what: &str, is_damaged: bool) {
        let intact = |name: &str| !is_damaged || name != NAMES[1];
        let (traces, damaged) = read_all(&self.reader);
        let records: Vec<_> = traces.iter().map(|it| it.record().unwrap()).collect();
        let expected = NAMES.iter().filter(|name| intact(name));
        assert_eq!(
            records,
            expected.map(|name| trace(name)).collect::<Vec<_>>(),
            "{what}"
        );
        assert_eq!(!damaged.is_empty(), is_damaged, "{what}");
        for owner in [None, Some(OWNER), Some(OWNER + 1), Some(OWNER ^ (1 << 40))] {
            for name in NAMES {
                match self.reader.get(name, owner) {
                    Ok(found) => {
                        assert_eq!(found.record().unwrap(), trace(name), "{what}");
                        assert!(matches!(owner, None | Some(OWNER)), "{what}");
                    }
                    Err(StoreError::NotFound(_)) if matches!(owner, None | Some(OWNER)) => {
                        assert!(!intact(name), "{what}: {name}");
                    }
                    Err(StoreError::NotFound(_)) => {}
                    Err(StoreError::DamagedTrace { .. }) => assert!(!intact(name), "{what}"),
                    Err(error) => panic!("{what}: {error}"),
                }
            }
            let filter = Filter {
                owner,
                ..Filter::default()
            };
            let page = self.reader.page(&filter, 0).unwrap();
            let is_owner = matches!(owner, None | Some(OWNER));
            assert!(is_owner || page.traces.is_empty(), "{what}");
        }
    }

    /// Puts a value in the place of another, checks, and takes it back.
    fn with(&self, table: &str, column: &str, value: &Value) {
        let key = if table == "traces" { "id" } else { "number" };
        let name = match table {
            "traces" => Value::from(NAMES[1].to_owned()),
            _ => Value::from(SEQ),
        };
        // Whatever the column is, the row is found by another.
        let key = if column == "id" { "seq" } else { key };
        let name = if column == "id" {
            Value::from(SEQ)
        } else {
            name
        };
        let read = format!("SELECT {column} FROM {table} WHERE {key} = ?1");
        let before: Value = self
            .connection
            .query_row(&read, [&name], |row| row.get(0))
            .unwrap();
        let write = format!("UPDATE {table} SET {column} = ?2 WHERE {key} = ?1");
        let set = |value: &Value| {
            let set = self.connection.execute(&write, params![name, value]);
            // A column may refuse a value.
            set.is_ok_and(|count| count == 1)
        };
        if *value == before || !set(value) {
            return;
        }
        let after: Value = self
            .connection
            .query_row(&read, [&name], |row| row.get(0))
            .unwrap();
        // SQLite made the same of it.
        if after != before {
            let what = format!("{table}.{column}: {before:?} is {after:?}");
            match column {
                "payload" | "payload_hash" if table == "traces" => self.check_payloads(&what, true),
                _ => self.check(&what, true),
            }
        }
        assert!(set(&before));
    }
}

/// What one damaged byte may make of a value, and values of other types.
fn neighbours(value: &Value) -> Vec<Value> {
    let mut values = match value {
        Value::Integer(number) => {
            let flipped = (0..64).map(|bit| Value::from(number ^ (1 << bit)));
            flipped.collect()
        }
        Value::Real(number) => {
            let flipped = (0..64).map(|bit| f64::from_bits(number.to_bits() ^ (1 << bit)));
            flipped.map(Value::from).collect()
        }
        Value::Text(text) => {
            let mut texts: Vec<Value> = Vec::new();
            for index in 0..text.len() {
                let mut bytes = text.clone().into_bytes();
                bytes[index] ^= 1;
                texts.extend(String::from_utf8(bytes).map(Value::from));
            }
            texts.push(Value::from(text[..text.len() / 2].to_owned()));
            texts
        }
        Value::Blob(bytes) => {
            let mut blobs: Vec<Value> = Vec::new();
            for index in 0..bytes.len() {
                let mut bytes = bytes.clone();
                bytes[index] ^= 1 << (index % 8);
                blobs.push(Value::from(bytes));
            }
            blobs.push(Value::from(bytes[..bytes.len() - 1].to_vec()));
            blobs
        }
        Value::Null => Vec::new(),
    };
    values.extend([
        Value::Null,
        Value::from(0),
        Value::from(-1),
        Value::from(0.5),
        Value::from(String::new()),
        Value::from("x".to_owned()),
        Value::from(vec![0xFF_u8]),
    ]);
    values
}

#[test]
fn no_changed_column_or_payload_is_served() {
    let damaged = Damaged::new();
    damaged.check("nothing", false);
    for (table, columns) in [
        (
            "traces",
            "seq revision owner created model strategy tags value outcome has_outcome num_nodes
             num_tokens bytes payload id",
        ),
        ("checks", "row_hash payload_hash"),
    ] {
        for column in columns.split_whitespace() {
            let sql = format!("SELECT {column} FROM {table} LIMIT 1 OFFSET 1");
            let before: Value = damaged
                .connection
                .query_row(&sql, [], |row| row.get(0))
                .unwrap();
            for value in neighbours(&before) {
                damaged.with(table, column, &value);
            }
        }
    }
    damaged.check("everything is as it was", false);
    let gone = damaged
        .connection
        .execute("DELETE FROM checks WHERE number = ?1", [SEQ]);
    assert_eq!(gone.unwrap(), 1);
    damaged.check("the checksums are gone", true);
}

#[tokio::test]
async fn a_damaged_trace_is_told_once_and_can_be_deleted() {
    let folder = Folder::new();
    let store = folder.open(StoreOptions::default());
    for name in NAMES {
        store.put(trace(name), OWNER).await.unwrap();
    }
    let connection = Connection::open(folder.file()).unwrap();
    let flip = "UPDATE traces SET payload = payload || x'00' WHERE seq = 2";
    connection.execute(flip, []).unwrap();
    assert_eq!(store.num_damaged(), 0);
    for _ in 0..3 {
        let (traces, damaged) = read_all(&store);
        assert_eq!((traces.len(), damaged), (3, vec![2]));
    }
    assert_eq!(store.num_damaged(), 1);
    let update = OutcomeUpdate {
        outcome: Some(1.0),
        ..OutcomeUpdate::default()
    };
    let told = store.set_outcome("trace-b", Some(OWNER), update).await;
    assert!(
        matches!(told, Err(StoreError::DamagedTrace { .. })),
        "{told:?}"
    );
    // Its columns are whole: it is listed, and belongs to its key.
    assert_eq!(list_all(&store, Order::NewestFirst).0.len(), 4);
    let other = store.delete("trace-b", Some(OWNER + 1)).await;
    assert!(matches!(other, Err(StoreError::NotFound(_))));
    store.delete("trace-b", Some(OWNER)).await.unwrap();
    assert_eq!(read_all(&store).1, Vec::<u64>::new());
    assert_eq!(store.num_damaged(), 1);
    drop(folder);
}

/// A size that a damaged column claims does not make the store delete what there is room for.
#[tokio::test]
async fn damaged_sizes_and_times_delete_nothing() {
    let folder = Folder::new();
    let store = folder.open(StoreOptions::default());
    for name in NAMES {
        store.put(trace(name), OWNER).await.unwrap();
    }
    store.close();
    let connection = Connection::open(folder.file()).unwrap();
    for (column, value) in [
        ("bytes", i64::MAX),
        ("bytes", -1),
        ("bytes", 1 << 35),
        ("created", 0),
    ] {
        let sql = format!("SELECT {column} FROM traces WHERE seq = 3");
        let before: i64 = connection.query_row(&sql, [], |row| row.get(0)).unwrap();
        let set = |value: i64| {
            let sql = format!("UPDATE traces SET {column} = ?1 WHERE seq = 3");
            connection.execute(&sql, [value]).unwrap();
        };
        set(value);
        let store = folder.open(StoreOptions {
            max_bytes: 1 << 20,
            ..StoreOptions::default()
        });
        // Commands are in order, and retention comes before them.
        assert!(store.delete("nothing", None).await.is_err());
        assert!(store.delete("nothing", None).await.is_err());
        let (traces, damaged) = read_all(&store);
        assert_eq!((traces.len(), damaged), (3, vec![3]), "{column} {value}");
        store.close();
        set(before);
    }
    let store = folder.open(StoreOptions::default());
    assert_eq!(read_all(&store).0.len(), 4);
}
