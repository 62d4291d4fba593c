//! Whether a request is searched or answered plainly.

use axum::response::Response;

use super::best::BestOf;
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
    };
    let n = head.n;
    let format = wire.format(head);
    let best_of = generation.shared.best_of;
    match searched {
        Some(_) if best_of.is_some() => {
            let message = "best_of cannot be combined with search: leave one of them out";
            Err(ApiError::invalid("best_of", message))
        }
        Some(request) => {
            let producer = SearchAnswer::start(state, generation, request).await?;
            deliver(producer, format, is_stream, Outcome::pending(state)).await
        }
        None if best_of.is_some() => {
            let shows_logprobs = generation.params.logprobs.is_some();
            generation.params.logprobs.get_or_insert(0);
            generation.shared.n = best_of;
            let producer = BestOf {
                best_of: PlainAnswer::check_n(state, "best_of", best_of)?,
                samples: PlainAnswer::start(state, generation)?,
                n,
                shows_logprobs,
            };
            deliver(producer, format, is_stream, Outcome::pending(state)).await
        }
        None => {
            let producer = PlainAnswer::start(state, generation)?;
            deliver(producer, format, is_stream, Outcome::pending(state)).await
        }
    }
}
