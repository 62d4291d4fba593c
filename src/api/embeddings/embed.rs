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

/// Tokenises texts where that delays nobody, and has the model read them. `target` answers for the same
/// request each time.
pub(in crate::api) async fn embed(
    state: &AppState,
    target: &Target<'_>,
    input: EmbeddingInput,
    reading: Reading,
    work: Causes,
) -> Result<Vectors, ApiError> {
    let own = state.clone();
    let encoder_name = match target {
        Target::Encoder(encoder) => Some(encoder.name.clone()),
        Target::Decoder(..) => None,
    };
    let read = move |budget: &Budget| match encoder_name {
        Some(name) => match own.encoders().named(&name) {
            Some(encoder) => for_encoder(encoder, input, reading, budget),
            None => Err(ApiError::internal("the encoder is gone; this is a bug")),
        },
        None => for_decoder(own.ready()?, input, reading, budget),
    };
    let sequences = work.run(state, "reading the input", read).await?;
    let num_tokens = sequences.iter().map(|it| it.token_ids.len()).sum();
    let (tenant, deadline) = (work.tenant, work.deadline);
    let vectors = match target {
        Target::Encoder(encoder) => {
            let vectors = encoder.handle.run(sequences, tenant.0, deadline.instant());
            vectors.await?
        }
        Target::Decoder(served, target) => {
            let prompts = sequences.into_iter().map(|it| it.token_ids).collect();
            let job = decoder::Job {
                pooling: state.decoder_pooling(),
                adapter: target.adapter.as_ref().map(|adapter| adapter.id),
                tenant,
                deadline,
            };
            deadline
                .limit(decoder::embed(served, prompts, job))
                .await??
        }
    };
    Ok(Vectors {
        vectors,
        num_tokens,
    })
}

/// An error about the text at `index` of those that the request brought.
fn at(index: usize, is_many: bool, error: TokenizerError) -> ApiError {
    let param = match is_many {
        true => format!("input[{index}]"),
        false => "input".to_owned(),
    };
    match error {
        TokenizerError::TooLong { .. } => {
            let message = format!("{error}, or send truncate_prompt_tokens");
            ApiError {
                code: Some("context_length_exceeded"),
                ..ApiError::invalid(&param, message)
            }
        }
        error => ApiError {
            param: Some(param),
            ..error.into()
        },
    }
}

fn for_encoder(
    encoder: &ServedEncoder,
    input: EmbeddingInput,
    reading: Reading,
    budget: &Budget,
) -> Result<Vec<Sequence>, ApiError> {
    let limit = reading.cut_to.map_or(encoder.limit(), Limit::Cut);
    let may_go_on = || budget.may_go_on();
    let add_marks = reading.add_special_tokens;
    let encode = |text: &str| encoder.tokenizer.encode(text, add_marks, limit, &may_go_on);
    let vocab_size = encoder.config.vocab_size;
    let sizes = (encoder.max_len, vocab_size);
    let sequences = read(input, reading, sizes, |text| Ok(encode(text)?.token_ids))?;
    let whole = |token_ids: Vec<u32>| Sequence {
        second_from: token_ids.len(),
        token_ids,
    };
    Ok(sequences.into_iter().map(whole).collect())
}

fn for_decoder(
    served: &Served,
    input: EmbeddingInput,
    reading: Reading,
    budget: &Budget,
) -> Result<Vec<Sequence>, ApiError> {
    let tokenizer = &served.tokenizer;
    let may_go_on = || budget.may_go_on();
    let max_len = decoder::max_len(served);
    let encode = |text: &str| {
        let special = reading.add_special_tokens;
        match reading.cut_to {
            None => tokenizer.encode_within(text, special, true, max_len, &may_go_on),
            Some(most) => {
                let text = decoder::prefix(text, most);
                let ids = tokenizer.encode_within(text, special, true, usize::MAX, &may_go_on);
                ids.map(|mut ids| {
                    ids.truncate(most);
                    ids
                })
            }
        }
    };
    let vocab_size = served.engine.model_info().vocab_size;
    let sequences = read(input, reading, (max_len, vocab_size), encode)?;
    let whole = |token_ids: Vec<u32>| Sequence {
        second_from: token_ids.len(),
        token_ids,
    };
    Ok(sequences.into_iter().map(whole).collect())
}

/// The tokens of every text; `encode` cuts texts itself.
fn read(
    input: EmbeddingInput,
    reading: Reading,
    (max_len, vocab_size): (usize, usize),
    encode: impl Fn(&str) -> Result<Vec<u32>, TokenizerError>,
) -> Result<Vec<Vec<u32>>, ApiError> {
    let is_many = matches!(
        input,
        EmbeddingInput::Texts(_) | EmbeddingInput::TokenLists(_)
    );
    let (texts, lists) = match input {
        EmbeddingInput::Text(text) => (vec![text], Vec::new()),
        EmbeddingInput::Texts(texts) => (texts, Vec::new()),
        EmbeddingInput::Tokens(tokens) => (Vec::new(), vec![tokens]),
        EmbeddingInput::TokenLists(lists) => (Vec::new(), lists),
    };
    let mut all = Vec::with_capacity(texts.len() + lists.len());
    for (index, text) in texts.iter().enumerate() {
        all.push(encode(text).map_err(|error| at(index, is_many, error))?);
    }
    for (index, mut list) in lists.into_iter().enumerate() {
        list.truncate(reading.cut_to.unwrap_or(usize::MAX));
        if list.len() > max_len {
            let error = TokenizerError::TooLong {
                max_tokens: max_len,
                num_bytes: list.len() * size_of::<u32>(),
            };
            return Err(at(index, is_many, error));
        }
        if let Some(id) = list.iter().find(|id| **id as usize >= vocab_size) {
            let message = format!("token id {id} is outside the vocabulary of {vocab_size}");
            return Err(ApiError::invalid("input", message));
        }
        all.push(list);
    }
    match all.iter().position(Vec::is_empty) {
        None => Ok(all),
        Some(index) => {
            let param = if is_many {
                format!("input[{index}]")
            } else {
                "input".to_owned()
            };
            Err(ApiError::invalid(&param, format!("{param} has no tokens")))
        }
    }
}
