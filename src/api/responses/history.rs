//! What came before a request: the conversation of `previous_response_id`, and items that the input
//! only refers to.

use std::collections::HashMap;

use axum::http::StatusCode;
use serde_json::Value;

use super::items::{Item, is_reference};
use super::stored::{self, Record};
use crate::api::causes::Causes;
use crate::api::config::MAX_CONVERSATION_RESPONSES;
use crate::api::error::ApiError;
use crate::api::state::AppState;
use crate::api::traces::access;
use crate::api::wire::responses::response_id;
use crate::trace::TraceStore;

const PREVIOUS: &str = "previous_response_id";

/// Everything that is said before the answer.
pub(super) struct Resolved {
    /// Of the responses before, the oldest first.
    pub before: Vec<Item>,
    /// Of the request itself, without references.
    pub own: Vec<Item>,
    /// How much was read.
    pub num_bytes: usize,
}

/// Reads what a request refers to.
pub(super) async fn resolve(
    state: &AppState,
    previous: Option<String>,
    own: Vec<Item>,
    work: Causes,
) -> Result<Resolved, ApiError> {
    let reference = own.iter().find(|item| is_reference(&item.value));
    let named = match (&previous, reference) {
        (Some(_), _) => PREVIOUS,
        (None, Some(item)) => item.path.as_str(),
        (None, None) => {
            let (before, num_bytes) = (Vec::new(), 0);
            return Ok(Resolved {
                before,
                own,
                num_bytes,
            });
        }
    };
    if stored::store(state).is_none() {
        return Err(stored::no_store(named));
    }
    let max_bytes = state.config().max_body_bytes;
    let background = std::sync::Arc::clone(state.background());
    let read = access::read(state, work.tenant, move |store, is_wanted| {
        let mut reader = Reader {
            store,
            work,
            records: HashMap::new(),
            num_bytes: 0,
            max_bytes,
            is_wanted,
        };
        let is_running = |id: &str| background.find(id, work.tenant).is_some();
        let before = match &previous {
            Some(id) if is_running(id) => Err(unfinished(id)),
            Some(id) => reader.conversation(id),
            None => Ok(Vec::new()),
        };
        let resolved = before.and_then(|before| {
            Ok(Resolved {
                before,
                own: reader.dereferenced(own)?,
                num_bytes: reader.num_bytes,
            })
        });
        Ok(resolved)
    });
    work.deadline.limit(read).await??
}

/// Reads stored responses, within the bytes that a request may bring.
struct Reader<'r> {
    store: &'r TraceStore,
    work: Causes,
    records: HashMap<String, Record>,
    num_bytes: usize,
    max_bytes: usize,
    is_wanted: &'r dyn Fn() -> bool,
}

impl Reader<'_> {
    fn record(&mut self, id: &str, param: &str) -> Result<Record, ApiError> {
        if !(self.is_wanted)() {
            return Err(ApiError::deadline());
        }
        let (record, num_bytes) = stored::read(self.store, self.work.tenant, id)?;
        self.num_bytes = self.num_bytes.saturating_add(num_bytes);
        if self.num_bytes > self.max_bytes {
            let message = format!(
                "{param}: the conversation has more than {} bytes (--max-body-bytes)",
                self.max_bytes
            );
            return Err(ApiError::invalid(param, message));
        }
        Ok(record)
    }

    /// All items up to the end of a response.
    fn conversation(&mut self, id: &str) -> Result<Vec<Item>, ApiError> {
        let mut turns = Vec::new();
        let mut next = Some(id.to_owned());
        while let Some(id) = next {
            if turns.len() >= MAX_CONVERSATION_RESPONSES {
                let message = format!(
                    "{PREVIOUS}: the conversation has more than {MAX_CONVERSATION_RESPONSES} responses"
                );
                return Err(ApiError::invalid(PREVIOUS, message));
            }
            let record = self.record(&id, PREVIOUS);
            let record = record.map_err(|error| match error.status {
                StatusCode::NOT_FOUND => not_found(&id),
                _ => error,
            })?;
            let previous = record.response[PREVIOUS].as_str();
            next = previous.map(str::to_owned);
            turns.push(record);
        }
        let items = turns.into_iter().rev().flat_map(|record| {
            let Record {
                mut response,
                input,
            } = record;
            let output = match response["output"].take() {
                Value::Array(output) => output,
                _ => Vec::new(),
            };
            // A call that was cut is none.
            let is_whole =
                |item: &Value| item["type"] != "function_call" || item["status"] == "completed";
            input.into_iter().chain(output.into_iter().filter(is_whole))
        });
        let path = || PREVIOUS.to_owned();
        let items = items.map(|value| Item {
            value,
            path: path(),
        });
        Ok(items.collect())
    }

    /// The items with those that are only referred to.
    fn dereferenced(&mut self, items: Vec<Item>) -> Result<Vec<Item>, ApiError> {
        let items = items
            .into_iter()
            .map(|item| match is_reference(&item.value) {
                false => Ok(item),
                true => {
                    let id = item.value["id"].as_str().unwrap_or_default();
                    let value = self.referenced(id, &item.path)?;
                    Ok(Item { value, ..item })
                }
            });
        items.collect()
    }

    fn referenced(&mut self, id: &str, path: &str) -> Result<Value, ApiError> {
        let path = format!("{path}.id");
        let unknown = || {
            let message =
                format!("{path}: there is no item {id}: only items of stored responses are known");
            ApiError::invalid(&path, message)
        };
        // An item's id has that of its response.
        let hex = id.split_once('_').and_then(|(_, rest)| rest.get(..32));
        let response = response_id(hex.ok_or_else(unknown)?);
        if !self.records.contains_key(&response) {
            let record = self.record(&response, &path);
            let record = record.map_err(|error| match error.status {
                StatusCode::NOT_FOUND => unknown(),
                _ => error,
            })?;
            self.records.insert(response.clone(), record);
        }
        let record = self.records.get(&response).ok_or_else(unknown)?;
        let output = record.response["output"].as_array().into_iter().flatten();
        let mut items = record.input.iter().chain(output);
        let found = items.find(|item| item["id"] == id);
        found.cloned().ok_or_else(unknown)
    }
}

fn not_found(id: &str) -> ApiError {
    ApiError {
        code: Some("previous_response_not_found"),
        ..ApiError::invalid(
            PREVIOUS,
            format!(
                "{PREVIOUS}: there is no response {id}: it was never kept, was deleted, or is another key's"
            ),
        )
    }
}

fn unfinished(id: &str) -> ApiError {
    let message = format!("{PREVIOUS}: the response {id} is still being made");
    ApiError::invalid(PREVIOUS, message)
}
