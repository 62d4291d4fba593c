//! `ponder bench search` against a server in this process.

use serde_json::{Value, json};

use crate::server::shared_server;

#[test]
fn bench_search_counts_right_answers_and_tokens() {
    let server = shared_server();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("problems.jsonl");
    let problem = |pattern: &str| {
        let grade = json!({"kind": "verifier", "type": "regex", "pattern": pattern});
        let messages = json!([{"role": "user", "content": "Name a colour."}]);
        format!("{}\n", json!({"messages": messages, "grade": grade}))
    };
    std::fs::write(
        &path,
        [problem("."), problem("no answer has this")].concat(),
    )
    .unwrap();
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_ponder"))
        .args([
            "bench",
            "search",
            "--json",
            "--budget",
            "3",
            "--max-tokens",
            "12",
        ])
        .args(["--url", &server.url, "--problems", path.to_str().unwrap()])
        .args([
            "--search",
            r#"{"strategy": "best_of_n", "n": 2}"#,
            "no_such_thing",
        ])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}");
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let arms = report["arms"].as_array().unwrap();
    let names: Vec<&str> = arms
        .iter()
        .map(|arm| arm["search"].as_str().unwrap())
        .collect();
    assert_eq!(names, ["greedy", "best_of_n n=2", "no_such_thing"]);
    for arm in &arms[..2] {
        assert_eq!(
            (&arm["right"], &arm["errors"]),
            (&json!(1), &json!(0)),
            "{arm}"
        );
    }
    let tokens = |arm: usize| arms[arm]["tokens"].as_u64().unwrap();
    assert!(
        tokens(0) <= 24 && tokens(1) > tokens(0) && tokens(1) <= 48,
        "{report}"
    );
    assert!(arms[1]["discarded_share"].as_f64().unwrap() > 0.2);
    assert_eq!(
        arms[2]["errors"], 2,
        "a search that is refused counts as wrong"
    );
}
