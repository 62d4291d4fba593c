//! What a mutator puts into JSON: names with values that they had in a target's seeds, and those
//! that the OpenAPI document knows.

use serde_json::{Map, Value};

use crate::parts;

/// Numbers, texts and shapes at which programs break.
pub fn odd_values() -> Vec<Value> {
    let numbers = [
        "0",
        "-1",
        "1",
        "2",
        "0.5",
        "-0.0",
        "1e308",
        "-1e308",
        "1e-320",
        "255",
        "65536",
        "2147483647",
        "2147483648",
        "4294967295",
        "9007199254740993",
        "9223372036854775807",
        "9223372036854775808",
        "18446744073709551615",
        "1000000000000000000000",
    ];
    let numbers = numbers
        .iter()
        .map(|text| serde_json::from_str(text).expect("a number"));
    let long = "a".repeat(300);
    let texts = [
        "",
        " ",
        "\n",
        "\u{0}",
        "é",
        "\u{10ffff}",
        "\u{202e}",
        "a",
        "1",
        "true",
        "<|im_end|>",
        "\\",
        "../..",
        "(?:a?){99}b",
        &long,
    ];
    let shapes = [
        Value::Null,
        true.into(),
        false.into(),
        Value::Array(vec![]),
        Map::new().into(),
    ];
    numbers
        .chain(texts.map(Value::from))
        .chain(shapes)
        .collect()
}

/// Names and values.
#[derive(Debug, Default)]
pub struct Words {
    /// `Null` where no seed has the name.
    pub entries: Vec<(String, Value)>,
    pub texts: Vec<Value>,
    pub odd: Vec<Value>,
}

impl Words {
    /// Those in the JSON of a target's seeds, behind the first `prefix` bytes of their parts.
    pub fn of_seeds(target: &str, prefix: usize) -> Self {
        let mut words = Self {
            odd: odd_values(),
            ..Self::default()
        };
        let files = std::fs::read_dir(crate::seeds(target))
            .into_iter()
            .flatten()
            .flatten();
        let mut files: Vec<_> = files.map(|entry| entry.path()).collect();
        files.sort();
        for file in files {
            let data = std::fs::read(file).unwrap_or_default();
            for part in parts::split(&data) {
                let json = part.get(prefix..).unwrap_or(&[]);
                if let Ok(value) = serde_json::from_slice(json) {
                    words.learn(&value);
                }
            }
        }
        words
    }

    fn learn(&mut self, value: &Value) {
        match value {
            Value::Object(entries) => {
                for (name, value) in entries {
                    self.entries.push((name.clone(), value.clone()));
                    self.learn(value);
                }
            }
            Value::Array(items) => items.iter().for_each(|item| self.learn(item)),
            Value::String(_) => self.texts.push(value.clone()),
            _ => {}
        }
    }

    /// Names of properties and values of enumerations, of an OpenAPI document.
    pub fn learn_document(&mut self, document: &Value) {
        if let Value::Array(items) = document {
            items.iter().for_each(|item| self.learn_document(item));
        }
        let Value::Object(fields) = document else {
            return;
        };
        for (key, value) in fields {
            match (key.as_str(), value) {
                ("properties", Value::Object(properties)) => {
                    let names = properties.keys().map(|name| (name.clone(), Value::Null));
                    self.entries.extend(names);
                }
                ("enum", Value::Array(values)) => self.texts.extend(values.iter().cloned()),
                _ => {}
            }
            self.learn_document(value);
        }
    }
}
