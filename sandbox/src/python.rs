//! Which interpreter, and which files it needs.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::RunError;

/// No site packages, no bytecode files; the program comes through stdin, where size does not
/// matter. Not `-I`: it would drop the hash seed, and the environment is ours anyway.
pub(super) const ARGUMENTS: [&str; 4] = ["-S", "-s", "-B", "-"];

/// Needed by libraries loaded late; those that do not exist are skipped.
const SYSTEM_FILES: [&str; 14] = [
    "/lib",
    "/lib32",
    "/lib64",
    "/usr/lib",
    "/usr/lib32",
    "/usr/lib64",
    "/usr/local/lib",
    "/nix/store",
    "/gnu/store",
    "/etc/ld.so.cache",
    "/etc/localtime",
    "/usr/share/zoneinfo",
    "/dev/null",
    "/dev/urandom",
];

/// Names the interpreter itself (not a shim or a virtual environment), what it reads and what it
/// executes: itself and the dynamic loader.
const PROBE: &str = r#"
import os, sys
def say(kind, path):
    sys.stdout.buffer.write(kind + b" " + os.fsencode(path) + b"\0")
executable = getattr(sys, "_base_executable", None) or sys.executable
say(b"python", os.path.realpath(executable))
for path in sys.path:
    if path:
        say(b"read", os.path.realpath(path))
for prefix in {sys.base_prefix, sys.base_exec_prefix}:
    if len(prefix) > 1:
        for folder in ("lib", "lib64"):
            say(b"read", os.path.join(prefix, folder))
mapped = set()
with open("/proc/self/maps", "rb") as maps:
    for line in maps:
        fields = line.rstrip(b"\n").split(None, 5)
        if len(fields) == 6 and fields[5].startswith(b"/"):
            mapped.add(fields[5])
for path in mapped:
    name = os.path.basename(path)
    say(b"execute" if name.startswith((b"ld-", b"ld.")) else b"read", path)
"#;

/// An interpreter that was started once.
#[derive(Debug, Clone)]
pub(super) struct Python {
    pub exe: PathBuf,
    pub readable: Vec<PathBuf>,
    pub executable: Vec<PathBuf>,
}

impl Python {
    /// Asks the interpreter itself, outside of the sandbox; by default `python3` of the search
    /// path.
    pub fn locate(python: Option<&Path>) -> Result<Self, RunError> {
        let program = python.unwrap_or(Path::new("python3"));
        let describe = |what: String| RunError::NoPython(format!("{}: {what}", program.display()));
        let output = Command::new(program)
            .args(["-I", "-S", "-B", "-c", PROBE])
            .stdin(Stdio::null())
            .output()
            .map_err(|error| describe(error.to_string()))?;
        if !output.status.success() {
            let stderr = String::from_utf8_lossy(&output.stderr);
            return Err(describe(format!("{} {}", output.status, stderr.trim())));
        }
        let mut found = Self {
            exe: PathBuf::new(),
            readable: SYSTEM_FILES.map(PathBuf::from).into(),
            executable: Vec::new(),
        };
        for line in output.stdout.split(|byte| *byte == 0) {
            found.note(line);
        }
        if found.exe.as_os_str().is_empty() {
            return Err(describe("does not know its own path".to_owned()));
        }
        found.executable.push(found.exe.clone());
        Ok(found)
    }

    fn note(&mut self, line: &[u8]) {
        let path = |bytes| PathBuf::from(OsStr::from_bytes(bytes));
        if let Some(exe) = line.strip_prefix(b"python ") {
            self.exe = path(exe);
        } else if let Some(file) = line.strip_prefix(b"read ") {
            self.readable.push(path(file));
        } else if let Some(file) = line.strip_prefix(b"execute ") {
            self.executable.push(path(file));
        }
    }
}
