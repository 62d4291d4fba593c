//! Which tokens may come next. A constraint knows token ids; grammars and schemas are its implementations' business.

use super::TokenId;

const WORD_BITS: usize = u32::BITS as usize;

/// The tokens that may come next: bit `id % 32` of word `id / 32`, as guidance libraries and device kernels have it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenMask {
    words: Vec<u32>,
    vocab_size: usize,
}

impl TokenMask {
    /// Allows nothing.
    pub fn none(vocab_size: usize) -> Self {
        Self {
            words: vec![0; vocab_size.div_ceil(WORD_BITS)],
            vocab_size,
        }
    }

    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// `[vocab_size.div_ceil(32)]`. Bits past the vocabulary mean nothing.
    pub fn words(&self) -> &[u32] {
        &self.words
    }

    pub fn words_mut(&mut self) -> &mut [u32] {
        &mut self.words
    }

    /// Allows a token. Tokens outside the vocabulary are none.
    pub fn allow(&mut self, token_id: TokenId) {
        if (token_id as usize) < self.vocab_size {
            self.words[token_id as usize / WORD_BITS] |= 1 << (token_id as usize % WORD_BITS);
        }
    }

    pub fn allow_all(&mut self) {
        self.words.fill(u32::MAX);
    }

    pub fn is_allowed(&self, token_id: TokenId) -> bool {
        let token_id = token_id as usize;
        token_id < self.vocab_size
            && self.words[token_id / WORD_BITS] & (1 << (token_id % WORD_BITS)) != 0
    }

    /// Puts the logits of the tokens that are not allowed out of reach.
    pub fn apply(&self, logits: &mut [f32]) {
        for (word, logits) in self.words.iter().zip(logits.chunks_mut(WORD_BITS)) {
            if *word == u32::MAX {
                continue;
            }
            for (bit, logit) in logits.iter_mut().enumerate() {
                if word & (1 << bit) == 0 {
                    *logit = f32::NEG_INFINITY;
                }
            }
        }
    }
}

/// Why a constraint cannot go on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ConstraintError(pub String);

/// Decides which tokens may come next in one continuation, on the engine's thread.
///
/// The engine asks for a mask before each token is sampled. A draft is followed with [`Self::accept`] token by token, so that every
/// one of its rows is sampled under its own mask, and taken back with [`Self::rollback`] before the step runs: what the step
/// accepts is then accepted for good.
pub trait TokenConstraint: std::fmt::Debug + Send + Sync {
    /// Allows in `mask`, which allows nothing, the tokens that may come next: end-of-sequence tokens where the text may end.
    ///
    /// # Errors
    /// The constraint is of no more use, and its request ends.
    fn mask(&mut self, mask: &mut TokenMask) -> Result<(), ConstraintError>;

    /// Takes the next token; false when it is not allowed, and nothing has changed then.
    fn accept(&mut self, token_id: TokenId) -> bool;

    /// Takes back the newest `num_tokens` accepted tokens.
    fn rollback(&mut self, num_tokens: usize);

    /// Tokens that must come next, at most `most`: they are drafted. A guess is fine, since drafts are verified.
    fn forced(&mut self, _most: usize) -> Vec<TokenId> {
        Vec::new()
    }

    /// A constraint in the same state, for a continuation that goes its own way from here.
    fn fork(&self) -> Box<dyn TokenConstraint>;
}

impl Clone for Box<dyn TokenConstraint> {
    fn clone(&self) -> Self {
        self.fork()
    }
}

/// The simplest constraint: the same tokens may come at every place.
#[derive(Debug, Clone)]
pub struct AllowedTokens {
    mask: std::sync::Arc<TokenMask>,
}

impl AllowedTokens {
    pub fn new(vocab_size: usize, token_ids: impl IntoIterator<Item = TokenId>) -> Self {
        let mut mask = TokenMask::none(vocab_size);
        for token_id in token_ids {
            mask.allow(token_id);
        }
        Self { mask: mask.into() }
    }
}

impl TokenConstraint for AllowedTokens {
    fn mask(&mut self, mask: &mut TokenMask) -> Result<(), ConstraintError> {
        for (word, allowed) in mask.words.iter_mut().zip(&self.mask.words) {
            *word |= allowed;
        }
        Ok(())
    }

    fn accept(&mut self, token_id: TokenId) -> bool {
        self.mask.is_allowed(token_id)
    }

    fn rollback(&mut self, _: usize) {}

    fn fork(&self) -> Box<dyn TokenConstraint> {
        Box::new(self.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mask_knows_the_vocabulary_and_no_more() {
        let mut mask = TokenMask::none(40);
        for token_id in [0, 31, 32, 39, 40, 90] {
            mask.allow(token_id);
        }
        let allowed: Vec<u32> = (0..100).filter(|id| mask.is_allowed(*id)).collect();
        assert_eq!(allowed, [0, 31, 32, 39]);
        let mut logits = vec![1.0; 40];
        mask.apply(&mut logits);
        let kept: Vec<usize> = (0..40).filter(|id| logits[*id] == 1.0).collect();
        assert_eq!(kept, [0, 31, 32, 39]);
        mask.allow_all();
        assert!(mask.is_allowed(39) && !mask.is_allowed(40));
    }
}
