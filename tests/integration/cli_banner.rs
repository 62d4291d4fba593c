//! What `ponder serve` says first: a command that asks the server, as a shell runs it.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::process::{MODEL, SMALL};

const KEY: &str = "banner-secret";

#[test]
fn the_command_of_the_banner_works_as_it_is() {
    if Command::new("curl").arg("--version").output().is_err() {
        println!("skipped: there is no curl here");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let mut server = Command::new(env!("CARGO_BIN_EXE_ponder"))
        .args(SMALL)
        .args(["--port", "0", "--host", "0.0.0.0", "--trace-db"])
        .arg(folder.path().join("traces.db"))
        .env("PONDER_API_KEY", KEY)
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary starts");
    let stderr = BufReader::new(server.stderr.take().unwrap());
    let mut lines = stderr.lines().map_while(Result::ok);
    let first = lines.find(|line| line.contains(&format!(" serves {MODEL} on http://0.0.0.0:")));
    let command = lines.find_map(|line| line.trim().strip_prefix("ask   ").map(str::to_owned));
    // What follows is read, so that the server can say it.
    std::thread::spawn(move || lines.for_each(|line| eprintln!("server: {line}")));
    let output = command.as_ref().map(|command| {
        let mut shell = Command::new("sh");
        shell
            .args(["-c", command.as_str()])
            .env("PONDER_API_KEY", KEY)
            .env("no_proxy", "127.0.0.1");
        shell.output().expect("a shell runs")
    });
    let _ = server.kill();
    let _ = server.wait();
    assert!(first.is_some());
    let command = command.expect("a line says how to ask");
    assert!(!command.contains(KEY), "{command}");
    let output = output.expect("the command ran");
    let answer: Value = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&output.stderr)));
    let text = answer["choices"][0]["message"]["content"].as_str();
    assert!(text.is_some_and(|text| !text.is_empty()), "{answer}");
}
