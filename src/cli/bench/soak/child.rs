//! The server under test: this same binary, as a process of its own.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

use super::args::BenchSoakArgs;

/// Keys of the clients, and the one that reads all traces.
pub(super) const KEYS: [&str; 3] = ["soak-key-a", "soak-key-b", "soak-key-c"];
pub(super) const TRACE_KEY: &str = "soak-trace-key";

/// Seconds that running requests get after SIGTERM.
const SHUTDOWN_TIMEOUT: u64 = 5;
/// Seconds after which a silent connection is closed.
pub(super) const HEADER_TIMEOUT: u64 = 3;
/// How long the model may take to load.
const START_TIMEOUT: Duration = Duration::from_secs(300);
/// How long the process may take to end once it was asked to.
const END_TIMEOUT: Duration = Duration::from_secs(SHUTDOWN_TIMEOUT + 20);
/// Lines of the log that are kept.
const KEPT_LINES: usize = 40;

/// What the servers have written on stderr, all of them.
#[derive(Debug, Default)]
pub(super) struct Log {
    pub num_panics: u64,
    pub num_errors: u64,
    pub num_warnings: u64,
    /// The first lines that tell of a panic or an error.
    pub complaints: Vec<String>,
    /// The last lines of any kind.
    last: VecDeque<String>,
}

impl Log {
    fn take(&mut self, line: String) {
        let is_panic = line.contains("panicked at") || line.contains("stack overflow");
        let is_error = line.contains(" ERROR ");
        self.num_panics += u64::from(is_panic);
        self.num_errors += u64::from(is_error);
        self.num_warnings += u64::from(line.contains(" WARN "));
        if (is_panic || is_error) && self.complaints.len() < KEPT_LINES {
            self.complaints.push(line.clone());
        }
        if self.last.len() >= KEPT_LINES {
            self.last.pop_front();
        }
        self.last.push_back(line);
    }

    pub fn tail(&self) -> String {
        let lines: Vec<&str> = self.last.iter().map(String::as_str).collect();
        lines.join("\n")
    }
}

pub(super) type SharedLog = Arc<Mutex<Log>>;

pub(super) fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A running server. It is killed when this is dropped.
#[derive(Debug)]
pub(super) struct Server {
    child: Child,
    pub pid: u32,
    /// As `127.0.0.1:8000`.
    pub address: String,
    pub started_in: Duration,
}

/// Where the server puts what is temporary.
pub(super) fn temporary(folder: &Path) -> PathBuf {
    folder.join("temporary")
}

/// The arguments of the server. What the command line says itself is not said twice.
fn arguments(args: &BenchSoakArgs, folder: &Path, port: u16) -> Vec<String> {
    let trace_db = folder.join("traces.db").to_string_lossy().into_owned();
    let mut words = vec!["serve".to_owned(), args.model.clone()];
    let values = [
        ("--port", port.to_string()),
        ("--trace-db", trace_db),
        ("--api-key", KEYS.join(",")),
        ("--trace-api-key", TRACE_KEY.to_owned()),
        ("--max-model-len", "1024".to_owned()),
        // Small, so that all of it is in use soon: memory that is touched late looks like a leak.
        ("--kv-cache-memory", "64M".to_owned()),
        ("--request-timeout", "120".to_owned()),
        ("--shutdown-timeout", SHUTDOWN_TIMEOUT.to_string()),
        ("--header-timeout", HEADER_TIMEOUT.to_string()),
    ];
    for (flag, value) in values {
        if !args.serves_with(flag) {
            words.extend([flag.to_owned(), value]);
        }
    }
    let mut switches = vec!["--metrics-without-auth"];
    if cfg!(target_os = "linux") {
        switches.push("--allow-code-execution");
    }
    let missing = switches.into_iter().filter(|flag| !args.serves_with(flag));
    words.extend(missing.map(str::to_owned));
    words.extend(args.serve.iter().cloned());
    words
}

