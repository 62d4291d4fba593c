//! How the text of an answer is made of its tokens.

use super::confidence::Groups;
use super::step::{StepRule, StepWatcher};
use crate::engine::Watch;
use crate::text::{Detokenizer, StopMatcher, Tokenizer};
use crate::tool::BlockReader;

/// What a request says of the text of its answers.
#[derive(Debug, Clone)]
pub struct TextRules {
    pub tokenizer: Tokenizer,
    pub stops: Vec<String>,
    pub include_stop: bool,
    pub skip_special: bool,
    /// Special tokens whose texts are shown all the same: marks of thoughts and calls.
    pub visible: Vec<u32>,
    /// Of a whole answer.
    pub min_tokens: usize,
}

/// Where an answer stands whose tokens are watched from there on.
#[derive(Debug, Clone, Copy)]
pub(super) struct Standing<'a> {
    /// The policy's own tokens so far.
    pub num_own: usize,
    /// Text before the answer in which a block may begin.
    pub before: &'a str,
    /// What the policy wrote since the last insertion: a stop string or a block may begin in it.
    pub text: &'a str,
    /// Whether a block that ends may still be run.
    pub may_call: bool,
}

impl TextRules {
    /// Turns the tokens of an answer into its text.
    pub fn detokenizer(&self) -> Detokenizer {
        Detokenizer::with_visible(&self.tokenizer, self.skip_special, &self.visible)
    }

    /// Stop strings wait for `min_tokens`, those of the prefix among them.
    pub fn stops(&self, num_prefix_tokens: usize) -> StopMatcher {
        let num_waiting = self.min_tokens.saturating_sub(num_prefix_tokens + 1);
        StopMatcher::new(self.stops.clone(), self.include_stop).after(num_waiting)
    }

    /// Watches what follows.
    pub(super) fn watcher(
        &self,
        standing: Standing<'_>,
        step: Option<(StepRule, Watch)>,
        confidence: Option<Groups>,
    ) -> StepWatcher {
        let Standing {
            num_own,
            before,
            text,
            may_call,
        } = standing;
        let blocks = may_call.then(|| {
            let mut blocks = BlockReader::default();
            blocks.pass(before);
            blocks.pass(text);
            blocks
        });
        let stops = self.stops(num_own);
        let last = if text.is_empty() { before } else { text };
        let is_at_line_start = last.is_empty() || last.ends_with('\n');
        StepWatcher::new(self.detokenizer(), stops, text, step, confidence)
            .with_blocks(blocks, is_at_line_start)
    }

    /// Watches what follows the output of code, where no more of it runs.
    pub(super) fn watcher_behind(
        &self,
        num_own: usize,
        step: Option<(StepRule, Watch)>,
    ) -> StepWatcher {
        let standing = Standing {
            num_own,
            before: "",
            text: "",
            may_call: false,
        };
        self.watcher(standing, step, None)
    }
}
