//! The hidden subcommand: limits its own process, then becomes the interpreter.

use std::convert::Infallible;
use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::process::Command;

use rustix::io::{FdFlags, fcntl_setfd};

use super::orders::Orders;
use super::prepare::{die_with_parent, leave_parent, stay_on_few_cores};

const SINK: &str = "/dev/null";
/// All that an interpreter sees of an environment. The hash seed makes the order of sets
/// repeatable.
const ENVIRONMENT: [(&str, &str); 5] = [
    ("LANG", "C.UTF-8"),
    ("PYTHONUTF8", "1"),
    ("PYTHONHASHSEED", "0"),
    ("PYTHONDONTWRITEBYTECODE", "1"),
    ("PYTHONSAFEPATH", "1"),
];

/// The process was not limited, so it did not begin its work. Its text begins with the token of the
/// call.
#[derive(Debug, thiserror::Error)]
#[error("{token}{message}")]
pub struct ExecError {
    pub(super) token: String,
    pub(super) message: String,
}

impl Orders {
    fn carry_out(&self) -> Result<Infallible, String> {
        let [interpreter, arguments @ ..] = self.command.as_slice() else {
            return Err("no command".to_owned());
        };
        leave_parent(self.nice)?;
        let sink = self.has_sink.then(open_sink).transpose();
        let sink = sink.map_err(|error| format!("{SINK}: {error}"))?;
        stay_on_few_cores();
        if let Some(isolation) = self.isolation {
            isolation.enter(&self.policy.files())?;
        }
        die_with_parent(self.parent)?;
        self.policy.enforce().map_err(|error| error.to_string())?;
        let error = Command::new(interpreter)
            .args(arguments)
            .args(sink.as_ref().map(|sink| sink.as_raw_fd().to_string()))
            .env_clear()
            .envs(ENVIRONMENT)
            .exec();
        Err(format!("{}: {error}", interpreter.display()))
    }
}

/// Opened here, since the interpreter opens nothing for writing, and kept across `execve`.
fn open_sink() -> io::Result<File> {
    let sink = File::options().write(true).open(SINK)?;
    fcntl_setfd(&sink, FdFlags::empty())?;
    Ok(sink)
}

/// The body of the subcommand; `args` is what follows it. Returns only on failure: print the error
/// to stderr and exit. To be called first in `main`, while the process has one thread.
pub fn exec_from_args(args: impl IntoIterator<Item = OsString>) -> ExecError {
    match Orders::from_args(args) {
        Ok(orders) => {
            let Err(message) = orders.carry_out();
            let token = orders.token;
            ExecError { token, message }
        }
        Err(message) => ExecError {
            token: String::new(),
            message,
        },
    }
}
