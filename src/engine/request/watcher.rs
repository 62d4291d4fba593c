//! Who watches a continuation's tokens as they come, on the engine's thread.

use super::{TokenId, TokenLogprobs};

/// A [`TokenWatcher`]'s word on a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Watch {
    Continue,
    /// Go on, and report this token's hidden state when the request asks for hidden states.
    Tap,
    /// End the continuation with [`FinishReason::Watcher`].
    End,
}

/// Watches the tokens of one continuation on the engine's thread, so that it ends (at a step of the answer,
/// say) before one more token is computed.
pub trait TokenWatcher: std::fmt::Debug + Send {
    /// Takes the newest token, with the logprobs that the request asks for.
    fn push(&mut self, token_id: TokenId, logprobs: Option<&TokenLogprobs>) -> Watch;

    /// A watcher in the same state, for a sibling.
    fn boxed_clone(&self) -> Box<dyn TokenWatcher>;
}

impl Clone for Box<dyn TokenWatcher> {
    fn clone(&self) -> Self {
        self.boxed_clone()
    }
}
