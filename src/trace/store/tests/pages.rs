//! Bytes that flip in the file itself, and pages that cannot be read.

use std::collections::HashMap;

use super::support::{Folder, all, fill, ids, large, list_all, read_all, trace};
use crate::trace::TraceRecord;
use crate::trace::store::{Order, StoreOptions, Summary, TraceStore};

/// Where a page's kind stands in it, but for the first page.
const LEAF_OF_TABLE: u8 = 0x0D;
const LEAF_OF_INDEX: u8 = 0x0A;
/// Bytes of a payload of which each is flipped.
const PIECE: usize = 48;

/// Where some bytes stand.
pub fn places(file: &[u8], wanted: &[u8]) -> Vec<usize> {
    let windows = file.windows(wanted.len()).enumerate();
    windows
        .filter(|(_, window)| *window == wanted)
        .map(|(at, _)| at)
        .collect()
}

/// The page of a kind that holds some bytes: where it begins, and where these are.
pub fn leaf_with(file: &[u8], page_bytes: usize, kind: u8, wanted: &[u8]) -> (usize, usize) {
    let found = places(file, wanted)
        .into_iter()
        .map(|at| (at / page_bytes * page_bytes, at));
    let mut leaves = found.filter(|(page, _)| *page > 0 && file[*page] == kind);
    leaves.next().expect("a page has them")
}

pub fn index_leaf(file: &[u8], page_bytes: usize, wanted: &[u8]) -> (usize, usize) {
    leaf_with(file, page_bytes, LEAF_OF_INDEX, wanted)
}

/// Traces in a file of small pages, and its bytes.
fn small_pages(names: &[&str]) -> (Folder, Vec<u8>) {
    let folder = Folder::new();
    std::fs::create_dir_all(&folder.0).unwrap();
    let connection = rusqlite::Connection::open(folder.file()).unwrap();
    connection
        .execute_batch("PRAGMA page_size = 512; PRAGMA auto_vacuum = INCREMENTAL; VACUUM;")
        .unwrap();
    drop(connection);
    let store = folder.open(StoreOptions::default());
    fill(&store, names, 7);
    store.close();
    // Without what was moved from page to page.
    let connection = rusqlite::Connection::open(folder.file()).unwrap();
    let sql = "VACUUM; PRAGMA wal_checkpoint(TRUNCATE);";
    connection.execute_batch(sql).unwrap();
    drop(connection);
    let file = std::fs::read(folder.file()).unwrap();
    (folder, file)
}

struct Written {
    records: HashMap<String, TraceRecord>,
    summaries: HashMap<String, Summary>,
}

/// Whatever a reader gets was written. Returns how many traces it got.
fn check(store: &TraceStore, written: &Written, at: usize) -> usize {
    let mut num_read = 0;
    let mut from = 0;
    for _ in 0..64 {
        let Ok(page) = store.page(&Default::default(), from) else {
            break;
        };
        for stored in &page.traces {
            let record = stored.record().unwrap();
            assert_eq!(Some(&record), written.records.get(&record.id), "byte {at}");
            num_read += 1;
        }
        match page.next {
            Some(next) => {
                assert!(next > from, "byte {at}");
                from = next;
            }
            None => break,
        }
    }
    for order in [Order::OldestFirst, Order::NewestFirst] {
        if let Ok(listing) = store.list(&Default::default(), order, None, 100) {
            for summary in listing.traces {
                let expected = written.summaries.get(&summary.id);
                assert_eq!(Some(&summary), expected, "byte {at}");
            }
        }
    }
    for (id, record) in &written.records {
        for owner in [None, Some(7), Some(8)] {
            if let Ok(found) = store.get(id, owner) {
                assert_eq!(&found.record().unwrap(), record, "byte {at}");
                assert_ne!(owner, Some(8), "byte {at}");
            }
        }
    }
    num_read
}

