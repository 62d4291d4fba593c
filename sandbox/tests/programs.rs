//! Ordinary programs, their limits, and sandboxes that do not work.
#![cfg(target_os = "linux")]

mod common;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use common::{holds, limits, run, sandbox, sandbox_with};
use ponder_sandbox::{Limits, RunError, Sandbox, Status};

#[test]
fn a_passing_program() {
    let outcome = run(
        "import math, json, re, collections, dataclasses\nprint(json.dumps({'é': math.gcd(12, 18)}))",
    );
    assert_eq!(outcome.status, Status::Passed, "{outcome:?}");
    assert_eq!(outcome.stdout, "{\"\\u00e9\": 6}\n");
    assert_eq!(outcome.stderr, "");
}

#[test]
fn a_failing_program() {
    let outcome = run("print('é')\nassert 1 == 2, 'no'");
    assert_eq!(outcome.status, Status::Failed { exit_code: 1 });
    assert_eq!(outcome.stdout, "é\n");
    assert!(outcome.stderr.contains("AssertionError: no"), "{outcome:?}");
    assert_eq!(
        run("import sys; sys.exit(7)").status,
        Status::Failed { exit_code: 7 }
    );
    assert_eq!(run("def").status, Status::Failed { exit_code: 1 });
}

#[test]
fn common_modules_load() {
    holds(
        "import random, hashlib, datetime, decimal, fractions, itertools, heapq, bisect, statistics, string, typing, \
         threading, ctypes, socket, subprocess, sqlite3, unittest, zoneinfo, asyncio, concurrent.futures, tempfile\n\
         thread = threading.Thread(target=lambda: None); thread.start(); thread.join()\n\
         assert hashlib.sha256(b'').hexdigest().startswith('e3b0')\n\
         assert len({random.random() for _ in range(9)}) == 9\n\
         assert os.listdir('.') == [] and os.cpu_count()",
    );
}

#[test]
fn nothing_of_the_environment_is_there() {
    holds(
        "assert set(os.environ) <= {'LANG', 'LC_CTYPE', 'PYTHONUTF8', 'PYTHONHASHSEED', 'PYTHONDONTWRITEBYTECODE', 'PYTHONSAFEPATH'}, os.environ",
    );
    // The hash seed is fixed.
    let program = "print(hash('a'), list({'a', 'b', 'c'}))";
    assert_eq!(run(program).stdout, run(program).stdout);
}

#[test]
fn stdin_is_empty() {
    holds(
        "try:\n    input()\nexcept EOFError:\n    pass\nelse:\n    raise AssertionError\nassert sys.stdin.read() == ''",
    );
}

#[test]
fn a_large_program() {
    let program = format!(
        "text = '{}'\n# {}\nprint(len(text))",
        "x".repeat(3 << 20),
        "y".repeat(2 << 20)
    );
    let outcome = run(&program);
    assert_eq!(
        outcome.stdout,
        format!("{}\n", 3 << 20),
        "{:?}",
        outcome.status
    );
}

#[test]
fn a_program_may_end_before_it_was_read() {
    let outcome = run(&format!("!\n{}", "# x\n".repeat(1 << 20)));
    assert_eq!(outcome.status, Status::Failed { exit_code: 1 });
}

#[test]
fn many_at_once() {
    let sandbox = sandbox();
    std::thread::scope(|scope| {
        let runs: Vec<_> = (0..8)
            .map(|number| {
                let sandbox = &sandbox;
                scope.spawn(move || {
                    sandbox
                        .run(&format!("print({number})"))
                        .map(|outcome| outcome.stdout)
                })
            })
            .collect();
        for (number, run) in runs.into_iter().enumerate() {
            assert_eq!(run.join().unwrap().unwrap(), format!("{number}\n"));
        }
    });
}

#[test]
fn an_infinite_loop_runs_out_of_cpu_time() {
    let outcome = sandbox_with(Limits {
        cpu_seconds: 1,
        ..limits()
    })
    .run("while True: pass")
    .unwrap();
    assert_eq!(
        outcome.status,
        Status::Killed {
            signal: libc::SIGXCPU
        }
    );
}

#[test]
fn handling_sigxcpu_gains_a_second() {
    let program = "import signal\nsignal.signal(signal.SIGXCPU, lambda *_: None)\nwhile True: pass";
    let outcome = sandbox_with(Limits {
        cpu_seconds: 1,
        ..limits()
    })
    .run(program)
    .unwrap();
    assert_eq!(
        outcome.status,
        Status::Killed {
            signal: libc::SIGKILL
        }
    );
}

