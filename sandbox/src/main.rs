//! The smallest host of the sandbox: knows the hidden subcommand and nothing else.

use std::process::ExitCode;

fn main() -> ExitCode {
    let mut args = std::env::args_os().skip(1);
    if args
        .next()
        .is_some_and(|arg| arg == ponder_sandbox::SUBCOMMAND)
    {
        eprintln!("{}", ponder_sandbox::exec_from_args(args));
        return ExitCode::from(126);
    }
    println!("{:?}", ponder_sandbox::protections());
    ExitCode::SUCCESS
}
