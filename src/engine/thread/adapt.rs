//! The parts of a step that adaptation adds: a gradient step for one sequence, while the others go
//! on.

use std::sync::Arc;

use super::EngineCore;
use crate::engine::block_tables::BlockCopies;
use crate::engine::executor::ExecutorError;
use crate::engine::request::{EngineError, StreamEvent};
use crate::engine::sequence::{SeqId, Sequence};

impl EngineCore {
    /// Begins the phases that compute what is left of their sequences themselves: its rows leave
    /// the batch.
    pub(super) fn begin_due_phases(&mut self) -> Result<(), ExecutorError> {
        let scheduler = &self.scheduler;
        let is_due = |seq| scheduler.rows_before_phase(&scheduler.sequences[seq]) == Some(0);
        let mut due = Vec::new();
        self.batch.rows.retain(|rows| {
            let stays = !is_due(rows.seq);
            due.extend((!stays).then_some(rows.seq));
            stays
        });
        if due.is_empty() {
            return Ok(());
        }
        // Some of them are of those sequences.
        let copies = std::mem::take(&mut self.batch.block_copies);
        self.copy(&copies)?;
        for seq in due {
            self.begins_phase(seq);
        }
        self.end_finished();
        // Siblings of one that failed are gone, too.
        let sequences = &self.scheduler.sequences;
        (self.batch.rows).retain(|rows| sequences.get(rows.seq).is_some());
        Ok(())
    }

    /// Whether a sequence adapts before it takes its next token; its blocks are its own then.
    pub(super) fn begins_phase(&mut self, seq: SeqId) -> bool {
        let sequence = &self.scheduler.sequences[seq];
        let num_tokens = sequence.token_ids.len();
        let num_output_tokens = sequence.num_output_tokens();
        let Some(adaptation) = &sequence.adaptation else {
            return false;
        };
        if !adaptation.is_due(num_tokens, num_output_tokens) {
            return false;
        }
        let first_token = adaptation.window_start(num_tokens);
        let copies = self.scheduler.own_blocks(seq, first_token);
        let sequence = &mut self.scheduler.sequences[seq];
        let Some(adaptation) = &mut sequence.adaptation else {
            return false;
        };
        let Some(copies) = copies else {
            // The cache is full: going on as before disturbs nobody.
            adaptation.skip(num_tokens);
            return false;
        };
        adaptation.begin(sequence.steering.as_deref());
        // All but the newest token are computed by the phase, if they were not before.
        sequence.num_computed_tokens = sequence.num_computed_tokens.max(num_tokens - 1);
        sequence.draft.clear();
        self.scheduler.release_unused_blocks(seq);
        self.copy_now(&copies, seq)
    }

    /// Copies blocks between two steps; false, with the request failed, when the model cannot.
    fn copy_now(&mut self, copies: &BlockCopies, seq: SeqId) -> bool {
        let result = self.copy(copies);
        if let Err(error) = &result {
            let request = self.scheduler.sequences[seq].request;
            self.fail(request, EngineError::Model(error.to_string()));
        }
        result.is_ok()
    }

    fn copy(&mut self, copies: &BlockCopies) -> Result<(), ExecutorError> {
        self.runner.copy(copies)?;
        match &mut self.draft_runner {
            Some(runner) => runner.copy(copies),
            None => Ok(()),
        }
    }

    /// One gradient step of the first admitted of the sequences that adapt.
    pub(super) fn adapt(&mut self) {
        let adapting = (self.scheduler.sequences.running()).find(|s| s.is_adapting());
        let Some(seq) = adapting.map(|sequence| sequence.id) else {
            return;
        };
        let sequence = &mut self.scheduler.sequences[seq];
        let num_tokens = sequence.token_ids.len();
        let Some(mut adaptation) = sequence.adaptation.take() else {
            return;
        };
        let start = adaptation.window_start(num_tokens);
        let result = match &mut adaptation.phase {
            Some(phase) => {
                let result = self.runner.adapt(sequence, start, phase);
                result.map(|()| phase.is_done())
            }
            None => Ok(false),
        };
        let request = sequence.request;
        match result {
            Err(error) => {
                // Still in its phase: what the window's blocks hold is nobody's.
                sequence.adaptation = Some(adaptation);
                self.fail(request, EngineError::Model(error.to_string()));
                return self.end_finished();
            }
            Ok(false) => {}
            Ok(true) => {
                if let Some((steering, report)) = adaptation.end(num_tokens) {
                    let steering = Arc::new(steering);
                    sequence.steer(Arc::clone(&steering));
                    if let Some(open) = self.requests.get(&request) {
                        let _ = open.sender.send(StreamEvent::Adapted {
                            index: sequence.index,
                            report,
                            steering,
                        });
                    }
                }
            }
        }
        sequence.adaptation = Some(adaptation);
        self.scheduler.release_passed_places(seq);
    }
}

impl Sequence {
    /// What a phase found: the newest token is computed again under it.
    fn steer(&mut self, steering: Arc<crate::model::Steering>) {
        self.steering = Some(steering);
        self.num_computed_tokens = self.token_ids.len() - 1;
        let draft = &mut self.draft;
        draft.num_computed_tokens = draft.num_computed_tokens.min(self.num_computed_tokens);
    }
}
