//! Drafts by a model: the target without some sub-layers (SWIFT, section 3.3), or a small one
//! beside it.

use super::{AcceptanceTable, Draft, Drafter, Leaf, Speculator};
use crate::engine::batch::ScheduledBatch;
use crate::engine::executor::{Alternatives, ExecutorError, Sampled};
use crate::engine::runner::{DraftBy, DraftRows, Runner};
use crate::engine::sequence::SeqId;
use crate::engine::sequences::Sequences;

/// Rows that a draft model catches up with at once.
const CATCH_UP_ROWS: usize = 256;

/// Tokens beside a drafted one that may become leaves.
const MOST_LEAVES: usize = 3;
/// Of the rows of a draft that ignores costs, one in three is a leaf.
const LEAF_SHARE: usize = 3;

/// A token that may become a leaf, and the chance that it is accepted, with all before it.
struct Other {
    leaf: Leaf,
    probability: f64,
}

/// A sequence that is drafted for.
struct Drafting {
    seq: SeqId,
    /// Of its rows in the batch.
    batch_index: usize,
    /// Tokens before the draft.
    num_tokens: usize,
    /// The first position that the drafter has not computed.
    start: usize,
    most: usize,
    /// Likely tokens beside those drafted.
    others: Vec<Other>,
    /// That all tokens drafted so far are accepted.
    probability: f64,
    /// Draft tokens that are expected to be accepted.
    expected: f64,
}

impl Speculator {
    /// Drafts what was planned with `drafter`, at most as many tokens as there are rows for, and leaves the other rows out of
    /// the batch. Block copies have been made. Every token is drawn as the target would draw it: with the request's own
    /// parameters, constraint and the random number of its position.
    pub(in crate::engine) fn draft_with(
        &mut self,
        drafter: Drafter,
        runner: &mut Runner,
        sequences: &mut Sequences,
        batch: &mut ScheduledBatch,
    ) -> Result<(), ExecutorError> {
        let mut all = planned(drafter, sequences, batch);
        let drafted = self.draft_in_line(drafter, runner, sequences, &mut all);
        let num_drafting = all.len();
        for mut drafting in all {
            let leaves = self.choose_leaves(drafter, &mut drafting, sequences, num_drafting);
            let sequence = &mut sequences[drafting.seq];
            let drafted = sequence.token_ids.split_off(drafting.num_tokens);
            sequence.rollback(drafted.len());
            let rows = &mut batch.rows[drafting.batch_index];
            rows.num_rows = sequence.num_uncomputed_tokens() + drafted.len() + leaves.len();
            if drafter == Drafter::DraftModel {
                sequence.draft.num_computed_tokens = drafting.start;
            }
            sequence.draft.num_planned = 0;
            let position = |leaf: &Leaf| (drafting.num_tokens + leaf.depth) as u32;
            sequence.draft.leaf_positions = leaves.iter().map(position).collect();
            sequence.draft.leaves = leaves;
            sequence.draft.token_ids = drafted;
        }
        drafted
    }

    /// Drafts token after token. A drafted token is part of its sequence's text, and of what its constraint accepted, until the
    /// caller takes it back.
    fn draft_in_line(
        &mut self,
        drafter: Drafter,
        runner: &mut Runner,
        sequences: &mut Sequences,
        all: &mut [Drafting],
    ) -> Result<(), ExecutorError> {
        let num_drafting = all.len();
        let mut active: Vec<usize> = (0..num_drafting).collect();
        while !active.is_empty() {
            let next = |at: &usize| next_rows(&all[*at], sequences);
            let rows: Vec<DraftRows> = active.iter().map(next).collect();
            let by = DraftBy {
                skip: self.skip_set().filter(|_| drafter == Drafter::Swift),
                is_other_model: drafter == Drafter::DraftModel,
                num_alternatives: MOST_LEAVES,
            };
            let mut samples = runner.run_draft(&rows, sequences, by)?.into_iter();
            let mut still_active = Vec::new();
            for (rows, at) in rows.into_iter().zip(active) {
                let drafting = &mut all[at];
                drafting.start = rows.end;
                if drafting.start < sequences[drafting.seq].token_ids.len() {
                    // It is still catching up.
                    still_active.push(at);
                    continue;
                }
                if let Some(sampled) = samples.next()
                    && self.take_drafted(drafter, drafting, sequences, sampled, num_drafting)
                {
                    still_active.push(at);
                }
            }
            active = still_active;
        }
        Ok(())
    }

    /// Takes a drafted token; true when one more is to be drafted.
    fn take_drafted(
        &self,
        drafter: Drafter,
        drafting: &mut Drafting,
        sequences: &mut Sequences,
        sampled: Sampled,
        num_drafting: usize,
    ) -> bool {
        let Sampled::Token {
            token_id,
            alternatives,
            ..
        } = sampled
        else {
            return false;
        };
        let sequence = &mut sequences[drafting.seq];
        if !sequence.accept(token_id) {
            return false;
        }
        let alternatives = alternatives.unwrap_or_default();
        let kind = AcceptanceTable::kind_of(alternatives.probability);
        self.note_others(drafting, &sequence.draft, &alternatives);
        drafting.probability *= self.probability(&sequence.draft, drafter, kind);
        drafting.expected += drafting.probability;
        sequence.draft.kinds.push(kind);
        // The sampler of the next token sees it as part of the text.
        sequence.token_ids.push(token_id);
        let len = sequence.token_ids.len() - drafting.num_tokens;
        let recent = self.recent(&sequence.draft, drafter);
        len < self.most_in_line(drafting)
            && self.goes_on(drafter, drafting, (len, recent), num_drafting)
    }

