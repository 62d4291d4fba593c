//! Texts of a request that must not become control tokens of the prompt.
//!
//! Templates trim, cut and compare texts, so nothing is wrapped around these: a private character
//! breaks up every control token inside of them, and the tokenizer leaves the character out.

use serde_json::{Map, Value};

use crate::api::error::ApiError;
use crate::text::Tokenizer;

/// Code points that no text has: Unicode keeps them for uses like this one.
const FIRST: u32 = 0xfdd0;
const NUM: u32 = 32;

/// The private character of one request.
pub(super) struct Guard {
    marker: char,
}

impl Guard {
    /// A character that no text of the request has.
    pub fn new(
        messages: &[Value],
        tools: Option<&[Value]>,
        variables: &Map<String, Value>,
    ) -> Result<Self, ApiError> {
        let mut seen: u32 = 0;
        let mut see = |text: &str| {
            let private = text.chars().map(|c| u32::from(c).wrapping_sub(FIRST));
            for at in private.filter(|at| *at < NUM) {
                seen |= 1 << at;
            }
        };
        let lists = [messages, tools.unwrap_or_default()];
        for value in lists.into_iter().flatten().chain(variables.values()) {
            visit(value, &mut see);
        }
        for key in variables.keys() {
            see(key);
        }
        let marker = char::from_u32(FIRST + seen.trailing_ones());
        match marker.filter(|_| seen != u32::MAX) {
            Some(marker) => Ok(Self { marker }),
            None => Err(ApiError::invalid(
                "messages",
                "messages have all of Unicode's noncharacters U+FDD0 to U+FDEF: leave them out",
            )),
        }
    }

    pub fn marker(&self) -> char {
        self.marker
    }

    /// Breaks up the control tokens in all texts.
    pub fn apply(
        &self,
        tokenizer: &Tokenizer,
        messages: &mut [Value],
        tools: &mut Option<Vec<Value>>,
        variables: &mut Map<String, Value>,
    ) {
        let tools = tools.iter_mut().flatten();
        let values = messages.iter_mut().chain(tools);
        for value in values.chain(variables.values_mut()) {
            self.change(tokenizer, value);
        }
    }

    fn change(&self, tokenizer: &Tokenizer, value: &mut Value) {
        match value {
            Value::String(text) => {
                if let std::borrow::Cow::Owned(guarded) = tokenizer.guard(text, self.marker) {
                    *text = guarded;
                }
            }
            Value::Array(items) => {
                for item in items {
                    self.change(tokenizer, item);
                }
            }
            Value::Object(object) => {
                let changed = std::mem::take(object).into_iter().map(|(key, mut item)| {
                    self.change(tokenizer, &mut item);
                    (tokenizer.guard(&key, self.marker).into_owned(), item)
                });
                *object = changed.collect();
            }
            Value::Null | Value::Bool(_) | Value::Number(_) => {}
        }
    }
}

/// Shows every text of a value, keys too.
fn visit(value: &Value, see: &mut impl FnMut(&str)) {
    match value {
        Value::String(text) => see(text),
        Value::Array(items) => items.iter().for_each(|item| visit(item, see)),
        Value::Object(object) => {
            for (key, item) in object {
                see(key);
                visit(item, see);
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}
