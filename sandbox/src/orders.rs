//! What the parent asks of a hidden subcommand, as flags.

use std::ffi::OsString;
use std::fmt::Write;
use std::path::PathBuf;

use rustix::rand::{GetRandomFlags, getrandom};

use super::isolation::Isolation;
use super::policy::Policy;

/// What the parent asks of the subcommand.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Orders {
    /// Proves to the parent that an error message is this process's: no program that it becomes
    /// knows it.
    pub token: String,
    pub parent: u32,
    pub nice: i32,
    /// `None` for a computation, which opens no files and needs no threads counted.
    pub isolation: Option<Isolation>,
    /// One more argument is the number of a descriptor that swallows what is written to it.
    pub has_sink: bool,
    pub policy: Policy,
    /// The interpreter and its arguments, or the arguments of a computation.
    pub command: Vec<OsString>,
}

impl Orders {
    pub fn to_args(&self) -> Vec<OsString> {
        let mut args: Vec<OsString> = Vec::new();
        let mut flag = |name: &str, value: OsString| args.extend([name.into(), value]);
        flag("--token", (&self.token).into());
        flag("--parent", self.parent.to_string().into());
        flag("--nice", self.nice.to_string().into());
        if let Some(isolation) = self.isolation {
            flag("--isolation", isolation.name().into());
        }
        flag("--sink", u8::from(self.has_sink).to_string().into());
        flag("--cpu", self.policy.cpu_seconds.to_string().into());
        flag("--memory", self.policy.memory_bytes.to_string().into());
        flag("--threads", self.policy.max_threads.to_string().into());
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

    pub fn from_args(args: impl IntoIterator<Item = OsString>) -> Result<Self, String> {
        let mut args = args.into_iter();
        let (mut token, mut parent, mut nice, mut sink) = (None, None, None, None);
        let mut isolation = None;
        let (mut cpu, mut memory, mut threads) = (None, None, None);
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
                Some("--nice") => nice = Some(number(&value)?),
                Some("--isolation") => {
                    let known = Isolation::from_name(&value);
                    isolation = Some(known.ok_or_else(|| format!("{value:?} is no isolation"))?);
                }
                Some("--sink") => sink = Some(number::<u8>(&value)? > 0),
                Some("--cpu") => cpu = Some(number(&value)?),
                Some("--memory") => memory = Some(number(&value)?),
                Some("--threads") => threads = Some(number(&value)?),
                Some("--read") => readable.push(PathBuf::from(value)),
                Some("--execute") => executable.push(PathBuf::from(value)),
                _ => return Err(format!("unknown flag {flag:?}")),
            }
        }
        Ok(Self {
            token: token.ok_or("--token is missing")?,
            parent: parent.ok_or("--parent is missing")?,
            nice: nice.ok_or("--nice is missing")?,
            isolation,
            has_sink: sink.ok_or("--sink is missing")?,
            policy: Policy {
                cpu_seconds: cpu.ok_or("--cpu is missing")?,
                memory_bytes: memory.ok_or("--memory is missing")?,
                max_threads: threads.ok_or("--threads is missing")?,
                readable,
                executable,
            },
            command: args.collect(),
        })
    }
}

fn number<T: std::str::FromStr>(value: &OsString) -> Result<T, String> {
    let parsed = value.to_str().and_then(|text| text.parse().ok());
    parsed.ok_or_else(|| format!("{value:?} is not a number"))
}

/// 128 bits that no program can guess.
pub(super) fn random_token() -> Result<String, String> {
    let mut bytes = [0u8; 16];
    let filled =
        getrandom(&mut bytes, GetRandomFlags::empty()).map_err(|error| error.to_string())?;
    if filled != bytes.len() {
        return Err("no random bytes".to_owned());
    }
    Ok(bytes.iter().fold(String::new(), |mut token, byte| {
        let _ = write!(token, "{byte:02x}");
        token
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_survive_the_command_line() {
        let orders = Orders {
            token: "t".to_owned(),
            parent: 7,
            nice: 19,
            isolation: Some(Isolation::ALL[1].1),
            has_sink: true,
            policy: Policy {
                cpu_seconds: 5,
                memory_bytes: 1 << 40,
                max_threads: 9,
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
            &["--"],
            &[],
        ] {
            let args = args.iter().map(OsString::from);
            assert!(Orders::from_args(args).is_err());
        }
    }
}
