//! The run-time compiler, opened when it is needed.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::ptr;

use libloading::{Library, Symbol};

use super::CudaError;

/// Names that the library goes by, newest first; [`LIBRARY_VARIABLE`] comes before all.
const LIBRARY_NAMES: [&str; 8] = [
    "libnvrtc.so.13",
    "libnvrtc.so.12",
    "libnvrtc.so",
    "/usr/local/cuda/lib64/libnvrtc.so",
    "/usr/local/cuda/lib64/libnvrtc.so.13",
    "/usr/local/cuda/lib64/libnvrtc.so.12",
    "/usr/lib/x86_64-linux-gnu/libnvrtc.so.12",
    "nvrtc64_120_0.dll",
];

/// How every kernel is compiled. A product and a sum are one rounding only where the source says so:
/// else the same row might have other bits in another kernel.
pub(crate) const OPTIONS: [&str; 3] = ["--std=c++17", "-default-device", "--fmad=false"];

/// Names the library's file.
pub const LIBRARY_VARIABLE: &str = "PONDER_NVRTC";

type Program = *mut c_void;

/// libnvrtc.
pub(crate) struct Nvrtc(Library);

/// Why a program was not compiled: the compiler's own words.
pub(crate) struct CompileError(pub String);

impl Nvrtc {
    /// `None` where there is no such library.
    pub(crate) fn open() -> Option<Self> {
        let named = std::env::var(LIBRARY_VARIABLE).ok();
        let names = named.iter().map(String::as_str).chain(LIBRARY_NAMES);
        // SAFETY: NVIDIA's library does nothing when it is opened.
        let library = { names }.find_map(|name| unsafe { Library::new(name) }.ok());
        library.map(Self)
    }

    /// What its output depends on.
    pub(crate) fn version(&self) -> (i32, i32) {
        let (mut major, mut minor) = (0, 0);
        type F = unsafe extern "C" fn(*mut c_int, *mut c_int) -> c_int;
        // SAFETY: as nvrtc.h declares it.
        unsafe {
            if let Ok(version) = self.0.get::<F>(b"nvrtcVersion") {
                version(&mut major, &mut minor);
            }
        }
        (major, minor)
    }

    fn get<F>(&self, name: &str) -> Result<Symbol<'_, F>, CompileError> {
        // SAFETY: callers give the type of nvrtc.h.
        unsafe { self.0.get(name.as_bytes()) }
            .map_err(|error| CompileError(format!("{name}: {error}")))
    }

    /// Machine code of a program for `arch` (`sm_90a`). `headers` are `(name, text)`.
    pub(crate) fn compile(
        &self,
        name: &str,
        text: &str,
        headers: &[(&str, &str)],
        arch: &str,
    ) -> Result<Vec<u8>, CompileError> {
        type Create = unsafe extern "C" fn(
            *mut Program,
            *const c_char,
            *const c_char,
            c_int,
            *const *const c_char,
            *const *const c_char,
        ) -> c_int;
        type Compile = unsafe extern "C" fn(Program, c_int, *const *const c_char) -> c_int;
        type Destroy = unsafe extern "C" fn(*mut Program) -> c_int;
        let create = self.get::<Create>("nvrtcCreateProgram")?;
        let compile = self.get::<Compile>("nvrtcCompileProgram")?;
        let destroy = self.get::<Destroy>("nvrtcDestroyProgram")?;
        let owned = |text: &str| CString::new(text).map_err(|e| CompileError(e.to_string()));
        let all = |texts: Vec<&str>| texts.into_iter().map(owned).collect::<Result<Vec<_>, _>>();
        let pointers = |texts: &[CString]| texts.iter().map(|t| t.as_ptr()).collect::<Vec<_>>();
        let (source, name) = (owned(text)?, owned(name)?);
        let header_names = all(headers.iter().map(|header| header.0).collect())?;
        let header_texts = all(headers.iter().map(|header| header.1).collect())?;
        let target = format!("--gpu-architecture={arch}");
        let options = all([&[target.as_str()][..], &OPTIONS].concat())?;
        let mut program: Program = ptr::null_mut();
        // SAFETY: all strings outlive the calls; the program is destroyed once.
        unsafe {
            let rc = create(
                &mut program,
                source.as_ptr(),
                name.as_ptr(),
                headers.len() as c_int,
                pointers(&header_texts).as_ptr(),
                pointers(&header_names).as_ptr(),
            );
            if rc != 0 {
                return Err(CompileError(format!("nvrtcCreateProgram failed: {rc}")));
            }
            let rc = compile(program, options.len() as c_int, pointers(&options).as_ptr());
            let result = match rc {
                0 => self.output(program, "nvrtcGetCUBINSize", "nvrtcGetCUBIN"),
                _ => {
                    let log = self.output(program, "nvrtcGetProgramLogSize", "nvrtcGetProgramLog");
                    let text = log.map(|log| text_of(&log)).unwrap_or_default();
                    Err(CompileError(format!("error {rc}: {text}")))
                }
            };
            destroy(&mut program);
            result
        }
    }

    /// # Safety
    /// `program` is one that lives.
    unsafe fn output(
        &self,
        program: Program,
        size: &str,
        get: &str,
    ) -> Result<Vec<u8>, CompileError> {
        type Size = unsafe extern "C" fn(Program, *mut usize) -> c_int;
        type Get = unsafe extern "C" fn(Program, *mut c_char) -> c_int;
        let (size, get) = (self.get::<Size>(size)?, self.get::<Get>(get)?);
        let mut len = 0;
        // SAFETY: as nvrtc.h says, `get` writes `len` bytes.
        unsafe {
            if size(program, &mut len) != 0 {
                return Err(CompileError("the compiler gives no size".to_owned()));
            }
            let mut out = vec![0_u8; len];
            match get(program, out.as_mut_ptr().cast()) {
                0 => Ok(out),
                rc => Err(CompileError(format!("the compiler gives no output: {rc}"))),
            }
        }
    }
}

fn text_of(log: &[u8]) -> String {
    let text = CStr::from_bytes_until_nul(log).map(|text| text.to_string_lossy().into_owned());
    text.unwrap_or_default()
}

impl CompileError {
    pub(crate) fn of(self, file: &'static str, arch: &str) -> CudaError {
        CudaError::Compile {
            file,
            arch: arch.to_owned(),
            log: self.0,
        }
    }
}
