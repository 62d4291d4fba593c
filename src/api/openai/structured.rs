//! What an answer must look like, under the names of OpenAI, vLLM and llama.cpp.

use serde_json::{Map, Value, json};

use crate::api::error::ApiError;
use crate::api::served::Served;
use crate::engine::TokenConstraint;
use crate::grammar::{Grammar, GrammarError};
use crate::work::Budget;

/// Choices of `guided_choice`.
const MAX_CHOICES: usize = 1024;
/// Letters of the name of a schema, as OpenAI has it.
const MAX_NAME_CHARS: usize = 64;
/// The back ends of vLLM that this server's grammars are made by.
const BACKENDS: [&str; 3] = ["auto", "guidance", "llguidance"];

/// The fields of a request, see [`super::params::generation_request`].
#[derive(Debug, Clone, Default)]
pub(crate) struct StructuredFields {
    pub response_format: Option<Value>,
    pub structured_outputs: Option<Value>,
    pub guided_json: Option<Value>,
    pub guided_regex: Option<String>,
    pub guided_choice: Option<Vec<String>>,
    pub guided_grammar: Option<String>,
    pub guided_json_object: Option<bool>,
    pub guided_decoding_backend: Option<String>,
    pub guided_whitespace_pattern: Option<String>,
    pub grammar: Option<String>,
    pub json_schema: Option<Value>,
}

/// A grammar, and the field that asks for it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Structured {
    pub field: String,
    pub grammar: Grammar,
    /// The field and its value as they were sent.
    pub asked: Value,
}

impl StructuredFields {
    /// The one grammar that the fields ask for.
    pub fn read(&self) -> Result<Option<Structured>, ApiError> {
        self.check_options()?;
        let found = [
            given("response_format", &self.response_format, response_format)?,
            given(
                "structured_outputs",
                &self.structured_outputs,
                structured_outputs,
            )?,
            given("guided_json", &self.guided_json, |value, at| {
                loose_schema(value, at).map(Some)
            })?,
            given("guided_regex", &self.guided_regex, |regex, at| {
                Ok(Some(Grammar::Regex(nonempty(regex, at)?)))
            })?,
            given("guided_choice", &self.guided_choice, |choices, at| {
                choice(choices.clone(), at).map(Some)
            })?,
            given("guided_grammar", &self.guided_grammar, |text, at| {
                Ok(Some(Grammar::Ebnf(nonempty(text, at)?)))
            })?,
            given(
                "guided_json_object",
                &self.guided_json_object,
                |is_wanted, _| Ok(is_wanted.then_some(Grammar::JsonObject)),
            )?,
            given("grammar", &self.grammar, |text, _| {
                // llama.cpp's clients send an empty one for none.
                let is_given = !text.trim().is_empty();
                Ok(is_given.then(|| Grammar::Gbnf(text.clone())))
            })?,
            given("json_schema", &self.json_schema, |value, at| {
                loose_schema(value, at).map(Some)
            })?,
        ];
        let mut found = found.into_iter().flatten();
        let first = found.next();
        if let (Some(first), Some(second)) = (&first, found.next()) {
            let (first, second) = (top(&first.field), top(&second.field));
            let message = format!("{first} and {second} exclude each other: send one of them");
            return Err(ApiError::invalid(second, message));
        }
        Ok(first)
    }

    fn check_options(&self) -> Result<(), ApiError> {
        if let Some(backend) = &self.guided_decoding_backend
            && !BACKENDS.contains(&backend.as_str())
        {
            let message = format!(
                "guided_decoding_backend is auto or guidance on this server, not {backend:?}"
            );
            return Err(ApiError::invalid("guided_decoding_backend", message));
        }
        match self.guided_whitespace_pattern {
            Some(_) => Err(white_space("guided_whitespace_pattern")),
            None => Ok(()),
        }
    }
}

/// Compiles a grammar on the pool, where requests are read; errors name `field`.
pub(crate) fn compile(
    served: &Served,
    grammar: &Grammar,
    field: &str,
    budget: &Budget,
) -> Result<Box<dyn TokenConstraint>, ApiError> {
    let Some(grammars) = served.grammars.get() else {
        let message = format!(
            "{field} needs an engine that constrains answers: this one, {}, does not",
            served.engine.name()
        );
        return Err(ApiError {
            code: Some("unsupported_capability"),
            ..ApiError::invalid(field, message)
        });
    };
    let compiled = grammars.compile(grammar, budget);
    compiled.map_err(|error| match error {
        GrammarError::Invalid(message) => ApiError::invalid(field, format!("{field}: {message}")),
        GrammarError::TooMuchWork(message) => ApiError {
            param: Some(field.to_owned()),
            ..ApiError::too_much_work(format!("{field}: {message}"))
        },
    })
}

