//! A compiled grammar as a constraint on tokens.

use std::sync::Arc;

use llguidance::Matcher;
use toktrie::SimpleVob;

use super::limits::MAX_MASK_TIME;
use super::numbers::{NumberLimit, NumberScope};
use super::vocabulary::Vocabulary;
use super::watch::{Watch, Watched};
use crate::engine::{ConstraintError, TokenConstraint, TokenId, TokenMask};

/// One text under one grammar.
#[derive(Clone)]
pub(super) struct GrammarConstraint {
    matcher: Matcher,
    vocabulary: Arc<Vocabulary>,
    watch: Watch,
    numbers: Option<NumberLimit>,
    /// The grammar names special tokens.
    has_special: bool,
    /// The text has ended. The matcher does not know: it never sees an end token.
    is_ended: bool,
    /// Why the matcher is of no use any more.
    failure: Option<ConstraintError>,
}

impl std::fmt::Debug for GrammarConstraint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GrammarConstraint")
            .field("is_ended", &self.is_ended)
            .field("failure", &self.failure)
            .finish_non_exhaustive()
    }
}

impl GrammarConstraint {
    pub(super) fn new(
        matcher: Matcher,
        vocabulary: Arc<Vocabulary>,
        watch: Watch,
        numbers: &Arc<NumberScope>,
        has_special: bool,
    ) -> Self {
        let numbers = match **numbers {
            NumberScope::None => None,
            _ => Some(NumberLimit::new(Arc::clone(numbers))),
        };
        Self {
            matcher,
            vocabulary,
            watch,
            numbers,
            has_special,
            is_ended: false,
            failure: None,
        }
    }

    /// Remembers a failure of the matcher.
    fn fail(&mut self, error: &anyhow::Error) -> ConstraintError {
        let failure = ConstraintError(explain(&error.to_string()));
        self.failure = Some(failure.clone());
        failure
    }

    /// Watches the matcher until the guard is dropped.
    fn watched(&self) -> Option<Watched> {
        let handle = self.matcher.cancellation_handle()?;
        Some(self.watch.begin(handle))
    }

    /// The tokens that the grammar allows, without the bound on digits.
    fn allowed(&mut self) -> Result<SimpleVob, ConstraintError> {
        let watched = self.watched();
        let allowed = self.matcher.compute_mask_or_eos();
        drop(watched);
        allowed.map_err(|error| self.fail(&error))
    }

    /// Whether an end token may come.
    fn may_end(&mut self) -> bool {
        match self.matcher.is_stopped() {
            true => !self.matcher.is_error(),
            false => self.matcher.is_accepting().unwrap_or(false),
        }
    }

    /// Takes tokens with more digits than `room` out of a mask. Where the grammar wants another
    /// digit all the same (a number above an exclusive 0 that has only zeros so far), one may come:
    /// not a zero, if that is possible.
    fn bound_digits(&self, mask: &mut TokenMask, room: usize, allowed: &SimpleVob) {
        for token_id in self.vocabulary.longer_digits(room) {
            mask.words_mut()[token_id as usize / 32] &= !(1 << (token_id % 32));
        }
        for least in [b'1', b'0'] {
            if !mask.allows_nothing() {
                return;
            }
            for token_id in self.vocabulary.longer_digits(room) {
                let bytes = self.vocabulary.text_bytes(token_id);
                let is_digit = bytes.len() == 1 && bytes[0] >= least;
                if is_digit && allowed.is_allowed(token_id) {
                    mask.allow(token_id);
                }
            }
        }
    }

    /// Whether a token that has more digits than a number may have can come all the same.
    fn is_needed(&mut self, token_id: TokenId) -> bool {
        let mut mask = TokenMask::none(self.vocabulary.trie().vocab_size());
        self.mask(&mut mask).is_ok() && mask.is_allowed(token_id)
    }

    /// Whether a token has no more digits than a number may have here.
    fn has_room(&self, bytes: &[u8]) -> bool {
        let room = self.numbers.as_ref().and_then(NumberLimit::room);
        room.is_none_or(|room| super::vocabulary::num_leading_digits(bytes) <= room)
    }
}

