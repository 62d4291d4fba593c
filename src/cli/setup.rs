//! From flags to a running engine.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use ponder_kernels::return_freed_memory;

use super::backend::{is_native, start_mistralrs};
use super::device::{Device, LoadShape, Weights};
use super::engine_args::{DeviceArg, Dtype, EngineArgs, KvCacheDtypeArg};
use super::grammars;
use super::identity::identity;
use super::interrupt;
use super::phases::Phases;
use super::progress::Bar;
use super::remedy::with_remedy;
use crate::api::Served;
use crate::engine::{
    Backend, Engine, EngineHandle, EngineOptions, Executor, GenerateRequest, SamplingParams,
    Speculative, StreamEvent,
};
use crate::model::catalogue::{self, Source, State};
use crate::model::gguf::split::PartName;
use crate::model::{ModelFiles, OperatorTimes, RandomModel, SkipSet};
use crate::reward::{Judge, RewardResources};
use crate::text::{ChatTemplate, Tokenizer};

/// A model's path, pulled first when it is not cached or is known to be damaged.
pub(super) fn locate(model: &str) -> anyhow::Result<PathBuf> {
    let source = catalogue::resolve(model)?;
    let state = match &source {
        Source::Catalogue(entry) => entry.state(),
        Source::Path(_) => State::Unverified,
        Source::Hub { .. } => State::Absent,
    };
    match state {
        State::Damaged => warn(&format!("the cached file of {model} is damaged")),
        State::Changed => warn(&format!(
            "the cached file of {model} has changed since it was checked: \
             `ponder pull {model}` checks it again"
        )),
        State::Absent | State::Verified | State::Unverified => {}
    }
    if !matches!(state, State::Absent | State::Damaged) {
        return Ok(catalogue::pull(&source, &Silent)?);
    }
    let _interruptible = interrupt::Pull::begin();
    Ok(catalogue::pull(&source, &Bar::new("pulling", model))?)
}

/// A line on stderr, which nobody may read.
fn warn(message: &str) {
    let _ = writeln!(std::io::stderr(), "ponder: {message}");
}

struct Silent;

impl catalogue::Progress for Silent {
    fn report(&self, _: u64, _: u64, _: &str) {}
}

/// The name that answers carry when none is chosen: the catalogue's, else the file's stem.
pub(super) fn model_name(model: &str) -> String {
    let Ok(Source::Path(path)) = catalogue::resolve(model) else {
        return model.to_owned();
    };
    let file_name = path.file_name().map(|name| name.to_string_lossy());
    if let Some(part) = file_name.and_then(|name| PartName::parse(&name)) {
        return part.prefix;
    }
    let stem = path.file_stem();
    stem.map_or_else(
        || model.to_owned(),
        |stem| stem.to_string_lossy().into_owned(),
    )
}

/// Pulls, loads, starts the engine and runs one token through it.
pub(super) fn start(args: &EngineArgs) -> anyhow::Result<Served> {
    start_with(args, None)
}

/// [`start`], counting the time of each operator.
pub(super) fn start_with(
    args: &EngineArgs,
    operator_times: Option<Arc<OperatorTimes>>,
) -> anyhow::Result<Served> {
    let path = locate(&args.model)?;
    let files = open(args, &path)?;
    start_at(args, (&path, files), operator_times)
}

/// The files of the model at `path`, which [`locate`] has found.
pub(super) fn open(args: &EngineArgs, path: &Path) -> anyhow::Result<ModelFiles> {
    let mut phases = Phases::begin();
    let files = ModelFiles::open(path);
    phases.end("files opened");
    files.map_err(|error| with_remedy(error.into(), &args.model, path))
}

/// [`start_with`] on the model at `path`, whose files [`open`] has opened.
pub(super) fn start_at(
    args: &EngineArgs,
    (path, files): (&Path, ModelFiles),
    operator_times: Option<Arc<OperatorTimes>>,
) -> anyhow::Result<Served> {
    let loaded = load(args, (path, &files), operator_times);
    drop(files);
    // What the files said of tensors and tokens, and what was built on the way.
    return_freed_memory();
    loaded.map_err(|error| with_remedy(error, &args.model, path))
}

