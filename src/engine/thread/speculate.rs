//! The parts of a step that speculation adds: drafting before it, verifying after it, learning from
//! it.

use std::sync::PoisonError;
use std::time::Duration;

use super::EngineCore;
use super::commit::Outcome;
use crate::engine::batch::ScheduledRows;
use crate::engine::executor::{ExecutorError, Sampled};
use crate::engine::runner::PlannedRows;
use crate::engine::sequence::SeqId;
use crate::engine::speculative::{Drafter, Leaf, Verdict};

impl EngineCore {
    /// Leaves out of drafts what was not scheduled, makes the batch's block copies, and lets models draft what was planned.
    pub(super) fn draft(&mut self) -> Result<(), ExecutorError> {
        let sequences = &mut self.scheduler.sequences;
        for rows in &self.batch.rows {
            let sequence = &mut sequences[rows.seq];
            let num_drafted = rows
                .num_rows
                .saturating_sub(sequence.num_uncomputed_tokens());
            sequence.draft.token_ids.truncate(num_drafted);
        }
        let (speculator, batch) = (&mut self.speculator, &mut self.batch);
        self.runner.copy(&batch.block_copies)?;
        if let Some(runner) = &mut self.draft_runner {
            runner.copy(&batch.block_copies)?;
            speculator.draft_with(Drafter::DraftModel, runner, sequences, batch)?;
        }
        speculator.draft_with(Drafter::Swift, &mut self.runner, sequences, batch)
    }

    /// After a step that only decoded: what it teaches about costs, and SWIFT's search.
    pub(super) fn learn(&mut self, elapsed: Duration) -> Result<(), ExecutorError> {
        let num_rows = self.batch.rows.iter().map(|rows| rows.num_rows).sum();
        self.speculator.decoded(num_rows, elapsed);
        let sequences = &self.scheduler.sequences;
        let speculator = &mut self.speculator;
        if speculator.search_skips(&mut self.runner, sequences, elapsed)? {
            let skip_set = speculator.skip_set().map(|skip| (**skip).clone());
            *self
                .shared
                .skip_set
                .lock()
                .unwrap_or_else(PoisonError::into_inner) = skip_set;
        }
        Ok(())
    }

    /// Takes the next token and, as long as it is what the draft says, the one after it.
    pub(super) fn verify(&mut self, rows: &PlannedRows, outcome: &mut Outcome) {
        let max_model_len = self.shared.config.max_model_len;
        let seq = rows.seq;
        let draft = &mut self.scheduler.sequences[seq].draft;
        let drafted = std::mem::take(&mut draft.token_ids);
        let leaves = draft.leaves.clone();
        let mut take = |at: usize| std::mem::replace(&mut outcome.samples[at], Sampled::Skipped);
        let mut verdict = Verdict {
            num_draft_tokens: drafted.len(),
            num_accepted: 0,
            leaf: None,
            is_ended: false,
        };
        for (depth, at) in rows.chain.clone().enumerate() {
            let is_appended = self.append_token(seq, take(at));
            let sequence = &self.scheduler.sequences[seq];
            verdict.is_ended = !is_appended || sequence.finish_reason(max_model_len).is_some();
            let newest = sequence.token_ids.last().filter(|_| is_appended);
            if drafted.get(depth).is_some_and(|id| newest == Some(id)) {
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
        let leaf = verdict.leaf.filter(|_| !verdict.is_ended);
        if let Some(leaf) = leaf {
            self.append_token(seq, take(rows.leaves.start + leaf));
        }
        if rows.num_drafted > 0 {
            self.settle(seq, verdict);
        }
    }

    /// Keeps what a verified draft has computed, and nothing else.
    fn settle(&mut self, seq: SeqId, verdict: Verdict) {
        let sequence = &mut self.scheduler.sequences[seq];
        self.speculator.verified(&mut sequence.draft, verdict);
        sequence.draft.clear();
        // The newest token's row is the next step's, even where it was accepted and ended the sequence. A leaf's key and value do
        // not lie at its position, so its row is computed once more.
        let num_appended = sequence.num_uncomputed_tokens();
        let num_rows = verdict.num_accepted.min(num_appended.saturating_sub(1));
        self.scheduler.commit_rows(ScheduledRows { seq, num_rows });
        self.scheduler.release_unused_blocks(seq);
        let sequence = &mut self.scheduler.sequences[seq];
        let num_computed = sequence.num_computed_tokens;
        let draft = &mut sequence.draft;
        draft.num_computed_tokens = draft.num_computed_tokens.min(num_computed);
    }
}
