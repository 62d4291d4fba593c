//! The tokenizer's vocabulary as the trie that masks are read from.

use std::sync::Arc;

use toktrie::{TokEnv, TokRxInfo, TokTrie, TokenizerEnv};

use super::GrammarError;
use super::limits::MAX_FORCED_BYTES;
use crate::engine::TokenId;
use crate::text::Tokenizer;

/// Longer tokens are left out of grammars: the trie has room for about a thousand bytes.
const MAX_TOKEN_BYTES: usize = 512;

/// A tokenizer's tokens as bytes. Special tokens cannot be written as text: only a grammar that
/// names a special token allows that token.
pub(super) struct Vocabulary {
    env: TokEnv,
    tokenizer: Tokenizer,
    /// Tokens that begin with a digit, and how many of their bytes are leading digits.
    digits: Vec<(TokenId, usize)>,
    max_digits: usize,
}

impl std::fmt::Debug for Vocabulary {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Vocabulary({} tokens)", self.trie().vocab_size())
    }
}

impl Vocabulary {
    /// The model's vocabulary may be larger than the tokenizer's: the ids past it are no tokens.
    pub(super) fn new(tokenizer: &Tokenizer, vocab_size: usize) -> Result<Self, GrammarError> {
        let invalid = |message: &str| Err(GrammarError::Invalid(message.to_owned()));
        let is_known = |id: &TokenId| (*id as usize) < vocab_size;
        let ends = tokenizer.end_of_generation_ids().iter().copied();
        let ends: Vec<TokenId> = ends.filter(is_known).collect();
        let Some(first_end) = ends.first() else {
            return invalid("the tokenizer has no token that ends an answer");
        };
        // The trie keeps 24 bits of an id, of which one value means "no token".
        let Some(vocab_size) = u32::try_from(vocab_size)
            .ok()
            .filter(|size| *size < 1 << 22)
        else {
            return invalid("the vocabulary is too large for grammars");
        };
        let words: Vec<Vec<u8>> = (0..vocab_size).map(|id| word(tokenizer, id)).collect();
        let digits: Vec<(TokenId, usize)> = (0..vocab_size)
            .zip(&words)
            .map(|(id, word)| (id, num_leading_digits(word)))
            .filter(|(_, num_digits)| *num_digits > 0)
            .collect();
        let trie = TokTrie::from(&TokRxInfo::new(vocab_size, *first_end), &words);
        let env = Env {
            trie: trie.with_eos_tokens(&ends),
            tokenizer: tokenizer.clone(),
        };
        Ok(Self {
            env: Arc::new(env),
            tokenizer: tokenizer.clone(),
            max_digits: digits.iter().map(|(_, num)| *num).max().unwrap_or(0),
            digits,
        })
    }

    pub(super) fn env(&self) -> &TokEnv {
        &self.env
    }

    pub(super) fn trie(&self) -> &TokTrie {
        self.env.tok_trie()
    }

    pub(super) fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    pub(super) fn is_end(&self, token_id: TokenId) -> bool {
        self.trie().eos_tokens().contains(&token_id)
    }

    /// The bytes of a token that is no special one.
    pub(super) fn text_bytes(&self, token_id: TokenId) -> &[u8] {
        match self.trie().token(token_id) {
            [TokTrie::SPECIAL_TOKEN_MARKER, ..] => &[],
            bytes => bytes,
        }
    }

    /// Tokens with more than `most` leading digits.
    pub(super) fn longer_digits(&self, most: usize) -> impl Iterator<Item = TokenId> {
        let digits = match most < self.max_digits {
            true => self.digits.as_slice(),
            false => &[],
        };
        let is_longer = move |(id, num): &(TokenId, usize)| (*num > most).then_some(*id);
        digits.iter().filter_map(is_longer)
    }

    /// Tokens of bytes that must come next. The last token is left out if it could as well be
    /// longer.
    pub(super) fn tokenize_forced(&self, bytes: &[u8]) -> Vec<TokenId> {
        let bytes = &bytes[..bytes.len().min(MAX_FORCED_BYTES)];
        let (mut token_ids, _) = self.env.tokenize_bytes_marker(bytes);
        let may_grow = |id: &TokenId| {
            let bytes = self.text_bytes(*id);
            let is_word = bytes.last().is_some_and(|byte| {
                byte.is_ascii_alphanumeric() || !byte.is_ascii() || *byte == b'_'
            });
            is_word && self.trie().has_extensions(bytes)
        };
        if token_ids.last().is_some_and(may_grow) {
            token_ids.pop();
        }
        token_ids
    }
}

/// What the trie has for a token.
fn word(tokenizer: &Tokenizer, id: TokenId) -> Vec<u8> {
    let bytes = tokenizer.token_bytes(id);
    let marker = TokTrie::SPECIAL_TOKEN_MARKER;
    if bytes.len() > MAX_TOKEN_BYTES {
        return Vec::new();
    }
    match bytes {
        _ if tokenizer.is_special(id) || tokenizer.end_of_generation_ids().contains(&id) => {
            [&[marker], bytes].concat()
        }
        // No text has that byte, and longer tokens would count as special ones.
        [first, ..] if *first == marker => Vec::new(),
        _ => bytes.to_vec(),
    }
}

pub(super) fn num_leading_digits(bytes: &[u8]) -> usize {
    bytes.iter().take_while(|b| b.is_ascii_digit()).count()
}

/// What llguidance asks of a tokenizer.
struct Env {
    trie: TokTrie,
    tokenizer: Tokenizer,
}

impl TokenizerEnv for Env {
    fn tok_trie(&self) -> &TokTrie {
        &self.trie
    }

    fn tokenize_bytes(&self, bytes: &[u8]) -> Vec<TokenId> {
        let bytes = &bytes[..bytes.len().min(MAX_FORCED_BYTES)];
        self.trie.tokenize_with_greedy_fallback(bytes, |text| {
            let ids = self
                .tokenizer
                .encode_within(text, false, false, text.len() + 8, &|| true);
            // Some tokenizers put a space before a text: then the longest tokens will do.
            match ids {
                Ok(ids) if self.trie.decode_raw(&ids) == text.as_bytes() => ids,
                _ => self.trie.greedy_tokenize(text.as_bytes()),
            }
        })
    }

    /// Masks allow every tokenization of a forced text: which one the model writes is its own
    /// choice.
    fn tokenize_is_canonical(&self) -> bool {
        false
    }
}