/// The name of the request's field in a path.
fn top(path: &str) -> &str {
    path.split('.').next().unwrap_or(path)
}

/// What a field asks for, if it is given and asks for something. `read` gets the path for its
/// errors.
fn given<T: serde::Serialize>(
    field: &str,
    value: &Option<T>,
    read: impl FnOnce(&T, &str) -> Result<Option<Grammar>, ApiError>,
) -> Result<Option<Structured>, ApiError> {
    let Some(value) = value else {
        return Ok(None);
    };
    let grammar = read(value, field)?;
    Ok(grammar.map(|grammar| Structured {
        field: field.to_owned(),
        grammar,
        asked: json!({ field: value }),
    }))
}

fn nonempty(text: &str, at: &str) -> Result<String, ApiError> {
    match text.is_empty() {
        true => Err(ApiError::invalid(at, format!("{at} must not be empty"))),
        false => Ok(text.to_owned()),
    }
}

fn object<'v>(value: &'v Value, at: &str) -> Result<&'v Map<String, Value>, ApiError> {
    value.as_object().ok_or_else(|| {
        let message = format!("{at} must be an object");
        ApiError::invalid(at, message)
    })
}

/// OpenAI's `response_format`, with the variants of vLLM and llama.cpp.
fn response_format(value: &Value, at: &str) -> Result<Option<Grammar>, ApiError> {
    if value.is_null() {
        return Ok(None);
    }
    let fields = object(value, at)?;
    let at_type = format!("{at}.type");
    match fields.get("type").and_then(Value::as_str) {
        Some("text") => Ok(None),
        // llama.cpp takes a schema here.
        Some("json_object") => match fields.get("schema") {
            None | Some(Value::Null) => Ok(Some(Grammar::JsonObject)),
            Some(schema) => loose_schema(schema, &format!("{at}.schema")).map(Some),
        },
        Some("json_schema") => {
            let at = format!("{at}.json_schema");
            named_schema(fields.get("json_schema").unwrap_or(&Value::Null), &at).map(Some)
        }
        Some("structural_tag") => Ok(Some(Grammar::StructuralTag(value.clone()))),
        _ => {
            let message =
                format!("{at_type} must be text, json_object, json_schema or structural_tag");
            Err(ApiError::invalid(&at_type, message))
        }
    }
}

/// OpenAI's `json_schema` object.
fn named_schema(value: &Value, at: &str) -> Result<Grammar, ApiError> {
    let fields = object(value, at)?;
    let invalid = |field: &str, message: &str| {
        let at = format!("{at}.{field}");
        Err(ApiError::invalid(&at, format!("{at} {message}")))
    };
    let is_letter = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-');
    match fields.get("name") {
        Some(Value::String(name))
            if (1..=MAX_NAME_CHARS).contains(&name.len()) && name.chars().all(is_letter) => {}
        _ => {
            return invalid(
                "name",
                "must be 1 to 64 letters, digits, underscores and dashes",
            );
        }
    }
    match fields.get("description") {
        None | Some(Value::Null | Value::String(_)) => {}
        Some(_) => return invalid("description", "must be a string"),
    }
    let strict = match fields.get("strict") {
        None | Some(Value::Null) => false,
        Some(Value::Bool(strict)) => *strict,
        Some(_) => return invalid("strict", "must be true or false"),
    };
    match fields.get("schema") {
        // OpenAI takes any object then.
        None | Some(Value::Null) => Ok(Grammar::JsonObject),
        Some(schema @ (Value::Object(_) | Value::Bool(_))) => Ok(Grammar::JsonSchema {
            schema: schema.clone(),
            strict,
        }),
        Some(_) => invalid("schema", "must be a JSON schema"),
    }
}

/// A schema as it is, or as its JSON text.
fn loose_schema(value: &Value, at: &str) -> Result<Grammar, ApiError> {
    let schema = match value {
        Value::String(text) => serde_json::from_str(text).map_err(|error| {
            ApiError::invalid(at, format!("{at} is not the JSON of a schema: {error}"))
        })?,
        value => value.clone(),
    };
    match schema {
        schema @ (Value::Object(_) | Value::Bool(_)) => Ok(Grammar::JsonSchema {
            schema,
            strict: false,
        }),
        _ => {
            let message = format!("{at} must be a JSON schema");
            Err(ApiError::invalid(at, message))
        }
    }
}

