//! Python, for requests with tests and for the tool `code_interpreter`.

use ponder_sandbox::RunError;

use super::report::Finding;
use crate::cli::programs::sandbox as start;

const OTHERWISE: &str = "leave --allow-code-execution off; all else works without it";

/// Starts the sandbox, which runs a program to see that it is held.
pub(super) fn sandbox() -> Finding {
    let held = match start() {
        Ok(sandbox) => sandbox.protections(),
        Err(RunError::Unsupported) => {
            let found = "none here: it needs Linux with seccomp, on x86-64 or aarch64";
            return Finding::warning("sandbox", found, OTHERWISE);
        }
        Err(RunError::NoPython(why)) => {
            let advice = format!("install python3, or {OTHERWISE}");
            return Finding::warning("sandbox", format!("no Python: {why}"), advice);
        }
        Err(error) => return Finding::warning("sandbox", error.to_string(), OTHERWISE),
    };
    if !held.landlock && !held.own_files {
        let found = "Python runs, but reads whatever this user can";
        let advice = "a kernel with landlock (5.13) or mount namespaces for this user hides files";
        return Finding::warning("sandbox", found, advice);
    }
    let holds = [
        ("seccomp", held.seccomp),
        ("landlock", held.landlock),
        ("own files", held.own_files),
        ("own user", held.own_user),
        ("threads", held.threads),
    ];
    let holds = holds.iter().filter(|(_, holds)| *holds);
    let holds: Vec<&str> = holds.map(|(name, _)| *name).collect();
    Finding::ok(
        "sandbox",
        format!("Python runs, held by {}", holds.join(", ")),
    )
}
