//! Calls as Python writes them: `[name(key=value, …), …]`.

use serde_json::Value;

use super::super::lark::literal;
use super::super::numbers::NumberScope;
use super::super::schema;
use super::super::{GrammarError, ToolSpec};
use super::Builder;

/// References inside of references.
const MAX_REFERENCES: usize = 16;

impl Builder<'_> {
    /// Llama 4 and others. A text that begins with a bracket is a list of calls.
    pub(super) fn pythonic(&mut self) -> Result<(String, NumberScope), GrammarError> {
        let call = self.any_call(|builder, tool| {
            let head = literal(&format!("{}(", tool.name));
            let arguments = builder.keyword_arguments(tool)?;
            Ok(format!("{head} {arguments} \")\""))
        })?;
        let calls = format!("\"[\" {} \"]\"", self.several(&call, "\", \""));
        let start = match self.tools.is_required {
            true => calls,
            false => {
                let text = self.lark.terminal("/(?s:.+)/ & ~/\\s*\\[(?s:.*)/");
                format!("{text}? | {calls}")
            }
        };
        // Numbers are bounded by their own pattern.
        Ok((start, NumberScope::None))
    }

    fn keyword_arguments(&mut self, tool: &ToolSpec) -> Result<String, GrammarError> {
        let whole = schema::arguments(&tool.parameters);
        let prepared = self.prepare(tool, &whole)?;
        let is_name = |name: &str| {
            let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
            name.chars().all(is_word) && !name.starts_with(|c: char| c.is_ascii_digit())
        };
        let mut python = Python {
            builder: self,
            tool,
            root: &prepared,
            num_references: 0,
        };
        let mut items = Vec::new();
        for (name, own) in python.properties(&prepared) {
            if !is_name(name) {
                return Err(GrammarError::Invalid(format!(
                    "the parameters of {:?}: {name:?} cannot be a name in Python",
                    tool.name
                )));
            }
            let value = python.value(own)?;
            let item = format!("{} {value}", literal(&format!("{name}=")));
            let item = python.builder.lark.rule(&item);
            items.push((item, is_required(&prepared, name)));
        }
        Ok(self.lark.ordered(&items, ", "))
    }
}

/// Schemas as Python's literals.
struct Python<'a, 'b, 'c> {
    builder: &'a mut Builder<'b>,
    tool: &'c ToolSpec,
    root: &'c Value,
    num_references: usize,
}

impl<'c> Python<'_, '_, 'c> {
    fn properties(&self, schema: &'c Value) -> Vec<(&'c String, &'c Value)> {
        let properties = schema.get("properties").and_then(Value::as_object);
        properties.into_iter().flatten().collect()
    }

    fn value(&mut self, schema: &'c Value) -> Result<String, GrammarError> {
        if let Some(one) = schema.get("const") {
            return Ok(literal(&python_literal(one)));
        }
        if let Some(listed) = schema.get("enum").and_then(Value::as_array) {
            let listed: Vec<String> = listed.iter().map(|v| literal(&python_literal(v))).collect();
            return Ok(format!("({})", listed.join(" | ")));
        }
        if let Some(reference) = schema.get("$ref").and_then(Value::as_str) {
            return self.reference(reference);
        }
        let options = ["anyOf", "oneOf"]
            .iter()
            .find_map(|key| schema.get(*key)?.as_array());
        if let Some(options) = options {
            let options = options.iter().map(|option| self.value(option));
            let options = options.collect::<Result<Vec<_>, _>>()?;
            return Ok(format!("({})", options.join(" | ")));
        }
        match schema.get("type") {
            Some(Value::Array(types)) => {
                let types = types.iter().filter_map(Value::as_str);
                let types = types.map(|kind| self.of_type(kind, schema));
                let types = types.collect::<Result<Vec<_>, _>>()?;
                Ok(format!("({})", types.join(" | ")))
            }
            Some(Value::String(kind)) => self.of_type(kind, schema),
            _ => Ok(self.any()),
        }
    }

    fn reference(&mut self, reference: &str) -> Result<String, GrammarError> {
        let target = schema::target(self.root, reference);
        self.num_references += 1;
        let value = match target {
            Some(target) if self.num_references <= MAX_REFERENCES => self.value(target),
            _ => Err(GrammarError::Invalid(format!(
                "the parameters of {:?}: the reference {reference:?} is not supported in calls that are written as Python",
                self.tool.name
            ))),
        };
        self.num_references -= 1;
        value
    }

    fn of_type(&mut self, kind: &str, schema: &'c Value) -> Result<String, GrammarError> {
        Ok(match kind {
            "null" => "\"None\"".to_owned(),
            "boolean" => "(\"True\" | \"False\")".to_owned(),
            "array" => self.list(schema)?,
            "object" => self.dict(schema)?,
            _ => self.json(kind, schema)?,
        })
    }

