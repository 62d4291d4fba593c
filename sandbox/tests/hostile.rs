//! What programs must not be able to do.
#![cfg(target_os = "linux")]

mod common;

use std::path::Path;
use std::time::Duration;

use common::{holds, holds_everywhere, limits, run, sandbox_with};
use ponder_sandbox::{Limits, Status, protections};

#[test]
fn there_are_no_new_processes() {
    holds(
        "import subprocess\nrefused(os.fork)\nassert os.system('true') != 0\n\
         refused(os.posix_spawn, '/bin/true', ['true'], {})\nrefused(subprocess.run, ['/bin/true'])\n\
         refused(os.forkpty)",
    );
    let outcome = run("import os\nwhile True: os.fork()");
    assert!(outcome.stderr.contains("PermissionError"), "{outcome:?}");
}

#[test]
fn another_program_cannot_take_over() {
    if protections().landlock {
        holds("absent(os.execv, '/bin/sh', ['sh', '-c', 'echo held'])");
    }
    // The interpreter may start again; it stays limited.
    let again = "import os, sys\nos.execv(sys.executable or '/proc/self/exe', ['python3', '-c', 'import os; os.fork()'])";
    let outcome = run(again);
    assert_eq!(
        outcome.status,
        Status::Failed { exit_code: 1 },
        "{outcome:?}"
    );
    assert!(outcome.stderr.contains("PermissionError"), "{outcome:?}");
}

#[test]
fn nobody_else_is_signalled() {
    holds(
        "import signal\nfor pid in (os.getppid(), 1, 0, -1, -os.getpid(), -os.getppid()):\n    refused(os.kill, pid, 9)\n\
         refused(os.killpg, 0, 9)\nrefused(os.setsid)\nrefused(os.setpgid, 0, 0)\n\
         if hasattr(os, 'pidfd_open'): refused(os.pidfd_open, os.getppid())",
    );
    // Signals owed to a pipe's owner.
    holds(
        "import fcntl\nfor command in (8, 10, 15):\n    refused(fcntl.fcntl, 0, command, os.getppid())",
    );
    // Itself it may.
    assert_eq!(
        run("import os; os.abort()").status,
        Status::Killed {
            signal: libc::SIGABRT
        }
    );
    assert_eq!(
        run("import os; os.kill(os.getpid(), 15)").status,
        Status::Killed {
            signal: libc::SIGTERM
        }
    );
}

#[test]
fn nothing_is_left() {
    for program in [
        "import os; print(os.getpid(), os.getcwd(), flush=True)",
        "import os; print(os.getpid(), os.getcwd(), flush=True)\nwhile True: pass",
    ] {
        let limited = Limits {
            wall: Duration::from_millis(700),
            ..limits()
        };
        let outcome = sandbox_with(limited).run(program).unwrap();
        let (pid, folder) = outcome.stdout.trim().split_once(' ').expect("two words");
        assert!(!Path::new("/proc").join(pid).exists(), "a zombie");
        // No folder was made for it.
        assert!(["/", "/work"].contains(&folder), "{folder}");
    }
}

#[test]
fn inherited_files_are_closed() {
    // Without close-on-exec, as a careless library would leave it.
    let log = tempfile::NamedTempFile::new().unwrap();
    let kept = nix::unistd::dup(&log).unwrap();
    nix::fcntl::fcntl(
        &kept,
        nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::empty()),
    )
    .unwrap();
    holds(
        "for fd in range(3, 64):\n    try: os.fstat(fd)\n    except OSError: continue\n    raise AssertionError(fd)",
    );
}

#[test]
fn nothing_is_written() {
    let target = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(target.path(), "kept").unwrap();
    let body = format!(
        "path = {:?}\nfor name in ('file', '/tmp/ponder-file', os.path.expanduser('~/file'), '/root/file', path, '/dev/shm/x', '/dev/null'):\n\
         \x20   for mode in ('w', 'a', 'x', 'r+'):\n\
         \x20       try: refused(open, name, mode)\n\
         \x20       except AssertionError as error: assert 'No such file' in str(error) or 'File exists' in str(error), error\n\
         \x20   for flags in (os.O_WRONLY, os.O_RDWR, os.O_TRUNC, os.O_CREAT, os.O_APPEND, 3, os.O_TMPFILE | os.O_RDWR):\n\
         \x20       refused(os.open, name, flags)\n\
         for action in (os.unlink, os.remove, os.rmdir, os.mkdir): refused(action, path)\n\
         refused(os.rename, path, path + '2')\nrefused(os.replace, path, path + '2')\nrefused(os.link, path, path + '2')\n\
         refused(os.symlink, path, 'link')\nrefused(os.chmod, path, 0o777)\nrefused(os.chown, path, 0, 0)\n\
         refused(os.truncate, path, 0)\nrefused(os.utime, path)\nrefused(os.mkfifo, 'pipe')\nrefused(os.mknod, 'node')\n\
         refused(os.memfd_create, 'memory')\nrefused(os.setxattr, path, 'user.x', b'')\nrefused(os.chroot, '/')",
        target.path()
    );
    holds(&body);
    assert_eq!(std::fs::read_to_string(target.path()).unwrap(), "kept");
}

