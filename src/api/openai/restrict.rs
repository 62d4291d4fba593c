//! `allowed_token_ids` and `bad_words`: constraints that know tokens alone.

use std::sync::Arc;

use super::messages::encode;
use super::params::SharedParams;
use crate::api::error::ApiError;
use crate::api::served::Served;
use crate::engine::{
    AllowedTokens, Capability, ConstraintError, TokenConstraint, TokenId, TokenMask,
};
use crate::work::Budget;

/// Most `bad_words`, and most bytes of one.
const MAX_BAD_WORDS: usize = 256;
const MAX_BAD_WORD_BYTES: usize = 256;

/// The constraint that a request's `allowed_token_ids` and `bad_words` make together with `other`.
pub(super) fn restricted(
    shared: &SharedParams,
    served: &Served,
    other: Option<Box<dyn TokenConstraint>>,
    budget: &Budget,
) -> Result<Option<Box<dyn TokenConstraint>>, ApiError> {
    let mut parts: Vec<Box<dyn TokenConstraint>> = other.into_iter().collect();
    if let Some(token_ids) = &shared.allowed_token_ids {
        demand(served, "allowed_token_ids")?;
        let vocab_size = served.engine.model_info().vocab_size;
        check_allowed(token_ids, vocab_size)?;
        let allowed = AllowedTokens::new(vocab_size, token_ids.iter().copied());
        parts.push(Box::new(allowed));
    }
    let words = shared.bad_words.as_deref().unwrap_or_default();
    if !words.is_empty() {
        demand(served, "bad_words")?;
        parts.push(Box::new(BadWords::new(words, served, budget)?));
    }
    Ok(match parts.len() {
        0 | 1 => parts.pop(),
        _ => Some(Box::new(All { parts })),
    })
}

fn demand(served: &Served, field: &str) -> Result<(), ApiError> {
    let demanded = served.engine.demand(Capability::Constraints);
    demanded.map_err(|error| ApiError::at(field, error))
}

fn check_allowed(token_ids: &[TokenId], vocab_size: usize) -> Result<(), ApiError> {
    let invalid = |message: String| Err(ApiError::invalid("allowed_token_ids", message));
    if token_ids.is_empty() {
        return invalid(
            "allowed_token_ids must name a token; leave it out to allow all".to_owned(),
        );
    }
    match token_ids.iter().find(|id| **id as usize >= vocab_size) {
        Some(id) => invalid(format!(
            "allowed_token_ids: {id} is outside the vocabulary of {vocab_size}"
        )),
        None => Ok(()),
    }
}

/// Keeps sequences of tokens out: the last token of one is forbidden behind its others. As in vLLM,
/// a word has two sequences, alone and behind a space; other tokens may still spell it.
#[derive(Debug, Clone)]
struct BadWords {
    /// None is empty.
    sequences: Arc<[Vec<TokenId>]>,
    accepted: Vec<TokenId>,
}

impl BadWords {
    fn new(words: &[String], served: &Served, budget: &Budget) -> Result<Self, ApiError> {
        let invalid = |message: String| Err(ApiError::invalid("bad_words", message));
        if words.len() > MAX_BAD_WORDS {
            return invalid(format!("bad_words takes at most {MAX_BAD_WORDS} words"));
        }
        let mut sequences = Vec::new();
        for (index, word) in words.iter().enumerate() {
            let bare = word.trim_start();
            if bare.is_empty() || word.len() > MAX_BAD_WORD_BYTES {
                return invalid(format!(
                    "bad_words[{index}] must have 1 to {MAX_BAD_WORD_BYTES} bytes beside spaces"
                ));
            }
            for text in [bare.to_owned(), format!(" {bare}")] {
                let encoded = encode(served, &text, (false, false), budget);
                let sequence = encoded.map_err(|error| ApiError {
                    param: Some("bad_words".to_owned()),
                    ..error
                })?;
                if !sequence.is_empty() && !sequences.contains(&sequence) {
                    sequences.push(sequence);
                }
            }
        }
        Ok(Self {
            sequences: sequences.into(),
            accepted: Vec::new(),
        })
    }

    /// Tokens that would complete a word.
    fn forbidden(&self) -> impl Iterator<Item = TokenId> + '_ {
        self.sequences.iter().filter_map(|sequence| {
            let (last, others) = sequence.split_last()?;
            self.accepted.ends_with(others).then_some(*last)
        })
    }
}

/// Takes a token out of a mask.
fn forbid(mask: &mut TokenMask, token_id: TokenId) {
    let bits = u32::BITS as usize;
    if let Some(word) = mask.words_mut().get_mut(token_id as usize / bits) {
        *word &= !(1 << (token_id as usize % bits));
    }
}

