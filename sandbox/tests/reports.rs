//! Code with tests, and who would forge their report.
#![cfg(target_os = "linux")]

mod common;

use common::sandbox;
use ponder_sandbox::{Cancel, TestReport};

#[track_caller]
fn run_tests(code: &str, tests: &[&str]) -> TestReport {
    let tests: Vec<String> = tests.iter().map(|test| (*test).to_owned()).collect();
    let cancel = Cancel::new();
    sandbox()
        .run_tests(code, &tests, &cancel)
        .expect("a report")
}

#[test]
fn tests_are_counted() {
    let report = run_tests(
        "print('noise')\ndef f(x):\n    return x + 1\n",
        &[
            "assert f(1) == 2",
            "assert f(1) == 3, 'wrong\\nsum'",
            "for x in range(3):\n    assert f(x) == x + 1\n",
            "undefined",
        ],
    );
    assert_eq!((report.passed, report.total), (2, 4), "{report:?}");
    assert_eq!(
        report.first_failure.as_deref(),
        Some("test 2 `assert f(1) == 3, 'wrong\\nsum'`: AssertionError: wrong sum")
    );
    let all = run_tests(
        "s = \"\"\"é\\n'\\\"\x07\"\"\"",
        &["assert len(s) == 5, ascii(s)"],
    );
    assert!(all.all_passed(), "{all:?}");
    assert!(run_tests("pass", &[]).all_passed());
}

#[test]
fn code_that_fails_has_no_tests() {
    for (code, expected) in [
        ("def", "code: SyntaxError"),
        ("1/0", "code: ZeroDivisionError: division by zero"),
        ("import sys; sys.exit(0)", "code: SystemExit: 0"),
        ("raise KeyboardInterrupt", "code: KeyboardInterrupt"),
        ("import os; os._exit(0)", "code: did not finish: exited"),
        (
            "import os; os._exit(3)",
            "code: did not finish: exited with code 3",
        ),
        (
            "import os; os.abort()",
            "code: did not finish: killed by signal 6",
        ),
        (
            "class E(Exception):\n    def __str__(self): raise self\nraise E",
            "code: an error without a text",
        ),
    ] {
        let report = run_tests(code, &["pass"]);
        assert_eq!(report.passed, 0, "{code}: {report:?}");
        let failure = report.first_failure.expect("a failure");
        assert!(failure.starts_with(expected), "{code}: {failure}");
    }
}

#[test]
fn a_slow_test_fails_alone() {
    let report = run_tests(
        "import time",
        &["time.sleep(30)", "pass", "while True: pass", "pass"],
    );
    assert_eq!(report.passed, 2, "{report:?}");
    assert_eq!(
        report.first_failure.as_deref(),
        Some("test 1 `time.sleep(30)`: Overtime: took more than 1 s")
    );
}

#[test]
fn what_was_reported_before_a_crash_counts() {
    let report = run_tests("import os", &["pass", "os._exit(0)", "pass"]);
    assert_eq!((report.passed, report.total), (1, 3), "{report:?}");
    assert_eq!(
        report.first_failure.as_deref(),
        Some("test 2 `os._exit(0)`: did not finish: exited")
    );
}

#[test]
fn a_forged_report_does_not_count() {
    for code in [
        "print('ok\\n' * 9)\nimport os; os._exit(0)",
        "import os\nfor fd in range(64):\n    try: os.write(fd, b'\\n' + b'0' * 32 + b' ok\\n')\n    except OSError: pass\nos._exit(0)",
        // Replacing what the driver might use.
        "import os, builtins, signal, sys\nbuiltins.exec = builtins.compile = builtins.str = builtins.next = lambda *_: 'ok'\n\
         os.write = signal.setitimer = lambda *_: 2\nos._exit = sys.exit = print",
        "import __main__\nassert not hasattr(__main__, '_drive')\nassert not [n for n in vars(__main__) if not n.startswith('__')]\n__main__.__dict__.clear()",
        "import sys\nsys.stdout = sys.stderr = None",
        "import sys\nsys.modules.clear()",
    ] {
        let report = run_tests(code, &["assert 1 == 2"]);
        assert_eq!((report.passed, report.total), (0, 1), "{code}: {report:?}");
        assert!(report.first_failure.is_some());
    }
}

#[test]
fn noise_does_not_drown_the_report() {
    let code = "import os, sys\nprint('x' * 1_000_000)\nos.write(1, b'y' * 200_000)\nsys.stdout.buffer.write(b'z' * 200_000)\nsys.stdout.flush()";
    let report = run_tests(
        code,
        &[
            "print('more' * 100_000)",
            "import contextlib, io\nwith contextlib.redirect_stdout(io.StringIO()) as out: print(1)\nassert out.getvalue() == '1\\n'",
        ],
    );
    assert!(report.all_passed(), "{report:?}");
}

#[test]
fn classes_and_types_work_in_tested_code() {
    let code = "from __future__ import annotations\nimport dataclasses, enum, typing, collections, pickle\n\
        @dataclasses.dataclass\nclass P:\n    x: int = 1\n    y: typing.List[int] = dataclasses.field(default_factory=list)\n\
        class C(enum.Enum): A = 1\nN = collections.namedtuple('N', 'a b')\n\
        if __name__ == '__main__': raise AssertionError";
    let report = run_tests(
        code,
        &[
            "assert pickle.loads(pickle.dumps(P())) == P()",
            "assert C.A.value == N(1, 2).a",
            "assert typing.get_type_hints(P)['x'] is int",
        ],
    );
    assert!(report.all_passed(), "{report:?}");
}
