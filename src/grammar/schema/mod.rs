//! JSON schemas: what is checked and changed before llguidance compiles one.

mod bounds;
mod depth;
mod finite;
mod formats;
mod keywords;

pub(super) use finite::target;

use serde_json::{Map, Value, json};

use super::GrammarError;
use super::limits::{MAX_DEPTH, MAX_PATTERN_PROPERTIES, MAX_PATTERNED_SCHEMAS, MAX_PROPERTIES};

/// Schemas under these keywords: one, a list, or one by name.
const ONE: [&str; 6] = [
    "items",
    "additionalItems",
    "additionalProperties",
    "contains",
    "propertyNames",
    "not",
];
const MANY: [&str; 5] = ["anyOf", "oneOf", "allOf", "prefixItems", "items"];
const NAMED: [&str; 5] = [
    "properties",
    "patternProperties",
    "$defs",
    "definitions",
    "dependentSchemas",
];

/// A schema that llguidance enforces as it is. Answers have one space behind commas and colons and
/// no other white space. `strict`: a keyword that cannot be enforced is an error; otherwise the
/// keyword is left out.
///
/// # Errors
/// [`GrammarError`] naming the keyword and the JSON pointer of its schema.
pub(super) fn prepare(schema: &Value, strict: bool) -> Result<Value, GrammarError> {
    let mut schema = match schema {
        Value::Bool(true) => json!({}),
        Value::Bool(false) => return Err(invalid("", "the schema accepts nothing")),
        schema => schema.clone(),
    };
    let mut walk = Walk {
        strict,
        num_patterns: 0,
        num_schemas: 0,
        has_control: false,
        has_ids: has_ids(&schema),
        depth: 0,
        path: Vec::new(),
    };
    walk.schema(&mut schema)?;
    if walk.num_patterns > 1 && walk.num_schemas > MAX_PATTERNED_SCHEMAS {
        return Err(GrammarError::TooMuchWork(format!(
            "the schema has more than {MAX_PATTERNED_SCHEMAS} schemas inside beside several patterns in patternProperties"
        )));
    }
    depth::check(&schema)?;
    finite::check(&schema)?;
    let Value::Object(root) = &mut schema else {
        return Err(invalid("", "a schema is an object or a boolean"));
    };
    root.insert("x-guidance".to_owned(), options(strict, walk.has_control));
    Ok(schema)
}

/// How llguidance writes JSON. Escapes such as `\u0061` are off, since a name could be written
/// twice with them; a schema that has control characters in its strings needs the escapes.
fn options(strict: bool, has_control: bool) -> Value {
    let escapes = match has_control {
        true => "nrbtf\\\"u",
        false => "nrbtf\\\"",
    };
    json!({
        "item_separator": ", ",
        "key_separator": ": ",
        "whitespace_flexible": false,
        "coerce_one_of": !strict,
        "lenient": !strict,
        "json_allowed_escapes": escapes,
    })
}

fn has_ids(schema: &Value) -> bool {
    match schema {
        Value::Object(map) => map.contains_key("$id") || map.values().any(has_ids),
        Value::Array(items) => items.iter().any(has_ids),
        _ => false,
    }
}

/// An error about the schema at a path.
fn invalid(path: &str, message: impl std::fmt::Display) -> GrammarError {
    let place = match path {
        "" => "the schema".to_owned(),
        path => format!("the schema at {path:?}"),
    };
    GrammarError::Invalid(format!("{place}: {message}"))
}

/// The place of a schema: names and indexes on the way to it.
pub(super) fn pointer(path: &[String]) -> String {
    let escape = |name: &String| format!("/{}", name.replace('~', "~0").replace('/', "~1"));
    path.iter().map(escape).collect()
}

struct Walk {
    strict: bool,
    num_patterns: usize,
    num_schemas: usize,
    /// Strings that the schema names have control characters.
    has_control: bool,
    has_ids: bool,
    depth: usize,
    path: Vec<String>,
}

impl Walk {
    fn invalid(&self, message: impl std::fmt::Display) -> GrammarError {
        invalid(&pointer(&self.path), message)
    }

