//! Stores of small traces in folders of their own.

use std::path::PathBuf;

use crate::trace::store::{Filter, Order, StoreOptions, Stored, Summary, TraceStore};
use crate::trace::testing::{node, trace_of};
use crate::trace::{NodeRecord, TraceRecord};

/// A folder that goes with the test.
pub struct Folder(pub PathBuf);

impl Folder {
    pub fn new() -> Self {
        let name = format!("ponder-store-{}", uuid::Uuid::new_v4());
        Self(std::env::temp_dir().join(name))
    }

    pub fn file(&self) -> PathBuf {
        self.0.join("traces.db")
    }

    pub fn open(&self, options: StoreOptions) -> TraceStore {
        TraceStore::open(&self.file(), options).unwrap()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A trace that retention does not find old.
pub fn trace(id: &str) -> TraceRecord {
    TraceRecord {
        id: id.to_owned(),
        created: 4_000_000_000,
        ..trace_of(vec![
            node(None, "", None),
            node(Some(0), "right", Some("stop")),
            node(Some(0), "wrong", Some("stop")),
        ])
    }
}

pub fn ids(stored: &[Stored]) -> Vec<String> {
    let ids = stored.iter().map(|stored| stored.record().unwrap().id);
    ids.collect()
}

pub fn all(store: &TraceStore, from: u64) -> Vec<Stored> {
    store.page(&Filter::default(), from).unwrap().traces
}

/// All that a reader gets page by page, and the numbers of what is damaged.
pub fn read_all(store: &TraceStore) -> (Vec<Stored>, Vec<u64>) {
    let (mut traces, mut damaged) = (Vec::new(), Vec::new());
    let mut from = 0;
    // No reader needs more pages than there are traces.
    for _ in 0..1000 {
        let page = store.page(&Filter::default(), from).unwrap();
        traces.extend(page.traces);
        damaged.extend(page.damaged);
        match page.next {
            Some(next) => {
                assert!(next > from);
                from = next;
            }
            None => return (traces, damaged),
        }
    }
    panic!("a reader never comes to an end");
}

/// The whole list in an order.
pub fn list_all(store: &TraceStore, order: Order) -> (Vec<Summary>, Vec<u64>) {
    let listing = store.list(&Filter::default(), order, None, 10_000);
    let listing = listing.unwrap();
    (listing.traces, listing.damaged)
}

/// Keeps traces of these names, one after the other.
pub fn fill(store: &TraceStore, names: &[&str], owner: u64) {
    let runtime = tokio::runtime::Builder::new_current_thread().build();
    let runtime = runtime.unwrap();
    for name in names {
        runtime.block_on(store.put(trace(name), owner)).unwrap();
    }
}

/// A trace of about so many bytes, which do not compress.
pub fn large(id: &str, num_bytes: usize) -> TraceRecord {
    let mut state = xxhash_rust::xxh3::xxh3_64(id.as_bytes());
    let mut letter = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        char::from(b"0123456789abcdef"[(state >> 60) as usize])
    };
    // Four bits a letter.
    let text: String = (0..2 * num_bytes).map(|_| letter()).collect();
    let mut record = trace(id);
    record.nodes.push(NodeRecord {
        ..node(Some(0), &text, Some("stop"))
    });
    record
}
