//! Which backend serves a model, as the command line decides it.

use std::path::Path;
use std::process::Command;

/// What `ponder serve` says when it ends at once.
pub fn refusal(model: &Path, args: &[&str]) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ponder"));
    command.arg("serve").arg(model);
    command.args(["--port", "0", "--no-traces"]).args(args);
    let output = command.output().expect("the binary starts");
    assert!(!output.status.success());
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A folder that says to be of an architecture that the native engine does not have.
fn unknown() -> tempfile::TempDir {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens/mistralrs/phi3");
    let folder = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(golden).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap();
        std::fs::copy(&path, folder.path().join(name)).unwrap();
    }
    let config = folder.path().join("config.json");
    let text = std::fs::read_to_string(&config).unwrap();
    let text = text.replace("\"phi3\"", "\"starcoder2\"");
    std::fs::write(&config, text).unwrap();
    folder
}

#[test]
fn what_the_native_engine_does_not_know_is_told() {
    let folder = unknown();
    let message = refusal(folder.path(), &["--backend", "native"]);
    assert!(message.contains("starcoder2"), "{message}");
    let message = refusal(folder.path(), &["--backend", "native", "--isq", "Q8_0"]);
    assert!(
        message.contains("--isq needs --backend mistralrs"),
        "{message}"
    );
}

/// A build without mistralrs says how to make one with it.
#[cfg(not(feature = "mistralrs"))]
#[test]
fn a_build_without_mistralrs_says_how_to_get_it() {
    for args in [&[][..], &["--backend", "mistralrs"], &["--isq", "Q8_0"]] {
        let message = refusal(unknown().path(), args);
        assert!(
            message.contains("--features mistralrs"),
            "{args:?}: {message}"
        );
    }
}

/// What mistralrs cannot do is refused at the start, by name.
#[cfg(feature = "mistralrs")]
#[test]
fn flags_that_mistralrs_cannot_honour_end_the_start() {
    let head = Path::new(env!("CARGO_MANIFEST_DIR")).join("heads/qwen2.5-coder-0.5b.safetensors");
    let head = head.to_str().unwrap();
    for (args, part) in [
        (&["--value-head", head][..], "hidden_states"),
        (&["--value-adapter", "value=."], "adapters"),
        (&["--adaptation", "slot"], "adaptation"),
        (
            &["--speculative", "swift"],
            "--speculative needs --backend native",
        ),
        (&["--isq", "Q99"], "--isq Q99"),
    ] {
        let message = refusal(unknown().path(), args);
        assert!(message.contains(part), "{args:?}: {message}");
    }
}
