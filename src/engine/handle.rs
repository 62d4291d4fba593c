//! The handle by which everybody reaches the engine: submit, fork, abort, look at counters.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use futures::future::{BoxFuture, FutureExt};
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::oneshot;

use super::admission::{Shares, admit, check_params, check_request};
use super::backend::{Backend, Capability, capabilities_of, needs};
use super::clock::Clock;
use super::executor::{Executor, ModelExecutor};
use super::request::{
    EngineConfig, EngineError, EngineStats, GenerateRequest, GroupId, RequestId, SamplingParams,
    StreamEvent,
};
use super::runner::num_scratch_blocks;
use super::speculative::Speculative;
use super::stats::SharedStats;
use super::stream::RequestStream;
use super::thread::{Command, EngineCore, LoadedAdapter, Submission};
use super::watchdog::{self, Progress};
use crate::model::adapt::RouterGradient;
use crate::model::{
    AdaptationConfig, AdaptationMethod, AdapterId, CausalLm, ExpertLoad, LoraAdapter, ModelInfo,
    SkipSet,
};

/// What the handle and the thread share.
pub(super) struct Shared {
    pub config: EngineConfig,
    pub info: ModelInfo,
    pub capabilities: Vec<Capability>,
    pub has_draft_model: bool,
    pub expert_load: Option<Arc<ExpertLoad>>,
    /// The one that SWIFT's search found, when it found one.
    pub skip_set: Mutex<Option<SkipSet>>,
    pub stats: SharedStats,
    /// Sequences submitted but not yet admitted by the scheduler.
    pub num_waiting: AtomicUsize,
    /// Sequences that each tenant has running or waiting.
    pub shares: Arc<Shares>,
    pub is_closed: AtomicBool,
    pub is_healthy: AtomicBool,
    pub is_finished: AtomicBool,
    pub progress: Progress,
    next_id: AtomicU64,
    next_adapter: AtomicU32,
}

/// A cloneable handle to the thread that owns the model.
#[derive(Clone)]
pub struct EngineHandle {
    shared: Arc<Shared>,
    commands: mpsc::Sender<Command>,
    thread: Arc<Mutex<Option<JoinHandle<()>>>>,
}

/// How to continue a running sequence in `n` new ways.
#[derive(Debug, Clone)]
pub struct ForkParams {
    pub n: usize,
    /// `max_tokens` counts from the fork.
    pub params: SamplingParams,
    pub deadline: Option<Instant>,
}

impl EngineHandle {
    /// Allocates the KV cache and starts the engine's thread.
    pub fn start(model: Box<dyn CausalLm>, config: EngineConfig) -> Result<Self, EngineError> {
        Self::start_with(model, None, config)
    }

    /// [`Self::start`] with a small model that drafts ([`super::Speculative::DraftModel`]). Its tokens must mean the same.
    pub fn start_with(
        model: Box<dyn CausalLm>,
        draft_model: Option<Box<dyn CausalLm>>,
        config: EngineConfig,
    ) -> Result<Self, EngineError> {
        let executor = |model| -> Box<dyn Executor> { Box::new(ModelExecutor::new(model)) };
        Self::start_executor(executor(model), draft_model.map(executor), config)
    }

    /// Starts the engine's thread on an executor, and maybe on one that drafts.
    pub fn start_executor(
        executor: Box<dyn Executor>,
        draft_executor: Option<Box<dyn Executor>>,
        config: EngineConfig,
    ) -> Result<Self, EngineError> {
        let (handle, core) = Self::build(executor, draft_executor, config, Clock::default())?;
        let thread = std::thread::Builder::new()
            .name("ponder-engine".to_owned())
            .spawn(move || core.run())
            .map_err(|error| EngineError::Model(error.to_string()))?;
        let mut slot = handle.thread.lock().unwrap_or_else(PoisonError::into_inner);
        *slot = Some(thread);
        drop(slot);
        Ok(handle)
    }

