//! Plain answers: requests to the engine, and their token events on the way to answer events.

use std::sync::Arc;
use std::time::Instant;

use futures::stream::StreamExt;
use serde_json::{Value, json};

use super::choice::{Choice, ChoiceText};
use super::deliver::{Produce, Sink};
use super::event::{AnswerEvent, Delta, EndReason, PromptReport, Summary, Usage};
use super::latency::{Latency, TokenTimes};
use super::logprobs::{token, token_logprob};
use super::reader::Reader;
use super::submit::{Events, submit_all};
use crate::api::error::ApiError;
use crate::api::generation::Generation;
use crate::api::openai::adaptation::phase_json;
use crate::api::openai::code::check_plain;
use crate::api::openai::params::count;
use crate::api::state::AppState;
use crate::api::traces::keep;
use crate::api::traces::recorder::Recorder;
use crate::engine::{
    AdaptationConfig, AdaptationReport, Engine, FinishReason, RequestId, StreamEvent, TokenLogprobs,
};
use crate::search::{CodeEvent, Insertion, Piece};
use crate::text::{Detokenizer, StopMatcher, Tokenizer};

/// An answer that runs.
pub(super) struct PlainAnswer {
    state: AppState,
    engine: Engine,
    tokenizer: Tokenizer,
    events: Events,
    /// By prompt.
    request_ids: Vec<RequestId>,
    prompts: Vec<Vec<u32>>,
    /// Texts of the prompts, when the answer begins with them.
    echo: Vec<String>,
    /// Choices of each prompt.
    n: usize,
    /// Whether the client asked for logprobs: a trace has them always.
    wants_logprobs: bool,
    /// Whether the client asked for the tokens of the prompts.
    tells_token_ids: bool,
    /// The prompts are read, and nothing is sampled.
    is_reading: bool,
    /// Tokens that end a choice.
    end_token_ids: Vec<u32>,
    choices: Vec<Choice>,
    /// Whether the answers may call code: then the engine itself ends what a stop string ends.
    calls_code: bool,
    times: TokenTimes,
    usage: Usage,
    adaptation: Option<Adaptation>,
    recorder: Option<Recorder>,
}

/// The adaptation that was asked for, and its phases.
struct Adaptation {
    config: Arc<AdaptationConfig>,
    phases: Vec<Value>,
}

impl PlainAnswer {
    /// Submits every prompt or none.
    pub fn start(state: &AppState, mut generation: Generation) -> Result<Self, ApiError> {
        let served = state.ready()?;
        check_plain(&generation)?;
        let n = Self::check_n(state, "n", generation.shared.n)?;
        let num_prompt_tokens = generation.prompts.iter().map(Vec::len).sum();
        let max_tokens = generation.params.max_tokens.min(1 << 20);
        state.metrics().started(num_prompt_tokens, n, max_tokens);
        let wants_logprobs = generation.params.logprobs.is_some();
        let tags = keep::tags(&generation.shared)?;
        let recorder = keep::is_wanted(state, &generation.shared).then(|| {
            generation.params.logprobs.get_or_insert(0);
            Recorder::new(&generation, tags, n)
        });
        let (events, request_ids) = submit_all(served, &generation, n)?;
        let num_choices = n * generation.prompts.len();
        let shared = &generation.shared;
        let params = &generation.params;
        let reading = &generation.shape.reading;
        let (tokenizer, skip_special) = (&served.tokenizer, shared.skip_special);
        let reader = Reader::new(reading);
        let new_choice = |_| Choice {
            text: ChoiceText::new(
                Detokenizer::with_visible(tokenizer, skip_special, &reading.visible),
                StopMatcher::new(generation.stops.clone(), shared.include_stop)
                    .after(params.min_tokens.saturating_sub(1)),
            ),
            reader: reader.clone(),
            num_tokens: 0,
            is_started: false,
            untold: Vec::new(),
        };
        let eos = params.eos_token_ids.iter().filter(|_| !params.ignore_eos);
        Ok(Self {
            choices: (0..num_choices).map(new_choice).collect(),
            calls_code: generation.code.is_some(),
            end_token_ids: eos.chain(&params.stop_token_ids).copied().collect(),
            state: state.clone(),
            engine: served.engine.clone(),
            tokenizer: served.tokenizer.clone(),
            events,
            request_ids,
            prompts: generation.prompts,
            echo: generation.echo,
            n,
            wants_logprobs,
            tells_token_ids: shared.returns_token_ids,
            is_reading: generation.params.max_tokens == 0,
            times: TokenTimes::new(Instant::now(), num_choices),
            usage: Usage {
                num_tool_output_tokens: generation.code.as_ref().map(|_| 0),
                ..Usage::default()
            },
            adaptation: generation.adaptation.map(|config| Adaptation {
                config,
                phases: Vec::new(),
            }),
            recorder,
        })
    }

