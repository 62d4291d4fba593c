//! The smallest host of the sandbox: knows the hidden subcommands and nothing else.

use std::ffi::{OsStr, OsString};
use std::io::Write;
use std::process::ExitCode;

use ponder_sandbox::{
    ConfinedInput, Limits, SUBCOMMAND, Sandbox, confine_from_args, exec_from_args, protections,
};

/// Of a process that could not limit itself.
const NOT_LIMITED: u8 = 126;
/// What an attempt at something forbidden ends with, if it worked.
const WORKED: u8 = 7;
/// Runs its argument as a program, as a server does: for the tests.
const HOST: &str = "host";
/// Computes on its input, as its first argument says: for the tests.
const COMPUTE: &str = "compute";

fn main() -> ExitCode {
    let mut args = std::env::args_os().skip(1);
    let subcommand = args.next();
    match subcommand.as_deref().and_then(OsStr::to_str) {
        Some(SUBCOMMAND) => {
            eprintln!("{}", exec_from_args(args));
            ExitCode::from(NOT_LIMITED)
        }
        Some(COMPUTE) => match confine_from_args(args) {
            Ok(input) => compute(&input),
            Err(error) => {
                eprintln!("{error}");
                ExitCode::from(NOT_LIMITED)
            }
        },
        Some(HOST) => host(args.next()),
        _ => {
            println!("{:?}", protections());
            ExitCode::SUCCESS
        }
    }
}

fn host(program: Option<OsString>) -> ExitCode {
    let program = program.and_then(|program| program.into_string().ok());
    let sandbox = Sandbox::new("/proc/self/exe".into(), None, Limits::default());
    match sandbox.and_then(|sandbox| sandbox.run(&program.unwrap_or_default())) {
        Ok(outcome) => {
            println!("{outcome:?}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn compute(input: &ConfinedInput) -> ExitCode {
    let kind = input.args.first().and_then(|kind| kind.to_str());
    match kind {
        Some("echo") => wrote(&input.bytes),
        Some("flood") => {
            while wrote(&input.bytes) == ExitCode::SUCCESS {}
            ExitCode::FAILURE
        }
        Some("spin") => loop {
            std::hint::black_box(());
        },
        Some("sleep") => loop {
            std::thread::park();
        },
        Some("allocate") => wrote(&vec![1; 8 << 30]),
        Some("recurse") => wrote(depth(&input.bytes).to_string().as_bytes()),
        Some("panic") => panic!("at {} bytes", input.bytes.len()),
        Some("abort") => std::process::abort(),
        Some("thread") => tried(std::thread::Builder::new().spawn(|| ())),
        Some("open") => tried(std::fs::File::open("/etc/passwd")),
        Some("stat") => tried(std::fs::metadata("/etc/passwd")),
        Some("connect") => tried(std::net::UdpSocket::bind("127.0.0.1:0")),
        Some("start") => tried(std::process::Command::new("/bin/true").spawn()),
        _ => ExitCode::FAILURE,
    }
}

fn wrote(bytes: &[u8]) -> ExitCode {
    match std::io::stdout().write_all(bytes) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

fn tried<T>(result: std::io::Result<T>) -> ExitCode {
    match result {
        Ok(_) => ExitCode::from(WORKED),
        Err(_) => ExitCode::SUCCESS,
    }
}

/// How many parentheses open at the start, a frame each.
fn depth(bytes: &[u8]) -> usize {
    match bytes.split_first() {
        Some((b'(', rest)) => std::hint::black_box(depth(rest)) + 1,
        _ => 0,
    }
}
