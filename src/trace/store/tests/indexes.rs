//! Indexes that do not say what the table says.

use std::time::{Duration, Instant};

use super::pages::index_leaf;
use super::support::{Folder, fill, list_all, trace};
use crate::trace::store::{Order, Owner, StoreError, StoreOptions, TraceStore};

/// No test waits longer for the background.
const PATIENCE: Duration = Duration::from_secs(60);

fn filled() -> Folder {
    let folder = Folder::new();
    let store = folder.open(StoreOptions::default());
    let names: Vec<String> = (0..40).map(|id| format!("trace-{id:02}0")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    fill(&store, &names, 7);
    store.close();
    folder
}

fn delete(store: &TraceStore, id: &str, owner: Owner) -> Result<(), StoreError> {
    let runtime = tokio::runtime::Builder::new_current_thread().build();
    runtime.unwrap().block_on(store.delete(id, owner))
}

fn wait_for_rebuilt(store: &TraceStore, count: u64) {
    let started = Instant::now();
    while store.num_rebuilt_indexes() < count {
        assert!(started.elapsed() < PATIENCE, "the index stays as it is");
        std::thread::yield_now();
    }
}

#[test]
fn a_flipped_key_of_an_index_is_found_and_made_again() {
    let folder = filled();
    let mut file = std::fs::read(folder.file()).unwrap();
    let wanted = "trace-230";
    let (_, at) = index_leaf(&file, 4096, wanted.as_bytes());
    // The order of the keys stays, so the check at the start sees nothing.
    file[at + wanted.len() - 1] ^= 1;
    std::fs::write(folder.file(), &file).unwrap();
    let reader = TraceStore::open_to_read(&folder.file()).unwrap();
    assert_eq!(list_all(&reader, Order::OldestFirst).0.len(), 40);
    let lost = reader.get(wanted, None);
    assert!(matches!(lost, Err(StoreError::NotFound(_))), "{lost:?}");

    let store = folder.open(StoreOptions::default());
    wait_for_rebuilt(&store, 1);
    let found = store.get(wanted, Some(7)).unwrap();
    assert_eq!(found.record().unwrap(), trace(wanted));
    assert_eq!(store.num_damaged(), 0);
    delete(&store, wanted, Some(7)).unwrap();
    assert_eq!(list_all(&store, Order::OldestFirst).0.len(), 39);
    store.close();
    // What was repaired stays so.
    let store = folder.open(StoreOptions::default());
    delete(&store, "trace-240", None).unwrap();
    store.close();
    assert_eq!(store.num_rebuilt_indexes(), 0);
}

/// An index that leads to another trace's row neither gives that away nor deletes it.
#[test]
fn an_index_that_leads_elsewhere_gives_nothing_away() {
    let folder = filled();
    let mut file = std::fs::read(folder.file()).unwrap();
    let wanted = "trace-230";
    let (_, at) = index_leaf(&file, 4096, wanted.as_bytes());
    // The row's number follows the key: 24, and 25 is the next trace.
    assert_eq!(file[at + wanted.len()], 24);
    file[at + wanted.len()] = 25;
    std::fs::write(folder.file(), &file).unwrap();
    let reader = TraceStore::open_to_read(&folder.file()).unwrap();
    for owner in [None, Some(7)] {
        let found = reader.get(wanted, owner);
        assert!(
            matches!(found, Err(StoreError::DamagedTrace { .. })),
            "{found:?}"
        );
    }
    drop(reader);
    let store = folder.open(StoreOptions::default());
    // Whether or not it was repaired already.
    let deleted = delete(&store, wanted, Some(7)).is_ok();
    assert!(store.get("trace-240", Some(7)).is_ok());
    wait_for_rebuilt(&store, 1);
    let found = store.get(wanted, Some(7));
    assert_eq!(found.is_err(), deleted);
    assert_eq!(store.get("trace-240", Some(7)).unwrap().seq, 25);
}

/// Both other indexes are checked too, and a store that is whole is left as it is.
#[test]
fn every_index_is_checked() {
    for index in ["traces_created", "traces_owner"] {
        let folder = filled();
        let connection = rusqlite::Connection::open(folder.file()).unwrap();
        let sql = "SELECT rootpage FROM sqlite_schema WHERE name = ?1";
        let root: i64 = connection
            .query_row(sql, [index], |row| row.get(0))
            .unwrap();
        drop(connection);
        let mut file = std::fs::read(folder.file()).unwrap();
        let page = (root as usize - 1) * 4096;
        assert_eq!(file[page], 0x0A, "a leaf");
        // The last byte of the page is that of the first row's number.
        file[page + 4095] ^= 0x40;
        std::fs::write(folder.file(), &file).unwrap();
        let store = match TraceStore::open(&folder.file(), StoreOptions::default()) {
            Ok(store) => store,
            // The check at the start may see it, by the order of the keys.
            Err(error) => panic!("{index}: {error}"),
        };
        wait_for_rebuilt(&store, 1);
        store.close();
        let connection = rusqlite::Connection::open(folder.file()).unwrap();
        let word: String = connection
            .query_row("PRAGMA integrity_check", [], |row| row.get(0))
            .unwrap();
        assert_eq!(word, "ok", "{index}");
    }
}
