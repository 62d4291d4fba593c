//! `ponder serve`.

use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use ponder_kernels::KvDtype;
use tracing_subscriber::EnvFilter;

use super::args::ServeArgs;
use super::banner::{Banner, Use};
use super::engine_args::EngineArgs;
use super::identity::hash;
use super::programs::{python_runner, schema_checker};
use super::signals::wait_for_signal;
use super::traces::args::TraceArgs;
use super::{interrupt, prm, secrets, setup, terminal, value_adapters};
use crate::api::config::{DEFAULT_MAX_BODY_BYTES, DEFAULT_MAX_LORA_BYTES};
use crate::api::{
    AppState, Served, ServedEncoders, ServerConfig, default_adaptation, listen, serve,
};
use crate::engine::{Backend, Capability, Engine};
use crate::model::encoder::is_encoder;
use crate::model::{ModelFiles, Pooling};
use crate::reward::{Calibration, Programs, RewardServer, ValueHead};
use crate::trace::TraceStore;

/// How long a model that still loads is waited for when the server ends.
const LOADING_TIMEOUT: Duration = Duration::from_secs(2);

pub(super) fn run(args: &ServeArgs) -> anyhow::Result<()> {
    let trace_keys = &args.traces.trace_api_key;
    secrets::check("--api-key", "PONDER_API_KEY", &args.api_key)?;
    secrets::check("--trace-api-key", "PONDER_TRACE_API_KEY", trace_keys)?;
    secrets::check_apart(&args.api_key, trace_keys)?;
    // On every CPU mistralrs warns that it has no paged attention there.
    let quiet = format!("mistralrs_core::pipeline::gguf=error,{}", args.log_level);
    let filter = EnvFilter::try_new(quiet).context("--log-level")?;
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(terminal::has_colours(&std::io::stderr()))
        .log_internal_errors(false)
        .init();
    // The server hears signals itself.
    interrupt::leave_signals();
    let runtime = tokio::runtime::Runtime::new()?;
    let result = runtime.block_on(serve_model(args));
    // A pull cleans up; a model that still loads is not waited for.
    runtime.shutdown_timeout(LOADING_TIMEOUT);
    result
}

fn server_config(args: &ServeArgs) -> ServerConfig {
    let mut names = args.served_model_name.clone();
    if names.is_empty() {
        names.push(setup::model_name(&args.engine.model));
    }
    ServerConfig {
        served_model_names: names,
        api_keys: args.api_key.clone(),
        metrics_need_key: !args.metrics_without_auth,
        max_body_bytes: args.max_body_bytes.unwrap_or(DEFAULT_MAX_BODY_BYTES),
        request_timeout: args.request_timeout(),
        shutdown_timeout: args.shutdown_timeout(),
        cors_allow_origins: args.cors_allow_origin.clone(),
        connections: args.connections.limits(),
        enable_lora: args.enable_lora,
        lora_roots: args.lora_root.clone(),
        max_lora_bytes: args
            .max_lora_bytes
            .map_or(DEFAULT_MAX_LORA_BYTES, |bytes| bytes as u64),
        trace_all: args.traces.trace_all,
        trace_keys: args.traces.trace_api_key.clone(),
        work_threads: args.work.work_threads,
        max_queued_work: args.work.max_queued_work,
        max_work_time: Duration::from_millis(args.work.max_work_ms),
        max_branch_bytes: args.work.max_branch_bytes,
        escape_special_tokens: args.escape_special_tokens,
        ui: !args.no_ui,
    }
}

/// The store of traces. Only one that was asked for must open.
fn open_store(args: &TraceArgs) -> anyhow::Result<Option<TraceStore>> {
    if args.no_traces {
        return Ok(None);
    }
    match TraceStore::open(&args.store.path(), args.options()) {
        Ok(store) => Ok(Some(store)),
        Err(error) if args.store.trace_db.is_some() => Err(error).context("--trace-db"),
        Err(error) => {
            tracing::warn!("no traces are kept: {error}");
            Ok(None)
        }
    }
}

/// What is served.
struct Loaded {
    encoders: ServedEncoders,
    /// The model that writes, and how its states become vectors.
    model: Option<(Served, Pooling)>,
}

