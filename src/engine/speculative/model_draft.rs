//! Drafts by a model: the target without some sub-layers (SWIFT, section 3.3), or a small one beside it.

use super::{AcceptanceTable, Drafter, Speculator};
use crate::engine::batch::ScheduledBatch;
use crate::engine::runner::{DraftRows, Runner};
use crate::engine::sampler::{Sampler, confidence};
use crate::engine::sequence::Sequence;
use crate::model::ForwardError;

/// Rows that a draft model catches up with at once.
const CATCH_UP_ROWS: usize = 256;

/// A sequence that is drafted for.
struct Drafting {
    running_index: usize,
    /// Of its rows in the batch.
    batch_index: usize,
    /// Tokens before the draft.
    num_tokens: usize,
    /// The first position that the drafter has not computed.
    start: usize,
    most: usize,
    /// That all tokens drafted so far are accepted.
    probability: f64,
    /// Draft tokens that are expected to be accepted.
    expected: f64,
}

impl Speculator {
    /// Drafts what was planned with `drafter`, at most as many tokens as there are rows for, and leaves the other rows out of
    /// the batch. Block copies have been made. Every token is drawn as the target would draw it: with the request's own
    /// parameters and the random number of its position.
    pub(in crate::engine) fn draft_with(
        &mut self,
        drafter: Drafter,
        runner: &mut Runner,
        sampler: &mut Sampler,
        running: &mut [Sequence],
        batch: &mut ScheduledBatch,
    ) -> Result<(), ForwardError> {
        let mut all = planned(drafter, running, batch);
        let num_drafting = all.len();
        let mut active: Vec<usize> = (0..num_drafting).collect();
        while !active.is_empty() {
            let rows: Vec<DraftRows> = active.iter().map(|at| next_rows(&all[*at], running)).collect();
            let skip = self.config.skip_set.as_ref();
            let skip = skip.filter(|_| drafter == Drafter::Swift);
            runner.run_draft(&rows, running, skip, drafter == Drafter::DraftModel)?;
            let mut still_active = Vec::new();
            for (row, at) in active.into_iter().enumerate() {
                let drafting = &mut all[at];
                let sequence = &mut running[drafting.running_index];
                drafting.start = rows[row].end;
                if drafting.start < sequence.token_ids.len() {
                    // It is still catching up.
                    still_active.push(at);
                    continue;
                }
                let logits = runner.logits(row);
                let Some(token_id) = sampler.sample(sequence, logits) else {
                    continue;
                };
                let kind = AcceptanceTable::kind_of(confidence(logits, token_id));
                drafting.probability *= self.probability(&sequence.draft, drafter, kind);
                drafting.expected += drafting.probability;
                sequence.draft.kinds.push(kind);
                // The sampler of the next token sees it as part of the text.
                sequence.token_ids.push(token_id);
                let len = sequence.token_ids.len() - drafting.num_tokens;
                if len < drafting.most && self.goes_on(drafter, drafting, len, num_drafting) {
                    still_active.push(at);
                }
            }
            active = still_active;
        }
        for drafting in all {
            let sequence = &mut running[drafting.running_index];
            let drafted = sequence.token_ids.split_off(drafting.num_tokens);
            let rows = &mut batch.rows[drafting.batch_index];
            rows.num_rows = sequence.num_uncomputed_tokens() + drafted.len();
            if drafter == Drafter::DraftModel {
                sequence.draft.num_computed_tokens = drafting.start;
            }
            sequence.draft.num_planned = 0;
            sequence.draft.token_ids = drafted;
        }
        Ok(())
    }

    /// Whether one more draft token raises the tokens a second of the sequence's step, taken by itself: what it costs to draft
    /// and to verify, against the chance that it is accepted.
    fn goes_on(&self, drafter: Drafter, drafting: &Drafting, len: usize, num_drafting: usize) -> bool {
        if self.config.ignores_costs {
            return true;
        }
        let Some(costs) = &self.draft_costs[drafter as usize] else {
            return false;
        };
        let draft_seconds = costs.seconds(num_drafting) / num_drafting as f64;
        let seconds = |len: usize| {
            let verify = self.costs.seconds(num_drafting * (1 + len)) / num_drafting as f64;
            verify + len as f64 * draft_seconds
        };
        let mean = f64::from(self.acceptance[drafter as usize].mean());
        let now = (1.0 + drafting.expected) / seconds(len);
        let next = (1.0 + drafting.expected + drafting.probability * mean) / seconds(len + 1);
        next > now
    }

    /// Lets the draft model compute what the model computes of prompts, so that it can draft as soon as they are done.
    pub(in crate::engine) fn follow_prompts(
        runner: &mut Runner,
        running: &mut [Sequence],
        batch: &ScheduledBatch,
    ) -> Result<(), ForwardError> {
        let mut followed = Vec::new();
        for rows in &batch.rows {
            let sequence = &running[rows.running_index];
            if sequence.draft.speculative.allows(Drafter::DraftModel)
                && !sequence.is_decoding()
                && sequence.pooling.is_none()
            {
                followed.push(DraftRows {
                    running_index: rows.running_index,
                    start: sequence.draft.num_computed_tokens,
                    end: sequence.num_computed_tokens + rows.num_rows,
                });
            }
        }
        if followed.is_empty() {
            return Ok(());
        }
        runner.run_draft(&followed, running, None, true)?;
        for rows in followed {
            running[rows.running_index].draft.num_computed_tokens = rows.end;
        }
        Ok(())
    }
}

/// The sequences that `drafter` drafts for in this step.
fn planned(drafter: Drafter, running: &mut [Sequence], batch: &ScheduledBatch) -> Vec<Drafting> {
    let mut all = Vec::new();
    for (batch_index, rows) in batch.rows.iter().enumerate() {
        let sequence = &mut running[rows.running_index];
        let most = rows.num_rows.saturating_sub(sequence.num_uncomputed_tokens());
        if sequence.draft.num_planned == 0 || sequence.draft.drafter != Some(drafter) {
            continue;
        }
        let most = most.min(sequence.draft.num_planned);
        if most == 0 {
            sequence.draft.clear();
            continue;
        }
        let start = match drafter {
            Drafter::DraftModel => sequence.draft.num_computed_tokens,
            Drafter::Swift | Drafter::PromptLookup => sequence.num_computed_tokens,
        };
        all.push(Drafting {
            running_index: rows.running_index,
            batch_index,
            num_tokens: sequence.token_ids.len(),
            start,
            most,
            probability: 1.0,
            expected: 0.0,
        });
    }
    all
}

fn next_rows(drafting: &Drafting, running: &[Sequence]) -> DraftRows {
    let len = running[drafting.running_index].token_ids.len();
    DraftRows {
        running_index: drafting.running_index,
        start: drafting.start,
        end: len.min(drafting.start + CATCH_UP_ROWS),
    }
}
