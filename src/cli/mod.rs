//! The command line: one file a command.

mod args;
mod backend;
mod bench;
mod chat;
mod chat_search;
mod config_file;
mod identity;
mod models;
mod prm;
mod progress;
mod serve;
mod setup;
mod traces;
mod train;

use std::process::ExitCode;

use clap::FromArgMatches;

use args::{BenchCommand, Cli, Command, TrainCommand};

/// Exit code of a sandbox that could not limit itself (the shell's for a command that cannot run).
const SANDBOX_FAILED: u8 = 126;

/// Becomes a sandboxed interpreter when the sandbox asks for it. Else parses the process arguments, runs the command and returns its exit code.
pub fn run() -> ExitCode {
    let mut args = std::env::args_os().skip(1);
    if args
        .next()
        .is_some_and(|arg| arg == ponder_sandbox::SUBCOMMAND)
    {
        // The parent knows the message by how it begins.
        eprintln!("{}", ponder_sandbox::exec_from_args(args));
        return ExitCode::from(SANDBOX_FAILED);
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
        Command::Models { json } => models::list(json),
        Command::Chat(args) => chat::run(&args),
        Command::Train { command } => match command {
            TrainCommand::ValueHead(args) => train::value_head(&args),
        },
        Command::Traces { command } => traces::run(&command),
        Command::Bench { command } => match command {
            BenchCommand::Engine(args) => bench::engine::run(&args),
            BenchCommand::ValueHead(args) => train::evaluate_head(&args),
            BenchCommand::Perplexity(args) => bench::perplexity::run(&args),
            BenchCommand::Adaptation(args) => bench::adaptation::run(&args),
            BenchCommand::Swift(args) => bench::swift::run(&args),
            BenchCommand::Speculative(args) => bench::speculative::run(&args),
            BenchCommand::Search(args) => bench::search::run(&args),
            BenchCommand::Traces(args) => bench::traces::run(&args),
            BenchCommand::Serve(args) => bench::serve::run(&args),
        },
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("ponder: {error:#}");
            ExitCode::FAILURE
        }
    }
}
