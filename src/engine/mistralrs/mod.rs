//! The backend for architectures that the engine does not have: the `mistralrs` crate runs the
//! model, and its logits are sampled here.
//!
//! mistralrs asks a [`Driver`] per continuation for the next token of each row of logits. So
//! sampling, seeds, logprobs, watchers and budgets are the native engine's, and an answer depends
//! on who computed the logits alone.

mod driver;
mod load;
mod media;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use ::mistralrs::{MistralRs, ModelCategory};
use dashmap::DashMap;
use tokio::runtime::Runtime;
use tokio::sync::Semaphore;
use tokio::sync::mpsc::UnboundedSender;

use super::admission::{admit, check_request};
use super::backend::{Backend, Capability, needs};
use super::request::{
    EngineConfig, EngineError, EngineStats, FinishReason, GenerateRequest, GroupId, RequestId,
    StreamEvent,
};
use super::sequence::{SeqId, Sequence};
use super::stream::RequestStream;
use crate::model::ModelInfo;
use driver::{Driver, Prompt};
pub use load::{MistralrsError, MistralrsOptions};

/// A continuation's name.
type Key = (RequestId, usize);

/// What the handle and the drivers share.
struct Shared {
    config: EngineConfig,
    info: ModelInfo,
    category: ModelCategory,
    /// A token of plain text, see [`Driver`].
    filler: u32,
    /// One prompt with images at a time.
    images: Arc<Semaphore>,
    /// Continuations that run or wait.
    drivers: DashMap<Key, Arc<Driver>>,
    /// Those that had no logits yet.
    num_waiting: AtomicUsize,
    num_running: AtomicUsize,
    num_branches_running: AtomicUsize,
    prompt_tokens: AtomicU64,
    generation_tokens: AtomicU64,
    is_closed: AtomicBool,
    next_id: AtomicU64,
}

/// A model that mistralrs runs.
pub struct MistralrsEngine {
    shared: Arc<Shared>,
    runner: Arc<MistralRs>,
    /// Carries requests to mistralrs; taken when the engine is dropped.
    runtime: Option<Runtime>,
    capabilities: Vec<Capability>,
}

impl Drop for MistralrsEngine {
    fn drop(&mut self) {
        // A runtime may not wait for its threads inside another one.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl MistralrsEngine {
    fn new_id(&self) -> u64 {
        self.shared.next_id.fetch_add(1, Ordering::Relaxed)
    }

    /// Starts the continuations of a request: each computes the prompt for itself.
    fn start(
        &self,
        id: RequestId,
        mut request: GenerateRequest,
        sender: UnboundedSender<StreamEvent>,
    ) {
        let n = request.n;
        let Some(runtime) = &self.runtime else { return };
        let prompt = Prompt::new(sender, request.media.take());
        let first = Sequence::new(SeqId(0), id, request);
        for index in 0..n {
            let sequence = first.sibling(SeqId(index as u64), index);
            let (driver, responder) =
                Driver::new(sequence, Arc::clone(&prompt), Arc::clone(&self.shared));
            self.shared.drivers.insert((id, index), Arc::clone(&driver));
            runtime.spawn(driver.run(Arc::clone(&self.runner), responder));
        }
    }
}

impl Backend for MistralrsEngine {
    fn name(&self) -> &'static str {
        "mistralrs"
    }

    fn capabilities(&self) -> &[Capability] {
        &self.capabilities
    }

    fn config(&self) -> &EngineConfig {
        &self.shared.config
    }

    fn model_info(&self) -> &ModelInfo {
        &self.shared.info
    }

    fn stats(&self) -> EngineStats {
        let count = |counter: &AtomicUsize| counter.load(Ordering::Acquire);
        EngineStats {
            num_requests_waiting: count(&self.shared.num_waiting),
            num_requests_running: count(&self.shared.num_running),
            num_branches_running: count(&self.shared.num_branches_running),
            prompt_tokens: self.shared.prompt_tokens.load(Ordering::Acquire),
            generation_tokens: self.shared.generation_tokens.load(Ordering::Acquire),
            ..EngineStats::default()
        }
    }

    fn is_healthy(&self) -> bool {
        // Asking for its sender starts an engine again that panicked.
        self.runner.get_sender(None).is_ok()
    }

    fn submit(&self, mut request: GenerateRequest) -> Result<RequestStream, EngineError> {
        for capability in needs(&request) {
            self.demand(capability)?;
        }
        let config = &self.shared.config;
        check_request(&request, config, self.shared.info.vocab_size)?;
        if self.shared.is_closed.load(Ordering::Acquire) {
            return Err(EngineError::ShuttingDown);
        }
        let limit = config.max_num_waiting_seqs;
        admit(&self.shared.num_waiting, request.n, limit)?;
        let id = RequestId(self.new_id());
        let (sender, stream) = RequestStream::open(id);
        let num_tokens = request.prompt_token_ids.len() as u64;
        let counter = &self.shared.prompt_tokens;
        counter.fetch_add(num_tokens, Ordering::AcqRel);
        request.prediction.clear();
        self.start(id, request, sender);
        Ok(stream)
    }

    fn new_group(&self) -> GroupId {
        GroupId(self.new_id())
    }

    fn abort_choice(&self, id: RequestId, index: usize) {
        // Whoever ends is taken off the list, so nothing of it is held meanwhile.
        let driver = self.shared.drivers.get(&(id, index));
        let driver = driver.map(|driver| Arc::clone(driver.value()));
        if let Some(driver) = driver {
            driver.finish(FinishReason::Abort);
        }
    }

    fn abort_all(&self) {
        let drivers = self.shared.drivers.iter();
        let drivers: Vec<_> = drivers.map(|driver| Arc::clone(driver.value())).collect();
        for driver in drivers {
            driver.finish(FinishReason::Abort);
        }
    }

    fn shutdown(&self) {
        self.shared.is_closed.store(true, Ordering::Release);
    }

    fn join(&self, timeout: Duration) -> bool {
        let started = Instant::now();
        while !self.shared.drivers.is_empty() {
            if started.elapsed() >= timeout {
                return false;
            }
            std::thread::park_timeout(Duration::from_millis(2));
        }
        true
    }
}
