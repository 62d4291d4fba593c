//! Where a step of an answer ends.

use regex::{Regex, RegexBuilder};

use crate::engine::{TokenId, TokenWatcher, Watch};
use crate::text::{Detokenizer, StopMatcher};

/// Compiled size of a client's pattern.
const MAX_REGEX_BYTES: usize = 1 << 20;

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
    Regex(Regex),
}

impl StepRule {
    pub fn delimiter(text: &str, max_tokens: usize) -> Self {
        Self {
            boundary: Boundary::Delimiter(text.to_owned()),
            max_tokens,
        }
    }

    /// The error is the pattern's.
    pub fn regex(pattern: &str, max_tokens: usize) -> Result<Self, String> {
        let regex = RegexBuilder::new(pattern)
            .size_limit(MAX_REGEX_BYTES)
            .build()
            .map_err(|error| error.to_string())?;
        Ok(Self {
            boundary: Boundary::Regex(regex),
            max_tokens,
        })
    }

    /// Whether `text` is a whole step. A token may carry text past the boundary; it stays in the step, since
    /// cutting inside a token would make the prefix tokenise differently.
    pub fn is_complete(&self, text: &str) -> bool {
        self.is_complete_since(text, 0)
    }

    /// The same of a text whose first `num_bytes` are known not to be one.
    fn is_complete_since(&self, text: &str, num_bytes: usize) -> bool {
        let step = text.trim_start();
        !step.is_empty()
            && match &self.boundary {
                Boundary::Delimiter(delimiter) => {
                    // A delimiter that ends in what is new may begin before it.
                    let first = text.len() - step.len();
                    let from = num_bytes.saturating_sub(delimiter.len());
                    let bytes = &text.as_bytes()[from.max(first)..];
                    let mut places = bytes.windows(delimiter.len().max(1));
                    places.any(|place| place == delimiter.as_bytes())
                }
                Boundary::Regex(regex) => regex.is_match(step),
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
    text: String,
    num_tokens: usize,
}

impl StepWatcher {
    /// `prefix_text` is the answer so far: a stop string may begin in it.
    pub(super) fn new(
        detokenizer: Detokenizer,
        mut stops: StopMatcher,
        prefix_text: &str,
        step: Option<(StepRule, Watch)>,
    ) -> Self {
        stops.push(prefix_text);
        Self {
            detokenizer,
            stops,
            step,
            text: String::new(),
            num_tokens: 0,
        }
    }
}

impl TokenWatcher for StepWatcher {
    fn push(&mut self, token_id: TokenId) -> Watch {
        let piece = self.detokenizer.push(token_id);
        self.num_tokens += 1;
        if self.stops.push(&piece).stopped.is_some() {
            return Watch::End;
        }
        let Some((step, at_end)) = &self.step else {
            return Watch::Continue;
        };
        let num_bytes = self.text.len();
        self.text.push_str(&piece);
        let is_full = self.num_tokens >= step.max_tokens && !self.detokenizer.is_pending();
        if !is_full && !step.is_complete_since(&self.text, num_bytes) {
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
    fn only_what_is_new_is_searched_for_a_delimiter() {
        for delimiter in ["\n", "\n\n", "äb", "aab"] {
            let rule = StepRule::delimiter(delimiter, 9);
            for text in ["\n\n x\n\ny", " aaab", "ä äbä", "\n", "aaaaabb", "x\n \n\n"] {
                // Piece by piece it ends where the whole of it does.
                let ends = (1..=text.len()).filter(|end| text.is_char_boundary(*end));
                let mut before = 0;
                for end in ends {
                    let expected = rule.is_complete(&text[..end]);
                    let found = rule.is_complete_since(&text[..end], before);
                    assert_eq!(found, expected, "{delimiter:?} in {:?}", &text[..end]);
                    if expected {
                        let trimmed = text[..end].trim_start();
                        assert!(trimmed.contains(delimiter));
                        break;
                    }
                    before = end;
                }
            }
        }
    }
}
