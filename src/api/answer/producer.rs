//! The producer of an answer, whichever kind of answer a request asks for.

use super::deliver::{Produce, Sink};
use super::plain::PlainAnswer;
use crate::api::error::ApiError;
use crate::api::generation::Generation;
use crate::api::searching::answer::SearchAnswer;
use crate::api::state::AppState;

/// A plain answer or a searched one.
pub(in crate::api) struct Producer(Kind);

enum Kind {
    Plain(Box<PlainAnswer>),
    Search(Box<SearchAnswer>),
}

impl Producer {
    /// Checks the rest of a request, and gives its prompts to the engine.
    pub async fn start(state: &AppState, mut generation: Generation) -> Result<Self, ApiError> {
        match generation.search.take() {
            Some(request) => {
                let answer = SearchAnswer::start(state, generation, request).await?;
                Ok(Self(Kind::Search(Box::new(answer))))
            }
            None => {
                let answer = PlainAnswer::start(state, generation)?;
                Ok(Self(Kind::Plain(Box::new(answer))))
            }
        }
    }
}

impl Produce for Producer {
    async fn run(self, sink: &mut Sink<'_>) -> Result<(), ApiError> {
        match self.0 {
            Kind::Plain(answer) => answer.run(sink).await,
            Kind::Search(answer) => answer.run(sink).await,
        }
    }
}
