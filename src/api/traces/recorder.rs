//! A plain answer on its way into the store.

use std::time::Instant;

use futures::future::join_all;
use serde_json::{Value, json};

use super::keep::{identity, keep, new_id, rounded, sampling_json};
use crate::api::adapters::registry::TargetModel;
use crate::api::answer::event::EndReason;
use crate::api::clock::unix_time;
use crate::api::generation::Generation;
use crate::api::state::AppState;
use crate::api::tenant::Tenant;
use crate::search::Insertion;
use crate::trace::{InsertedRecord, NodeRecord, PLAIN, SCHEMA, Timings, TraceRecord, Usage};

/// Takes down a plain answer while it is written.
pub(in crate::api) struct Recorder {
    tenant: Tenant,
    target: TargetModel,
    request: Value,
    sampling: Value,
    seed: u64,
    tags: Vec<String>,
    started: Instant,
    deadline: Option<Instant>,
    /// What adaptation did; null when it was not asked for.
    pub adaptation: Value,
    /// One a choice.
    answers: Vec<NodeRecord>,
}

impl Recorder {
    /// Of a request with `n` choices a prompt.
    pub fn new(generation: &Generation, tags: Vec<String>, n: usize) -> Self {
        let num_choices = n * generation.prompts.len();
        let answer = |index: usize| NodeRecord {
            parent: Some(0),
            visit_count: 1,
            branch_path: vec![index as u32],
            ..NodeRecord::default()
        };
        Self {
            tenant: generation.tenant,
            target: generation.target.clone(),
            request: generation.source.clone(),
            sampling: sampling_json(&generation.params, &generation.stops),
            seed: generation.params.seed,
            tags,
            started: Instant::now(),
            deadline: generation.deadline.instant(),
            adaptation: Value::Null,
            answers: (0..num_choices).map(answer).collect(),
        }
    }

    pub fn token(&mut self, choice: usize, token_id: u32, logprob: Option<f32>) {
        let answer = &mut self.answers[choice];
        answer.token_ids.push(token_id);
        if let Some(logprob) = logprob {
            answer.token_logprobs.push(rounded(logprob));
            answer.logprob += f64::from(logprob);
        }
    }

    pub fn text(&mut self, choice: usize, text: &str) {
        self.answers[choice].text.push_str(text);
    }

    /// What a program printed into a choice.
    pub fn inserted(&mut self, choice: usize, insertion: &Insertion) {
        let answer = &mut self.answers[choice];
        let first = [answer.token_ids.len(), answer.text.chars().count()];
        answer.token_ids.extend(&insertion.token_ids);
        answer.text.push_str(&insertion.text);
        // Nobody sampled them.
        let certain = insertion.token_ids.iter().map(|_| 0.0);
        answer.token_logprobs.extend(certain);
        answer.inserted.push(InsertedRecord {
            tokens: [first[0], answer.token_ids.len()],
            chars: [first[1], first[1] + insertion.text.chars().count()],
            code: insertion.call.code.clone(),
            output: insertion.call.output.clone(),
            status: insertion.call.status.name().to_owned(),
        });
    }

    /// The first end of a choice counts.
    pub fn end(&mut self, choice: usize, reason: EndReason) {
        let end = match reason {
            EndReason::Abort => "cut",
            EndReason::Stop | EndReason::ToolCalls => EndReason::Stop.name(),
            EndReason::Length => reason.name(),
        };
        self.answers[choice]
            .end
            .get_or_insert_with(|| end.to_owned());
    }

    /// Keeps one trace a prompt (`n` choices each) and returns their ids.
    pub async fn keep(
        self,
        state: &AppState,
        prompts: &[Vec<u32>],
        n: usize,
        num_cached_tokens: usize,
    ) -> Vec<Option<String>> {
        let Some(served) = state.served() else {
            return Vec::new();
        };
        let mut kept = Vec::new();
        let mut answers = self.answers.into_iter();
        for prompt in prompts {
            let mut nodes = vec![NodeRecord::default()];
            nodes.extend(answers.by_ref().take(n));
            let tokens = nodes.iter().map(|node| node.num_own() as u64).sum();
            let decode = |skip_special| served.tokenizer.decode(prompt, skip_special);
            let request = match &self.request {
                Value::Null => json!({"prompt": decode(true)}),
                request => request.clone(),
            };
            let record = TraceRecord {
                schema: SCHEMA.to_owned(),
                id: new_id(),
                revision: 1,
                model: self.target.name.clone(),
                identity: identity(served, &self.target),
                created: unix_time(),
                strategy: PLAIN.to_owned(),
                seed: self.seed,
                tags: self.tags.clone(),
                search: Value::Null,
                sampling: self.sampling.clone(),
                request,
                prompt_text: decode(false),
                prompt_token_ids: prompt.clone(),
                chosen: (1..nodes.len()).collect(),
                nodes,
                adaptation: self.adaptation.clone(),
                stopped: None,
                outcome: None,
                correction: None,
                usage: Usage {
                    prompt_tokens: prompt.len() as u64,
                    // Of all prompts of the request.
                    num_cached_tokens: num_cached_tokens as u64,
                    completion_tokens: tokens,
                    scorer_calls: 0,
                    scorer_tokens: 0,
                },
                timings: Timings {
                    total_ms: self.started.elapsed().as_secs_f64() * 1e3,
                    scorer_ms: 0.0,
                },
                is_redacted: false,
            };
            kept.push(keep(state, record, self.tenant, self.deadline));
        }
        // All in one wait: a slow disk delays the answer once, not once a prompt.
        join_all(kept).await
    }
}
