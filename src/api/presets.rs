//! Which search a request asks for: by its `search` object, by `NAME:STRATEGY` as the model, or by
//! `reasoning_effort`.

use serde_json::Value;

use super::error::ApiError;
use super::openai::params::SharedParams;
use crate::search::{SearchRequest, Strategy};

/// Separates a model's name from a strategy's.
const SEPARATOR: char = ':';
/// Samples of the presets behind `reasoning_effort`.
const MEDIUM_SAMPLES: usize = 4;
const HIGH_SAMPLES: usize = 16;

/// Splits `NAME:STRATEGY`.
pub(super) fn split_model(model: &str) -> (&str, Option<Strategy>) {
    let found = model.rsplit_once(SEPARATOR).and_then(|(name, suffix)| {
        let strategy = Strategy::ALL.into_iter().find(|s| s.name() == suffix)?;
        Some((name, strategy))
    });
    match found {
        Some((name, strategy)) => (name, Some(strategy)),
        None => (model, None),
    }
}

/// The names under which a model is searched.
pub(super) fn names(model: &str) -> impl Iterator<Item = String> + '_ {
    Strategy::ALL
        .into_iter()
        .map(move |strategy| format!("{model}{SEPARATOR}{}", strategy.name()))
}

/// The search of a request, if it wants one. Its own `search` object wins over the model's name, and that over
/// `reasoning_effort`.
pub(super) fn requested(shared: &SharedParams) -> Result<Option<SearchRequest>, ApiError> {
    match &shared.search {
        None | Some(Value::Null) => {}
        Some(value) => return parse(value),
    }
    if let Some(strategy) = shared
        .model
        .as_deref()
        .and_then(|model| split_model(model).1)
    {
        return Ok(Some(SearchRequest::of(strategy)));
    }
    match shared.reasoning_effort.as_deref() {
        None | Some("none" | "minimal" | "low") => Ok(None),
        Some("medium") => Ok(Some(votes(MEDIUM_SAMPLES))),
        Some("high" | "xhigh") => Ok(Some(votes(HIGH_SAMPLES))),
        Some(other) => Err(ApiError::invalid(
            "reasoning_effort",
            format!("reasoning_effort is none, minimal, low, medium, high or xhigh, not {other:?}"),
        )),
    }
}

/// The answer that most samples agree on: it needs to know nothing of the task, and where no two answers
/// agree the likeliest is left.
fn votes(n: usize) -> SearchRequest {
    SearchRequest {
        n: Some(n),
        ..SearchRequest::of(Strategy::SelfConsistency)
    }
}

/// An object, or a strategy's name alone.
fn parse(value: &Value) -> Result<Option<SearchRequest>, ApiError> {
    let request = match value {
        Value::Bool(false) => return Ok(None),
        Value::String(name) if matches!(name.as_str(), "off" | "none") => return Ok(None),
        Value::String(_) => serde_json::from_value(value.clone())
            .map(SearchRequest::of)
            .map_err(|error| ApiError::invalid("search", format!("search: {error}")))?,
        _ => serde_path_to_error::deserialize(value).map_err(
            |error: serde_path_to_error::Error<serde_json::Error>| {
                let path = match error.path().to_string() {
                    path if path == "." => "search".to_owned(),
                    path => format!("search.{path}"),
                };
                ApiError::invalid(&path, format!("{path}: {}", error.inner()))
            },
        )?,
    };
    Ok((request.strategy != Strategy::None).then_some(request))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn names_may_carry_a_strategy() {
        assert_eq!(split_model("a:mcts"), ("a", Some(Strategy::Mcts)));
        assert_eq!(split_model("a:b:beam"), ("a:b", Some(Strategy::Beam)));
        assert_eq!(split_model("a:b"), ("a:b", None));
        assert!(names("m").any(|name| name == "m:best_of_n"));
    }

    #[test]
    fn a_search_is_an_object_or_a_name() {
        assert!(parse(&json!(false)).unwrap().is_none());
        assert!(parse(&json!({"strategy": "none"})).unwrap().is_none());
        let search = parse(&json!("vm_mcts")).unwrap().unwrap();
        assert_eq!(search.strategy, Strategy::VmMcts);
        let bad = parse(&json!({"strategy": "mcts", "budget": {"tokens": -1}})).unwrap_err();
        assert_eq!(bad.param.as_deref(), Some("search.budget.tokens"));
        let unknown = parse(&json!({"strategy": "mcts", "width": 3})).unwrap_err();
        assert!(unknown.message.contains("width"));
    }
}
