//! Speculative decoding without changing one token.
//!
//! A step scores the draft tokens of a sequence together, and the engine samples after each as plain decoding would: with
//! the same logits (a row's logits don't depend on the rows beside it), penalties and random number. A draft token is
//! accepted when it is the token that was sampled. For a draft that is one token a position this is exact rejection
//! sampling (Leviathan et al. 2023, algorithm 1 with a draft distribution of one point): the token `d` is accepted with
//! probability `p(d)`, and what is sampled otherwise follows `p` without `d`. That draft and target use the same random number
//! makes more of it: a request's answer is the same, token by token, whoever drafts (Daliri et al. 2024, coupling
//! without communication).

mod acceptance;
mod config;
mod cost;
mod draft;
mod prompt_lookup;

use std::time::Duration;

pub use config::{
    DEFAULT_NUM_SPECULATIVE_TOKENS, DEFAULT_PROMPT_LOOKUP_MIN, DraftCounts, Drafter,
    MAX_NUM_SPECULATIVE_TOKENS, SharedDrafts, Speculative, SpeculativeConfig,
};
pub(super) use draft::Draft;

use super::request::EngineConfig;
use super::runner::Runner;
use super::sequence::Sequence;
use acceptance::AcceptanceTable;
use cost::{MEASURED_ROWS, StepCosts};
use prompt_lookup::{longest_match, predicted};

/// Drafting must promise this many times the tokens a second of a plain step: estimates are noisy.
const LEAST_GAIN: f64 = 1.02;
/// After this many steps without a draft a sequence tries one token: what is being written may have changed.
const RETRY_AFTER: u32 = 64;

/// Decides what is drafted, and learns from what came of it.
pub(super) struct Speculator {
    config: SpeculativeConfig,
    costs: StepCosts,
    is_measured: bool,
    acceptance: AcceptanceTable,
    candidates: Vec<Candidate>,
    pub counts: [DraftCounts; Drafter::ALL.len()],
}

/// One draft token that may be verified.
#[derive(Debug, Clone, Copy)]
struct Candidate {
    running_index: usize,
    /// That it is accepted, with all before it.
    probability: f64,
}

impl Speculator {
    pub(super) fn new(config: SpeculativeConfig) -> Self {
        Self {
            config,
            costs: StepCosts::unmeasured(),
            is_measured: false,
            acceptance: AcceptanceTable::prior(),
            candidates: Vec::new(),
            counts: Default::default(),
        }
    }

    pub(super) fn is_measured(&self) -> bool {
        self.is_measured
    }

    /// Measures steps of a few sizes.
    pub(super) fn measure(&mut self, runner: &mut Runner) {
        self.is_measured = true;
        if self.config.ignores_costs {
            return;
        }
        let measured = MEASURED_ROWS.map(|rows| Some((rows, runner.time_rows(rows)?)));
        let measured: Vec<_> = measured.into_iter().flatten().collect();
        if measured.len() > 1 {
            self.costs = StepCosts::new(measured);
        }
    }

    /// Drafts for the sequences that decode. `config` bounds the rows of a step.
    pub(super) fn draft(&mut self, running: &mut [Sequence], config: &EngineConfig) {
        let num_decoding = running.iter().filter(|s| s.is_decoding()).count();
        let room = config.max_num_batched_tokens.saturating_sub(num_decoding);
        self.candidates.clear();
        for index in 0..running.len() {
            let sequence = &mut running[index];
            if sequence.draft.speculative == Speculative::Off || !sequence.is_decoding() {
                continue;
            }
            let most = self.config.num_speculative_tokens.min(room / num_decoding);
            let most = most.min(most_useful(sequence, config.max_model_len));
            self.look_up(sequence, index, most);
        }
        if self.candidates.is_empty() || self.config.ignores_costs {
            return;
        }
        let num_prompt_rows: usize = running
            .iter()
            .filter(|sequence| !sequence.is_decoding())
            .map(Sequence::num_uncomputed_tokens)
            .sum();
        let num_other_rows = num_prompt_rows.min(config.max_num_batched_tokens - num_decoding);
        self.keep_what_pays(running, num_decoding, num_other_rows);
    }

