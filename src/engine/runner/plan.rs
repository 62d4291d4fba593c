//! A scheduled batch becomes a step: rows, slots, and what is drawn and read from which logits.

use std::ops::Range;

use super::*;
use crate::engine::batch::{ScheduledBatch, ScheduledRows};
use crate::engine::executor::{PoolSpec, ScoreSpec};

/// What a step does for one sequence. Ranges lie in the step's own lists.
#[derive(Debug, Clone)]
pub(in crate::engine) struct PlannedRows {
    pub seq: SeqId,
    /// Rows of the sequence's own tokens.
    pub num_own: usize,
    /// Rows of its draft, leaves included.
    pub num_drafted: usize,
    /// Its next token, and the token after each of its draft.
    pub chain: Range<usize>,
    /// The token after each leaf of its draft.
    pub leaves: Range<usize>,
    /// The first tokens of the siblings that it forks now.
    pub siblings: Range<usize>,
    pub scores: Range<usize>,
    pub pools: Range<usize>,
}

impl Runner {
    /// Turns a batch into the next step. Its block copies are part of it.
    pub(in crate::engine) fn plan(&mut self, batch: &ScheduledBatch, sequences: &mut Sequences) {
        self.clear();
        for rows in &batch.rows {
            let planned = self.plan_rows(*rows, &mut sequences[rows.seq]);
            self.planned.push(planned);
        }
    }

    fn plan_rows(&mut self, rows: ScheduledRows, sequence: &mut Sequence) -> PlannedRows {
        let start = sequence.num_computed_tokens;
        let end = start + rows.num_rows;
        let first_row = self.input.num_rows();
        let step = StepSequence {
            adapter: sequence.adapter,
            steering: sequence.active_steering().cloned(),
            ..StepSequence::plain(rows.num_rows, end)
        };
        self.push_sequence(sequence, &sequence.draft.leaf_positions, step);
        self.push_tokens(sequence, start, end);
        let num_own = sequence.num_uncomputed_tokens().min(rows.num_rows);
        let mut planned = PlannedRows {
            seq: rows.seq,
            num_own,
            num_drafted: rows.num_rows - num_own,
            chain: 0..0,
            leaves: 0..0,
            siblings: 0..0,
            scores: 0..0,
            pools: self.plan_pools(sequence, start..end, first_row),
        };
        let num_tokens = sequence.token_ids.len();
        let is_sampled = end >= num_tokens && sequence.pooling.is_none();
        if sequence.wants_prompt_logprobs() {
            planned.scores = self.plan_scores(sequence, start..end.min(num_tokens), first_row);
        }
        if !is_sampled {
            return planned;
        }
        let newest_row = first_row + num_tokens - 1 - start;
        let first_logits = self.input.read_row(newest_row);
        for row in newest_row + 1..first_row + rows.num_rows {
            self.input.read_row(row);
        }
        self.plan_samples(sequence, first_logits, &mut planned);
        planned
    }

    /// Positions of a pooling request among the rows of `positions`.
    fn plan_pools(
        &mut self,
        sequence: &Sequence,
        positions: Range<usize>,
        first_row: usize,
    ) -> Range<usize> {
        let first = self.input.pools.len();
        if let Some(pooling) = &sequence.pooling {
            let pending = sequence.pending_positions().iter();
            for position in pending.take_while(|position| **position < positions.end) {
                let row = self.input.read_row(first_row + position - positions.start);
                let params = Arc::clone(pooling);
                self.input.pools.push(PoolSpec { row, params });
            }
        }
        first..self.input.pools.len()
    }

    /// Logprobs of a prompt's own tokens: the row of position `p` predicts token `p + 1`.
    fn plan_scores(
        &mut self,
        sequence: &Sequence,
        positions: Range<usize>,
        first_row: usize,
    ) -> Range<usize> {
        let first = self.input.scores.len();
        let num_top = sequence.params.prompt_logprobs.unwrap_or(0);
        // The first token has no logprob, but a place.
        let mut next = sequence.prompt_logprobs.len().max(1);
        for position in positions.clone() {
            if position + 1 == next && next < sequence.num_prompt_tokens {
                let row = self.input.read_row(first_row + position - positions.start);
                self.input.scores.push(ScoreSpec {
                    row,
                    token_id: sequence.token_ids[next],
                    num_top,
                });
                next += 1;
            }
        }
        first..self.input.scores.len()
    }

    /// What is drawn from the row of a sequence's newest token, the first of `row`s, and from those of its draft after it.
    fn plan_samples(&mut self, sequence: &mut Sequence, row: u32, planned: &mut PlannedRows) {
        let drafted = std::mem::take(&mut sequence.draft.token_ids);
        let leaves = std::mem::take(&mut sequence.draft.leaves);
        let mask = self.masks.plan(sequence, &drafted, &leaves);
        let mask_at = |index: usize| mask.map(|first| first + index as u32);
        let first = self.input.samples.len();
        for depth in 0..=drafted.len() {
            let spec = sequence.sample_spec(row + depth as u32, &drafted[..depth]);
            self.input.samples.push(SampleSpec {
                after: (depth > 0).then(|| ((first + depth) as u32 - 1, drafted[depth - 1])),
                ..spec.masked(mask_at(depth))
            });
        }
        planned.chain = first..self.input.samples.len();
        for (index, leaf) in (planned.chain.len()..).zip(&leaves) {
            let path = [&drafted[..leaf.depth], &[leaf.token_id]].concat();
            let spec = sequence.sample_spec(row + index as u32, &path);
            self.input.samples.push(SampleSpec {
                after: Some(((first + leaf.depth) as u32, leaf.token_id)),
                ..spec.masked(mask_at(index))
            });
        }
        planned.leaves = planned.chain.end..self.input.samples.len();
        sequence.draft.token_ids = drafted;
        sequence.draft.leaves = leaves;
        // Siblings begin where it is.
        let first = self.input.samples.len();
        let siblings = 1..=sequence.num_pending_forks;
        let specs = siblings.map(|index| sequence.sibling_spec(row, index).masked(mask));
        self.input.samples.extend(specs);
        planned.siblings = first..self.input.samples.len();
    }
}
