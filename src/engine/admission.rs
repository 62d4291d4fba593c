//! What every backend asks of a request before it is queued.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

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
    // What is only read needs no place for a token after it.
    let num_after = usize::from(request.pooling.is_none());
    if num_tokens + num_after > config.max_model_len {
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
    let limit = config.max_num_seqs_of_one();
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

/// What each tenant has running and waiting, of what one may have.
#[derive(Debug)]
pub(super) struct Shares {
    limit: usize,
    held: Mutex<HashMap<u64, usize>>,
}

impl Shares {
    pub fn new(limit: usize) -> Self {
        Self {
            limit,
            held: Mutex::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u64, usize>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Holds `n` sequences of a tenant until the share is dropped: by the engine, once they have
    /// ended.
    pub fn take(self: &Arc<Self>, tenant: u64, n: usize) -> Result<Share, EngineError> {
        let mut held = self.lock();
        let own = held.get(&tenant).copied().unwrap_or(0);
        if own + n > self.limit.max(n) {
            return Err(EngineError::Overloaded {
                waiting: own,
                limit: self.limit,
            });
        }
        held.insert(tenant, own + n);
        Ok(Share {
            shares: Arc::clone(self),
            tenant,
            n,
        })
    }
}

/// A part of a tenant's share.
#[derive(Debug)]
pub(super) struct Share {
    shares: Arc<Shares>,
    tenant: u64,
    n: usize,
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut held = self.shares.lock();
        if let Some(own) = held.get_mut(&self.tenant) {
            *own = own.saturating_sub(self.n);
            if *own == 0 {
                held.remove(&self.tenant);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tenant_holds_its_share_and_no_more() {
        let shares = Arc::new(Shares::new(4));
        let first = shares.take(1, 3).unwrap();
        assert!(shares.take(1, 2).is_err());
        let _other = shares.take(2, 4).unwrap();
        drop(first);
        // A request wider than the share is admitted alone.
        let wide = shares.take(1, 6).unwrap();
        assert!(shares.take(1, 1).is_err());
        drop(wide);
        assert_eq!(shares.lock().len(), 1);
    }
}