/// Starts the engine on the model at `path`.
fn load(
    args: &EngineArgs,
    (path, files): (&Path, &ModelFiles),
    operator_times: Option<Arc<OperatorTimes>>,
) -> anyhow::Result<Served> {
    let mut phases = Phases::begin();
    let is_native = is_native(&args.backend, files)?;
    // Another backend opens the files itself.
    let reader = is_native.then(|| files.read_ahead());
    let identity = identity(&args.model, path, files.weight_files())?;
    let tokenizer = Tokenizer::from_files(files)?;
    let source = match &args.chat_template {
        Some(path) => {
            let text = std::fs::read_to_string(path);
            Some(text.with_context(|| format!("--chat-template {}", path.display()))?)
        }
        None => None,
    };
    let chat_template = ChatTemplate::from_files(files, &tokenizer, source.as_deref())?;
    phases.end("tokenizer and chat template made");
    let mut grammars = None.into();
    let (engine, model_config) = match is_native {
        true => {
            let config = files.config()?;
            grammars = grammars::begin(&tokenizer, config.vocab_size);
            let limit = config.max_position_embeddings;
            let engine = start_native(args, (path, files), &tokenizer, limit, operator_times)?;
            (engine, Some(config))
        }
        false => {
            check_native_flags(args)?;
            let vocab_size = tokenizer.vocab_size();
            (start_mistralrs(args, path, vocab_size)?, None)
        }
    };
    drop(reader);
    phases.end("weights loaded and engine started");
    warm_up(engine.as_ref())?;
    phases.end("first token written");
    let judge = chat_template.clone().map(|template| {
        Arc::new(Judge::new(
            Engine::clone(&engine),
            tokenizer.clone(),
            template,
        ))
    });
    Ok(Served {
        grammars,
        output: args.output.format(chat_template.as_ref(), &tokenizer),
        adaptation: None,
        model_config,
        engine,
        tokenizer,
        chat_template,
        identity,
        rewards: RewardResources {
            judge,
            ..RewardResources::default()
        },
    })
}

/// Loads the model and its drafter into the native engine.
fn start_native(
    args: &EngineArgs,
    (path, files): (&Path, &ModelFiles),
    tokenizer: &Tokenizer,
    limit: usize,
    operator_times: Option<Arc<OperatorTimes>>,
) -> anyhow::Result<Engine> {
    let device = Device::open(args)?;
    let skip_set = skip_set(args, path, files)?;
    let options = engine_options(args, &device, skip_set);
    let max_model_len = options.served_model_len(limit)?;
    let shape = LoadShape::new(args, max_model_len);
    let executor = device.load(Weights::Files(files), shape, operator_times)?;
    let draft_executor = match &args.speculative.draft_model {
        Some(name) => {
            let loaded = draft_model(name, tokenizer, &device, shape);
            Some(loaded.with_context(|| format!("--draft-model {name}"))?)
        }
        None => None,
    };
    start_engine(args, &device, options, executor, draft_executor)
}

/// A model of random weights in the native engine: for measurements.
pub(super) fn start_random(args: &EngineArgs, model: &RandomModel) -> anyhow::Result<Engine> {
    let device = Device::open(args)?;
    let options = engine_options(args, &device, None);
    let max_model_len = options.served_model_len(model.config()?.max_position_embeddings)?;
    let shape = LoadShape::new(args, max_model_len);
    let executor = device.load(Weights::Random(model), shape, None)?;
    let engine = start_engine(args, &device, options, executor, None)?;
    warm_up(engine.as_ref())?;
    Ok(engine)
}

fn engine_options(args: &EngineArgs, device: &Device, skip_set: Option<SkipSet>) -> EngineOptions {
    EngineOptions {
        max_model_len: args.max_model_len,
        allow_long_max_model_len: args.allow_long_max_model_len,
        max_num_seqs: args.max_num_seqs,
        max_num_batched_tokens: (args.max_num_batched_tokens)
            .unwrap_or_else(|| device.default_num_batched_tokens().max(args.max_num_seqs)),
        block_size: args.block_size,
        kv_cache_bytes: 0,
        enable_prefix_caching: !args.no_enable_prefix_caching,
        enable_chunked_prefill: !args.no_enable_chunked_prefill,
        max_num_waiting_seqs: args.max_num_queued_seqs,
        is_shared: args.is_shared,
        speculative: args.speculative.config(skip_set),
    }
}

/// Sizes the KV cache by what the loaded models leave, and starts the engine's thread.
fn start_engine(
    args: &EngineArgs,
    device: &Device,
    options: EngineOptions,
    executor: Box<dyn Executor>,
    draft_executor: Option<Box<dyn Executor>>,
) -> anyhow::Result<Engine> {
    let mut info = executor.info().clone();
    // A block holds the KV of both.
    let draft_info = draft_executor.as_ref().map(|executor| executor.info());
    info.kv_bytes_per_token += draft_info.map_or(0, |info| info.kv_bytes_per_token);
    let num_rows = options.max_num_batched_tokens;
    let kv_cache_bytes = match args.kv_cache_memory {
        Some(nbytes) => nbytes,
        None => device.kv_cache_bytes(&*executor, num_rows)?,
    };
    let options = EngineOptions {
        kv_cache_bytes,
        ..options
    };
    let config = options.resolve(&info)?;
    let engine = EngineHandle::start_executor(executor, draft_executor, config)?;
    check_drafter(&engine)?;
    if args.watchdog_timeout > 0 {
        engine.watch(Duration::from_secs(args.watchdog_timeout))?;
    }
    Ok(Arc::new(engine))
}

