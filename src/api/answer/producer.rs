//! The producer of an answer, whichever kind of answer a request asks for.

use super::deliver::{Produce, Sink};
use super::outcome::Outcome;
use super::plain::PlainAnswer;
use crate::api::error::ApiError;
use crate::api::generation::Generation;
use crate::api::searching::answer::SearchAnswer;
use crate::api::state::AppState;

/// A plain answer or a searched one, which counts what becomes of it.
pub(in crate::api) struct Producer {
    kind: Kind,
    outcome: Outcome,
}

enum Kind {
    Plain(Box<PlainAnswer>),
    Search(Box<SearchAnswer>),
}

impl Producer {
    /// Checks the rest of a request, and gives its prompts to the engine.
    pub async fn start(state: &AppState, mut generation: Generation) -> Result<Self, ApiError> {
        let kind = match generation.search.take() {
            Some(request) => {
                let answer = SearchAnswer::start(state, generation, request).await?;
                Kind::Search(Box::new(answer))
            }
            None => Kind::Plain(Box::new(PlainAnswer::start(state, generation)?)),
        };
        let outcome = Outcome::pending(state);
        Ok(Self { kind, outcome })
    }
}

impl Produce for Producer {
    async fn run(self, sink: &mut Sink<'_>) -> Result<(), ApiError> {
        let result = match self.kind {
            Kind::Plain(answer) => answer.run(sink).await,
            Kind::Search(answer) => answer.run(sink).await,
        };
        self.outcome.known(result.as_ref().map(|()| ()));
        result
    }
}
