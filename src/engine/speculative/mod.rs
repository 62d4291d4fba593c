//! Speculative decoding without changing one token.
//!
//! A step scores the draft tokens of a sequence together, and the engine samples after each as
//! plain decoding would: with the same logits (a row's logits don't depend on the rows beside it),
//! penalties and random number. A draft token is accepted when it is the token that was sampled.
//! For a draft that is one token a position this is exact rejection sampling (Leviathan et al.
//! 2023, algorithm 1 with a draft distribution of one point): the token `d` is accepted with
//! probability `p(d)`, and what is sampled otherwise follows `p` without `d`. That draft and target
//! use the same random number makes more of it: a request's answer is the same, token by token,
//! whoever drafts (Daliri et al. 2024, coupling without communication), and a draft that is sampled
//! is sampled with the target's number, so that the two agree more often.

mod acceptance;
mod config;
mod cost;
mod draft;
mod model_draft;
mod plan;
mod prompt_lookup;
pub mod skip_search;
mod swift;

use std::sync::Arc;
use std::time::Duration;

pub use config::{
    DEFAULT_NUM_SPECULATIVE_TOKENS, DEFAULT_PROMPT_LOOKUP_MIN, DraftCounts, Drafter,
    MAX_NUM_SPECULATIVE_TOKENS, SharedDrafts, Speculative, SpeculativeConfig,
};
pub(super) use draft::{Draft, Leaf, Verdict};

use super::runner::Runner;
use super::sequence::Sequence;
use super::sequences::Sequences;
use crate::model::SkipSet;
use acceptance::AcceptanceTable;
use cost::{MEASURED_ROWS, StepCosts};
use plan::Candidate;
use swift::Swift;

/// Rows of a draft step that are measured: it has one for each sequence, and more where a draft model catches up.
const MEASURED_DRAFT_ROWS: [usize; 4] = [1, 4, 8, 32];
/// The same without sub-layers of the model.
const MEASURED_SWIFT_ROWS: [usize; 2] = [1, 8];

/// Decides what is drafted, and learns from what came of it.
pub(super) struct Speculator {
    config: SpeculativeConfig,
    /// Of verifying steps.
    costs: StepCosts,
    /// Of the steps of drafters that are models and there.
    draft_costs: [Option<StepCosts>; Drafter::ALL.len()],
    /// Once a request asks for it.
    swift: Option<Swift>,
    /// What of [`MEASURED_ROWS`] and [`MEASURED_DRAFT_ROWS`] is measured, in their order; `None`
    /// where a step failed or had no room.
    measured: Vec<Option<(usize, Duration)>>,
    draft_measured: Vec<Option<(usize, Duration)>>,
    acceptance: [AcceptanceTable; Drafter::ALL.len()],
    leaf_acceptance: AcceptanceTable,
    candidates: Vec<Candidate>,
    pub counts: [DraftCounts; Drafter::ALL.len()],
}

impl Speculator {
    pub(super) fn new(config: SpeculativeConfig, has_draft_model: bool) -> Self {
        let mut draft_costs = [const { None }; Drafter::ALL.len()];
        if has_draft_model {
            draft_costs[Drafter::DraftModel as usize] = Some(StepCosts::unmeasured());
        }
        let sure = AcceptanceTable::prior_of_confidence();
        Self {
            config,
            costs: StepCosts::unmeasured(),
            draft_costs,
            swift: None,
            measured: Vec::new(),
            draft_measured: Vec::new(),
            acceptance: Drafter::ALL.map(|drafter| match drafter {
                Drafter::PromptLookup => AcceptanceTable::prior_of_matches(),
                Drafter::Swift | Drafter::DraftModel => sure,
                Drafter::Forced => AcceptanceTable::prior_of_forced(),
            }),
            leaf_acceptance: sure,
            candidates: Vec::new(),
            counts: Default::default(),
        }
    }

    /// Before a step: measures what is not measured yet of steps of a few sizes, of the model and
    /// of what drafts for it, once they are needed.
    pub(super) fn prepare(
        &mut self,
        runner: &mut Runner,
        mut draft_runner: Option<&mut Runner>,
        sequences: &Sequences,
    ) {
        let asks = |s: &Sequence, speculative| s.draft.speculative == speculative;
        if sequences.iter().any(|s| !asks(s, Speculative::Off)) {
            while self.measure_one(runner, draft_runner.as_deref_mut()) {}
        }
        let mut all = sequences.iter();
        if self.swift.is_none()
            && all.any(|s| asks(s, Speculative::Swift))
            && runner.skips_sub_layers()
        {
            self.start_swift(runner);
        }
    }

