//! Prompts on their way to token ids: with or without what the model puts around a text, and
//! shortened where the client allows that.

use super::messages::{Prompt, encode};
use super::params::SharedParams;
use crate::api::config::MAX_TOKENIZED;
use crate::api::error::ApiError;
use crate::api::served::Served;
use crate::work::Budget;

/// What stays of a prompt that is too long.
#[derive(Debug, Clone, Copy)]
pub(super) struct Truncation {
    num_kept: usize,
    /// Keep the beginning; otherwise the end.
    keeps_start: bool,
}

impl Truncation {
    /// `None` when the client wants the whole prompt. The answer has room behind what is kept.
    pub fn new(shared: &SharedParams, served: &Served) -> Result<Option<Self>, ApiError> {
        let field = "truncate_prompt_tokens";
        let context = served.engine.config().max_model_len;
        let Some(value) = shared.truncate_prompt_tokens else {
            return match shared.truncation_side {
                None => Ok(None),
                Some(_) => Err(ApiError::invalid(
                    "truncation_side",
                    "truncation_side needs truncate_prompt_tokens",
                )),
            };
        };
        let num_kept = match value {
            -1 => {
                let answer = shared
                    .max_tokens
                    .and_then(|limit| usize::try_from(limit).ok());
                Some(context.saturating_sub(answer.unwrap_or(1).max(1)).max(1))
            }
            _ => usize::try_from(value).ok(),
        };
        let num_kept = num_kept.filter(|kept| (1..=context).contains(kept));
        let num_kept = num_kept.ok_or_else(|| {
            let message = format!("{field} must be -1 or 1 to {context}, not {value}");
            ApiError::invalid(field, message)
        })?;
        let keeps_start = match shared.truncation_side.as_deref() {
            None | Some("left") => false,
            Some("right") => true,
            Some(side) => {
                let message = format!("truncation_side is left or right, not {side:?}");
                return Err(ApiError::invalid("truncation_side", message));
            }
        };
        Ok(Some(Self {
            num_kept,
            keeps_start,
        }))
    }

    /// Shortens a prompt.
    pub fn apply(self, token_ids: &mut Vec<u32>) {
        let num_over = token_ids.len().saturating_sub(self.num_kept);
        match self.keeps_start {
            true => token_ids.truncate(self.num_kept),
            false => drop(token_ids.drain(..num_over)),
        }
    }
}

/// Token ids of a prompt, in which special tokens count.
pub(super) fn encode_prompt(
    served: &Served,
    text: &str,
    add_special: bool,
    truncation: Option<Truncation>,
    budget: &Budget,
) -> Result<Vec<u32>, ApiError> {
    let Some(truncation) = truncation else {
        return encode(served, text, (add_special, true), budget);
    };
    let may_go_on = || budget.may_go_on();
    let tokenizer = &served.tokenizer;
    let encoded = tokenizer.encode_within(text, add_special, true, MAX_TOKENIZED, &may_go_on);
    let mut token_ids = encoded?;
    truncation.apply(&mut token_ids);
    Ok(token_ids)
}

/// The same of a conversation, whose template writes the model's own BOS where it belongs.
pub(super) fn encode_chat(
    served: &Served,
    prompt: &Prompt,
    add_special: bool,
    truncation: Option<Truncation>,
    budget: &Budget,
) -> Result<Vec<u32>, ApiError> {
    let mut token_ids = match truncation {
        None => prompt.encode(served, budget)?,
        Some(_) => prompt.encode_within(served, MAX_TOKENIZED, budget)?,
    };
    let tokenizer = &served.tokenizer;
    if add_special && tokenizer.adds_bos() {
        token_ids.splice(..0, tokenizer.bos_token_id());
    }
    if let Some(truncation) = truncation {
        truncation.apply(&mut token_ids);
    }
    Ok(token_ids)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_side_goes() {
        let apply = |num_kept, keeps_start, mut ids: Vec<u32>| {
            let truncation = Truncation {
                num_kept,
                keeps_start,
            };
            truncation.apply(&mut ids);
            ids
        };
        assert_eq!(apply(2, false, vec![1, 2, 3]), [2, 3]);
        assert_eq!(apply(2, true, vec![1, 2, 3]), [1, 2]);
        assert_eq!(apply(3, false, vec![1, 2, 3]), [1, 2, 3]);
        assert_eq!(apply(9, true, vec![1]), [1]);
        assert!(apply(9, false, Vec::new()).is_empty());
    }
}
