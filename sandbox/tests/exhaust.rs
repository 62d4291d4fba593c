//! Programs that want more than their share, learn what they should not, or outlive who started
//! them.
#![cfg(target_os = "linux")]

mod common;

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use common::{REFUSED, SEPARATIONS, holds, holds_everywhere, limits, sandbox, sandbox_with};
use ponder_sandbox::{Cancel, Limits, RunError, Sandbox, Status};

/// The sandboxes that this machine can have, with the names of their separations.
fn every_sandbox() -> impl Iterator<Item = (&'static str, Sandbox)> {
    SEPARATIONS
        .into_iter()
        .filter_map(|name| Some((name, sandbox().separated_as(name)?)))
}

/// Machine code that asks the kernel for threads with the flags of a libc, past any library, until
/// it is refused; each of them sleeps.
#[cfg(target_arch = "x86_64")]
const RAW_THREADS: &str = r#"
import ctypes, mmap
code = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
code.write(bytes.fromhex("4989cab8380000000f0585c07401c3b8220000000f05ebf7"))
address = lambda block: ctypes.addressof(ctypes.c_char.from_buffer(block))
kind = ctypes.CFUNCTYPE(ctypes.c_long, *[ctypes.c_ulong] * 5)
clone = kind(address(code))
stacks = mmap.mmap(-1, 1 << 20)
top, count = address(stacks) + (1 << 20) - 64, 1
FLAGS = 0x3d0f00
while count < 4000 and clone(FLAGS, top, top + 8, top + 16, 0) > 0: count += 1
print(count, flush=True)
import os
os._exit(0)
"#;

#[test]
#[cfg(target_arch = "x86_64")]
fn raw_threads_are_counted() {
    for (name, sandbox) in every_sandbox() {
        let outcome = sandbox.run(RAW_THREADS).unwrap();
        let expected = match sandbox.protections().threads {
            true => sandbox.limits().max_threads,
            false => 1,
        };
        assert_eq!(
            outcome.stdout,
            format!("{expected}\n"),
            "{name}: {outcome:?}"
        );
        // Others than a libc's are none at all: with files, folders or counts of their own.
        for flags in [
            "0x3d0b00",
            "0x3d0d00",
            "0x390f00",
            "0x10f00",
            "0x3d0f11",
            "0x83d0f00",
        ] {
            let program = RAW_THREADS.replace("0x3d0f00", flags);
            let outcome = sandbox.run(&program).unwrap();
            assert_eq!(outcome.stdout, "1\n", "{name}, {flags}: {outcome:?}");
        }
    }
}

#[test]
fn threads_share_one_table_of_files() {
    holds_everywhere(
        r#"
import ctypes, errno
libc = ctypes.CDLL(None, use_errno=True)
number = {"x86_64": 436, "aarch64": 436}[os.uname().machine]
def close_range(flags):
    return libc.syscall(number, *[ctypes.c_ulong(value) for value in (60, 63, flags)])
assert close_range(0) == 0 and close_range(4) == 0
for flags in (2, 6, 1 << 33 | 2):
    assert close_range(flags) == -1 and ctypes.get_errno() == errno.EPERM, flags
files = []
try:
    while True: files.extend(os.pipe())
except OSError as error: assert error.errno == errno.EMFILE, error
assert len(files) <= 64
"#,
    );
}

#[test]
fn pools_of_threads_fit() {
    let program = format!(
        r#"{REFUSED}
import asyncio, threading, time
from concurrent.futures import ThreadPoolExecutor
with ThreadPoolExecutor() as pool:
    assert list(pool.map(lambda n: (time.sleep(0.01), n)[1], range(50))) == list(range(50))
async def many():
    return await asyncio.gather(*[asyncio.to_thread(time.sleep, 0.01) for _ in range(50)])
try: asyncio.run(many())
except PermissionError: pass  # An event loop needs sockets.
done = []
threads = [threading.Thread(target=lambda: (time.sleep(0.05), done.append(1))) for _ in range(10)]
for thread in threads: thread.start()
for thread in threads: thread.join()
assert len(done) == 10
print('held')
"#
    );
    for (name, sandbox) in every_sandbox() {
        let outcome = sandbox.run(&program).unwrap();
        match sandbox.protections().threads {
            true => assert_eq!(outcome.stdout, "held\n", "{name}: {outcome:?}"),
            false => assert!(
                outcome.stderr.contains("can't start new thread"),
                "{outcome:?}"
            ),
        }
    }
}

