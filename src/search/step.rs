//! Ends what is sampled where a step of an answer ends.

use super::confidence::Groups;
use crate::engine::{TokenId, TokenLogprobs, TokenWatcher, Watch};
use crate::text::{Detokenizer, StepProgress, StopMatcher};

pub use crate::text::StepRule;

/// Steps whose ends are noted in one whole answer.
pub(super) const MAX_NOTED_STEPS: usize = 16;

/// Ends a continuation where its step, the answer or its confidence ends, or notes where its first
/// steps end.
#[derive(Debug, Clone)]
pub(super) struct StepWatcher {
    detokenizer: Detokenizer,
    stops: StopMatcher,
    /// The rule, and what a step's end means.
    step: Option<(StepRule, Watch)>,
    progress: StepProgress,
    /// Of the step that is being watched.
    num_tokens: usize,
    num_steps: usize,
    confidence: Option<Groups>,
}

impl StepWatcher {
    /// `prefix_text` is the answer so far: a stop string may begin in it.
    pub(super) fn new(
        detokenizer: Detokenizer,
        mut stops: StopMatcher,
        prefix_text: &str,
        step: Option<(StepRule, Watch)>,
        confidence: Option<Groups>,
    ) -> Self {
        stops.pass(prefix_text);
        Self {
            detokenizer,
            stops,
            step,
            progress: StepProgress::default(),
            num_tokens: 0,
            num_steps: 0,
            confidence,
        }
    }
}

impl TokenWatcher for StepWatcher {
    fn push(&mut self, token_id: TokenId, logprobs: Option<&TokenLogprobs>) -> Watch {
        let groups = self.confidence.as_mut().zip(logprobs);
        let is_unsure = groups.is_some_and(|(groups, logprobs)| groups.push(logprobs));
        let piece = self.detokenizer.push(token_id);
        self.num_tokens += 1;
        if self.stops.push(&piece).stopped.is_some() || is_unsure {
            return Watch::End;
        }
        let Some((step, at_end)) = &self.step else {
            return Watch::Continue;
        };
        let is_full = self.num_tokens >= step.max_tokens && !self.detokenizer.is_pending();
        if !self.progress.push(step, &piece) && !is_full {
            return Watch::Continue;
        }
        let watch = *at_end;
        self.num_steps += 1;
        self.num_tokens = 0;
        self.progress = StepProgress::default();
        if watch == Watch::End || self.num_steps == MAX_NOTED_STEPS {
            self.step = None;
        }
        watch
    }

    fn boxed_clone(&self) -> Box<dyn TokenWatcher> {
        Box::new(self.clone())
    }
}
