//! The parts of a step that adaptation adds: a gradient step for one sequence, while the others go on.

use std::sync::Arc;

use super::EngineThread;
use crate::engine::request::{EngineError, RequestId, StreamEvent};
use crate::engine::sequence::Sequence;

impl EngineThread {
    /// Whether the sequence at `index` adapts before it samples its next token; its blocks are its own then.
    pub(super) fn begins_phase(&mut self, index: usize) -> bool {
        let sequence = &self.scheduler.running[index];
        let num_tokens = sequence.token_ids.len();
        let num_output_tokens = sequence.num_output_tokens();
        let Some(adaptation) = &sequence.adaptation else {
            return false;
        };
        if !adaptation.is_due(num_tokens, num_output_tokens) {
            return false;
        }
        let first_token = adaptation.window_start(num_tokens);
        let copies = self.scheduler.own_blocks(index, first_token);
        let sequence = &mut self.scheduler.running[index];
        let Some(adaptation) = &mut sequence.adaptation else {
            return false;
        };
        let Some(copies) = copies else {
            // The cache is full: going on as before disturbs nobody.
            adaptation.skip(num_tokens);
            return false;
        };
        adaptation.begin(sequence.steering.as_deref());
        sequence.draft.clear();
        self.scheduler.release_unused_blocks(index);
        self.copy_now(&copies, index)
    }

    /// Copies blocks between two steps; false, with the request failed, when the model cannot.
    fn copy_now(&mut self, copies: &[(u32, u32)], index: usize) -> bool {
        let mut result = self.runner.copy(copies);
        if let Some(runner) = &mut self.draft_runner {
            result = result.and_then(|()| runner.copy(copies));
        }
        if let Err(error) = &result {
            let request = self.scheduler.running[index].request;
            self.fail(request, &error.to_string());
        }
        result.is_ok()
    }

    /// One gradient step of the sequence that has been adapting longest.
    pub(super) fn adapt(&mut self) {
        let running = &mut self.scheduler.running;
        let Some(index) = running.iter().position(Sequence::is_adapting) else {
            return;
        };
        let sequence = &mut running[index];
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
                let message = error.to_string();
                self.fail(request, &message);
                self.end_finished();
            }
            Ok(false) => sequence.adaptation = Some(adaptation),
            Ok(true) => {
                if let Some((steering, report)) = adaptation.end(num_tokens) {
                    let steering = Arc::new(steering);
                    sequence.steering = Some(Arc::clone(&steering));
                    // Its newest token is computed again, under what was found.
                    sequence.num_computed_tokens = num_tokens - 1;
                    let draft = &mut sequence.draft;
                    draft.num_computed_tokens = draft.num_computed_tokens.min(num_tokens - 1);
                    if let Some(open) = self.requests.get(&request) {
                        let _ = open.sender.send(StreamEvent::Adapted {
                            index: sequence.index,
                            report,
                            steering,
                        });
                    }
                }
                sequence.adaptation = Some(adaptation);
            }
        }
    }

    /// Ends one request with an error; its sequences are removed at the end of the step.
    fn fail(&mut self, request: RequestId, message: &str) {
        if let Some(open) = self.requests.remove(&request) {
            let error = EngineError::Model(message.to_owned());
            let _ = open.sender.send(StreamEvent::Error(error));
        }
    }
}
