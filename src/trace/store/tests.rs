mod damage;
mod indexes;
mod numbers;
mod pages;
mod responses;
mod support;
mod versions;

use std::sync::atomic::{AtomicU64, Ordering};

use super::*;
use support::{Folder, all, ids, trace};

#[tokio::test]
async fn traces_come_back_in_the_order_of_their_writes() {
    let folder = Folder::new();
    let store = folder.open(StoreOptions::default());
    let mut changes = store.changes();
    for id in ["a", "b", "c"] {
        store.put(trace(id), 7).await.unwrap();
    }
    assert_eq!(*changes.borrow_and_update(), 3);
    assert_eq!(store.get("b", None).unwrap().record().unwrap(), trace("b"));
    assert_eq!(ids(&all(&store, 0)), ["a", "b", "c"]);

    // An outcome moves a trace to the end, as its next revision.
    let update = OutcomeUpdate {
        outcome: Some(1.0),
        ..OutcomeUpdate::default()
    };
    let revised = store.set_outcome("a", Some(7), update).await.unwrap();
    assert_eq!((revised.revision, revised.outcome), (2, Some(1.0)));
    assert_eq!(*changes.borrow(), 4);
    let after = all(&store, 4);
    assert_eq!(ids(&after), ["a"]);
    assert_eq!(after[0].record().unwrap(), revised);

    // The same after a restart, and numbers go on.
    store.close();
    let store = folder.open(StoreOptions::default());
    assert_eq!(ids(&all(&store, 0)), ["b", "c", "a"]);
    store.delete("a", None).await.unwrap();
    store.put(trace("d"), 7).await.unwrap();
    assert_eq!(*store.changes().borrow(), 5);
}

#[tokio::test]
async fn a_name_is_stored_once_and_a_bad_command_fails_alone() {
    let folder = Folder::new();
    let store = folder.open(StoreOptions::default());
    store.put(trace("a"), 0).await.unwrap();
    let (again, other, missing) = tokio::join!(
        store.put(trace("a"), 0),
        store.put(trace("b"), 0),
        store.delete("no", None),
    );
    assert!(matches!(again, Err(StoreError::Failed(_))), "{again:?}");
    other.unwrap();
    assert!(matches!(missing, Err(StoreError::NotFound(_))));
    assert_eq!(ids(&all(&store, 0)), ["a", "b"]);
}

#[tokio::test]
async fn keys_see_their_own_traces_only() {
    let folder = Folder::new();
    let store = folder.open(StoreOptions::default());
    // Ids of owners use all 64 bits.
    let (one, two) = (1, u64::MAX);
    store.put(trace("a"), one).await.unwrap();
    store.put(trace("b"), two).await.unwrap();
    assert!(store.get("b", Some(two)).is_ok());
    assert!(store.get("b", Some(one)).is_err());
    assert!(store.delete("b", Some(one)).await.is_err());
    let update = OutcomeUpdate {
        outcome: Some(0.0),
        ..OutcomeUpdate::default()
    };
    assert!(store.set_outcome("b", Some(one), update).await.is_err());
    let filter = Filter {
        owner: Some(two),
        ..Filter::default()
    };
    assert_eq!(ids(&store.page(&filter, 0).unwrap().traces), ["b"]);
}

#[tokio::test]
async fn filters_hold_together() {
    let folder = Folder::new();
    let store = folder.open(StoreOptions::default());
    for (id, strategy, tags, created, value) in [
        ("a", "mcts", &["x", "y"][..], 100, 0.9),
        ("b", "beam", &["x"][..], 200, 0.2),
        ("c", "mcts", &[][..], 300, 0.5),
    ] {
        let mut record = trace(id);
        record.strategy = strategy.to_owned();
        record.tags = tags.iter().map(|tag| (*tag).to_owned()).collect();
        record.created = 4_000_000_000 + created;
        record.nodes[1].value = value;
        record.nodes[1].outcome = (id == "a").then_some(1.0);
        store.put(record, 0).await.unwrap();
    }
    let found = |filter: Filter| ids(&store.page(&filter, 0).unwrap().traces);
    let tags = |tags: &[&str]| Filter {
        tags: tags.iter().map(|tag| (*tag).to_owned()).collect(),
        ..Filter::default()
    };
    assert_eq!(found(tags(&["x"])), ["a", "b"]);
    assert_eq!(found(tags(&["y", "x"])), ["a"]);
    assert!(found(tags(&["x", "z"])).is_empty());
    let filter = Filter {
        strategy: Some("mcts".to_owned()),
        created_from: Some(4_000_000_100),
        created_before: Some(4_000_000_300),
        ..Filter::default()
    };
    assert_eq!(found(filter), ["a"]);
    let filter = Filter {
        min_value: Some(0.5),
        has_outcome: Some(false),
        ..Filter::default()
    };
    assert_eq!(found(filter.clone()), ["c"]);
    let summaries = store.list(&tags(&["x"]), Order::NewestFirst, None, 1);
    let summaries = summaries.unwrap().traces;
    assert_eq!((summaries[0].id.as_str(), summaries[0].seq), ("b", 2));
    let next = store.list(&tags(&["x"]), Order::NewestFirst, Some(2), 9);
    assert_eq!(next.unwrap().traces[0].tags, ["x", "y"]);
    let totals = store.totals().unwrap();
    assert_eq!((totals.num_traces, totals.num_nodes), (3, 6));
    assert_eq!(totals.strategies[0], ("mcts".to_owned(), 2));
    assert_eq!(totals.mean_outcome, Some(1.0));
}