    /// Allocates the KV cache and makes a handle with the engine behind it, which somebody is to run.
    pub(super) fn build(
        mut executor: Box<dyn Executor>,
        mut draft_executor: Option<Box<dyn Executor>>,
        config: EngineConfig,
        clock: Clock,
    ) -> Result<(Self, EngineCore), EngineError> {
        let max_num_rows = config.max_num_rows();
        let num_scratch = num_scratch_blocks(config.block_size);
        let num_blocks = config.num_blocks + num_scratch;
        let vocab_size = executor.info().vocab_size;
        if (draft_executor.iter()).any(|draft| draft.info().vocab_size != vocab_size) {
            let message = format!("the draft model's vocabulary is not one of {vocab_size} tokens");
            return Err(EngineError::Model(message));
        }
        if let Some(local) = &config.local {
            let lacks = "the executor has no pool for layers with a sliding window";
            let pool = executor.local_cache();
            let pool = pool.ok_or_else(|| EngineError::Model(lacks.to_owned()))?;
            pool.split(local.num_blocks + num_scratch);
        }
        for executor in [Some(&mut executor), draft_executor.as_mut()]
            .into_iter()
            .flatten()
        {
            executor
                .allocate(num_blocks, config.block_size, max_num_rows)
                .map_err(|error| EngineError::Model(error.to_string()))?;
        }
        let shared = Arc::new(Shared {
            info: executor.info().clone(),
            capabilities: capabilities_of(&mut *executor),
            expert_load: executor.expert_load(),
            has_draft_model: draft_executor.is_some(),
            skip_set: Mutex::new(None),
            stats: SharedStats::new(EngineStats {
                num_blocks: config.num_blocks,
                num_local_blocks: config.local.map_or(0, |local| local.num_blocks),
                ..EngineStats::default()
            }),
            shares: Arc::new(Shares::new(config.max_held_of_one())),
            config,
            num_waiting: AtomicUsize::new(0),
            is_closed: AtomicBool::new(false),
            is_healthy: AtomicBool::new(true),
            is_finished: AtomicBool::new(false),
            progress: Progress::default(),
            next_id: AtomicU64::new(0),
            next_adapter: AtomicU32::new(0),
        });
        let (commands, receiver) = mpsc::channel();
        let core = EngineCore::new(
            executor,
            draft_executor,
            Arc::clone(&shared),
            receiver,
            clock,
        );
        let handle = Self {
            shared,
            commands,
            thread: Arc::new(Mutex::new(None)),
        };
        Ok((handle, core))
    }

    /// Continues choice `index` of a running request from its newest token, sharing its KV blocks. The
    /// answer's events number the new choices from 0.
    pub fn fork(
        &self,
        source: RequestId,
        index: usize,
        fork: ForkParams,
    ) -> Result<RequestStream, EngineError> {
        let (config, info) = (&self.shared.config, &self.shared.info);
        check_params(fork.n, &fork.params, config, info.vocab_size)?;
        self.admit(fork.n)?;
        let (id, sender, stream) = self.open_stream();
        self.send(Command::Fork {
            id,
            sender,
            source,
            index,
            fork,
        })?;
        Ok(stream)
    }

    /// Logs when the engine has work and makes no progress for so long; [`Backend::stalled_for`] tells it too.
    ///
    /// # Errors
    /// No thread can be started.
    pub fn watch(&self, limit: Duration) -> std::io::Result<()> {
        watchdog::watch(&self.shared, limit)
    }

    /// Ends a request before the next step.
    pub fn abort(&self, id: RequestId) {
        let _ = self.commands.send(Command::Abort(id));
    }

    fn check(&self, request: &GenerateRequest) -> Result<(), EngineError> {
        for capability in needs(request) {
            self.demand(capability)?;
        }
        let config = &self.shared.config;
        check_request(request, config, self.shared.info.vocab_size)?;
        let available = config.num_blocks * config.block_size;
        let wanted = request.prompt_token_ids.len() + request.params.max_tokens;
        let needed = wanted.min(config.max_model_len);
        if needed > available {
            return Err(EngineError::KvCacheTooSmall { needed, available });
        }
        match &request.adaptation {
            Some(adaptation) => self.check_adaptation(adaptation),
            None => Ok(()),
        }
    }

    fn admit(&self, n: usize) -> Result<(), EngineError> {
        let limit = self.shared.config.max_num_waiting_seqs;
        admit(&self.shared.num_waiting, n, limit)
    }

    fn open_stream(&self) -> (RequestId, UnboundedSender<StreamEvent>, RequestStream) {
        let id = RequestId(self.shared.next_id.fetch_add(1, Ordering::Relaxed));
        let (sender, stream) = RequestStream::open(id);
        (id, sender, stream)
    }

    fn send(&self, command: Command) -> Result<(), EngineError> {
        if self.shared.is_closed.load(Ordering::Acquire) || !self.is_healthy() {
            return Err(EngineError::ShuttingDown);
        }
        self.commands
            .send(command)
            .map_err(|_| EngineError::ShuttingDown)
    }
}

