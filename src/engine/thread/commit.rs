//! What came of a step: tokens, logprobs and states on their way to whoever asked.

use super::EngineCore;
use crate::engine::batch::ScheduledRows;
use crate::engine::executor::{Pooled, Sampled, StepOutput};
use crate::engine::request::{EngineError, FinishReason, StreamEvent, TokenLogprobs};
use crate::engine::runner::PlannedRows;
use crate::engine::scheduler::Violation;
use crate::engine::sequence::{Appended, SeqId};

/// What is still to be taken of a step.
pub(super) struct Outcome {
    pub samples: Vec<Sampled>,
    scores: Vec<Option<TokenLogprobs>>,
    pools: Vec<Pooled>,
}

impl EngineCore {
    /// Takes what came of a step, sequence by sequence. Those that were aborted while it ran are gone.
    pub(super) fn commit(&mut self, mut output: StepOutput) {
        let mut outcome = Outcome {
            samples: std::mem::take(&mut output.samples),
            scores: std::mem::take(&mut output.scores),
            pools: std::mem::take(&mut output.pools),
        };
        let planned = self.runner.take_planned();
        for rows in &planned {
            if self.scheduler.sequences.get(rows.seq).is_some() {
                self.commit_sequence(rows, &mut outcome);
            }
        }
        self.runner.recycle(output, planned);
    }

    fn commit_sequence(&mut self, rows: &PlannedRows, outcome: &mut Outcome) {
        let seq = rows.seq;
        self.scheduler.commit_rows(ScheduledRows {
            seq,
            num_rows: rows.num_own,
        });
        if self.scheduler.sequences[seq].wants_prompt_logprobs() {
            self.take_prompt_logprobs(rows, outcome);
        }
        if self.scheduler.sequences[seq].pooling.is_some() {
            return self.take_pooled(rows, outcome);
        }
        if rows.chain.is_empty() || self.begins_phase(seq) {
            return;
        }
        self.announce_prompt(seq);
        for (index, at) in (1..).zip(rows.siblings.clone()) {
            let id = self.scheduler.sequences.new_id();
            let leader = &mut self.scheduler.sequences[seq];
            leader.num_pending_forks = 0;
            let sibling = leader.sibling(id, index);
            self.scheduler.add_fork(sibling);
            let sampled = std::mem::replace(&mut outcome.samples[at], Sampled::Skipped);
            self.append_token(id, sampled);
        }
        self.verify(rows, outcome);
    }

    fn take_prompt_logprobs(&mut self, rows: &PlannedRows, outcome: &mut Outcome) {
        let logprobs = &mut self.scheduler.sequences[rows.seq].prompt_logprobs;
        if logprobs.is_empty() {
            // Nothing predicts the first token.
            logprobs.push(None);
        }
        logprobs.extend(
            outcome.scores[rows.scores.clone()]
                .iter_mut()
                .map(Option::take),
        );
    }

    /// Reports the positions of a pooling request that this step computed.
    fn take_pooled(&mut self, rows: &PlannedRows, outcome: &mut Outcome) {
        if !rows.pools.is_empty() {
            self.announce_prompt(rows.seq);
        }
        let sequence = &mut self.scheduler.sequences[rows.seq];
        let Some(request) = self.requests.get(&sequence.request) else {
            return;
        };
        let is_mean = (sequence.pooling.as_ref()).is_some_and(|pooling| pooling.mean);
        for pooled in &mut outcome.pools[rows.pools.clone()] {
            let Some(position) = sequence.pending_positions().first().copied() else {
                break;
            };
            let mut hidden_state = pooled.hidden_state.take();
            match is_mean {
                false => sequence.num_pooled += 1,
                true => {
                    let mean = sequence.pool_mean(&hidden_state.unwrap_or_default());
                    if mean.is_none() {
                        continue;
                    }
                    hidden_state = mean;
                }
            }
            let _ = request.sender.send(StreamEvent::Pooled {
                position,
                logits: std::mem::take(&mut pooled.logits),
                hidden_state,
            });
        }
        if sequence.pending_positions().is_empty() {
            sequence.ended = Some(FinishReason::Pooled);
        }
    }

    /// Sends `PromptDone` once a request, before its first token or what is first read of its prompt.
    fn announce_prompt(&mut self, seq: SeqId) {
        let sequence = &mut self.scheduler.sequences[seq];
        let Some(request) = self.requests.get_mut(&sequence.request) else {
            return;
        };
        if request.is_prompt_done {
            return;
        }
        request.is_prompt_done = true;
        let wants_logprobs = sequence.params.prompt_logprobs.is_some();
        let _ = request.sender.send(StreamEvent::PromptDone {
            num_prompt_tokens: sequence.num_prompt_tokens,
            num_cached_tokens: sequence.num_cached_tokens.unwrap_or(0),
            prompt_logprobs: wants_logprobs.then(|| sequence.prompt_logprobs.clone()),
        });
    }

    /// Appends a sampled token and tells whoever asked; false when the sequence has none.
    pub(super) fn append_token(&mut self, seq: SeqId, sampled: Sampled) -> bool {
        let request_id = self.scheduler.sequences[seq].request;
        let (token_id, logprobs, hidden_state) = match sampled {
            Sampled::Token {
                token_id,
                logprobs,
                hidden_state,
                ..
            } => (token_id, logprobs, hidden_state),
            Sampled::NotFinite => {
                self.fail(request_id, EngineError::not_finite());
                return false;
            }
            Sampled::NothingAllowed => {
                self.fail(request_id, EngineError::NothingAllowed);
                return false;
            }
            Sampled::Unmasked(error) => {
                self.fail(request_id, EngineError::Constraint(error.0));
                return false;
            }
            Sampled::Skipped => {
                self.refuse(seq, "each row that counts is sampled");
                return false;
            }
        };
        let sequence = &mut self.scheduler.sequences[seq];
        let Some(request) = self.requests.get(&request_id) else {
            return false;
        };
        let max_model_len = self.shared.config.max_model_len;
        let is_tapped = match sequence.append(token_id, logprobs.as_ref(), max_model_len) {
            Appended::Token { is_tapped } => is_tapped,
            Appended::OutOfBudget => return false,
            Appended::Refused(Some(error)) => {
                self.fail(request_id, EngineError::Constraint(error.0));
                return false;
            }
            Appended::Refused(None) => {
                self.refuse(seq, "a constraint accepts what its mask allows");
                return false;
            }
        };
        self.scheduler.stats.generation_tokens += 1;
        let _ = request.sender.send(StreamEvent::Token {
            index: sequence.index,
            token_id,
            logprobs,
            hidden_state: hidden_state.filter(|_| is_tapped),
        });
        true
    }

    /// Ends a request that a rule is broken for.
    fn refuse(&mut self, seq: SeqId, invariant: &'static str) {
        let sequence = &self.scheduler.sequences[seq];
        let violation = Violation {
            invariant,
            detail: format!("at token {}", sequence.token_ids.len()),
        };
        let request = sequence.request;
        self.count_violation(&violation);
        self.fail(request, EngineError::Invariant(violation.to_string()));
    }
}