fn choice(choices: Vec<String>, at: &str) -> Result<Grammar, ApiError> {
    if choices.is_empty() || choices.len() > MAX_CHOICES {
        let message = format!("{at} takes 1 to {MAX_CHOICES} texts");
        return Err(ApiError::invalid(at, message));
    }
    match choices.iter().position(String::is_empty) {
        Some(index) => {
            let at = format!("{at}[{index}]");
            Err(ApiError::invalid(&at, format!("{at} must not be empty")))
        }
        None => Ok(Grammar::Choice(choices)),
    }
}

fn white_space(at: &str) -> ApiError {
    let message = format!(
        "{at} is not available: JSON has one space behind its commas and colons, and no other white space; leave it out"
    );
    ApiError::invalid(at, message)
}

/// vLLM's `structured_outputs`.
fn structured_outputs(value: &Value, at: &str) -> Result<Option<Grammar>, ApiError> {
    if value.is_null() {
        return Ok(None);
    }
    let fields = object(value, at)?;
    let mut grammar = None;
    let mut is_closed = false;
    for (name, value) in fields.iter().filter(|(_, value)| !value.is_null()) {
        let at = format!("{at}.{name}");
        let next = match name.as_str() {
            "json" => Some(loose_schema(value, &at)?),
            "json_object" => flag(value, &at)?.then_some(Grammar::JsonObject),
            "regex" => Some(Grammar::Regex(text(value, &at)?)),
            "grammar" => Some(Grammar::Ebnf(text(value, &at)?)),
            "choice" => Some(choice(texts(value, &at)?, &at)?),
            "structural_tag" => Some(Grammar::StructuralTag(tag(value, &at)?)),
            // There is no other back end to fall back to, and white space is not free: both are so
            // already.
            "disable_fallback" | "disable_any_whitespace" => flag(value, &at).map(|_| None)?,
            "disable_additional_properties" => {
                is_closed = flag(value, &at)?;
                None
            }
            "whitespace_pattern" => return Err(white_space(&at)),
            "_backend" | "_backend_was_auto" => {
                let message = format!("{at} is the server's own; leave it out");
                return Err(ApiError::invalid(&at, message));
            }
            _ => {
                let message = format!(
                    "{at} is not known: structured_outputs takes json, regex, choice, grammar, json_object or structural_tag"
                );
                return Err(ApiError::invalid(&at, message));
            }
        };
        if next.is_some() && grammar.is_some() {
            let message = format!("{at} is one too many: structured_outputs takes one of them");
            return Err(ApiError::invalid(&at, message));
        }
        grammar = grammar.or(next);
    }
    match grammar {
        None => {
            let message = format!(
                "{at} must have one of json, regex, choice, grammar, json_object and structural_tag"
            );
            Err(ApiError::invalid(at, message))
        }
        Some(Grammar::JsonSchema { mut schema, strict }) if is_closed => {
            close(&mut schema);
            Ok(Some(Grammar::JsonSchema { schema, strict }))
        }
        Some(grammar) => Ok(Some(grammar)),
    }
}

fn flag(value: &Value, at: &str) -> Result<bool, ApiError> {
    let message = || ApiError::invalid(at, format!("{at} must be true or false"));
    value.as_bool().ok_or_else(message)
}

fn text(value: &Value, at: &str) -> Result<String, ApiError> {
    match value {
        Value::String(text) => nonempty(text, at),
        _ => Err(ApiError::invalid(at, format!("{at} must be a string"))),
    }
}

fn texts(value: &Value, at: &str) -> Result<Vec<String>, ApiError> {
    let texts = value.as_array().into_iter().flatten();
    let texts: Option<Vec<String>> = texts.map(|it| it.as_str().map(str::to_owned)).collect();
    match (value, texts) {
        (Value::Array(_), Some(texts)) => Ok(texts),
        _ => {
            let message = format!("{at} must be an array of strings");
            Err(ApiError::invalid(at, message))
        }
    }
}

/// A structural tag as it is, or as its JSON text.
fn tag(value: &Value, at: &str) -> Result<Value, ApiError> {
    let parsed = match value {
        Value::String(text) => serde_json::from_str(text).ok(),
        value => Some(value.clone()),
    };
    parsed.filter(Value::is_object).ok_or_else(|| {
        let message = format!("{at} must be a structural tag, or its JSON");
        ApiError::invalid(at, message)
    })
}

/// Objects with listed properties have no others, unless they say so themselves. A body's JSON is
/// not deep.
fn close(schema: &mut Value) {
    match schema {
        Value::Object(fields) => {
            let is_listed =
                fields.contains_key("properties") || fields.contains_key("patternProperties");
            if is_listed && !fields.contains_key("additionalProperties") {
                fields.insert("additionalProperties".to_owned(), Value::Bool(false));
            }
            fields.values_mut().for_each(close);
        }
        Value::Array(values) => values.iter_mut().for_each(close),
        _ => {}
    }
}
