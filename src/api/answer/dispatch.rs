//! Whether a request is searched or answered plainly.

use axum::response::Response;

use super::deliver::deliver;
use super::outcome::Outcome;
use super::plain::PlainAnswer;
use crate::api::clock::unix_time;
use crate::api::error::ApiError;
use crate::api::generation::Generation;
use crate::api::searching::answer::SearchAnswer;
use crate::api::state::AppState;
use crate::api::wire::envelope::Head;

/// Answers as the client asked.
pub(in crate::api) async fn answer(
    state: &AppState,
    mut generation: Generation,
) -> Result<Response, ApiError> {
    let searched = generation.search.take();
    let shared = &generation.shared;
    let is_stream = shared.stream;
    let wire = generation.wire;
    let head = Head {
        id: wire.new_id(),
        model: generation.target.name.clone(),
        created: unix_time(),
        n: usize::try_from(shared.n.unwrap_or(1)).unwrap_or(usize::MAX),
        include_usage: shared.include_usage,
        tells_trace: shared.store == Some(true),
        shows_prompt_logprobs: shared.prompt_logprobs.is_some(),
        is_legacy: generation.shape.is_legacy,
    };
    let format = wire.format(head);
    match searched {
        Some(request) => {
            let producer = SearchAnswer::start(state, generation, request).await?;
            deliver(producer, format, is_stream, Outcome::pending(state)).await
        }
        None => {
            let producer = PlainAnswer::start(state, generation)?;
            deliver(producer, format, is_stream, Outcome::pending(state)).await
        }
    }
}
