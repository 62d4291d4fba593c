//! From checked parameters to an answer: submit, turn token events into text, write JSON or SSE.

mod answer;

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Json;
use axum::http::HeaderMap;
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures::stream::{SelectAll, StreamExt};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::adapters::TargetModel;
use super::auth::Tenant;
use super::error::ApiError;
use super::openai::params::{SharedParams, count};
use super::openai::speculation::Speculation;
use super::state::AppState;
use super::traces::{self, Recorder};
use super::{presets, searching};
use crate::engine::{
    AdaptationConfig, Backend, GenerateRequest, Media, RequestId, SamplingParams, StreamEvent,
};
use answer::Answer;

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
    /// What the one prompt of a chat shows.
    pub media: Option<Arc<Media>>,
    pub params: SamplingParams,
    pub stops: Vec<String>,
    pub speculation: Speculation,
    pub adaptation: Option<Arc<AdaptationConfig>>,
    pub shared: SharedParams,
    /// The prompts' texts when they are to be echoed.
    pub echo: Vec<String>,
    pub wire: Wire,
    /// What is asked, for rewards that read it.
    pub question: String,
    pub target: TargetModel,
    /// The request's messages and tools; null for completions.
    pub source: Value,
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

type Events = SelectAll<futures::stream::BoxStream<'static, (usize, StreamEvent)>>;

/// Submits every prompt or none and answers as the client asked.
pub(super) async fn answer(
    state: &AppState,
    mut generation: Generation,
) -> Result<Response, ApiError> {
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
    let wants_logprobs = generation.params.logprobs.is_some();
    let recorder = recorder(state, &mut generation, n)?;
    let (events, request_ids) = submit_all(served.engine.as_ref(), &generation, n)?;
    if generation.shared.stream {
        let setup = (n, request_ids, wants_logprobs, recorder);
        return Ok(stream(state.clone(), generation, events, setup));
    }
    let setup = (n, request_ids, wants_logprobs, recorder);
    let mut answer = Answer::new(state, served, generation, setup);
    let mut events = events;
    while let Some((prompt, event)) = events.next().await {
        answer.take(prompt, event)?;
    }
    let mut body = answer.whole();
    answer.keep(&mut body).await;
    Ok(Json(body).into_response())
}

/// Choices a prompt, their requests, whether logprobs were asked for, and who takes the answer down.
type Setup = (usize, Vec<RequestId>, bool, Option<Recorder>);

/// Who takes the answer down, if it is to be kept.
fn recorder(
    state: &AppState,
    generation: &mut Generation,
    n: usize,
) -> Result<Option<Recorder>, ApiError> {
    let tags = traces::tags(&generation.shared)?;
    if !traces::is_wanted(state, &generation.shared) {
        return Ok(None);
    }
    generation.params.logprobs.get_or_insert(0);
    let num_choices = n * generation.prompts.len();
    let source = std::mem::take(&mut generation.source);
    let asked = (&generation.params, generation.stops.as_slice());
    let target = generation.target.clone();
    let recorder = Recorder::new(
        (generation.tenant, target),
        source,
        asked,
        tags,
        num_choices,
    );
    Ok(Some(recorder))
}

fn submit_all(
    engine: &dyn Backend,
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
            adapter: generation.target.adapter_id(),
            deadline: Some(generation.deadline),
            speculative: generation.speculation.speculative,
            prediction: generation.speculation.prediction.clone(),
            adaptation: generation.adaptation.clone(),
            media: generation.media.clone(),
            ..GenerateRequest::new(prompt.clone(), params)
        })?;
        let index = ids.len();
        ids.push(stream.id());
        events.push(stream.numbered(index));
    }
    Ok((events, ids))
}

/// Writes chunks until the answer ends or the client goes away.
fn stream(state: AppState, generation: Generation, mut events: Events, setup: Setup) -> Response {
    let (sender, receiver) = mpsc::channel::<Result<Event, Infallible>>(CHUNK_BUFFER);
    tokio::spawn(async move {
        let Some(served) = state.served() else { return };
        let include_usage = generation.shared.include_usage;
        // Only who asked for a trace gets a chunk about it: some clients stumble over one without choices.
        let tells_trace = generation.shared.store == Some(true);
        let mut answer = Answer::new(&state, served, generation, setup);
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
        let mut chunk = answer.envelope(Vec::new(), true);
        let is_kept = answer.keep(&mut chunk).await;
        answer.tell_adaptation(&mut chunk);
        if include_usage || (tells_trace && is_kept) {
            if include_usage {
                chunk["usage"] = answer.usage();
            }
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
