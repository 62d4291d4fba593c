//! From checked parameters to an answer: submit, turn token events into text, write JSON or SSE.

use std::convert::Infallible;
use std::time::{Duration, Instant};

use axum::Json;
use axum::http::HeaderMap;
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures::stream::{SelectAll, StreamExt};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::auth::Tenant;
use super::error::ApiError;
use super::openai::params::{SharedParams, count};
use super::openai::{chat, completions};
use super::state::{AppState, Served, unix_time};
use super::{presets, searching};
use crate::engine::{
    EngineHandle, FinishReason, GenerateRequest, RequestId, SamplingParams, StreamEvent,
    TokenLogprobs,
};
use crate::text::{Detokenizer, StopMatcher};

/// A client's own deadline, in milliseconds from now.
const TIMEOUT_HEADER: &str = "request-timeout-ms";
/// Chunks buffered for a slow reader; the reader's own socket applies back-pressure after that.
pub(super) const CHUNK_BUFFER: usize = 64;
pub(super) const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// Whose shapes the answer takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wire {
    Chat,
    Completion,
}

/// A checked request.
pub(super) struct Generation {
    pub prompts: Vec<Vec<u32>>,
    pub params: SamplingParams,
    pub stops: Vec<String>,
    pub shared: SharedParams,
    /// The prompts' texts when they are to be echoed.
    pub echo: Vec<String>,
    pub wire: Wire,
    /// What is asked, for rewards that read it.
    pub question: String,
    pub tenant: Tenant,
    pub deadline: Instant,
}

/// New text of a choice, and its end.
#[derive(Debug, Default, Clone)]
pub struct Delta {
    pub text: String,
    pub finish_reason: Option<&'static str>,
    /// The stop string or token that ended the choice (vLLM's extension).
    pub stop_reason: Option<Value>,
}

/// The request's deadline: the client's header within the server's maximum.
pub(super) fn deadline(state: &AppState, headers: &HeaderMap) -> Result<Instant, ApiError> {
    let mut timeout = state.config().request_timeout;
    if let Some(value) = headers.get(TIMEOUT_HEADER) {
        let millis = value
            .to_str()
            .ok()
            .and_then(|text| text.trim().parse::<u64>().ok());
        let millis = millis.ok_or_else(|| {
            ApiError::invalid(
                "Request-Timeout-Ms",
                "Request-Timeout-Ms must be a whole number",
            )
        })?;
        timeout = timeout.min(Duration::from_millis(millis));
    }
    Ok(Instant::now() + timeout)
}

/// One choice on its way from tokens to text.
struct Choice {
    detokenizer: Detokenizer,
    stop: StopMatcher,
    /// Text not yet sent (or all of it, without streaming).
    delta: Delta,
    /// Logprobs of tokens not yet sent, with their texts.
    logprobs: Vec<TokenLogprobs>,
    num_tokens: usize,
    /// Characters sent, for text offsets.
    num_chars: usize,
    is_started: bool,
    is_finished: bool,
}

/// All choices of a request and what they cost.
struct Answer<'a> {
    served: &'a Served,
    state: &'a AppState,
    params: SamplingParams,
    shared: SharedParams,
    echo: Vec<String>,
    prompts: Vec<Vec<u32>>,
    wire: Wire,
    n: usize,
    id: String,
    created: u64,
    choices: Vec<Choice>,
    prompt_logprobs: Vec<Option<Vec<Option<TokenLogprobs>>>>,
    request_ids: Vec<RequestId>,
    num_prompt_tokens: usize,
    num_cached_tokens: usize,
    started: Instant,
    last_token: Option<Instant>,
}

type Events = SelectAll<futures::stream::BoxStream<'static, (usize, StreamEvent)>>;

/// Submits every prompt or none and answers as the client asked.
pub(super) async fn answer(state: &AppState, generation: Generation) -> Result<Response, ApiError> {
    if let Some(request) = presets::requested(&generation.shared)? {
        return searching::answer(state, generation, request).await;
    }
    let served = state.ready()?;
    let limit = served.engine.config().max_num_seqs;
    let n = count("n", generation.shared.n, 1, limit)?;
    if n == 0 {
        return Err(ApiError::invalid("n", "n must be at least 1"));
    }
    let num_prompt_tokens = generation.prompts.iter().map(Vec::len).sum();
    state.metrics().started(
        num_prompt_tokens,
        n,
        generation.params.max_tokens.min(1 << 20),
    );
    let (events, request_ids) = submit_all(&served.engine, &generation, n)?;
    if generation.shared.stream {
        return Ok(stream(state.clone(), generation, n, events, request_ids));
    }
    let mut answer = Answer::new(state, served, generation, n, request_ids);
    let mut events = events;
    while let Some((prompt, event)) = events.next().await {
        answer.take(prompt, event)?;
    }
    Ok(Json(answer.whole()).into_response())
}

