//! A device by NVIDIA's driver. Everything goes through one stream, in order.

use std::collections::HashMap;
use std::ffi::{CStr, CString, c_void};
use std::path::Path;
use std::ptr;
use std::sync::{Mutex, MutexGuard, PoisonError};

use cudarc::driver::sys::{self, CUdevice_attribute as Attribute, CUresult};

use super::call::{call, check};
use super::staging::Staging;
use super::timing::{KernelTimes, Timer};
use super::{Args, CudaError, Grid, Properties, compile};

/// Oldest compute capability that has the instructions the kernels use (bf16 products, asynchronous copies).
const MIN_MAJOR: u32 = 8;

/// A kernel that was looked up.
#[derive(Clone, Copy)]
struct Function(sys::CUfunction);

// SAFETY: handles may be used from any thread that has the context.
unsafe impl Send for Function {}

pub(crate) struct Driver {
    device: sys::CUdevice,
    context: sys::CUcontext,
    stream: sys::CUstream,
    modules: Vec<sys::CUmodule>,
    functions: Mutex<HashMap<&'static str, Function>>,
    max_shared_bytes: usize,
    /// Pinned memory that copies go through.
    staging: Mutex<Staging>,
    /// While kernels are timed.
    timer: Mutex<Option<Timer>>,
}

// SAFETY: the driver's handles may be used from any thread that has the context, and every call sets it.
unsafe impl Send for Driver {}
// SAFETY: the driver locks what it shares; our own state is behind mutexes.
unsafe impl Sync for Driver {}

/// A graph that was made ready to run.
pub(crate) struct CapturedGraph {
    graph: sys::CUgraph,
    exec: sys::CUgraphExec,
}

// SAFETY: see `Driver`.
unsafe impl Send for CapturedGraph {}

impl Drop for CapturedGraph {
    fn drop(&mut self) {
        // SAFETY: both are ours and are not used again. The graph's owner keeps the context alive.
        unsafe {
            sys::cuGraphExecDestroy(self.exec);
            sys::cuGraphDestroy(self.graph);
        }
    }
}

fn device_name(device: sys::CUdevice) -> String {
    let mut name = [0_u8; 256];
    // SAFETY: the driver writes at most 255 bytes and a zero.
    unsafe {
        sys::cuDeviceGetName(name.as_mut_ptr().cast(), 255, device);
    }
    let text = CStr::from_bytes_until_nul(&name).map(CStr::to_string_lossy);
    text.map_or_else(|_| "GPU".to_owned(), |text| text.into_owned())
}

fn properties(device: sys::CUdevice) -> Result<Properties, CudaError> {
    let attribute = |which: Attribute| {
        let mut value = 0;
        // SAFETY: writes one integer.
        unsafe { call!(cuDeviceGetAttribute(&mut value, which, device)) }?;
        Ok::<_, CudaError>(value as u32)
    };
    let mut total_memory = 0;
    // SAFETY: writes one size.
    unsafe { call!(cuDeviceTotalMem_v2(&mut total_memory, device)) }?;
    Ok(Properties {
        name: device_name(device),
        major: attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
        minor: attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        num_multiprocessors: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?
            as usize,
        max_shared_bytes: attribute(
            Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN,
        )? as usize,
        total_memory,
    })
}

impl Driver {
    pub(crate) fn open(
        index: usize,
        cache_dir: Option<&Path>,
    ) -> Result<(Self, Properties), CudaError> {
        // SAFETY: opening the driver's library has no effect of its own.
        if !unsafe { sys::is_culib_present() } {
            return Err(CudaError::NoDriver);
        }
        let (mut count, mut device) = (0, 0);
        // SAFETY: plain calls with room for what they write.
        unsafe {
            // A driver without a device says so here.
            if sys::cuInit(0) == CUresult::CUDA_SUCCESS {
                call!(cuDeviceGetCount(&mut count))?;
            }
        }
        let count = count.max(0) as usize;
        if index >= count {
            return Err(CudaError::NoDevice { index, count });
        }
        // SAFETY: as above; there is such a device.
        unsafe { call!(cuDeviceGet(&mut device, index as i32)) }?;
        let properties = properties(device)?;
        if properties.major < MIN_MAJOR {
            let (major, minor) = (properties.major, properties.minor);
            let name = properties.name;
            return Err(CudaError::TooOld { name, major, minor });
        }
        let cubins = compile::cubins(&properties.arch(), cache_dir)?;
        let (mut context, mut stream) = (ptr::null_mut(), ptr::null_mut());
        let mut modules = Vec::with_capacity(cubins.len());
        // SAFETY: the context is retained once and released with the driver; cubins are whole ELF files.
        unsafe {
            call!(cuDevicePrimaryCtxRetain(&mut context, device))?;
            call!(cuCtxSetCurrent(context))?;
            // Non-blocking: nothing of ours uses the null stream.
            call!(cuStreamCreate(&mut stream, 1))?;
            for cubin in &cubins {
                let mut module = ptr::null_mut();
                call!(cuModuleLoadData(&mut module, cubin.as_ptr().cast()))?;
                modules.push(module);
            }
        }
        let driver = Self {
            device,
            context,
            stream,
            modules,
            functions: Mutex::default(),
            max_shared_bytes: properties.max_shared_bytes,
            staging: Mutex::new(Staging::new(stream)?),
            timer: Mutex::new(None),
        };
        Ok((driver, properties))
    }

