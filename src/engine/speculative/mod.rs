//! Speculative decoding without changing one token.
//!
//! A step scores the draft tokens of a sequence together, and the engine samples after each as plain decoding would: with
//! the same logits (a row's logits don't depend on the rows beside it), penalties and random number. A draft token is
//! accepted when it is the token that was sampled. For a draft that is one token a position this is exact rejection
//! sampling (Leviathan et al. 2023, algorithm 1 with a draft distribution of one point): the token `d` is accepted with
//! probability `p(d)`, and what is sampled otherwise follows `p` without `d`. That draft and target use the same random number
//! makes more of it: a request's answer is the same, token by token, whoever drafts (Daliri et al. 2024, coupling
//! without communication), and a draft that is sampled is sampled with the target's number, so that the two agree more often.

mod acceptance;
mod config;
mod cost;
mod draft;
mod model_draft;
mod plan;
mod prompt_lookup;
pub mod skip_search;

use std::time::Duration;

pub use config::{
    DEFAULT_NUM_SPECULATIVE_TOKENS, DEFAULT_PROMPT_LOOKUP_MIN, DraftCounts, Drafter,
    MAX_NUM_SPECULATIVE_TOKENS, SharedDrafts, Speculative, SpeculativeConfig,
};
pub(super) use draft::Draft;

use super::runner::Runner;
use acceptance::AcceptanceTable;
use cost::{MEASURED_ROWS, StepCosts};
use plan::Candidate;

/// Rows of a draft step that are measured: it has one for each sequence.
const MEASURED_DRAFT_ROWS: [usize; 3] = [1, 4, 8];

/// Decides what is drafted, and learns from what came of it.
pub(super) struct Speculator {
    config: SpeculativeConfig,
    /// Of verifying steps.
    costs: StepCosts,
    /// Of the steps of drafters that are models and there.
    draft_costs: [Option<StepCosts>; Drafter::ALL.len()],
    is_measured: bool,
    acceptance: [AcceptanceTable; Drafter::ALL.len()],
    candidates: Vec<Candidate>,
    pub counts: [DraftCounts; Drafter::ALL.len()],
}

impl Speculator {
    pub(super) fn new(config: SpeculativeConfig, has_draft_model: bool) -> Self {
        let mut draft_costs = [const { None }; Drafter::ALL.len()];
        if config.skip_set.is_some() {
            draft_costs[Drafter::Swift as usize] = Some(StepCosts::unmeasured());
        }
        if has_draft_model {
            draft_costs[Drafter::DraftModel as usize] = Some(StepCosts::unmeasured());
        }
        let sure = AcceptanceTable::prior_of_confidence();
        Self {
            config,
            costs: StepCosts::unmeasured(),
            draft_costs,
            is_measured: false,
            acceptance: [AcceptanceTable::prior_of_matches(), sure, sure],
            candidates: Vec::new(),
            counts: Default::default(),
        }
    }

    pub(super) fn is_measured(&self) -> bool {
        self.is_measured
    }

    /// Measures steps of a few sizes, of the model and of what drafts for it.
    pub(super) fn measure(&mut self, runner: &mut Runner, draft_runner: Option<&mut Runner>) {
        self.is_measured = true;
        if self.config.ignores_costs {
            return;
        }
        let measured = MEASURED_ROWS.map(|rows| Some((rows, runner.time_rows(rows, None)?)));
        if let Some(costs) = StepCosts::measured(measured) {
            self.costs = costs;
        }
        let skip = self.config.skip_set.as_ref();
        if let Some(costs) = &mut self.draft_costs[Drafter::Swift as usize] {
            let time = |rows| Some((rows, runner.time_rows(rows, skip)?));
            *costs = StepCosts::measured(MEASURED_DRAFT_ROWS.map(time)).unwrap_or(costs.clone());
        }
        if let (Some(costs), Some(runner)) = (
            &mut self.draft_costs[Drafter::DraftModel as usize],
            draft_runner,
        ) {
            let time = |rows| Some((rows, runner.time_rows(rows, None)?));
            *costs = StepCosts::measured(MEASURED_DRAFT_ROWS.map(time)).unwrap_or(costs.clone());
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
        for (offset, kind) in draft.kinds.drain(..).take(num_tried).enumerate() {
            let is_accepted = offset < num_accepted;
            draft.acceptance[drafter as usize].observe(kind, is_accepted);
            self.acceptance[drafter as usize].observe(kind, is_accepted);
        }
        draft.num_idle_steps = 0;
    }

    /// Learns from a step that only decoded.
    pub(super) fn decoded(&mut self, num_rows: usize, elapsed: Duration) {
        self.costs.observe(num_rows, elapsed);
    }

    /// That a sequence's draft token with this evidence is accepted once all before it are.
    fn probability(&self, draft: &Draft, drafter: Drafter, kind: usize) -> f64 {
        let all = &self.acceptance[drafter as usize];
        f64::from(draft.acceptance[drafter as usize].probability(kind, all))
    }
}
