//! A search's answer: progress, text as soon as all branches agree on it, the ranked choices.

use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::resume;
use super::run::SearchRun;
use crate::api::answer::deliver::{Produce, Sink};
use crate::api::answer::event::{AnswerEvent, ChoiceEnd, Delta, EndReason, Summary, Usage};
use crate::api::answer::logprobs::token_logprob;
use crate::api::error::ApiError;
use crate::api::generation::Generation;
use crate::api::state::AppState;
use crate::api::traces::keep::keep;
use crate::search::{Ranked, SearchEvent, SearchOutcome, SearchRequest};

/// A searched answer that is ready to run.
pub(in crate::api) struct SearchAnswer {
    state: AppState,
    run: SearchRun,
    /// Bytes of the first choice that were sent while it was searched for.
    num_sent: usize,
}

impl SearchAnswer {
    /// Checks a search.
    pub async fn start(
        state: &AppState,
        generation: Generation,
        mut request: SearchRequest,
    ) -> Result<Self, ApiError> {
        let found = resume::find(state, generation.tenant, &mut request);
        generation.deadline.limit(found).await??;
        Ok(Self {
            run: SearchRun::new(state, generation, request).await?,
            state: state.clone(),
            num_sent: 0,
        })
    }

    /// Runs the search; whoever watches sees its progress.
    async fn search(&mut self, sink: &mut Sink<'_>) -> Result<SearchOutcome, ApiError> {
        if !sink.is_watched() {
            return self.run.run(&self.state, None).await;
        }
        let (sender, mut events) = mpsc::unbounded_channel();
        let search = self.run.run(&self.state, Some(sender));
        tokio::pin!(search);
        let outcome = loop {
            tokio::select! {
                biased;
                Some(event) = events.recv() => {
                    if let Some(event) = progress(&self.run, &mut self.num_sent, event) {
                        sink.send(event).await;
                    }
                }
                outcome = &mut search => break outcome,
            }
        };
        while let Ok(event) = events.try_recv() {
            if let Some(event) = progress(&self.run, &mut self.num_sent, event) {
                sink.send(event).await;
            }
        }
        outcome
    }

    /// The end of a choice, with what was not sent of it.
    fn end(&self, index: usize, answer: &Ranked) -> AnswerEvent {
        let sent = if index == 0 { self.num_sent } else { 0 };
        let tokenizer = &self.run.policy.tokenizer;
        let wants_logprobs = self.run.policy.params.logprobs.is_some();
        AnswerEvent::End {
            choice: index,
            last: Delta {
                text: answer.text.get(sent..).unwrap_or_default().to_owned(),
                logprobs: wants_logprobs.then(|| {
                    let entries = answer.logprobs.iter().cloned();
                    entries.map(|it| token_logprob(tokenizer, it)).collect()
                }),
                ..Delta::default()
            },
            end: ChoiceEnd {
                reason: EndReason::from(answer.end),
                stop: None,
                value: Some(answer.value),
            },
        }
    }

    /// Tokens of the answers that the client gets.
    fn num_kept(&self, outcome: &SearchOutcome) -> usize {
        let returned = self.run.returned(outcome).iter();
        returned.map(|answer| answer.token_ids.len()).sum()
    }

    fn usage(&self, outcome: &SearchOutcome) -> Usage {
        let all = outcome.stats.num_tokens as usize;
        Usage {
            num_prompt_tokens: self.run.policy.prompt_token_ids.len(),
            num_cached_tokens: self.run.num_cached_tokens(),
            num_completion_tokens: all,
            num_reasoning_tokens: all.saturating_sub(self.num_kept(outcome)),
            drafts: self.run.policy.drafts.total(),
        }
    }

    /// The `search` object of a response. Its trace is on disk then.
    async fn report(&self, outcome: &SearchOutcome) -> Value {
        let (run, stats) = (&self.run, &outcome.stats);
        let is_kept = run.is_kept && self.state.traces().is_some();
        let record = (is_kept || run.spec.return_tree).then(|| run.record(&self.state, outcome));
        let tree = run.spec.return_tree.then(|| json!(record));
        let trace_id = match record.filter(|_| is_kept) {
            Some(record) => {
                let deadline = run.policy.deadline;
                keep(&self.state, record, run.tenant, deadline).await
            }
            None => None,
        };
        let mut report = json!({
            "trace_id": trace_id,
            "strategy": run.spec.strategy,
            "value": outcome.answers.first().map(|answer| answer.value),
            "nodes": stats.num_nodes,
            "tokens": stats.num_tokens,
            "scorer_calls": stats.scorer_calls,
            "scorer_ms": stats.scorer_time.as_millis() as u64,
            "stopped": outcome.stopped,
        });
        if let Some(adapted) = run.adapted.get() {
            report["adaptation"] = adapted.clone();
        }
        if let Some(tree) = tree {
            report["tree"] = tree;
        }
        report
    }

    fn count(&self, outcome: &SearchOutcome) {
        let kept = self.num_kept(outcome);
        let first = self.run.returned(outcome).first();
        let reason = first.map_or(EndReason::Stop, |answer| EndReason::from(answer.end));
        let metrics = self.state.metrics();
        metrics.finished(reason.name(), kept, self.run.started.elapsed());
        metrics.searched(
            self.run.spec.strategy.name(),
            match outcome.stopped {
                Some(stopped) => stopped.name(),
                None => "finished",
            },
            kept as u64,
            &outcome.stats,
        );
    }
}

impl Produce for SearchAnswer {
    async fn run(mut self, sink: &mut Sink<'_>) -> Result<(), ApiError> {
        let outcome = self.search(sink).await?;
        for (index, answer) in self.run.returned(&outcome).iter().enumerate() {
            sink.send(self.end(index, answer)).await;
        }
        let summary = Summary {
            usage: self.usage(&outcome),
            search: Some(self.report(&outcome).await),
            ..Summary::default()
        };
        self.count(&outcome);
        sink.send(AnswerEvent::Done(Box::new(summary))).await;
        Ok(())
    }
}

/// What a search's event is to those who watch. `num_sent` counts the bytes of the answer among it.
fn progress(run: &SearchRun, num_sent: &mut usize, event: SearchEvent) -> Option<AnswerEvent> {
    match event {
        // With one choice, what all branches share is part of the answer already.
        SearchEvent::Agreed { text } if run.n == 1 => {
            *num_sent += text.len();
            let logprobs = None;
            let delta = Delta {
                text,
                logprobs,
                ..Delta::default()
            };
            Some(AnswerEvent::Delta { choice: 0, delta })
        }
        SearchEvent::Agreed { .. } => None,
        event if run.spec.stream_events => Some(AnswerEvent::Search(event)),
        _ => None,
    }
}