impl TokenConstraint for BadWords {
    fn mask(&mut self, mask: &mut TokenMask) -> Result<(), ConstraintError> {
        mask.allow_all();
        for token_id in self.forbidden() {
            forbid(mask, token_id);
        }
        Ok(())
    }

    fn accept(&mut self, token_id: TokenId) -> bool {
        let is_allowed = self.forbidden().all(|forbidden| forbidden != token_id);
        self.accepted.extend(is_allowed.then_some(token_id));
        is_allowed
    }

    fn rollback(&mut self, num_tokens: usize) {
        let num_left = self.accepted.len().saturating_sub(num_tokens);
        self.accepted.truncate(num_left);
    }

    fn has_cheap_masks(&self) -> bool {
        true
    }

    fn fork(&self) -> Box<dyn TokenConstraint> {
        Box::new(self.clone())
    }
}

/// What all its parts allow.
#[derive(Debug, Clone)]
struct All {
    parts: Vec<Box<dyn TokenConstraint>>,
}

impl TokenConstraint for All {
    fn mask(&mut self, mask: &mut TokenMask) -> Result<(), ConstraintError> {
        mask.allow_all();
        for part in &mut self.parts {
            let mut own = TokenMask::none(mask.vocab_size());
            part.mask(&mut own)?;
            for (word, own) in mask.words_mut().iter_mut().zip(own.words()) {
                *word &= own;
            }
        }
        Ok(())
    }

    fn accept(&mut self, token_id: TokenId) -> bool {
        for index in 0..self.parts.len() {
            if !self.parts[index].accept(token_id) {
                self.parts[..index]
                    .iter_mut()
                    .for_each(|part| part.rollback(1));
                return false;
            }
        }
        true
    }

    fn rollback(&mut self, num_tokens: usize) {
        self.parts
            .iter_mut()
            .for_each(|part| part.rollback(num_tokens));
    }

    fn forced(&mut self, most: usize) -> Vec<TokenId> {
        // A guess: what the others forbid of it is not drafted.
        let mut forced = self.parts.iter_mut().map(|part| part.forced(most));
        forced.find(|tokens| !tokens.is_empty()).unwrap_or_default()
    }

    fn has_cheap_masks(&self) -> bool {
        self.parts.iter().all(|part| part.has_cheap_masks())
    }

    fn fork(&self) -> Box<dyn TokenConstraint> {
        Box::new(self.clone())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const VOCAB_SIZE: usize = 40;

    fn bad_words(sequences: &[&[TokenId]]) -> BadWords {
        BadWords {
            sequences: sequences.iter().map(|ids| ids.to_vec()).collect(),
            accepted: Vec::new(),
        }
    }

    fn allowed(constraint: &mut dyn TokenConstraint) -> Vec<TokenId> {
        let mut mask = TokenMask::none(VOCAB_SIZE);
        constraint.mask(&mut mask).unwrap();
        let ids = 0..VOCAB_SIZE as TokenId;
        ids.filter(|id| mask.is_allowed(*id)).collect()
    }

    #[test]
    fn what_all_allow_is_allowed() {
        let parts: Vec<Box<dyn TokenConstraint>> = vec![
            Box::new(AllowedTokens::new(VOCAB_SIZE, [3, 4, 33, 34])),
            Box::new(bad_words(&[&[4], &[3, 33]])),
        ];
        let mut all = All { parts };
        assert_eq!(allowed(&mut all), [3, 33, 34]);
        assert!(!all.accept(4) && !all.accept(5) && all.accept(3));
        assert_eq!(allowed(&mut all), [3, 34]);
        let mut fork = all.fork();
        assert!(!fork.accept(33) && fork.accept(34) && fork.accept(33));
        all.rollback(1);
        assert_eq!(allowed(&mut all), [3, 33, 34]);
    }

    proptest! {
        /// No sequence comes out, whatever is drafted and taken back; all else may.
        #[test]
        fn no_bad_word_comes(
            sequences in prop::collection::vec(prop::collection::vec(0..3_u32, 1..4), 1..4),
            steps in prop::collection::vec((0..3_u32, 0..3_usize), 0..60),
        ) {
            let sequences: Vec<&[TokenId]> = sequences.iter().map(Vec::as_slice).collect();
            let mut words = bad_words(&sequences);
            let mut told: Vec<TokenId> = Vec::new();
            for (token_id, taken_back) in steps {
                let mut next = told.clone();
                next.push(token_id);
                let is_bad = sequences.iter().any(|bad| next.ends_with(bad));
                prop_assert_eq!(allowed(&mut words).contains(&token_id), !is_bad);
                prop_assert_eq!(words.accept(token_id), !is_bad);
                if !is_bad {
                    told = next;
                }
                words.rollback(taken_back);
                told.truncate(told.len().saturating_sub(taken_back));
            }
        }
    }
}
