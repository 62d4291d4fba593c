//! Blocks of a session: state, what is shown, what ends them.
#![cfg(target_os = "linux")]

mod common;

use std::time::Duration;

use common::{limits, sandbox_with};
use ponder_sandbox::{Block, BlockOutcome, Cancel, Limits, RunError, Sandbox};

fn sandbox() -> Sandbox {
    sandbox_with(limits())
}

fn block<'a>(earlier: &'a [&'a str], code: &'a str) -> Block<'a> {
    Block {
        earlier,
        code,
        cpu: Duration::from_secs(2),
        wall: Duration::from_secs(60),
        output_bytes: 4096,
    }
}

fn run(earlier: &[&str], code: &str) -> BlockOutcome {
    let block = block(earlier, code);
    sandbox().run_block(&block, &Cancel::new()).expect("a run")
}

/// What is shown, and the error.
fn shown(earlier: &[&str], code: &str) -> (String, Option<String>) {
    let outcome = run(earlier, code);
    assert!(!outcome.is_out_of_time, "{outcome:?}");
    (outcome.stdout, outcome.error)
}

#[test]
fn a_block_shows_what_it_prints_and_its_last_value() {
    for (code, stdout, error) in [
        ("print('é')\n6 * 7", "é\n42\n", None),
        ("x = 1", "", None),
        (
            "print(1)\n1 / 0\nprint(2)",
            "1\n",
            Some("ZeroDivisionError: division by zero"),
        ),
        ("raise ValueError('a\\nb')", "", Some("ValueError: a b")),
        ("input()", "", Some("EOFError: EOF when reading a line")),
        (
            "import sys\nprint('seen', file=sys.stderr)\nsys.exit()",
            "",
            None,
        ),
        ("import os\nos._exit(3)", "", Some("exited with code 3")),
        (
            "if __name__ == '__main__':\n    print('main')",
            "main\n",
            None,
        ),
    ] {
        let expected = (stdout.to_owned(), error.map(str::to_owned));
        assert_eq!(shown(&[], code), expected, "{code}");
    }
    let (_, error) = shown(&[], "x = (");
    assert!(error.is_some_and(|error| error.starts_with("SyntaxError: ")));
}

#[test]
fn a_block_goes_on_where_those_before_it_ended() {
    let earlier = [
        "import random\nprint('thrown away')\nx = random.random()",
        "def double(y):\n    return 2 * y\n1 / 0\nx = None",
    ];
    let (stdout, error) = shown(&earlier, "print(double(x) == 2 * x)\nx");
    assert_eq!(error, None);
    let own = shown(&[], "import random\nrandom.random()").0;
    assert_eq!(stdout, format!("True\n{own}"));
}

#[test]
fn limits_end_a_block() {
    let short = |code| Block {
        cpu: Duration::from_millis(300),
        output_bytes: 100,
        ..block(&[], code)
    };
    let run = |code| {
        sandbox()
            .run_block(&short(code), &Cancel::new())
            .expect("a run")
    };
    let endless = run("print('before')\nwhile True:\n    pass");
    assert_eq!(endless.stdout, "before\n");
    let error = "TimeoutError: took more than 0.3 s of processor time";
    assert_eq!(endless.error.as_deref(), Some(error));
    assert!(endless.is_out_of_time);
    // What catches everything is ended by the kernel.
    let stubborn = run(
        "while True:\n    try:\n        while True:\n            pass\n    except BaseException:\n        pass",
    );
    assert!(stubborn.is_out_of_time, "{stubborn:?}");
    let asleep = Block {
        wall: Duration::from_millis(500),
        ..short("import time\ntime.sleep(100)")
    };
    let asleep = sandbox().run_block(&asleep, &Cancel::new()).expect("a run");
    assert_eq!(
        asleep.error.as_deref(),
        Some("TimeoutError: took more than 0.5 s")
    );
    let loud = run("while True:\n    print('x' * 1000)");
    assert_eq!(loud.stdout.len(), 100);
    let large = run("'x' * (1 << 40)");
    assert_eq!(large.error.as_deref(), Some("MemoryError"));
}

#[test]
fn nobody_waits_for_a_cancelled_block() {
    let sandbox = sandbox_with(Limits {
        wall: Duration::from_secs(3600),
        ..limits()
    });
    let cancel = Cancel::new();
    let result = std::thread::scope(|scope| {
        let run = scope.spawn(|| {
            let block = Block {
                cpu: Duration::from_secs(900),
                wall: Duration::from_secs(900),
                ..block(&[], "import time\ntime.sleep(900)")
            };
            sandbox.run_block(&block, &cancel)
        });
        cancel.cancel();
        run.join().unwrap()
    });
    assert!(matches!(result, Err(RunError::Cancelled)), "{result:?}");
}