impl Server {
    /// Starts a server over the traces in `folder` and waits until it has loaded its model.
    pub async fn start(
        args: &BenchSoakArgs,
        folder: &Path,
        port: u16,
        log: &SharedLog,
    ) -> anyhow::Result<Self> {
        let started = Instant::now();
        std::fs::create_dir_all(temporary(folder)).context("a folder for what is temporary")?;
        let program = std::env::current_exe().context("the path of this program")?;
        let mut child = Command::new(program)
            .args(arguments(args, folder, port))
            .env("TMPDIR", temporary(folder))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .context("the server does not start")?;
        let stderr = child.stderr.take().context("stderr is piped")?;
        let mut lines = BufReader::new(stderr).lines();
        let banner = async {
            while let Ok(Some(line)) = lines.next_line().await {
                let address = address(&line);
                locked(log).take(line);
                if address.is_some() {
                    return address;
                }
            }
            None
        };
        let found = tokio::time::timeout(START_TIMEOUT, banner).await;
        let address = found.context("the server did not load its model in time")?;
        let address = address.with_context(|| {
            let tail = locked(log).tail();
            format!("the server ended before it was ready:\n{tail}")
        })?;
        let log = Arc::clone(log);
        tokio::spawn(async move {
            while let Ok(Some(line)) = lines.next_line().await {
                locked(&log).take(line);
            }
        });
        let pid = child.id().context("the server has ended already")?;
        Ok(Self {
            child,
            pid,
            address,
            started_in: started.elapsed(),
        })
    }

    pub fn port(&self) -> u16 {
        let port = self.address.rsplit(':').next();
        port.and_then(|port| port.parse().ok()).unwrap_or(0)
    }

    /// Waits until the process ends by itself.
    pub async fn ended(&mut self) -> std::io::Result<ExitStatus> {
        self.child.wait().await
    }

    /// SIGKILL, and the end.
    pub async fn kill(&mut self) -> anyhow::Result<()> {
        self.child
            .kill()
            .await
            .context("the server cannot be killed")
    }

    /// SIGTERM (SIGKILL where there is none); how long the process took to end, and whether it
    /// ended well.
    pub async fn terminate(&mut self) -> anyhow::Result<Duration> {
        let started = Instant::now();
        let is_asked = terminate(self.pid);
        if !is_asked {
            self.kill().await?;
            return Ok(started.elapsed());
        }
        let Ok(status) = tokio::time::timeout(END_TIMEOUT, self.child.wait()).await else {
            self.kill().await?;
            anyhow::bail!(
                "the server still ran {} s after SIGTERM",
                END_TIMEOUT.as_secs()
            );
        };
        let status = status?;
        ensure!(
            status.success(),
            "after SIGTERM the server ended with {status}"
        );
        Ok(started.elapsed())
    }
}

#[cfg(unix)]
fn terminate(pid: u32) -> bool {
    use rustix::process::{Pid, Signal, kill_process};
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
    pid.is_some_and(|pid| kill_process(pid, Signal::TERM).is_ok())
}

#[cfg(not(unix))]
fn terminate(_: u32) -> bool {
    false
}

/// The address in the line that says that the model is loaded.
fn address(line: &str) -> Option<String> {
    let (_, rest) = line.split_once("http://")?;
    rest.split_whitespace().next().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: BenchSoakArgs,
    }

    #[test]
    fn flags_of_the_command_line_win() {
        let line = ["soak", "m", "--", "--kv-cache-memory=1G", "--port", "9"];
        let args = Line::parse_from(line).args;
        let words = arguments(&args, Path::new("/tmp/x"), 0);
        let count = |flag: &str| words.iter().filter(|word| word.starts_with(flag)).count();
        assert_eq!((count("--kv-cache-memory"), count("--port")), (1, 1));
        assert_eq!(words[..2], ["serve", "m"]);
        assert!(words.contains(&"/tmp/x/traces.db".to_owned()), "{words:?}");
        assert!(args.serves_with("--port") && !args.serves_with("--prm"));
    }

    #[test]
    fn the_banner_names_the_address_and_the_log_counts() {
        let line = "ponder 0.2.0 serves m on http://127.0.0.1:4711 (API under /v1)";
        assert_eq!(address(line).as_deref(), Some("127.0.0.1:4711"));
        assert_eq!(address("loading"), None);
        let mut log = Log::default();
        for index in 0..2 * KEPT_LINES {
            log.take(format!("line {index}"));
        }
        log.take("thread 'x' panicked at src/lib.rs:1:1".to_owned());
        log.take("2026-01-01 ERROR ponder: disk".to_owned());
        log.take("2026-01-01  WARN ponder: disk".to_owned());
        assert_eq!(
            (log.num_panics, log.num_errors, log.num_warnings),
            (1, 1, 1)
        );
        assert_eq!((log.complaints.len(), log.last.len()), (2, KEPT_LINES));
    }
}
