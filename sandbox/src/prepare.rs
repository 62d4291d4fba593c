//! What a child does to itself before it takes any limit: it leaves its parent's process group,
//! files and priority.

use std::{fs, io};

use rustix::process::{
    Signal, getppid, getpriority_process, set_parent_process_death_signal, setpgid,
    setpriority_process,
};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// Pools of threads have this many and a few by default, which [`super::Limits::max_threads`]
/// allows.
const MAX_CORES: usize = 1;
/// For the kernel's choice of whom to end when memory runs out.
const FIRST_TO_GO: &str = "1000";

/// Leaves what was inherited, and steps behind others in the queue for the processor by `nice`.
pub(super) fn leave_parent(nice: i32) -> Result<(), String> {
    close_inherited_files().map_err(|error| format!("inherited files: {error}"))?;
    // A process group of its own, which the parent kills and no terminal's keys reach. Not a
    // session: kernels that give each session the same share (autogroup) would ignore the priority
    // in it.
    setpgid(None, None).map_err(|error| format!("setpgid: {error}"))?;
    let told = |error: rustix::io::Errno| format!("priority: {error}");
    // Never before its parent, which may stand further behind already.
    let inherited = getpriority_process(None).map_err(told)?;
    setpriority_process(None, nice.max(inherited)).map_err(told)?;
    // Where memory runs out, it is the first to go. A kernel that does not let it choose so has its
    // reasons.
    let _ = fs::write("/proc/self/oom_score_adj", FIRST_TO_GO);
    Ok(())
}

/// Stays on a few of the cores that it may use, on other ones than its neighbours do. Programs that
/// start as many threads as there are cores then start few.
/// Where that cannot be, it stays where it is.
pub(super) fn stay_on_few_cores() {
    let Ok(usable) = sched_getaffinity(None) else {
        return;
    };
    let cores: Vec<usize> = (0..CpuSet::MAX_CPU)
        .filter(|core| usable.is_set(*core))
        .collect();
    let mut few = CpuSet::new();
    let first = std::process::id() as usize;
    for place in 0..cores.len().min(MAX_CORES) {
        few.set(cores[(first + place) % cores.len()]);
    }
    let _ = sched_setaffinity(None, &few);
}

/// Dies when the thread that started it does. To be called after the last change of user, which
/// would undo it.
pub(super) fn die_with_parent(parent: u32) -> Result<(), String> {
    set_parent_process_death_signal(Some(Signal::KILL))
        .map_err(|error| format!("death signal: {error}"))?;
    // It may have died before the line above.
    if getppid().map(|pid| pid.as_raw_nonzero().get()) != i32::try_from(parent).ok() {
        return Err("the parent is gone".to_owned());
    }
    Ok(())
}

/// Closes what the server (or who started it) left open without close-on-exec: a log, a database, a
/// socket.
fn close_inherited_files() -> io::Result<()> {
    let entries = fs::read_dir("/proc/self/fd")?.collect::<io::Result<Vec<_>>>()?;
    let numbers = entries
        .iter()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    for fd in numbers.filter(|fd: &i32| *fd > 2) {
        // The one that listed the folder is closed by now; others with the flag have owners here.
        let Ok(info) = fs::read_to_string(format!("/proc/self/fdinfo/{fd}")) else {
            continue;
        };
        if !closes_on_exec(&info) {
            nix::unistd::close(fd)?;
        }
    }
    Ok(())
}

fn closes_on_exec(fdinfo: &str) -> bool {
    let flags = fdinfo.lines().find_map(|line| line.strip_prefix("flags:"));
    let flags = flags.and_then(|octal| i32::from_str_radix(octal.trim(), 8).ok());
    flags.is_some_and(|flags| flags & libc::O_CLOEXEC != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_close_on_exec_flag_is_read() {
        assert!(closes_on_exec("pos:\t0\nflags:\t02100000\nmnt_id:\t1\n"));
        assert!(!closes_on_exec("pos:\t0\nflags:\t0100000\n"));
        assert!(!closes_on_exec(""));
    }
}