#[test]
fn files_that_are_not_shown_do_not_exist() {
    let target = tempfile::NamedTempFile::new().unwrap();
    let body = format!(
        "names = ('/etc/shadow', '/etc/passwd', '/root/.profile', '/home', '/proc/self/status', '/proc/1', '/sys', '/old', '/var', \
         '/../etc/passwd', '/dev/sda', '/dev/shm', {:?})\n\
         for path in names:\n\
         \x20   absent(os.stat, path); absent(os.lstat, path); absent(os.readlink, path)\n\
         \x20   assert not os.access(path, os.F_OK), path\n\
         assert os.getcwd() == '/work' and os.listdir() == [] and os.path.samefile('/', '/..')",
        target.path()
    );
    for (name, sandbox) in every_sandbox().filter(|(_, sandbox)| sandbox.protections().own_files) {
        let program = format!("{REFUSED}\n{body}\nprint('held')");
        let outcome = sandbox.run(&program).unwrap();
        assert_eq!(outcome.stdout, "held\n", "{name}: {outcome:?}");
    }
}

#[test]
fn paths_are_not_opened_as_handles() {
    holds_everywhere(
        "for path in ('/', '/etc/passwd', '.', os.__file__):\n    refused(os.open, path, os.O_PATH)\n\
         refused(os.open, '/', os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)",
    );
}

#[test]
fn memory_of_every_kind_is_bounded() {
    holds_everywhere(
        r#"
import ctypes, mmap
def all_of(flags, size=1 << 20):
    blocks = []
    try:
        while len(blocks) < 4096: blocks.append(mmap.mmap(-1, size, flags=flags))
    except OSError: pass
    return len(blocks) * size
for flags in (mmap.MAP_SHARED, mmap.MAP_PRIVATE, mmap.MAP_PRIVATE | 0x4000):
    assert all_of(flags) < 512 << 20
refused(mmap.mmap, -1, 2 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x40000)   # huge pages
import fcntl
near, far = os.pipe()
refused(fcntl.fcntl, far, 1031, 1 << 20)   # the size of a pipe
libc = ctypes.CDLL(None, use_errno=True)
for barrier in (1, 2, 4):   # on every core
    assert libc.syscall({"x86_64": 324, "aarch64": 283}[os.uname().machine], barrier, 0) == -1
"#,
    );
}

#[test]
fn a_flood_costs_the_server_nothing() {
    let cpu = || {
        let stat = fs::read_to_string("/proc/thread-self/stat").unwrap();
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split(' ').collect();
        let ticks = |place: usize| fields[place].parse::<u64>().unwrap();
        ticks(12) + ticks(13)
    };
    let limited = Limits {
        wall: Duration::from_secs(2),
        ..limits()
    };
    let sandbox = sandbox_with(limited);
    let before = cpu();
    let flood = "while True: print('x' * 65536)";
    let cancel = Cancel::new();
    let report = sandbox
        .run_tests(flood, &["pass".to_owned()], &cancel)
        .unwrap();
    assert_eq!(report.passed, 0);
    let outcome = sandbox.run(flood).unwrap();
    assert!(
        matches!(outcome.status, Status::Failed { .. }),
        "{outcome:?}"
    );
    // Hundredths of a second.
    assert!(cpu() - before < 20, "{}", cpu() - before);
    // What floods and then passes has passed.
    let noisy = "import sys\nfor _ in range(2000):\n    print('x' * 65536)\n    sys.stderr.write('y' * 65536)";
    let report = sandbox_with(limits()).run_tests(noisy, &["print('z')".to_owned()], &cancel);
    assert!(report.unwrap().all_passed());
}

