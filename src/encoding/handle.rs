//! The thread that owns an encoder, and the way to it.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

use super::EncoderKind;
use super::queue::TextQueue;
use super::request::{Request, Sequence, Waiting, lock};
use crate::model::encoder::{EncodeError, EncoderConfig};
use crate::model::{Encoder, EncoderInput};

/// Tokens of one batch: enough to keep all threads busy, few enough that a short text does not wait
/// long.
const BATCH_TOKENS: usize = 1024;

/// How many texts may wait, and who shares the encoder.
#[derive(Debug, Clone, Copy)]
pub struct WorkerOptions {
    /// Of all tenants together.
    pub max_queued: usize,
    /// Whether several keys share the server: then one of them may have half of the queue.
    pub is_shared: bool,
}

/// Why texts were not read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EncodingError {
    #[error("{waiting} texts wait for the encoder already; {limit} may wait (--max-queued-texts)")]
    Full { waiting: usize, limit: usize },
    #[error(transparent)]
    Input(#[from] EncodeError),
    #[error("the encoder's result is not a finite number")]
    NotFinite,
    #[error("the request's deadline passed before the encoder had read it")]
    Deadline,
    #[error("the encoder has failed")]
    Failed,
}

/// What an encoder has done so far, and what waits.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct EncoderStats {
    pub num_waiting: usize,
    pub num_texts: u64,
    pub num_tokens: u64,
    pub num_batches: u64,
}

struct State {
    queue: TextQueue<Waiting>,
    is_stopped: bool,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    num_texts: AtomicU64,
    num_tokens: AtomicU64,
    num_batches: AtomicU64,
    has_failed: AtomicBool,
}

/// An encoder on its own thread, which ends with the last handle.
pub struct EncoderHandle {
    shared: Arc<Shared>,
    config: EncoderConfig,
    options: WorkerOptions,
    thread: Option<JoinHandle<()>>,
}

impl EncoderHandle {
    pub(super) fn start(
        encoder: Encoder,
        kind: EncoderKind,
        options: WorkerOptions,
    ) -> std::io::Result<Self> {
        let shared = Arc::new(Shared::new());
        let own = Arc::clone(&shared);
        let config = encoder.config().clone();
        let thread = std::thread::Builder::new()
            .name("ponder-encoder".to_owned())
            .spawn(move || own.work(encoder, kind))?;
        Ok(Self {
            shared,
            config,
            options,
            thread: Some(thread),
        })
    }

    pub fn is_healthy(&self) -> bool {
        !self.shared.has_failed.load(Ordering::Acquire)
    }

    pub fn stats(&self) -> EncoderStats {
        let shared = &self.shared;
        EncoderStats {
            num_waiting: lock(&shared.state).queue.num_waiting(),
            num_texts: shared.num_texts.load(Ordering::Relaxed),
            num_tokens: shared.num_tokens.load(Ordering::Relaxed),
            num_batches: shared.num_batches.load(Ordering::Relaxed),
        }
    }

    /// The vector, or the logits, of each sequence. Dropping the future takes what waits out of the
    /// queue.
    ///
    /// # Errors
    /// [`EncodingError::Full`] when too many texts wait.
    pub async fn run(
        &self,
        sequences: Vec<Sequence>,
        tenant: u64,
        deadline: Option<Instant>,
    ) -> Result<Vec<Vec<f32>>, EncodingError> {
        if sequences.is_empty() {
            return Ok(Vec::new());
        }
        // What the model cannot read must not end the batch that it would be in.
        for sequence in &sequences {
            self.config.check(sequence.input())?;
        }
        let (request, receiver) = Request::new(sequences);
        // From here on whoever stops waiting leaves the queue.
        let _seat = Seat {
            shared: &self.shared,
            request: &request,
            tenant,
        };
        self.enter(tenant, Arc::clone(&request))?;
        let answer = async { receiver.await.unwrap_or(Err(EncodingError::Failed)) };
        match deadline {
            None => answer.await,
            Some(at) => tokio::time::timeout_at(at.into(), answer)
                .await
                .unwrap_or(Err(EncodingError::Deadline)),
        }
    }

    fn enter(&self, tenant: u64, request: Arc<Request>) -> Result<(), EncodingError> {
        let mut state = lock(&self.shared.state);
        if state.is_stopped {
            return Err(EncodingError::Failed);
        }
        let limit = self.options.max_queued;
        let count = request.sequences.len();
        let check = |waiting: usize, limit: usize| match waiting + count <= limit {
            true => Ok(()),
            false => Err(EncodingError::Full { waiting, limit }),
        };
        check(state.queue.num_waiting(), limit)?;
        if self.options.is_shared {
            check(state.queue.num_waiting_of(tenant), limit.div_ceil(2))?;
        }
        let waiting = Waiting::new(request);
        state.queue.push(tenant, waiting);
        self.shared.changed.notify_one();
        Ok(())
    }
}

