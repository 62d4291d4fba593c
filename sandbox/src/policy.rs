//! What a sandboxed process cannot do. Three layers, each of which outlives `execve`: resource limits and dropped
//! capabilities, Landlock (which files can be read or executed), seccomp (which system calls there are).

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;

use landlock::{
    ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, Ruleset, RulesetAttr,
    RulesetCreatedAttr, RulesetError, Scope, path_beneath_rules,
};
use libc::c_long;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::thread::{CapabilitySet, CapabilitySets, set_capabilities, set_no_new_privs};
use seccompiler::SeccompCmpOp::{Eq, MaskedEq};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch, apply_filter,
};

use super::Protections;

const MAX_OPEN_FILES: u64 = 64;
const STACK_BYTES: u64 = 8 << 20;
/// The newest Landlock that this was tested with; an older kernel enforces what it knows.
const LANDLOCK_ABI: ABI = ABI::V6;

/// The limits of one process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Policy {
    pub cpu_seconds: u64,
    pub memory_bytes: u64,
    /// Files and folders that can be read where there is Landlock; what does not exist is skipped.
    pub readable: Vec<PathBuf>,
    /// Files that can be executed where there is Landlock.
    pub executable: Vec<PathBuf>,
}

#[derive(Debug, thiserror::Error)]
pub(super) enum PolicyError {
    #[error("resource limits: {0}")]
    Limits(io::Error),
    #[error("privileges: {0}")]
    Privileges(io::Error),
    #[error("landlock: {0}")]
    Landlock(#[from] RulesetError),
    #[error("seccomp: {0}")]
    Seccomp(#[from] seccompiler::Error),
}

impl From<seccompiler::BackendError> for PolicyError {
    fn from(error: seccompiler::BackendError) -> Self {
        Self::Seccomp(error.into())
    }
}

/// What this kernel can enforce.
pub fn protections() -> Protections {
    let landlock = Ruleset::default()
        .set_compatibility(CompatLevel::HardRequirement)
        .handle_access(AccessFs::from_all(ABI::V1))
        .and_then(Ruleset::create);
    let has_filters = std::path::Path::new("/proc/sys/kernel/seccomp/actions_avail").exists();
    Protections {
        seccomp: has_filters && target_arch().is_ok(),
        landlock: landlock.is_ok(),
    }
}

impl Policy {
    /// Limits the calling thread for good, and with it the program that it becomes.
    pub fn enforce(&self) -> Result<(), PolicyError> {
        set_no_new_privs(true).map_err(|error| PolicyError::Privileges(error.into()))?;
        self.limit_resources().map_err(PolicyError::Limits)?;
        self.limit_files()?;
        // Root keeps its uid (the interpreter may lie in its home) and loses its power: without this it could
        // raise its limits again. With no_new_privs, `execve` does not give capabilities back.
        let none = CapabilitySets {
            effective: CapabilitySet::empty(),
            permitted: CapabilitySet::empty(),
            inheritable: CapabilitySet::empty(),
        };
        set_capabilities(None, none).map_err(|error| PolicyError::Privileges(error.into()))?;
        // The last filter forbids `seccomp` itself.
        for filter in [missing_calls()?, writing_opens()?, allowed_calls()?] {
            apply_filter(&filter)?;
        }
        Ok(())
    }

    fn limit_resources(&self) -> io::Result<()> {
        // One second between SIGXCPU, which can be handled, and SIGKILL, which cannot.
        lower(Resource::Cpu, self.cpu_seconds, self.cpu_seconds + 1)?;
        lower(Resource::As, self.memory_bytes, self.memory_bytes)?;
        lower(Resource::Stack, STACK_BYTES, STACK_BYTES)?;
        lower(Resource::Nofile, MAX_OPEN_FILES, MAX_OPEN_FILES)?;
        for resource in [
            Resource::Core,
            Resource::Fsize,
            Resource::Memlock,
            Resource::Msgqueue,
            Resource::Nice,
            Resource::Rtprio,
        ] {
            lower(resource, 0, 0)?;
        }
        Ok(())
    }

    /// Takes away every right to files but reading and executing what is listed. Does nothing without Landlock.
    fn limit_files(&self) -> Result<(), RulesetError> {
        let read = AccessFs::ReadFile | AccessFs::ReadDir;
        let execute = AccessFs::ReadFile | AccessFs::Execute;
        Ruleset::default()
            .handle_access(AccessFs::from_all(LANDLOCK_ABI))?
            .handle_access(AccessNet::from_all(LANDLOCK_ABI))?
            .scope(Scope::from_all(LANDLOCK_ABI))?
            .create()?
            .add_rules(path_beneath_rules(&self.readable, read))?
            .add_rules(path_beneath_rules(&self.executable, execute))?
            .restrict_self()?;
        Ok(())
    }
}

/// Sets limits, never above those inherited.
fn lower(resource: Resource, soft: u64, hard: u64) -> io::Result<()> {
    let hard = getrlimit(resource)
        .maximum
        .map_or(hard, |now| now.min(hard));
    let new = Rlimit {
        current: Some(soft.min(hard)),
        maximum: Some(hard),
    };
    Ok(setrlimit(resource, new)?)
}

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

fn target_arch() -> Result<TargetArch, seccompiler::BackendError> {
    // The lists below were made for these two.
    match std::env::consts::ARCH {
        arch @ ("x86_64" | "aarch64") => TargetArch::try_from(arch),
        arch => Err(seccompiler::BackendError::InvalidTargetArch(
            arch.to_owned(),
        )),
    }
}

fn errno(number: i32) -> SeccompAction {
    SeccompAction::Errno(number.unsigned_abs())
}

fn compile(
    rules: Rules,
    otherwise: SeccompAction,
    on_match: SeccompAction,
) -> Result<BpfProgram, seccompiler::BackendError> {
    SeccompFilter::new(rules, otherwise, on_match, target_arch()?)?.try_into()
}

/// A rule of one condition on the low half of an argument; all that are compared are `int`s to the kernel.
fn when(
    index: u8,
    operator: SeccompCmpOp,
    value: u64,
) -> Result<SeccompRule, seccompiler::BackendError> {
    let condition = SeccompCondition::new(index, SeccompCmpArgLen::Dword, operator, value)?;
    SeccompRule::new(vec![condition])
}

/// Calls that a libc replaces by older ones, which can be filtered, when the kernel has none: the arguments of
/// `clone3` and `openat2` lie in memory that filters cannot see.
fn missing_calls() -> Result<BpfProgram, seccompiler::BackendError> {
    let rules = [libc::SYS_clone3, libc::SYS_openat2]
        .map(|call| (call, Vec::new()))
        .into();
    compile(rules, SeccompAction::Allow, errno(libc::ENOSYS))
}

/// Opening for anything but reading: "permission denied", as on a read-only disk.
fn writing_opens() -> Result<BpfProgram, seccompiler::BackendError> {
    const TEMPORARY: i32 = libc::O_TMPFILE & !libc::O_DIRECTORY;
    let flags = [
        libc::O_WRONLY,
        libc::O_RDWR,
        libc::O_CREAT,
        libc::O_TRUNC,
        libc::O_APPEND,
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
    compile(rules, SeccompAction::Allow, errno(libc::EACCES))
}

/// Everything that is not listed is refused with EPERM: calls unknown today, other ABIs' numbers (x32), and all of
/// network, processes, namespaces, tracing, file changes, shared memory and io_uring.
fn allowed_calls() -> Result<BpfProgram, seccompiler::BackendError> {
    let mut rules: Rules = ALLOWED
        .iter()
        .chain(ALLOWED_HERE)
        .map(|call| (*call, Vec::new()))
        .collect();
    rules.extend(conditional_calls()?);
    compile(rules, errno(libc::EPERM), SeccompAction::Allow)
}

fn conditional_calls() -> Result<Rules, seccompiler::BackendError> {
    // `execve` keeps the pid, so the process can be told from all others before it becomes the interpreter.
    let own_pid = u64::from(std::process::id());
    let one_of = |index, values: &[u64]| {
        let rules = values.iter().map(|value| when(index, Eq, *value));
        rules.collect::<Result<Vec<_>, _>>()
    };
    let integers = |values: &[i32]| -> Vec<u64> {
        values
            .iter()
            .map(|value| u64::from(value.unsigned_abs()))
            .collect()
    };
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
    // Reading one's own limits; setting them would need a pointer in the third argument.
    let no_new_limits = SeccompRule::new(vec![
        SeccompCondition::new(0, SeccompCmpArgLen::Dword, Eq, 0)?,
        SeccompCondition::new(2, SeccompCmpArgLen::Qword, Eq, 0)?,
    ])?;
    let names = integers(&[libc::PR_SET_NAME, libc::PR_GET_NAME]);
    Ok(Rules::from([
        (
            libc::SYS_clone,
            vec![when(0, MaskedEq(CLONE_FLAGS), CLONE_THREAD)?],
        ),
        (libc::SYS_fcntl, one_of(1, &fcntls)?),
        (libc::SYS_ioctl, one_of(1, &ioctls)?),
        (libc::SYS_kill, one_of(0, &[own_pid])?),
        (libc::SYS_tgkill, one_of(0, &[own_pid])?),
        (libc::SYS_prctl, one_of(0, &names)?),
        (libc::SYS_prlimit64, vec![no_new_limits]),
    ]))
}

const CLONE_THREAD: u64 = libc::CLONE_THREAD.unsigned_abs() as u64;
/// What makes a clone more than a thread, where it must be one.
const CLONE_FLAGS: u64 = CLONE_THREAD
    | (libc::CLONE_NEWNS
        | libc::CLONE_NEWCGROUP
        | libc::CLONE_NEWUTS
        | libc::CLONE_NEWIPC
        | libc::CLONE_NEWUSER
        | libc::CLONE_NEWPID
        | libc::CLONE_NEWNET)
        .unsigned_abs() as u64;

/// Calls that open files, and which of their arguments has the flags.
const OPENS: &[(c_long, u8)] = &[
    (libc::SYS_openat, 2),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_open, 1),
];

#[rustfmt::skip]
const ALLOWED: &[c_long] = &[
    // Refused by another filter, in full or in part.
    libc::SYS_clone3, libc::SYS_openat2, libc::SYS_openat,
    // Open files.
    libc::SYS_read, libc::SYS_readv, libc::SYS_pread64, libc::SYS_write, libc::SYS_writev, libc::SYS_lseek,
    libc::SYS_close, libc::SYS_close_range, libc::SYS_dup, libc::SYS_dup3, libc::SYS_pipe2, libc::SYS_ppoll,
    libc::SYS_pselect6, libc::SYS_fadvise64,
    // Names and attributes.
    libc::SYS_newfstatat, libc::SYS_fstat, libc::SYS_statx, libc::SYS_getdents64, libc::SYS_readlinkat,
    libc::SYS_faccessat, libc::SYS_faccessat2, libc::SYS_getcwd, libc::SYS_chdir, libc::SYS_fchdir, libc::SYS_umask,
    // Memory.
    libc::SYS_brk, libc::SYS_mmap, libc::SYS_munmap, libc::SYS_mremap, libc::SYS_mprotect, libc::SYS_madvise,
    libc::SYS_membarrier,
    // Threads and the process itself. `execve` is how it becomes the interpreter; later it only replaces one
    // limited program by another.
    libc::SYS_execve, libc::SYS_exit, libc::SYS_exit_group, libc::SYS_futex, libc::SYS_set_robust_list,
    libc::SYS_set_tid_address, libc::SYS_rseq, libc::SYS_sched_yield, libc::SYS_sched_getaffinity,
    libc::SYS_sched_getparam, libc::SYS_sched_getscheduler, libc::SYS_sched_get_priority_max,
    libc::SYS_sched_get_priority_min, libc::SYS_getcpu, libc::SYS_getpid, libc::SYS_getppid, libc::SYS_gettid,
    libc::SYS_getpgid, libc::SYS_getsid, libc::SYS_getuid, libc::SYS_geteuid, libc::SYS_getgid, libc::SYS_getegid,
    libc::SYS_getresuid, libc::SYS_getresgid, libc::SYS_getgroups, libc::SYS_getrusage, libc::SYS_times,
    libc::SYS_uname, libc::SYS_sysinfo, libc::SYS_getrandom,
    // Signals to oneself, clocks and timers.
    libc::SYS_rt_sigaction, libc::SYS_rt_sigprocmask, libc::SYS_rt_sigreturn, libc::SYS_rt_sigpending,
    libc::SYS_rt_sigsuspend, libc::SYS_rt_sigtimedwait, libc::SYS_sigaltstack, libc::SYS_restart_syscall,
    libc::SYS_setitimer, libc::SYS_getitimer, libc::SYS_nanosleep, libc::SYS_clock_nanosleep,
    libc::SYS_clock_gettime, libc::SYS_clock_getres, libc::SYS_gettimeofday,
];

#[cfg(target_arch = "x86_64")]
#[rustfmt::skip]
const ALLOWED_HERE: &[c_long] = &[
    libc::SYS_open, libc::SYS_dup2, libc::SYS_pipe, libc::SYS_poll, libc::SYS_select, libc::SYS_stat, libc::SYS_lstat,
    libc::SYS_readlink, libc::SYS_access, libc::SYS_arch_prctl, libc::SYS_getpgrp, libc::SYS_getrlimit,
    libc::SYS_alarm, libc::SYS_pause, libc::SYS_time,
];

#[cfg(not(target_arch = "x86_64"))]
const ALLOWED_HERE: &[c_long] = &[];