fn submit_all(
    engine: &EngineHandle,
    generation: &Generation,
    n: usize,
) -> Result<(Events, Vec<RequestId>), ApiError> {
    let salt = generation.shared.cache_salt.as_deref();
    let (mut events, mut ids) = (SelectAll::new(), Vec::new());
    let max_model_len = engine.config().max_model_len;
    for prompt in &generation.prompts {
        let mut params = generation.params.clone();
        params.max_tokens = params.max_tokens.min(max_model_len);
        // A refused prompt drops the streams before it, which aborts them.
        let stream = engine.submit(GenerateRequest {
            n,
            cache_salt: generation.tenant.cache_salt(salt),
            deadline: Some(generation.deadline),
            ..GenerateRequest::new(prompt.clone(), params)
        })?;
        let index = ids.len();
        ids.push(stream.id());
        events.push(stream.numbered(index));
    }
    Ok((events, ids))
}

/// Writes chunks until the answer ends or the client goes away.
fn stream(
    state: AppState,
    generation: Generation,
    n: usize,
    mut events: Events,
    request_ids: Vec<RequestId>,
) -> Response {
    let (sender, receiver) = mpsc::channel::<Result<Event, Infallible>>(CHUNK_BUFFER);
    tokio::spawn(async move {
        let Some(served) = state.served() else { return };
        let include_usage = generation.shared.include_usage;
        let mut answer = Answer::new(&state, served, generation, n, request_ids);
        loop {
            // Leaving this function drops the engine's streams, which aborts the request.
            let event = tokio::select! {
                event = events.next() => event,
                () = sender.closed() => return,
            };
            let Some((prompt, event)) = event else { break };
            let chunks = match answer.take(prompt, event) {
                Ok(touched) => answer.chunks(touched, include_usage),
                Err(error) => {
                    let _ = sender
                        .send(Ok(Event::default().data(error.body().to_string())))
                        .await;
                    return;
                }
            };
            for chunk in chunks {
                if sender
                    .send(Ok(Event::default().data(chunk.to_string())))
                    .await
                    .is_err()
                {
                    return;
                }
            }
        }
        if include_usage {
            let mut chunk = answer.envelope(Vec::new(), true);
            chunk["usage"] = answer.usage();
            let _ = sender
                .send(Ok(Event::default().data(chunk.to_string())))
                .await;
        }
        let _ = sender.send(Ok(Event::default().data("[DONE]"))).await;
    });
    Sse::new(ReceiverStream::new(receiver))
        .keep_alive(KeepAlive::new().interval(KEEP_ALIVE))
        .into_response()
}

impl<'a> Answer<'a> {
    fn new(
        state: &'a AppState,
        served: &'a Served,
        generation: Generation,
        n: usize,
        request_ids: Vec<RequestId>,
    ) -> Self {
        let num_choices = n * generation.prompts.len();
        let new_choice = || Choice {
            detokenizer: Detokenizer::new(&served.tokenizer, generation.shared.skip_special),
            stop: StopMatcher::new(generation.stops.clone(), generation.shared.include_stop),
            delta: Delta::default(),
            logprobs: Vec::new(),
            num_tokens: 0,
            num_chars: 0,
            is_started: false,
            is_finished: false,
        };
        let prefix = match generation.wire {
            Wire::Chat => "chatcmpl",
            Wire::Completion => "cmpl",
        };
        let mut choices: Vec<Choice> = (0..num_choices).map(|_| new_choice()).collect();
        for (index, choice) in choices.iter_mut().enumerate() {
            if let Some(text) = generation.echo.get(index / n) {
                choice.delta.text.clone_from(text);
            }
        }
        Self {
            prompt_logprobs: vec![None; generation.prompts.len()],
            served,
            state,
            params: generation.params,
            shared: generation.shared,
            echo: generation.echo,
            prompts: generation.prompts,
            wire: generation.wire,
            n,
            id: format!("{prefix}-{}", uuid::Uuid::new_v4().simple()),
            created: unix_time(),
            choices,
            request_ids,
            num_prompt_tokens: 0,
            num_cached_tokens: 0,
            started: Instant::now(),
            last_token: None,
        }
    }