    /// How many choices a prompt may have.
    pub fn check_n(state: &AppState, name: &str, n: Option<u64>) -> Result<usize, ApiError> {
        let limit = state.ready()?.engine.config().max_num_seqs_of_one();
        match count(name, n, 1, limit)? {
            0 => Err(ApiError::invalid(
                name,
                format!("{name} must be at least 1"),
            )),
            n => Ok(n),
        }
    }

    /// What an engine's event adds to the answer.
    fn take(&mut self, prompt: usize, event: StreamEvent) -> Result<Option<AnswerEvent>, ApiError> {
        match event {
            StreamEvent::PromptDone {
                num_prompt_tokens,
                num_cached_tokens,
                prompt_logprobs,
            } => {
                self.usage.num_prompt_tokens += num_prompt_tokens;
                self.usage.num_cached_tokens += num_cached_tokens;
                Ok(self.report(prompt, prompt_logprobs))
            }
            StreamEvent::Token {
                index,
                token_id,
                logprobs,
                ..
            } => Ok(self.take_token(prompt, index, token_id, logprobs)),
            StreamEvent::Finished {
                index,
                reason,
                drafts,
            } => {
                self.usage.drafts += drafts;
                let at = prompt * self.n + index;
                match reason {
                    FinishReason::Deadline => Err(ApiError::deadline()),
                    // A choice that had not ended before.
                    FinishReason::Abort if self.choices[at].text.end().is_none() => {
                        Err(ApiError::aborted())
                    }
                    _ => Ok(self.finish(at, reason)),
                }
            }
            StreamEvent::Adapted { index, report, .. } => {
                self.adapted(&report, prompt * self.n + index);
                Ok(None)
            }
            StreamEvent::Pooled { .. } => Ok(None),
            StreamEvent::Error(error) => Err(error.into()),
        }
    }

    fn report(
        &self,
        prompt: usize,
        logprobs: Option<Vec<Option<TokenLogprobs>>>,
    ) -> Option<AnswerEvent> {
        let echo = self.echo.get(prompt).cloned();
        if echo.is_none() && logprobs.is_none() && !self.tells_token_ids {
            return None;
        }
        let tokens = logprobs.map(|logprobs| {
            let tokens = self.prompts[prompt].iter().zip(logprobs);
            let token = |(id, entry): (&u32, Option<TokenLogprobs>)| {
                let entry = entry.map(|entry| token_logprob(&self.tokenizer, entry));
                (token(&self.tokenizer, *id), entry)
            };
            tokens.map(token).collect()
        });
        Some(AnswerEvent::Prompt(PromptReport {
            prompt,
            echo,
            tokens,
            token_ids: self.tells_token_ids.then(|| self.prompts[prompt].clone()),
        }))
    }

    fn take_token(
        &mut self,
        prompt: usize,
        index: usize,
        token_id: u32,
        logprobs: Option<TokenLogprobs>,
    ) -> Option<AnswerEvent> {
        // The engine samples one token behind each prompt.
        if self.is_reading {
            return None;
        }
        let at = prompt * self.n + index;
        match self.times.token(at, Instant::now()) {
            Some(Latency::First(elapsed)) => self.state.metrics().first_token(elapsed),
            Some(Latency::Next(elapsed)) => self.state.metrics().next_token(elapsed),
            None => {}
        }
        let choice = &mut self.choices[at];
        // Tokens of the step in which a stop string matched.
        if choice.text.end().is_some() {
            return None;
        }
        choice.num_tokens += 1;
        choice.untold.push(token_id);
        let text = choice
            .text
            .push(token_id, self.end_token_ids.contains(&token_id));
        if let Some(recorder) = &mut self.recorder {
            let logprob = logprobs.as_ref().map(|token| token.logprob);
            recorder.token(at, token_id, logprob);
            recorder.text(at, &text);
        }
        let mut delta = choice.reader.token(&text);
        let is_first = !std::mem::replace(&mut choice.is_started, true);
        let end = choice.end(&mut delta);
        let logprobs = logprobs.filter(|_| self.wants_logprobs);
        let has_news = !delta.is_empty() || logprobs.is_some();
        let entries = logprobs.into_iter();
        let entries = entries.map(|entry| token_logprob(&self.tokenizer, entry));
        delta.logprobs = (self.wants_logprobs && has_news).then(|| entries.collect());
        if end.is_some() || is_first || has_news {
            delta.token_ids = std::mem::take(&mut choice.untold);
        }
        match end {
            Some(end) => {
                if !self.calls_code {
                    self.engine.abort_choice(self.request_ids[prompt], index);
                }
                let (choice, last) = (at, delta);
                Some(AnswerEvent::End { choice, last, end })
            }
            None if is_first || has_news => Some(AnswerEvent::Delta { choice: at, delta }),
            None => None,
        }
    }

