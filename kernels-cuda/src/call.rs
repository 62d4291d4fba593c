//! Calls of the driver, whose results become errors.

use std::ffi::CStr;
use std::ptr;

use cudarc::driver::sys::{self, CUresult};

use super::CudaError;

/// A call that failed as an error.
pub(crate) fn check(call: &'static str, result: CUresult) -> Result<(), CudaError> {
    if result == CUresult::CUDA_SUCCESS {
        return Ok(());
    }
    let mut text = ptr::null();
    // SAFETY: the driver gives a static string or none.
    let message = unsafe {
        match sys::cuGetErrorString(result, &mut text) {
            CUresult::CUDA_SUCCESS if !text.is_null() => {
                CStr::from_ptr(text).to_string_lossy().into_owned()
            }
            _ => "unknown error".to_owned(),
        }
    };
    let code = result as u32;
    Err(CudaError::Driver {
        call,
        code,
        message,
        is_sticky: is_sticky(code),
    })
}

/// Errors after which the context answers every call with the same: faults of kernels, lost devices, broken memory.
fn is_sticky(code: u32) -> bool {
    matches!(code, 4 | 201 | 202 | 214 | 219 | 220 | 700..=702 | 709..=720 | 999)
}

macro_rules! call {
    ($name:ident($($arg:expr),*)) => {
        $crate::call::check(stringify!($name), cudarc::driver::sys::$name($($arg),*))
    };
}
pub(crate) use call;
