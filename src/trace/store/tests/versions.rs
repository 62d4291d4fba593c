//! Files of older versions.

use rusqlite::Connection;

use super::support::{Folder, fill, ids, list_all, read_all, trace};
use crate::trace::store::{Order, StoreOptions, TraceStore};

/// Takes a file back to the version without checksums.
fn downgrade(folder: &Folder) {
    let connection = Connection::open(folder.file()).unwrap();
    let sql = "DROP TABLE checks; DELETE FROM counters WHERE name = 'reserved_seq'; PRAGMA user_version = 1;";
    connection.execute_batch(sql).unwrap();
}

fn filled(count: usize) -> Folder {
    let folder = Folder::new();
    let store = folder.open(StoreOptions::default());
    let names: Vec<String> = (0..count).map(|id| format!("t{id:04}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    fill(&store, &names, 7);
    store.close();
    folder
}

#[test]
fn an_older_file_gets_its_checksums_by_a_writer_or_a_reader() {
    // More than one batch.
    let folder = filled(300);
    for by_reader in [false, true] {
        downgrade(&folder);
        let store = match by_reader {
            true => TraceStore::open_to_read(&folder.file()).unwrap(),
            false => folder.open(StoreOptions::default()),
        };
        let (traces, damaged) = read_all(&store);
        assert_eq!((traces.len(), damaged.len()), (300, 0));
        assert_eq!(traces[7].record().unwrap(), trace("t0007"));
        assert_eq!(list_all(&store, Order::NewestFirst).0.len(), 300);
        store.close();
    }
    // A reader may have seen any number before: the next one is larger than those.
    downgrade(&folder);
    let store = folder.open(StoreOptions::default());
    fill(&store, &["new"], 7);
    assert!(list_all(&store, Order::NewestFirst).0[0].seq > 300 + 60_000);
}

#[test]
fn an_interrupted_upgrade_goes_on() {
    let folder = filled(20);
    downgrade(&folder);
    folder.open(StoreOptions::default()).close();
    let connection = Connection::open(folder.file()).unwrap();
    // As if it had ended after ten.
    let sql = "DELETE FROM checks WHERE number > 10; PRAGMA user_version = 1;";
    connection.execute_batch(sql).unwrap();
    drop(connection);
    let store = folder.open(StoreOptions::default());
    let (traces, damaged) = read_all(&store);
    assert_eq!((traces.len(), damaged.len()), (20, 0));
    assert_eq!(ids(&traces)[19], "t0019");
}

#[test]
fn rows_that_were_no_rows_before_are_damaged_after() {
    let folder = filled(5);
    downgrade(&folder);
    let connection = Connection::open(folder.file()).unwrap();
    let sql = "UPDATE traces SET tags = x'ff' WHERE seq = 2;
        UPDATE traces SET payload = x'00' WHERE seq = 4;";
    connection.execute_batch(sql).unwrap();
    drop(connection);
    let store = folder.open(StoreOptions::default());
    let (traces, damaged) = read_all(&store);
    assert_eq!(damaged, [2]);
    // What does not unpack is told when it is unpacked: it may have been so when it got its checksum.
    let unpacked: Vec<bool> = traces.iter().map(|it| it.record().is_ok()).collect();
    assert_eq!(unpacked, [true, true, false, true]);
}