#[test]
fn only_the_interpreters_files_are_read() {
    if !protections().landlock {
        eprintln!("no landlock here");
        return;
    }
    let target = tempfile::NamedTempFile::new().unwrap();
    let body = format!(
        "for path in ('/etc/passwd', '/etc/hostname', {:?}, '/proc/self/environ', '/proc/1/environ', '/proc/self/exe/../passwd', \
         f'/proc/{{os.getppid()}}/mem', f'/proc/{{os.getppid()}}/environ'):\n\
         \x20   absent(open, path)\n\
         for folder in ('/', '/root', '/home', '/tmp', '/etc', '/proc', '..', '/dev'): absent(os.listdir, folder)\n\
         if os.getcwd() != '/': assert os.listdir('.') == []",
        target.path()
    );
    holds_everywhere(&body);
}

#[test]
fn there_is_no_network() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    holds(&format!(
        "import socket\nrefused(socket.create_connection, ('127.0.0.1', {port}))\n\
         for family in (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX, socket.AF_NETLINK, socket.AF_PACKET):\n\
         \x20   for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_RAW): refused(socket.socket, family, kind)\n\
         refused(socket.socketpair)"
    ));
}

#[test]
fn libc_is_no_way_around() {
    holds(
        r#"
import ctypes, errno
libc = ctypes.CDLL(None, use_errno=True)
def denied(result):
    assert result == -1 and ctypes.get_errno() in (errno.EPERM, errno.EACCES, errno.ENOSYS), (result, ctypes.get_errno())
denied(libc.fork())
denied(libc.socket(2, 1, 0)); denied(libc.ptrace(0, 0, 0, 0)); denied(libc.personality(0x0040000))
denied(libc.unshare(0x10000000)); denied(libc.mount(b"x", b"/", b"tmpfs", 0, None)); denied(libc.kill(os.getppid(), 9))
denied(libc.prctl(1, 0)); denied(libc.prctl(4, 1)); denied(libc.prctl(22, 2, None)); denied(libc.setuid(1000)); denied(libc.open(b"f", 0o101, 0o600))
denied(libc.memfd_create(b"x", 0)); denied(libc.shmget(0, 4096, 0o1600)); denied(libc.setns(0, 0))
denied(libc.setrlimit(9, (ctypes.c_ulong * 2)(2**63, 2**63)))
machine = os.uname().machine
calls = {  # clone, clone3, bpf, keyctl, io_uring_setup, perf_event_open, userfaultfd, process_vm_readv, execveat, openat2,
           # seccomp, kexec_load, tkill, rt_sigqueueinfo, pidfd_getfd, add_key, sched_setaffinity, x32 getpid
    "x86_64": (56, 435, 321, 250, 425, 298, 323, 310, 322, 437, 317, 246, 200, 129, 438, 248, 203, 0x40000000 + 39),
    "aarch64": (220, 435, 280, 219, 425, 241, 282, 270, 281, 437, 277, 104, 130, 138, 438, 217, 122),
}
for number in calls.get(machine, ()):
    denied(libc.syscall(number, *[ctypes.c_long(0)] * 6))
if machine == "x86_64":
    denied(libc.syscall(56, ctypes.c_long(17), *[ctypes.c_long(0)] * 4))          # clone(SIGCHLD)
    denied(libc.syscall(56, ctypes.c_long(0x10000 | 0x10000000), *[ctypes.c_long(0)] * 4))  # a thread, new user namespace
    denied(libc.syscall(57)); denied(libc.syscall(58)); denied(libc.syscall(85, b"f", 0o600))    # fork, vfork, creat
    denied(libc.syscall(2, b"f", ctypes.c_long(0o101 | 1 << 32), 0o600))         # open, with a bit that the kernel ignores
"#,
    );
}
