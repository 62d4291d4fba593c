//! `ponder bench soak` over a tiny model of random weights whose server is killed once.

use std::process::Command;

use serde_json::Value;

use crate::tiny_llama::write_model;

#[test]
fn a_soak_finds_all_traces_and_the_same_answers_behind_a_kill() {
    let folder = tempfile::tempdir().unwrap();
    write_model(folder.path());
    let path = folder.path().join("report.json");
    let kinds = "chat,chat-stream,completions,search-beam,search-best_of_n,search-resume,branches,\
        tokenize,probes,traces,trace-outcome,trace-delete,half-request";
    let output = Command::new(env!("CARGO_BIN_EXE_ponder"))
        .args(["bench", "soak"])
        .arg(folder.path())
        .args(["--minutes", "0.04", "--kill-every", "1", "--clients", "6"])
        .args(["--only", kinds, "--json"])
        .arg(&path)
        .output()
        .unwrap();
    let printed = String::from_utf8_lossy(&output.stdout);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{printed}{said}");
    let report: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    assert_eq!(report["failed"], 0);
    let measured = |name: &str| {
        let checks = report["checks"].as_array().unwrap();
        let check = checks
            .iter()
            .find(|check| check["check"].as_str().unwrap().starts_with(name));
        let check = check.unwrap_or_else(|| panic!("no check {name}: {report}"));
        (check["verdict"].clone(), check["measured"].to_string())
    };
    for name in [
        "all traces",
        "equal seeds",
        "idle",
        "every answer",
        "ends only",
    ] {
        assert_eq!(measured(name).0, "passed", "{name}: {printed}");
    }
    let (_, ends) = measured("ends only");
    assert!(
        !ends.contains("\"0 SIGKILL, 1 SIGTERM"),
        "nothing was killed: {ends}"
    );
    let lives = report["samples"].as_array().unwrap().iter();
    assert!(lives.filter_map(|sample| sample["life"].as_u64()).max() >= Some(2));
}

#[test]
fn a_soak_of_nothing_is_refused() {
    for (args, why) in [
        (vec!["--only", "sleep"], "choose of chat,"),
        (vec!["--minutes", "0"], "must be above 0"),
        (vec!["--kill-every", "inf"], "is not in"),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_ponder"));
        let output = command
            .args(["bench", "soak"])
            .arg(folder.path())
            .args(args);
        let output = output.output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && said.contains(why), "{said}");
    }
}
