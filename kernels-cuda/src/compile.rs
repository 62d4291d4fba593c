//! The kernels' sources, and machine code of them: from a cache, or from the compiler.

use std::fs;
use std::path::Path;
use std::sync::OnceLock;

use sha2::{Digest, Sha256};

use super::CudaError;
pub use super::nvrtc::LIBRARY_VARIABLE;
use super::nvrtc::{Nvrtc, OPTIONS};

include!(concat!(env!("OUT_DIR"), "/sources.rs"));

/// Machine code of one source file.
pub(crate) type Cubin = Vec<u8>;

/// Names cached machine code: it is as good as its sources and how they were compiled.
fn digest(file: &str, text: &str) -> String {
    let mut hash = Sha256::new();
    for option in OPTIONS {
        hash.update(option.len().to_le_bytes());
        hash.update(option);
    }
    for (name, text) in HEADERS.iter().chain(&[(file, text)]) {
        hash.update(name.len().to_le_bytes());
        hash.update(name);
        hash.update(text.len().to_le_bytes());
        hash.update(text);
    }
    let bytes = hash.finalize();
    bytes[..12]
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

/// Files whose kernels are for warpgroups, and the architecture that has them.
const WARPGROUP_FILES: &str = "product_wide_";
const WARPGROUP_ARCH: &str = "sm_90a";

/// The sources that have kernels for an architecture.
fn sources(arch: &str) -> impl Iterator<Item = &'static (&'static str, &'static str)> {
    let has_warpgroups = arch == WARPGROUP_ARCH;
    SOURCES
        .iter()
        .filter(move |(file, _)| has_warpgroups || !file.starts_with(WARPGROUP_FILES))
}

/// Machine code of every source file for `arch`. What the cache has is read; what it lacks is compiled, on all processors, and
/// written to it. A cache that cannot be written costs the next start its time, nothing else.
pub(crate) fn cubins(arch: &str, cache_dir: Option<&Path>) -> Result<Vec<Cubin>, CudaError> {
    let compiler = OnceLock::new();
    std::thread::scope(|scope| {
        let compiler = &compiler;
        let all: Vec<_> = sources(arch)
            .map(|(file, text)| scope.spawn(move || cubin(file, text, arch, cache_dir, compiler)))
            .collect();
        let join = |thread: std::thread::ScopedJoinHandle<'_, _>| match thread.join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        };
        all.into_iter().map(join).collect()
    })
}

fn cubin(
    file: &'static str,
    text: &str,
    arch: &str,
    cache_dir: Option<&Path>,
    compiler: &OnceLock<Option<Nvrtc>>,
) -> Result<Cubin, CudaError> {
    let name = format!("{file}-{arch}-{}.cubin", digest(file, text));
    let cached = cache_dir.map(|folder| folder.join(&name));
    if let Some(bytes) = cached.as_ref().and_then(|path| fs::read(path).ok())
        && bytes.starts_with(b"\x7fELF")
    {
        return Ok(bytes);
    }
    let Some(nvrtc) = compiler.get_or_init(Nvrtc::open) else {
        let arch = arch.to_owned();
        return Err(CudaError::NoCompiler { arch });
    };
    let compiled = nvrtc.compile(file, text, HEADERS, arch);
    let bytes = compiled.map_err(|error| error.of(file, arch))?;
    if let Some(path) = cached {
        // Whole or not at all: two servers may start together.
        let partial = path.with_extension(format!("{}.part", std::process::id()));
        let written = path.parent().is_some_and(|p| fs::create_dir_all(p).is_ok())
            && fs::write(&partial, &bytes).is_ok();
        if !written || fs::rename(&partial, &path).is_err() {
            let _ = fs::remove_file(&partial);
        }
    }
    Ok(bytes)
}

/// The compiler's version, where there is one: for tests that want to skip without it.
pub fn compiler_version() -> Option<(i32, i32)> {
    Nvrtc::open().map(|nvrtc| nvrtc.version())
}

/// Compiles every kernel for an architecture, without a device: `(file, bytes of machine code)`.
pub fn compile_all(arch: &str) -> Result<Vec<(&'static str, usize)>, CudaError> {
    let sizes = cubins(arch, None)?.into_iter().map(|cubin| cubin.len());
    Ok(sources(arch).map(|source| source.0).zip(sizes).collect())
}
