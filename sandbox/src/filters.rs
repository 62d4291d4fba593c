//! Which system calls there are in a limited process.

use std::collections::BTreeMap;

use libc::c_long;
use seccompiler::SeccompCmpOp::{Eq, MaskedEq};
use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition,
    SeccompFilter, SeccompRule, TargetArch,
};

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

pub(super) fn target_arch() -> Result<TargetArch, BackendError> {
    // The lists below were made for these two.
    match std::env::consts::ARCH {
        arch @ ("x86_64" | "aarch64") => TargetArch::try_from(arch),
        arch => Err(BackendError::InvalidTargetArch(arch.to_owned())),
    }
}

fn errno(number: i32) -> SeccompAction {
    SeccompAction::Errno(number.unsigned_abs())
}

fn compile(
    rules: Rules,
    otherwise: SeccompAction,
    on_match: SeccompAction,
) -> Result<BpfProgram, BackendError> {
    SeccompFilter::new(rules, otherwise, on_match, target_arch()?)?.try_into()
}

/// A rule of one condition on the low half of an argument; all that are compared are `int`s to the
/// kernel.
fn when(index: u8, operator: SeccompCmpOp, value: u64) -> Result<SeccompRule, BackendError> {
    let condition = SeccompCondition::new(index, SeccompCmpArgLen::Dword, operator, value)?;
    SeccompRule::new(vec![condition])
}

/// Calls that a libc replaces by older ones, which can be filtered, when the kernel has none: the
/// arguments of `clone3` and `openat2` lie in memory that filters cannot see.
pub(super) fn missing_calls() -> Result<BpfProgram, BackendError> {
    let rules = [libc::SYS_clone3, libc::SYS_openat2]
        .map(|call| (call, Vec::new()))
        .into();
    compile(rules, SeccompAction::Allow, errno(libc::ENOSYS))
}

/// "Permission denied", as on a read-only disk, for opening for anything but reading. So is a
/// handle of a path alone (`O_PATH`), which passes where Landlock would refuse to read, and memory
/// of the pool of huge pages, which is the operator's.
pub(super) fn refused_flags() -> Result<BpfProgram, BackendError> {
    const TEMPORARY: i32 = libc::O_TMPFILE & !libc::O_DIRECTORY;
    let flags = [
        libc::O_WRONLY,
        libc::O_RDWR,
        libc::O_CREAT,
        libc::O_TRUNC,
        libc::O_APPEND,
        libc::O_PATH,
        TEMPORARY,
    ];
    let mut rules = Rules::new();
    for (call, index) in OPENS {
        let any = flags.map(|flag| {
            let flag = u64::from(flag.unsigned_abs());
            when(*index, MaskedEq(flag), flag)
        });
        rules.insert(*call, any.into_iter().collect::<Result<_, _>>()?);
    }
    let huge = u64::from(libc::MAP_HUGETLB.unsigned_abs());
    rules.insert(libc::SYS_mmap, vec![when(3, MaskedEq(huge), huge)?]);
    compile(rules, SeccompAction::Allow, errno(libc::EACCES))
}

/// Everything that is not listed is refused with EPERM: calls unknown today, other ABIs' numbers
/// (x32), and all of network, processes, namespaces, tracing, file changes, shared memory and
/// io_uring.
pub(super) fn interpreter_calls(max_threads: u32) -> Result<BpfProgram, BackendError> {
    let calls = [COMPUTATION, INTERPRETER, INTERPRETER_HERE].concat();
    let mut rules = always(&calls);
    rules.extend(computation_conditions(max_threads)?);
    rules.extend(interpreter_conditions()?);
    compile(rules, errno(libc::EPERM), SeccompAction::Allow)
}

/// The same for a computation, which opens nothing and names nothing.
pub(super) fn computation_calls(max_threads: u32) -> Result<BpfProgram, BackendError> {
    let mut rules = always(COMPUTATION);
    rules.extend(computation_conditions(max_threads)?);
    compile(rules, errno(libc::EPERM), SeccompAction::Allow)
}

