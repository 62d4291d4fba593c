//! Ends what is sampled where a step of an answer ends.

use super::confidence::Groups;
use crate::engine::{TokenId, TokenLogprobs, TokenWatcher, Watch};
use crate::text::{Detokenizer, StepProgress, StopMatcher};
use crate::tool::BlockReader;

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
    /// Where blocks that end are run.
    blocks: Option<BlockReader>,
    /// The block that the newest token closed.
    block: Option<String>,
    is_at_line_start: bool,
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
            blocks: None,
            block: None,
            is_at_line_start: true,
        }
    }

    /// Ends a continuation where a block of Python ends, too. `blocks` has read what came before.
    pub(super) fn with_blocks(self, blocks: Option<BlockReader>, is_at_line_start: bool) -> Self {
        Self {
            blocks,
            is_at_line_start,
            ..self
        }
    }

    /// The block of Python that the newest token closed, unless a stop string came with it.
    pub(super) fn closed_block(&mut self) -> Option<String> {
        self.block.take()
    }

    /// What is known of the confidence so far, for what watches the rest.
    pub(super) fn take_confidence(&mut self) -> Option<Groups> {
        self.confidence.take()
    }

    /// Whether the text so far ends with a line.
    pub(super) fn is_at_line_start(&self) -> bool {
        self.is_at_line_start
    }
}

impl TokenWatcher for StepWatcher {
    fn push(&mut self, token_id: TokenId, logprobs: Option<&TokenLogprobs>) -> Watch {
        let groups = self.confidence.as_mut().zip(logprobs);
        let is_unsure = groups.is_some_and(|(groups, logprobs)| groups.push(logprobs));
        let piece = self.detokenizer.push(token_id);
        self.num_tokens += 1;
        if !piece.is_empty() {
            self.is_at_line_start = piece.ends_with('\n');
        }
        if self.stops.push(&piece).stopped.is_some() || is_unsure {
            return Watch::End;
        }
        self.block = self.blocks.as_mut().and_then(|blocks| blocks.push(&piece));
        if self.block.is_some() {
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
