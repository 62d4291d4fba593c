//! Which search a request asks for: by its `search` object, by `NAME:STRATEGY` as the model, or by
//! `reasoning_effort`.

use serde_json::Value;

use super::error::ApiError;
use super::openai::params::SharedParams;
use crate::search::{PLAIN, STRATEGIES, SearchRequest, Strategy, find};

/// Separates a model's name from a strategy's.
const SEPARATOR: char = ':';
/// What `reasoning_effort` asks for: samples of [`VOTES`], or a plain answer.
const EFFORTS: [(&str, Option<usize>); 7] = [
    ("none", None),
    ("minimal", None),
    ("low", None),
    ("medium", Some(4)),
    ("high", Some(16)),
    ("xhigh", Some(16)),
    ("max", Some(16)),
];
/// The strategy behind them: it needs to know nothing of the task, and where no two answers agree the likeliest is left.
const VOTES: &str = "self_consistency";

/// What `reasoning_effort` may say.
pub(super) fn effort_names() -> impl Iterator<Item = &'static str> {
    EFFORTS.into_iter().map(|(name, _)| name)
}

/// Splits `NAME:STRATEGY`.
pub(super) fn split_model(model: &str) -> (&str, Option<&'static dyn Strategy>) {
    let found = model
        .rsplit_once(SEPARATOR)
        .and_then(|(name, suffix)| Some((name, find(suffix)?)));
    match found {
        Some((name, strategy)) => (name, Some(strategy)),
        None => (model, None),
    }
}

/// The names under which a model is searched.
pub(super) fn names(model: &str) -> impl Iterator<Item = String> + '_ {
    STRATEGIES
        .into_iter()
        .map(move |strategy| format!("{model}{SEPARATOR}{}", strategy.name()))
}

/// The strategies that a search may name.
pub fn strategy_names() -> impl Iterator<Item = &'static str> {
    STRATEGIES.into_iter().map(|strategy| strategy.name())
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
    let effort = shared.reasoning_effort.as_deref();
    effort.map_or(Ok(None), by_effort)
}

fn by_effort(effort: &str) -> Result<Option<SearchRequest>, ApiError> {
    match EFFORTS.iter().find(|(name, _)| *name == effort) {
        Some((_, n)) => Ok(n.and_then(votes)),
        None => {
            let names = EFFORTS.map(|(name, _)| name);
            let (last, others) = names.split_last().unwrap_or((&"", &[]));
            let others = others.join(", ");
            Err(ApiError::invalid(
                "reasoning_effort",
                format!("reasoning_effort is {others} or {last}, not {effort:?}"),
            ))
        }
    }
}

/// The answer that most of `n` samples agree on.
fn votes(n: usize) -> Option<SearchRequest> {
    Some(SearchRequest {
        n: Some(n),
        ..SearchRequest::of(find(VOTES)?)
    })
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
    Ok((request.strategy.name() != PLAIN.name()).then_some(request))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn names_may_carry_a_strategy() {
        let split = |model| {
            let (name, strategy) = split_model(model);
            (name, strategy.map(|strategy| strategy.name()))
        };
        assert_eq!(split("a:mcts"), ("a", Some("mcts")));
        assert_eq!(split("a:b:beam"), ("a:b", Some("beam")));
        assert_eq!(split("a:b"), ("a:b", None));
        assert_eq!(split("a:none"), ("a:none", None));
        assert_eq!(names("m").count(), STRATEGIES.len());
        assert!(names("m").all(|name| split_model(&name).1.is_some()));
    }

    #[test]
    fn efforts_are_votes_or_nothing() {
        for (effort, n) in EFFORTS {
            let found = by_effort(effort).unwrap();
            assert_eq!(found.as_ref().and_then(|search| search.n), n, "{effort}");
            assert_eq!(found.is_some(), n.is_some(), "{effort}");
        }
        let error = by_effort("most").unwrap_err().message;
        let names = "none, minimal, low, medium, high, xhigh or max";
        assert!(error.contains(names), "{error}");
    }

    #[test]
    fn a_search_is_an_object_or_a_name() {
        assert!(parse(&json!(false)).unwrap().is_none());
        assert!(parse(&json!({"strategy": "none"})).unwrap().is_none());
        let search = parse(&json!("vm_mcts")).unwrap().unwrap();
        assert_eq!(search.strategy.name(), "vm_mcts");
        let bad = parse(&json!({"strategy": "mcts", "budget": {"tokens": -1}})).unwrap_err();
        assert_eq!(bad.param.as_deref(), Some("search.budget.tokens"));
        let unknown = parse(&json!({"strategy": "mcts", "width": 3})).unwrap_err();
        assert!(unknown.message.contains("width"));
        // Every row of the table may be named, and an error names them all.
        let unknown = parse(&json!("best_of_all")).unwrap_err();
        for strategy in STRATEGIES {
            let search = parse(&json!(strategy.name())).unwrap().unwrap();
            assert_eq!(json!(search.strategy), strategy.name());
            assert!(
                unknown.message.contains(strategy.name()),
                "{}",
                unknown.message
            );
        }
    }
}