    /// A program has printed into a choice: what was held back of the text before, and its output.
    fn insert(&mut self, at: usize, insertion: Insertion) -> Vec<AnswerEvent> {
        let choice = &mut self.choices[at];
        if choice.text.end().is_some() {
            return Vec::new();
        }
        let rest = choice.text.interrupt();
        if let Some(recorder) = &mut self.recorder {
            recorder.text(at, &rest);
            recorder.inserted(at, &insertion);
        }
        self.state.metrics().code_called(insertion.call.status);
        let num_tokens = insertion.token_ids.len();
        if let Some(count) = &mut self.usage.num_tool_output_tokens {
            *count += num_tokens;
        }
        let mut own = choice.reader.push(&rest);
        own.token_ids = std::mem::take(&mut choice.untold);
        let mut deltas = choice.reader.piece(Piece::Inserted {
            text: insertion.text,
            num_tokens,
            num_before: choice.num_tokens,
            call: insertion.call,
        });
        if let Some(last) = deltas.last_mut() {
            last.token_ids = insertion.token_ids;
        }
        let is_news = |delta: &Delta| !delta.is_empty() || !delta.token_ids.is_empty();
        let deltas = std::iter::once(own).chain(deltas).filter(is_news);
        let event = |delta| AnswerEvent::Delta { choice: at, delta };
        deltas.map(event).collect()
    }

    /// The engine says that a choice is over.
    fn finish(&mut self, at: usize, mut reason: FinishReason) -> Option<AnswerEvent> {
        if self.is_reading && reason != FinishReason::Abort {
            reason = FinishReason::Length;
        }
        let choice = &mut self.choices[at];
        let rest = choice.text.finish(reason);
        let mut last = choice.reader.push(rest.as_deref().unwrap_or_default());
        let end = choice.end(&mut last);
        let name = end.as_ref().map_or(EndReason::Stop, |end| end.reason);
        if let Some(recorder) = &mut self.recorder {
            recorder.text(at, rest.as_deref().unwrap_or_default());
            recorder.end(at, name);
        }
        let elapsed = self.times.elapsed();
        let metrics = self.state.metrics();
        metrics.finished(name.name(), choice.num_tokens, elapsed);
        // Otherwise a stop string had ended it.
        rest?;
        let has_news = self.is_reading || !last.is_empty();
        last.logprobs = (self.wants_logprobs && has_news).then(Vec::new);
        last.token_ids = std::mem::take(&mut choice.untold);
        let end = end?;
        Some(AnswerEvent::End {
            choice: at,
            last,
            end,
        })
    }

    fn adapted(&mut self, report: &AdaptationReport, choice: usize) {
        self.state.metrics().adapted(report);
        if let Some(adaptation) = &mut self.adaptation {
            adaptation.phases.push(phase_json(report, choice));
        }
    }

    /// What all choices cost; the answer's traces are on disk then.
    async fn summary(mut self) -> Result<Summary, ApiError> {
        if self
            .choices
            .iter()
            .any(|choice| choice.text.end().is_none())
        {
            let message = "the engine stopped before the answer was whole";
            return Err(ApiError::unavailable(message));
        }
        let completion = self.choices.iter().map(|choice| choice.num_tokens).sum();
        self.usage.num_completion_tokens = completion;
        let readers = self.choices.iter().map(|choice| &choice.reader);
        self.usage.num_reasoning_tokens = readers.map(Reader::num_thought_tokens).sum();
        let adaptation = self
            .adaptation
            .map(|it| json!({"config": *it.config, "phases": it.phases}));
        let traces = match self.recorder {
            None => None,
            Some(mut recorder) => {
                recorder.adaptation = adaptation.clone().unwrap_or_default();
                let num_cached_tokens = self.usage.num_cached_tokens;
                let kept = recorder.keep(&self.state, &self.prompts, self.n, num_cached_tokens);
                Some(kept.await)
            }
        };
        Ok(Summary {
            usage: self.usage,
            traces,
            adaptation,
            search: None,
        })
    }
}

impl Produce for PlainAnswer {
    async fn run(mut self, sink: &mut Sink<'_>) -> Result<(), ApiError> {
        while let Some((prompt, event)) = self.events.next().await {
            let events = match event {
                CodeEvent::Engine(event) => self.take(prompt, event)?.into_iter().collect(),
                CodeEvent::Inserted { index, insertion } => {
                    self.insert(prompt * self.n + index, insertion)
                }
            };
            for event in events {
                sink.send(event).await;
            }
        }
        let summary = self.summary().await?;
        sink.send(AnswerEvent::Done(Box::new(summary))).await;
        Ok(())
    }
}
