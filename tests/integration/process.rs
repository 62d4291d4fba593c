//! The real binary as a process of its own.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

pub use crate::support::TEST_MODEL as MODEL;
use crate::support::install_tls;

/// Serves the tests' model in little memory.
pub const SMALL: [&str; 6] = [
    "serve",
    MODEL,
    "--max-model-len",
    "2048",
    "--kv-cache-memory",
    "256M",
];

pub struct Process {
    pub child: Child,
    /// Up to and with `/v1`.
    pub base_url: String,
}

impl Process {
    /// Serves the tests' model on a free port; traces go to `traces.db` in `folder`.
    pub fn start(folder: &Path, args: &[&str]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ponder"));
        Self::start_as(command.args(SMALL), folder, args)
    }

    /// The same by a command that ends in running the binary with the arguments it is given.
    pub fn start_as(command: &mut Command, folder: &Path, args: &[&str]) -> Self {
        install_tls();
        let mut child = command
            .args(["--port", "0", "--trace-db"])
            .arg(folder.join("traces.db"))
            .args(args)
            .stderr(Stdio::piped())
            .spawn()
            .expect("the binary starts");
        let stderr = BufReader::new(child.stderr.take().expect("stderr is piped"));
        let mut lines = stderr.lines().map_while(Result::ok);
        // The banner names the address.
        let banner =
            lines.find_map(|line| line.split_once("http://").map(|(_, rest)| rest.to_owned()));
        let Some(banner) = banner else {
            let _ = child.kill();
            let status = child.wait();
            panic!("the server did not start: {status:?}");
        };
        // What the server says later belongs in a failing test's output.
        std::thread::spawn(move || lines.for_each(|line| eprintln!("server: {line}")));
        let address = banner.split_whitespace().next().unwrap_or_default();
        Self {
            base_url: format!("http://{address}/v1"),
            child,
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
