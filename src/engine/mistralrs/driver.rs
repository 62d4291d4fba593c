//! One continuation: rows of logits in, events out.

use std::future::poll_fn;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use ::mistralrs::{
    Constraint, CustomLogitsProcessor, MistralRs, NormalRequest, Request, RequestMessage, Response,
    SamplingParams,
};
use candle_core::{Device, Tensor};
use tokio::sync::OwnedSemaphorePermit;
use tokio::sync::mpsc::{self, UnboundedSender};
use tokio_util::sync::CancellationToken;

use super::Shared;
use super::media::media_message;
use crate::engine::logprobs::token_logprobs;
use crate::engine::request::{EngineError, FinishReason, Media, StreamEvent, TokenId};
use crate::engine::sampler::{SampleError, Sampler};
use crate::engine::sequence::{Appended, Group, Sequence};
use crate::engine::speculative::DraftCounts;

/// Answers of mistralrs that may wait to be read.
const RESPONSES: usize = 64;

/// What the continuations of one request share.
pub(super) struct Prompt {
    sender: UnboundedSender<StreamEvent>,
    media: Option<Arc<Media>>,
    is_done: Mutex<bool>,
}

impl Prompt {
    pub(super) fn new(
        sender: UnboundedSender<StreamEvent>,
        media: Option<Arc<Media>>,
    ) -> Arc<Self> {
        Arc::new(Self {
            sender,
            media,
            is_done: Mutex::new(false),
        })
    }

    fn send(&self, event: StreamEvent) {
        let _ = self.sender.send(event);
    }

    /// Sends `PromptDone` once, before the first token of all.
    fn announce(&self, num_prompt_tokens: usize) {
        let mut is_done = self.is_done.lock().unwrap_or_else(PoisonError::into_inner);
        if !std::mem::replace(&mut *is_done, true) {
            self.send(StreamEvent::PromptDone {
                num_prompt_tokens,
                num_cached_tokens: 0,
                prompt_logprobs: None,
            });
        }
    }
}

struct State {
    sequence: Sequence,
    sampler: Sampler,
    /// `None` once the continuation has ended.
    prompt: Option<Arc<Prompt>>,
    is_running: bool,
}

/// Chooses the tokens of a continuation in mistralrs's stead, and tells whoever asked.
///
/// mistralrs stops a sequence when the receiver of its chunks is closed, and it sends a chunk when there is new text. So the
/// last token that it is told is a filler, which always is.
pub(super) struct Driver {
    state: Mutex<State>,
    responses: Mutex<mpsc::Receiver<Response>>,
    is_over: CancellationToken,
    shared: Arc<Shared>,
}

impl Driver {
    /// A driver, and what mistralrs answers it with.
    pub(super) fn new(
        sequence: Sequence,
        prompt: Arc<Prompt>,
        shared: Arc<Shared>,
    ) -> (Arc<Self>, mpsc::Sender<Response>) {
        let (responder, responses) = mpsc::channel(RESPONSES);
        let driver = Self {
            state: Mutex::new(State {
                sequence,
                sampler: Sampler::default(),
                prompt: Some(prompt),
                is_running: false,
            }),
            responses: Mutex::new(responses),
            is_over: CancellationToken::new(),
            shared,
        };
        (Arc::new(driver), responder)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn responses(&self) -> MutexGuard<'_, mpsc::Receiver<Response>> {
        let responses = self.responses.lock();
        responses.unwrap_or_else(PoisonError::into_inner)
    }