#[test]
fn sleeping_runs_out_of_wall_time() {
    let limited = Limits {
        // Long enough for Python to start on a machine that has much else to do.
        wall: Duration::from_secs(5),
        ..limits()
    };
    let sandbox = &sandbox_with(limited);
    let programs = [
        "print('here', flush=True)\nimport time; time.sleep(600)",
        // No signal that can be blocked or handled is used.
        "import signal, time\nprint('here', flush=True)\nsignal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))\n\
         for s in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGALRM): signal.signal(s, signal.SIG_IGN)\n\
         while True: time.sleep(600)",
        // Stopped processes can be killed.
        "import os, signal\nprint('here', flush=True)\nos.kill(os.getpid(), signal.SIGSTOP)",
        // Closed pipes don't end the call.
        "import os, time\nprint('here', flush=True)\nfor fd in range(64):\n    try: os.close(fd)\n    except OSError: pass\n\
         time.sleep(600)",
    ];
    // They wait side by side.
    std::thread::scope(|scope| {
        for program in programs {
            scope.spawn(move || {
                let started = Instant::now();
                let outcome = sandbox.run(program).unwrap();
                assert_eq!(outcome.status, Status::TimedOut, "{outcome:?}");
                assert_eq!(outcome.stdout, "here\n");
                // Not a measurement: nothing waits for the program itself.
                let took = started.elapsed();
                assert!(took < Duration::from_secs(60), "{took:?}");
            });
        }
    });
}

#[test]
fn memory_is_bounded() {
    let outcome = run("block = bytearray(1 << 30)");
    assert_eq!(outcome.status, Status::Failed { exit_code: 1 });
    assert!(outcome.stderr.contains("MemoryError"), "{outcome:?}");
    assert_ne!(
        run("hog = []\nwhile True: hog.append(bytearray(1 << 20))").status,
        Status::Passed
    );
    // Python says EPERM as a ValueError.
    holds(
        "import resource\nlimits = {resource.RLIMIT_AS: (512 << 20,) * 2, resource.RLIMIT_CPU: (2, 3), resource.RLIMIT_FSIZE: (0, 0), \
         resource.RLIMIT_CORE: (1, 1), resource.RLIMIT_NOFILE: (64, 64)}\n\
         for name, limit in limits.items():\n\
         \x20   assert resource.getrlimit(name) == limit, (name, resource.getrlimit(name))\n\
         \x20   try: resource.setrlimit(name, (limit[0], limit[1] + 1))\n\
         \x20   except (ValueError, PermissionError): continue\n\
         \x20   raise AssertionError(name)",
    );
}

#[test]
fn output_is_cut() {
    let cut = 64 << 10;
    let whole = run("import sys\nsys.stdout.write('x' * 65536)\nsys.stderr.write('done')");
    assert_eq!((whole.status, whole.stdout.len()), (Status::Passed, cut));
    assert_eq!(whole.stderr, "done");
    // Who writes on is told; the other stream stays open.
    let outcome = run(
        "import sys\ntry:\n    for _ in range(300): print('x' * 100_000, flush=True)\n\
         except BrokenPipeError: sys.stderr.write('told'); sys.stderr.flush()\nimport os; os._exit(0)",
    );
    assert_eq!(
        (outcome.status, outcome.stdout.len()),
        (Status::Passed, cut)
    );
    assert_eq!(outcome.stderr, "told");
    let limited = Limits {
        output_bytes: 10,
        ..limits()
    };
    let endless = sandbox_with(limited)
        .run("import os\nwhile True: os.write(2, b'x' * 65536)")
        .unwrap();
    let ended = Status::Failed { exit_code: 120 };
    assert_eq!((endless.status, endless.stderr.len()), (ended, 10));
}

#[test]
fn threads_are_bounded() {
    let program = "import threading\nstop = threading.Event()\n\
        try:\n    for n in range(100_000): threading.Thread(target=stop.wait, daemon=True).start()\n\
        except (RuntimeError, MemoryError): print('bounded')\n";
    let outcome = run(program);
    assert_eq!(outcome.stdout, "bounded\n", "{outcome:?}");
}

#[test]
fn deep_recursion_ends() {
    let outcome = run("def f(): return f()\nf()");
    assert!(outcome.stderr.contains("RecursionError"), "{outcome:?}");
    let crash = run(
        "import sys\nsys.setrecursionlimit(10**9)\nclass A:\n    def __repr__(self): return repr(self)\nrepr(A())",
    );
    assert!(
        !matches!(crash.status, Status::Passed | Status::TimedOut),
        "{crash:?}"
    );
}

#[test]
fn a_sandbox_that_cannot_work_is_refused() {
    let exe = PathBuf::from(env!("CARGO_BIN_EXE_ponder-sandbox"));
    let no_python = Sandbox::new(exe.clone(), Some("/no/python".into()), Limits::default());
    assert!(
        matches!(no_python, Err(RunError::NoPython(_))),
        "{no_python:?}"
    );
    let not_python = Sandbox::new(exe.clone(), Some("/bin/false".into()), Limits::default());
    assert!(
        matches!(not_python, Err(RunError::NoPython(_))),
        "{not_python:?}"
    );
    let no_exe = Sandbox::new("/no/exe".into(), None, Limits::default());
    assert!(matches!(no_exe, Err(RunError::Spawn(_))), "{no_exe:?}");
    let not_exe = Sandbox::new("/bin/true".into(), None, Limits::default());
    assert!(matches!(not_exe, Err(RunError::Spawn(_))), "{not_exe:?}");
    let tight = Limits {
        memory_bytes: 4 << 20,
        ..limits()
    };
    let no_memory = Sandbox::new(exe, None, tight);
    assert!(
        matches!(no_memory, Err(RunError::Spawn(_))),
        "{no_memory:?}"
    );
}
