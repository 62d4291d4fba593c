//! The blocks of shell and Python in the README and the tutorials run as they stand, against the
//! real binary with the tests' model (`tests/docs/run_blocks.py`).

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::process::MODEL;
use crate::sdk::{environment, pip_install};

const MANIFEST: &str = "docs.txt";

/// Python with the packages that blocks import, or `None` where no package registry is reached.
fn python() -> Option<PathBuf> {
    let folder = environment(MANIFEST, |folder| {
        if let Err(output) = pip_install(folder, MANIFEST) {
            eprintln!("{output}");
            let _ = std::fs::remove_file(folder.join("bin/python"));
        }
    });
    let python = folder.join("bin/python");
    if python.exists() {
        return Some(python);
    }
    // The next run tries again.
    let _ = std::fs::remove_dir_all(folder);
    None
}

#[test]
fn blocks_of_the_readme_and_the_tutorials_run() {
    let Some(python) = python() else {
        println!("skipped: the OpenAI SDK cannot be installed here");
        return;
    };
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/docs/run_blocks.py");
    let mut run = Command::new(python);
    run.arg(script)
        .args(["--ponder", env!("CARGO_BIN_EXE_ponder"), "--model", MODEL])
        .env("PYTHONDONTWRITEBYTECODE", "1");
    println!("{run:?}");
    let output = run.output().expect("Python runs");
    let told = [output.stdout, output.stderr].concat();
    let told = String::from_utf8_lossy(&told);
    println!("{told}");
    assert!(output.status.success(), "{told}");
}
