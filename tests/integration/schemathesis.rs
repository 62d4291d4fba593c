//! schemathesis makes requests out of the OpenAPI document and compares the real server's answers
//! with it: statuses, content types, error objects, limits. All of its default checks must pass.
//!
//! One operation alone: `tests/sdk/schemathesis.toml` is the configuration, and the command that
//! this test prints takes `--include-path`.

use std::path::Path;
use std::process::Command;

use ponder::api::document_json;
use serde_json::{Value, json};

use crate::process::Process;
use crate::sdk::{environment, pip_install, source};
use crate::tiny_gguf;

const KEY: &str = "schemathesis-key";
const MANIFEST: &str = "schemathesis.txt";

/// The program, or `None` where no package registry is reached.
fn program() -> Option<std::path::PathBuf> {
    let is_there = |folder: &Path| folder.join("bin/schemathesis").exists();
    let folder = environment(MANIFEST, |folder| {
        let installed = pip_install(folder, MANIFEST);
        if let Err(output) = installed {
            eprintln!("{output}");
            let _ = std::fs::remove_file(folder.join("bin/schemathesis"));
        }
    });
    if is_there(&folder) {
        return Some(folder.join("bin/schemathesis"));
    }
    // The next run tries again.
    let _ = std::fs::remove_dir_all(folder);
    None
}

/// The answer to a request.
fn post(server: &Process, route: &str, body: &Value) -> Value {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let request = reqwest::Client::new().post(format!("{}/{route}", server.base_url));
        let response = request.bearer_auth(KEY).json(body).send().await.unwrap();
        response.json().await.unwrap()
    })
}

#[test]
fn the_server_answers_as_its_document_says() {
    let Some(program) = program() else {
        println!("skipped: schemathesis cannot be installed here");
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("tiny.gguf");
    tiny_gguf::write(&model);
    let document = folder.path().join("openapi.json");
    std::fs::write(&document, document_json()).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_ponder"));
    command.arg("serve").arg(&model).args([
        "--kv-cache-memory",
        "64M",
        "--max-num-seqs",
        "128",
        "--api-key",
        KEY,
    ]);
    let server = Process::start_as(&mut command, folder.path(), &[]);
    let url = server.base_url.trim_end_matches("/v1");
    let chat = json!({"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4});
    let session = post(&server, "branches", &chat)["id"].clone();
    let mut kept = chat;
    kept["store"] = true.into();
    let trace = post(&server, "chat/completions", &kept)["trace_id"].clone();
    let mut run = Command::new(program);
    run.arg("--config-file")
        .arg(source("schemathesis.toml"))
        .args(["--no-color", "run"])
        .arg(&document)
        .args([
            "--url",
            url,
            "--header",
            &format!("Authorization: Bearer {KEY}"),
        ])
        .current_dir(folder.path())
        .env("PYTHONPATH", source(""))
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .env("PONDER_TEST_MODEL", "tiny")
        .env("PONDER_TEST_SESSION", session.as_str().expect("a session"))
        .env("PONDER_TEST_TRACE", trace.as_str().expect("a trace"));
    println!("{run:?}");
    let output = run.output().expect("schemathesis runs");
    let told = String::from_utf8_lossy(&output.stdout);
    println!("{told}");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    // Nothing was tested by a run that could not read the document.
    assert!(
        told.contains("test cases") || told.contains("Test cases"),
        "{told}"
    );
}
