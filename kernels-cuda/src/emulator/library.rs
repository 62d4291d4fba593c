//! Kernels as shared libraries: one for each source file, compiled when a launch first asks for it.

use std::collections::HashMap;
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::{env, fs};

use libloading::Library;
use sha2::{Digest, Sha256};

use super::{LAUNCH_FAILED, Launch, failure};
use crate::CudaError;

/// No fusing but where it is written, and no guesses about aliasing: as the device's compiler has
/// it.
const FLAGS: [&str; 13] = [
    "-std=c++20",
    "-O2",
    "-shared",
    "-fPIC",
    "-march=native",
    "-ffp-contract=off",
    "-fno-strict-aliasing",
    "-fwrapv",
    "-fno-exceptions",
    "-fno-gnu-unique",
    "-fvisibility=hidden",
    "-w",
    "-DPONDER_EMULATED",
];

/// As `emulator_launch.hpp` has it.
#[repr(C)]
struct RawLaunch {
    blocks: [u32; 3],
    threads: u32,
    shared_bytes: u32,
    args: *mut *mut c_void,
    arg_sizes: *const usize,
    num_args: usize,
}

type HasKernel = unsafe extern "C" fn(*const c_char) -> c_int;
type RunKernel = unsafe extern "C" fn(*const c_char, *const RawLaunch) -> *const c_char;

struct Source {
    file: String,
    text: String,
    /// Or why there is none: a file that does not compile is tried once.
    library: Option<Result<Library, CudaError>>,
}

impl Source {
    /// Whether the file's name is made of words of the kernel's.
    fn is_named_for(&self, kernel: &str) -> bool {
        let stem = self.file.trim_end_matches(".cu");
        stem.split('_').all(|word| kernel.contains(word))
    }
}

/// All kernels. Its lock is held while one runs: fibers and static shared memory are a process's
/// only ones.
struct Kernels {
    sources: Vec<Source>,
    headers: String,
    /// Which source has a kernel.
    places: HashMap<&'static str, usize>,
}

static KERNELS: Mutex<Option<Kernels>> = Mutex::new(None);

/// Runs a launch to its end.
///
/// # Safety
/// The arguments are the kernel's parameters, and what they point to is there.
pub(super) unsafe fn run(launch: &Launch) -> Result<(), CudaError> {
    let mut kernels = KERNELS.lock().unwrap_or_else(PoisonError::into_inner);
    let kernels = kernels.get_or_insert_with(Kernels::new);
    let place = kernels.find(launch.kernel)?;
    let library = kernels.load(place)?;
    let name = c_string(launch.kernel);
    let sizes = launch.args.sizes();
    let mut pointers = launch.args.pointers();
    let raw = RawLaunch {
        blocks: launch.grid.blocks,
        threads: launch.grid.threads,
        shared_bytes: launch.grid.shared_bytes,
        args: pointers.as_mut_ptr(),
        arg_sizes: sizes.as_ptr(),
        num_args: sizes.len(),
    };
    // SAFETY: the library exports the function; the lock keeps others out; the arguments are the
    // caller's promise. The message lives until the next launch.
    unsafe {
        let run = library.get::<RunKernel>(b"ponder_emulator_launch");
        let run = run.expect("every library has it");
        let message = run(name.as_ptr(), &raw);
        if message.is_null() {
            return Ok(());
        }
        let message = CStr::from_ptr(message).to_string_lossy().into_owned();
        Err(failure("emulated launch", LAUNCH_FAILED, message))
    }
}

fn c_string(name: &str) -> CString {
    CString::new(name).expect("a kernel's name has no NUL")
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src/kernels")
}

fn files_with(extension: &str) -> Vec<(String, String)> {
    let entries = fs::read_dir(folder()).expect("the kernels' folder is there");
    let mut files: Vec<_> = entries
        .flatten()
        .filter_map(|entry| {
            let name = entry.file_name().to_str()?.to_owned();
            let is_wanted = name.ends_with(extension);
            is_wanted.then(|| Some((name, fs::read_to_string(entry.path()).ok()?)))?
        })
        .collect();
    files.sort();
    files
}

impl Kernels {
    fn new() -> Self {
        let mut sources = files_with(".cu");
        if cfg!(test) {
            let text = include_str!("test_kernels.cu").to_owned();
            sources.push(("test_kernels.cu".to_owned(), text));
        }
        let headers: Vec<String> = [".cuh", ".hpp"]
            .iter()
            .flat_map(|extension| files_with(extension))
            .map(|(name, text)| format!("{name}\n{text}\n"))
            .collect();
        let source = |(file, text)| Source {
            file,
            text,
            library: None,
        };
        Self {
            sources: sources.into_iter().map(source).collect(),
            headers: headers.concat(),
            places: HashMap::new(),
        }
    }