impl TokenConstraint for GrammarConstraint {
    fn mask(&mut self, mask: &mut TokenMask) -> Result<(), ConstraintError> {
        if let Some(failure) = &self.failure {
            return Err(failure.clone());
        }
        // Nothing follows the end.
        if self.is_ended {
            return Ok(());
        }
        let allowed = self.allowed()?;
        for (word, allowed) in mask.words_mut().iter_mut().zip(allowed.as_slice()) {
            *word |= allowed;
        }
        if let Some(room) = self.numbers.as_ref().and_then(NumberLimit::room) {
            self.bound_digits(mask, room, &allowed);
        }
        Ok(())
    }

    fn accept(&mut self, token_id: TokenId) -> bool {
        if self.is_ended || self.failure.is_some() {
            return false;
        }
        if self.vocabulary.is_end(token_id) {
            self.is_ended = self.may_end();
            return self.is_ended;
        }
        if token_id as usize >= self.vocabulary.trie().vocab_size() {
            return false;
        }
        let vocabulary = Arc::clone(&self.vocabulary);
        let bytes = vocabulary.text_bytes(token_id);
        if !self.has_room(bytes) && !self.is_needed(token_id) {
            return false;
        }
        let watched = self.watched();
        let consumed = self.matcher.try_consume_tokens(&[token_id]);
        drop(watched);
        match consumed {
            Ok(num_accepted) => {
                let is_accepted = num_accepted == 1;
                if let Some(numbers) = self.numbers.as_mut().filter(|_| is_accepted) {
                    numbers.push(bytes);
                }
                is_accepted
            }
            // The next mask says why.
            Err(error) => {
                self.fail(&error);
                true
            }
        }
    }

    fn rollback(&mut self, mut num_tokens: usize) {
        if self.is_ended && num_tokens > 0 {
            self.is_ended = false;
            num_tokens -= 1;
        }
        if num_tokens == 0 || self.failure.is_some() {
            return;
        }
        if let Some(numbers) = &mut self.numbers {
            numbers.rollback(num_tokens);
        }
        if let Err(error) = self.matcher.rollback(num_tokens) {
            self.fail(&error);
        }
    }

    fn forced(&mut self, most: usize) -> Vec<TokenId> {
        if most == 0 || self.is_ended || self.failure.is_some() || self.matcher.is_stopped() {
            return Vec::new();
        }
        let _watched = self.watched();
        // Forced bytes stay in the matcher, which masks do not mind; but its masks have no special
        // token behind forced bytes.
        let bytes = match self.has_special {
            true => self.matcher.clone().compute_ff_bytes(),
            false => self.matcher.compute_ff_bytes(),
        };
        if bytes.is_empty() {
            return Vec::new();
        }
        let mut token_ids = self.vocabulary.tokenize_forced(&bytes);
        token_ids.truncate(most);
        token_ids
    }

    fn fork(&self) -> Box<dyn TokenConstraint> {
        Box::new(self.clone())
    }
}

/// llguidance's messages in plain English, without the state and the stack behind them.
pub(super) fn explain(message: &str) -> String {
    let ends = ["\n<", "<state>", "<backtrace>", "<non-verbose/>"];
    let end = ends.iter().filter_map(|mark| message.find(mark)).min();
    let message = message[..end.unwrap_or(message.len())].trim();
    let message = ["lexer error: ", "parser error: "]
        .iter()
        .fold(message, |message, prefix| {
            message.strip_prefix(prefix).unwrap_or(message)
        });
    if message == "operation cancelled" {
        return format!("the grammar needs too much work here (more than {MAX_MASK_TIME:?})");
    }
    const TOO_MUCH: [&str; 5] = [
        "Too many items",
        "TooComplex",
        "fuel",
        "too many ",
        "Current row has",
    ];
    if message.starts_with("panic") {
        return "the grammar cannot be followed any further".to_owned();
    }
    if message == "NoExtensionBias" {
        return "the grammar allows no token of the vocabulary here".to_owned();
    }
    if message.contains("Unable to determine if regex is empty") {
        return "a pattern with its bounds on length, or with another pattern, needs too much work"
            .to_owned();
    }
    if TOO_MUCH.iter().any(|words| message.contains(words)) {
        return format!("the grammar needs too much work here ({message})");
    }
    message.to_owned()
}