    /// Takes an event; returns the choice it changed.
    fn take(&mut self, prompt: usize, event: StreamEvent) -> Result<Option<usize>, ApiError> {
        match event {
            StreamEvent::PromptDone {
                num_prompt_tokens,
                num_cached_tokens,
                prompt_logprobs,
            } => {
                self.num_prompt_tokens += num_prompt_tokens;
                self.num_cached_tokens += num_cached_tokens;
                self.prompt_logprobs[prompt] = prompt_logprobs;
                Ok(None)
            }
            StreamEvent::Token {
                index,
                token_id,
                logprobs,
                ..
            } => {
                let choice = prompt * self.n + index;
                self.take_token(choice, prompt, index, token_id, logprobs);
                Ok(Some(choice))
            }
            StreamEvent::Finished { index, reason } => {
                if reason == FinishReason::Deadline {
                    return Err(ApiError::deadline());
                }
                let choice = prompt * self.n + index;
                let was_finished = self.choices[choice].is_finished;
                self.finish(choice, reason);
                Ok((!was_finished).then_some(choice))
            }
            StreamEvent::Pooled { .. } => Ok(None),
            StreamEvent::Error(error) => Err(error.into()),
        }
    }

    fn take_token(
        &mut self,
        choice: usize,
        prompt: usize,
        index: usize,
        token_id: u32,
        logprobs: Option<TokenLogprobs>,
    ) {
        let now = Instant::now();
        match self.last_token.replace(now) {
            None => self.state.metrics().first_token(now - self.started),
            Some(last) => self.state.metrics().next_token(now - last),
        }
        let is_end = self.is_end(choice, token_id);
        let choice = &mut self.choices[choice];
        if choice.is_finished {
            return;
        }
        choice.num_tokens += 1;
        choice.logprobs.extend(logprobs);
        if is_end {
            return;
        }
        let piece = choice.detokenizer.push(token_id);
        let outcome = choice.stop.push(&piece);
        choice.delta.text.push_str(&outcome.text);
        if let Some(stop) = outcome.stopped {
            choice.delta.finish_reason = Some("stop");
            choice.delta.stop_reason = Some(stop.into());
            choice.is_finished = true;
            self.served
                .engine
                .abort_choice(self.request_ids[prompt], index);
        }
    }

    /// Whether the token ends its choice (the engine decides the same) and so has no text.
    fn is_end(&self, choice: usize, token_id: u32) -> bool {
        let params = &self.params;
        let num_tokens = self.choices[choice].num_tokens + 1;
        let is_eos = !params.ignore_eos && params.eos_token_ids.contains(&token_id);
        num_tokens >= params.min_tokens && (is_eos || params.stop_token_ids.contains(&token_id))
    }

    fn finish(&mut self, choice: usize, reason: FinishReason) {
        let elapsed = self.started.elapsed();
        let choice = &mut self.choices[choice];
        if !choice.is_finished {
            choice.is_finished = true;
            let rest = choice.detokenizer.finish();
            let outcome = choice.stop.push(&rest);
            choice.delta.text.push_str(&outcome.text);
            if outcome.stopped.is_none() {
                choice.delta.text.push_str(&choice.stop.finish());
            }
            choice.delta.finish_reason = Some(match reason {
                FinishReason::Length | FinishReason::Budget => "length",
                FinishReason::Abort | FinishReason::Deadline => "abort",
                FinishReason::Eos
                | FinishReason::StopToken(_)
                | FinishReason::Watcher
                | FinishReason::Pooled => "stop",
            });
            if let FinishReason::StopToken(token_id) = reason {
                choice.delta.stop_reason = Some(token_id.into());
            }
        }
        let reason = choice.delta.finish_reason.unwrap_or("stop");
        self.state
            .metrics()
            .finished(reason, choice.num_tokens, elapsed);
    }

    fn usage(&self) -> Value {
        let completion: usize = self.choices.iter().map(|choice| choice.num_tokens).sum();
        json!({
            "prompt_tokens": self.num_prompt_tokens,
            "completion_tokens": completion,
            "total_tokens": self.num_prompt_tokens + completion,
            "prompt_tokens_details": {"cached_tokens": self.num_cached_tokens, "audio_tokens": 0},
            "completion_tokens_details": {
                "reasoning_tokens": 0,
                "audio_tokens": 0,
                "accepted_prediction_tokens": 0,
                "rejected_prediction_tokens": 0,
            },
        })
    }

    fn envelope(&self, choices: Vec<Value>, is_chunk: bool) -> Value {
        let model = self.state.model_name();
        envelope(model, &self.id, self.created, self.wire, choices, is_chunk)
    }

    /// The logprobs of a choice's unsent tokens in the client's shape.
    fn logprobs(&mut self, index: usize) -> Value {
        if self.params.logprobs.is_none() {
            return Value::Null;
        }
        let tokenizer = &self.served.tokenizer;
        let choice = &mut self.choices[index];
        let tokens = std::mem::take(&mut choice.logprobs);
        if self.wire == Wire::Chat {
            return chat::logprobs_json(tokenizer, &tokens);
        }
        let mut tokens: Vec<_> = tokens.into_iter().map(Some).collect();
        let mut ids: Vec<Option<u32>> = tokens
            .iter()
            .map(|token| token.as_ref().map(|token| token.token_id))
            .collect();
        if !choice.is_started
            && !self.echo.is_empty()
            && let Some(prompt) = &self.prompt_logprobs[index / self.n]
        {
            ids.splice(
                0..0,
                self.prompts[index / self.n].iter().map(|id| Some(*id)),
            );
            tokens.splice(0..0, prompt.iter().cloned());
        }
        let texts: Vec<String> = ids
            .iter()
            .map(|id| id.map_or_else(String::new, |id| tokenizer.token_text(id)))
            .collect();
        completions::logprobs_json(tokenizer, &tokens, &texts, choice.num_chars)
    }