#[test]
fn cancelling_ends_a_program_at_once() {
    let sandbox = sandbox();
    for code in [
        "import time\ntime.sleep(600)",
        "while True: pass",
        "while True: print('x' * 999)",
    ] {
        let cancel = Cancel::new();
        let run = {
            let (sandbox, cancel) = (sandbox.clone(), cancel.clone());
            std::thread::spawn(move || (sandbox.run_tests(code, &[], &cancel), Instant::now()))
        };
        let cancelled = Instant::now();
        drop(cancel.on_drop());
        let (report, ended) = run.join().unwrap();
        assert!(matches!(report, Err(RunError::Cancelled)), "{report:?}");
        // Not a measurement: left alone the first would sleep on for minutes.
        let took = ended.saturating_duration_since(cancelled);
        assert!(took < Duration::from_secs(30), "{took:?}");
    }
}

/// A process that runs a program as a server does and is killed when dropped, and the pid of the
/// program once it is there.
struct Host(Child);

impl Drop for Host {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn hosted(program: &str, temporary: &Path) -> (Host, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ponder-sandbox"));
    command.args(["host", program]).env("TMPDIR", temporary);
    let host = Host(command.stdout(Stdio::null()).spawn().unwrap());
    let children = format!("/proc/{0}/task/{0}/children", host.0.id());
    let deadline = Instant::now() + Duration::from_secs(60);
    while Instant::now() < deadline {
        let found = fs::read_to_string(&children).unwrap_or_default();
        for pid in found.split_whitespace() {
            // The trial before it has a name of its own.
            let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            if name == "hostile\n" {
                return (host, pid.to_owned());
            }
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    panic!("no program");
}

const HOSTED: &str =
    "import ctypes, time\nctypes.CDLL(None).prctl(15, b'hostile', 0, 0, 0)\ntime.sleep(600)";

#[test]
fn programs_die_with_the_server_and_leave_nothing() {
    let temporary = tempfile::tempdir().unwrap();
    let (host, pid) = hosted(HOSTED, temporary.path());
    drop(host);
    let started = Instant::now();
    // Whoever inherits it reaps it.
    let is_alive = || {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        stat.contains("(hostile)") && !stat.contains("(hostile) Z") && !stat.contains("(hostile) X")
    };
    while is_alive() {
        assert!(started.elapsed() < Duration::from_secs(60), "it lives on");
        std::thread::yield_now();
    }
    assert_eq!(fs::read_dir(temporary.path()).unwrap().count(), 0);
}

#[test]
fn programs_stand_behind_the_server() {
    let (host, pid) = hosted(HOSTED, &std::env::temp_dir());
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"));
    let oom = fs::read_to_string(format!("/proc/{pid}/oom_score_adj"));
    let cores = fs::read_to_string(format!("/proc/{pid}/status"));
    drop(host);
    let (stat, cores) = (stat.unwrap(), cores.unwrap());
    let nice = stat.rsplit(')').next().unwrap().split(' ').nth(17).unwrap();
    assert_eq!(nice, Limits::default().nice.to_string(), "{stat}");
    assert_eq!(oom.unwrap().trim(), "1000");
    let cores = cores
        .lines()
        .find_map(|line| line.strip_prefix("Cpus_allowed:"));
    let bits: u32 = cores
        .unwrap()
        .chars()
        .filter_map(|c| c.to_digit(16))
        .map(u32::count_ones)
        .sum();
    assert!((1..=4).contains(&bits), "{cores:?}");
    holds(
        "refused(os.nice, -1)\nrefused(os.sched_setaffinity, 0, {0})\nrefused(os.setpriority, 0, 0, 0)",
    );
}
