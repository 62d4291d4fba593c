//! A damaged store over HTTP and on the command line, and what readers may ask of it. No model is
//! needed.

use std::path::PathBuf;
use std::process::Command;

use ponder::api::{AppState, ServerConfig, serve};
use ponder::trace::{StoreOptions, TraceRecord, TraceStore};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;

use crate::support::install_tls;

const ALICE: &str = "alice";
const BOB: &str = "bob";

/// A server that has traces and no model.
struct Traces {
    runtime: Runtime,
    url: String,
    state: AppState,
    store: TraceStore,
    folder: tempfile::TempDir,
}

fn record(id: &str, nodes: &[(Option<usize>, &str)]) -> TraceRecord {
    let nodes: Vec<Value> = nodes
        .iter()
        .map(|(parent, text)| {
            json!({
                "parent": parent, "text": text, "token_ids": [1], "logprob": -1.0, "score": null,
                "end": parent.map(|_| "stop"), "outcome": parent.map(|_| 1.0), "value": 0.5,
                "visit_count": 1, "is_pruned": false, "is_rollout": false, "branch_path": [],
            })
        })
        .collect();
    let record = json!({
        "schema": "ponder.trace.v1", "id": id, "model": "m", "created": 4_000_000_000_u64,
        "strategy": "best_of_n", "seed": 0, "prompt_token_ids": [0], "prompt_text": "question",
        "request": {"prompt": id}, "nodes": nodes,
    });
    serde_json::from_value(record).unwrap()
}

impl Traces {
    fn start(api_keys: &[&str]) -> Self {
        install_tls();
        let runtime = Runtime::new().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("traces.db");
        let store = TraceStore::open(&path, StoreOptions::default()).unwrap();
        let config = ServerConfig {
            api_keys: api_keys.iter().map(|key| (*key).to_owned()).collect(),
            ..ServerConfig::default()
        };
        let state = AppState::with_store(config, Some(store.clone()));
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        runtime.spawn(serve(listener, state.clone(), std::future::pending()));
        Self {
            runtime,
            url,
            state,
            store,
            folder,
        }
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("traces.db")
    }

    fn keep(&self, ids: &[&str]) {
        for id in ids {
            let record = record(id, &[(None, ""), (Some(0), "right")]);
            self.runtime.block_on(self.store.put(record, 0)).unwrap();
        }
    }

    fn damage(&self, sql: &str) {
        let connection = rusqlite::Connection::open(self.path()).unwrap();
        connection.execute_batch(sql).unwrap();
    }

    fn ask(&self, path: &str, headers: &[(&str, &str)]) -> reqwest::Response {
        let mut request = reqwest::Client::new().get(format!("{}{path}", self.url));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        self.runtime.block_on(request.send()).unwrap()
    }

    fn get(&self, path: &str, headers: &[(&str, &str)]) -> (u16, String) {
        let response = self.ask(path, headers);
        let status = response.status().as_u16();
        (status, self.runtime.block_on(response.text()).unwrap())
    }

    fn json(&self, path: &str) -> (u16, Value) {
        let (status, text) = self.get(path, &[]);
        (status, serde_json::from_str(&text).unwrap())
    }
}

