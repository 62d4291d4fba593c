//! The trace store's file, damaged: whoever reads gets what was written or word of damage, and no
//! trace twice. An input is a list of places in the file, two bytes each, with what is put there.

#![no_main]

use std::collections::BTreeMap;
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use ponder::trace::{Filter, Order, StoreOptions, TraceRecord, TraceStore};
use ponder_fuzz::files;

const NUM_TRACES: usize = 12;
/// Bytes of a change: its place and what is put there.
const CHANGE_BYTES: usize = 3;
const MAX_LISTED: usize = 100;
const MAX_PAGES: usize = 100;

fn record(index: usize) -> TraceRecord {
    let json = serde_json::json!({"schema": ponder::trace::SCHEMA, "id": format!("trace_{index}"),
        "model": "m", "created": u64::MAX >> 1, "strategy": "none", "seed": 0,
        "prompt_text": "x".repeat(40 * index), "prompt_token_ids": [index],
        "tags": ["a"], "nodes": [{"parent": null, "token_ids": [], "text": "", "end": null,
            "logprob": 0.0, "score": null, "value": 0.5, "visit_count": 1, "is_pruned": false,
            "is_rollout": false, "branch_path": []}]});
    serde_json::from_value(json).expect("a record")
}

struct Fuzzed {
    folder: tempfile::TempDir,
    /// The file before it is damaged.
    file: Vec<u8>,
    records: BTreeMap<String, TraceRecord>,
}

static FUZZED: LazyLock<Fuzzed> = LazyLock::new(|| {
    let folder = files::folder();
    let path = folder.path().join("traces.db");
    let store = TraceStore::open(&path, StoreOptions::default()).expect("a new store");
    let records: Vec<_> = (0..NUM_TRACES).map(record).collect();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .expect("a runtime");
    for record in &records {
        runtime
            .block_on(store.put(record.clone(), 0))
            .expect("a write");
    }
    store.close();
    drop(store);
    let file = std::fs::read(&path).expect("the file");
    let records = records
        .into_iter()
        .map(|record| (record.id.clone(), record))
        .collect();
    Fuzzed {
        folder,
        file,
        records,
    }
});

/// What is read is as it was written.
fn check(record: &TraceRecord) {
    let written = FUZZED.records.get(&record.id);
    assert_eq!(Some(record), written, "another record than was written");
}

fuzz_target!(|data: &[u8]| {
    let mut file = FUZZED.file.clone();
    for change in data.chunks_exact(CHANGE_BYTES) {
        let place = usize::from(u16::from_le_bytes([change[0], change[1]]));
        let place = place % file.len();
        file[place] ^= change[2];
    }
    let path = FUZZED.folder.path().join("traces.db");
    for beside in ["traces.db-wal", "traces.db-shm"] {
        let _ = std::fs::remove_file(FUZZED.folder.path().join(beside));
    }
    std::fs::write(&path, file).expect("memory takes files");
    let Ok(store) = TraceStore::open(&path, StoreOptions::default()) else {
        return;
    };
    for order in [Order::OldestFirst, Order::NewestFirst] {
        let _ = store.list(&Filter::default(), order, None, MAX_LISTED);
    }
    for id in FUZZED.records.keys() {
        if let Ok(record) = store.get(id, None).and_then(|stored| stored.record()) {
            assert_eq!(record.id, *id);
            check(&record);
        }
    }
    let (mut from, mut seen) = (0, Vec::new());
    for _ in 0..MAX_PAGES {
        let Ok(page) = store.page(&Filter::default(), from) else {
            break;
        };
        for stored in &page.traces {
            assert!(stored.seq >= from, "pages go forward");
            if let Ok(record) = stored.record() {
                check(&record);
                seen.push(record.id);
            }
        }
        match page.next {
            Some(next) => from = next,
            None => break,
        }
    }
    let num_seen = seen.len();
    seen.sort();
    seen.dedup();
    assert_eq!(seen.len(), num_seen, "a trace is read once");
    store.close();
});
