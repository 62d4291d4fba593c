//! The requests of a plain answer on their way to the engine.

use std::sync::Arc;

use futures::stream::{BoxStream, SelectAll, StreamExt};

use crate::api::error::ApiError;
use crate::api::generation::Generation;
use crate::api::served::Served;
use crate::engine::{ConstraintError, EngineError, GenerateRequest, RequestId};
use crate::search::{Calling, CodeEvent, Prefix, TextRules};

/// Events of all requests, each with the index of its prompt.
pub(super) type Events = SelectAll<BoxStream<'static, (usize, CodeEvent)>>;

/// Submits every prompt or none.
pub(super) fn submit_all(
    served: &Served,
    generation: &Generation,
    n: usize,
) -> Result<(Events, Vec<RequestId>), ApiError> {
    let engine = &served.engine;
    let salt = generation.shared.cache_salt.as_deref();
    let (mut events, mut ids) = (SelectAll::new(), Vec::new());
    let max_model_len = engine.config().max_model_len;
    let constraint = generation.shape.constraint.as_ref();
    for prompt in &generation.prompts {
        let constraint = constraint.map(|constraint| constraint.after(&[]));
        let mut params = generation.params.clone();
        params.max_tokens = params.max_tokens.clamp(1, max_model_len.max(1));
        let request = GenerateRequest {
            n,
            constraint: constraint.transpose().map_err(refused)?,
            tenant: generation.tenant.0,
            cache_salt: generation.tenant.cache_salt(salt),
            adapter: generation.target.adapter_id(),
            deadline: generation.deadline.instant(),
            speculative: generation.speculation.speculative,
            prediction: generation.speculation.prediction.clone(),
            adaptation: generation.adaptation.clone(),
            media: generation.media.clone(),
            ..GenerateRequest::new(prompt.clone(), params)
        };
        let index = ids.len();
        // A refused prompt drops the streams before it, which aborts them.
        match calling(served, generation, index) {
            None => {
                let stream = engine.submit(request)?;
                ids.push(stream.id());
                let stream = stream.numbered(index);
                let event = |(index, event)| (index, CodeEvent::Engine(event));
                events.push(stream.map(event).boxed());
            }
            Some(calling) => {
                // Requests behind calls count as this one when waiting ones take turns.
                let group = Some(engine.new_group());
                let request = calling.prepare(GenerateRequest { group, ..request });
                let stream = engine.submit(request.clone())?;
                ids.push(stream.id());
                let stream = calling.events(request, stream);
                events.push(stream.map(move |event| (index, event)).boxed());
            }
        }
    }
    Ok((events, ids))
}

/// How the answers to a prompt call code, if they may. A prompt that is only read has no answers.
fn calling(served: &Served, generation: &Generation, prompt: usize) -> Option<Calling> {
    let params = &generation.params;
    let code = generation.code.as_ref().filter(|_| params.max_tokens > 0)?;
    Some(Calling {
        engine: served.engine.clone(),
        tool: Arc::clone(&code.tool),
        rules: TextRules {
            tokenizer: served.tokenizer.clone(),
            stops: generation.stops.clone(),
            include_stop: generation.shared.include_stop,
            skip_special: generation.shared.skip_special,
            visible: generation.shape.reading.visible.clone(),
            min_tokens: params.min_tokens,
        },
        constraint: generation.shape.constraint.clone(),
        prefix: Prefix {
            before: code.before.get(prompt).cloned().unwrap_or_default(),
            ..Prefix::default()
        },
        step: None,
        confidence: None,
    })
}

fn refused(error: ConstraintError) -> ApiError {
    EngineError::Constraint(error.0).into()
}
