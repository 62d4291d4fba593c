//! Flags of every command that loads a model.

use std::path::PathBuf;
use std::thread::available_parallelism;

use clap::{Args, ValueEnum, value_parser};
use ponder_kernels::KvDtype;

use super::output_args::OutputArgs;
use super::values::{MAX_SECONDS, parse_bytes, parse_quantization, parse_speculative};
use crate::engine::config as sizes;
use crate::engine::{
    DEFAULT_NUM_SPECULATIVE_TOKENS, DEFAULT_PROMPT_LOOKUP_MIN, Speculative, SpeculativeConfig,
};
use crate::model::catalogue::DEFAULT_MODEL;
use crate::model::{Quantization, SkipSet};

/// Types of activations, by vLLM's names.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum Dtype {
    #[default]
    Auto,
    Bfloat16,
    Float32,
}

/// What every command that loads a model takes.
#[derive(Debug, Clone, Args)]
pub struct EngineArgs {
    /// Model: a name of the catalogue, a .gguf file, a safetensors folder, or hf:ORG/REPO/FILE
    #[arg(default_value = DEFAULT_MODEL, env = "PONDER_MODEL")]
    pub model: String,
    #[command(flatten)]
    pub backend: BackendArgs,
    /// Quantise float weights while the model loads
    #[arg(long, env = "PONDER_QUANTIZE", value_parser = parse_quantization, value_name = "q8_0|q4_k", help_heading = "Engine")]
    pub quantize: Option<Quantization>,
    /// Type of the activations that BF16 weights are multiplied with on a processor: bfloat16, or
    /// float32 at half the speed; auto takes bfloat16 where the processor has instructions for it
    #[arg(
        long,
        env = "PONDER_DTYPE",
        value_enum,
        default_value = "auto",
        help_heading = "Engine"
    )]
    pub dtype: Dtype,
    #[command(flatten)]
    pub device: DeviceArgs,
    /// Number of threads of the engine [default: all cores]
    #[arg(long, env = "PONDER_THREADS", help_heading = "Engine")]
    pub threads: Option<usize>,
    /// Longest prompt and answer together, in tokens [default: the model's context, at most 8192]
    #[arg(long, env = "PONDER_MAX_MODEL_LEN", help_heading = "Engine")]
    pub max_model_len: Option<usize>,
    /// Let --max-model-len exceed the model's own context, beyond which answers may be bad
    #[arg(long, env = "PONDER_ALLOW_LONG_MAX_MODEL_LEN", help_heading = "Engine")]
    pub allow_long_max_model_len: bool,
    /// Most sequences in one step
    #[arg(long, env = "PONDER_MAX_NUM_SEQS", default_value_t = sizes::DEFAULT_MAX_NUM_SEQS, help_heading = "Engine")]
    pub max_num_seqs: usize,
    /// Most tokens in one step [default: 512; on a GPU 2048]
    #[arg(long, env = "PONDER_MAX_NUM_BATCHED_TOKENS", help_heading = "Engine")]
    pub max_num_batched_tokens: Option<usize>,
    /// Tokens in one block of the KV cache, a multiple of 16
    #[arg(long, env = "PONDER_BLOCK_SIZE", default_value_t = sizes::DEFAULT_BLOCK_SIZE, help_heading = "Engine")]
    pub block_size: usize,
    /// Seconds without progress, though work waits, after which the log and /health report a stall;
    /// 0 turns the watchdog off
    #[arg(long, env = "PONDER_WATCHDOG_TIMEOUT", default_value_t = 120, value_parser = value_parser!(u64).range(..=MAX_SECONDS), help_heading = "Engine")]
    pub watchdog_timeout: u64,
    /// Memory of the KV cache, such as 512M or 4G [default: a quarter of the free memory; on a GPU
    /// what --gpu-memory-utilization leaves]
    #[arg(long, env = "PONDER_KV_CACHE_MEMORY", value_parser = parse_bytes, help_heading = "Engine")]
    pub kv_cache_memory: Option<usize>,
    /// Type of cached keys and values; q8_0 takes about half the memory of f16, and auto is f16
    #[arg(
        long,
        env = "PONDER_KV_CACHE_DTYPE",
        value_enum,
        default_value = "auto",
        help_heading = "Engine"
    )]
    pub kv_cache_dtype: KvCacheDtypeArg,
    /// Turn the prefix cache off: compute every prompt from its first token
    #[arg(long, env = "PONDER_NO_ENABLE_PREFIX_CACHING", help_heading = "Engine")]
    pub no_enable_prefix_caching: bool,
    /// Compute each prompt in one step instead of in chunks
    #[arg(
        long,
        env = "PONDER_NO_ENABLE_CHUNKED_PREFILL",
        help_heading = "Engine"
    )]
    pub no_enable_chunked_prefill: bool,
    /// Most sequences that may wait; further requests get 429
    #[arg(long, env = "PONDER_MAX_NUM_QUEUED_SEQS", default_value_t = sizes::DEFAULT_MAX_NUM_WAITING_SEQS, help_heading = "Engine")]
    pub max_num_queued_seqs: usize,
    /// Jinja file that replaces the model's chat template
    #[arg(
        long,
        env = "PONDER_CHAT_TEMPLATE",
        value_name = "FILE",
        help_heading = "Engine"
    )]
    pub chat_template: Option<PathBuf>,
    #[command(flatten)]
    pub output: OutputArgs,
    #[command(flatten)]
    pub speculative: SpeculativeArgs,
    /// Whether several keys share the engine: `serve` says so.
    #[arg(skip)]
    pub is_shared: bool,
}

impl EngineArgs {
    pub fn num_threads(&self) -> usize {
        self.threads
            .unwrap_or_else(|| available_parallelism().map_or(1, usize::from))
    }
}

