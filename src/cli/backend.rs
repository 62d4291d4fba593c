//! `--backend`: which engine runs the model.

use std::path::Path;

use anyhow::bail;

use super::engine_args::{BackendArg, BackendArgs, EngineArgs};
use crate::engine::Engine;
use crate::model::{ConfigError, ModelFiles};

/// Whether this binary has it.
const HAS_MISTRALRS: bool = cfg!(feature = "mistralrs");

/// Whether the native engine runs the model; an error when nothing here does.
pub(super) fn is_native(args: &BackendArgs, files: &ModelFiles) -> anyhow::Result<bool> {
    let is_native = match args.backend {
        BackendArg::Native => true,
        BackendArg::Mistralrs => false,
        BackendArg::Auto => match files.config() {
            // Of a model that sees the native engine has the part that reads text.
            Ok(_) if HAS_MISTRALRS && files.sees_images() => false,
            // What is asked for by this flag is asked of mistralrs.
            Ok(_) => args.isq.is_none(),
            Err(ConfigError::UnsupportedArchitecture(_)) if HAS_MISTRALRS => false,
            Err(error @ ConfigError::UnsupportedArchitecture(_)) => bail!(
                "{error}; to serve it by mistralrs, build Ponder with `cargo build --release --features mistralrs`"
            ),
            Err(error) => return Err(error.into()),
        },
    };
    if is_native && args.isq.is_some() {
        bail!(
            "--isq needs --backend mistralrs: for the native engine there is --quantize q8_0|q4_k"
        );
    }
    if !is_native && !HAS_MISTRALRS {
        let flag = match args.backend {
            BackendArg::Mistralrs => "--backend mistralrs",
            _ => "--isq",
        };
        bail!(
            "{flag}: this binary has no mistralrs; build it with `cargo build --release --features mistralrs`"
        );
    }
    Ok(is_native)
}

/// Loads the model into mistralrs.
#[cfg(feature = "mistralrs")]
pub(super) fn start_mistralrs(
    args: &EngineArgs,
    path: &Path,
    vocab_size: usize,
) -> anyhow::Result<Engine> {
    use crate::engine::{MistralrsEngine, MistralrsOptions};

    let engine = MistralrsEngine::load(&MistralrsOptions {
        path: path.to_owned(),
        isq: args.backend.isq.clone(),
        num_threads: args.num_threads(),
        max_model_len: args.max_model_len,
        max_num_seqs: args.max_num_seqs,
        max_num_waiting_seqs: args.max_num_queued_seqs,
        vocab_size,
    })?;
    Ok(std::sync::Arc::new(engine))
}

#[cfg(not(feature = "mistralrs"))]
pub(super) fn start_mistralrs(_: &EngineArgs, _: &Path, _: usize) -> anyhow::Result<Engine> {
    bail!("this binary has no mistralrs")
}
