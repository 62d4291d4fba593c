//! The processor, the memory and the GPU.

use std::path::Path;
use std::thread::available_parallelism;

use ponder_kernels_cuda::{CudaError, Gpu};

use super::report::Finding;
use crate::cli::device::kernel_cache;
use crate::model::catalogue::{DEFAULT_MODEL, Entry};

/// Of control groups: a limit above is none.
const NO_LIMIT: u64 = 1 << 60;
/// Connections, models and traces are files.
#[cfg(unix)]
const MIN_OPEN_FILES: u64 = 1024;

pub(super) fn processor() -> Finding {
    let threads = available_parallelism().map_or(1, usize::from);
    let threads = match threads {
        1 => "1 thread".to_owned(),
        threads => format!("{threads} threads"),
    };
    let (isa, available) = (ponder_kernels::isa(), ponder_kernels::available_isas());
    let best = available.first().copied().unwrap_or(isa);
    let found = format!("{isa} kernels (of {}), {threads}", available.join(", "));
    if isa != best {
        let advice =
            format!("PONDER_ISA chooses them: without it they are {best}, which is faster");
        return Finding::warning("processor", found, advice);
    }
    if best == "portable" {
        let advice = "answers come several times slower than on a processor with AVX2, \
                      AVX-512 VNNI or AMX";
        return Finding::warning("processor", found, advice);
    }
    Finding::ok("processor", found)
}

/// Bytes of the machine's memory.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Memory {
    total: u64,
    free: u64,
    /// Of the control groups that this process is in.
    limit: Option<u64>,
}

pub(super) fn memory() -> Finding {
    let read = |path: &str| std::fs::read_to_string(path).ok();
    let text = read("/proc/meminfo").unwrap_or_default();
    let (Some(total), Some(free)) = (field(&text, "MemTotal:"), field(&text, "MemAvailable:"))
    else {
        let advice = "pass --kv-cache-memory SIZE: without it a KV cache has 1 GiB";
        return Finding::warning(
            "memory",
            "this system does not say how much is free",
            advice,
        );
    };
    let groups = read("/proc/self/cgroup").unwrap_or_default();
    let limit = group_limit(&groups, read);
    judge(Memory { total, free, limit })
}

fn judge(memory: Memory) -> Finding {
    let Memory { total, free, limit } = memory;
    let limit = limit.filter(|limit| *limit < total);
    let mut found = format!("{} free of {}", gib(free), gib(total));
    if let Some(limit) = limit {
        found += &format!(", of which this process may have {}", gib(limit));
    }
    // The weights are mapped; the KV cache and the steps come on top.
    let weights = Entry::find(DEFAULT_MODEL).map_or(0, |entry| entry.bytes);
    let usable = limit.map_or(free, |limit| limit.min(free));
    if usable < 2 * weights {
        let advice = format!(
            "{DEFAULT_MODEL} wants {}: free some, or serve smollm2-135m",
            gib(2 * weights)
        );
        return Finding::warning("memory", found, advice);
    }
    // The default KV cache is a quarter of what the machine has free: it does not know the limit.
    match limit {
        Some(limit) if free / 4 + weights > limit => {
            let advice = format!(
                "pass --kv-cache-memory {}M: by default it is a quarter of the machine's free \
                 memory, and the kernel would end the server",
                (limit / 4) >> 20
            );
            Finding::warning("memory", found, advice)
        }
        _ => Finding::ok("memory", found),
    }
}

fn gib(bytes: u64) -> String {
    format!("{:.1} GiB", bytes as f64 / f64::from(1 << 30))
}

/// Bytes of a line such as `MemTotal:  1024 kB`.
fn field(meminfo: &str, name: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix(name))?;
    let kib: u64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(kib * 1024)
}

