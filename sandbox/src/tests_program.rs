//! Code and its tests as one program that reports on itself.
//!
//! The report is as honest as the interpreter: each line starts with a random token of its own, so
//! a program that prints, exits or raises cannot pass by accident or by guessing, and spent tokens
//! are worth nothing. A program that sets out to cheat still can: the tokens lie in its own memory,
//! where it finds them by walking the frames.

use std::collections::HashMap;
use std::fmt::Write;
use std::time::Duration;

use super::{RunOutcome, Status};

/// Processor time of one test, and a quarter of the time that may pass: how much a program gets done
/// within a time depends on who else computes. The code's own time is bounded by the limits of the
/// process alone.
pub(super) const TEST_TIME: Duration = Duration::from_secs(1);
/// A token, a verdict, and its share of the one message.
pub(super) const REPORT_BYTES_A_TEST: usize = 2048;
const SHOWN_CHARS: usize = 200;

/// Its names are local and bound before any tested code runs, so that replacing builtins or
/// functions of modules changes nothing here. What tested code prints goes to the sink whose number
/// is the last argument: it costs nobody anything, and stdout is left for the report.
const DRIVER: &str = r#"
def _drive(tokens, seconds, code, tests):
    import os, signal, sys
    run, build, kind, every, text, take = exec, compile, type, BaseException, str, next
    write, leave, handle, arm = os.write, os._exit, signal.signal, signal.setitimer
    timers = ((signal.SIGPROF, signal.ITIMER_PROF, 1), (signal.SIGALRM, signal.ITIMER_REAL, 4))
    out, sink = os.dup(1), int(sys.argv.pop())
    os.dup2(sink, 1)
    os.dup2(sink, 2)
    os.close(sink)
    module = kind(sys)("solution")
    sys.modules["solution"] = module

    class Overtime(BaseException):
        pass

    def ring(number, frame):
        raise Overtime("took more than %g s" % seconds)

    def describe(error):
        try:
            name, detail = kind(error).__name__, " ".join(text(error).split())
            return (name + ": " + detail if detail else name)[:300]
        except every:
            return "an error without a text"

    def attempt(source, name, limit):
        try:
            try:
                program = build(source, name, "exec", 0, True)
                for number, timer, times in timers:
                    handle(number, ring)
                    arm(timer, limit * times)
                run(program, module.__dict__)
            finally:
                for number, timer, times in timers:
                    arm(timer, 0)
        except every as error:
            return describe(error)

    def report(failure):
        line = take(tokens) + (" ok\n" if failure is None else " " + failure + "\n")
        write(out, line.encode("utf-8", "replace"))

    failure = attempt(code, "<code>", 0)
    report(failure)
    if failure is None:
        for number, test in enumerate(tests, 1):
            failure = attempt(test, "<test %d>" % number, seconds)
            report(failure)
    leave(0)


globals().pop("_drive")"#;

/// How the tests of one program went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TestReport {
    pub passed: usize,
    pub total: usize,
    /// Of the code, or of the first test that did not pass.
    pub first_failure: Option<String>,
}

impl TestReport {
    pub fn all_passed(&self) -> bool {
        self.first_failure.is_none()
    }
}

/// A program that runs `code` as a module named `solution`, then each of `tests` in its namespace
/// for at most `test_time`. It writes one line `<token> ok` or `<token> <failure>` for the code and
/// for each test, as they end, with `tokens` in order: one more than there are tests. If the code
/// fails, no test is run. Its last argument is a descriptor for what the code prints.
pub fn tests_program(
    code: &str,
    tests: &[String],
    tokens: &[String],
    test_time: Duration,
) -> String {
    let mut program = String::with_capacity(DRIVER.len() + 2 * code.len());
    program.push_str(DRIVER);
    program.push_str("(iter(\"");
    program.push_str(&tokens.join(" "));
    let _ = write!(program, "\".split()), {}, ", test_time.as_secs_f64());
    push_literal(&mut program, code);
    program.push_str(", [");
    for test in tests {
        push_literal(&mut program, test);
        program.push(',');
    }
    program.push_str("])\n");
    program
}

/// `text` as a Python string on one line.
pub(super) fn push_literal(program: &mut String, text: &str) {
    program.push('"');
    for char in text.chars() {
        match char {
            '"' | '\\' => program.extend(['\\', char]),
            '\n' => program.push_str("\\n"),
            _ if char.is_control() => {
                let _ = write!(program, "\\u{:04x}", u32::from(char));
            }
            _ => program.push(char),
        }
    }
    program.push('"');
}

