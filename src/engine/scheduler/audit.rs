//! What must hold after each step. The cheap part runs in production: a broken rule ends what it
//! touches with an error that names it.

use super::Scheduler;
use crate::engine::batch::ScheduledRows;
use crate::engine::sequence::{SeqId, Sequence};

/// A rule of the engine that does not hold: a bug.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the invariant {invariant:?} is broken: {detail}")]
pub(in crate::engine) struct Violation {
    pub invariant: &'static str,
    pub detail: String,
}

fn broken(invariant: &'static str, detail: String) -> Result<(), Violation> {
    Err(Violation { invariant, detail })
}

impl Scheduler {
    /// After a step: the rules of each sequence that it ran, with the sequences that break them.
    pub(in crate::engine) fn audit_rows(
        &self,
        rows: &[ScheduledRows],
    ) -> Option<(SeqId, Violation)> {
        rows.iter().find_map(|rows| {
            let sequence = self.sequences.get(rows.seq)?;
            let violation = self.audit_running(sequence).err()?;
            Some((rows.seq, violation))
        })
    }

    fn audit_running(&self, sequence: &Sequence) -> Result<(), Violation> {
        let room = sequence.tables.len() * self.config.block_size;
        let (computed, known) = (sequence.num_computed_tokens, sequence.token_ids.len());
        if computed > room {
            let detail = format!("{computed} tokens in blocks for {room}");
            return broken("computed tokens lie in blocks", detail);
        }
        // While a phase of adaptation runs, the token after it is still to be taken.
        if computed > known || (computed == known && !sequence.is_adapting()) {
            let detail = format!("{computed} of {known}");
            return broken("the newest token is never computed", detail);
        }
        if sequence.num_scheduled_rows != 0 {
            let detail = format!("{} rows", sequence.num_scheduled_rows);
            return broken("rows are scheduled for one step", detail);
        }
        self.audit_window(sequence)
    }

    /// What the next row sees of a sliding window has its places, and what lies behind all that the
    /// sequence needs has none. Their number does not grow with the sequence.
    fn audit_window(&self, sequence: &Sequence) -> Result<(), Violation> {
        let Some(local) = &self.config.local else {
            return Ok(());
        };
        let (tables, computed) = (&sequence.tables, sequence.num_computed_tokens);
        let num_more = sequence.num_more_kept_tokens();
        let num_passed = self.config.num_passed_blocks(computed, num_more);
        let first_seen = (computed + 1).saturating_sub(local.window) / self.config.block_size;
        let has_all = (first_seen..tables.len()).all(|index| tables.has_place(index));
        // Places are given back in order: where the last one is gone, the others are.
        let has_passed = num_passed > 0 && tables.has_place(num_passed - 1);
        let has_passed = has_passed && !sequence.is_adapting();
        if tables.local.len() != tables.len() || !has_all || has_passed {
            let detail = format!(
                "{computed} computed tokens, {} of {} blocks have places",
                tables.needed_places().count(),
                tables.len()
            );
            return broken("the blocks of a window have places, and no others", detail);
        }
        Ok(())
    }

    /// After a step: the rules of the whole, as far as they cost little.
    pub(in crate::engine) fn audit(&self) -> Result<(), Violation> {
        let (running, most) = (self.num_running(), self.config.max_num_seqs);
        if running > most {
            let detail = format!("{running} run");
            return broken("at most max_num_seqs sequences run", detail);
        }
        if let Some(detail) = self.blocks.miscounted() {
            return broken("each block is free, cached or used", detail);
        }
        Ok(())
    }

    /// Every rule, at any cost: for tests and the simulation.
    pub(in crate::engine) fn check_invariants(&self) -> Result<(), Violation> {
        self.audit()?;
        if let Some(detail) = self.sequences.misplaced() {
            return broken("each sequence is in one list", detail);
        }
        for sequence in self.sequences.waiting() {
            let held = sequence.tables.len();
            if held > 0 {
                let detail = format!("sequence {} holds {held}", sequence.id.0);
                return broken("a waiting sequence holds no blocks", detail);
            }
        }
        for sequence in self.sequences.running() {
            self.audit_running(sequence)?;
        }
        let tables = self.sequences.iter().map(|s| &s.tables);
        match self.blocks.inconsistency(tables) {
            Some(detail) => broken("blocks agree with the tables that refer to them", detail),
            None => Ok(()),
        }
    }
}