#[tokio::test]
async fn the_oldest_go_when_there_is_too_much_or_they_are_too_old() {
    let folder = Folder::new();
    let store = folder.open(StoreOptions::default());
    store.put(trace("a"), 0).await.unwrap();
    let size = store.totals().unwrap().bytes;
    store.close();
    let store = folder.open(StoreOptions {
        max_bytes: size * 3 + size / 2,
        ..StoreOptions::default()
    });
    for id in ["b", "c", "d", "e"] {
        store.put(trace(id), 0).await.unwrap();
    }
    // Commands are in order: what was deleted after the put of `e` is gone when this one is answered.
    assert!(store.delete("nothing", None).await.is_err());
    assert_eq!(ids(&all(&store, 0)), ["c", "d", "e"]);
    store.close();
    let store = folder.open(StoreOptions::default());
    store
        .put(
            TraceRecord {
                created: 1,
                ..trace("old")
            },
            0,
        )
        .await
        .unwrap();
    assert!(store.delete("nothing", None).await.is_err());
    assert_eq!(ids(&all(&store, 0)), ["c", "d", "e"]);
}

/// Options whose clock shows what the number says.
fn with_clock(seconds: &Arc<AtomicU64>, max_age: Duration) -> StoreOptions {
    let seconds = Arc::clone(seconds);
    StoreOptions {
        max_age,
        clock: Clock::new(move || seconds.load(Ordering::Relaxed)),
        ..StoreOptions::default()
    }
}

#[tokio::test]
async fn what_is_too_old_is_there_for_nobody_whether_or_not_it_is_deleted() {
    let folder = Folder::new();
    let now = Arc::new(AtomicU64::new(1000));
    // Nothing is deleted while the test runs, but when something is written.
    let store = folder.open(with_clock(&now, Duration::from_secs(1)));
    for (id, created) in [("a", 999), ("b", 1000), ("c", 1002)] {
        let record = TraceRecord {
            created,
            ..trace(id)
        };
        store.put(record, 0).await.unwrap();
    }
    assert_eq!(ids(&all(&store, 0)), ["a", "b", "c"]);
    now.store(1002, Ordering::Relaxed);
    assert_eq!(ids(&all(&store, 0)), ["c"]);
    assert!(store.get("c", None).is_ok());
    for id in ["a", "b"] {
        assert!(matches!(store.get(id, None), Err(StoreError::NotFound(_))));
        let deleted = store.delete(id, None).await;
        assert!(matches!(deleted, Err(StoreError::NotFound(_))));
        let update = OutcomeUpdate {
            outcome: Some(1.0),
            ..OutcomeUpdate::default()
        };
        let told = store.set_outcome(id, None, update).await;
        assert!(matches!(told, Err(StoreError::NotFound(_))));
    }
    let filter = Filter {
        created_from: Some(0),
        ..Filter::default()
    };
    let summaries = store
        .list(&filter, Order::OldestFirst, None, 9)
        .unwrap()
        .traces;
    assert_eq!((summaries.len(), summaries[0].id.as_str()), (1, "c"));
    let totals = store.totals().unwrap();
    assert_eq!((totals.num_traces, totals.first_created), (1, Some(1002)));
    assert_eq!(totals.strategies, [("best_of_n".to_owned(), 1)]);
}

#[tokio::test]
async fn old_traces_go_when_nothing_is_written() {
    let folder = Folder::new();
    let now = Arc::new(AtomicU64::new(1000));
    let store = folder.open(StoreOptions {
        retention_interval: Duration::from_millis(1),
        ..with_clock(&now, Duration::from_secs(1))
    });
    let record = TraceRecord {
        created: 1000,
        ..trace("a")
    };
    store.put(record, 0).await.unwrap();
    let connection = Connection::open(folder.file()).unwrap();
    let count = || {
        let all = "SELECT count(*) FROM traces";
        connection.query_row(all, [], |row| row.get::<_, i64>(0))
    };
    assert_eq!(count().unwrap(), 1);
    now.store(1002, Ordering::Relaxed);
    let started = std::time::Instant::now();
    while count().unwrap() > 0 {
        assert!(started.elapsed() < Duration::from_secs(60));
        std::thread::yield_now();
    }
}

