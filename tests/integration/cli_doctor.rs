//! `ponder doctor`, and what packagers ask of the binary, as processes.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::Value;

/// Nobody listens there.
const NOWHERE: &str = "http://127.0.0.1:9";

fn ponder(home: &Path, hub: &str, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ponder"));
    for name in [
        "PONDER_CONFIG",
        "PONDER_HOST",
        "PONDER_PORT",
        "PONDER_TRACE_DB",
    ] {
        command.env_remove(name);
    }
    command
        .args(args)
        .env("PONDER_HOME", home)
        .env("HF_ENDPOINT", hub)
        .env("PIP_INDEX_URL", format!("{NOWHERE}/simple/"))
        .env("NO_PROXY", "127.0.0.1")
        .stdin(Stdio::null())
        .output()
        .expect("the binary starts")
}

fn report(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).expect("the report is JSON")
}

fn check<'r>(report: &'r Value, name: &str) -> &'r Value {
    let mut checks = report["checks"].as_array().unwrap().iter();
    let found = checks.find(|check| check["check"] == name);
    found.unwrap_or_else(|| panic!("{name} is not in {report}"))
}

#[test]
fn a_machine_without_a_network_has_warnings_with_advice() {
    let home = tempfile::tempdir().unwrap();
    let output = ponder(home.path(), NOWHERE, &["doctor", "--json", "--port", "0"]);
    let report = report(&output);
    assert!(output.status.success(), "{report:#}");
    assert_eq!(report["version"], env!("CARGO_PKG_VERSION"));
    for (name, level) in [
        ("processor", None),
        ("memory", None),
        ("open files", None),
        ("gpu", None),
        ("disk", None),
        ("models", Some("warning")),
        ("hub", Some("warning")),
        ("registry", Some("warning")),
        ("sandbox", None),
        ("traces", Some("ok")),
        ("port", Some("ok")),
    ] {
        let check = check(&report, name);
        if let Some(level) = level {
            assert_eq!(check["level"], level, "{check}");
        }
        assert_eq!(check["advice"].is_null(), check["level"] == "ok", "{check}");
    }
    assert_eq!(report["faults"], 0);
    // It only looks.
    assert!(!home.path().join("models").exists() && !home.path().join("traces.db").exists());
}

#[test]
fn a_fault_is_the_exit_code() {
    let output = ponder(
        Path::new("/dev/null/models"),
        NOWHERE,
        &["doctor", "--json"],
    );
    assert_eq!(output.status.code(), Some(1));
    let report = report(&output);
    assert_eq!(check(&report, "disk")["level"], "fault");
    let advice = check(&report, "disk")["advice"].as_str().unwrap();
    assert!(advice.contains("PONDER_HOME"), "{advice}");
    let told = String::from_utf8(output.stderr).unwrap();
    assert!(told.starts_with("ponder: found 1"), "{told}");
}

#[test]
fn a_hub_that_answers_is_named_without_its_password() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let head = BufReader::new(&stream).lines().map_while(Result::ok);
            head.take_while(|line| !line.is_empty()).for_each(drop);
            let _ = stream.write_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n");
        }
    });
    let home = tempfile::tempdir().unwrap();
    let hub = format!("http://user:secret@{address}");
    let shown = format!("http://{address}");
    // The port of the hub is one that is taken.
    let port = address.port().to_string();
    let output = ponder(home.path(), &hub, &["doctor", "--port", &port]);
    assert!(output.status.success());
    let text = String::from_utf8(output.stdout).unwrap();
    let line = |name: &str| {
        let found = text
            .lines()
            .find(|line| line.split_whitespace().nth(1) == Some(name));
        found.unwrap_or_else(|| panic!("{name} is not in {text}"))
    };
    assert_eq!(
        line("hub").split_whitespace().collect::<Vec<_>>(),
        ["ok", "hub", shown.as_str(), "answers"]
    );
    assert!(line("port").starts_with("warning") && line("port").contains("is taken"));
    assert!(text.contains("→ stop what listens there"), "{text}");
    assert!(!text.contains("secret") && !text.contains('\x1b'), "{text}");
}

#[test]
fn completions_and_pages_of_the_manual_are_printed() {
    let home = tempfile::tempdir().unwrap();
    let run = |args: &[&str]| ponder(home.path(), NOWHERE, args);
    let script = run(&["completions", "bash"]);
    assert!(script.status.success());
    let script = String::from_utf8(script.stdout).unwrap();
    assert!(script.contains("complete -F _ponder") && script.contains("doctor"));
    let told = String::from_utf8(run(&["completions", "csh"]).stderr).unwrap();
    assert!(told.contains("possible values: bash"), "{told}");
    let page = String::from_utf8(run(&["man"]).stdout).unwrap();
    assert!(
        page.contains(".TH ponder 1") && page.contains("ponder\\-serve(1)"),
        "{page}"
    );
    let folder = home.path().join("man1");
    assert!(
        run(&["man", "--out", folder.to_str().unwrap()])
            .status
            .success()
    );
    assert!(folder.join("ponder-doctor.1").exists());
}
