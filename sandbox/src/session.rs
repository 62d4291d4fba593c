//! One block of a session: code that goes on where the blocks before it ended.
//!
//! There is no process between the blocks. Those before run again, with what they print thrown
//! away, in one namespace and in their order; one that raises leaves what it did before that, as in
//! a notebook. So a session's state is a function of its texts, and two that begin alike can go
//! different ways.

use std::fmt::Write;
use std::time::Duration;

use super::tests_program::push_literal;
use super::{RunOutcome, Status};

/// Where a program ends that catches what the timer raises.
const HARD_CPU_SECONDS: u64 = 1;

/// The last argument is a descriptor that nobody reads: what earlier blocks print goes there, and
/// what any block writes to stderr. The real stderr is left for the report, which is the last line
/// of a traceback. An expression at a block's end is shown, as in a notebook.
const DRIVER: &str = r#"
def _drive(seconds, earlier, code):
    import _ast, os, signal, sys
    run, build, kind, every, text, quit = exec, compile, type, BaseException, str, SystemExit
    write, leave, clock, arm = os.write, os._exit, signal.ITIMER_PROF, signal.setitimer
    flush, raw = sys.stdout.flush, os.dup2
    sys.stdout.reconfigure(encoding="utf-8", errors="backslashreplace", line_buffering=True)
    shown, report, sink = os.dup(1), os.dup(2), int(sys.argv.pop())
    raw(sink, 1)
    raw(sink, 2)
    os.close(sink)
    module = kind(sys)("__main__")
    sys.modules["__main__"] = module
    if any("random" in block for block in (*earlier, code)):
        import random
        random.seed(0)

    class Overtime(BaseException):
        pass

    def ring(number, frame):
        raise Overtime

    def describe(error):
        if isinstance(error, Overtime):
            return "TimeoutError: took more than %g s of processor time" % seconds
        if isinstance(error, quit):
            code = error.code
            return " ".join(code.split())[:300] if kind(code) is text else ""
        try:
            name, detail = kind(error).__name__, " ".join(text(error).split())
            return (name + ": " + detail if detail else name)[:300]
        except every:
            return "an error without a text"

    def attempt(source):
        try:
            tree = build(source, "<block>", "exec", _ast.PyCF_ONLY_AST, True)
            last = tree.body[-1:]
            if last and kind(last[0]) is _ast.Expr:
                tree.body.pop()
            else:
                last = None
            run(build(tree, "<block>", "exec", 0, True), module.__dict__)
            if last:
                tree = _ast.Interactive(last)
                run(build(tree, "<block>", "single", 0, True), module.__dict__)
        except every as error:
            return describe(error)

    signal.signal(signal.SIGPROF, ring)
    arm(clock, seconds)
    failure = ""
    try:
        for block in earlier:
            attempt(block)
        flush()
        raw(shown, 1)
        failure = attempt(code)
        flush()
    except every as error:
        failure = failure or describe(error)
    arm(clock, 0)
    if failure:
        write(report, failure.encode("utf-8", "replace"))
    leave(0)


globals().pop("_drive")"#;

/// A block of Python and those before it in its session.
#[derive(Debug, Clone, Copy)]
pub struct Block<'a> {
    /// The oldest first.
    pub earlier: &'a [&'a str],
    pub code: &'a str,
    /// Processor time of all of it together.
    pub cpu: Duration,
    /// From start to kill.
    pub wall: Duration,
    /// Kept of what the block prints. Who prints more gets `EPIPE`.
    pub output_bytes: usize,
}

impl Block<'_> {
    /// Whole seconds, after which the kernel ends it.
    pub(super) fn cpu_seconds(&self) -> u64 {
        self.cpu.as_secs_f64().ceil() as u64 + HARD_CPU_SECONDS
    }

    pub(super) fn program(&self) -> String {
        let mut program = String::with_capacity(DRIVER.len() + 2 * self.code.len());
        program.push_str(DRIVER);
        let _ = write!(program, "({}, [", self.cpu.as_secs_f64());
        for block in self.earlier {
            push_literal(&mut program, block);
            program.push(',');
        }
        program.push_str("], ");
        push_literal(&mut program, self.code);
        program.push_str(")\n");
        program
    }

    /// What a [`Self::program`] left.
    pub(super) fn read(&self, outcome: RunOutcome) -> BlockOutcome {
        let is_out_of_time = match outcome.status {
            Status::TimedOut => true,
            Status::Killed { signal } => [SIGKILL, SIGXCPU].contains(&signal),
            Status::Passed | Status::Failed { .. } => {
                outcome.stderr.starts_with("TimeoutError: took more than")
            }
        };
        let error = match outcome.status {
            Status::TimedOut => {
                let wall = self.wall.as_secs_f64();
                format!("TimeoutError: took more than {wall} s")
            }
            Status::Killed { .. } if is_out_of_time => {
                let cpu = self.cpu.as_secs_f64();
                format!("TimeoutError: took more than {cpu} s of processor time")
            }
            Status::Killed { signal } => format!("killed by signal {signal}"),
            Status::Failed { exit_code } if outcome.stderr.is_empty() => {
                format!("exited with code {exit_code}")
            }
            Status::Passed | Status::Failed { .. } => outcome.stderr,
        };
        BlockOutcome {
            stdout: outcome.stdout,
            error: Some(error).filter(|error| !error.is_empty()),
            is_out_of_time,
            wall: outcome.wall,
        }
    }
}

/// Both are what a limit on processor time ends with.
const SIGKILL: i32 = 9;
const SIGXCPU: i32 = 24;

/// What became of a block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlockOutcome {
    /// What it printed, and what its last expression was worth.
    pub stdout: String,
    /// The last line of the traceback, or which limit ended it.
    pub error: Option<String>,
    pub is_out_of_time: bool,
    pub wall: Duration,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_ended_a_block_is_told() {
        let block = Block {
            earlier: &[],
            code: "",
            cpu: Duration::from_millis(1500),
            wall: Duration::from_secs(6),
            output_bytes: 9,
        };
        assert_eq!(block.cpu_seconds(), 3);
        for (status, stderr, error, is_out_of_time) in [
            (Status::Passed, "", None, false),
            (Status::Passed, "E: x", Some("E: x"), false),
            (
                Status::Failed { exit_code: 3 },
                "",
                Some("exited with code 3"),
                false,
            ),
            (
                Status::Killed { signal: 11 },
                "",
                Some("killed by signal 11"),
                false,
            ),
            (
                Status::TimedOut,
                "",
                Some("TimeoutError: took more than 6 s"),
                true,
            ),
            (
                Status::Killed { signal: SIGXCPU },
                "",
                Some("TimeoutError: took more than 1.5 s of processor time"),
                true,
            ),
        ] {
            let outcome = block.read(RunOutcome {
                status,
                stdout: "out".to_owned(),
                stderr: stderr.to_owned(),
                wall: Duration::ZERO,
            });
            assert_eq!(outcome.error.as_deref(), error);
            assert_eq!(
                (outcome.is_out_of_time, outcome.stdout.as_str()),
                (is_out_of_time, "out")
            );
        }
    }
}
