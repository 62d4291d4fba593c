//! `--device`: where the native engine runs. The only place that knows which devices there are.

use std::path::PathBuf;
use std::sync::Arc;
use std::thread::available_parallelism;

use anyhow::{Context, bail};
use ponder_kernels::{KvDtype, ThreadPool, use_bf16_activations};
use ponder_kernels_cuda::{CudaError, Gpu};

use super::engine_args::{DeviceArg, Dtype, EngineArgs};
use super::progress::Counter;
use crate::engine::{CudaExecutor, Executor, ModelExecutor, config};
use crate::model::{
    CpuOps, CudaOps, Decoder, LoadOptions, ModelFiles, OperatorTimes, Ops, Quantization,
    RandomModel, catalogue, load_on,
};

/// KV memory when neither a flag nor the operating system says how much there is.
const FALLBACK_KV_BYTES: usize = 1 << 30;

/// Where a model runs.
pub(super) enum Device {
    Cpu(Arc<ThreadPool>),
    Cuda {
        gpu: Gpu,
        /// Share of its memory that Ponder may use.
        utilization: f64,
    },
}

/// Where a model's weights come from.
#[derive(Clone, Copy)]
pub(super) enum Weights<'a> {
    Files(&'a ModelFiles),
    Random(&'a RandomModel),
}

/// How a model is loaded.
#[derive(Clone, Copy)]
pub(super) struct LoadShape {
    pub max_model_len: usize,
    /// What float weights become.
    pub quantize: Option<Quantization>,
    pub kv_cache_dtype: KvDtype,
}

impl LoadShape {
    pub(super) fn new(args: &EngineArgs, max_model_len: usize) -> Self {
        Self {
            max_model_len,
            quantize: args.quantize,
            kv_cache_dtype: args.kv_cache_dtype.dtype(),
        }
    }
}

/// Compiled kernels lie beside the models.
pub(super) fn kernel_cache() -> Option<PathBuf> {
    Some(catalogue::home().join("kernels"))
}

/// A GPU keeps keys and values as f16 alone.
fn check_kv_cache_dtype(args: &EngineArgs) -> anyhow::Result<()> {
    let dtype = args.kv_cache_dtype.dtype();
    if dtype != KvDtype::F16 {
        let name = dtype.name();
        bail!("--kv-cache-dtype {name} is not yet on the device: take --device cpu");
    }
    Ok(())
}

impl Device {
    /// The device that the flags name. `auto` takes the processor where no GPU can be used, and logs why when there is one.
    pub(super) fn open(args: &EngineArgs) -> anyhow::Result<Self> {
        let index = match args.device.device {
            DeviceArg::Cpu => return Self::cpu(args),
            DeviceArg::Auto => 0,
            DeviceArg::Cuda(index) => {
                check_kv_cache_dtype(args)?;
                index
            }
        };
        let opened = Gpu::open(index, kernel_cache().as_deref());
        let utilization = args.device.gpu_memory_utilization;
        match opened {
            Ok(_) if args.dtype == Dtype::Float32 => {
                bail!("--dtype float32 is for processors: use it with --device cpu")
            }
            Ok(gpu) => {
                check_kv_cache_dtype(args)?;
                tracing::info!("running on {}", gpu.properties().name);
                Ok(Self::Cuda { gpu, utilization })
            }
            Err(CudaError::NoDriver | CudaError::NoDevice { .. })
                if args.device.device == DeviceArg::Auto =>
            {
                Self::cpu(args)
            }
            Err(error) if args.device.device == DeviceArg::Auto => {
                tracing::warn!("the GPU is not used: {error}");
                Self::cpu(args)
            }
            Err(error) => Err(error).with_context(|| format!("--device cuda:{index}")),
        }
    }

    fn cpu(args: &EngineArgs) -> anyhow::Result<Self> {
        Ok(Self::Cpu(cpu_pool(args)?))
    }

    pub(super) fn default_num_batched_tokens(&self) -> usize {
        match self {
            Self::Cpu(_) => config::DEFAULT_MAX_NUM_BATCHED_TOKENS,
            Self::Cuda { .. } => config::DEFAULT_MAX_NUM_BATCHED_TOKENS_ON_GPU,
        }
    }

    /// A model with what runs its steps.
    pub(super) fn load(
        &self,
        weights: Weights<'_>,
        shape: LoadShape,
        operator_times: Option<Arc<OperatorTimes>>,
    ) -> anyhow::Result<Box<dyn Executor>> {
        Ok(match self {
            Self::Cpu(pool) => {
                let ops = CpuOps::new(Arc::clone(pool));
                let options = load_options(shape, Some(Arc::clone(pool)), operator_times);
                let model = decoder(ops, weights, options)?;
                Box::new(ModelExecutor::new(Box::new(model)))
            }
            Self::Cuda { gpu, .. } => {
                let ops = CudaOps::new(gpu.clone());
                let options = load_options(shape, None, operator_times);
                let model = decoder(ops, weights, options)?;
                Box::new(CudaExecutor::new(model))
            }
        })
    }

    /// Bytes for the KV cache when no flag says: a quarter of the memory that is free; on a GPU all that its share leaves beside
    /// weights and the buffers of a step of `max_num_rows` rows.
    pub(super) fn kv_cache_bytes(
        &self,
        executor: &dyn Executor,
        max_num_rows: usize,
    ) -> anyhow::Result<usize> {
        let Self::Cuda { gpu, utilization } = self else {
            return Ok(free_memory().map_or(FALLBACK_KV_BYTES, |free| free / 4));
        };
        let (total, free) = (gpu.properties().total_memory, gpu.free_memory()?);
        let kept_back = (total as f64 * (1.0 - utilization)) as usize;
        let buffers = executor.step_bytes(max_num_rows);
        Ok(free.saturating_sub(kept_back).saturating_sub(buffers))
    }
}

/// The processor's threads. Says what BF16 weights are multiplied with, too, once a process.
pub(super) fn cpu_pool(args: &EngineArgs) -> anyhow::Result<Arc<ThreadPool>> {
    let rounds = use_bf16_activations(args.dtype != Dtype::Float32);
    if args.dtype == Dtype::Bfloat16 && !rounds {
        bail!(
            "--dtype bfloat16 needs a processor with AVX512-BF16: leave it out, and activations \
             are float32"
        );
    }
    Ok(Arc::new(ThreadPool::new(args.num_threads().max(1))))
}

/// Without a pool the machine's cores quantise.
fn load_options(
    shape: LoadShape,
    pool: Option<Arc<ThreadPool>>,
    operator_times: Option<Arc<OperatorTimes>>,
) -> LoadOptions {
    let bar = Counter::of_unknown("loading");
    LoadOptions {
        num_threads: available_parallelism().map_or(1, usize::from),
        pool,
        max_model_len: Some(shape.max_model_len),
        quantize: shape.quantize,
        kv_cache_dtype: shape.kv_cache_dtype,
        operator_times,
        progress: Some(Arc::new(move |done, total| {
            bar.set(done as u64, total as u64)
        })),
    }
}

fn decoder<O: Ops>(
    ops: O,
    weights: Weights<'_>,
    options: LoadOptions,
) -> anyhow::Result<Decoder<O>> {
    Ok(match weights {
        Weights::Files(files) => load_on(ops, files, options)?,
        Weights::Random(model) => model.load(ops, options)?,
    })
}

/// Bytes of memory that are free now.
fn free_memory() -> Option<usize> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: usize = line.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(kib * 1024)
}
