//! How requests end: with their newest token, by their client, at their deadline, with an error.

use super::EngineCore;
use crate::engine::request::{EngineError, FinishReason, RequestId, StreamEvent};
use crate::engine::sequence::Sequence;

impl EngineCore {
    /// Removes the sequences that ended with their newest token, and those of requests that failed.
    pub(super) fn end_finished(&mut self) {
        let max_model_len = self.shared.config.max_model_len;
        let requests = &self.requests;
        let ended = self.scheduler.remove(|sequence| {
            !requests.contains_key(&sequence.request)
                || sequence.finish_reason(max_model_len).is_some()
        });
        for sequence in ended {
            if let Some(reason) = sequence.finish_reason(max_model_len) {
                self.finish(&sequence, reason);
            }
        }
    }

    /// Drops requests whose client went away or whose deadline passed.
    pub(super) fn end_requests(&mut self) {
        if self
            .requests
            .values()
            .any(|request| request.sender.is_closed())
        {
            let requests = &self.requests;
            let removed = self.scheduler.remove(|sequence| {
                requests
                    .get(&sequence.request)
                    .is_none_or(|request| request.sender.is_closed())
            });
            for sequence in removed {
                self.requests.remove(&sequence.request);
            }
            self.requests
                .retain(|_, request| !request.sender.is_closed());
        }
        let now = self.clock.now();
        let is_late =
            |sequence: &Sequence| sequence.deadline.is_some_and(|deadline| deadline <= now);
        if self.scheduler.sequences.iter().any(is_late) {
            self.finish_where(FinishReason::Deadline, is_late);
        }
    }

    pub(super) fn finish_where(
        &mut self,
        reason: FinishReason,
        is_done: impl Fn(&Sequence) -> bool,
    ) {
        for sequence in self.scheduler.remove(is_done) {
            self.finish(&sequence, reason);
            // Siblings that were never forked end with their leader.
            for index in 1..=sequence.num_pending_forks {
                let mut sibling = sequence.clone();
                sibling.index = index;
                self.finish(&sibling, reason);
            }
        }
    }

    fn finish(&mut self, sequence: &Sequence, reason: FinishReason) {
        let Some(request) = self.requests.get_mut(&sequence.request) else {
            return;
        };
        request.num_unfinished -= 1;
        let is_last = request.num_unfinished == 0;
        if is_last {
            // Whoever hears of the end may ask for more at once.
            request.share = None;
        }
        let _ = request.sender.send(StreamEvent::Finished {
            index: sequence.index,
            reason,
            drafts: sequence.draft.counts,
        });
        if is_last {
            self.requests.remove(&sequence.request);
        }
    }

    /// Ends one request with an error; its sequences are removed at the end of the step.
    pub(super) fn fail(&mut self, request: RequestId, error: EngineError) {
        if let Some(mut open) = self.requests.remove(&request) {
            open.share = None;
            let _ = open.sender.send(StreamEvent::Error(error));
        }
    }

    pub(super) fn fail_all(&mut self, message: &str) {
        self.scheduler.remove(|_| true);
        for (_, mut request) in self.requests.drain() {
            request.share = None;
            let error = EngineError::Model(message.to_owned());
            let _ = request.sender.send(StreamEvent::Error(error));
        }
    }
}
