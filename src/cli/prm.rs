//! `--prm`: a process reward model beside the policy.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, bail};
use clap::{Args, ValueEnum};

use super::engine_args::{BackendArg, BackendArgs, DeviceArgs, EngineArgs};
use super::setup;
use super::values::parse_bytes;
use crate::reward::Head;
use crate::reward::prm::{Prm, PrmFormat, PrmParts};

#[derive(Debug, Clone, Args)]
pub struct PrmArgs {
    /// Process reward model that scores steps: a name of the catalogue, a .gguf file, or a
    /// safetensors folder
    #[arg(
        long,
        env = "PONDER_PRM",
        value_name = "MODEL",
        requires = "prm_format",
        help_heading = "Search"
    )]
    pub prm: Option<String>,
    /// Format in which the process reward model reads answers
    #[arg(long, env = "PONDER_PRM_FORMAT", value_enum, help_heading = "Search")]
    pub prm_format: Option<PrmFormatArg>,
    /// Safetensors file with the process reward model's head [default: in the model's folder]
    #[arg(
        long,
        env = "PONDER_PRM_HEAD",
        value_name = "FILE",
        requires = "prm",
        help_heading = "Search"
    )]
    pub prm_head: Option<PathBuf>,
    /// Text that separates the steps of an answer [default: the format's own]
    #[arg(
        long,
        env = "PONDER_PRM_DELIMITER",
        value_name = "TEXT",
        requires = "prm",
        help_heading = "Search"
    )]
    pub prm_delimiter: Option<String>,
    /// Memory of the process reward model's KV cache, such as 512M [default: as much as the served
    /// model's]
    #[arg(long, env = "PONDER_PRM_KV_CACHE_MEMORY", value_parser = parse_bytes, requires = "prm", help_heading = "Search")]
    pub prm_kv_cache_memory: Option<usize>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum PrmFormatArg {
    /// Steps end with the token ки, after which + stands against -
    MathShepherd,
    /// Each step is a turn that is answered with + or -
    Rlhflow,
    /// Qwen2.5-Math-PRM: <extra_0> and two classes
    Qwen,
    /// Skywork-o1-Open-PRM: line breaks and a value
    Skywork,
    /// Models of TRL's PRMTrainer: a separator and two classes
    Trl,
    /// A plain chat and a head of `ponder train value-head`
    ValueHead,
}

impl From<PrmFormatArg> for PrmFormat {
    fn from(format: PrmFormatArg) -> Self {
        match format {
            PrmFormatArg::MathShepherd => Self::MathShepherd,
            PrmFormatArg::Rlhflow => Self::Rlhflow,
            PrmFormatArg::Qwen => Self::Qwen,
            PrmFormatArg::Skywork => Self::Skywork,
            PrmFormatArg::Trl => Self::Trl,
            PrmFormatArg::ValueHead => Self::ValueHead,
        }
    }
}

/// Loads the model beside a policy that was started with `policy`.
pub(super) fn start(args: &PrmArgs, policy: &EngineArgs) -> anyhow::Result<Option<Arc<Prm>>> {
    let (Some(model), Some(format)) = (&args.prm, args.prm_format) else {
        return Ok(None);
    };
    let format = PrmFormat::from(format);
    let served = setup::start(&EngineArgs {
        model: model.clone(),
        max_model_len: None,
        kv_cache_memory: args.prm_kv_cache_memory.or(policy.kv_cache_memory),
        chat_template: None,
        backend: BackendArgs {
            backend: BackendArg::Native,
            isq: None,
        },
        device: DeviceArgs {
            // Half of what the policy leaves of a GPU's memory.
            gpu_memory_utilization: (1.0 + policy.device.gpu_memory_utilization) / 2.0,
            ..policy.device.clone()
        },
        ..policy.clone()
    });
    let served = served.with_context(|| format!("--prm {model}"))?;
    let hidden_size = served.engine.model_info().hidden_size;
    let head = match (&args.prm_head, format.has_head()) {
        (Some(path), true) => {
            let head = Head::load(path, hidden_size);
            Some(head.with_context(|| format!("--prm-head {}", path.display()))?)
        }
        (Some(_), false) => bail!("--prm-head: this --prm-format reads tokens, not a head"),
        (None, true) => {
            let path = setup::locate(model)?;
            let found = match path.is_dir() {
                true => Head::find(&path, hidden_size)?,
                false => None,
            };
            Some(found.with_context(|| {
                format!("--prm {model} has no classification head: name its file with --prm-head")
            })?)
        }
        (None, false) => None,
    };
    let prm = Prm::new(PrmParts {
        engine: served.engine,
        tokenizer: served.tokenizer,
        chat_template: served.chat_template,
        format,
        head,
        delimiter: args.prm_delimiter.clone(),
    });
    let prm = prm.map_err(anyhow::Error::msg);
    Ok(Some(Arc::new(
        prm.with_context(|| format!("--prm {model}"))?,
    )))
}
