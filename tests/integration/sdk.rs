//! The official OpenAI SDKs for Python and Node drive the real binary. Their environments are made
//! under the target folder, once per set of pinned versions.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::process::{MODEL, Process};

const KEY: &str = "sdk-key";

fn source(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/sdk")
        .join(name)
}

fn run(command: &mut Command) {
    let output = command
        .output()
        .unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text).into_owned();
    assert!(output.status.success(), "{command:?}:\n{text}");
    println!("{text}");
}

/// A folder for `manifest`'s packages; `make` fills it unless an earlier run did.
fn environment(manifest: &str, make: impl Fn(&Path)) -> PathBuf {
    let text = std::fs::read(source(manifest)).expect("the manifest is readable");
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!(
        "sdk-{}-{:016x}",
        manifest.split('.').next().unwrap(),
        fnv1a(&text)
    ));
    if !folder.join(".complete").exists() {
        let _ = std::fs::remove_dir_all(&folder);
        std::fs::create_dir_all(&folder).unwrap();
        make(&folder);
        std::fs::write(folder.join(".complete"), "").unwrap();
    }
    folder
}

/// FNV-1a.
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3)
    })
}

/// A server of each backend that this build has, on the same model.
fn servers(traces: &Path) -> Vec<Process> {
    let mut servers = vec![Process::start(traces, &["--api-key", KEY])];
    if cfg!(feature = "mistralrs") {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ponder"));
        command.args(["serve", MODEL, "--max-model-len", "2048"]);
        let other = traces.join("mistralrs");
        std::fs::create_dir_all(&other).unwrap();
        let args = ["--api-key", KEY, "--backend", "mistralrs"];
        servers.push(Process::start_as(&mut command, &other, &args));
    }
    servers
}

#[test]
fn the_python_sdk_is_served() {
    let folder = environment("requirements.txt", |folder| {
        run(Command::new("python3").args(["-m", "venv"]).arg(folder));
        let mut pip = Command::new(folder.join("bin/python"));
        run(pip
            .args([
                "-m",
                "pip",
                "install",
                "--quiet",
                "--disable-pip-version-check",
                "-r",
            ])
            .arg(source("requirements.txt")));
    });
    let traces = tempfile::tempdir().unwrap();
    for server in servers(traces.path()) {
        for script in ["sdk_test.py", "responses_test.py"] {
            let mut python = Command::new(folder.join("bin/python"));
            run(python
                .arg(source(script))
                .args([&server.base_url, KEY, MODEL]));
        }
    }
}

#[test]
fn the_node_sdk_is_served() {
    let folder = environment("package.json", |folder| {
        std::fs::copy(source("package.json"), folder.join("package.json")).unwrap();
        let mut npm = Command::new("npm");
        run(npm
            .args(["install", "--no-audit", "--no-fund", "--no-package-lock"])
            .current_dir(folder));
    });
    let scripts = ["sdk_test.mjs", "responses_test.mjs"];
    for script in scripts {
        std::fs::copy(source(script), folder.join(script)).unwrap();
    }
    let traces = tempfile::tempdir().unwrap();
    for server in servers(traces.path()) {
        for script in scripts {
            let mut node = Command::new("node");
            run(node
                .arg(script)
                .args([&server.base_url, KEY, MODEL])
                .current_dir(&folder));
        }
    }
}
