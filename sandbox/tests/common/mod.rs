//! A sandbox, and programs that say what must not work.
#![allow(dead_code, reason = "each test binary uses a part")]

use std::path::PathBuf;
use std::time::Duration;

use ponder_sandbox::{Limits, RunOutcome, Sandbox, Status};

/// Those of the tests: a machine that builds beside them may have no idle core.
pub fn limits() -> Limits {
    Limits {
        wall: Duration::from_secs(60),
        cpu_seconds: 2,
        nice: 0,
        ..Limits::default()
    }
}

pub fn sandbox_with(limits: Limits) -> Sandbox {
    let exe = PathBuf::from(env!("CARGO_BIN_EXE_ponder-sandbox"));
    Sandbox::new(exe, None, limits).expect("a sandbox")
}

pub fn sandbox() -> Sandbox {
    sandbox_with(limits())
}

pub fn run(program: &str) -> RunOutcome {
    sandbox().run(program).expect("a run")
}

/// Runs `body` wherever this machine can run programs, from the strongest separation to the
/// weakest.
#[track_caller]
pub fn holds_everywhere(body: &str) {
    let program = format!("{REFUSED}\n{body}\nprint('held')\n");
    let mut tried = 0;
    for name in SEPARATIONS {
        let Some(sandbox) = sandbox().separated_as(name) else {
            continue;
        };
        let outcome = sandbox.run(&program).expect("a run");
        assert_eq!(outcome.stdout, "held\n", "{name}: {outcome:?}");
        tried += 1;
    }
    assert!(tried > 0, "no separation works here");
}

/// The last one always works.
pub const SEPARATIONS: [&str; 7] = [
    "own-hidden",
    "namespace-hidden",
    "uncounted-hidden",
    "kept-hidden",
    "own",
    "namespace",
    "kept",
];

/// Runs `body`, which says by `assert` and by `refused(action)` what must not work.
#[track_caller]
pub fn holds(body: &str) {
    let program = format!("{REFUSED}\n{body}\nprint('held')\n");
    let outcome = run(&program);
    assert_eq!(outcome.status, Status::Passed, "{outcome:?}");
    assert_eq!(outcome.stdout, "held\n", "{outcome:?}");
}

pub const REFUSED: &str = r#"
import os, sys
def absent(action, *arguments, **keywords):
    try:
        refused(action, *arguments, **keywords)
    except AssertionError as error:
        if "FileNotFoundError" not in str(error) and "NotADirectoryError" not in str(error):
            raise
def refused(action, *arguments, **keywords):
    try:
        result = action(*arguments, **keywords)
    except (PermissionError, ProcessLookupError):
        return
    except OSError as error:
        raise AssertionError("refused as %r" % error)
    raise AssertionError("%s%r worked: %r" % (action, arguments, result))
"#;