#[test]
fn no_flipped_byte_of_the_file_is_served() {
    let names = ["trace-a", "trace-b", "trace-c", "trace-d"];
    let (folder, file) = small_pages(&names);
    let store = TraceStore::open_to_read(&folder.file()).unwrap();
    let summaries = list_all(&store, Order::OldestFirst).0.into_iter();
    let written = Written {
        records: names
            .map(|name| (name.to_owned(), trace(name)))
            .into_iter()
            .collect(),
        summaries: summaries.map(|it| (it.id.clone(), it)).collect(),
    };
    assert_eq!(check(&store, &written, 0), 4);
    let connection = rusqlite::Connection::open(folder.file()).unwrap();
    let payload: Vec<u8> = connection
        .query_row("SELECT payload FROM traces WHERE seq = 2", [], |row| {
            row.get(0)
        })
        .unwrap();
    // A part that only this payload has.
    let pieces = payload.windows(PIECE).map(|piece| places(&file, piece));
    let mut pieces = pieces.filter(|found| found.len() == 1);
    let payload_at = pieces.next().expect("payloads differ")[0];
    drop((store, connection));
    // A few bits of every page, and each byte of a payload.
    let flips = (0..file.len())
        .step_by(23)
        .chain(payload_at..payload_at + PIECE);
    for at in flips {
        let mut damaged = file.clone();
        damaged[at] ^= 1 << (at % 8);
        std::fs::write(folder.file(), &damaged).unwrap();
        let Ok(store) = TraceStore::open_to_read(&folder.file()) else {
            continue;
        };
        let num_read = check(&store, &written, at);
        if (payload_at..payload_at + PIECE).contains(&at) {
            assert_eq!(num_read, 3, "byte {at}");
            assert_eq!(read_all(&store).1, [2], "byte {at}");
        }
    }
}

/// A file of traces of which several lie on a page, and some on pages of their own.
fn mixed() -> (Folder, Vec<u8>) {
    let folder = Folder::new();
    let store = folder.open(StoreOptions::default());
    let runtime = tokio::runtime::Builder::new_current_thread().build();
    let runtime = runtime.unwrap();
    for number in 1..=200 {
        let id = format!("trace-{number:03}");
        let record = match number % 10 {
            0 => large(&id, 20_000),
            _ => trace(&id),
        };
        runtime.block_on(store.put(record, 7)).unwrap();
    }
    store.close();
    let file = std::fs::read(folder.file()).unwrap();
    (folder, file)
}

#[test]
fn what_lies_behind_an_unreadable_page_is_read() {
    let (folder, file) = mixed();
    let page_bytes = 4096;
    for id in ["trace-001", "trace-055", "trace-111", "trace-200"] {
        let (page, _) = leaf_with(&file, page_bytes, LEAF_OF_TABLE, id.as_bytes());
        let mut damaged = file.clone();
        // No kind of page has this number.
        damaged[page] = 0xEE;
        std::fs::write(folder.file(), &damaged).unwrap();
        let on_page: Vec<u64> = (1..=200)
            .filter(|number| {
                let id = format!("trace-{number:03}");
                leaf_with(&file, page_bytes, LEAF_OF_TABLE, id.as_bytes()).0 == page
            })
            .collect();
        assert!(on_page.len() > 1 && on_page.len() < 50, "{on_page:?}");
        let store = TraceStore::open_to_read(&folder.file()).unwrap();
        let expected: Vec<String> = (1..=200)
            .filter(|number| !on_page.contains(number))
            .map(|number| format!("trace-{number:03}"))
            .collect();
        let (traces, missing) = read_all(&store);
        assert_eq!(ids(&traces), expected, "{id}");
        assert_eq!(missing, on_page, "{id}");
        let (mut traces, missing) = list_all(&store, Order::NewestFirst);
        traces.reverse();
        let listed: Vec<String> = traces.into_iter().map(|trace| trace.id).collect();
        assert_eq!((listed, missing), (expected, on_page.clone()), "{id}");
        assert_eq!(store.num_damaged(), on_page.len() as u64);
    }
    std::fs::write(folder.file(), &file).unwrap();
    let store = TraceStore::open_to_read(&folder.file()).unwrap();
    assert_eq!(read_all(&store).0.len(), 200);
}

#[test]
fn an_unreadable_payload_is_one_trace() {
    let (folder, file) = mixed();
    let connection = rusqlite::Connection::open(folder.file()).unwrap();
    let payload: Vec<u8> = connection
        .query_row("SELECT payload FROM traces WHERE seq = 100", [], |row| {
            row.get(0)
        })
        .unwrap();
    drop(connection);
    // Well behind its beginning, in the chain of its pages: the link to the next one.
    let at = places(&file, &payload[9000..9032])[0] / 4096 * 4096;
    let mut damaged = file;
    damaged[at..at + 4].copy_from_slice(&0x00FF_FFFF_u32.to_be_bytes());
    std::fs::write(folder.file(), &damaged).unwrap();
    let store = TraceStore::open_to_read(&folder.file()).unwrap();
    let (traces, missing) = read_all(&store);
    assert_eq!((traces.len(), missing), (199, vec![100]));
    assert_eq!(all(&store, 101).len(), 100);
    // It is listed: what a list says of it is right.
    assert_eq!(list_all(&store, Order::NewestFirst).0.len(), 200);
}
