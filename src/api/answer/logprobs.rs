//! The engine's log-probabilities as clients see them: with the tokens' bytes.

use super::event::{Token, TokenLogprob};
use crate::engine::TokenLogprobs;
use crate::text::Tokenizer;

/// A token with what it stands for.
pub(super) fn token(tokenizer: &Tokenizer, id: u32) -> Token {
    Token {
        id,
        bytes: tokenizer.token_bytes(id).to_vec(),
        is_special: tokenizer.is_special(id),
    }
}

pub(in crate::api) fn token_logprob(tokenizer: &Tokenizer, entry: TokenLogprobs) -> TokenLogprob {
    let top = entry.top.into_iter();
    TokenLogprob {
        token: token(tokenizer, entry.token_id),
        logprob: entry.logprob,
        top: top
            .map(|(id, logprob)| (token(tokenizer, id), logprob))
            .collect(),
    }
}
