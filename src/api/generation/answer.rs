//! Token events on their way to the text, JSON and chunks of an answer.

use std::sync::Arc;
use std::time::Instant;

use serde_json::{Value, json};

use super::{Delta, Generation, Setup, Wire, envelope};
use crate::api::error::ApiError;
use crate::api::openai::adaptation::phase_json;
use crate::api::openai::params::SharedParams;
use crate::api::openai::speculation::completion_details;
use crate::api::openai::{chat, completions};
use crate::api::state::{AppState, Served, unix_time};
use crate::api::traces::Recorder;
use crate::engine::{
    AdaptationConfig, DraftCounts, FinishReason, RequestId, SamplingParams, StreamEvent,
    TokenLogprobs,
};
use crate::text::{Detokenizer, StopMatcher};

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

/// The adaptation that was asked for, and its phases.
struct Adapted {
    config: Arc<AdaptationConfig>,
    phases: Vec<Value>,
}

/// All choices of a request and what they cost.
pub(super) struct Answer<'a> {
    served: &'a Served,
    state: &'a AppState,
    params: SamplingParams,
    shared: SharedParams,
    echo: Vec<String>,
    prompts: Vec<Vec<u32>>,
    wire: Wire,
    /// The name that the answer carries.
    model: String,
    n: usize,
    id: String,
    created: u64,
    choices: Vec<Choice>,
    prompt_logprobs: Vec<Option<Vec<Option<TokenLogprobs>>>>,
    request_ids: Vec<RequestId>,
    /// Whether the client asked for logprobs: a trace has them always.
    wants_logprobs: bool,
    recorder: Option<Recorder>,
    num_prompt_tokens: usize,
    num_cached_tokens: usize,
    drafts: DraftCounts,
    /// What adaptation did; `None` when it was not asked for.
    adaptation: Option<Adapted>,
    started: Instant,
    last_token: Option<Instant>,
}

impl<'a> Answer<'a> {
    pub(super) fn new(
        state: &'a AppState,
        served: &'a Served,
        generation: Generation,
        (n, request_ids, wants_logprobs, recorder): Setup,
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
            model: generation.target.name,
            n,
            id: format!("{prefix}-{}", uuid::Uuid::new_v4().simple()),
            created: unix_time(),
            choices,
            request_ids,
            wants_logprobs,
            recorder,
            num_prompt_tokens: 0,
            num_cached_tokens: 0,
            drafts: DraftCounts::default(),
            adaptation: generation.adaptation.map(|config| Adapted {
                config,
                phases: Vec::new(),
            }),
            started: Instant::now(),
            last_token: None,
        }
    }

    /// Takes an event; returns the choice it changed.
    pub(super) fn take(
        &mut self,
        prompt: usize,
        event: StreamEvent,
    ) -> Result<Option<usize>, ApiError> {
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
            StreamEvent::Finished {
                index,
                reason,
                drafts,
            } => {
                self.drafts += drafts;
                if reason == FinishReason::Deadline {
                    return Err(ApiError::deadline());
                }
                let choice = prompt * self.n + index;
                let was_finished = self.choices[choice].is_finished;
                self.finish(choice, reason);
                Ok((!was_finished).then_some(choice))
            }
            StreamEvent::Adapted { index, report, .. } => {
                self.state.metrics().adapted(&report);
                if let Some(adapted) = &mut self.adaptation {
                    adapted
                        .phases
                        .push(phase_json(&report, prompt * self.n + index));
                }
                Ok(None)
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
        let index_of_choice = choice;
        let choice = &mut self.choices[choice];
        if choice.is_finished {
            return;
        }
        choice.num_tokens += 1;
        if let Some(recorder) = &mut self.recorder {
            let logprob = logprobs.as_ref().map(|token| token.logprob);
            recorder.token(index_of_choice, token_id, logprob);
        }
        choice
            .logprobs
            .extend(logprobs.filter(|_| self.wants_logprobs));
        if is_end {
            return;
        }
        let piece = choice.detokenizer.push(token_id);
        let outcome = choice.stop.push(&piece);
        choice.delta.text.push_str(&outcome.text);
        if let Some(recorder) = &mut self.recorder {
            recorder.text(index_of_choice, &outcome.text);
        }
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
        let index = choice;
        let choice = &mut self.choices[index];
        if !choice.is_finished {
            choice.is_finished = true;
            let rest = choice.detokenizer.finish();
            let outcome = choice.stop.push(&rest);
            let mut text = outcome.text;
            if outcome.stopped.is_none() {
                text.push_str(&choice.stop.finish());
            }
            choice.delta.text.push_str(&text);
            if let Some(recorder) = &mut self.recorder {
                recorder.text(index, &text);
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
        if let Some(recorder) = &mut self.recorder {
            recorder.end(index, reason);
        }
        self.state
            .metrics()
            .finished(reason, choice.num_tokens, elapsed);
    }

    /// Keeps what was taken down and tells its id; false when nothing was.
    pub(super) async fn keep(&mut self, body: &mut Value) -> bool {
        let Some(mut recorder) = self.recorder.take() else {
            return false;
        };
        recorder.adaptation = self.adaptation_json();
        let ids = recorder
            .keep(self.state, &self.prompts, self.n, self.num_cached_tokens)
            .await;
        match ids.as_slice() {
            [id] => body["trace_id"] = json!(id),
            ids => body["trace_ids"] = json!(ids),
        }
        true
    }

    fn adaptation_json(&self) -> Value {
        let adapted = self.adaptation.as_ref();
        adapted.map_or(
            Value::Null,
            |adapted| json!({"config": *adapted.config, "phases": adapted.phases}),
        )
    }

    /// Puts what adaptation did into the answer, when it was asked for.
    pub(super) fn tell_adaptation(&self, body: &mut Value) {
        let adapted = self.adaptation_json();
        if !adapted.is_null() {
            body["adaptation"] = adapted;
        }
    }

    pub(super) fn usage(&self) -> Value {
        let completion: usize = self.choices.iter().map(|choice| choice.num_tokens).sum();
        json!({
            "prompt_tokens": self.num_prompt_tokens,
            "completion_tokens": completion,
            "total_tokens": self.num_prompt_tokens + completion,
            "prompt_tokens_details": {"cached_tokens": self.num_cached_tokens, "audio_tokens": 0},
            "completion_tokens_details": completion_details(0, self.drafts),
        })
    }

    pub(super) fn envelope(&self, choices: Vec<Value>, is_chunk: bool) -> Value {
        let model = &self.model;
        envelope(model, &self.id, self.created, self.wire, choices, is_chunk)
    }

    /// The logprobs of a choice's unsent tokens in the client's shape.
    fn logprobs(&mut self, index: usize) -> Value {
        if !self.wants_logprobs {
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
    pub(super) fn whole(&mut self) -> Value {
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
        self.tell_adaptation(&mut answer);
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
    pub(super) fn chunks(&mut self, touched: Option<usize>, include_usage: bool) -> Vec<Value> {
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