    /// The whole answer.
    fn whole(&mut self) -> Value {
        let mut choices = Vec::new();
        for index in 0..self.choices.len() {
            let logprobs = self.logprobs(index);
            let delta = &self.choices[index].delta;
            let mut choice = match self.wire {
                Wire::Chat => chat::choice_json(index, delta, logprobs),
                Wire::Completion => completions::choice_json(index, delta, logprobs),
            };
            if self.shared.prompt_logprobs.is_some() && self.wire == Wire::Completion {
                choice["prompt_logprobs"] = self.prompt_logprobs_json(index / self.n);
            }
            choices.push(choice);
        }
        let mut answer = self.envelope(choices, false);
        if self.shared.prompt_logprobs.is_some() && self.wire == Wire::Chat {
            answer["prompt_logprobs"] = self.prompt_logprobs_json(0);
        }
        answer["usage"] = self.usage();
        answer
    }

    /// vLLM's shape: a map from token id to logprob, rank and text for each prompt token.
    fn prompt_logprobs_json(&self, prompt: usize) -> Value {
        let tokenizer = &self.served.tokenizer;
        let Some(tokens) = &self.prompt_logprobs[prompt] else {
            return Value::Null;
        };
        let entry = |token: &TokenLogprobs| {
            let own = (token.token_id, token.logprob);
            let all = token.top.iter().copied().chain([own]);
            let entries = all.map(|(id, logprob)| {
                let text = tokenizer.token_text(id);
                (
                    id.to_string(),
                    json!({"logprob": logprob, "decoded_token": text}),
                )
            });
            Value::Object(entries.collect())
        };
        tokens
            .iter()
            .map(|token| token.as_ref().map_or(Value::Null, entry))
            .collect()
    }

    /// Chunks for what a choice has to say since the last call.
    fn chunks(&mut self, touched: Option<usize>, include_usage: bool) -> Vec<Value> {
        let Some(index) = touched else {
            return Vec::new();
        };
        let choice = &self.choices[index];
        let has_news = !choice.delta.text.is_empty() || !choice.logprobs.is_empty();
        let is_last = choice.delta.finish_reason.is_some();
        if choice.is_started && !has_news && !is_last {
            return Vec::new();
        }
        let logprobs = if has_news {
            self.logprobs(index)
        } else {
            Value::Null
        };
        let choice = &mut self.choices[index];
        let delta = std::mem::take(&mut choice.delta);
        choice.num_chars += delta.text.chars().count();
        let is_first = !std::mem::replace(&mut choice.is_started, true);
        let mut bodies = Vec::new();
        match self.wire {
            Wire::Completion => bodies.push(completions::choice_json(index, &delta, logprobs)),
            Wire::Chat => {
                if is_first {
                    let role = Delta::default();
                    bodies.push(chat::chunk_json(index, &role, true, Value::Null));
                }
                let text = Delta {
                    text: delta.text.clone(),
                    ..Delta::default()
                };
                if !text.text.is_empty() || !logprobs.is_null() {
                    bodies.push(chat::chunk_json(index, &text, false, logprobs));
                }
                if is_last {
                    let end = Delta {
                        text: String::new(),
                        ..delta
                    };
                    bodies.push(chat::chunk_json(index, &end, false, Value::Null));
                }
            }
        }
        let chunks = bodies.into_iter().map(|body| {
            let mut chunk = self.envelope(vec![body], true);
            if include_usage {
                chunk["usage"] = Value::Null;
            }
            chunk
        });
        chunks.collect()
    }
}

/// What is around the choices of an answer or of a chunk.
pub(super) fn envelope(
    model: &str,
    id: &str,
    created: u64,
    wire: Wire,
    choices: Vec<Value>,
    is_chunk: bool,
) -> Value {
    let object = match (wire, is_chunk) {
        (Wire::Chat, true) => "chat.completion.chunk",
        (Wire::Chat, false) => "chat.completion",
        (Wire::Completion, _) => "text_completion",
    };
    json!({
        "id": id,
        "object": object,
        "created": created,
        "model": model,
        "system_fingerprint": concat!("ponder-", env!("CARGO_PKG_VERSION")),
        "choices": choices,
    })
}
