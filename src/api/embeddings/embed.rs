//! From texts to vectors.

use super::decoder;
pub(in crate::api) use super::decoder::prefix;
use super::request::EmbeddingInput;
use super::target::Target;
use crate::api::causes::Causes;
use crate::api::error::ApiError;
use crate::api::served::Served;
use crate::api::state::AppState;
use crate::encoding::{EncoderKind, Limit, Sequence, ServedEncoder};
use crate::text::TokenizerError;
use crate::work::Budget;

/// Text of one piece of work: its tokens take a tenth of a second.
const PIECE_BYTES: usize = 256 << 10;

/// How texts become tokens.
#[derive(Debug, Clone, Copy)]
pub(in crate::api) struct Reading {
    pub add_special_tokens: bool,
    /// Tokens that longer texts are cut to.
    pub cut_to: Option<usize>,
}

/// Vectors as the model makes them, not normalised, and the tokens that were read.
pub(in crate::api) struct Vectors {
    pub vectors: Vec<Vec<f32>>,
    pub num_tokens: usize,
}

/// Values of a model's vectors.
///
/// # Errors
/// Where the model makes none.
pub(in crate::api) fn vector_len(target: &Target<'_>) -> Result<usize, ApiError> {
    match target {
        Target::Encoder(encoder) => match encoder.kind {
            EncoderKind::Embedder(_) => Ok(encoder.config.hidden_size),
            EncoderKind::CrossEncoder => Err(ApiError::unsupported_by(
                &encoder.name,
                "it scores pairs of texts (/v1/rerank, /score) and makes no vectors",
            )),
        },
        Target::Decoder(served, _) => {
            decoder::check(served)?;
            Ok(served.engine.model_info().hidden_size)
        }
    }
}

/// Most tokens of a text.
pub(in crate::api) fn max_len(target: &Target<'_>) -> usize {
    match target {
        Target::Encoder(encoder) => encoder.max_len,
        Target::Decoder(served, _) => decoder::max_len(served),
    }
}

/// Tokenises texts where that delays nobody, and has the model read them.
pub(in crate::api) async fn embed(
    state: &AppState,
    target: &Target<'_>,
    input: EmbeddingInput,
    reading: Reading,
    work: Causes,
) -> Result<Vectors, ApiError> {
    let sequences = tokenise(state, target, input, reading, work).await?;
    let num_tokens = sequences.iter().map(Vec::len).sum();
    let (tenant, deadline) = (work.tenant, work.deadline);
    let vectors = match target {
        Target::Encoder(encoder) => {
            let sequences = sequences.into_iter().map(Sequence::whole).collect();
            let vectors = encoder.handle.run(sequences, tenant.0, deadline.instant());
            vectors.await?
        }
        Target::Decoder(served, target) => {
            let job = decoder::Job {
                pooling: state.decoder_pooling(),
                adapter: target.adapter.as_ref().map(|adapter| adapter.id),
                tenant,
                deadline,
            };
            let vectors = decoder::embed(served, sequences, job);
            deadline.limit(vectors).await??
        }
    };
    Ok(Vectors {
        vectors,
        num_tokens,
    })
}

/// The tokens of every text. A request may bring more of them than one piece of work may take time
/// for: each piece is a part of them.
async fn tokenise(
    state: &AppState,
    target: &Target<'_>,
    input: EmbeddingInput,
    reading: Reading,
    work: Causes,
) -> Result<Vec<Vec<u32>>, ApiError> {
    let encoder_name = match target {
        Target::Encoder(encoder) => Some(encoder.name.clone()),
        Target::Decoder(..) => None,
    };
    let mut all: Vec<Vec<u32>> = Vec::new();
    let (parts, is_many) = parts(input);
    for (part, num_bytes) in parts {
        let (own, name) = (state.clone(), encoder_name.clone());
        let first = all.len();
        let place = move |index: usize| match is_many {
            true => format!("input[{}]", first + index),
            false => "input".to_owned(),
        };
        let read = move |budget: &Budget| match name {
            Some(name) => match own.encoders().named(&name) {
                Some(encoder) => for_encoder(encoder, part, reading, budget, &place),
                None => Err(ApiError::internal("the encoder is gone; this is a bug")),
            },
            None => for_decoder(own.ready()?, part, reading, budget, &place),
        };
        let work = Causes { num_bytes, ..work };
        all.extend(work.run(state, "reading the input", read).await?);
    }
    Ok(all)
}

/// Texts, or token ids in their place.
enum Part {
    Texts(Vec<String>),
    Lists(Vec<Vec<u32>>),
}

/// An input in parts that are each worth a piece of work, with their bytes; whether it is a list.
fn parts(input: EmbeddingInput) -> (Vec<(Part, usize)>, bool) {
    let lists = |lists: Vec<Vec<u32>>| {
        let num_bytes = lists.iter().map(|list| size_of_val(&**list)).sum();
        vec![(Part::Lists(lists), num_bytes)]
    };
    match input {
        EmbeddingInput::Text(text) => {
            let num_bytes = text.len();
            (vec![(Part::Texts(vec![text]), num_bytes)], false)
        }
        EmbeddingInput::Tokens(tokens) => (lists(vec![tokens]), false),
        EmbeddingInput::TokenLists(all) => (lists(all), true),
        EmbeddingInput::Texts(texts) => {
            let groups = grouped(texts, |text| text.len());
            let sized = |group: Vec<String>| {
                let num_bytes = group.iter().map(String::len).sum();
                (Part::Texts(group), num_bytes)
            };
            (groups.into_iter().map(sized).collect(), true)
        }
    }
}

