//! Scores of pairs, by whatever is served: a cross-encoder, vectors' cosines, or a model's yes or
//! no.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::api::causes::Causes;
use crate::api::embeddings::embed::{Reading, at, embed, grouped, max_len, prefix};
use crate::api::embeddings::request::EmbeddingInput;
use crate::api::embeddings::target::{self, Target};
use crate::api::error::ApiError;
use crate::api::pooling::refused;
use crate::api::served::Served;
use crate::api::state::AppState;
use crate::api::tenant::Tenant;
use crate::encoding::{EncoderKind, Limit, Sequence, ServedEncoder};
use crate::text::TokenizerError;
use crate::work::Budget;

/// The judge's question when a request gives no instruction.
const INSTRUCTION: &str =
    "Given a search query, judge whether the document answers it or helps to answer it.";
/// Tokens that a judge's prompt has beside the query, the instruction and the document, roughly.
const PROMPT_TOKENS: usize = 256;

/// What is compared with what.
pub(super) struct Pairs {
    pub queries: Vec<String>,
    pub documents: Vec<String>,
    /// Places in both.
    pub pairs: Vec<(usize, usize)>,
    /// Names of the fields that queries and documents came in.
    pub params: [&'static str; 2],
    pub cut: Cut,
    pub instruction: Option<String>,
}

/// What happens to texts that are too long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cut {
    /// They are refused.
    Refuse,
    /// They lose their ends, so that the model reads so many tokens at most.
    To(usize),
}

/// One score a pair, and the tokens that were read.
pub(super) struct Relevance {
    pub scores: Vec<f64>,
    pub num_tokens: usize,
}

/// The model that ranks: the one that a request names, else a cross-encoder, an encoder, the model
/// that writes.
pub(super) fn find<'s>(
    state: &'s AppState,
    tenant: Tenant,
    model: Option<&str>,
) -> Result<Target<'s>, ApiError> {
    fn default(state: &AppState) -> Option<&ServedEncoder> {
        let encoders = state.encoders();
        encoders.cross_encoder().or_else(|| encoders.embedder())
    }
    target::find(state, tenant, model, default)
}

pub(super) async fn relevance(
    state: &AppState,
    target: &Target<'_>,
    pairs: Pairs,
    work: Causes,
) -> Result<Relevance, ApiError> {
    match target {
        Target::Encoder(encoder) if encoder.kind == EncoderKind::CrossEncoder => {
            by_cross_encoder(state, encoder, pairs, work).await
        }
        Target::Encoder(_) => by_cosine(state, target, pairs, work).await,
        Target::Decoder(served, target) => {
            if let Some(adapter) = &target.adapter {
                let message = format!("{} ranks nothing: name the model", adapter.identity.name);
                return Err(ApiError::invalid("model", message));
            }
            by_judge(state, served, pairs, work).await
        }
    }
}

async fn by_cross_encoder(
    state: &AppState,
    encoder: &ServedEncoder,
    pairs: Pairs,
    work: Causes,
) -> Result<Relevance, ApiError> {
    no_instruction(&pairs)?;
    let limit = match pairs.cut {
        Cut::Refuse => encoder.limit(),
        Cut::To(most) => Limit::Cut(most.min(encoder.max_len)),
    };
    let pairs = Arc::new(pairs);
    let mut sequences = Vec::with_capacity(pairs.pairs.len());
    for group in groups(&pairs) {
        let (own, name, pairs) = (state.clone(), encoder.name.clone(), Arc::clone(&pairs));
        let read = move |budget: &Budget| {
            let encoder = own.encoders().named(&name);
            let encoder =
                encoder.ok_or_else(|| ApiError::internal("the encoder is gone; this is a bug"))?;
            let may_go_on = || budget.may_go_on();
            let encode = |(query, document): &(usize, usize)| {
                let texts = [&*pairs.queries[*query], &*pairs.documents[*document]];
                let encoded = encoder.tokenizer.encode_pair(texts, limit, &may_go_on);
                encoded.map_err(|error| at(pairs.params[1], error))
            };
            let sequences = group.iter().map(encode);
            sequences.collect::<Result<Vec<Sequence>, ApiError>>()
        };
        sequences.extend(work.run(state, "reading the documents", read).await?);
    }
    let num_tokens = sequences.iter().map(|it| it.token_ids.len()).sum();
    let (tenant, deadline) = (work.tenant.0, work.deadline.instant());
    let logits = encoder.handle.run(sequences, tenant, deadline).await?;
    let score = |logits: &Vec<f32>| sigmoid(logits.first().copied().unwrap_or(0.0));
    Ok(Relevance {
        scores: logits.iter().map(score).collect(),
        num_tokens,
    })
}

fn sigmoid(logit: f32) -> f64 {
    1.0 / (1.0 + f64::from(-logit).exp())
}

async fn by_cosine(
    state: &AppState,
    target: &Target<'_>,
    pairs: Pairs,
    work: Causes,
) -> Result<Relevance, ApiError> {
    no_instruction(&pairs)?;
    let num_queries = pairs.queries.len();
    let reading = Reading {
        add_special_tokens: true,
        cut_to: match pairs.cut {
            Cut::Refuse => None,
            Cut::To(most) => Some(most.min(max_len(target))),
        },
    };
    let texts = pairs.queries.into_iter().chain(pairs.documents).collect();
    let made = embed(state, target, EmbeddingInput::Texts(texts), reading, work).await;
    let made = made.map_err(|error| ApiError {
        param: error.param.map(|_| pairs.params[1].to_owned()),
        ..error
    })?;
    let (queries, documents) = made.vectors.split_at(num_queries);
    let score =
        |(query, document): &(usize, usize)| cosine(&queries[*query], &documents[*document]);
    Ok(Relevance {
        scores: pairs.pairs.iter().map(score).collect(),
        num_tokens: made.num_tokens,
    })
}

