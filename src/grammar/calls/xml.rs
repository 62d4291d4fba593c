//! Calls in tags:
//! `<tool_call>\n<function=NAME>\n<parameter=KEY>\nVALUE\n</parameter>\n</function>\n</tool_call>`.

use serde_json::{Value, json};

use super::super::lark::{in_pattern, literal, mark};
use super::super::numbers::NumberScope;
use super::super::schema;
use super::super::{GrammarError, ToolSpec};
use super::Builder;

const VALUE_END: &str = "\n</parameter>\n";

impl Builder<'_> {
    /// Qwen3-Coder. Strings stand there as they are, and all else as JSON.
    pub(super) fn qwen3_coder(&mut self) -> Result<(String, NumberScope), GrammarError> {
        let begin = self.mark("<tool_call>")?;
        let end = mark(&self.mark("</tool_call>")?);
        let call = self.any_call(|builder, tool| {
            let head = literal(&format!("\n<function={}>\n", tool.name));
            let parameters = builder.parameters(tool)?;
            Ok(format!("{head} {parameters} \"</function>\\n\" {end}"))
        })?;
        let separator = format!("\"\\n\" {}", mark(&begin));
        let calls = self.several(&call, &separator);
        let start = self.behind_text(&begin, &calls);
        let names = self.tools.tools.iter().flat_map(properties);
        let json = names.filter(|(_, schema)| !is_text(schema));
        let begins = json.map(|(name, _)| format!("<parameter={name}>\n").into_bytes());
        let numbers = NumberScope::Between {
            begins: begins.collect(),
            ends: vec![VALUE_END.as_bytes().to_vec()],
        };
        Ok((start, numbers))
    }

    fn parameters(&mut self, tool: &ToolSpec) -> Result<String, GrammarError> {
        // The whole schema's faults have the paths that the client knows.
        let whole = schema::arguments(&tool.parameters);
        let prepared = self.prepare(tool, &whole)?;
        let required = prepared.get("required").and_then(Value::as_array);
        let required: Vec<&str> = required
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .collect();
        let mut items = Vec::new();
        for (name, own) in properties_of(&prepared) {
            let value = self.value(tool, &with_definitions(own, &whole))?;
            let head = literal(&format!("<parameter={name}>\n"));
            let item = self.lark.rule(&format!("{head} {value}"));
            items.push((item, required.contains(&name.as_str())));
        }
        Ok(self.lark.ordered(&items, ""))
    }

    /// A value and the tag behind it.
    fn value(&mut self, tool: &ToolSpec, own: &Value) -> Result<String, GrammarError> {
        if let Some(options) = texts(own) {
            let options: Vec<String> = options
                .iter()
                .map(|text| literal(&format!("{text}{VALUE_END}")))
                .collect();
            return Ok(format!("({})", options.join(" | ")));
        }
        if !is_text(own) {
            let prepared = self.prepare(tool, own)?;
            let json = self.lark.schema(prepared);
            return Ok(format!("{json} {}", literal(VALUE_END)));
        }
        // The first end of a parameter ends the text.
        let mut body = format!("/(?s:.*)/ & ~/(?s:.*){}(?s:.*)/", in_pattern(VALUE_END));
        let prepared = self.prepare(tool, own)?;
        let length = |keyword: &str| prepared.get(keyword).and_then(Value::as_u64);
        if let (Some(least), most) = (length("minLength").or(Some(0)), length("maxLength")) {
            let most = most.map_or(String::new(), |most| most.to_string());
            body += &format!(" & /(?s:.{{{least},{most}}})/");
        }
        if let Some(pattern) = prepared.get("pattern").and_then(Value::as_str) {
            body += &format!(" & /{}/", search(pattern));
        }
        let text = self.lark.terminal(&body);
        Ok(self.lark.until(&text, VALUE_END))
    }
}

/// A pattern that is found somewhere, as one that matches the whole text.
fn search(pattern: &str) -> String {
    let pattern = llguidance::regex_to_lark(pattern, "dw");
    let start = if pattern.starts_with('^') {
        ""
    } else {
        "(?s:.*)"
    };
    let end = if pattern.ends_with('$') && !pattern.ends_with("\\$") {
        ""
    } else {
        "(?s:.*)"
    };
    // An alternative may be anchored by itself: then the outer texts would be too free.
    match pattern.contains('|') {
        true => format!("(?s:.*)(?:{pattern})(?s:.*)"),
        false => format!("{start}(?:{pattern}){end}"),
    }
}

fn properties(tool: &ToolSpec) -> impl Iterator<Item = (&String, &Value)> {
    properties_of(&tool.parameters)
}

fn properties_of(schema: &Value) -> impl Iterator<Item = (&String, &Value)> {
    let properties = schema.get("properties").and_then(Value::as_object);
    properties.into_iter().flatten()
}

/// A part of a schema with the definitions of the whole.
fn with_definitions(part: &Value, whole: &Value) -> Value {
    let mut part = match part {
        Value::Bool(_) => json!({}),
        part => part.clone(),
    };
    for keyword in ["$defs", "definitions"] {
        if let (Value::Object(map), Some(definitions)) = (&mut part, whole.get(keyword)) {
            map.insert(keyword.to_owned(), definitions.clone());
        }
    }
    part
}

/// Whether a value is written as plain text.
fn is_text(schema: &Value) -> bool {
    match schema.get("type") {
        Some(Value::Array(types)) => types.contains(&json!("string")),
        Some(kind) => kind == "string",
        None => texts(schema).is_some(),
    }
}

/// The texts that a string may be, where the schema lists them.
fn texts(schema: &Value) -> Option<Vec<&str>> {
    if let Some(one) = schema.get("const") {
        return Some(vec![one.as_str()?]);
    }
    let listed = schema.get("enum")?.as_array()?;
    listed.iter().map(Value::as_str).collect()
}