    /// Which source has a kernel; its library is loaded.
    fn find(&mut self, kernel: &'static str) -> Result<usize, CudaError> {
        if let Some(place) = self.places.get(kernel) {
            return Ok(*place);
        }
        // A file spells its kernels out, or a macro puts their names together: likely files come
        // first.
        let mut order: Vec<usize> = (0..self.sources.len()).collect();
        order.sort_by_key(|place| {
            let source = &self.sources[*place];
            let text = &source.text;
            (
                !text.contains(kernel),
                !source.is_named_for(kernel),
                !text.contains("##"),
            )
        });
        let name = c_string(kernel);
        for place in order {
            let library = self.load(place)?;
            // SAFETY: the library exports the function, which reads the name alone.
            let has_kernel = unsafe {
                let has = library.get::<HasKernel>(b"ponder_emulator_has");
                has.expect("every library has it")(name.as_ptr()) != 0
            };
            if has_kernel {
                self.places.insert(kernel, place);
                return Ok(place);
            }
        }
        let message = format!("no kernel file exports {kernel}");
        Err(failure("emulated launch", LAUNCH_FAILED, message))
    }

    fn load(&mut self, place: usize) -> Result<&Library, CudaError> {
        let source = &mut self.sources[place];
        let (file, text) = (&source.file, &source.text);
        let library = source.library.get_or_insert_with(|| {
            let path = compile(file, text, &self.headers)?;
            // SAFETY: it was compiled from our own sources; starting it only lists its kernels.
            let library = unsafe { Library::new(&path) };
            library.map_err(|e| compile_error(file, e.to_string()))
        });
        library.as_ref().map_err(Clone::clone)
    }
}

fn compile_error(file: &str, log: String) -> CudaError {
    eprintln!("{file} does not compile for the emulator:\n{log}");
    CudaError::Compile {
        // Errors name embedded files; this one is read at run time, in tests.
        file: String::leak(file.to_owned()),
        arch: "the emulator".to_owned(),
        log,
    }
}

/// Where compiled kernels are kept between runs.
fn cache() -> PathBuf {
    let target = env::var_os("CARGO_TARGET_DIR").map(PathBuf::from);
    let default = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../target");
    target.unwrap_or_else(default).join("cuda-emulator")
}

/// Compiles a file, unless it was compiled before.
fn compile(file: &str, text: &str, headers: &str) -> Result<PathBuf, CudaError> {
    let compiler = env::var("CXX").unwrap_or_else(|_| "c++".to_owned());
    let mut hash = Sha256::new();
    // The machine counts: the code is for its instruction set.
    let machine = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let flags = machine.lines().find(|line| line.starts_with("flags"));
    for part in [
        &compiler,
        file,
        text,
        headers,
        &FLAGS.concat(),
        flags.unwrap_or(""),
    ] {
        hash.update(part.len().to_le_bytes());
        hash.update(part);
    }
    let digest = hash.finalize();
    let digest: String = digest[..12]
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let cache = cache();
    let path = cache.join(format!("{file}-{digest}.so"));
    if path.exists() {
        return Ok(path);
    }
    let partial = cache.join(format!("{file}-{digest}.{}.part", std::process::id()));
    let failed = |what: String| compile_error(file, what);
    fs::create_dir_all(&cache).map_err(|e| failed(e.to_string()))?;
    // A namespace of their own: names of the kernels and of the system's headers may be the same.
    let unit = format!(
        "#include \"common.cuh\"\nnamespace kernel_file {{\n#line 1 \"{file}\"\n{text}\n}}\n"
    );
    let mut child = Command::new(&compiler)
        .args(FLAGS)
        .arg("-I")
        .arg(folder())
        .arg("-o")
        .arg(&partial)
        .args(["-x", "c++", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|e| failed(format!("{compiler} does not start: {e}")))?;
    let mut input = child.stdin.take().expect("it is piped");
    // A compiler that gives up early says why by itself.
    let _ = input.write_all(unit.as_bytes());
    drop(input);
    let output = child
        .wait_with_output()
        .map_err(|e| failed(e.to_string()))?;
    if !output.status.success() {
        return Err(failed(String::from_utf8_lossy(&output.stderr).into_owned()));
    }
    fs::rename(&partial, &path).map_err(|e| failed(e.to_string()))?;
    Ok(path)
}