    fn most_in_line(&self, drafting: &Drafting) -> usize {
        if self.config.ignores_costs {
            return drafting.most - drafting.most / LEAF_SHARE;
        }
        drafting.most
    }

    /// Notes the likeliest tokens beside the next draft token.
    fn note_others(&self, drafting: &mut Drafting, draft: &Draft, alternatives: &Alternatives) {
        let depth = draft.kinds.len();
        for (token_id, probability) in &alternatives.others {
            let kind = AcceptanceTable::kind_of(*probability);
            let chance = f64::from(self.leaf_acceptance.share(kind));
            drafting.others.push(Other {
                leaf: Leaf {
                    depth,
                    token_id: *token_id,
                    kind,
                },
                probability: drafting.probability * chance,
            });
        }
    }

    /// The likeliest leaves, as many as raise the tokens a second: each takes a row now, and one more when it is accepted.
    fn choose_leaves(
        &self,
        drafter: Drafter,
        drafting: &mut Drafting,
        sequences: &Sequences,
        num_drafting: usize,
    ) -> Vec<Leaf> {
        let len = sequences[drafting.seq].token_ids.len() - drafting.num_tokens;
        let most = drafting.most.saturating_sub(len);
        let others = &mut drafting.others;
        others.sort_by(|a, b| b.probability.total_cmp(&a.probability));
        let mut leaves = Vec::new();
        let mut expected = 1.0 + drafting.expected;
        for other in others.iter().take(most) {
            if !self.config.ignores_costs {
                let num_rows = 1 + len + leaves.len();
                let seconds =
                    |rows: usize| self.costs.seconds(num_drafting * rows) / num_drafting as f64;
                let drafted = self.draft_seconds(drafter, num_drafting) * len as f64;
                let now = seconds(num_rows) + drafted;
                let again = other.probability * (seconds(2) - seconds(1)).max(0.0);
                let with = seconds(num_rows + 1) + drafted + again;
                if (expected + other.probability) / with <= expected / now {
                    break;
                }
            }
            expected += other.probability;
            leaves.push(other.leaf);
        }
        leaves
    }

    /// Seconds of a draft step, for each of the sequences that are drafted for.
    fn draft_seconds(&self, drafter: Drafter, num_drafting: usize) -> f64 {
        let costs = self.draft_costs[drafter as usize].as_ref();
        costs.map_or(0.0, |costs| costs.seconds(num_drafting)) / num_drafting as f64
    }

    /// Whether one more draft token raises the tokens a second of the sequence's step, taken by itself: what it costs to draft
    /// and to verify, against the chance that it is accepted.
    fn goes_on(
        &self,
        drafter: Drafter,
        drafting: &Drafting,
        (len, recent): (usize, f64),
        num_drafting: usize,
    ) -> bool {
        if self.config.ignores_costs {
            return true;
        }
        let draft_seconds = self.draft_seconds(drafter, num_drafting);
        let seconds = |len: usize| {
            let verify = self.costs.seconds(num_drafting * (1 + len)) / num_drafting as f64;
            verify + len as f64 * draft_seconds
        };
        let now = (1.0 + drafting.expected) / seconds(len);
        let next = (1.0 + drafting.expected + drafting.probability * recent) / seconds(len + 1);
        next > now
    }

    /// Lets the draft model compute what the model computes of prompts, so that it can draft as soon as they are done.
    pub(in crate::engine) fn follow_prompts(
        runner: &mut Runner,
        sequences: &mut Sequences,
        batch: &ScheduledBatch,
    ) -> Result<(), ExecutorError> {
        let mut followed = Vec::new();
        for rows in &batch.rows {
            let sequence = &sequences[rows.seq];
            if sequence.draft.speculative.allows(Drafter::DraftModel)
                && !sequence.is_decoding()
                && sequence.pooling.is_none()
            {
                followed.push(DraftRows {
                    seq: rows.seq,
                    start: sequence.draft.num_computed_tokens,
                    end: sequence.num_computed_tokens + rows.num_rows,
                });
            }
        }
        if followed.is_empty() {
            return Ok(());
        }
        runner.follow(&followed, sequences)?;
        for rows in followed {
            sequences[rows.seq].draft.num_computed_tokens = rows.end;
        }
        Ok(())
    }
}

/// The sequences that `drafter` drafts for in this step.
fn planned(drafter: Drafter, sequences: &mut Sequences, batch: &ScheduledBatch) -> Vec<Drafting> {
    let mut all = Vec::new();
    for (batch_index, rows) in batch.rows.iter().enumerate() {
        let sequence = &mut sequences[rows.seq];
        let most = rows
            .num_rows
            .saturating_sub(sequence.num_uncomputed_tokens());
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
            _ => sequence.num_computed_tokens,
        };
        all.push(Drafting {
            seq: rows.seq,
            batch_index,
            num_tokens: sequence.token_ids.len(),
            start,
            most,
            others: Vec::new(),
            probability: 1.0,
            expected: 0.0,
        });
    }
    all
}

fn next_rows(drafting: &Drafting, sequences: &Sequences) -> DraftRows {
    let len = sequences[drafting.seq].token_ids.len();
    DraftRows {
        seq: drafting.seq,
        start: drafting.start,
        end: len.min(drafting.start + CATCH_UP_ROWS),
    }
}