/// The least limit of the control groups in `/proc/self/cgroup` and of those that hold them.
fn group_limit(groups: &str, read: impl Fn(&str) -> Option<String>) -> Option<u64> {
    let mut least: Option<u64> = None;
    for line in groups.lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(group)) = (parts.next(), parts.next()) else {
            continue;
        };
        let (root, file) = match controllers {
            "" => ("/sys/fs/cgroup", "memory.max"),
            names if names.split(',').any(|name| name == "memory") => {
                ("/sys/fs/cgroup/memory", "memory.limit_in_bytes")
            }
            _ => continue,
        };
        // A container may see its own group as the root.
        for group in Path::new(group).ancestors() {
            let group = group.to_string_lossy();
            let text = read(&format!("{root}{}/{file}", group.trim_end_matches('/')));
            let limit: Option<u64> = text.and_then(|text| text.trim().parse().ok());
            let limit = limit.filter(|limit| *limit < NO_LIMIT);
            least = least.into_iter().chain(limit).min();
        }
    }
    least
}

#[cfg(unix)]
pub(super) fn open_files() -> Finding {
    use rustix::process::{Resource, getrlimit};
    match getrlimit(Resource::Nofile).current {
        Some(limit) if limit < MIN_OPEN_FILES => {
            let advice = format!("`ulimit -n {MIN_OPEN_FILES}` or more before the server starts");
            Finding::warning("open files", format!("at most {limit}"), advice)
        }
        Some(limit) => Finding::ok("open files", format!("at most {limit}")),
        None => Finding::ok("open files", "without a limit"),
    }
}

#[cfg(not(unix))]
pub(super) fn open_files() -> Finding {
    Finding::ok("open files", "without a limit that is known")
}

/// Opens the first GPU, as `--device cuda` would.
pub(super) fn gpu() -> Finding {
    let error = match Gpu::open(0, kernel_cache().as_deref()) {
        Ok(gpu) => {
            let gpu = gpu.properties();
            let memory = gib(gpu.total_memory as u64);
            let (major, minor) = (gpu.major, gpu.minor);
            let found = format!(
                "{}, {memory}, compute capability {major}.{minor}: --device cuda uses it",
                gpu.name
            );
            return Finding::ok("gpu", found);
        }
        Err(error) => error,
    };
    match error {
        CudaError::NoDriver => Finding::ok(
            "gpu",
            "none, as there is no NVIDIA driver: models run on the processor",
        ),
        CudaError::NoDevice { .. } => Finding::ok(
            "gpu",
            "none that the driver sees: models run on the processor",
        ),
        error => Finding::warning(
            "gpu",
            error.to_string(),
            "models run on the processor until this is solved",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::doctor::report::Level;

    const GIB: u64 = 1 << 30;

    #[test]
    fn limits_of_groups_are_read_in_both_forms() {
        let files = [
            ("/sys/fs/cgroup/a/b/memory.max", "max\n"),
            ("/sys/fs/cgroup/a/memory.max", "4096\n"),
            ("/sys/fs/cgroup/memory.max", "8192\n"),
            (
                "/sys/fs/cgroup/memory/x/memory.limit_in_bytes",
                "9223372036854771712",
            ),
            ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "2048"),
        ];
        let read = |path: &str| {
            let found = files.iter().find(|(name, _)| *name == path);
            found.map(|(_, text)| (*text).to_owned())
        };
        assert_eq!(group_limit("0::/a/b\n", read), Some(4096));
        assert_eq!(group_limit("0::/\n", read), Some(8192));
        assert_eq!(
            group_limit("5:cpu:/x\n4:memory,hugetlb:/x\n", read),
            Some(2048)
        );
        assert_eq!(group_limit("5:cpu:/x\n", read), None);
    }

    #[test]
    fn memory_is_judged_by_what_a_server_takes() {
        let of = |free: u64, limit: Option<u64>| {
            let total = 64 * GIB;
            judge(Memory { total, free, limit })
        };
        assert_eq!(of(32 * GIB, None).level, Level::Ok);
        assert_eq!(of(32 * GIB, Some(128 * GIB)).level, Level::Ok);
        assert_eq!(of(32 * GIB, Some(32 * GIB)).level, Level::Ok);
        let tight = of(32 * GIB, Some(4 * GIB));
        assert_eq!(tight.level, Level::Warning);
        assert!(tight.advice.unwrap().contains("--kv-cache-memory 1024M"));
        let little = of(GIB / 2, None);
        assert!(little.advice.unwrap().contains("smollm2-135m"));
        assert_eq!(field("MemTotal:  2 kB\n", "MemTotal:"), Some(2048));
        assert_eq!(field("MemTotal:  2\n", "MemTotal:"), None);
    }
}
