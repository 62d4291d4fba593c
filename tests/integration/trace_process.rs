//! What is left of traces when the process dies, or its disk is full.

use std::collections::HashSet;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use ponder::trace::{Filter, StoreOptions, TraceStore};
use serde_json::{Value, json};

use crate::process::{MODEL, Process, SMALL};

const CLIENTS: usize = 6;
/// Answers after which the process is killed, one run each.
const KILLED_AFTER: [usize; 4] = [3, 10, 25, 40];

/// Answers with their traces; each client asks until the server is gone.
async fn ask_until_killed(
    url: String,
    client: usize,
    done: Arc<AtomicUsize>,
) -> Vec<(String, String)> {
    let http = reqwest::Client::new();
    let mut answered = Vec::new();
    for index in 0.. {
        let name = format!("request:{}-{client}-{index}", std::process::id());
        let mut body = json!({
            "model": MODEL, "max_tokens": 3, "temperature": 1.0,
            "messages": [{"role": "user", "content": "Say a word."}],
            "metadata": {"request": name.strip_prefix("request:")},
        });
        let is_search = index % 2 == 0;
        match is_search {
            true => {
                body["search"] =
                    json!({"strategy": "best_of_n", "n": 2, "reward": {"kind": "likelihood"}})
            }
            false => body["store"] = true.into(),
        }
        let sent = http
            .post(format!("{url}/chat/completions"))
            .json(&body)
            .send();
        let Ok(response) = sent.await else { break };
        // A body that was cut off was not delivered.
        let Ok(answer) = response.json::<Value>().await else {
            break;
        };
        let id = if is_search {
            &answer["search"]["trace_id"]
        } else {
            &answer["trace_id"]
        };
        let id = id.as_str().unwrap_or_else(|| panic!("{answer}"));
        answered.push((name, id.to_owned()));
        done.fetch_add(1, Ordering::SeqCst);
    }
    answered
}

#[test]
fn what_was_delivered_survives_the_death_of_the_process() {
    let folder = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let mut delivered = HashSet::new();
    for (run, limit) in KILLED_AFTER.into_iter().enumerate() {
        let mut process = Process::start(folder.path(), &[]);
        let done = Arc::new(AtomicUsize::new(0));
        let clients: Vec<_> = (0..CLIENTS)
            .map(|client| {
                let asking = ask_until_killed(
                    process.base_url.clone(),
                    run * CLIENTS + client,
                    done.clone(),
                );
                runtime.spawn(asking)
            })
            .collect();
        while done.load(Ordering::SeqCst) < limit {
            assert!(
                process.child.try_wait().unwrap().is_none(),
                "the server ended"
            );
            let is_asking = clients.iter().all(|client| !client.is_finished());
            assert!(is_asking, "a client was not answered");
            std::thread::yield_now();
        }
        process.child.kill().unwrap();
        for client in clients {
            delivered.extend(runtime.block_on(client).unwrap());
        }
    }
    assert!(delivered.len() >= KILLED_AFTER.iter().sum());
    // Opening checks the file.
    let store =
        TraceStore::open(&folder.path().join("traces.db"), StoreOptions::default()).unwrap();
    let (mut found, mut requests, mut from) = (HashSet::new(), HashSet::new(), 0);
    loop {
        let page = store.page(&Filter::default(), from).unwrap();
        assert!(page.damaged.is_empty());
        for stored in &page.traces {
            let record = stored.record().unwrap();
            assert!(requests.insert(record.tags[0].clone()), "kept twice");
            found.insert((record.tags[0].clone(), record.id));
        }
        let Some(next) = page.next else { break };
        from = next;
    }
    let lost: Vec<_> = delivered.difference(&found).collect();
    assert!(lost.is_empty(), "lost: {lost:?}");
}

#[cfg(unix)]
#[test]
fn a_full_disk_loses_traces_and_no_answers() {
    let folder = tempfile::tempdir().unwrap();
    // Files may grow to 200 kB; writes beyond fail as on a full disk.
    let mut shell = Command::new("bash");
    shell.args(["-c", "trap '' XFSZ; ulimit -f 200; exec \"$0\" \"$@\""]);
    shell.arg(env!("CARGO_BIN_EXE_ponder")).args(SMALL);
    let process = Process::start_as(&mut shell, folder.path(), &["--metrics-without-auth"]);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let http = reqwest::Client::new();
    let ask = |index: usize| {
        let body = json!({
            "model": MODEL, "max_tokens": 40, "temperature": 1.0, "seed": index,
            "messages": [{"role": "user", "content": "Tell me a story."}],
            "search": {"strategy": "best_of_n", "n": 8, "reward": {"kind": "likelihood"}},
        });
        runtime.block_on(async {
            let sent = http
                .post(format!("{}/chat/completions", process.base_url))
                .json(&body)
                .send();
            let response = sent.await.unwrap();
            assert_eq!(response.status(), 200);
            response.json::<Value>().await.unwrap()
        })
    };
    let mut kept = Vec::new();
    let lost = (0..100).find_map(|index| {
        let answer = ask(index);
        assert!(
            answer["choices"][0]["message"]["content"].is_string(),
            "{answer}"
        );
        match answer["search"]["trace_id"].as_str() {
            Some(id) => {
                kept.push(id.to_owned());
                None
            }
            None => Some(answer),
        }
    });
    assert!(lost.is_some() && !kept.is_empty(), "{} kept", kept.len());
    let metrics = process.base_url.replace("/v1", "/metrics");
    let metrics = runtime.block_on(async {
        http.get(metrics)
            .send()
            .await
            .unwrap()
            .text()
            .await
            .unwrap()
    });
    let failed = metrics
        .lines()
        .find(|line| line.starts_with("ponder_traces_total") && line.contains("failed"));
    assert!(failed.is_some(), "{metrics}");
    drop(process);
    let store =
        TraceStore::open(&folder.path().join("traces.db"), StoreOptions::default()).unwrap();
    for id in kept {
        store.get(&id, None).unwrap();
    }
}
