//! The engine's door: submit, fork, abort, look at counters.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use futures::stream::{BoxStream, StreamExt};
use tokio::sync::{mpsc as stream, oneshot};

use super::request::{
    EngineConfig, EngineError, EngineStats, GenerateRequest, GroupId, RequestId, SamplingParams,
    StreamEvent,
};
use super::runner::num_scratch_blocks;
use super::speculative::Speculative;
use super::stats::SharedStats;
use super::thread::{Command, EngineThread, Submission};
use crate::model::adapt::RouterGradient;
use crate::model::{
    AdaptationConfig, AdaptationMethod, AdapterId, CausalLm, ExpertLoad, LoraAdapter, ModelInfo,
    SkipSet,
};

/// What the handle and the thread share.
pub(super) struct Shared {
    pub config: EngineConfig,
    pub info: ModelInfo,
    pub has_draft_model: bool,
    pub expert_load: Option<Arc<ExpertLoad>>,
    /// The one that SWIFT's search found, when it found one.
    pub skip_set: Mutex<Option<SkipSet>>,
    pub stats: SharedStats,
    /// Sequences submitted but not yet admitted by the scheduler.
    pub num_waiting: AtomicUsize,
    pub is_closed: AtomicBool,
    pub is_healthy: AtomicBool,
    pub is_finished: AtomicBool,
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

/// The events of one request. Dropping it aborts the request before the next step.
#[derive(Debug)]
pub struct RequestStream {
    id: RequestId,
    events: stream::UnboundedReceiver<StreamEvent>,
}

impl RequestStream {
    pub fn id(&self) -> RequestId {
        self.id
    }

    /// The next event; `None` after the last choice finished or an error.
    pub async fn recv(&mut self) -> Option<StreamEvent> {
        self.events.recv().await
    }

    /// The events, each with `index`: for a caller that merges several requests.
    pub fn numbered(self, index: usize) -> BoxStream<'static, (usize, StreamEvent)> {
        futures::stream::unfold(self, move |mut stream| async move {
            let event = stream.recv().await?;
            Some(((index, event), stream))
        })
        .boxed()
    }

    /// [`Self::recv`] for threads outside a runtime.
    pub fn blocking_recv(&mut self) -> Option<StreamEvent> {
        self.events.blocking_recv()
    }
}

impl EngineHandle {
    /// Allocates the KV cache and starts the engine's thread.
    pub fn start(model: Box<dyn CausalLm>, config: EngineConfig) -> Result<Self, EngineError> {
        Self::start_with(model, None, config)
    }

    /// [`Self::start`] with a small model that drafts ([`super::Speculative::DraftModel`]). Its tokens must mean the same.
    pub fn start_with(
        mut model: Box<dyn CausalLm>,
        mut draft_model: Option<Box<dyn CausalLm>>,
        config: EngineConfig,
    ) -> Result<Self, EngineError> {
        let max_num_rows = if config.enable_chunked_prefill {
            config.max_num_batched_tokens
        } else {
            config.max_num_batched_tokens.max(config.max_model_len)
        };
        let num_blocks = config.num_blocks + num_scratch_blocks(config.block_size);
        let vocab_size = model.info().vocab_size;
        if (draft_model.iter()).any(|draft| draft.info().vocab_size != vocab_size) {
            let message = format!("the draft model's vocabulary is not one of {vocab_size} tokens");
            return Err(EngineError::Model(message));
        }
        for model in [Some(&mut model), draft_model.as_mut()]
            .into_iter()
            .flatten()
        {
            model
                .allocate_kv_cache(num_blocks, config.block_size, max_num_rows)
                .map_err(|error| EngineError::Model(error.to_string()))?;
        }
        let shared = Arc::new(Shared {
            info: model.info().clone(),
            expert_load: model.expert_load(),
            has_draft_model: draft_model.is_some(),
            skip_set: Mutex::new(None),
            stats: SharedStats::new(EngineStats {
                num_blocks: config.num_blocks,
                ..EngineStats::default()
            }),
            config,
            num_waiting: AtomicUsize::new(0),
            is_closed: AtomicBool::new(false),
            is_healthy: AtomicBool::new(true),
            is_finished: AtomicBool::new(false),
            next_id: AtomicU64::new(0),
            next_adapter: AtomicU32::new(0),
        });
        let (commands, receiver) = mpsc::channel();
        let engine = EngineThread::new(model, draft_model, Arc::clone(&shared), receiver);
        let thread = std::thread::Builder::new()
            .name("ponder-engine".to_owned())
            .spawn(move || engine.run())
            .map_err(|error| EngineError::Model(error.to_string()))?;
        Ok(Self {
            shared,
            commands,
            thread: Arc::new(Mutex::new(Some(thread))),
        })
    }

