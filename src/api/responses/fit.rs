//! A conversation that fits the context: as it is or, with `truncation: "auto"`, without its oldest
//! messages.

use std::sync::Arc;

use super::names::renamed;
use super::translate::Translated;
use crate::api::causes::Causes;
use crate::api::error::ApiError;
use crate::api::generation::Generation;
use crate::api::openai::chat;
use crate::api::state::AppState;
use crate::work::Budget;

/// Tokens that an answer of no known length gets room for.
const ROOM: usize = 256;
/// An answer gets no more than this part of the context by dropping messages.
const ROOM_PART: usize = 4;

/// Prepares a request, with as many messages as fit when `drops_oldest`.
pub(super) async fn prepare(
    state: &AppState,
    translated: Translated,
    max_output_tokens: Option<i64>,
    drops_oldest: bool,
    work: Causes,
) -> Result<Generation, ApiError> {
    let context = state.ready()?.engine.config().max_model_len;
    let wanted = max_output_tokens.and_then(|most| usize::try_from(most).ok());
    let room = wanted.unwrap_or(ROOM).min(context / ROOM_PART);
    let fits = |tried: &Result<Generation, ApiError>| match tried {
        Ok(generation) => {
            let mut lengths = generation.prompts.iter().map(Vec::len);
            lengths.all(|length| length.saturating_add(room) <= context)
        }
        // What is wrong for another reason is no better when it is shorter.
        Err(error) => error.code != Some("context_length_exceeded"),
    };
    let translated = Arc::new(translated);
    let whole = attempt(state, &translated, None, work).await;
    if !drops_oldest || fits(&whole) {
        return whole;
    }
    let cuts = translated.conversation.cuts();
    // The longest that fits, else the shortest that was tried.
    let (mut fitting, mut shortest) = (None, whole);
    // From the end, ever more at once: what is tried costs its length, and most of it is too long.
    let (mut low, mut high, mut distance) = (0, cuts.len(), 1);
    let mut is_near = true;
    while low < high {
        let middle = match is_near {
            true => high.saturating_sub(distance).max(low),
            false => low + (high - low) / 2,
        };
        let tried = attempt(state, &translated, Some(cuts[middle]), work).await;
        if fits(&tried) {
            (high, distance) = (middle, distance * 2);
            fitting = Some(tried);
        } else {
            (low, is_near) = (middle + 1, false);
            shortest = tried;
        }
    }
    fitting.unwrap_or(shortest)
}

/// The request with the conversation from a cut on.
async fn attempt(
    state: &AppState,
    translated: &Arc<Translated>,
    cut: Option<usize>,
    work: Causes,
) -> Result<Generation, ApiError> {
    let own = Arc::clone(translated);
    let make = move |_: &Budget| {
        let conversation = match cut {
            None => &own.conversation,
            Some(cut) => &own.conversation.cut_at(cut),
        };
        let chat = own.chat(conversation);
        let chat = chat.map_err(|error| renamed(error, &conversation.sources));
        Ok((chat?, conversation.sources.clone()))
    };
    let (chat, sources) = work.run(state, "reading the input", make).await?;
    let prepared = chat::prepare_sized(state, chat, work).await;
    prepared.map_err(|error| renamed(error, &sources))
}
