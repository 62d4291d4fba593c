//! The hidden subcommand: limits its own process, then becomes the interpreter.

use std::convert::Infallible;
use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::process::Command;

use super::orders::Orders;
use super::prepare::{die_with_parent, leave_parent};

/// All that an interpreter sees of an environment. The hash seed makes the order of sets repeatable.
const ENVIRONMENT: [(&str, &str); 5] = [
    ("LANG", "C.UTF-8"),
    ("PYTHONUTF8", "1"),
    ("PYTHONHASHSEED", "0"),
    ("PYTHONDONTWRITEBYTECODE", "1"),
    ("PYTHONSAFEPATH", "1"),
];

/// The process was not limited, so it did not begin its work. Its text begins with the token of the call.
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
        die_with_parent(self.parent)?;
        self.policy.enforce().map_err(|error| error.to_string())?;
        let error = Command::new(interpreter)
            .args(arguments)
            .env_clear()
            .envs(ENVIRONMENT)
            .exec();
        Err(format!("{}: {error}", interpreter.display()))
    }
}

/// The body of the subcommand; `args` is what follows it. Returns only on failure: print the error to stderr and
/// exit. To be called first in `main`, while the process has one thread.
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