    pub fn config(&self) -> &EngineConfig {
        &self.shared.config
    }

    pub fn model_info(&self) -> &ModelInfo {
        &self.shared.info
    }

    /// How many tokens each expert has had; `None` for dense models.
    pub fn expert_load(&self) -> Option<&ExpertLoad> {
        self.shared.expert_load.as_deref()
    }

    /// The skip set that SWIFT's search found while serving, if it found a better one.
    pub fn found_skip_set(&self) -> Option<SkipSet> {
        let found = self.shared.skip_set.lock();
        found.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What this engine would need to draft as asked; `None` when nothing is missing.
    pub fn lacks(&self, speculative: Speculative) -> Option<&'static str> {
        match speculative {
            Speculative::DraftModel if !self.shared.has_draft_model => {
                Some("no draft model is loaded; start with --draft-model")
            }
            _ => None,
        }
    }

    /// Counters and gauges as of the last step; what waits is counted as of now.
    pub fn stats(&self) -> EngineStats {
        // What waits is read first: whoever sees nothing waiting sees what runs instead.
        let num_requests_waiting = self.shared.num_waiting.load(Ordering::Acquire);
        EngineStats {
            num_requests_waiting,
            ..self.shared.stats.load()
        }
    }

    /// False once the model has panicked: every later request fails.
    pub fn is_healthy(&self) -> bool {
        self.shared.is_healthy.load(Ordering::Acquire)
    }

    /// Queues a request, all of its sequences or none.
    pub fn submit(&self, request: GenerateRequest) -> Result<RequestStream, EngineError> {
        self.check(&request)?;
        self.admit(request.n)?;
        let (id, sender, stream) = self.open_stream();
        self.send(Command::Submit(Submission {
            id,
            sender,
            request,
        }))?;
        Ok(stream)
    }

