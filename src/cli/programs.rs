//! Limited processes of this binary: Python of answers and tests, and checks of schemas.

use anyhow::Context;
use ponder_sandbox::{Confined, ConfinedError, Limits, RunError, Sandbox};

use crate::reward::{Programs, PythonRunner, SchemaChecker};

/// Stays this binary when the file is replaced.
const OWN_BINARY: &str = "/proc/self/exe";

/// The `python3` of the search path in its limits, tried out.
pub(super) fn sandbox() -> Result<Sandbox, RunError> {
    Sandbox::new(OWN_BINARY.into(), None, Limits::default())
}

/// Runs Python that nobody has read.
pub(super) fn python_runner(programs: Programs) -> anyhow::Result<PythonRunner> {
    let sandbox = sandbox().context("--allow-code-execution")?;
    let held = sandbox.protections();
    if !held.landlock && !held.own_files {
        tracing::warn!(
            "this system has neither landlock nor mount namespaces for this user: tested code cannot write or connect, but it can read what this user can"
        );
    }
    Ok(PythonRunner::new(sandbox, programs))
}

/// `None` where processes cannot be limited.
pub(super) fn schema_checker(programs: Programs) -> anyhow::Result<Option<SchemaChecker>> {
    match Confined::new(OWN_BINARY.into(), SchemaChecker::LIMITS) {
        Ok(confined) => Ok(Some(SchemaChecker::new(confined, programs))),
        Err(ConfinedError::Unsupported) => Ok(None),
        Err(error) => Err(error).context("the process that checks JSON schemas"),
    }
}