fn always(calls: &[c_long]) -> Rules {
    calls.iter().map(|call| (*call, Vec::new())).collect()
}

/// A rule for each value that an argument may have.
fn one_of(index: u8, values: &[u64]) -> Result<Vec<SeccompRule>, BackendError> {
    let rules = values.iter().map(|value| when(index, Eq, *value));
    rules.collect()
}

fn integers(values: &[i32]) -> Vec<u64> {
    let unsigned = values.iter().map(|value| u64::from(value.unsigned_abs()));
    unsigned.collect()
}

fn computation_conditions(max_threads: u32) -> Result<Rules, BackendError> {
    // `execve` keeps the pid, so the process can be told from all others before it becomes the
    // interpreter.
    let own_pid = u64::from(std::process::id());
    // Reading one's own limits; setting them would need a pointer in the third argument.
    let no_new_limits = SeccompRule::new(vec![
        SeccompCondition::new(0, SeccompCmpArgLen::Dword, Eq, 0)?,
        SeccompCondition::new(2, SeccompCmpArgLen::Qword, Eq, 0)?,
    ])?;
    let names = integers(&[libc::PR_SET_NAME, libc::PR_GET_NAME]);
    let mut rules = Rules::from([
        (libc::SYS_kill, one_of(0, &[own_pid])?),
        (libc::SYS_tgkill, one_of(0, &[own_pid])?),
        (libc::SYS_membarrier, one_of(0, &BARRIERS)?),
        (libc::SYS_prctl, one_of(0, &names)?),
        (libc::SYS_prlimit64, vec![no_new_limits]),
    ]);
    if max_threads > 1 {
        rules.insert(libc::SYS_clone, one_of(0, &integers(&THREADS))?);
    }
    Ok(rules)
}

fn interpreter_conditions() -> Result<Rules, BackendError> {
    // F_SETOWN with F_SETSIG would send any signal to any process of the same user.
    let fcntls = integers(&[
        libc::F_DUPFD,
        libc::F_DUPFD_CLOEXEC,
        libc::F_GETFD,
        libc::F_SETFD,
        libc::F_GETFL,
        libc::F_SETFL,
    ]);
    #[allow(clippy::unnecessary_cast, reason = "their type depends on the libc")]
    let ioctls = [
        libc::TCGETS as u64,
        libc::TCGETS2 as u64,
        libc::TIOCGWINSZ as u64,
        libc::FIONREAD as u64,
        libc::FIOCLEX as u64,
        libc::FIONCLEX as u64,
    ];
    Ok(Rules::from([
        (libc::SYS_close_range, one_of(2, &[0, CLOSE_ON_EXEC])?),
        (libc::SYS_fcntl, one_of(1, &fcntls)?),
        (libc::SYS_ioctl, one_of(1, &ioctls)?),
    ]))
}

/// What a thread shares with the others: everything. A table of files of its own would be as many
/// more files.
const SHARED: i32 = libc::CLONE_VM
    | libc::CLONE_FS
    | libc::CLONE_FILES
    | libc::CLONE_SIGHAND
    | libc::CLONE_THREAD
    | libc::CLONE_SYSVSEM
    | libc::CLONE_SETTLS
    | libc::CLONE_PARENT_SETTID
    | libc::CLONE_CHILD_CLEARTID;
/// The flags of glibc's threads, and of musl's.
const THREADS: [i32; 2] = [SHARED, SHARED | libc::CLONE_DETACHED];
/// Of one's own threads; others interrupt every core.
const BARRIERS: [u64; 3] = [
    libc::MEMBARRIER_CMD_QUERY as u64,
    libc::MEMBARRIER_CMD_PRIVATE_EXPEDITED as u64,
    libc::MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED as u64,
];
/// `close_range` with a new table of files is refused.
const CLOSE_ON_EXEC: u64 = libc::CLOSE_RANGE_CLOEXEC as u64;