    fn enter(&self) -> Result<(), CudaError> {
        // SAFETY: the context lives as long as the driver.
        unsafe { call!(cuCtxSetCurrent(self.context)) }
    }

    fn staging(&self) -> MutexGuard<'_, Staging> {
        self.staging.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn free_memory(&self) -> Result<usize, CudaError> {
        self.enter()?;
        let (mut free, mut total) = (0, 0);
        // SAFETY: writes two sizes.
        unsafe { call!(cuMemGetInfo_v2(&mut free, &mut total)) }?;
        Ok(free)
    }

    pub(crate) fn alloc(&self, nbytes: usize) -> Result<u64, CudaError> {
        self.enter()?;
        let mut address = 0;
        // SAFETY: a new allocation of that size, filled with zeros.
        unsafe {
            let result = sys::cuMemAlloc_v2(&mut address, nbytes.max(1));
            if result == CUresult::CUDA_ERROR_OUT_OF_MEMORY {
                let free = self.free_memory()? >> 20;
                let wanted = nbytes.div_ceil(1 << 20);
                return Err(CudaError::OutOfMemory { wanted, free });
            }
            check("cuMemAlloc", result)?;
            call!(cuMemsetD8Async(address, 0, nbytes.max(1), self.stream))?;
        }
        Ok(address)
    }

    pub(crate) fn free(&self, address: u64, _: usize) {
        if self.enter().is_ok() {
            // SAFETY: allocated by `alloc`, freed once. The driver waits for what still uses it.
            unsafe {
                sys::cuMemFree_v2(address);
            }
        }
    }

    /// # Safety
    /// Both sides have `nbytes` bytes.
    pub(crate) unsafe fn write(
        &self,
        address: u64,
        source: *const u8,
        nbytes: usize,
    ) -> Result<(), CudaError> {
        self.enter()?;
        // SAFETY: as the caller promises.
        unsafe { self.staging().write(address, source, nbytes) }
    }

    /// # Safety
    /// Both sides have `nbytes` bytes.
    pub(crate) unsafe fn read(
        &self,
        address: u64,
        target: *mut u8,
        nbytes: usize,
    ) -> Result<(), CudaError> {
        self.enter()?;
        // SAFETY: as the caller promises.
        unsafe { self.staging().read(address, target, nbytes) }
    }

    /// # Safety
    /// Both sides have `nbytes` bytes, and do not overlap.
    pub(crate) unsafe fn copy(&self, from: u64, to: u64, nbytes: usize) -> Result<(), CudaError> {
        self.enter()?;
        // SAFETY: as the caller promises.
        unsafe { call!(cuMemcpyDtoDAsync_v2(to, from, nbytes, self.stream)) }
    }

    fn function(&self, name: &'static str) -> Result<Function, CudaError> {
        let mut functions = self
            .functions
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(function) = functions.get(name) {
            return Ok(*function);
        }
        let symbol = CString::new(name).expect("kernels have no zero in their names");
        let mut handle = ptr::null_mut();
        // SAFETY: modules are loaded; the name ends with a zero.
        let is_found = self.modules.iter().any(|module| unsafe {
            sys::cuModuleGetFunction(&mut handle, *module, symbol.as_ptr())
                == CUresult::CUDA_SUCCESS
        });
        if !is_found {
            return Err(CudaError::Unsupported(format!("no kernel {name}")));
        }
        use sys::CUfunction_attribute::{
            CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES as DYNAMIC,
            CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT as CARVEOUT,
            CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES as STATIC,
        };
        let mut of_its_own = 0;
        // SAFETY: plain calls on a kernel that was found.
        unsafe {
            call!(cuFuncGetAttribute(&mut of_its_own, STATIC, handle))?;
            let left = self.max_shared_bytes as i32 - of_its_own;
            call!(cuFuncSetAttribute(handle, DYNAMIC, left))?;
            // Kernels stream through shared memory: as many blocks as fit should find room.
            call!(cuFuncSetAttribute(handle, CARVEOUT, 100))?;
        }
        functions.insert(name, Function(handle));
        Ok(Function(handle))
    }

