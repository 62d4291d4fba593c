//! Numbers of writes after the end of the log was lost.

use std::path::PathBuf;

use proptest::prelude::*;

use super::support::{Folder, fill, list_all, read_all};
use crate::trace::store::{Order, StoreOptions, TraceStore};

/// The files of a store as they are at this moment, without any byte of the log from `log_bytes` on.
struct Snapshot {
    file: Vec<u8>,
    log: Vec<u8>,
}

fn log_of(folder: &Folder) -> PathBuf {
    folder.0.join("traces.db-wal")
}

impl Snapshot {
    fn of(folder: &Folder) -> Self {
        Self {
            file: std::fs::read(folder.file()).unwrap(),
            log: std::fs::read(log_of(folder)).unwrap_or_default(),
        }
    }

    /// Another store with these files.
    fn restore(&self, log_bytes: usize) -> Folder {
        let folder = Folder::new();
        std::fs::create_dir_all(&folder.0).unwrap();
        std::fs::write(folder.file(), &self.file).unwrap();
        let log = &self.log[..log_bytes.min(self.log.len())];
        if !log.is_empty() {
            std::fs::write(log_of(&folder), log).unwrap();
        }
        folder
    }
}

/// A store that nobody reads meanwhile. The thread that checks the indexes does, and a reader keeps part of the log out of a checkpoint: the
/// file then has pages of frames that still lie in the log. SQLite has synced those before, so that no loss of power takes
/// them, but a log that is cut anywhere would lack them.
fn open_alone(folder: &Folder) -> TraceStore {
    let store = folder.open(StoreOptions::default());
    store.inner.checker.close();
    store
}

fn newest(store: &TraceStore) -> u64 {
    let newest = list_all(store, Order::NewestFirst).0;
    newest.first().map_or(0, |newest| newest.seq)
}

#[test]
fn no_number_comes_again_when_the_end_of_the_log_is_lost() {
    let folder = Folder::new();
    let store = open_alone(&folder);
    fill(&store, &["a", "b", "c"], 0);
    let early = Snapshot::of(&folder);
    fill(&store, &["d", "e", "f", "g", "h"], 0);
    let late = Snapshot::of(&folder);
    assert_eq!(newest(&store), 8);
    assert!(late.log.len() > early.log.len());
    // A copy of the file and an older log, and logs that end anywhere, in the middle of a frame too.
    let mut cuts: Vec<(&Snapshot, usize)> = vec![(&early, early.log.len()), (&late, 0)];
    cuts.extend((0..24).map(|part| (&late, late.log.len() * part / 24)));
    cuts.push((&late, late.log.len()));
    for (snapshot, log_bytes) in cuts {
        let folder = snapshot.restore(log_bytes);
        let store = folder.open(StoreOptions::default());
        let kept = read_all(&store).0.len();
        assert!(store.largest_seq().unwrap() >= 8, "{log_bytes}");
        fill(&store, &["x"], 0);
        let next = newest(&store);
        assert!(next > 8, "{log_bytes}: {next}");
        // A reader that has seen the eighth trace sees what is new, and only that.
        let page = store.page(&Default::default(), 9).unwrap();
        assert_eq!(page.traces.len(), 1);
        assert_eq!(read_all(&store).0.len(), kept + 1);
    }
}

#[test]
fn an_orderly_close_leaves_no_gap() {
    let folder = Folder::new();
    for (round, name) in ["a", "b", "c"].into_iter().enumerate() {
        let store = folder.open(StoreOptions::default());
        fill(&store, &[name], 0);
        assert_eq!(newest(&store), round as u64 + 1);
        store.close();
    }
}

#[test]
fn writers_of_one_file_do_not_take_each_others_numbers() {
    let folder = Folder::new();
    let first = folder.open(StoreOptions::default());
    fill(&first, &["a"], 0);
    let second = folder.open(StoreOptions::default());
    fill(&second, &["b"], 0);
    fill(&first, &["c"], 0);
    second.close();
    fill(&first, &["d"], 0);
    first.close();
    let store = folder.open(StoreOptions::default());
    fill(&store, &["e"], 0);
    let (traces, damaged) = list_all(&store, Order::OldestFirst);
    let ids: Vec<&str> = traces.iter().map(|trace| trace.id.as_str()).collect();
    assert_eq!(ids, ["a", "b", "c", "d", "e"]);
    assert!(damaged.is_empty());
}

#[test]
fn a_lowered_counter_takes_no_number_again() {
    let folder = Folder::new();
    let store = folder.open(StoreOptions::default());
    fill(&store, &["a", "b", "c"], 0);
    store.close();
    let connection = rusqlite::Connection::open(folder.file()).unwrap();
    for value in [0, -1, i64::MIN] {
        let lower = "UPDATE counters SET value = ?1";
        connection.execute(lower, [value]).unwrap();
        let store = folder.open(StoreOptions::default());
        let before = newest(&store);
        fill(&store, &[value.to_string().as_str()], 0);
        assert!(newest(&store) > before);
        store.close();
    }
    let raise = "UPDATE counters SET value = 9223372036854775807";
    connection.execute(raise, []).unwrap();
    let store = folder.open(StoreOptions::default());
    let runtime = tokio::runtime::Builder::new_current_thread().build();
    let full = runtime
        .unwrap()
        .block_on(store.put(super::support::trace("z"), 0));
    assert!(full.is_err(), "there is no larger number");
    assert_eq!(read_all(&store).0.len(), 6);
}

#[derive(Debug, Clone)]
enum Act {
    Write(usize),
    Close,
    /// The power goes: the log keeps this share of what came since the last act, in percent.
    Crash(usize),
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let act = prop_oneof![
        (1_usize..6).prop_map(Act::Write),
        Just(Act::Close),
        (0_usize..=100).prop_map(Act::Crash),
    ];
    proptest::collection::vec(act, 1..10)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Whatever is lost, a number that anybody has seen is never that of another write.
    #[test]
    fn numbers_only_grow(acts in acts()) {
        let mut folder = Folder::new();
        let mut store = open_alone(&folder);
        let (mut seen, mut names) = (0, 0);
        for act in acts {
            match act {
                Act::Write(count) => {
                    for _ in 0..count {
                        names += 1;
                        fill(&store, &[&names.to_string()], 0);
                        let number = newest(&store);
                        prop_assert!(number > seen, "{number} after {seen}");
                        seen = number;
                    }
                }
                Act::Close => {
                    store.close();
                    store = open_alone(&folder);
                }
                Act::Crash(percent) => {
                    let snapshot = Snapshot::of(&folder);
                    let lost = snapshot.restore(snapshot.log.len() * percent / 100);
                    store.close();
                    folder = lost;
                    store = open_alone(&folder);
                }
            }
        }
    }
}
