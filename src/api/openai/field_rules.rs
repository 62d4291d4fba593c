//! What becomes of a request's field that another server documents.

use serde_json::Value;

use crate::api::error::ApiError;

/// The path of chat requests.
pub const CHAT: &str = "/v1/chat/completions";
/// The path of completion requests.
pub const COMPLETIONS: &str = "/v1/completions";

/// A field of a request that OpenAI, vLLM or llama.cpp document.
#[derive(Debug, Clone, Copy)]
pub struct KnownField {
    pub name: &'static str,
    /// The routes that document the field.
    pub routes: &'static [&'static str],
    pub rule: Rule,
}

/// What becomes of a field.
#[derive(Debug, Clone, Copy)]
pub enum Rule {
    /// The request struct has the field.
    Effect,
    /// The field is another name of this field of the request struct.
    Alias(&'static str),
    /// These values ask for what happens anyway. All others are refused with the advice.
    Only(&'static [Same], &'static str),
}

/// Values that ask for what happens anyway. `null` always does.
#[derive(Debug, Clone, Copy)]
pub enum Same {
    Is(bool),
    Number(f64),
    AtMost(f64),
    AtLeast(f64),
    Text(&'static str),
    /// A list with this text alone.
    ListOf(&'static str),
    /// An empty text, list or object.
    Empty,
    AnyBool,
    AnyNumber,
    AnyText,
    AnyList,
}

impl Same {
    fn matches(self, value: &Value) -> bool {
        let number = value.as_f64();
        match self {
            Self::Is(flag) => value.as_bool() == Some(flag),
            Self::Number(same) => number == Some(same),
            Self::AtMost(most) => number.is_some_and(|number| number <= most),
            Self::AtLeast(least) => number.is_some_and(|number| number >= least),
            Self::Text(text) => value.as_str() == Some(text),
            Self::ListOf(text) => value.as_array().is_some_and(|list| list == &[text]),
            Self::Empty => match value {
                Value::String(text) => text.is_empty(),
                Value::Array(list) => list.is_empty(),
                Value::Object(map) => map.is_empty(),
                _ => false,
            },
            Self::AnyBool => value.is_boolean(),
            Self::AnyNumber => value.is_number(),
            Self::AnyText => value.is_string(),
            Self::AnyList => value.is_array(),
        }
    }

    /// The values in an error message.
    fn name(self) -> String {
        match self {
            Self::Is(flag) => flag.to_string(),
            Self::Number(number) => number.to_string(),
            Self::AtMost(most) => format!("at most {most}"),
            Self::AtLeast(least) => format!("at least {least}"),
            Self::Text(text) => format!("{text:?}"),
            Self::ListOf(text) => format!("[{text:?}]"),
            Self::Empty => "empty".to_owned(),
            Self::AnyBool => "true or false".to_owned(),
            Self::AnyNumber => "a number".to_owned(),
            Self::AnyText => "a string".to_owned(),
            Self::AnyList => "an array".to_owned(),
        }
    }
}

impl KnownField {
    /// Checks the value of a field that the request struct does not have.
    pub(super) fn check(&self, value: &Value) -> Result<(), ApiError> {
        let name = self.name;
        let (allowed, advice) = match self.rule {
            Rule::Only(allowed, advice) => (allowed, advice),
            Rule::Effect | Rule::Alias(_) => (&[][..], "this build does not have the field"),
        };
        if value.is_null() || allowed.iter().any(|same| same.matches(value)) {
            return Ok(());
        }
        let message = match allowed {
            [] => format!("{name} is not supported: {advice}"),
            _ => {
                let names: Vec<String> = allowed.iter().map(|same| same.name()).collect();
                format!("{name} must be {}: {advice}", names.join(" or "))
            }
        };
        Err(ApiError::invalid(name, message))
    }
}
