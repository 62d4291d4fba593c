//! One token from one row of logits on the host.

use super::{Alternatives, SampleSpec, Sampled};
use crate::engine::logprobs::token_logprobs;
use crate::engine::request::TokenMask;
use crate::engine::sampler::{SampleError, Sampler, confidence};

/// What `spec` draws from `row`, with all that it reports beside the token.
pub(super) fn draw(
    sampler: &mut Sampler,
    spec: &SampleSpec,
    masks: &[TokenMask],
    row: &[f32],
    hidden_state: impl FnOnce(usize) -> Option<Vec<f32>>,
) -> Sampled {
    let mask = spec.mask.map(|index| &masks[index as usize]);
    let token_id = match sampler.sample(spec, mask, row) {
        Ok(token_id) => token_id,
        Err(SampleError::NotFinite) => return Sampled::NotFinite,
        Err(SampleError::NothingAllowed) => return Sampled::NothingAllowed,
    };
    let num_top = spec.num_logprobs;
    let alternatives = spec.num_alternatives.map(|count| Alternatives {
        probability: confidence(row, token_id),
        others: (ponder_kernels::logits::top(row, 1 + count).into_iter())
            .filter(|other| *other != token_id)
            .map(|other| (other, confidence(row, other)))
            .collect(),
    });
    Sampled::Token {
        token_id,
        logprobs: num_top.and_then(|num_top| token_logprobs(row, token_id, num_top)),
        hidden_state: (spec.hidden_state)
            .then(|| hidden_state(spec.row as usize))
            .flatten(),
        alternatives,
    }
}