#[derive(Debug, Clone, Args)]
pub struct BackendArgs {
    /// Engine that runs the model; auto takes the native one if it knows the architecture
    #[arg(
        long,
        env = "PONDER_BACKEND",
        value_enum,
        default_value = "auto",
        help_heading = "Engine"
    )]
    pub backend: BackendArg,
    /// Quantise a safetensors model while it loads, to a type such as 4 or Q4K (mistralrs backend)
    #[arg(long, env = "PONDER_ISQ", value_name = "TYPE", help_heading = "Engine")]
    pub isq: Option<String>,
}

/// Where the native engine runs.
#[derive(Debug, Clone, Args)]
pub struct DeviceArgs {
    /// Device that runs the model; auto takes a GPU if there is one, and cuda:1 is the second GPU
    #[arg(
        long,
        env = "PONDER_DEVICE",
        value_parser = parse_device,
        default_value = "cpu",
        value_name = "auto|cpu|cuda[:N]",
        help_heading = "Engine"
    )]
    pub device: DeviceArg,
    /// Share of the GPU's memory for weights, KV cache and buffers together, up to 1
    #[arg(long, env = "PONDER_GPU_MEMORY_UTILIZATION", value_parser = parse_share, default_value_t = 0.9, help_heading = "Engine")]
    pub gpu_memory_utilization: f64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeviceArg {
    Auto,
    Cpu,
    Cuda(usize),
}

fn parse_device(text: &str) -> Result<DeviceArg, String> {
    let unknown = || format!("{text:?} is none of auto, cpu, cuda and cuda:N");
    match text.split_once(':') {
        None if text == "auto" => Ok(DeviceArg::Auto),
        None if text == "cpu" => Ok(DeviceArg::Cpu),
        None if text == "cuda" => Ok(DeviceArg::Cuda(0)),
        Some(("cuda", index)) => index.parse().map(DeviceArg::Cuda).map_err(|_| unknown()),
        _ => Err(unknown()),
    }
}

fn parse_share(text: &str) -> Result<f64, String> {
    let share: f64 = text
        .parse()
        .map_err(|_| format!("{text:?} is not a number"))?;
    match share > 0.0 && share <= 1.0 {
        true => Ok(share),
        false => Err("must be more than 0 and at most 1".to_owned()),
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum KvCacheDtypeArg {
    Auto,
    F16,
    #[value(name = "q8_0")]
    Q8_0,
}

impl KvCacheDtypeArg {
    pub fn dtype(self) -> KvDtype {
        match self {
            Self::Auto | Self::F16 => KvDtype::F16,
            Self::Q8_0 => KvDtype::Q8_0,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum BackendArg {
    Auto,
    Native,
    Mistralrs,
}

#[derive(Debug, Clone, Args)]
pub struct SpeculativeArgs {
    /// Drafter whose tokens a step verifies together; answers stay the same, token by token
    #[arg(long, env = "PONDER_SPECULATIVE", value_parser = parse_speculative, default_value = "auto", hide_possible_values = true, value_name = "off|prompt-lookup|swift|draft-model|auto", help_heading = "Speculation")]
    pub speculative: Speculative,
    /// Most draft tokens of a sequence in one step
    #[arg(long, env = "PONDER_NUM_SPECULATIVE_TOKENS", default_value_t = DEFAULT_NUM_SPECULATIVE_TOKENS, help_heading = "Speculation")]
    pub num_speculative_tokens: usize,
    /// Tokens of a match that prompt lookup needs before it drafts what followed
    #[arg(long, env = "PONDER_PROMPT_LOOKUP_MIN", default_value_t = DEFAULT_PROMPT_LOOKUP_MIN, help_heading = "Speculation")]
    pub prompt_lookup_min: usize,
    /// Small model that drafts; it must have the same tokenizer
    #[arg(
        long,
        env = "PONDER_DRAFT_MODEL",
        value_name = "MODEL",
        help_heading = "Speculation"
    )]
    pub draft_model: Option<String>,
    /// Sub-layers that SWIFT leaves out, from `ponder bench swift --out` [default: MODEL.skip.json
    /// beside the model]
    #[arg(
        long,
        env = "PONDER_SKIP_SET",
        value_name = "FILE",
        help_heading = "Speculation"
    )]
    pub skip_set: Option<PathBuf>,
    /// Draft whenever possible, without weighing what a draft costs
    #[arg(
        long,
        env = "PONDER_SPECULATIVE_IGNORE_COST",
        help_heading = "Speculation"
    )]
    pub speculative_ignore_cost: bool,
}

impl SpeculativeArgs {
    pub fn config(&self, skip_set: Option<SkipSet>) -> SpeculativeConfig {
        SpeculativeConfig {
            default: self.speculative,
            num_speculative_tokens: self.num_speculative_tokens,
            prompt_lookup_min: self.prompt_lookup_min,
            skip_set,
            ignores_costs: self.speculative_ignore_cost,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_named() {
        for (text, device) in [
            ("auto", DeviceArg::Auto),
            ("cpu", DeviceArg::Cpu),
            ("cuda", DeviceArg::Cuda(0)),
            ("cuda:3", DeviceArg::Cuda(3)),
        ] {
            assert_eq!(parse_device(text), Ok(device));
        }
        for text in ["", "gpu", "cuda:", "cuda:x", "cuda:-1", "rocm:0"] {
            assert!(parse_device(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_share_is_a_part() {
        assert_eq!(parse_share("0.5"), Ok(0.5));
        for text in ["0", "-1", "1.01", "nan", "half"] {
            assert!(parse_share(text).is_err(), "{text}");
        }
    }
}
