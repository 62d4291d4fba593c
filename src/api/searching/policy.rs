//! How a searched request samples.

use std::sync::{Arc, OnceLock};
use std::time::Instant;

use crate::api::generation::Generation;
use crate::api::served::Served;
use crate::engine::{SharedDrafts, TokenBudget};
use crate::search::EnginePolicy;

/// Temperature of a search that names none (ReST-MCTS*): samples of one prompt must differ.
const DEFAULT_TEMPERATURE: f32 = 0.7;

/// The policy of a checked request. `deadline` and `tokens` are limits beside the request's own.
pub(in crate::api) fn policy_of(
    served: &Served,
    generation: Generation,
    deadline: Option<Instant>,
    tokens: Option<u64>,
) -> EnginePolicy {
    let Generation {
        mut prompts,
        mut params,
        stops,
        shared,
        shape,
        code,
        speculation,
        adaptation: _,
        tenant,
        target,
        deadline: latest,
        ..
    } = generation;
    // A `top_p` of 0 is greedy.
    if shared.temperature.is_none() && params.temperature > 0.0 {
        params.temperature = DEFAULT_TEMPERATURE;
    }
    let prompt_token_ids = prompts.pop().unwrap_or_default();
    let (code, mut before) = code.map(|it| (it.tool, it.before)).unzip();
    let before = before.get_or_insert_default();
    // An answer that fills the context has ended: nothing may be asked to follow it.
    let context = served.engine.config().max_model_len;
    let room = context.saturating_sub(prompt_token_ids.len()).max(1);
    params.max_tokens = params.max_tokens.min(room);
    EnginePolicy {
        engine: served.engine.clone(),
        group: served.engine.new_group(),
        speculative: speculation.speculative,
        prediction: speculation.prediction,
        steering: OnceLock::new(),
        drafts: SharedDrafts::default(),
        tokenizer: served.tokenizer.clone(),
        prompt_token_ids,
        params,
        constraint: shape.constraint,
        stops,
        include_stop: shared.include_stop,
        skip_special: shared.skip_special,
        visible: shape.reading.visible,
        code,
        code_before: before.pop().unwrap_or_default(),
        tenant: tenant.0,
        cache_salt: tenant.cache_salt(shared.cache_salt.as_deref()),
        adapter: target.adapter_id(),
        deadline: deadline.into_iter().chain(latest.instant()).min(),
        budget: Arc::new(TokenBudget::new(tokens.unwrap_or(u64::MAX))),
        num_cached_tokens: OnceLock::new(),
    }
}
