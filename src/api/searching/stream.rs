//! A search as server-sent events: progress, text as soon as all branches agree on it, the answer.

use std::convert::Infallible;

use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::{Job, finish_reason};
use crate::api::generation::{CHUNK_BUFFER, Delta, KEEP_ALIVE, Wire};
use crate::api::openai::{chat, completions};
use crate::api::state::AppState;
use crate::search::{SearchEvent, SearchOutcome};

/// Sends progress while the search runs, then the answer.
pub(super) fn stream(state: AppState, job: Job) -> Response {
    let (sender, receiver) = mpsc::channel::<Result<Event, Infallible>>(CHUNK_BUFFER);
    tokio::spawn(async move {
        // Leaving this function drops the search, which aborts its branches.
        tokio::select! {
            () = write(&state, &job, &sender) => {}
            () = sender.closed() => {}
        }
    });
    Sse::new(ReceiverStream::new(receiver))
        .keep_alive(KeepAlive::new().interval(KEEP_ALIVE))
        .into_response()
}

type EventSender = mpsc::Sender<Result<Event, Infallible>>;

async fn send(sender: &EventSender, chunk: &Value) {
    let _ = sender
        .send(Ok(Event::default().data(chunk.to_string())))
        .await;
}

async fn write(state: &AppState, job: &Job, sender: &EventSender) {
    let (event_sender, mut events) = mpsc::unbounded_channel();
    let search = job.run(state, Some(event_sender));
    tokio::pin!(search);
    let mut writer = Writer {
        state,
        job,
        sender,
        num_sent: 0,
        is_started: false,
    };
    let outcome = loop {
        tokio::select! {
            biased;
            Some(event) = events.recv() => writer.event(event).await,
            outcome = &mut search => break outcome,
        }
    };
    while let Ok(event) = events.try_recv() {
        writer.event(event).await;
    }
    match outcome {
        Ok(outcome) => writer.finish(&outcome).await,
        Err(error) => send(sender, &error.body()).await,
    }
}

/// Writes the chunks of one search.
struct Writer<'a> {
    state: &'a AppState,
    job: &'a Job,
    sender: &'a EventSender,
    /// Bytes of the first choice that were sent.
    num_sent: usize,
    is_started: bool,
}

impl Writer<'_> {
    async fn chunk(&self, choices: Vec<Value>) {
        let mut chunk = self.job.envelope(choices, true);
        if self.job.include_usage {
            chunk["usage"] = Value::Null;
        }
        send(self.sender, &chunk).await;
    }

    async fn event(&mut self, event: SearchEvent) {
        if let SearchEvent::Agreed { text } = &event {
            // With one choice, what all branches share is part of the answer already.
            if self.job.n == 1 {
                self.num_sent += text.len();
                self.text(0, text.clone(), None, Value::Null).await;
            }
            return;
        }
        if self.job.spec.stream_events {
            let mut chunk = self.job.envelope(Vec::new(), true);
            chunk["search_event"] = json!(event);
            send(self.sender, &chunk).await;
        }
    }

    async fn text(
        &mut self,
        index: usize,
        text: String,
        finish_reason: Option<&'static str>,
        logprobs: Value,
    ) {
        let is_first = index > 0 || !std::mem::replace(&mut self.is_started, true);
        let delta = |text: String, finish_reason| Delta {
            text,
            finish_reason,
            stop_reason: None,
        };
        if self.job.wire == Wire::Completion {
            let body = completions::choice_json(index, &delta(text, finish_reason), logprobs);
            return self.chunk(vec![body]).await;
        }
        if is_first {
            let role = delta(String::new(), None);
            self.chunk(vec![chat::chunk_json(index, &role, true, Value::Null)])
                .await;
        }
        if !text.is_empty() || !logprobs.is_null() {
            let body = chat::chunk_json(index, &delta(text, None), false, logprobs);
            self.chunk(vec![body]).await;
        }
        if finish_reason.is_some() {
            let end = delta(String::new(), finish_reason);
            self.chunk(vec![chat::chunk_json(index, &end, false, Value::Null)])
                .await;
        }
    }

    async fn finish(mut self, outcome: &SearchOutcome) {
        let job = self.job;
        for (index, answer) in job.returned(outcome).iter().enumerate() {
            let sent = if index == 0 { self.num_sent } else { 0 };
            let rest = answer.text.get(sent..).unwrap_or_default().to_owned();
            let logprobs = self
                .state
                .served()
                .map_or(Value::Null, |served| job.logprobs(served, answer));
            self.text(index, rest, Some(finish_reason(answer.end)), logprobs)
                .await;
        }
        let mut summary = job.envelope(Vec::new(), true);
        summary["search"] = job.summary(self.state, outcome).await;
        if job.include_usage {
            summary["usage"] = job.usage(outcome);
        }
        send(self.sender, &summary).await;
        job.count(self.state, outcome);
        let _ = self.sender.send(Ok(Event::default().data("[DONE]"))).await;
    }
}