impl Backend for EngineHandle {
    fn name(&self) -> &'static str {
        "native"
    }

    fn capabilities(&self) -> &[Capability] {
        &self.shared.capabilities
    }

    fn config(&self) -> &EngineConfig {
        &self.shared.config
    }

    fn model_info(&self) -> &ModelInfo {
        &self.shared.info
    }

    fn expert_load(&self) -> Option<&ExpertLoad> {
        self.shared.expert_load.as_deref()
    }

    fn found_skip_set(&self) -> Option<SkipSet> {
        let found = self.shared.skip_set.lock();
        found.unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn lacks(&self, speculative: Speculative) -> Option<&'static str> {
        match speculative {
            Speculative::DraftModel if !self.shared.has_draft_model => {
                Some("no draft model is loaded; start with --draft-model")
            }
            _ => None,
        }
    }

    fn stats(&self) -> EngineStats {
        // What waits is read first: whoever sees nothing waiting sees what runs instead.
        let num_requests_waiting = self.shared.num_waiting.load(Ordering::Acquire);
        EngineStats {
            num_requests_waiting,
            ..self.shared.stats.load()
        }
    }

    fn stalled_for(&self) -> Option<Duration> {
        self.shared.progress.stalled_for()
    }

    fn is_healthy(&self) -> bool {
        self.shared.is_healthy.load(Ordering::Acquire)
    }

    fn submit(&self, request: GenerateRequest) -> Result<RequestStream, EngineError> {
        self.check(&request)?;
        let share = self.shared.shares.take(request.tenant, request.n)?;
        self.admit(request.n)?;
        let (id, sender, stream) = self.open_stream();
        self.send(Command::Submit(Box::new(Submission {
            id,
            sender,
            request,
            share,
        })))?;
        Ok(stream)
    }

    fn load_adapter(&self, adapter: LoraAdapter) -> BoxFuture<'_, Result<AdapterId, EngineError>> {
        async move {
            let id = AdapterId(self.shared.next_adapter.fetch_add(1, Ordering::Relaxed));
            let (done, loaded) = oneshot::channel();
            self.send(Command::LoadAdapter {
                adapter,
                loaded: LoadedAdapter::new(id, self.commands.clone()),
                done,
            })?;
            let loaded = loaded.await.map_err(|_| EngineError::ShuttingDown)??;
            Ok(loaded.take())
        }
        .boxed()
    }

    fn unload_adapter(&self, id: AdapterId) {
        let _ = self.commands.send(Command::UnloadAdapter(id));
    }

    fn new_group(&self) -> GroupId {
        GroupId(self.shared.next_id.fetch_add(1, Ordering::Relaxed))
    }

    fn abort_choice(&self, id: RequestId, index: usize) {
        let _ = self.commands.send(Command::AbortChoice(id, index));
    }

    fn abort_all(&self) {
        let _ = self.commands.send(Command::AbortAll);
    }

    fn shutdown(&self) {
        self.shared.is_closed.store(true, Ordering::Release);
        let _ = self.commands.send(Command::Shutdown);
    }

    fn join(&self, timeout: Duration) -> bool {
        let started = Instant::now();
        while !self.shared.is_finished.load(Ordering::Acquire) {
            if started.elapsed() >= timeout {
                return false;
            }
            std::thread::park_timeout(Duration::from_millis(2));
        }
        let thread = self
            .thread
            .lock()
            .unwrap_or_else(|poison| poison.into_inner())
            .take();
        thread.is_none_or(|thread| thread.join().is_ok())
    }

    fn check_adaptation(&self, config: &AdaptationConfig) -> Result<(), EngineError> {
        let refuse = |field, message: &str| {
            let message = message.to_owned();
            Err(EngineError::Adaptation { field, message })
        };
        config.check().map_err(|error| EngineError::Adaptation {
            field: error.field,
            message: error.message,
        })?;
        let info = &self.shared.info;
        if config.method == AdaptationMethod::Slot {
            return Ok(());
        }
        if info.num_experts.is_none() {
            let message = "must be \"slot\" for this model: it is dense, and has no routers";
            return refuse("method", message);
        }
        if config.gradient == RouterGradient::Exact
            && !info.is_differentiable
            && (config.layers.depth != 1)
        {
            let message = "must be \"truncated\" for this model: its attention has no way back";
            return refuse("gradient", message);
        }
        Ok(())
    }
}