/// The encoders, and the model unless it is one of them.
fn load(args: &ServeArgs) -> anyhow::Result<Loaded> {
    let engine = EngineArgs {
        is_shared: args.api_key.len() > 1,
        ..args.engine.clone()
    };
    let path = setup::locate(&engine.model)?;
    if is_encoder(&path) {
        check_alone(args)?;
        let names = server_config(args).served_model_names;
        let alone = names.first().map(|name| (name.as_str(), path.as_path()));
        return Ok(Loaded {
            encoders: args.encoders.load(&engine, alone)?,
            model: None,
        });
    }
    let encoders = args.encoders.load(&engine, None)?;
    let files = setup::open(&engine, &path)?;
    let pooling = args.encoders.decoder_pooling(&files);
    Ok(Loaded {
        encoders,
        model: Some((load_model(args, &engine, (&path, files))?, pooling)),
    })
}

/// Flags that an encoder alone would accept without effect.
fn check_alone(args: &ServeArgs) -> anyhow::Result<()> {
    let asked = [
        ("--value-head", args.value_head.is_some()),
        ("--calibration", args.calibration.is_some()),
        (
            "--value-adapter",
            !args.value_adapters.value_adapter.is_empty(),
        ),
        ("--prm", args.prm.prm.is_some()),
        ("--adaptation", args.adaptation.is_some()),
        ("--router-adaptation", args.router_adaptation.is_some()),
        ("--enable-lora", args.enable_lora),
        ("--lora-modules", !args.lora_modules.is_empty()),
        ("--chat-template", args.engine.chat_template.is_some()),
    ];
    match asked.iter().find(|(_, is_asked)| *is_asked) {
        Some((flag, _)) => {
            anyhow::bail!(
                "{flag} needs a model that writes; {} is an encoder",
                args.engine.model
            )
        }
        None => Ok(()),
    }
}

/// The model that writes and what rewards need.
fn load_model(
    args: &ServeArgs,
    engine: &EngineArgs,
    model: (&Path, ModelFiles),
) -> anyhow::Result<Served> {
    // What can fail fast is checked before the model loads.
    let programs = Programs::new(args.work.max_running_programs, engine.is_shared);
    let schemas = schema_checker(programs.clone())?;
    let python = args.allow_code_execution;
    let python = python.then(|| python_runner(programs)).transpose()?;
    let calibration = load_calibration(args.calibration.as_deref())?;
    let mut served = setup::start_at(engine, model, None)?;
    value_adapters::load(&args.value_adapters, &mut served)?;
    let value_head = match &args.value_head {
        Some(path) => {
            let demanded = served.engine.demand(Capability::HiddenStates);
            demanded.context("--value-head")?;
            let hidden_size = served.engine.model_info().hidden_size;
            let head = ValueHead::load(path, hidden_size);
            Some(head.with_context(|| format!("--value-head {}", path.display()))?)
        }
        None => None,
    };
    let reward_server = match &args.reward_url {
        Some(url) => {
            let timeout = Duration::from_millis(args.reward_timeout_ms);
            Some(Arc::new(RewardServer::new(url, timeout)?))
        }
        None => None,
    };
    if let Some(path) = &args.value_head {
        served.identity.value_head = Some(hash(std::slice::from_ref(path))?);
    }
    if let Some(path) = &args.calibration {
        served.identity.calibration = Some(hash(std::slice::from_ref(path))?);
    }
    if args.adaptation.is_some() || args.router_adaptation.is_some() {
        let demanded = served.engine.demand(Capability::Adaptation);
        demanded.context("--adaptation")?;
    }
    let adaptation = args.adaptation.as_deref();
    let router_adaptation = args.router_adaptation.as_deref();
    served.adaptation = default_adaptation(adaptation, router_adaptation, &served)
        .map_err(|error| anyhow::anyhow!("--{}", error.message.replace('_', "-")))?;
    served.rewards.prm = prm::start(&args.prm, &args.engine)?;
    served.rewards.python = python;
    served.rewards.schemas = schemas;
    served.rewards.value_head = value_head.map(Arc::new);
    served.rewards.reward_server = reward_server;
    served.rewards.calibration = calibration;
    Ok(served)
}

fn load_calibration(path: Option<&Path>) -> anyhow::Result<Option<Arc<Calibration>>> {
    let load = |path: &Path| {
        let loaded = Calibration::load(path);
        let loaded = loaded.with_context(|| format!("--calibration {}", path.display()))?;
        anyhow::Ok(Arc::new(loaded))
    };
    path.map(load).transpose()
}

/// Requests name folders on this machine: the operator says where.
fn check_lora_roots(args: &ServeArgs) -> anyhow::Result<()> {
    if args.enable_lora && args.lora_root.is_empty() {
        anyhow::bail!(
            "--enable-lora needs --lora-root DIR: the folder in which requests may name adapters"
        );
    }
    for root in &args.lora_root {
        let metadata = std::fs::metadata(root);
        let metadata = metadata.with_context(|| format!("--lora-root {}", root.display()))?;
        anyhow::ensure!(
            metadata.is_dir(),
            "--lora-root {} is not a folder",
            root.display()
        );
    }
    Ok(())
}

