//! Which model a request for vectors or scores means.

use crate::api::adapters::registry::TargetModel;
use crate::api::error::ApiError;
use crate::api::served::Served;
use crate::api::state::AppState;
use crate::api::tenant::Tenant;
use crate::encoding::ServedEncoder;

/// What answers a request for vectors or scores.
pub(in crate::api) enum Target<'s> {
    Encoder(&'s ServedEncoder),
    /// The model that writes answers, with an adapter where the request names one.
    Decoder(&'s Served, TargetModel),
}

impl Target<'_> {
    pub(in crate::api) fn name(&self) -> &str {
        match self {
            Self::Encoder(encoder) => &encoder.name,
            Self::Decoder(_, target) => &target.name,
        }
    }
}

/// The model of this name; `default` of the encoders, or else the model that writes, where the
/// request names none.
///
/// # Errors
/// 404 for other names, 503 while the model loads.
pub(in crate::api) fn find<'s>(
    state: &'s AppState,
    tenant: Tenant,
    model: Option<&str>,
    default: impl Fn(&'s AppState) -> Option<&'s ServedEncoder>,
) -> Result<Target<'s>, ApiError> {
    let encoders = state.encoders();
    let found = match model {
        None => default(state),
        Some(name) => encoders.named(name),
    };
    if let Some(encoder) = found {
        state.check_serving()?;
        return Ok(Target::Encoder(encoder));
    }
    let names = &state.config().served_model_names;
    if encoders.are_alone {
        let is_own = model.is_none_or(|model| names.iter().any(|name| name == model));
        return match encoders.all.first() {
            Some(encoder) if is_own => Ok(Target::Encoder(encoder)),
            _ => Err(ApiError::model_not_found(model.unwrap_or(""), names)),
        };
    }
    let served = state.ready()?;
    let not_found = |model: &str| {
        let encoders = encoders.all.iter().map(|encoder| encoder.name.clone());
        let all: Vec<String> = names.iter().cloned().chain(encoders).collect();
        ApiError::model_not_found(model, &all)
    };
    let target = state.target(tenant, model).map_err(|error| match model {
        Some(model) if error.status == 404 => not_found(model),
        _ => error,
    })?;
    match model {
        // `NAME:STRATEGY` searches, which makes no vectors.
        Some(model) if model != target.name && !names.iter().any(|name| name == model) => {
            Err(not_found(model))
        }
        _ => Ok(Target::Decoder(served, target)),
    }
}
