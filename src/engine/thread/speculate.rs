//! The parts of a step that speculation adds: drafting before it, verifying after it, learning from it.

use std::sync::PoisonError;
use std::time::Duration;

use super::EngineThread;
use crate::engine::batch::ScheduledRows;
use crate::engine::scheduler::Scheduler;
use crate::engine::speculative::{Drafter, Leaf, Speculator, Verdict};
use crate::model::ForwardError;

impl EngineThread {
    /// Leaves out of drafts what was not scheduled, and lets models draft what was planned.
    pub(super) fn draft(&mut self) -> Result<(), ForwardError> {
        for rows in &self.batch.rows {
            let sequence = &mut self.scheduler.running[rows.running_index];
            let num_drafted = rows
                .num_rows
                .saturating_sub(sequence.num_uncomputed_tokens());
            sequence.draft.token_ids.truncate(num_drafted);
        }
        self.runner.copy_blocks(&self.batch)?;
        let (speculator, sampler) = (&mut self.speculator, &mut self.sampler);
        let (running, batch) = (&mut self.scheduler.running, &mut self.batch);
        if let Some(runner) = &mut self.draft_runner {
            runner.copy_blocks(batch)?;
            speculator.draft_with(Drafter::DraftModel, runner, sampler, running, batch)?;
        }
        let runner = &mut self.runner;
        speculator.draft_with(Drafter::Swift, runner, sampler, running, batch)
    }

    pub(super) fn run_batch(&mut self) -> Result<(), ForwardError> {
        let running = &mut self.scheduler.running;
        self.runner.run(&self.batch, running)?;
        match &mut self.draft_runner {
            Some(runner) => Speculator::follow_prompts(runner, running, &self.batch),
            None => Ok(()),
        }
    }

    /// After a step that only decoded: what it teaches about costs, and SWIFT's search.
    pub(super) fn learn(&mut self, elapsed: Duration) -> Result<(), ForwardError> {
        let num_rows = self.batch.rows.iter().map(|rows| rows.num_rows).sum();
        self.speculator.decoded(num_rows, elapsed);
        let running = &self.scheduler.running;
        let speculator = &mut self.speculator;
        if speculator.search_skips(&mut self.runner, running, elapsed)? {
            let skip_set = speculator.skip_set().cloned();
            *self
                .shared
                .skip_set
                .lock()
                .unwrap_or_else(PoisonError::into_inner) = skip_set;
        }
        Ok(())
    }

    /// Samples the next token and, as long as it is what the draft says, the one after it. Of `num_drafted` rows after `row` the
    /// last ones are leaves.
    pub(super) fn verify(&mut self, index: usize, num_drafted: usize, row: usize) {
        let max_model_len = self.shared.config.max_model_len;
        let draft = &mut self.scheduler.running[index].draft;
        let drafted = std::mem::take(&mut draft.token_ids);
        let leaves = draft.leaves.clone();
        let mut verdict = Verdict {
            num_draft_tokens: drafted.len(),
            num_accepted: 0,
            leaf: None,
            is_ended: false,
        };
        loop {
            let depth = verdict.num_accepted;
            let is_appended = self.append_token(index, row + depth);
            let sequence = &self.scheduler.running[index];
            verdict.is_ended = !is_appended || sequence.finish_reason(max_model_len).is_some();
            let newest = sequence.token_ids.last().filter(|_| is_appended);
            if depth < drafted.len() && newest == Some(&drafted[depth]) {
                verdict.num_accepted += 1;
            } else {
                let is_leaf = |leaf: &Leaf| leaf.depth == depth && newest == Some(&leaf.token_id);
                verdict.leaf = leaves.iter().position(is_leaf);
                break;
            }
            if verdict.is_ended {
                break;
            }
        }
        if let Some(leaf) = verdict.leaf.filter(|_| !verdict.is_ended) {
            self.append_token(index, row + 1 + drafted.len() + leaf);
        }
        if num_drafted > 0 {
            self.settle(index, verdict);
        }
    }

    /// Keeps what a verified draft has computed, and nothing else.
    fn settle(&mut self, index: usize, verdict: Verdict) {
        let sequence = &mut self.scheduler.running[index];
        self.speculator.verified(&mut sequence.draft, verdict);
        sequence.draft.clear();
        // The newest token's row is the next step's, even where it was accepted and ended the sequence. A leaf's key and value do
        // not lie at its position, so its row is computed once more.
        let num_appended = sequence.num_uncomputed_tokens();
        let num_rows = verdict.num_accepted.min(num_appended.saturating_sub(1));
        self.scheduler.commit_rows(ScheduledRows {
            running_index: index,
            num_rows,
        });
        self.scheduler.release_unused_blocks(index);
        let sequence = &mut self.scheduler.running[index];
        let num_computed = sequence.num_computed_tokens;
        let draft = &mut sequence.draft;
        draft.num_computed_tokens = draft.num_computed_tokens.min(num_computed);
    }
}

/// How many of a sequence's scheduled rows are its own tokens, and how many are of its draft.
pub(super) fn running_rows(scheduler: &Scheduler, rows: ScheduledRows) -> (usize, usize) {
    let num_own = scheduler.running[rows.running_index].num_uncomputed_tokens();
    let num_own = num_own.min(rows.num_rows);
    (num_own, rows.num_rows - num_own)
}