fn lines(text: &str) -> Vec<Value> {
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

#[test]
fn damaged_traces_are_told_and_all_others_are_served() {
    let traces = Traces::start(&[]);
    traces.keep(&["a", "b", "c", "d", "e", "f"]);
    traces.damage(
        "UPDATE traces SET payload = payload || x'00' WHERE id = 'c';
         UPDATE traces SET owner = owner + 1 WHERE id = 'd';",
    );
    for format in ["tree", "sft"] {
        let (status, text) = traces.get(&format!("/v1/traces/stream?format={format}"), &[]);
        assert_eq!((status, lines(&text).len()), (200, 4), "{text}");
    }
    // From now on it is known that there are some.
    let response = traces.ask("/v1/traces/stream?skipped=true", &[]);
    assert_eq!(response.headers()["x-ponder-damaged-traces"], "2");
    let rows = lines(&traces.runtime.block_on(response.text()).unwrap());
    let told: Vec<&Value> = rows.iter().filter_map(|row| row.get("skipped")).collect();
    assert_eq!(told, [&json!([3, 4])]);
    assert_eq!(rows.len(), 5);
    // Behind a cursor nothing is told that lies before it.
    let (_, text) = traces.get("/v1/traces/stream?skipped=true&after=4", &[]);
    assert_eq!(lines(&text).len(), 2);

    let accept = [("accept", "text/event-stream")];
    let (_, events) = traces.get("/v1/traces/stream", &accept);
    assert!(events.contains(": skipped 3 4 (damaged)\n\n"), "{events}");
    let data = events.lines().filter(|line| line.starts_with("data: "));
    assert_eq!(data.count(), 4);
    let (_, events) = traces.get("/v1/traces/stream?skipped=1", &accept);
    assert!(events.contains("event: skipped\ndata: {"), "{events}");

    // What the columns say of the third is right.
    let (_, list) = traces.json("/v1/traces");
    assert_eq!(list["data"].as_array().unwrap().len(), 5);
    assert_eq!(list["damaged"], json!([4]));
    for id in ["c", "d"] {
        let (status, error) = traces.json(&format!("/v1/traces/{id}"));
        assert_eq!(
            (status, &error["error"]["code"]),
            (500, &json!("trace_damaged"))
        );
    }
    assert_eq!(traces.json("/v1/traces/e").0, 200);
    let (_, metrics) = traces.get("/metrics", &[]);
    let counted = "ponder_trace_damaged_total{model_name=\"\"} 2";
    assert!(metrics.contains(counted), "{metrics}");

    let export = Command::new(env!("CARGO_BIN_EXE_ponder"))
        .args([
            "traces",
            "export",
            "--format",
            "tree",
            "--out",
            "-",
            "--trace-db",
        ])
        .arg(traces.path())
        .output()
        .unwrap();
    assert!(export.status.success());
    let said = String::from_utf8(export.stderr).unwrap();
    assert!(
        said.contains("2 damaged traces were skipped: 3, 4"),
        "{said}"
    );
    assert_eq!(lines(&String::from_utf8(export.stdout).unwrap()).len(), 4);
}

#[test]
fn cursors_of_another_store_are_told_what_to_do() {
    let traces = Traces::start(&[]);
    traces.keep(&["a", "b"]);
    assert_eq!(
        traces.get("/v1/traces/stream?after=2", &[]),
        (200, String::new())
    );
    for (path, headers, param) in [
        ("/v1/traces/stream?after=3", &[][..], "after"),
        ("/v1/traces/stream?after=3-0&format=sft", &[], "after"),
        ("/v1/traces?after=3", &[], "after"),
        (
            "/v1/traces/stream?after=1",
            &[("last-event-id", "4711-2")],
            "Last-Event-ID",
        ),
    ] {
        let (status, text) = traces.get(path, headers);
        let error: Value = serde_json::from_str(&text).unwrap();
        let error = &error["error"];
        assert_eq!(status, 410, "{path}: {text}");
        assert_eq!(error["code"], "unknown_cursor");
        assert_eq!(error["param"], param);
        let message = error["message"].as_str().unwrap();
        assert!(message.contains("Begin again"), "{message}");
    }
}

#[test]
fn no_key_takes_all_seats_of_the_stream() {
    let traces = Traces::start(&[ALICE, BOB]);
    let follow = |key: &str| {
        let key = format!("Bearer {key}");
        let headers = [("authorization", key.as_str())];
        traces.ask("/v1/traces/stream?follow=true", &headers)
    };
    let of_alice: Vec<_> = (0..16).map(|_| follow(ALICE)).collect();
    assert!(of_alice.iter().all(|it| it.status() == 200));
    let refused = follow(ALICE);
    assert_eq!(refused.status(), 429);
    let text = traces.runtime.block_on(refused.text()).unwrap();
    assert!(text.contains("this key"), "{text}");
    assert_eq!(follow(BOB).status(), 200);
    // Whoever leaves gives the seat back.
    drop(of_alice);
    let started = std::time::Instant::now();
    while traces.state.trace_readers_now() > 1 {
        assert!(started.elapsed().as_secs() < 60);
        std::thread::yield_now();
    }
    assert_eq!(follow(ALICE).status(), 200);
}

/// A Parquet file where the build has the feature; else a line that says what to do.
#[test]
fn exports_to_parquet_are_files_or_say_how() {
    let traces = Traces::start(&[]);
    traces.keep(&["a", "b"]);
    let file = traces.folder.path().join("trees.parquet");
    let export = Command::new(env!("CARGO_BIN_EXE_ponder"))
        .args(["traces", "export", "--format", "tree", "--out"])
        .arg(&file)
        .arg("--trace-db")
        .arg(traces.path())
        .output()
        .unwrap();
    let said = String::from_utf8(export.stderr).unwrap();
    assert_eq!(export.status.success(), cfg!(feature = "parquet"), "{said}");
    if cfg!(feature = "parquet") {
        let bytes = std::fs::read(&file).unwrap();
        assert!(bytes.starts_with(b"PAR1") && bytes.ends_with(b"PAR1"));
        assert!(said.contains("2 rows"), "{said}");
    } else {
        assert!(!file.exists());
        assert!(
            said.contains("--features parquet") && said.contains(".jsonl"),
            "{said}"
        );
    }
}

/// What was exported before takes the place of what is damaged, also while a server runs.
#[test]
fn an_import_repairs_what_was_exported_before() {
    let traces = Traces::start(&[]);
    traces.keep(&["a", "b", "c"]);
    let file = traces.folder.path().join("trees.jsonl");
    let ponder = |args: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ponder"));
        let command = command.arg("traces").args(args);
        let done = command
            .arg("--trace-db")
            .arg(traces.path())
            .output()
            .unwrap();
        let said = String::from_utf8(done.stderr).unwrap();
        assert!(done.status.success(), "{said}");
        said
    };
    let path = file.to_str().unwrap();
    ponder(&["export", "--format", "tree", "--out", path]);
    traces.damage("UPDATE traces SET payload = x'00' WHERE id = 'b'");
    assert_eq!(traces.json("/v1/traces/b").0, 500);
    let said = ponder(&["import", path]);
    assert!(said.contains("1 traces imported, 2 were there"), "{said}");
    assert_eq!(traces.json("/v1/traces/b").0, 200);
    // Both processes' numbers are different ones.
    traces.keep(&["d"]);
    let (_, text) = traces.get("/v1/traces/stream", &[]);
    let ids: Vec<Value> = lines(&text)
        .into_iter()
        .map(|row| row["id"].clone())
        .collect();
    assert_eq!(ids, ["a", "c", "b", "d"]);
}

