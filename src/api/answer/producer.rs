//! The producer of an answer, whichever kind of answer a request asks for. It counts what becomes
//! of the answer, once.

use super::best::BestOf;
use super::deliver::{Produce, Sink};
use super::outcome::Outcome;
use super::plain::PlainAnswer;
use crate::api::error::ApiError;
use crate::api::generation::Generation;
use crate::api::searching::answer::SearchAnswer;
use crate::api::state::AppState;

/// A plain answer, the best of several, or a searched one.
pub(in crate::api) struct Producer {
    kind: Kind,
    outcome: Outcome,
    /// The field that asks for a constraint.
    field: Option<String>,
}

enum Kind {
    Plain(Box<PlainAnswer>),
    Best(Box<BestOf<PlainAnswer>>),
    Search(Box<SearchAnswer>),
}

impl Producer {
    /// Checks the rest of a request, and gives its prompts to the engine.
    pub async fn start(state: &AppState, mut generation: Generation) -> Result<Self, ApiError> {
        let best_of = generation.shared.best_of;
        let field = generation.shape.field.take();
        let kind = match generation.search.take() {
            Some(_) if best_of.is_some() => {
                let message = "best_of cannot be combined with search: leave one of them out";
                return Err(ApiError::invalid("best_of", message));
            }
            Some(request) => {
                let answer = SearchAnswer::start(state, generation, request).await?;
                Kind::Search(Box::new(answer))
            }
            None if best_of.is_some() => Kind::Best(Box::new(best(state, generation)?)),
            None => Kind::Plain(Box::new(PlainAnswer::start(state, generation)?)),
        };
        Ok(Self {
            kind,
            field,
            outcome: Outcome::pending(state),
        })
    }
}

impl Produce for Producer {
    async fn run(self, sink: &mut Sink<'_>) -> Result<(), ApiError> {
        let result = match self.kind {
            Kind::Plain(answer) => answer.run(sink).await,
            Kind::Best(answer) => answer.run(sink).await,
            Kind::Search(answer) => answer.run(sink).await,
        };
        self.outcome.known(result.as_ref().err());
        let field = self.field;
        result.map_err(|error| match error.is_of_constraint() {
            true => ApiError {
                param: error.param.or(field),
                ..error
            },
            false => error,
        })
    }
}

/// `best_of` samples of each prompt, of which `n` are sent.
fn best(state: &AppState, mut generation: Generation) -> Result<BestOf<PlainAnswer>, ApiError> {
    let n = PlainAnswer::check_n(state, "n", generation.shared.n)?;
    let best_of = generation.shared.best_of;
    let shows_logprobs = generation.params.logprobs.is_some();
    generation.params.logprobs.get_or_insert(0);
    generation.shared.n = best_of;
    Ok(BestOf {
        best_of: PlainAnswer::check_n(state, "best_of", best_of)?,
        samples: PlainAnswer::start(state, generation)?,
        n,
        shows_logprobs,
    })
}
