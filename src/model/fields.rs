//! Typed reading of configurations: what is there with another type, or is no finite number, is an
//! error and not absent.

use std::fmt::Display;

use serde_json::Value;

use super::config::ConfigError;
use super::gguf::{self, Metadata};

fn unreadable(key: &str, value: impl Display) -> ConfigError {
    let value: String = value.to_string().chars().take(MAX_SHOWN).collect();
    ConfigError::Invalid(format!("{key} is {value}"))
}

/// Characters of a value that an error shows.
const MAX_SHOWN: usize = 64;

/// Numbers are read as f32, which they must fit.
fn finite(key: &str, value: f64) -> Result<f32, ConfigError> {
    let narrow = value as f32;
    match narrow.is_finite() {
        true => Ok(narrow),
        false => Err(unreadable(key, value)),
    }
}

/// The object of a `config.json`, or one in it. Null counts as absent.
#[derive(Clone, Copy)]
pub(super) struct HfFields<'a>(pub &'a Value);

impl<'a> HfFields<'a> {
    pub(super) fn get(self, key: &str) -> Option<&'a Value> {
        self.0.get(key).filter(|value| !value.is_null())
    }

    pub(super) fn size(self, key: &str) -> Result<Option<usize>, ConfigError> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        let size = value.as_u64().and_then(|size| usize::try_from(size).ok());
        size.map(Some).ok_or_else(|| unreadable(key, value))
    }

    pub(super) fn need_size(self, key: &str) -> Result<usize, ConfigError> {
        self.size(key)?
            .ok_or_else(|| ConfigError::Missing(key.to_owned()))
    }

    pub(super) fn number(self, key: &str) -> Result<Option<f32>, ConfigError> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        let number = value.as_f64().ok_or_else(|| unreadable(key, value))?;
        finite(key, number).map(Some)
    }

    pub(super) fn numbers(self, key: &str) -> Result<Option<Vec<f32>>, ConfigError> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        let listed = value.as_array().ok_or_else(|| unreadable(key, value))?;
        let number = |value: &Value| {
            let number = value.as_f64().ok_or_else(|| unreadable(key, value))?;
            finite(key, number)
        };
        listed
            .iter()
            .map(number)
            .collect::<Result<_, _>>()
            .map(Some)
    }

    pub(super) fn flag(self, key: &str) -> Result<Option<bool>, ConfigError> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        value
            .as_bool()
            .map(Some)
            .ok_or_else(|| unreadable(key, value))
    }

    pub(super) fn text(self, key: &str) -> Result<Option<&'a str>, ConfigError> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        value
            .as_str()
            .map(Some)
            .ok_or_else(|| unreadable(key, value))
    }
}

/// The metadata of one architecture, `NAME.part`.
#[derive(Clone, Copy)]
pub(super) struct GgufFields<'a> {
    pub metadata: &'a Metadata,
    pub name: &'a str,
}

impl<'a> GgufFields<'a> {
    pub(super) fn key(self, part: &str) -> String {
        format!("{}.{part}", self.name)
    }

    fn read<T>(
        self,
        part: &str,
        read: impl Fn(&gguf::Value) -> Option<T>,
    ) -> Result<Option<T>, ConfigError> {
        let key = self.key(part);
        let Some(value) = self.metadata.get(&key) else {
            return Ok(None);
        };
        let as_shown = || format!("{value:?}");
        read(value)
            .map(Some)
            .ok_or_else(|| unreadable(&key, as_shown()))
    }

    pub(super) fn size(self, part: &str) -> Result<Option<usize>, ConfigError> {
        self.read(part, |value| match value {
            gguf::Value::Int(value) => u32::try_from(*value).ok().map(|size| size as usize),
            _ => None,
        })
    }

    pub(super) fn need_size(self, part: &str) -> Result<usize, ConfigError> {
        self.size(part)?
            .ok_or_else(|| ConfigError::Missing(self.key(part)))
    }

    pub(super) fn number(self, part: &str) -> Result<Option<f32>, ConfigError> {
        self.read(part, |value| {
            let number = match value {
                gguf::Value::Float(value) => *value,
                gguf::Value::Int(value) => *value as f64,
                _ => return None,
            };
            Some(number as f32).filter(|number| number.is_finite())
        })
    }

    pub(super) fn flag(self, part: &str) -> Result<Option<bool>, ConfigError> {
        self.read(part, |value| match value {
            gguf::Value::Bool(value) => Some(*value),
            _ => None,
        })
    }
}