impl Drop for EncoderHandle {
    fn drop(&mut self) {
        let mut state = lock(&self.shared.state);
        state.is_stopped = true;
        drop(state);
        self.shared.changed.notify_all();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// A request's place in the queue.
struct Seat<'a> {
    shared: &'a Shared,
    request: &'a Arc<Request>,
    tenant: u64,
}

impl Drop for Seat<'_> {
    fn drop(&mut self) {
        if lock(&self.request.results).num_missing == 0 {
            return;
        }
        let own = self.request;
        let mut state = lock(&self.shared.state);
        let is_own = |waiting: &Waiting| Arc::ptr_eq(&waiting.request, own);
        state.queue.remove(self.tenant, is_own);
    }
}

/// A text of a batch: whose, and which of them.
type Item = (Arc<Request>, usize);

impl Shared {
    fn new() -> Self {
        Self {
            state: Mutex::new(State {
                queue: TextQueue::new(),
                is_stopped: false,
            }),
            changed: Condvar::new(),
            num_texts: AtomicU64::new(0),
            num_tokens: AtomicU64::new(0),
            num_batches: AtomicU64::new(0),
            has_failed: AtomicBool::new(false),
        }
    }

    /// The thread's life.
    fn work(&self, mut encoder: Encoder, kind: EncoderKind) {
        while let Some(batch) = self.next_batch() {
            let run = AssertUnwindSafe(|| run_batch(&mut encoder, kind, &batch));
            let Ok(results) = catch_unwind(run) else {
                return self.fail(&batch);
            };
            self.num_batches.fetch_add(1, Ordering::Relaxed);
            let mut num_tokens = 0;
            for ((request, index), result) in batch.iter().zip(results) {
                num_tokens += request.sequences[*index].token_ids.len();
                request.take(*index, result);
            }
            self.num_texts
                .fetch_add(batch.len() as u64, Ordering::Relaxed);
            self.num_tokens
                .fetch_add(num_tokens as u64, Ordering::Relaxed);
        }
    }

    /// Waits for texts; `None` when the handle is gone.
    fn next_batch(&self) -> Option<Vec<Item>> {
        let mut state = lock(&self.state);
        while state.queue.is_empty() && !state.is_stopped {
            let waited = self.changed.wait(state);
            state = waited.unwrap_or_else(PoisonError::into_inner);
        }
        if state.is_stopped {
            return None;
        }
        let mut batch = Vec::new();
        state.queue.take_batch(BATCH_TOKENS, |waiting| {
            if let Some(index) = waiting.left.front() {
                batch.push((Arc::clone(&waiting.request), *index));
            }
        });
        Some(batch)
    }

    /// The model panicked, which is a bug: nothing more can be asked of it.
    fn fail(&self, batch: &[Item]) {
        self.has_failed.store(true, Ordering::Release);
        for (request, index) in batch {
            request.take(*index, Err(EncodingError::Failed));
        }
        let mut state = lock(&self.state);
        state.is_stopped = true;
        // Who waits holds the sender, too: only an answer wakes them.
        for waiting in state.queue.drain() {
            waiting.request.take(0, Err(EncodingError::Failed));
        }
    }
}

fn run_batch(
    encoder: &mut Encoder,
    kind: EncoderKind,
    batch: &[Item],
) -> Vec<Result<Vec<f32>, EncodingError>> {
    let inputs = (batch.iter()).map(|(request, index)| request.sequences[*index].input());
    let inputs: Vec<EncoderInput<'_>> = inputs.collect();
    let encoded = match kind {
        EncoderKind::Embedder(pooling) => encoder.embed(&inputs, pooling),
        EncoderKind::CrossEncoder => encoder.classify(&inputs),
    };
    let checked = |vector: Vec<f32>| match vector.iter().all(|value| value.is_finite()) {
        true => Ok(vector),
        false => Err(EncodingError::NotFinite),
    };
    match encoded {
        Ok(vectors) => vectors.into_iter().map(checked).collect(),
        Err(error) => vec![Err(error.into()); batch.len()],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_answers_those_who_wait() {
        let shared = Shared::new();
        let sequence = Sequence {
            token_ids: vec![1, 2],
            second_from: 2,
        };
        // Whoever waits holds the request, and with it the sender.
        let (running, in_batch) = Request::new(vec![sequence.clone()]);
        let (queued, in_queue) = Request::new(vec![sequence]);
        let waiting = Waiting::new(Arc::clone(&queued));
        lock(&shared.state).queue.push(7, waiting);
        shared.fail(&[(Arc::clone(&running), 0)]);
        for receiver in [in_batch, in_queue] {
            let answer = receiver.await.unwrap();
            assert!(matches!(answer, Err(EncodingError::Failed)), "{answer:?}");
        }
        assert!(lock(&shared.state).queue.is_empty());
    }
}