    fn schema(&mut self, schema: &mut Value) -> Result<(), GrammarError> {
        self.num_schemas += 1;
        if self.depth > MAX_DEPTH {
            let message = format!("the schema nests more than {MAX_DEPTH} levels deep");
            return Err(GrammarError::TooMuchWork(message));
        }
        let map = match schema {
            Value::Bool(_) => return Ok(()),
            Value::Object(map) => map,
            _ => return Err(self.invalid("a schema is an object or a boolean")),
        };
        self.keywords(map)?;
        self.names(map)?;
        self.depth += 1;
        for (keyword, value) in map.iter_mut() {
            let keyword = keyword.as_str();
            self.path.push(keyword.to_owned());
            match value {
                Value::Array(items) if MANY.contains(&keyword) => {
                    for (index, item) in items.iter_mut().enumerate() {
                        self.inside(&index.to_string(), item)?;
                    }
                }
                Value::Object(named) if NAMED.contains(&keyword) => {
                    for (name, item) in named.iter_mut() {
                        self.inside(name, item)?;
                    }
                }
                value if ONE.contains(&keyword) => self.schema(value)?,
                _ => {}
            }
            self.path.pop();
        }
        self.depth -= 1;
        Ok(())
    }

    fn inside(&mut self, name: &str, schema: &mut Value) -> Result<(), GrammarError> {
        self.path.push(name.to_owned());
        self.schema(schema)?;
        self.path.pop();
        Ok(())
    }

    /// What one schema says, without the schemas inside of it.
    fn keywords(&mut self, map: &mut Map<String, Value>) -> Result<(), GrammarError> {
        map.remove("x-guidance");
        keywords::check(map, self.strict, self.has_ids).map_err(|error| self.invalid(error))?;
        bounds::check(map, self.strict).map_err(|error| self.invalid(error))?;
        formats::replace(map, self.strict).map_err(|error| self.invalid(error))?;
        let num_properties = map
            .get("properties")
            .and_then(Value::as_object)
            .map_or(0, Map::len);
        if num_properties > MAX_PROPERTIES {
            return Err(GrammarError::TooMuchWork(format!(
                "an object of the schema has {num_properties} properties; at most {MAX_PROPERTIES} are allowed"
            )));
        }
        if let Some(Value::Object(patterns)) = map.get("patternProperties") {
            self.num_patterns += patterns.len();
            for pattern in patterns.keys() {
                formats::check_pattern(pattern).map_err(|error| self.invalid(error))?;
            }
        }
        if self.num_patterns > MAX_PATTERN_PROPERTIES {
            return Err(GrammarError::TooMuchWork(format!(
                "the schema has more than {MAX_PATTERN_PROPERTIES} patterns in patternProperties"
            )));
        }
        Ok(())
    }

    /// Strings that answers repeat.
    fn names(&mut self, map: &Map<String, Value>) -> Result<(), GrammarError> {
        let properties = map.get("properties").and_then(Value::as_object);
        let mut names = properties.into_iter().flat_map(|map| map.keys());
        let is_control = |text: &str| text.chars().any(|c| c < ' ' || c == '\u{7f}');
        self.has_control |= names.any(|name| is_control(name));
        for value in ["const", "enum", "required"]
            .iter()
            .filter_map(|k| map.get(*k))
        {
            let mut has_control = false;
            bounds::check_value(value, &mut |text| has_control |= is_control(text))
                .map_err(|error| self.invalid(error))?;
            self.has_control |= has_control;
        }
        Ok(())
    }
}

/// The schema of a tool's arguments: an object, whatever else is said of it.
pub(super) fn arguments(parameters: &Value) -> Value {
    let mut schema = match parameters {
        Value::Null | Value::Bool(_) => json!({}),
        schema => schema.clone(),
    };
    if let Value::Object(map) = &mut schema
        && !map.contains_key("type")
    {
        map.insert("type".to_owned(), json!("object"));
    }
    schema
}

/// The place of the first schema that has a keyword: llguidance's own errors have no places.
pub(super) fn place_of(schema: &Value, keyword: &str) -> Option<String> {
    fn find(value: &Value, keyword: &str, path: &mut Vec<String>) -> bool {
        let mut inside = |name: String, value: &Value| {
            path.push(name);
            let is_found = find(value, keyword, path);
            if !is_found {
                path.pop();
            }
            is_found
        };
        match value {
            Value::Object(map) if map.contains_key(keyword) => true,
            Value::Object(map) => map.iter().any(|(name, v)| inside(name.clone(), v)),
            Value::Array(items) => {
                let mut items = items.iter().enumerate();
                items.any(|(index, v)| inside(index.to_string(), v))
            }
            _ => false,
        }
    }
    let mut path = Vec::new();
    find(schema, keyword, &mut path).then(|| pointer(&path))
}