    /// Whether requests draft unless they say otherwise: then it is worth measuring ahead.
    pub(super) fn drafts_by_default(&self) -> bool {
        self.config.default != Speculative::Off
    }

    fn start_swift(&mut self, runner: &mut Runner) {
        let stored = self.config.skip_set.clone();
        self.swift = Some(Swift::new(stored, runner.num_layers()));
        self.measure_swift(runner);
    }

    /// What a draft step costs without the sub-layers of the set in use.
    pub(super) fn measure_swift(&mut self, runner: &mut Runner) {
        let Some(swift) = &self.swift else { return };
        let costs = &mut self.draft_costs[Drafter::Swift as usize];
        let time = |rows| Some((rows, runner.time_rows(rows, Some(&swift.skip))?));
        let measured = if self.config.ignores_costs {
            None
        } else {
            StepCosts::measured(MEASURED_SWIFT_ROWS.map(time))
        };
        *costs = Some(measured.unwrap_or_else(StepCosts::unmeasured));
    }

    /// The sub-layers that SWIFT's drafts leave out now.
    pub(super) fn skip_set(&self) -> Option<&Arc<SkipSet>> {
        self.swift.as_ref().map(|swift| &swift.skip)
    }

    /// Measures the next size of step that is not measured yet, of the model and then of the draft
    /// model. False when there was none.
    pub(super) fn measure_one(
        &mut self,
        runner: &mut Runner,
        draft_runner: Option<&mut Runner>,
    ) -> bool {
        if self.config.ignores_costs {
            return false;
        }
        let time = |runner: &mut Runner, rows| Some((rows, runner.time_rows(rows, None)?));
        if let Some(rows) = MEASURED_ROWS.get(self.measured.len()) {
            self.measured.push(time(runner, *rows));
            if self.measured.len() == MEASURED_ROWS.len()
                && let Some(costs) = StepCosts::measured(self.measured.iter().copied())
            {
                self.costs = costs;
            }
            return true;
        }
        let (Some(costs), Some(runner)) = (
            &mut self.draft_costs[Drafter::DraftModel as usize],
            draft_runner,
        ) else {
            return false;
        };
        let Some(rows) = MEASURED_DRAFT_ROWS.get(self.draft_measured.len()) else {
            return false;
        };
        self.draft_measured.push(time(runner, *rows));
        if self.draft_measured.len() == MEASURED_DRAFT_ROWS.len()
            && let Some(measured) = StepCosts::measured(self.draft_measured.iter().copied())
        {
            *costs = measured;
        }
        true
    }

    /// Learns from a draft's verification.
    pub(super) fn verified(&mut self, draft: &mut Draft, verdict: Verdict) {
        let Verdict {
            num_draft_tokens,
            num_accepted,
            leaf,
            is_ended,
        } = verdict;
        let Some(drafter) = draft.drafter.take() else {
            return;
        };
        let num_all = num_draft_tokens + draft.leaves.len();
        let num_all_accepted = num_accepted + usize::from(leaf.is_some());
        draft.counts.count(num_all, num_all_accepted);
        self.counts[drafter as usize].count(num_all, num_all_accepted);
        for (index, of) in draft.leaves.iter().enumerate() {
            // The others' place in the text was not reached.
            if of.depth <= num_accepted && !(is_ended && of.depth == num_accepted) {
                self.leaf_acceptance.observe(of.kind, leaf == Some(index));
            }
        }
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

    /// That one more draft token of a sequence is accepted, whatever will speak for it.
    fn recent(&self, draft: &Draft, drafter: Drafter) -> f64 {
        let all = &self.acceptance[drafter as usize];
        f64::from(draft.acceptance[drafter as usize].recent(all))
    }

    /// That a sequence's draft token with this evidence is accepted once all before it are.
    fn probability(&self, draft: &Draft, drafter: Drafter, kind: usize) -> f64 {
        let all = &self.acceptance[drafter as usize];
        f64::from(draft.acceptance[drafter as usize].probability(kind, all))
    }
}