    /// A string or a number: JSON has them as Python does.
    fn json(&mut self, kind: &str, schema: &Value) -> Result<String, GrammarError> {
        let is_plain = |map: &serde_json::Map<String, Value>| {
            map.keys()
                .all(|key| matches!(key.as_str(), "type" | "description" | "title" | "default"))
        };
        if kind != "string" && schema.as_object().is_some_and(is_plain) {
            let number = match kind {
                "integer" => "/-?(0|[1-9][0-9]{0,18})/",
                _ => "/-?(0|[1-9][0-9]{0,18})(\\.[0-9]{1,18})?/",
            };
            return Ok(number.to_owned());
        }
        let mut own = schema.clone();
        if let Value::Object(map) = &mut own {
            map.insert("type".to_owned(), kind.into());
        }
        let prepared = self.builder.prepare(self.tool, &own)?;
        Ok(self.builder.lark.schema(prepared))
    }

    fn list(&mut self, schema: &'c Value) -> Result<String, GrammarError> {
        let item = match schema.get("items") {
            Some(items) => self.value(items)?,
            None => self.any(),
        };
        let bound = |keyword: &str| schema.get(keyword).and_then(Value::as_u64);
        let least = bound("minItems").unwrap_or(0);
        let more = match (least.saturating_sub(1), bound("maxItems")) {
            (_, Some(0)) => return Ok("\"[]\"".to_owned()),
            (_, Some(1)) => String::new(),
            (0, None) => format!("(\", \" {item})*"),
            (least, most) => {
                let most = most.map_or(String::new(), |most| (most - 1).to_string());
                format!("(\", \" {item}){{{least},{most}}}")
            }
        };
        let items = self.builder.lark.rule(&format!("{item} {more}"));
        Ok(match least {
            0 => format!("(\"[\" {items}? \"]\")"),
            _ => format!("(\"[\" {items} \"]\")"),
        })
    }

    fn dict(&mut self, schema: &'c Value) -> Result<String, GrammarError> {
        let properties = self.properties(schema);
        if properties.is_empty() {
            let value = match schema.get("additionalProperties") {
                Some(value @ Value::Object(_)) => self.value(value)?,
                _ => self.any(),
            };
            let entry = format!("STRING \": \" {value}");
            let entries = self
                .builder
                .lark
                .rule(&format!("{entry} (\", \" {entry})*"));
            self.builder.python_words();
            return Ok(format!("(\"{{\" {entries}? \"}}\")"));
        }
        let mut items = Vec::new();
        for (name, own) in properties {
            let head = literal(&format!("{}: ", Value::from(name.as_str())));
            let item = format!("{head} {}", self.value(own)?);
            let item = self.builder.lark.rule(&item);
            items.push((item, is_required(schema, name)));
        }
        let items = self.builder.lark.ordered(&items, ", ");
        Ok(format!("(\"{{\" {items} \"}}\")"))
    }

    /// Any literal.
    fn any(&mut self) -> String {
        self.builder.python_words();
        "any_value".to_owned()
    }
}

impl Builder<'_> {
    /// Rules for any literal, defined once.
    fn python_words(&mut self) {
        if self.lark.has("any_value") {
            return;
        }
        self.lark
            .define("STRING", r#"/"([^"\\\x00-\x1F\x7F]|\\["\\bfnrt])*"/"#);
        self.lark.define(
            "any_value",
            "STRING | /-?(0|[1-9][0-9]{0,18})(\\.[0-9]{1,18})?/ | \"True\" | \"False\" | \"None\" | any_list | any_dict",
        );
        self.lark
            .define("any_list", "\"[\" (any_value (\", \" any_value)*)? \"]\"");
        self.lark.define(
            "any_dict",
            "\"{\" (STRING \": \" any_value (\", \" STRING \": \" any_value)*)? \"}\"",
        );
    }
}

fn is_required(schema: &Value, name: &str) -> bool {
    let required = schema.get("required").and_then(Value::as_array);
    required.is_some_and(|required| required.iter().any(|own| own == name))
}

/// A constant as Python writes it.
fn python_literal(value: &Value) -> String {
    match value {
        Value::Null => "None".to_owned(),
        Value::Bool(true) => "True".to_owned(),
        Value::Bool(false) => "False".to_owned(),
        Value::Array(items) => {
            let items: Vec<String> = items.iter().map(python_literal).collect();
            format!("[{}]", items.join(", "))
        }
        Value::Object(map) => {
            let items = map.iter().map(|(name, value)| {
                format!("{}: {}", Value::from(name.as_str()), python_literal(value))
            });
            format!("{{{}}}", items.collect::<Vec<_>>().join(", "))
        }
        other => other.to_string(),
    }
}
