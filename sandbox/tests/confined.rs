//! Computations in a child of their own, and inputs that would take more than their share.
#![cfg(target_os = "linux")]

use std::path::PathBuf;
use std::time::{Duration, Instant};

use ponder_sandbox::{Cancel, Confined, ConfinedError, Limits};

const WALL: Duration = Duration::from_secs(30);

fn confined_with(limits: Limits) -> Confined {
    let exe = PathBuf::from(env!("CARGO_BIN_EXE_ponder-sandbox"));
    Confined::new(exe, limits).expect("a kernel with seccomp")
}

fn limits() -> Limits {
    Limits {
        wall: WALL,
        cpu_seconds: 10,
        output_bytes: 32 << 20,
        max_threads: 1,
        nice: 0,
        ..Limits::default()
    }
}

fn compute(kind: &str, input: &[u8]) -> Result<Vec<u8>, ConfinedError> {
    let cancel = Cancel::new();
    confined_with(limits()).run(&["compute", kind], input, WALL, &cancel)
}

#[test]
fn a_result_comes_back_whole() {
    assert_eq!(compute("echo", b""), Ok(Vec::new()));
    let large: Vec<u8> = (0..20 << 20)
        .map(|place: u32| (place % 251) as u8)
        .collect();
    assert_eq!(compute("echo", &large), Ok(large));
}

#[test]
fn many_at_once() {
    std::thread::scope(|scope| {
        for number in 0..16u8 {
            scope.spawn(move || assert_eq!(compute("echo", &[number; 99]), Ok(vec![number; 99])));
        }
    });
}

#[test]
fn a_panic_is_told() {
    let Err(ConfinedError::Failed { exit_code, message }) = compute("panic", b"abc") else {
        panic!("no failure");
    };
    assert_eq!(exit_code, 101);
    assert!(message.contains("at 3 bytes"), "{message}");
}

#[test]
fn each_limit_has_its_error() {
    let bytes = limits().memory_bytes;
    assert_eq!(
        compute("allocate", b""),
        Err(ConfinedError::OutOfMemory { bytes })
    );
    assert_eq!(compute("recurse", b"((("), Ok(b"3".to_vec()));
    let deep = vec![b'('; 4 << 20];
    assert_eq!(compute("recurse", &deep), Err(ConfinedError::StackOverflow));
    let signal = libc::SIGABRT;
    assert_eq!(compute("abort", b""), Err(ConfinedError::Killed { signal }));
    let bytes = limits().output_bytes;
    assert_eq!(
        compute("flood", &[7; 4096]),
        Err(ConfinedError::OutputTooLarge { bytes })
    );
    let short = confined_with(Limits {
        cpu_seconds: 1,
        ..limits()
    });
    let run = |kind, wall: Duration| {
        let started = Instant::now();
        let error = short.run(&["compute", kind], b"", wall, &Cancel::new());
        (error, started.elapsed())
    };
    let (error, _) = run("spin", WALL);
    assert_eq!(error, Err(ConfinedError::CpuTime { seconds: 1 }));
    let wall = Duration::from_millis(100);
    for kind in ["spin", "sleep"] {
        let (error, took) = run(kind, wall);
        assert_eq!(error, Err(ConfinedError::TimedOut { wall }));
        assert!(took < WALL / 2, "{took:?}");
    }
}

#[test]
fn an_input_that_does_not_fit_is_no_result() {
    let small = confined_with(Limits {
        memory_bytes: 64 << 20,
        ..limits()
    });
    let cancel = Cancel::new();
    let result = small.run(&["compute", "echo"], &vec![0; 100 << 20], WALL, &cancel);
    let bytes = 64 << 20;
    assert_eq!(result, Err(ConfinedError::OutOfMemory { bytes }));
}

#[test]
fn cancelling_ends_it_at_once() {
    let confined = confined_with(limits());
    let cancel = Cancel::new();
    let guard = cancel.on_drop();
    let run = std::thread::spawn(move || {
        let result = confined.run(&["compute", "sleep"], b"", WALL, &cancel);
        (result, Instant::now())
    });
    // The moment does not matter: a run that was cancelled before it started ends too.
    let cancelled = Instant::now();
    drop(guard);
    let (result, ended) = run.join().unwrap();
    assert_eq!(result, Err(ConfinedError::Cancelled));
    let took = ended.saturating_duration_since(cancelled);
    assert!(took < WALL / 2, "{took:?}");
}

#[test]
fn the_child_can_only_compute() {
    for kind in ["thread", "open", "stat", "connect", "start"] {
        assert_eq!(compute(kind, b""), Ok(Vec::new()), "{kind}");
    }
    // With more threads allowed there are some.
    let threads = confined_with(Limits {
        max_threads: 4,
        ..limits()
    });
    let cancel = Cancel::new();
    let result = threads.run(&["compute", "thread"], b"", WALL, &cancel);
    assert!(
        matches!(result, Err(ConfinedError::Failed { exit_code: 7, .. })),
        "{result:?}"
    );
}

#[test]
fn a_binary_that_does_not_limit_itself_gives_no_result() {
    let cancel = Cancel::new();
    for (exe, command) in [
        ("/no/exe", &["compute", "echo"][..]),
        (env!("CARGO_BIN_EXE_ponder-sandbox"), &[]),
    ] {
        let confined = Confined::new(exe.into(), limits()).unwrap();
        let result = confined.run(command, b"", WALL, &cancel);
        assert!(matches!(result, Err(ConfinedError::Spawn(_))), "{result:?}");
    }
}
