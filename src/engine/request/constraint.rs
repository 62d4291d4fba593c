//! Which tokens may come next. A constraint knows token ids; grammars and schemas are its
//! implementations' business.

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

    /// Allows nothing any more.
    pub fn clear(&mut self) {
        self.words.fill(0);
    }

    /// Whether every token of the vocabulary is allowed.
    pub fn allows_all(&self) -> bool {
        let mut words = self.words.iter().enumerate();
        words.all(|(index, word)| !word & self.known_bits(index) == 0)
    }

    /// Whether no token of the vocabulary is allowed.
    pub fn allows_nothing(&self) -> bool {
        let mut words = self.words.iter().enumerate();
        words.all(|(index, word)| word & self.known_bits(index) == 0)
    }

    /// Forbids tokens, unless nothing else is allowed.
    pub fn forbid_if_others(&mut self, token_ids: impl IntoIterator<Item = TokenId>) {
        let is_allowed = |id: &TokenId| self.is_allowed(*id);
        let token_ids: Vec<TokenId> = token_ids.into_iter().filter(is_allowed).collect();
        for id in &token_ids {
            self.words[*id as usize / WORD_BITS] &= !(1 << (*id as usize % WORD_BITS));
        }
        if !token_ids.is_empty() && self.allows_nothing() {
            token_ids.into_iter().for_each(|id| self.allow(id));
        }
    }

    /// The bits of a word that stand for tokens.
    fn known_bits(&self, word: usize) -> u32 {
        match self.vocab_size.saturating_sub(word * WORD_BITS) {
            left if left >= WORD_BITS => u32::MAX,
            left => (1 << left) - 1,
        }
    }

    pub fn is_allowed(&self, token_id: TokenId) -> bool {
        let token_id = token_id as usize;
        token_id < self.vocab_size
            && self.words[token_id / WORD_BITS] & (1 << (token_id % WORD_BITS)) != 0
    }

    /// Puts the logits of the tokens that are not allowed out of reach. Most words of most masks
    /// are empty or full.
    pub fn apply(&self, logits: &mut [f32]) {
        for (word, logits) in self.words.iter().zip(logits.chunks_mut(WORD_BITS)) {
            match *word {
                u32::MAX => {}
                0 => logits.fill(f32::NEG_INFINITY),
                word => {
                    // Without a branch the compiler handles several at once.
                    for (bit, logit) in logits.iter_mut().enumerate() {
                        let is_allowed = word & (1 << bit) != 0;
                        *logit = if is_allowed {
                            *logit
                        } else {
                            f32::NEG_INFINITY
                        };
                    }
                }
            }
        }
    }
}

/// Why a constraint cannot go on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ConstraintError(pub String);

/// Decides which tokens may come next in one continuation.
///
/// The engine asks for a mask for each token that it samples, on a thread of its own while the
/// model computes the token's logits. The engine follows a draft with [`Self::accept`] token by
/// token, so that each of its rows has its own mask, and takes the draft back with
/// [`Self::rollback`]. Tokens that are sampled are then accepted for good. A constraint that fails
/// or panics ends its own request ([`super::EngineError::Constraint`]) and no other.
pub trait TokenConstraint: std::fmt::Debug + Send {
    /// Allows in `mask`, which allows nothing, the tokens that may come next: end-of-sequence tokens where the text may end.
    ///
    /// # Errors
    /// The constraint is of no more use, and its request ends.
    fn mask(&mut self, mask: &mut TokenMask) -> Result<(), ConstraintError>;

    /// Takes the next token; false when it is not allowed, and nothing has changed then.
    fn accept(&mut self, token_id: TokenId) -> bool;

    /// Takes back the newest `num_tokens` accepted tokens.
    fn rollback(&mut self, num_tokens: usize);

    /// Tokens that must come next, at most `most`: they are drafted. A guess is fine, since drafts
    /// are verified.
    fn forced(&mut self, _most: usize) -> Vec<TokenId> {
        Vec::new()
    }

    /// Whether a mask costs so little that the engine's thread may make it.
    fn has_cheap_masks(&self) -> bool {
        false
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

    fn has_cheap_masks(&self) -> bool {
        true
    }

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
        assert!(!mask.allows_all() && !mask.allows_nothing());
        mask.allow_all();
        assert!(mask.is_allowed(39) && !mask.is_allowed(40));
        assert!(mask.allows_all());
        mask.forbid_if_others([39]);
        assert!(!mask.allows_all() && !mask.is_allowed(39));
    }

    #[test]
    fn bits_past_the_vocabulary_are_no_tokens() {
        let mut mask = TokenMask::none(40);
        mask.words_mut()[1] = 0xFFFF_FF00;
        assert!(mask.allows_nothing());
        mask.words_mut().copy_from_slice(&[u32::MAX, 0xFF]);
        assert!(mask.allows_all());
        mask.clear();
        assert!(mask.allows_nothing() && TokenMask::none(0).allows_all());
    }

    #[test]
    fn tokens_are_forbidden_only_beside_others() {
        let mut mask = TokenMask::none(40);
        [3, 33].into_iter().for_each(|id| mask.allow(id));
        let only = mask.clone();
        mask.forbid_if_others([3, 33, 7, 3, 900]);
        assert_eq!(mask, only, "nothing else is left");
        mask.allow(5);
        mask.forbid_if_others([3, 33, 7]);
        let allowed: Vec<u32> = (0..40).filter(|id| mask.is_allowed(*id)).collect();
        assert_eq!(allowed, [5]);
    }
}
