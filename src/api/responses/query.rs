//! The parameters of the routes of stored responses.

use axum::extract::Query;

use super::request::{check_includes, one_of, refuse_if};
use crate::api::error::ApiError;

/// Items of one page.
const DEFAULT_LIMIT: usize = 20;
pub(in crate::api) const MAX_LIMIT: usize = 100;

/// Name and value of each parameter of the URL.
pub(super) type Pairs = Query<Vec<(String, String)>>;

/// The last value of a parameter.
fn last<'p>(pairs: &'p Pairs, name: &str) -> Option<&'p str> {
    let mut values = pairs.iter().rev().filter(|(key, _)| key == name);
    values.next().map(|(_, value)| value.as_str())
}

/// `include`, which clients write as a list.
pub(super) fn check_include(pairs: &Pairs) -> Result<(), ApiError> {
    let values = pairs
        .iter()
        .filter(|(key, _)| matches!(key.as_str(), "include" | "include[]"));
    check_includes(values.map(|(_, value)| value.as_str()))
}

fn flag(pairs: &Pairs, name: &str) -> Result<bool, ApiError> {
    let value = last(pairs, name);
    one_of(name, value, &["true", "false"])?;
    Ok(value == Some("true"))
}

/// Whether a stream is asked for, and behind which event.
pub(super) fn stream(pairs: &Pairs) -> Result<Option<Option<u64>>, ApiError> {
    let is_streamed = flag(pairs, "stream")?;
    let why = "is decided when the response is created: stream_options.include_obfuscation";
    let obfuscates = flag(pairs, "include_obfuscation")?;
    refuse_if(obfuscates, "include_obfuscation", why)?;
    let Some(after) = last(pairs, "starting_after") else {
        return Ok(is_streamed.then_some(None));
    };
    refuse_if(!is_streamed, "starting_after", "needs stream=true")?;
    let after = after.parse().map_err(|_| {
        let message = "starting_after must be the sequence number of an event";
        ApiError::invalid("starting_after", message)
    })?;
    Ok(Some(Some(after)))
}

/// A page of a list.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Page {
    pub limit: usize,
    pub is_ascending: bool,
    pub after: Option<String>,
    pub before: Option<String>,
}

impl Page {
    pub fn parse(pairs: &Pairs) -> Result<Self, ApiError> {
        let order = last(pairs, "order");
        one_of("order", order, &["asc", "desc"])?;
        let limit = match last(pairs, "limit") {
            None => DEFAULT_LIMIT,
            Some(text) => text
                .parse()
                .ok()
                .filter(|limit| (1..=MAX_LIMIT).contains(limit))
                .ok_or_else(|| {
                    let message = format!("limit is 1 to {MAX_LIMIT}");
                    ApiError::invalid("limit", message)
                })?,
        };
        Ok(Self {
            limit,
            is_ascending: order == Some("asc"),
            after: last(pairs, "after").map(str::to_owned),
            before: last(pairs, "before").map(str::to_owned),
        })
    }
}
