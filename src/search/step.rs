//! Where a step of an answer ends.

use crate::engine::{TokenId, TokenWatcher, Watch};
use crate::text::{Automaton, Detokenizer, Place, StopMatcher};
use crate::tool::BlockReader;

/// Ends a step at a delimiter or a pattern, or after a number of tokens. A step has something other than
/// white space, so blank lines never make steps of their own.
#[derive(Debug, Clone)]
pub struct StepRule {
    boundary: Boundary,
    pub max_tokens: usize,
}

#[derive(Debug, Clone)]
enum Boundary {
    Delimiter(String),
    Regex(Automaton),
}

impl StepRule {
    pub fn delimiter(text: &str, max_tokens: usize) -> Self {
        Self {
            boundary: Boundary::Delimiter(text.to_owned()),
            max_tokens,
        }
    }

    /// The error is the pattern's. Takes a fraction of a second at most.
    pub fn regex(pattern: &str, max_tokens: usize) -> Result<Self, String> {
        Ok(Self {
            boundary: Boundary::Regex(Automaton::new(pattern)?),
            max_tokens,
        })
    }

    /// Whether `text` is a whole step. A token may carry text past the boundary; it stays in the step, since
    /// cutting inside a token would make the prefix tokenise differently.
    pub fn is_complete(&self, text: &str) -> bool {
        StepProgress::default().push(self, text)
    }
}

/// How far a step has come. Each token costs what its own text is long, however long the step is.
#[derive(Debug, Clone, Default)]
struct StepProgress {
    /// Whether there was something other than white space.
    has_begun: bool,
    /// In the automaton of the rule's pattern.
    place: Option<Place>,
    /// The last bytes: a delimiter that ends in what is new may begin before it.
    tail: Vec<u8>,
}

impl StepProgress {
    /// Whether the step is whole with this text after what came before.
    fn push(&mut self, rule: &StepRule, text: &str) -> bool {
        let text = match self.has_begun {
            true => text,
            false => text.trim_start(),
        };
        if text.is_empty() {
            return false;
        }
        self.has_begun = true;
        match &rule.boundary {
            Boundary::Delimiter(delimiter) => {
                self.tail.extend_from_slice(text.as_bytes());
                let mut places = self.tail.windows(delimiter.len().max(1));
                let is_whole = places.any(|place| place == delimiter.as_bytes());
                let kept = delimiter.len().saturating_sub(1);
                self.tail.drain(..self.tail.len().saturating_sub(kept));
                is_whole
            }
            Boundary::Regex(automaton) => {
                let place = self.place.get_or_insert_with(|| automaton.start());
                automaton.push(place, text)
            }
        }
    }
}

/// Ends a continuation where its step or the answer ends, or notes where its first step ends.
#[derive(Debug, Clone)]
pub(super) struct StepWatcher {
    detokenizer: Detokenizer,
    stops: StopMatcher,
    /// The rule, and what the first step's end means.
    step: Option<(StepRule, Watch)>,
    progress: StepProgress,
    num_tokens: usize,
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
    ) -> Self {
        stops.pass(prefix_text);
        Self {
            detokenizer,
            stops,
            step,
            progress: StepProgress::default(),
            num_tokens: 0,
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

    /// Whether the text so far ends with a line.
    pub(super) fn is_at_line_start(&self) -> bool {
        self.is_at_line_start
    }
}

impl TokenWatcher for StepWatcher {
    fn push(&mut self, token_id: TokenId) -> Watch {
        let piece = self.detokenizer.push(token_id);
        self.num_tokens += 1;
        if !piece.is_empty() {
            self.is_at_line_start = piece.ends_with('\n');
        }
        if self.stops.push(&piece).stopped.is_some() {
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
        self.step = None;
        watch
    }

    fn boxed_clone(&self) -> Box<dyn TokenWatcher> {
        Box::new(self.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_end_after_their_content() {
        let lines = StepRule::delimiter("\n", 9);
        assert!(!lines.is_complete("\n\n  "));
        assert!(!lines.is_complete("\n\n  x"));
        assert!(lines.is_complete("\n\n  x\n"));
        let numbered = StepRule::regex(r"Step \d+:", 9).unwrap();
        assert!(!numbered.is_complete("Do"));
        assert!(numbered.is_complete("a Step 1: b"));
        assert!(StepRule::regex("(", 9).is_err());
    }

    #[test]
    fn a_step_ends_at_the_same_token_however_its_text_is_cut() {
        let rules = ["\n", "\n\n", "äb", "aab"].map(|text| StepRule::delimiter(text, 9));
        let regex = StepRule::regex("a{2}b|b$|\\n\\s", 9).unwrap();
        for rule in rules.iter().chain([&regex]) {
            for text in ["\n\n x\n\ny", " aaab", "ä äbä", "\n", "aaaaabb", "x\n \n\n"] {
                // Piece by piece it ends where the whole of it does.
                let mut progress = StepProgress::default();
                for (at, piece) in text.char_indices() {
                    let end = at + piece.len_utf8();
                    let found = progress.push(rule, &text[at..end]);
                    assert_eq!(found, rule.is_complete(&text[..end]), "{:?}", &text[..end]);
                    if found {
                        break;
                    }
                }
            }
        }
    }

    #[test]
    fn what_is_kept_of_a_step_does_not_grow() {
        let rule = StepRule::delimiter("\n\n", 9);
        let mut progress = StepProgress::default();
        for _ in 0..1000 {
            assert!(!progress.push(&rule, "some words\n"));
            assert!(progress.tail.len() < 2);
        }
    }
}
