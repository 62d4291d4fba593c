//! The `ponder` binary: parses arguments and hands over to [`ponder::cli`].

use std::process::ExitCode;

fn main() -> ExitCode {
    ponder::cli::run()
}