/// The port is bound before the model loads: a busy port fails at once, and probes get answers.
async fn serve_model(args: &ServeArgs) -> anyhow::Result<()> {
    check_lora_roots(args)?;
    let address = format!("{}:{}", args.host, args.port);
    let listener = listen(&address)
        .await
        .with_context(|| format!("cannot listen on {address}"))?;
    let address = listener.local_addr()?;
    let store = open_store(&args.traces)?;
    let state = AppState::with_store(server_config(args), store.clone());
    let mut server = tokio::spawn(serve(listener, state.clone(), shutdown_signal()));
    let started = Instant::now();
    let loading = args.clone();
    let loaded = tokio::task::spawn_blocking(move || load(&loading));
    let loaded = tokio::select! {
        loaded = loaded => loaded??,
        result = &mut server => return Ok(result??),
    };
    let use_of_model = Use::new(
        loaded.model.as_ref().map(|(model, _)| model),
        &loaded.encoders,
    );
    state.set_encoders(loaded.encoders);
    let engine = match loaded.model {
        Some((served, pooling)) => Some(set_model(args, &state, served, pooling).await?),
        None => None,
    };
    let how = format!(
        "{} threads ({}), loaded in {:.1} s",
        args.engine.num_threads(),
        how(engine.as_ref(), args.engine.kv_cache_dtype.dtype()),
        started.elapsed().as_secs_f64(),
    );
    let banner = Banner {
        address,
        models: &state.config().served_model_names,
        use_of_model,
        has_keys: !args.api_key.is_empty(),
        has_page: state.config().ui,
        how: &how,
    };
    // Whoever reads it may ask at once.
    say(&banner.text());
    server.await??;
    if let Some(engine) = engine {
        engine.shutdown();
        engine.join(args.shutdown_timeout());
        keep_skip_set(&args.engine, engine.as_ref());
    }
    if let Some(store) = store {
        store.close();
    }
    Ok(())
}

/// Makes the model answer, with the adapters that were asked for.
async fn set_model(
    args: &ServeArgs,
    state: &AppState,
    served: Served,
    pooling: Pooling,
) -> anyhow::Result<Engine> {
    let engine = served.engine.clone();
    state.set_decoder_pooling(pooling);
    state.set_served(served);
    for (name, folder) in &args.lora_modules {
        let loaded = state.load_adapter(name, folder).await;
        loaded.map_err(|error| {
            anyhow::anyhow!(
                "--lora-modules {name}={}: {}",
                folder.display(),
                error.message
            )
        })?;
    }
    Ok(engine)
}

/// What computes, for the line that says what is served.
fn how(engine: Option<&Engine>, kv_cache_dtype: KvDtype) -> String {
    let Some(engine) = engine else {
        return format!("{}, an encoder", ponder_kernels::isa());
    };
    let config = engine.config();
    let kv_tokens = config.num_blocks * config.block_size;
    let how = match kv_tokens {
        0 => format!("the {} backend", engine.name()),
        _ => {
            let kv_mib = config.kv_cache_bytes(engine.model_info()) >> 20;
            let (isa, dtype) = (ponder_kernels::isa(), kv_cache_dtype.name());
            format!("{isa}, KV cache {kv_tokens} tokens of {dtype} in {kv_mib} MiB")
        }
    };
    format!("{how}, context {}", config.max_model_len)
}

/// Keeps what SWIFT's search found beside the model, for the next start.
fn keep_skip_set(args: &EngineArgs, engine: &dyn Backend) {
    let Some(found) = engine.found_skip_set() else {
        return;
    };
    let kept = setup::keep_skip_set(args, &found);
    if let Err(error) = kept {
        tracing::warn!("the skip set was not kept: {error:#}");
    }
}

/// A line on stderr in one write. Whoever read it may be gone, which is no reason to stop serving
/// (`eprintln!` would panic).
fn say(line: &str) {
    let _ = std::io::stderr().write_all(format!("{line}\n").as_bytes());
}

/// The first SIGINT or SIGTERM; a second one ends the process.
async fn shutdown_signal() {
    wait_for_signal().await;
    interrupt::stop();
    say("shutting down: running requests may finish; signal again to stop at once");
    tokio::spawn(async {
        wait_for_signal().await;
        std::process::exit(130);
    });
}
