//! The hidden subcommand: limits its own process, then becomes the interpreter.

use std::convert::Infallible;
use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;
use std::{fs, io};

use rustix::process::{Signal, getppid, set_parent_process_death_signal, setsid};

use super::policy::Policy;

/// All that an interpreter sees of an environment. The hash seed makes the order of sets repeatable.
const ENVIRONMENT: [(&str, &str); 5] = [
    ("LANG", "C.UTF-8"),
    ("PYTHONUTF8", "1"),
    ("PYTHONHASHSEED", "0"),
    ("PYTHONDONTWRITEBYTECODE", "1"),
    ("PYTHONSAFEPATH", "1"),
];

/// The process was not limited, so the interpreter was not started. Its text begins with the token of the call.
#[derive(Debug, thiserror::Error)]
#[error("{token}{message}")]
pub struct ExecError {
    token: String,
    message: String,
}

/// What the parent asks of the subcommand, as flags.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Orders {
    /// Proves to the parent that an error message is this process's: `execve` removes it from memory.
    pub token: String,
    pub parent: u32,
    pub policy: Policy,
    /// The interpreter and its arguments.
    pub command: Vec<OsString>,
}

impl Orders {
    pub fn to_args(&self) -> Vec<OsString> {
        let mut args: Vec<OsString> = Vec::new();
        let mut flag = |name: &str, value: OsString| args.extend([name.into(), value]);
        flag("--token", (&self.token).into());
        flag("--parent", self.parent.to_string().into());
        flag("--cpu", self.policy.cpu_seconds.to_string().into());
        flag("--memory", self.policy.memory_bytes.to_string().into());
        for path in &self.policy.readable {
            flag("--read", path.into());
        }
        for path in &self.policy.executable {
            flag("--execute", path.into());
        }
        args.push("--".into());
        args.extend(self.command.iter().cloned());
        args
    }

    fn from_args(args: impl IntoIterator<Item = OsString>) -> Result<Self, String> {
        let mut args = args.into_iter();
        let (mut token, mut parent, mut cpu, mut memory) = (None, None, None, None);
        let (mut readable, mut executable) = (Vec::new(), Vec::new());
        loop {
            let flag = args.next().ok_or("the arguments end before '--'")?;
            if flag == "--" {
                break;
            }
            let value = args
                .next()
                .ok_or_else(|| format!("{flag:?} has no value"))?;
            match flag.to_str() {
                Some("--token") => token = value.into_string().ok(),
                Some("--parent") => parent = Some(number(&value)?),
                Some("--cpu") => cpu = Some(number(&value)?),
                Some("--memory") => memory = Some(number(&value)?),
                Some("--read") => readable.push(PathBuf::from(value)),
                Some("--execute") => executable.push(PathBuf::from(value)),
                _ => return Err(format!("unknown flag {flag:?}")),
            }
        }
        Ok(Self {
            token: token.ok_or("--token is missing")?,
            parent: parent.ok_or("--parent is missing")?,
            policy: Policy {
                cpu_seconds: cpu.ok_or("--cpu is missing")?,
                memory_bytes: memory.ok_or("--memory is missing")?,
                readable,
                executable,
            },
            command: args.collect(),
        })
    }

    fn carry_out(&self) -> Result<Infallible, String> {
        let [interpreter, arguments @ ..] = self.command.as_slice() else {
            return Err("no command".to_owned());
        };
        close_inherited_files().map_err(|error| format!("inherited files: {error}"))?;
        // A session of its own: no terminal to type into, and a process group for the parent to kill.
        setsid().map_err(|error| format!("setsid: {error}"))?;
        set_parent_process_death_signal(Some(Signal::KILL))
            .map_err(|error| format!("death signal: {error}"))?;
        // It may have died before the line above.
        if getppid().map(|pid| pid.as_raw_nonzero().get()) != i32::try_from(self.parent).ok() {
            return Err("the parent is gone".to_owned());
        }
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

fn number<T: std::str::FromStr>(value: &OsString) -> Result<T, String> {
    let parsed = value.to_str().and_then(|text| text.parse().ok());
    parsed.ok_or_else(|| format!("{value:?} is not a number"))
}

/// Closes what the server (or who started it) left open without close-on-exec: a log, a database, a socket.
fn close_inherited_files() -> io::Result<()> {
    let entries = fs::read_dir("/proc/self/fd")?.collect::<io::Result<Vec<_>>>()?;
    let numbers = entries
        .iter()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    for fd in numbers.filter(|fd: &i32| *fd > 2) {
        // The one that listed the folder is closed by now; others with the flag have owners here.
        let Ok(info) = fs::read_to_string(format!("/proc/self/fdinfo/{fd}")) else {
            continue;
        };
        if !closes_on_exec(&info) {
            nix::unistd::close(fd)?;
        }
    }
    Ok(())
}

fn closes_on_exec(fdinfo: &str) -> bool {
    let flags = fdinfo.lines().find_map(|line| line.strip_prefix("flags:"));
    let flags = flags.and_then(|octal| i32::from_str_radix(octal.trim(), 8).ok());
    flags.is_some_and(|flags| flags & libc::O_CLOEXEC != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_survive_the_command_line() {
        let orders = Orders {
            token: "t".to_owned(),
            parent: 7,
            policy: Policy {
                cpu_seconds: 5,
                memory_bytes: 1 << 40,
                readable: vec!["/usr/lib".into(), ".".into()],
                executable: vec!["/usr/bin/python3".into()],
            },
            command: vec!["python3".into(), "--".into(), "-".into()],
        };
        assert_eq!(Orders::from_args(orders.to_args()), Ok(orders));
    }

    #[test]
    fn bad_orders_are_refused() {
        for args in [
            &["--cpu", "x", "--"][..],
            &["--cpu"],
            &["--what", "1", "--"],
            &[],
        ] {
            let args = args.iter().map(OsString::from);
            assert!(Orders::from_args(args).is_err());
        }
    }

    #[test]
    fn the_close_on_exec_flag_is_read() {
        assert!(closes_on_exec("pos:\t0\nflags:\t02100000\nmnt_id:\t1\n"));
        assert!(!closes_on_exec("pos:\t0\nflags:\t0100000\n"));
        assert!(!closes_on_exec(""));
    }
}
