//! The command line: one file a command.

use std::process::ExitCode;

/// Parses the process arguments, runs the command and returns its exit code.
pub fn run() -> ExitCode {
    ExitCode::SUCCESS
}