/// Items in groups of about [`PIECE_BYTES`] each, in their order.
pub(in crate::api) fn grouped<T>(items: Vec<T>, num_bytes: impl Fn(&T) -> usize) -> Vec<Vec<T>> {
    let mut groups: Vec<Vec<T>> = Vec::new();
    let mut left = 0;
    for item in items {
        let bytes = num_bytes(&item).max(1);
        match groups.last_mut() {
            Some(group) if bytes <= left => {
                left -= bytes;
                group.push(item);
            }
            _ => {
                left = PIECE_BYTES.saturating_sub(bytes);
                groups.push(vec![item]);
            }
        }
    }
    groups
}

/// An error about the text at `param`.
pub(in crate::api) fn at(param: &str, error: TokenizerError) -> ApiError {
    match error {
        TokenizerError::TooLong { .. } => {
            let message = format!("{error}, or send truncate_prompt_tokens");
            ApiError {
                code: Some("context_length_exceeded"),
                ..ApiError::invalid(param, message)
            }
        }
        error => ApiError {
            param: Some(param.to_owned()),
            ..error.into()
        },
    }
}

fn for_encoder(
    encoder: &ServedEncoder,
    part: Part,
    reading: Reading,
    budget: &Budget,
    place: &dyn Fn(usize) -> String,
) -> Result<Vec<Vec<u32>>, ApiError> {
    let limit = reading.cut_to.map_or(encoder.limit(), Limit::Cut);
    let may_go_on = || budget.may_go_on();
    let add_marks = reading.add_special_tokens;
    let sizes = (encoder.max_len, encoder.config.vocab_size);
    let encode = |text: &str| {
        let sequence = encoder.tokenizer.encode(text, add_marks, limit, &may_go_on);
        Ok(sequence?.token_ids)
    };
    read(part, reading, sizes, place, encode)
}

fn for_decoder(
    served: &Served,
    part: Part,
    reading: Reading,
    budget: &Budget,
    place: &dyn Fn(usize) -> String,
) -> Result<Vec<Vec<u32>>, ApiError> {
    let tokenizer = &served.tokenizer;
    let may_go_on = || budget.may_go_on();
    let max_len = decoder::max_len(served);
    let special = reading.add_special_tokens;
    let encode = |text: &str| match reading.cut_to {
        None => tokenizer.encode_within(text, special, true, max_len, &may_go_on),
        Some(most) => {
            let text = decoder::prefix(text, most);
            let ids = tokenizer.encode_within(text, special, true, usize::MAX, &may_go_on);
            ids.map(|mut ids| {
                ids.truncate(most);
                ids
            })
        }
    };
    let vocab_size = served.engine.model_info().vocab_size;
    read(part, reading, (max_len, vocab_size), place, encode)
}

/// The tokens of a part; `encode` cuts texts itself, `place` names the texts in errors.
fn read(
    part: Part,
    reading: Reading,
    (max_len, vocab_size): (usize, usize),
    place: &dyn Fn(usize) -> String,
    encode: impl Fn(&str) -> Result<Vec<u32>, TokenizerError>,
) -> Result<Vec<Vec<u32>>, ApiError> {
    let ids_of = |index: usize, mut ids: Vec<u32>| -> Result<Vec<u32>, ApiError> {
        ids.truncate(reading.cut_to.unwrap_or(usize::MAX));
        if ids.len() > max_len {
            let error = TokenizerError::TooLong {
                max_tokens: max_len,
                num_bytes: size_of_val(&*ids),
            };
            return Err(at(&place(index), error));
        }
        match ids.iter().find(|id| **id as usize >= vocab_size) {
            None => Ok(ids),
            Some(id) => {
                let message = format!("token id {id} is outside the vocabulary of {vocab_size}");
                Err(ApiError::invalid(&place(index), message))
            }
        }
    };
    let all: Vec<Vec<u32>> = match part {
        Part::Texts(texts) => {
            let texts = texts.iter().enumerate();
            let read = |(index, text): (usize, &String)| {
                encode(text).map_err(|error| at(&place(index), error))
            };
            texts.map(read).collect::<Result<_, _>>()?
        }
        Part::Lists(lists) => {
            let lists = lists.into_iter().enumerate();
            let read = |(index, list)| ids_of(index, list);
            lists.map(read).collect::<Result<_, _>>()?
        }
    };
    match all.iter().position(Vec::is_empty) {
        None => Ok(all),
        Some(index) => {
            let param = place(index);
            Err(ApiError::invalid(&param, format!("{param} has no tokens")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_keep_their_order_and_size() {
        let half = PIECE_BYTES / 2;
        let groups = grouped(vec![half, half, 1, PIECE_BYTES * 3, 0, 5], |bytes| *bytes);
        let expected = vec![vec![half, half], vec![1], vec![PIECE_BYTES * 3], vec![0, 5]];
        assert_eq!(groups, expected);
        assert!(grouped(Vec::<usize>::new(), |bytes| *bytes).is_empty());
    }
}