/// Reads what a [`tests_program`] wrote. Only its lines count, never the exit code.
pub(super) fn read_report(outcome: &RunOutcome, tests: &[String], tokens: &[String]) -> TestReport {
    // One pass: who tests chooses how many tokens there are, and who is tested how many lines.
    let mut verdicts: HashMap<&str, Option<&str>> =
        tokens.iter().map(|token| (token.as_str(), None)).collect();
    for (token, told) in outcome
        .stdout
        .lines()
        .filter_map(|line| line.split_once(' '))
    {
        if let Some(verdict) = verdicts.get_mut(token) {
            verdict.get_or_insert(told);
        }
    }
    let verdict = |token: &String| match verdicts.get(token.as_str()) {
        Some(Some("ok")) => Ok(()),
        Some(Some(failure)) => Err((*failure).to_owned()),
        _ => Err(ending(outcome)),
    };
    let mut report = TestReport {
        passed: 0,
        total: tests.len(),
        first_failure: None,
    };
    let mut tokens = tokens.iter().map(verdict);
    if let Some(Err(failure)) = tokens.next() {
        report.first_failure = Some(format!("code: {failure}"));
        return report;
    }
    for (number, (test, verdict)) in (1..).zip(tests.iter().zip(tokens)) {
        match verdict {
            Ok(()) => report.passed += 1,
            Err(failure) => {
                let describe = || format!("test {number} `{}`: {failure}", shorten(test));
                report.first_failure.get_or_insert_with(describe);
            }
        }
    }
    report
}

fn ending(outcome: &RunOutcome) -> String {
    let how = match outcome.status {
        Status::Passed => "exited".to_owned(),
        Status::Failed { exit_code } => format!("exited with code {exit_code}"),
        Status::Killed { signal } => format!("killed by signal {signal}"),
        Status::TimedOut => "out of time".to_owned(),
    };
    let last = outcome.stderr.lines().rfind(|line| !line.trim().is_empty());
    match (outcome.status, last) {
        (Status::Failed { .. }, Some(line)) => {
            format!("did not finish: {how}: {}", shorten(line))
        }
        _ => format!("did not finish: {how}"),
    }
}

fn shorten(text: &str) -> String {
    let mut short: String = text.trim().chars().take(SHOWN_CHARS).collect();
    if short.len() < text.trim().len() {
        short.push('…');
    }
    short
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn literals_are_python() {
        let mut literal = String::new();
        push_literal(&mut literal, "a\"\\\n\t\0\u{85}é😀");
        assert_eq!(literal, "\"a\\\"\\\\\\n\\u0009\\u0000\\u0085é😀\"");
    }

    fn report(stdout: &str, status: Status) -> TestReport {
        let outcome = RunOutcome {
            status,
            stdout: stdout.to_owned(),
            stderr: String::new(),
            wall: Duration::ZERO,
        };
        let strings = |texts: &[&str]| -> Vec<String> {
            texts.iter().map(|text| (*text).to_owned()).collect()
        };
        read_report(
            &outcome,
            &strings(&["a", "b"]),
            &strings(&["t0", "t1", "t2"]),
        )
    }

    #[test]
    fn only_the_lines_with_tokens_count() {
        let all = report("t0 ok\nt1 ok\nt2 ok\n", Status::Failed { exit_code: 3 });
        assert_eq!((all.passed, all.all_passed()), (2, true));
        let none = report("ok\n", Status::Passed);
        assert_eq!(none.passed, 0);
        assert_eq!(
            none.first_failure.as_deref(),
            Some("code: did not finish: exited")
        );
        let some = report("t0 ok\nt1 ok\n", Status::TimedOut);
        assert_eq!(some.passed, 1);
        assert_eq!(
            some.first_failure.as_deref(),
            Some("test 2 `b`: did not finish: out of time")
        );
    }

    #[test]
    fn reading_takes_time_of_lines_and_tests_not_of_their_product() {
        let many = 20_000;
        let numbered = |name: &str| (0..=many).map(|number| format!("{name}{number}")).collect();
        let (tests, tokens): (Vec<String>, Vec<String>) = (numbered("assert "), numbered("t"));
        let outcome = RunOutcome {
            status: Status::TimedOut,
            stdout: "\n".repeat(many) + &"x \n".repeat(many * 10),
            stderr: String::new(),
            wall: Duration::ZERO,
        };
        // 4,000,000,000 comparisons would not end.
        assert_eq!(read_report(&outcome, &tests[1..], &tokens).passed, 0);
    }

    #[test]
    fn the_first_verdict_of_a_token_counts() {
        let forged = report("t0 ok\nt1 AssertionError\nt1 ok\nt2 ok\n", Status::Passed);
        assert_eq!(forged.passed, 1);
        assert_eq!(
            forged.first_failure.as_deref(),
            Some("test 1 `a`: AssertionError")
        );
    }
}