    /// # Safety
    /// The arguments are the kernel's parameters, and what it touches lives.
    pub(crate) unsafe fn launch(
        &self,
        kernel: &'static str,
        grid: Grid,
        args: &Args,
    ) -> Result<(), CudaError> {
        self.enter()?;
        let function = self.function(kernel)?;
        let [x, y, z] = grid.blocks;
        let mut pointers: Vec<*mut c_void> = args.pointers();
        let params = pointers.as_mut_ptr();
        // SAFETY: as the caller promises; the driver copies the arguments before it returns.
        let launch = || unsafe {
            let result = sys::cuLaunchKernel(
                function.0,
                x,
                y,
                z,
                grid.threads,
                1,
                1,
                grid.shared_bytes,
                self.stream,
                params,
                ptr::null_mut(),
            );
            check(kernel, result)
        };
        match &mut *self.timer() {
            Some(timer) => timer.time(kernel, self.stream, launch),
            None => launch(),
        }
    }

    fn timer(&self) -> MutexGuard<'_, Option<Timer>> {
        self.timer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts or ends the timing of kernels; what was timed so far.
    pub(crate) fn time_kernels(&self, is_on: bool) -> Result<KernelTimes, CudaError> {
        self.enter()?;
        let timer = is_on.then(Timer::new).transpose()?;
        let before = std::mem::replace(&mut *self.timer(), timer);
        Ok(before
            .map(|mut timer| std::mem::take(&mut timer.times))
            .unwrap_or_default())
    }

    pub(crate) fn is_timing(&self) -> bool {
        self.timer().is_some()
    }

    pub(crate) fn synchronize(&self) -> Result<(), CudaError> {
        self.enter()?;
        // SAFETY: the stream is ours.
        unsafe { call!(cuStreamSynchronize(self.stream)) }
    }

    pub(crate) fn begin_capture(&self) -> Result<(), CudaError> {
        self.enter()?;
        let mode = sys::CUstreamCaptureMode_enum::CU_STREAM_CAPTURE_MODE_RELAXED;
        // SAFETY: the stream is ours.
        unsafe { call!(cuStreamBeginCapture_v2(self.stream, mode)) }
    }

    pub(crate) fn end_capture(&self) -> Result<super::gpu::Captured, CudaError> {
        let (mut graph, mut exec) = (ptr::null_mut(), ptr::null_mut());
        // SAFETY: ends what `begin_capture` began; the graph is owned by the result.
        unsafe {
            call!(cuStreamEndCapture(self.stream, &mut graph))?;
            let made = call!(cuGraphInstantiateWithFlags(&mut exec, graph, 0));
            if let Err(error) = made {
                sys::cuGraphDestroy(graph);
                return Err(error);
            }
        }
        Ok(super::gpu::Captured::Driver(CapturedGraph { graph, exec }))
    }

    pub(crate) fn replay(&self, captured: &super::gpu::Captured) -> Result<(), CudaError> {
        self.enter()?;
        match captured {
            super::gpu::Captured::Driver(graph) => {
                // SAFETY: the graph is whole, and its buffers live with their owners.
                unsafe { call!(cuGraphLaunch(graph.exec, self.stream)) }
            }
            #[cfg(feature = "emulator")]
            super::gpu::Captured::Emulator(_) => {
                Err(CudaError::Unsupported("another device's graph".to_owned()))
            }
        }
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        if self.enter().is_err() {
            return;
        }
        // SAFETY: all are ours; nothing uses them any more.
        unsafe {
            sys::cuStreamSynchronize(self.stream);
            self.staging().release();
            // Its events are the context's, and fields are dropped when that is gone.
            drop(self.timer().take());
            for module in &self.modules {
                sys::cuModuleUnload(*module);
            }
            sys::cuStreamDestroy_v2(self.stream);
            sys::cuDevicePrimaryCtxRelease_v2(self.device);
        }
    }
}
