//! From a request to what the engine is to do.

use serde_json::Value;

use super::fit;
use super::history::{self, Resolved};
use super::items::{self, Item};
use super::request::{ONE_ANSWER, ResponsesRequest, refuse_if};
use super::translate::Translated;
use crate::api::causes::Causes;
use crate::api::error::ApiError;
use crate::api::generation::Generation;
use crate::api::state::AppState;
use crate::work::Budget;

/// A checked request.
pub(super) struct Prepared {
    /// Without its input.
    pub request: ResponsesRequest,
    pub generation: Generation,
    /// The items of its own input.
    pub input: Vec<Value>,
}

/// Checks a request. `hex` is of the id of its response.
pub(super) async fn prepare(
    state: &AppState,
    mut request: ResponsesRequest,
    hex: &str,
    work: Causes,
) -> Result<Prepared, ApiError> {
    state.ready()?;
    request.check()?;
    let (input, own_hex) = (request.input.take(), hex.to_owned());
    let read = move |_: &Budget| items::read(input, &own_hex);
    let items = work.run(state, "reading the input", read).await?;
    let previous = request.previous_response_id.clone();
    let resolved = history::resolve(state, previous, items, work).await?;
    let work = Causes {
        num_bytes: work.num_bytes.saturating_add(resolved.num_bytes),
        ..work
    };
    let translate = move |_: &Budget| {
        let Resolved {
            before: mut all,
            own,
            ..
        } = resolved;
        all.extend(own.iter().cloned());
        let translated = Translated::new(&request, &all)?;
        Ok((request, translated, own))
    };
    let translated = work.run(state, "reading the input", translate);
    let (request, translated, own) = translated.await?;
    let (most, drops_oldest) = (request.max_output_tokens, request.drops_oldest());
    let generation = fit::prepare(state, translated, most, drops_oldest, work).await?;
    // Chats have more than one name for it.
    let is_one = generation.shared.n.is_none_or(|n| n == 1);
    refuse_if(!is_one, "n", ONE_ANSWER)?;
    let input = own.into_iter().map(|Item { value, .. }| value);
    Ok(Prepared {
        request,
        generation,
        input: input.collect(),
    })
}
