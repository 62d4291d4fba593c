//! A search's answer: progress, text as soon as all branches agree on it, the ranked choices.

use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::resume;
use super::run::SearchRun;
use crate::api::answer::deliver::{Produce, Sink};
use crate::api::answer::event::{
    AnswerEvent, ChoiceEnd, Delta, EndReason, PromptReport, Summary, Usage,
};
use crate::api::answer::logprobs::token_logprob;
use crate::api::answer::reader::{Reader, num_thought_tokens};
use crate::api::error::ApiError;
use crate::api::generation::Generation;
use crate::api::state::AppState;
use crate::api::traces::keep::keep;
use crate::search::{
    Ranked, SearchEvent, SearchOutcome, SearchRequest, num_inserted, own_tokens, pieces,
};

/// A searched answer that is ready to run.
pub(in crate::api) struct SearchAnswer {
    state: AppState,
    run: SearchRun,
    first: FirstChoice,
    /// How the first choice ended.
    ended: Option<EndReason>,
}

/// The first choice while it is searched for.
struct FirstChoice {
    /// Bytes of it that were read, and sent.
    num_read: usize,
    reader: Reader,
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
        let run = SearchRun::new(state, generation, request).await?;
        Ok(Self {
            first: FirstChoice {
                num_read: 0,
                reader: Reader::new(&run.reading),
            },
            run,
            state: state.clone(),
            ended: None,
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
                    for event in progress(&self.run, &mut self.first, event) {
                        sink.send(event).await;
                    }
                }
                outcome = &mut search => break outcome,
            }
        };
        while let Ok(event) = events.try_recv() {
            for event in progress(&self.run, &mut self.first, event) {
                sink.send(event).await;
            }
        }
        outcome
    }

    /// What was not sent of a choice, and its end.
    fn end(&mut self, index: usize, answer: &Ranked) -> Vec<AnswerEvent> {
        let mut own = Reader::new(&self.run.reading);
        let (reader, num_read) = match index {
            0 => (&mut self.first.reader, self.first.num_read),
            _ => (&mut own, 0),
        };
        let choice = index;
        let (mut deltas, mut last) = (Vec::new(), Delta::default());
        let pieces = pieces(&answer.text, &answer.inserted, num_read).into_iter();
        for delta in pieces.flat_map(|piece| reader.piece(piece)) {
            if delta.tool_outputs.is_empty() {
                last.append(delta);
            } else {
                deltas.extend([std::mem::take(&mut last), delta]);
            }
        }
        last.append(reader.finish());
        let end = reader.end(ChoiceEnd {
            reason: EndReason::from(answer.end),
            stop: None,
            value: Some(answer.value),
        });
        self.ended.get_or_insert(end.reason);
        let tokenizer = &self.run.policy.tokenizer;
        last.logprobs = self.run.policy.params.logprobs.is_some().then(|| {
            let is_own = |at: &usize| !answer.inserted.iter().any(|it| it.tokens.contains(at));
            let entries = answer.logprobs.iter().enumerate();
            let entries = entries.filter(|(at, _)| is_own(at));
            entries
                .map(|(_, it)| token_logprob(tokenizer, it.clone()))
                .collect()
        });
        last.token_ids.clone_from(&answer.token_ids);
        let deltas = deltas.into_iter();
        let deltas = deltas.filter(|delta| !delta.is_empty());
        let event = |delta| AnswerEvent::Delta { choice, delta };
        let mut events: Vec<AnswerEvent> = deltas.map(event).collect();
        events.push(AnswerEvent::End { choice, last, end });
        events
    }

    /// Tokens of the answers that the client gets.
    fn num_kept(&self, outcome: &SearchOutcome) -> usize {
        let returned = self.run.returned(outcome).iter();
        let own = |answer: &Ranked| answer.token_ids.len() - num_inserted(&answer.inserted);
        returned.map(own).sum()
    }

    fn usage(&self, outcome: &SearchOutcome) -> Usage {
        let all = outcome.stats.num_tokens as usize;
        let (run, returned) = (&self.run, self.run.returned(outcome));
        let thoughts = returned.iter().map(|answer| {
            let own = own_tokens(&answer.token_ids, &answer.inserted);
            num_thought_tokens(&run.reading, run.policy.detokenizer(), &own)
        });
        let thoughts: usize = thoughts.sum();
        Usage {
            num_prompt_tokens: self.run.policy.prompt_token_ids.len(),
            num_cached_tokens: self.run.num_cached_tokens(),
            num_completion_tokens: all,
            num_reasoning_tokens: all.saturating_sub(self.num_kept(outcome)) + thoughts,
            drafts: self.run.policy.drafts.total(),
            num_tool_output_tokens: self.run.policy.code.as_ref().map(|_| {
                let nodes = outcome.tree.nodes.iter();
                nodes.map(|node| num_inserted(&node.inserted)).sum()
            }),
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
            "scorer_tokens": stats.scorer_tokens,
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
        let reason = self.ended.unwrap_or(EndReason::Stop);
        let metrics = self.state.metrics();
        for it in outcome.tree.nodes.iter().flat_map(|node| &node.inserted) {
            metrics.code_called(it.call.status);
        }
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
        let prompt = PromptReport {
            prompt: 0,
            echo: None,
            tokens: None,
            token_ids: Some(self.run.policy.prompt_token_ids.clone()),
        };
        sink.send(AnswerEvent::Prompt(prompt)).await;
        let outcome = self.search(sink).await?;
        for index in 0..self.run.returned(&outcome).len() {
            for event in self.end(index, &outcome.answers[index]) {
                sink.send(event).await;
            }
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

/// What a search's event is to those who watch.
fn progress(run: &SearchRun, first: &mut FirstChoice, event: SearchEvent) -> Vec<AnswerEvent> {
    match event {
        // With one choice, what all branches share is part of the answer already.
        SearchEvent::Agreed { text, pieces } if run.n == 1 => {
            first.num_read += text.len();
            let deltas = pieces.into_iter().flat_map(|it| first.reader.piece(it));
            let deltas = deltas.filter(|delta| !delta.is_empty());
            let event = |delta| AnswerEvent::Delta { choice: 0, delta };
            deltas.map(event).collect()
        }
        SearchEvent::Agreed { .. } => Vec::new(),
        event if run.spec.stream_events => vec![AnswerEvent::Search(event)],
        _ => Vec::new(),
    }
}
