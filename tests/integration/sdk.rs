//! The official OpenAI SDKs for Python and Node drive the real binary. Their environments are made
//! under the target folder, once per set of pinned versions.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

const KEY: &str = "sdk-key";
const MODEL: &str = "smollm2-135m";

struct Server {
    process: Child,
    base_url: String,
}

impl Server {
    /// Starts the binary on a free port and reads its address from the banner.
    fn start() -> Self {
        let mut process = Command::new(env!("CARGO_BIN_EXE_ponder"))
            .args([
                "serve",
                MODEL,
                "--port",
                "0",
                "--api-key",
                KEY,
                "--max-model-len",
                "2048",
            ])
            .args(["--kv-cache-memory", "256M"])
            .stderr(Stdio::piped())
            .spawn()
            .expect("the binary starts");
        let stderr = BufReader::new(process.stderr.take().expect("stderr is piped"));
        let mut lines = stderr.lines().map_while(Result::ok);
        let banner =
            lines.find_map(|line| line.split_once("http://").map(|(_, rest)| rest.to_owned()));
        let Some(banner) = banner else {
            let _ = process.kill();
            let status = process.wait();
            panic!("the server did not start: {status:?}");
        };
        // What the server says later belongs in a failing test's output.
        std::thread::spawn(move || lines.for_each(|line| eprintln!("server: {line}")));
        let address = banner.split_whitespace().next().unwrap_or_default();
        Self {
            base_url: format!("http://{address}/v1"),
            process,
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

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
    let server = Server::start();
    let mut python = Command::new(folder.join("bin/python"));
    run(python
        .arg(source("sdk_test.py"))
        .args([&server.base_url, KEY, MODEL]));
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
    std::fs::copy(source("sdk_test.mjs"), folder.join("sdk_test.mjs")).unwrap();
    let server = Server::start();
    let mut node = Command::new("node");
    run(node
        .arg("sdk_test.mjs")
        .args([&server.base_url, KEY, MODEL])
        .current_dir(&folder));
}