#[tokio::test]
async fn a_retention_that_failed_is_made_up_for() {
    let folder = Folder::new();
    let store = folder.open(StoreOptions::default());
    store.put(trace("a"), 0).await.unwrap();
    let size = store.totals().unwrap().bytes;
    store.close();
    // What refers to the oldest trace lets no commit take it away.
    let connection = Connection::open(folder.file()).unwrap();
    let guard = "CREATE TABLE guard (seq REFERENCES traces (seq) DEFERRABLE INITIALLY DEFERRED);
        INSERT INTO guard VALUES (1);";
    connection.execute_batch(guard).unwrap();
    let store = folder.open(StoreOptions {
        max_bytes: size * 2 + size / 2,
        ..StoreOptions::default()
    });
    for id in ["b", "c"] {
        store.put(trace(id), 0).await.unwrap();
    }
    // Commands are in order: one that was sent after the other's answer comes after its retention.
    assert!(store.delete("nothing", None).await.is_err());
    assert_eq!(ids(&all(&store, 0)), ["a", "b", "c"]);
    connection.execute_batch("DROP TABLE guard;").unwrap();
    for _ in 0..2 {
        assert!(store.delete("nothing", None).await.is_err());
    }
    assert_eq!(ids(&all(&store, 0)), ["b", "c"]);
}

#[tokio::test]
async fn no_number_is_too_large() {
    let folder = Folder::new();
    let store = folder.open(StoreOptions {
        max_age: Duration::MAX,
        max_bytes: u64::MAX,
        ..StoreOptions::default()
    });
    let record = TraceRecord {
        created: u64::MAX,
        ..trace("a")
    };
    store.put(record, 0).await.unwrap();
    let between = |from, before| {
        let filter = Filter {
            created_from: Some(from),
            created_before: Some(before),
            ..Filter::default()
        };
        store.page(&filter, 0).unwrap().traces.len()
    };
    assert_eq!(between(0, i64::MAX as u64), 0);
    assert_eq!(between(u64::MAX, u64::MAX), 0);
    assert_eq!(all(&store, 0).len(), 1);
    assert_eq!(all(&store, u64::MAX).len(), 0);
    let list = |after| store.list(&Filter::default(), Order::NewestFirst, after, 9);
    assert_eq!(list(Some(u64::MAX)).unwrap().traces.len(), 1);
    assert_eq!(list(None).unwrap().traces.len(), 1);
}

#[tokio::test]
async fn redacted_traces_hold_no_text() {
    let folder = Folder::new();
    let store = folder.open(StoreOptions {
        redact: true,
        ..StoreOptions::default()
    });
    store.put(trace("a"), 0).await.unwrap();
    let json = String::from_utf8(all(&store, 0)[0].json().unwrap()).unwrap();
    for word in ["question", "right", "wrong"] {
        assert!(!json.contains(word), "{json}");
    }
    assert!(all(&store, 0)[0].record().unwrap().is_redacted);
}

#[tokio::test]
async fn damaged_and_newer_files_are_refused() {
    let folder = Folder::new();
    std::fs::create_dir_all(&folder.0).unwrap();
    std::fs::write(
        folder.file(),
        "this is not a database, but it is long enough".repeat(40),
    )
    .unwrap();
    let damaged = TraceStore::open(&folder.file(), StoreOptions::default());
    assert!(matches!(damaged, Err(StoreError::Damaged { .. })));
    std::fs::remove_file(folder.file()).unwrap();
    folder.open(StoreOptions::default()).close();
    let connection = Connection::open(folder.file()).unwrap();
    connection.pragma_update(None, "user_version", 99).unwrap();
    drop(connection);
    let newer = TraceStore::open(&folder.file(), StoreOptions::default());
    assert!(matches!(newer, Err(StoreError::TooNew { found: 99, .. })));
}

/// Pages are bounded, and a reader that takes them one after the other sees each trace once.
#[tokio::test]
async fn pages_follow_one_another() {
    let folder = Folder::new();
    let store = folder.open(StoreOptions::default());
    let puts = (0..600).map(|id| store.put(trace(&id.to_string()), 0));
    for result in futures::future::join_all(puts).await {
        result.unwrap();
    }
    let (mut from, mut seen) = (0, Vec::new());
    loop {
        let page = all(&store, from);
        let Some(last) = page.last() else { break };
        from = last.seq + 1;
        seen.extend(ids(&page));
    }
    let expected: Vec<String> = (0..600).map(|id| id.to_string()).collect();
    assert_eq!(seen, expected);
}
