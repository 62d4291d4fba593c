//! From a checked request to the answer that its client asked for.

use axum::response::Response;

use super::deliver::deliver;
use super::producer::Producer;
use crate::api::clock::unix_time;
use crate::api::error::ApiError;
use crate::api::generation::Generation;
use crate::api::state::AppState;
use crate::api::wire::envelope::Head;

/// Answers as the client asked.
pub(in crate::api) async fn answer(
    state: &AppState,
    generation: Generation,
) -> Result<Response, ApiError> {
    let shared = &generation.shared;
    if shared.store == Some(true) && state.traces().is_none() {
        let message = "store: this server keeps no traces: start it with --trace-db FILE, or leave \
            store out";
        return Err(ApiError::invalid("store", message));
    }
    let is_stream = shared.stream;
    let wire = generation.wire;
    let head = Head {
        id: match &shared.request_id {
            Some(id) => wire.id(id),
            None => wire.new_id(),
        },
        model: generation.target.name.clone(),
        created: unix_time(),
        n: usize::try_from(shared.n.unwrap_or(1)).unwrap_or(usize::MAX),
        include_usage: shared.include_usage,
        tells_trace: shared.store == Some(true),
        shows_prompt_logprobs: shared.prompt_logprobs.is_some(),
        is_legacy: generation.shape.is_legacy,
        shows_special: !shared.skip_special,
        names_tokens_by_id: shared.tokens_as_ids,
        tells_token_ids: shared.returns_token_ids,
    };
    let format = wire.format(head);
    let producer = Producer::start(state, generation).await?;
    deliver(producer, format, is_stream).await
}
