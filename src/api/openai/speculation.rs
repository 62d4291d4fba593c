//! `speculative` and OpenAI's `prediction`: what a request says of how its tokens are drafted.

use serde_json::Value;

use super::messages::encode;
use super::params::SharedParams;
use crate::api::error::ApiError;
use crate::api::served::Served;
use crate::engine::{Capability, Speculative};
use crate::work::Budget;

/// Who drafts, and from what text besides.
#[derive(Debug, Clone, Default)]
pub(in crate::api) struct Speculation {
    /// The server's default when `None`.
    pub speculative: Option<Speculative>,
    pub prediction: Vec<u32>,
}

impl Speculation {
    pub fn new(shared: &SharedParams, served: &Served, budget: &Budget) -> Result<Self, ApiError> {
        let prediction = match prediction_text(shared.prediction.as_ref())? {
            Some(text) => {
                let encoded = encode(served, &text, (false, false), budget);
                encoded.map_err(|error| ApiError {
                    param: Some("prediction.content".to_owned()),
                    ..error
                })?
            }
            None => Vec::new(),
        };
        let speculative = speculative(shared.speculative.as_ref())?;
        if speculative.is_some_and(|chosen| chosen.names_drafter()) {
            let demanded = served.engine.demand(Capability::Speculation);
            demanded.map_err(|error| ApiError::at("speculative", error))?;
        }
        let lacks = speculative.and_then(|chosen| served.engine.lacks(chosen));
        if let Some(reason) = lacks {
            return Err(ApiError::invalid("speculative", reason));
        }
        Ok(Self {
            speculative,
            prediction,
        })
    }
}

fn speculative(value: Option<&Value>) -> Result<Option<Speculative>, ApiError> {
    let chosen = match value {
        None | Some(Value::Null) => return Ok(None),
        Some(Value::Bool(false)) => Some(Speculative::Off),
        Some(Value::String(name)) => Speculative::from_name(name),
        Some(_) => None,
    };
    chosen.map(Some).ok_or_else(|| {
        let names = Speculative::ALL.map(Speculative::name).join(", ");
        ApiError::invalid("speculative", format!("speculative must be one of {names}"))
    })
}

/// OpenAI's predicted output: `{"type": "content", "content": "…" or [{"type": "text", "text": "…"}]}`.
fn prediction_text(value: Option<&Value>) -> Result<Option<String>, ApiError> {
    let invalid = |at: &str, message: &str| Err(ApiError::invalid(at, message));
    let object = match value {
        None | Some(Value::Null) => return Ok(None),
        Some(Value::Object(object)) => object,
        Some(_) => return invalid("prediction", "prediction must be an object"),
    };
    if object.get("type").and_then(Value::as_str) != Some("content") {
        return invalid("prediction.type", "prediction.type must be \"content\"");
    }
    match object.get("content") {
        Some(Value::String(text)) => Ok(Some(text.clone())),
        Some(Value::Array(parts)) => {
            let text = |part: &Value| part.get("text")?.as_str().map(str::to_owned);
            let texts: Option<Vec<_>> = parts.iter().map(text).collect();
            match texts {
                Some(texts) => Ok(Some(texts.concat())),
                None => invalid(
                    "prediction.content",
                    "every part of prediction.content must be {\"type\": \"text\", \"text\": …}",
                ),
            }
        }
        _ => invalid(
            "prediction.content",
            "prediction.content must be a string or an array of text parts",
        ),
    }
}
