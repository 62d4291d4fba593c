//! The command line: one file a command.

mod args;
mod backend;
mod banner;
mod bench;
mod chat;
mod chat_search;
mod config_file;
mod connection_args;
mod device;
mod doctor;
mod encoder_args;
mod engine_args;
mod grammars;
mod identity;
mod interrupt;
mod manual;
mod models;
mod output_args;
mod phases;
mod prm;
mod programs;
mod progress;
mod remedy;
mod secrets;
mod serve;
mod setup;
mod signals;
mod terminal;
mod traces;
mod train;
mod value_adapters;
mod values;
mod work_args;

use std::ffi::{OsStr, OsString};
use std::io::Write;
use std::process::ExitCode;

use clap::FromArgMatches;

use args::{Cli, Command};

use crate::reward::{CHECK_SCHEMA, check_schema};

/// Exit code of a sandbox that could not limit itself (the shell's for a command that cannot run).
const SANDBOX_FAILED: u8 = 126;

/// Becomes what the process that started it wants: a sandboxed interpreter, or a check of an untrusted
/// schema. Else parses the process arguments, runs the command and returns its exit code.
pub fn run() -> ExitCode {
    let mut args = std::env::args_os().skip(1);
    let subcommand = args.next();
    match subcommand.as_deref().and_then(OsStr::to_str) {
        Some(ponder_sandbox::SUBCOMMAND) => {
            // The parent knows the message by how it begins.
            eprintln!("{}", ponder_sandbox::exec_from_args(args));
            return ExitCode::from(SANDBOX_FAILED);
        }
        Some(CHECK_SCHEMA) => return checked_schema(args),
        _ => {}
    }
    let matches = match config_file::matches(std::env::args_os()) {
        Ok(matches) => matches,
        Err(error) => error.exit(),
    };
    let cli = match Cli::from_arg_matches(&matches) {
        Ok(cli) => cli,
        Err(error) => error.exit(),
    };
    let result = match cli.command {
        Command::Serve(args) => serve::run(&args),
        Command::Pull { model } => models::pull(&model),
        Command::Models { json, verify } => models::list(json, verify),
        Command::Chat(args) => chat::run(&args),
        Command::Train { command } => train::run(&command),
        Command::Traces { command } => traces::run(&command),
        Command::Bench { command } => bench::run(&command),
        Command::Doctor(args) => doctor::run(&args),
        Command::Completions { shell } => manual::completions(shell),
        Command::Man { out } => manual::man(out.as_deref()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Whoever read it may be gone.
            let _ = writeln!(std::io::stderr(), "ponder: {error:#}");
            match interrupt::is_stopped() {
                true => ExitCode::from(interrupt::EXIT_CODE),
                false => ExitCode::FAILURE,
            }
        }
    }
}

/// The child's part of [`crate::reward::SchemaChecker`].
fn checked_schema(args: impl Iterator<Item = OsString>) -> ExitCode {
    let input = match ponder_sandbox::confine_from_args(args) {
        Ok(input) => input,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::from(SANDBOX_FAILED);
        }
    };
    let written = match check_schema(&input) {
        Ok(answer) => std::io::stdout().write_all(&answer),
        Err(error) => Err(error.into()),
    };
    match written {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}
