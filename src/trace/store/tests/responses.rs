//! Responses beside the traces.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rusqlite::Connection;
use serde_json::{Value, json};

use super::support::{Folder, fill, read_all};
use crate::trace::store::{Clock, PackedResponse, StoreError, StoreOptions, TraceStore};

const CREATED: u64 = 4_000_000_000;

fn put(store: &TraceStore, id: &str, created: u64, body: &Value, owner: u64) {
    let row = PackedResponse::of(id, created, body).unwrap();
    futures::executor::block_on(store.put_response(row, owner)).unwrap();
}

fn get(store: &TraceStore, id: &str, owner: u64) -> Result<Value, StoreError> {
    let json = store.response(id, owner)?;
    Ok(serde_json::from_slice(&json).unwrap())
}

fn is_missing(store: &TraceStore, id: &str, owner: u64) -> bool {
    matches!(get(store, id, owner), Err(StoreError::NotFound(_)))
}

fn delete(store: &TraceStore, id: &str, owner: u64) -> Result<(), StoreError> {
    futures::executor::block_on(store.delete_response(id, owner))
}

#[test]
fn responses_are_their_owners_and_survive() {
    let folder = Folder::new();
    let store = folder.open(StoreOptions::default());
    // The hash of a key uses all bits.
    let (alice, bob) = (u64::MAX - 5, 7);
    put(&store, "r1", CREATED, &json!({"status": "queued"}), alice);
    put(
        &store,
        "r1",
        CREATED,
        &json!({"status": "done", "text": "é"}),
        alice,
    );
    put(&store, "r2", CREATED, &json!({}), bob);
    fill(&store, &["t"], 7);
    assert!(is_missing(&store, "r1", bob) && is_missing(&store, "r3", alice));
    assert!(delete(&store, "r1", bob).is_err());
    // Nobody takes another's id.
    let row = PackedResponse::of("r1", CREATED, &json!({})).unwrap();
    assert!(futures::executor::block_on(store.put_response(row, bob)).is_err());
    store.close();
    let store = folder.open(StoreOptions::default());
    assert_eq!(get(&store, "r1", alice).unwrap()["text"], "é");
    assert_eq!(read_all(&store).0.len(), 1, "traces are what they were");
    delete(&store, "r1", alice).unwrap();
    assert!(is_missing(&store, "r1", alice) && !is_missing(&store, "r2", bob));
    assert!(matches!(
        delete(&store, "r1", alice),
        Err(StoreError::NotFound(_))
    ));
}

#[test]
fn damaged_responses_are_told() {
    let folder = Folder::new();
    for (damage, is_gone) in [
        ("UPDATE responses SET payload = x'00'", false),
        ("UPDATE responses SET created = created + 1", false),
        ("UPDATE responses SET owner = 8", false),
        ("UPDATE responses SET bytes = 'x'", false),
        ("UPDATE responses SET id = 'r2'", true),
    ] {
        let store = folder.open(StoreOptions::default());
        put(&store, "r1", CREATED, &json!({"a": 1}), 7);
        store.close();
        let connection = Connection::open(folder.file()).unwrap();
        connection.execute_batch(damage).unwrap();
        drop(connection);
        let store = folder.open(StoreOptions::default());
        match get(&store, "r1", 7) {
            Err(StoreError::NotFound(_)) => assert!(is_gone, "{damage}"),
            Err(StoreError::DamagedTrace { .. }) => assert!(!is_gone, "{damage}"),
            other => panic!("{damage}: {other:?}"),
        }
        store.close();
        let connection = Connection::open(folder.file()).unwrap();
        connection.execute_batch("DELETE FROM responses").unwrap();
    }
}

#[test]
fn old_responses_are_gone_at_once_and_deleted_later() {
    let folder = Folder::new();
    let now = Arc::new(AtomicU64::new(1000));
    let clock = Arc::clone(&now);
    let options = || StoreOptions {
        max_age: Duration::from_secs(100),
        retention_interval: Duration::ZERO,
        clock: {
            let clock = Arc::clone(&clock);
            Clock::new(move || clock.load(Ordering::Relaxed))
        },
        ..StoreOptions::default()
    };
    let store = folder.open(options());
    put(&store, "old", 1000, &json!({}), 7);
    put(&store, "new", 1050, &json!({}), 7);
    now.store(1101, Ordering::Relaxed);
    assert!(is_missing(&store, "old", 7) && !is_missing(&store, "new", 7));
    // Any write gives the writer its turn.
    put(&store, "next", 1101, &json!({}), 7);
    put(&store, "last", 1101, &json!({}), 7);
    store.close();
    let connection = Connection::open(folder.file()).unwrap();
    let count: i64 = connection
        .query_row("SELECT count(*) FROM responses", [], |row| row.get(0))
        .unwrap();
    assert_eq!(count, 3);
}

#[test]
fn responses_have_half_of_the_room_where_it_is_short() {
    let folder = Folder::new();
    let options = StoreOptions {
        max_bytes: 4096,
        ..StoreOptions::default()
    };
    let store = folder.open(options);
    // Random enough not to be packed.
    let body = |seed: usize| {
        let ids: Vec<String> = (0..8).map(|_| uuid::Uuid::new_v4().to_string()).collect();
        json!({"seed": seed, "ids": ids})
    };
    for index in 0..40 {
        put(&store, &format!("r{index}"), CREATED, &body(index), 7);
    }
    let is_there = |index: usize| !is_missing(&store, &format!("r{index}"), 7);
    assert!(is_there(39) && !is_there(0));
    fill(&store, &["a", "b"], 7);
    put(&store, "last", CREATED, &json!({}), 7);
    store.close();
    let connection = Connection::open(folder.file()).unwrap();
    let sum = |table: &str| -> i64 {
        let sql = format!("SELECT coalesce(sum(bytes), 0) FROM {table}");
        connection.query_row(&sql, [], |row| row.get(0)).unwrap()
    };
    assert!(sum("traces") + sum("responses") <= 4096 + 1024);
    assert!(sum("traces") > 0, "responses do not push all traces out");
}

#[test]
fn a_file_from_before_gets_the_table() {
    let folder = Folder::new();
    let store = folder.open(StoreOptions::default());
    fill(&store, &["t"], 7);
    store.close();
    let connection = Connection::open(folder.file()).unwrap();
    let sql = "DROP TABLE responses; PRAGMA user_version = 2;";
    connection.execute_batch(sql).unwrap();
    drop(connection);
    let store = folder.open(StoreOptions::default());
    put(&store, "r", CREATED, &json!({"a": 1}), 7);
    assert_eq!(get(&store, "r", 7).unwrap(), json!({"a": 1}));
    assert_eq!(read_all(&store).0.len(), 1);
    store.close();
    let connection = Connection::open(folder.file()).unwrap();
    let version: i64 = connection
        .pragma_query_value(None, "user_version", |row| row.get(0))
        .unwrap();
    assert_eq!(version, 3);
    drop(connection);
    // Whoever only reads traces needs no newer file.
    assert_eq!(
        read_all(&TraceStore::open_to_read(&folder.file()).unwrap())
            .0
            .len(),
        1
    );
}