/// A tree whose rows together are far more than itself: one branch, each node of which ends an answer.
#[test]
fn rows_of_a_deep_tree_are_made_as_they_are_read() {
    const NUM_STEPS: usize = 3000;
    let traces = Traces::start(&[]);
    let step = "a step of about forty-five bytes of an answer";
    let mut nodes = vec![(None, "")];
    nodes.extend((0..NUM_STEPS).map(|id| (Some(id), step)));
    let record = record("deep", &nodes);
    traces
        .runtime
        .block_on(traces.store.put(record, 0))
        .unwrap();
    // All at once they would be 200 MB.
    let (status, error) = traces.json("/v1/traces/deep?format=sft");
    assert_eq!((status, &error["error"]["param"]), (400, &json!("format")));
    assert!(error.to_string().contains("/v1/traces/stream"), "{error}");
    // By the stream one gets them one by one, and goes on behind any.
    let read = |after: &str| {
        let path = format!("/v1/traces/stream?format=sft&limit=3{after}");
        lines(&traces.get(&path, &[]).1)
    };
    let (first, second) = (read(""), read("&after=1-2"));
    let cursors: Vec<&Value> = first
        .iter()
        .chain(&second)
        .map(|row| &row["cursor"])
        .collect();
    assert_eq!(cursors, ["1-0", "1-1", "1-2", "1-3", "1-4", "1-5"]);
    let (status, error) = traces.json("/v1/traces/deep?format=sft&max_wrong_branches=99999999");
    assert_eq!(
        (status, &error["error"]["param"]),
        (400, &json!("max_wrong_branches"))
    );
    // A reader that leaves in the middle leaves no work behind.
    let reader = traces.ask("/v1/traces/stream?format=sft", &[]);
    assert_eq!(
        (reader.status().as_u16(), traces.state.trace_readers_now()),
        (200, 1)
    );
    drop(reader);
    let started = std::time::Instant::now();
    while traces.state.trace_readers_now() > 0 {
        assert!(started.elapsed().as_secs() < 60);
        std::thread::yield_now();
    }
}

#[test]
fn an_outcome_speaks_of_a_bounded_number_of_answers() {
    let traces = Traces::start(&[]);
    traces.keep(&["a"]);
    let post = |body: String| {
        let url = format!("{}/v1/traces/a/outcome", traces.url);
        let sent = reqwest::Client::new().post(url).body(body).send();
        let response = traces.runtime.block_on(sent).unwrap();
        let status = response.status().as_u16();
        let text = traces.runtime.block_on(response.text()).unwrap();
        (status, serde_json::from_str::<Value>(&text).unwrap())
    };
    let leaf = r#"{"node":1,"outcome":1}"#;
    let leaves = vec![leaf; 65_537].join(",");
    let (status, error) = post(format!(r#"{{"leaves":[{leaves}]}}"#));
    assert_eq!((status, &error["error"]["param"]), (400, &json!("leaves")));
    // Many at once are all taken, each as a revision of its own.
    let told = (0..8).map(|_| {
        let url = format!("{}/v1/traces/a/outcome", traces.url);
        let body = format!(r#"{{"leaves":[{leaf}]}}"#);
        reqwest::Client::new().post(url).body(body).send()
    });
    let told = traces.runtime.block_on(futures::future::join_all(told));
    let num_taken = told
        .into_iter()
        .filter(|response| response.as_ref().is_ok_and(|it| it.status() == 200))
        .count();
    let (_, trace) = traces.json("/v1/traces/a");
    assert_eq!(trace["revision"], json!(1 + num_taken));
    assert!(num_taken > 0);
}