    /// Hands the continuation to mistralrs and waits for its end.
    pub(super) async fn run(
        self: Arc<Self>,
        runner: Arc<MistralRs>,
        responder: mpsc::Sender<Response>,
    ) {
        let (sender, deadline) = {
            let state = self.state();
            let Some(prompt) = &state.prompt else { return };
            (prompt.sender.clone(), state.sequence.deadline)
        };
        let watch = async {
            match deadline {
                Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = self.is_over.cancelled() => {}
            () = sender.closed() => self.finish(FinishReason::Abort),
            () = watch => self.finish(FinishReason::Deadline),
            error = self.follow(&runner, responder) => self.fail(error),
        }
    }

    /// Reads what mistralrs says until it says that it failed.
    async fn follow(
        self: &Arc<Self>,
        runner: &MistralRs,
        responder: mpsc::Sender<Response>,
    ) -> EngineError {
        // What follows a first line is candle's backtrace.
        let failed = |message: &dyn ToString| {
            let message = message.to_string();
            EngineError::Model(message.lines().next().unwrap_or_default().to_owned())
        };
        let turn = self.turn().await;
        let request = match self.request(runner.next_request_id(), responder, turn) {
            Ok(request) => request,
            Err(error) => return error,
        };
        let sender = match runner.get_sender(None) {
            Ok(sender) => sender,
            Err(error) => return failed(&error),
        };
        if sender.send(request).await.is_err() {
            return failed(&"the mistralrs engine has stopped");
        }
        loop {
            let response = poll_fn(|context| self.responses().poll_recv(context)).await;
            match response {
                None => return failed(&"the mistralrs engine dropped the request"),
                Some(Response::InternalError(error) | Response::ValidationError(error)) => {
                    return failed(&error);
                }
                Some(Response::ModelError(message, _))
                | Some(Response::CompletionModelError(message, _)) => return failed(&message),
                // The tokens went past already.
                Some(_) => {}
            }
        }
    }

    /// Waits until no other image is on its way: some models of mistralrs take one prompt with images at a time.
    async fn turn(&self) -> Option<OwnedSemaphorePermit> {
        let shows = |prompt: &Arc<Prompt>| prompt.media.is_some();
        if !self.state().prompt.as_ref().is_some_and(shows) {
            return None;
        }
        let images = Arc::clone(&self.shared.images);
        images.acquire_owned().await.ok()
    }

    /// What mistralrs is asked.
    fn request(
        self: &Arc<Self>,
        id: usize,
        response: mpsc::Sender<Response>,
        turn: Option<OwnedSemaphorePermit>,
    ) -> Result<Request, EngineError> {
        let (token_ids, media) = {
            let state = self.state();
            let media = state
                .prompt
                .as_ref()
                .and_then(|prompt| prompt.media.clone());
            (state.sequence.token_ids.clone(), media)
        };
        let messages = match media {
            Some(media) => media_message(&media, &self.shared.category)?,
            None => RequestMessage::CompletionTokens(token_ids),
        };
        let logits_processors: Vec<Arc<dyn CustomLogitsProcessor>> = vec![Arc::new(Processor {
            driver: Arc::clone(self),
            turn: Mutex::new(turn),
        })];
        Ok(Request::Normal(Box::new(NormalRequest {
            messages,
            // The driver chooses: mistralrs takes the likeliest of what it leaves.
            sampling_params: SamplingParams::deterministic(),
            response,
            return_logprobs: false,
            is_streaming: true,
            id,
            constraint: Constraint::None,
            suffix: None,
            tools: None,
            tool_choice: None,
            logits_processors: Some(logits_processors),
            return_raw_logits: false,
            web_search_options: None,
            model_id: None,
            truncate_sequence: false,
        })))
    }

    pub(super) fn finish(&self, reason: FinishReason) {
        self.end(&mut self.state(), finished(reason));
    }

    fn fail(&self, error: EngineError) {
        self.end(&mut self.state(), |_| StreamEvent::Error(error));
    }

    /// The last event of the continuation, unless it has ended.
    fn end(&self, state: &mut State, event: impl FnOnce(usize) -> StreamEvent) {
        let Some(prompt) = state.prompt.take() else {
            return;
        };
        let (id, index) = (state.sequence.request, state.sequence.index);
        match state.is_running {
            true => {
                self.shared.num_running.fetch_sub(1, Ordering::AcqRel);
                if is_branch(&state.sequence) {
                    let counter = &self.shared.num_branches_running;
                    counter.fetch_sub(1, Ordering::AcqRel);
                }
            }
            false => {
                self.shared.num_waiting.fetch_sub(1, Ordering::AcqRel);
            }
        }
        self.shared.drivers.remove(&(id, index));
        prompt.send(event(index));
        self.responses().close();
        self.is_over.cancel();
    }

    /// The continuation has its first logits.
    fn begin(&self, state: &mut State, prompt_token_ids: Option<&[TokenId]>) {
        state.is_running = true;
        if let Some(token_ids) = prompt_token_ids {
            // What mistralrs made of a conversation with images.
            state.sequence.token_ids = token_ids.to_vec();
            state.sequence.num_prompt_tokens = token_ids.len();
        }
        self.shared.num_running.fetch_add(1, Ordering::AcqRel);
        self.shared.num_waiting.fetch_sub(1, Ordering::AcqRel);
        if is_branch(&state.sequence) {
            let counter = &self.shared.num_branches_running;
            counter.fetch_add(1, Ordering::AcqRel);
        }
    }

    /// The token that mistralrs goes on with after `context`.
    fn take(&self, logits: &[f32], context: &[TokenId]) -> TokenId {
        let filler = self.shared.filler;
        let mut state = self.state();
        let Some(prompt) = state.prompt.clone() else {
            return filler;
        };
        let finish = |state: &mut State, reason| {
            self.end(state, finished(reason));
            filler
        };
        if !state.is_running {
            self.begin(&mut state, prompt.media.is_some().then_some(context));
        }
        let deadline = state.sequence.deadline;
        if prompt.sender.is_closed() {
            return finish(&mut state, FinishReason::Abort);
        }
        if deadline.is_some_and(|deadline| deadline <= Instant::now()) {
            return finish(&mut state, FinishReason::Deadline);
        }
        if let Some(pooling) = state.sequence.pooling.clone() {
            let logit = |id: &TokenId| logits.get(*id as usize).copied();
            prompt.send(StreamEvent::Pooled {
                position: state.sequence.num_prompt_tokens - 1,
                logits: (pooling.token_ids.iter())
                    .map(|id| logit(id).unwrap_or(f32::NEG_INFINITY))
                    .collect(),
                hidden_state: None,
            });
            return finish(&mut state, FinishReason::Pooled);
        }
        prompt.announce(state.sequence.num_prompt_tokens);
        let max_model_len = self.shared.config.max_model_len;
        let State {
            sequence, sampler, ..
        } = &mut *state;
        let spec = sequence.sample_spec(0, &[]);
        let token_id = match sampler.sample(&spec, None, logits) {
            Ok(token_id) => token_id,
            Err(error) => {
                let error = match error {
                    SampleError::NotFinite => EngineError::not_finite(),
                    SampleError::NothingAllowed => EngineError::NothingAllowed,
                };
                self.end(&mut state, |_| StreamEvent::Error(error));
                return filler;
            }
        };
        let num_top = spec.num_logprobs;
        let logprobs = num_top.and_then(|num_top| token_logprobs(logits, token_id, num_top));
        match sequence.append(token_id, logprobs.as_ref(), max_model_len) {
            Appended::Token { .. } => {
                let counter = &self.shared.generation_tokens;
                counter.fetch_add(1, Ordering::AcqRel);
                prompt.send(StreamEvent::Token {
                    index: sequence.index,
                    token_id,
                    logprobs,
                    hidden_state: None,
                });
                match sequence.finish_reason(max_model_len) {
                    Some(reason) => finish(&mut state, reason),
                    None => token_id,
                }
            }
            Appended::OutOfBudget => finish(&mut state, FinishReason::Budget),
            // The backend takes no constraints.
            Appended::Refused(_) => finish(&mut state, FinishReason::Abort),
        }
    }
}

/// The end of continuation `index`.
fn finished(reason: FinishReason) -> impl FnOnce(usize) -> StreamEvent {
    move |index| StreamEvent::Finished {
        index,
        reason,
        drafts: DraftCounts::default(),
    }
}

fn is_branch(sequence: &Sequence) -> bool {
    matches!(sequence.group, Group::Search(_))
}

/// What mistralrs calls with each row of logits.
struct Processor {
    driver: Arc<Driver>,
    /// Given up with the prompt's logits, or with the request that has none.
    turn: Mutex<Option<OwnedSemaphorePermit>>,
}

impl CustomLogitsProcessor for Processor {
    /// `[vocab_size]` logits in, and out with all but the chosen token's at minus infinity.
    fn apply(&self, logits: &Tensor, context: &[u32]) -> candle_core::Result<Tensor> {
        let mut row: Vec<f32> = logits.to_vec1()?;
        let turn = self.turn.lock();
        drop(turn.unwrap_or_else(PoisonError::into_inner).take());
        let token_id = self.driver.take(&row, context) as usize;
        row.fill(f32::NEG_INFINITY);
        if let Some(logit) = row.get_mut(token_id) {
            *logit = 0.0;
        }
        let len = row.len();
        Tensor::from_vec(row, len, &Device::Cpu)
    }
}
