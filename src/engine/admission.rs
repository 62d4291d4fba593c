//! What every backend asks of a request before it is queued.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::request::{EngineConfig, EngineError, GenerateRequest, SamplingParams};

/// Whether the request fits the model and the limits.
pub(super) fn check_request(
    request: &GenerateRequest,
    config: &EngineConfig,
    vocab_size: usize,
) -> Result<(), EngineError> {
    let num_tokens = request.prompt_token_ids.len();
    if num_tokens == 0 {
        return Err(EngineError::EmptyPrompt);
    }
    if num_tokens >= config.max_model_len {
        return Err(EngineError::PromptTooLong {
            num_tokens,
            max_model_len: config.max_model_len,
        });
    }
    check_params(request.n, &request.params, config, vocab_size)?;
    if let Some(pooling) = &request.pooling {
        let is_ascending = pooling.positions.is_sorted_by(|a, b| a < b);
        let last = pooling.positions.last();
        if !is_ascending || last.is_none_or(|last| *last >= num_tokens) || request.n != 1 {
            return Err(EngineError::PoolingPositions { num_tokens });
        }
    }
    let pooled = request
        .pooling
        .iter()
        .flat_map(|pooling| &pooling.token_ids);
    let token_ids = request.prompt_token_ids.iter();
    check_tokens(
        token_ids.chain(pooled).chain(&request.prediction),
        vocab_size,
    )
}

/// Whether so many continuations may be sampled so.
pub(super) fn check_params(
    n: usize,
    params: &SamplingParams,
    config: &EngineConfig,
    vocab_size: usize,
) -> Result<(), EngineError> {
    let limit = config.max_num_seqs;
    if n == 0 || n > limit {
        return Err(EngineError::TooManySequences { n, limit });
    }
    let biased = params.logit_bias.iter().map(|(token_id, _)| token_id);
    check_tokens(biased.chain(&params.stop_token_ids), vocab_size)
}

fn check_tokens<'a>(
    mut token_ids: impl Iterator<Item = &'a u32>,
    vocab_size: usize,
) -> Result<(), EngineError> {
    match token_ids.find(|id| **id as usize >= vocab_size) {
        Some(token_id) => Err(EngineError::TokenOutOfRange {
            token_id: *token_id,
            vocab_size,
        }),
        None => Ok(()),
    }
}

/// Reserves `n` places in the waiting queue or none.
pub(super) fn admit(num_waiting: &AtomicUsize, n: usize, limit: usize) -> Result<(), EngineError> {
    let reserve = |waiting: usize| (waiting + n <= limit.max(n)).then_some(waiting + n);
    num_waiting
        .fetch_update(Ordering::AcqRel, Ordering::Acquire, reserve)
        .map(|_| ())
        .map_err(|waiting| EngineError::Overloaded { waiting, limit })
}