    /// Drafts at most `most` tokens that followed the sequence's newest ones before.
    fn look_up(&mut self, sequence: &mut Sequence, running_index: usize, most: usize) {
        let least = self.config.prompt_lookup_min;
        let recent = &sequence.token_ids;
        let own = longest_match(recent, recent).map(|found| (found, &recent[..]));
        let prediction = sequence.draft.prediction.as_deref();
        let output = &recent[sequence.num_prompt_tokens..];
        let predicted = prediction.and_then(|text| Some((predicted(text, output)?, text)));
        let found = [predicted, own].into_iter().flatten();
        let Some((found, text)) = found
            .reduce(|a, b| if b.0.len > a.0.len { b } else { a })
            .filter(|(found, _)| found.len >= least && most > 0)
        else {
            return;
        };
        let token_ids = &text[found.next..];
        let token_ids = token_ids[..token_ids.len().min(most)].to_vec();
        let mut probability = 1.0;
        for offset in 0..token_ids.len() {
            let acceptance = &sequence.draft.acceptance;
            let next = acceptance.probability(found.len + offset, &self.acceptance);
            probability *= f64::from(next);
            self.candidates.push(Candidate {
                running_index,
                probability,
            });
        }
        sequence.draft.match_len = found.len;
        sequence.draft.drafter = Some(Drafter::PromptLookup);
        sequence.draft.token_ids = token_ids;
    }

    /// Shortens drafts to the likeliest tokens that make the step yield most tokens a second.
    fn keep_what_pays(
        &mut self,
        running: &mut [Sequence],
        num_decoding: usize,
        num_other_rows: usize,
    ) {
        // Stable, so that a sequence's tokens stay in order: their probabilities never rise.
        self.candidates
            .sort_by(|a, b| b.probability.total_cmp(&a.probability));
        let num_rows = num_decoding + num_other_rows;
        let mut expected = num_decoding as f64;
        let plain = expected / self.costs.seconds(num_rows);
        let (mut best, mut num_kept) = (plain * LEAST_GAIN, 0);
        for (index, candidate) in self.candidates.iter().enumerate() {
            expected += candidate.probability;
            let rate = expected / self.costs.seconds(num_rows + index + 1);
            if rate > best {
                (best, num_kept) = (rate, index + 1);
            }
        }
        let mut kept = vec![0; running.len()];
        for candidate in &self.candidates[..num_kept] {
            kept[candidate.running_index] += 1;
        }
        for (sequence, kept) in running.iter_mut().zip(kept) {
            let draft = &mut sequence.draft;
            if draft.token_ids.is_empty() {
                continue;
            }
            draft.num_idle_steps = if kept == 0 { draft.num_idle_steps + 1 } else { 0 };
            let is_retry = draft.num_idle_steps >= RETRY_AFTER;
            draft.token_ids.truncate(kept.max(usize::from(is_retry)));
        }
    }

    /// Learns from a draft of `num_draft_tokens` of which `num_accepted` were.
    pub(super) fn verified(
        &mut self,
        draft: &mut Draft,
        num_draft_tokens: usize,
        num_accepted: usize,
        is_ended: bool,
    ) {
        let Some(drafter) = draft.drafter.take() else {
            return;
        };
        draft.counts.count(num_draft_tokens, num_accepted);
        self.counts[drafter as usize].count(num_draft_tokens, num_accepted);
        // Of what follows the answer's end nothing was tried.
        let num_tried = num_draft_tokens.min(num_accepted + usize::from(!is_ended));
        for offset in 0..num_tried {
            let kind = draft.match_len + offset;
            draft.acceptance.observe(kind, offset < num_accepted);
            self.acceptance.observe(kind, offset < num_accepted);
        }
        draft.num_idle_steps = 0;
    }

    /// Learns from a step that only decoded.
    pub(super) fn decoded(&mut self, num_rows: usize, elapsed: Duration) {
        self.costs.observe(num_rows, elapsed);
    }
}

/// Draft tokens that can still become part of the answer: the last token needs none after it.
fn most_useful(sequence: &Sequence, max_model_len: usize) -> usize {
    let num_tokens = sequence.token_ids.len();
    let left = sequence.params.max_tokens;
    let left = left.saturating_sub(sequence.num_output_tokens());
    let left = left.min(max_model_len.saturating_sub(num_tokens));
    left.saturating_sub(1)
}
