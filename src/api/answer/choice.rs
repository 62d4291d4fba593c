//! One choice on its way from tokens to text, up to its end.

use super::event::{ChoiceEnd, Delta, EndReason, StopReason};
use super::reader::Reader;
use crate::engine::FinishReason;
use crate::text::{Detokenizer, StopMatcher};

/// Turns tokens into the text that may be shown, and knows when the choice has ended. It ends once:
/// by the engine's word ([`Self::finish`]), or before that by a stop string ([`Self::push`]).
pub(super) struct ChoiceText {
    detokenizer: Detokenizer,
    stops: StopMatcher,
    /// The newest token when it is one that can end a choice: it has no text then, and whether it
    /// ended this one is the engine's to say.
    held: Option<u32>,
    end: Option<ChoiceEnd>,
}

impl ChoiceText {
    pub fn new(detokenizer: Detokenizer, stops: StopMatcher) -> Self {
        Self {
            detokenizer,
            stops,
            held: None,
            end: None,
        }
    }

    pub fn end(&self) -> Option<&ChoiceEnd> {
        self.end.as_ref()
    }

    /// The text that a token adds. `can_end`: tokens like this end a choice.
    pub fn push(&mut self, token_id: u32, can_end: bool) -> String {
        let mut text = self.release();
        if self.end.is_some() {
            return text;
        }
        if can_end {
            self.held = Some(token_id);
        } else {
            let piece = self.detokenizer.push(token_id);
            text.push_str(&self.matched(&piece));
        }
        text
    }

    /// The engine ended the choice. The text that was held back, unless it had ended before.
    pub fn finish(&mut self, reason: FinishReason) -> Option<String> {
        if self.end.is_some() {
            return None;
        }
        if matches!(reason, FinishReason::Eos | FinishReason::StopToken(_)) {
            self.held = None;
        }
        let mut text = self.release();
        if self.end.is_none() {
            let rest = self.detokenizer.finish();
            text.push_str(&self.matched(&rest));
        }
        if self.end.is_none() {
            text.push_str(&self.stops.finish());
            self.end = Some(ended(reason));
        }
        Some(text)
    }

    /// Something stands behind the text so far that the model did not write: what was held back.
    pub fn interrupt(&mut self) -> String {
        let mut text = self.release();
        if self.end.is_some() {
            return text;
        }
        let rest = self.detokenizer.finish();
        if !rest.is_empty() {
            text.push_str(&self.matched(&rest));
        }
        text.push_str(&self.stops.flush());
        text
    }

    /// The text of a held token that turned out to end nothing.
    fn release(&mut self) -> String {
        match self.held.take() {
            None => String::new(),
            Some(token_id) => {
                let piece = self.detokenizer.push(token_id);
                self.matched(&piece)
            }
        }
    }

    /// What of new text may be shown.
    fn matched(&mut self, piece: &str) -> String {
        let outcome = self.stops.push(piece);
        if let Some(stop) = outcome.stopped {
            self.end = Some(ChoiceEnd {
                reason: EndReason::Stop,
                stop: Some(StopReason::Text(stop)),
                value: None,
            });
        }
        outcome.text
    }
}

/// One choice of a plain answer.
pub(super) struct Choice {
    pub text: ChoiceText,
    pub reader: Reader,
    pub num_tokens: usize,
    pub is_started: bool,
    /// Tokens that no delta has told yet.
    pub untold: Vec<u32>,
}

impl Choice {
    /// The choice's end, when it has come; what was held back of the text is added to its last
    /// part.
    pub fn end(&mut self, last: &mut Delta) -> Option<ChoiceEnd> {
        let end = self.text.end()?.clone();
        last.append(self.reader.finish());
        Some(self.reader.end(end))
    }
}

fn ended(reason: FinishReason) -> ChoiceEnd {
    ChoiceEnd {
        reason: match reason {
            FinishReason::Length | FinishReason::Budget => EndReason::Length,
            FinishReason::Abort | FinishReason::Deadline => EndReason::Abort,
            FinishReason::Eos
            | FinishReason::StopToken(_)
            | FinishReason::Watcher
            | FinishReason::Pooled => EndReason::Stop,
        },
        stop: match reason {
            FinishReason::StopToken(token_id) => Some(StopReason::Token(token_id)),
            _ => None,
        },
        value: None,
    }
}
