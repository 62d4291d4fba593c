//! The arguments of a call.

use super::value::{Scan, Value};

/// Gives an object's text as it comes. A string that holds the text of an object is unpacked when
/// it is whole, and `null` becomes `{}`.
#[derive(Debug, Clone, Default)]
pub(in crate::text::output) struct Arguments {
    value: Value,
    /// The text of a string or scalar, which is looked at as a whole.
    held: Option<String>,
    has_begun: bool,
}

impl Arguments {
    /// Takes a character; `text` gets what is certain.
    pub fn step(&mut self, c: char, text: &mut String) -> Scan {
        let scan = self.value.step(c);
        match scan {
            Scan::Before | Scan::Bad => {}
            Scan::Inside | Scan::Last => {
                if !std::mem::replace(&mut self.has_begun, true) && !matches!(c, '{' | '[') {
                    self.held = Some(String::new());
                }
                match &mut self.held {
                    Some(held) => held.push(c),
                    None => text.push(c),
                }
                if scan == Scan::Last {
                    self.release(text);
                }
            }
            Scan::Over => self.release(text),
        }
        scan
    }

    pub fn has_begun(&self) -> bool {
        self.has_begun
    }

    pub fn is_in_string(&self) -> bool {
        self.value.is_in_string()
    }

    /// A mark says that the call is over: what is missing is added.
    pub fn close(&mut self, text: &mut String) {
        match self.held.is_some() || !self.has_begun {
            true => self.release(text),
            false => text.push_str(&self.value.missing()),
        }
    }

    /// The text ends here, within the arguments: what there is of them.
    pub fn cut(&mut self, text: &mut String) {
        let Some(held) = self.held.take() else {
            return;
        };
        if held == "null" {
            return text.push_str("{}");
        }
        // The last escape may be cut.
        let whole = (0..held.len().min(12)).find_map(|less| {
            let part = held.get(..held.len() - less)?;
            serde_json::from_str::<String>(&format!("{part}\"")).ok()
        });
        text.push_str(&whole.unwrap_or(held));
    }

    fn release(&mut self, text: &mut String) {
        let Some(held) = self.held.take() else {
            if !self.has_begun {
                text.push_str("{}");
            }
            return;
        };
        let inner = serde_json::from_str::<String>(&held).ok();
        match inner.as_deref().map(str::trim) {
            _ if held == "null" => text.push_str("{}"),
            Some("" | "null") => text.push_str("{}"),
            Some(inner) if inner.starts_with('{') => text.push_str(inner),
            _ => text.push_str(&held),
        }
    }
}