    /// Continues choice `index` of a running request from its newest token, sharing its KV blocks. The
    /// answer's events number the new choices from 0.
    pub fn fork(
        &self,
        source: RequestId,
        index: usize,
        fork: ForkParams,
    ) -> Result<RequestStream, EngineError> {
        self.check_params(fork.n, &fork.params)?;
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

    /// Makes an adapter usable by requests, between two steps. It has been read for this model.
    pub async fn load_adapter(&self, adapter: LoraAdapter) -> Result<AdapterId, EngineError> {
        let id = AdapterId(self.shared.next_adapter.fetch_add(1, Ordering::Relaxed));
        let (done, loaded) = oneshot::channel();
        self.send(Command::LoadAdapter { id, adapter, done })?;
        loaded.await.map_err(|_| EngineError::ShuttingDown)??;
        Ok(id)
    }

    /// No more requests may use the adapter; its memory is free once those that do have ended.
    pub fn unload_adapter(&self, id: AdapterId) {
        let _ = self.commands.send(Command::UnloadAdapter(id));
    }

    /// A group that no other request belongs to.
    pub fn new_group(&self) -> GroupId {
        GroupId(self.shared.next_id.fetch_add(1, Ordering::Relaxed))
    }

    /// Ends a request before the next step.
    pub fn abort(&self, id: RequestId) {
        let _ = self.commands.send(Command::Abort(id));
    }

    /// Ends one choice of a request before the next step (a stop string matched, say).
    pub fn abort_choice(&self, id: RequestId, index: usize) {
        let _ = self.commands.send(Command::AbortChoice(id, index));
    }

    /// Ends every request before the next step.
    pub fn abort_all(&self) {
        let _ = self.commands.send(Command::AbortAll);
    }

    /// Stops admitting; requests that were admitted run to their end, then the thread ends.
    pub fn shutdown(&self) {
        self.shared.is_closed.store(true, Ordering::Release);
        let _ = self.commands.send(Command::Shutdown);
    }

    /// Waits for the thread to end after [`Self::shutdown`]; false when it did not in time.
    pub fn join(&self, timeout: Duration) -> bool {
        let deadline = Instant::now() + timeout;
        while !self.shared.is_finished.load(Ordering::Acquire) {
            if Instant::now() >= deadline {
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

    fn check(&self, request: &GenerateRequest) -> Result<(), EngineError> {
        let config = &self.shared.config;
        let num_tokens = request.prompt_token_ids.len();
        if num_tokens == 0 {
            return Err(EngineError::EmptyPrompt);
        }
        if num_tokens >= config.max_model_len {
            return Err(EngineError::PromptTooLong {
                num_tokens,
                max_model_len: config.max_model_len,
            });
        }
        let available = config.num_blocks * config.block_size;
        let needed = (num_tokens + request.params.max_tokens).min(config.max_model_len);
        if needed > available {
            return Err(EngineError::KvCacheTooSmall { needed, available });
        }
        self.check_params(request.n, &request.params)?;
        if let Some(adaptation) = &request.adaptation {
            self.check_adaptation(adaptation)?;
        }
        if let Some(pooling) = &request.pooling {
            let is_ascending = pooling.positions.is_sorted_by(|a, b| a < b);
            let last = pooling.positions.last();
            if !is_ascending || last.is_none_or(|last| *last >= num_tokens) || request.n != 1 {
                return Err(EngineError::PoolingPositions { num_tokens });
            }
        }
        let vocab_size = self.shared.info.vocab_size;
        let pooled = request
            .pooling
            .iter()
            .flat_map(|pooling| &pooling.token_ids);
        match request
            .prompt_token_ids
            .iter()
            .chain(pooled)
            .chain(&request.prediction)
            .find(|id| **id as usize >= vocab_size)
        {
            Some(token_id) => Err(EngineError::TokenOutOfRange {
                token_id: *token_id,
                vocab_size,
            }),
            None => Ok(()),
        }
    }

    /// Whether the model can be adapted so.
    pub fn check_adaptation(&self, config: &AdaptationConfig) -> Result<(), EngineError> {
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
            let message =
                "must be \"truncated\" for this model: its latent attention has no way back";
            return refuse("gradient", message);
        }
        Ok(())
    }

    fn check_params(&self, n: usize, params: &SamplingParams) -> Result<(), EngineError> {
        let limit = self.shared.config.max_num_seqs;
        if n == 0 || n > limit {
            return Err(EngineError::TooManySequences { n, limit });
        }
        let vocab_size = self.shared.info.vocab_size;
        let biased = params.logit_bias.iter().map(|(token_id, _)| token_id);
        match biased
            .chain(&params.stop_token_ids)
            .find(|id| **id as usize >= vocab_size)
        {
            Some(token_id) => Err(EngineError::TokenOutOfRange {
                token_id: *token_id,
                vocab_size,
            }),
            None => Ok(()),
        }
    }

    /// Reserves `n` places in the waiting queue or none.
    fn admit(&self, n: usize) -> Result<(), EngineError> {
        let limit = self.shared.config.max_num_waiting_seqs;
        let reserve = |waiting: usize| (waiting + n <= limit.max(n)).then_some(waiting + n);
        self.shared
            .num_waiting
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, reserve)
            .map(|_| ())
            .map_err(|waiting| EngineError::Overloaded { waiting, limit })
    }

    fn open_stream(
        &self,
    ) -> (
        RequestId,
        stream::UnboundedSender<StreamEvent>,
        RequestStream,
    ) {
        let id = RequestId(self.shared.next_id.fetch_add(1, Ordering::Relaxed));
        let (sender, events) = stream::unbounded_channel();
        (id, sender, RequestStream { id, events })
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