/// Refuses flags that only the native engine has.
fn check_native_flags(args: &EngineArgs) -> anyhow::Result<()> {
    let speculative = &args.speculative;
    let asked = [
        ("--draft-model", speculative.draft_model.is_some()),
        ("--skip-set", speculative.skip_set.is_some()),
        ("--speculative", speculative.speculative.names_drafter()),
        ("--kv-cache-memory", args.kv_cache_memory.is_some()),
        ("--allow-long-max-model-len", args.allow_long_max_model_len),
        ("--quantize", args.quantize.is_some()),
        ("--dtype", args.dtype != Dtype::Auto),
        (
            "--kv-cache-dtype",
            args.kv_cache_dtype != KvCacheDtypeArg::Auto,
        ),
        (
            "--device cuda",
            matches!(args.device.device, DeviceArg::Cuda(_)),
        ),
    ];
    match asked.iter().find(|(_, is_asked)| *is_asked) {
        Some((flag, _)) => {
            bail!("{flag} needs --backend native: the mistralrs backend has no such thing")
        }
        None => Ok(()),
    }
}

/// The set that `--skip-set` names, or that lies beside the model.
fn skip_set(
    args: &EngineArgs,
    model: &Path,
    files: &ModelFiles,
) -> anyhow::Result<Option<SkipSet>> {
    let (path, is_asked) = match &args.speculative.skip_set {
        Some(path) => (path.clone(), true),
        None => (skip_set_path(model), false),
    };
    if !is_asked && !path.exists() {
        return Ok(None);
    }
    let num_layers = files.config()?.num_layers;
    let read = || -> anyhow::Result<SkipSet> {
        let set: SkipSet = serde_json::from_str(&std::fs::read_to_string(&path)?)?;
        ensure!(
            set.fits(num_layers),
            "it is not made for a model of {num_layers} layers"
        );
        Ok(set)
    };
    read()
        .map(Some)
        .with_context(|| format!("skip set {}", path.display()))
}

/// Writes a skip set to where the next start looks for it.
pub(super) fn keep_skip_set(args: &EngineArgs, set: &SkipSet) -> anyhow::Result<()> {
    let path = match &args.speculative.skip_set {
        Some(path) => path.clone(),
        None => skip_set_path(&locate(&args.model)?),
    };
    // A reader sees the old file or the new one.
    let new = path.with_extension("json.new");
    std::fs::write(&new, serde_json::to_string(set)?)?;
    Ok(std::fs::rename(&new, &path)?)
}

/// Where a model's own skip set is looked for.
fn skip_set_path(model: &Path) -> PathBuf {
    if model.is_dir() {
        return model.join("skip.json");
    }
    model.with_extension("skip.json")
}

/// Loads a small model whose tokens mean the same.
fn draft_model(
    name: &str,
    tokenizer: &Tokenizer,
    device: &Device,
    shape: LoadShape,
) -> anyhow::Result<Box<dyn Executor>> {
    let files = ModelFiles::open(&locate(name)?)?;
    let _reader = files.read_ahead();
    let own = Tokenizer::from_files(&files)?;
    let ids = 0..tokenizer.vocab_size().min(own.vocab_size()) as u32;
    let differs = |id: &u32| tokenizer.token_text(*id) != own.token_text(*id);
    if let Some(id) = ids.clone().find(differs) {
        bail!(
            "its tokenizer is another one: token {id} is {:?} there and {:?} here",
            own.token_text(id),
            tokenizer.token_text(id)
        );
    }
    device.load(Weights::Files(&files), shape, None)
}

/// A drafter that is the default must be there.
fn check_drafter(engine: &dyn Backend) -> anyhow::Result<()> {
    let default = engine.config().speculative.default;
    if let Some(reason) = engine.lacks(default) {
        bail!("--speculative {}: {reason}", default.name());
    }
    Ok(())
}

/// Touches every weight once, so that the first request doesn't wait for page faults.
fn warm_up(engine: &dyn Backend) -> anyhow::Result<()> {
    let params = SamplingParams {
        max_tokens: 1,
        temperature: 0.0,
        ..SamplingParams::default()
    };
    let mut stream = engine.submit(GenerateRequest {
        cache_salt: u64::MAX,
        // What drafts cost is measured once the server is ready.
        speculative: Some(Speculative::Off),
        ..GenerateRequest::new(vec![0], params)
    })?;
    while let Some(event) = stream.blocking_recv() {
        if let StreamEvent::Error(error) = event {
            return Err(error.into());
        }
    }
    Ok(())
}