/// Calls that open files, and which of their arguments has the flags.
const OPENS: &[(c_long, u8)] = &[
    (libc::SYS_openat, 2),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_open, 1),
];

/// What a computation needs that reads and writes streams that are open.
#[rustfmt::skip]
const COMPUTATION: &[c_long] = &[
    // Refused by another filter.
    libc::SYS_clone3,
    // Open files.
    libc::SYS_read, libc::SYS_readv, libc::SYS_write, libc::SYS_writev, libc::SYS_lseek, libc::SYS_close,
    libc::SYS_fstat, libc::SYS_ppoll,
    // Memory.
    libc::SYS_brk, libc::SYS_mmap, libc::SYS_munmap, libc::SYS_mremap, libc::SYS_mprotect, libc::SYS_madvise,
    // Threads and the process itself.
    libc::SYS_exit, libc::SYS_exit_group, libc::SYS_futex, libc::SYS_set_robust_list, libc::SYS_set_tid_address,
    libc::SYS_rseq, libc::SYS_sched_yield, libc::SYS_sched_getaffinity, libc::SYS_sched_getparam,
    libc::SYS_sched_getscheduler, libc::SYS_getcpu, libc::SYS_getpid, libc::SYS_gettid, libc::SYS_getrusage,
    libc::SYS_uname, libc::SYS_sysinfo, libc::SYS_getrandom,
    // Signals to oneself and clocks.
    libc::SYS_rt_sigaction, libc::SYS_rt_sigprocmask, libc::SYS_rt_sigreturn, libc::SYS_sigaltstack,
    libc::SYS_restart_syscall, libc::SYS_nanosleep, libc::SYS_clock_nanosleep, libc::SYS_clock_gettime,
    libc::SYS_clock_getres, libc::SYS_gettimeofday,
];

/// What an interpreter needs beyond that.
#[rustfmt::skip]
const INTERPRETER: &[c_long] = &[
    // Refused by another filter, in full or in part.
    libc::SYS_openat2, libc::SYS_openat,
    // Open files.
    libc::SYS_pread64, libc::SYS_dup, libc::SYS_dup3, libc::SYS_pipe2, libc::SYS_pselect6, libc::SYS_fadvise64,
    // Names and attributes.
    libc::SYS_newfstatat, libc::SYS_statx, libc::SYS_getdents64, libc::SYS_readlinkat, libc::SYS_faccessat,
    libc::SYS_faccessat2, libc::SYS_getcwd, libc::SYS_chdir, libc::SYS_fchdir, libc::SYS_umask,
    // The process itself. `execve` is how it becomes the interpreter; later it only replaces one
    // limited program by another.
    libc::SYS_execve, libc::SYS_sched_get_priority_max, libc::SYS_sched_get_priority_min, libc::SYS_getppid,
    libc::SYS_getpgid, libc::SYS_getsid, libc::SYS_getuid, libc::SYS_geteuid, libc::SYS_getgid, libc::SYS_getegid,
    libc::SYS_getresuid, libc::SYS_getresgid, libc::SYS_getgroups, libc::SYS_times,
    // Signals to oneself and timers.
    libc::SYS_rt_sigpending, libc::SYS_rt_sigsuspend, libc::SYS_rt_sigtimedwait, libc::SYS_setitimer,
    libc::SYS_getitimer,
];

#[cfg(target_arch = "x86_64")]
#[rustfmt::skip]
const INTERPRETER_HERE: &[c_long] = &[
    libc::SYS_open, libc::SYS_dup2, libc::SYS_pipe, libc::SYS_poll, libc::SYS_select, libc::SYS_stat, libc::SYS_lstat,
    libc::SYS_readlink, libc::SYS_access, libc::SYS_arch_prctl, libc::SYS_getpgrp, libc::SYS_getrlimit,
    libc::SYS_alarm, libc::SYS_pause, libc::SYS_time,
];

#[cfg(not(target_arch = "x86_64"))]
const INTERPRETER_HERE: &[c_long] = &[];