/// The cosine of two vectors; 0 of one without a length.
fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| -> f64 {
        a.iter()
            .zip(b)
            .map(|(a, b)| f64::from(*a) * f64::from(*b))
            .sum()
    };
    let lengths = (dot(a, a) * dot(b, b)).sqrt();
    if lengths > 0.0 {
        dot(a, b) / lengths
    } else {
        0.0
    }
}

fn no_instruction(pairs: &Pairs) -> Result<(), ApiError> {
    match &pairs.instruction {
        None => Ok(()),
        Some(_) => Err(ApiError::invalid(
            "instruction",
            "an encoder reads no instruction: leave it out, or name the model that writes",
        )),
    }
}

async fn by_judge(
    state: &AppState,
    served: &Served,
    pairs: Pairs,
    work: Causes,
) -> Result<Relevance, ApiError> {
    let Some(judge) = &served.rewards.judge else {
        return Err(ApiError::unsupported_by(
            state.model_name(),
            "it has no chat template to be asked by: start the server with --chat-template, or with \
             --rerank-model or --embedding-model",
        ));
    };
    let context = state.reward_context(work.tenant, None);
    let pairs = Arc::new(pairs);
    let mut all = Relevance {
        scores: Vec::with_capacity(pairs.pairs.len()),
        num_tokens: 0,
    };
    for group in groups(&pairs) {
        let (own, part) = (state.clone(), Arc::clone(&pairs));
        let write = move |budget: &Budget| messages(own.ready()?, &part, &group, budget);
        let messages = work.run(state, "reading the documents", write).await?;
        let judged = judge.judge(messages, &context, work.deadline.instant());
        let judged = judged
            .await
            .map_err(|error| refused(pairs.params[1], error))?;
        all.scores.extend(judged.values);
        all.num_tokens += judged.num_tokens;
    }
    Ok(all)
}

/// Pairs in parts that are each worth a piece of work.
fn groups(pairs: &Pairs) -> Vec<Vec<(usize, usize)>> {
    grouped(pairs.pairs.clone(), |(query, document)| {
        pairs.queries[*query].len() + pairs.documents[*document].len()
    })
}

/// What the judge reads: the shape that rerankers among language models are trained on, query
/// first, so that the documents of one query share what is computed of it.
fn messages(
    served: &Served,
    pairs: &Pairs,
    group: &[(usize, usize)],
    budget: &Budget,
) -> Result<Vec<String>, ApiError> {
    let instruction = pairs.instruction.as_deref().unwrap_or(INSTRUCTION);
    let count = |text: &str| -> Result<usize, ApiError> {
        let ids = tokens(served, text, budget);
        Ok(ids.map_err(|error| at(pairs.params[0], error))?.len())
    };
    let of_instruction = count(instruction)?;
    // One query has all documents, or each has its own.
    let queries: BTreeSet<usize> = group.iter().map(|(query, _)| *query).collect();
    let counted = queries
        .into_iter()
        .map(|at| Ok((at, count(&pairs.queries[at])?)));
    let of_queries = counted.collect::<Result<BTreeMap<usize, usize>, ApiError>>()?;
    let context = served.engine.config().max_model_len;
    let write = |(query, document): &(usize, usize)| {
        let document = &pairs.documents[*document];
        let beside = PROMPT_TOKENS + of_instruction + of_queries[query];
        let document = match pairs.cut {
            Cut::Refuse => document.clone(),
            Cut::To(most) => {
                let room = context.saturating_sub(beside).clamp(1, most.max(1));
                cut(served, document, room, budget)?
            }
        };
        Ok(format!(
            "Judge whether the Document meets the requirements based on the Query and the Instruct \
             provided. Note that the answer can only be \"yes\" or \"no\".\n\n\
             <Instruct>: {instruction}\n<Query>: {}\n<Document>: {document}",
            pairs.queries[*query]
        ))
    };
    group.iter().map(write).collect()
}

fn tokens(served: &Served, text: &str, budget: &Budget) -> Result<Vec<u32>, TokenizerError> {
    let max_tokens = served.engine.config().max_model_len;
    let may_go_on = || budget.may_go_on();
    let tokenizer = &served.tokenizer;
    tokenizer.encode_within(text, false, false, max_tokens, &may_go_on)
}

/// The first `room` tokens of a text.
fn cut(served: &Served, text: &str, room: usize, budget: &Budget) -> Result<String, ApiError> {
    let may_go_on = || budget.may_go_on();
    let tokenizer = &served.tokenizer;
    let text = prefix(text, room);
    let ids = tokenizer.encode_within(text, false, false, usize::MAX, &may_go_on)?;
    Ok(match ids.len() <= room {
        true => text.to_owned(),
        false => tokenizer.decode(&ids[..room], false),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cosines_are_right() {
        assert_eq!(cosine(&[3.0, 4.0], &[3.0, 4.0]), 1.0);
        assert_eq!(cosine(&[1.0, 0.0], &[0.0, 2.0]), 0.0);
        assert_eq!(cosine(&[1.0, 0.0], &[-2.0, 0.0]), -1.0);
        assert_eq!(cosine(&[0.0, 0.0], &[1.0, 0.0]), 0.0);
        assert_eq!(sigmoid(0.0), 0.5);
        assert!(sigmoid(-200.0) >= 0.0 && sigmoid(200.0) <= 1.0);
    }
}
