//! Texts drawn under hundreds of schemas, checked by another implementation of JSON Schema.

use std::path::Path;

use serde_json::{Value, json};

use super::support::{Drawn, Rng, draw, small};
use crate::engine::TokenMask;
use crate::grammar::{Grammar, GrammarError};

/// Schemas of `tests/schemas`, by name.
fn listed() -> Vec<(String, Value)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/schemas");
    let mut schemas = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let items: Vec<Value> = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        let stem = path.file_stem().unwrap().to_string_lossy().into_owned();
        for item in items {
            let name = format!("{stem}: {}", item["name"].as_str().unwrap());
            schemas.push((name, item["schema"].clone()));
        }
    }
    schemas.sort_by(|a, b| a.0.cmp(&b.0));
    schemas
}

fn compile(
    schema: &Value,
    strict: bool,
) -> Result<Box<dyn crate::engine::TokenConstraint>, GrammarError> {
    let schema = schema.clone();
    small().compile(&Grammar::JsonSchema { schema, strict })
}

fn validator(schema: &Value) -> jsonschema::Validator {
    let options = jsonschema::options().should_validate_formats(true);
    options.build(schema).unwrap()
}

#[test]
fn all_drawn_texts_are_valid() {
    let schemas = listed();
    assert!(schemas.len() >= 300, "{}", schemas.len());
    let mut rng = Rng(5);
    let (mut num_whole, mut num_cut) = (0, 0);
    let mut faults = Vec::new();
    for (name, schema) in &schemas {
        let validator = validator(schema);
        for strict in [true, false] {
            let constraint = match compile(schema, strict) {
                Ok(constraint) => constraint,
                Err(error) => {
                    faults.push(format!("{name} (strict {strict}): {error}"));
                    continue;
                }
            };
            for _ in 0..2 {
                match draw(small(), constraint.fork(), &mut rng, 400) {
                    Drawn::Cut => num_cut += 1,
                    Drawn::Whole(text) => {
                        num_whole += 1;
                        let value: Result<Value, _> = serde_json::from_str(&text);
                        let is_valid = value.is_ok_and(|value| validator.is_valid(&value));
                        if !is_valid {
                            faults.push(format!("{name} (strict {strict}): {text}"));
                        }
                    }
                }
            }
        }
    }
    assert!(
        faults.is_empty(),
        "{} faults:\n{}",
        faults.len(),
        faults.join("\n")
    );
    assert!(
        num_cut * 20 < num_whole,
        "{num_cut} of {num_whole} were cut"
    );
}

/// Schemas with a keyword that cannot be enforced, the keyword, and its place.
fn unenforceable() -> Vec<(Value, &'static str, &'static str)> {
    vec![
        (
            json!({"type": "object", "properties": {"a": {"not": {"type": "null"}}}}),
            "not",
            "/properties/a",
        ),
        (
            json!({"type": "array", "uniqueItems": true}),
            "uniqueItems",
            "",
        ),
        (
            json!({"type": "array", "items": {"contains": {"const": 1}}}),
            "contains",
            "/items",
        ),
        (
            json!({"anyOf": [{"type": "string"}, {"if": {}, "then": {}}]}),
            "if",
            "/anyOf/1",
        ),
        (
            json!({"$defs": {"x/y": {"propertyNames": {"maxLength": 3}}}, "$ref": "#/$defs/x~1y"}),
            "propertyNames",
            "/$defs/x~1y",
        ),
        (
            json!({"type": "object", "dependentRequired": {"a": ["b"]}}),
            "dependentRequired",
            "",
        ),
        (
            json!({"type": "object", "unevaluatedProperties": false}),
            "unevaluatedProperties",
            "",
        ),
        (
            json!({"oneOf": [{"minimum": 1}, {"maximum": 5}]}),
            "oneOf",
            "",
        ),
        (
            json!({"properties": {"a": {"type": "string", "format": "regex"}}}),
            "regex",
            "/properties/a",
        ),
        (json!({"type": "string", "pattern": "(?=a)b"}), "(?=a)b", ""),
        (
            json!({"type": "object", "minProperties": 3}),
            "minProperties",
            "",
        ),
        (
            json!({"type": "object", "properties": {"a": {}, "b": {}}, "maxProperties": 1}),
            "maxProperties",
            "",
        ),
        (
            json!({"type": "number", "multipleOf": 1e-9}),
            "multipleOf",
            "",
        ),
    ]
}

#[test]
fn keywords_that_cannot_be_enforced_are_named() {
    for (schema, keyword, path) in unenforceable() {
        let error = compile(&schema, true).expect_err(&schema.to_string());
        let GrammarError::Invalid(message) = &error else {
            panic!("{schema}: {error}");
        };
        assert!(message.contains(keyword), "{schema}: {message}");
        assert!(message.contains(path), "{schema}: {message}");
        // Otherwise the keyword is left out.
        compile(&schema, false).unwrap_or_else(|error| panic!("{schema}: {error}"));
    }
}

#[test]
fn wrong_schemas_are_refused_either_way() {
    let cases = [
        (json!(5), "object or a boolean"),
        (json!(null), "object or a boolean"),
        (json!(false), "accepts nothing"),
        (json!({"type": "text"}), "\"text\""),
        (json!({"type": []}), "types"),
        (json!({"properties": {"a": 5}}), "/properties/a"),
        (json!({"minLength": -1}), "minLength"),
        (json!({"minItems": 1.5}), "minItems"),
        (json!({"pattern": 5}), "pattern"),
        (
            json!({"$ref": "https://example.com/schema.json"}),
            "never fetched",
        ),
        (
            json!({"properties": {"a": {"$ref": "other.json"}}}),
            "/properties/a",
        ),
        (
            json!({"$id": "https://a.example/", "$ref": "https://b.example/"}),
            "",
        ),
        (json!({"$ref": "#/$defs/missing"}), "missing"),
        (
            json!({"type": "object", "properties": {"a": false}, "required": ["a"]}),
            "a",
        ),
        (
            json!({"type": "string", "minLength": 5, "maxLength": 3}),
            "5",
        ),
        (json!({"type": "integer", "minimum": 5, "maximum": 3}), "5"),
        (json!({"type": "integer", "minimum": "5"}), "minimum"),
        (json!({"type": "array", "minItems": 5, "maxItems": 3}), "5"),
        (json!({"enum": []}), ""),
        (json!({"enum": 5}), "enum"),
        (json!({"allOf": [{"type": "string"}, {"type": "null"}]}), ""),
        (json!({"const": 1e300}), "digits"),
        (json!({"enum": [9_007_199_254_740_993_u64]}), "digits"),
        (json!({"multipleOf": 0}), "multipleOf"),
    ];
    for (schema, part) in cases {
        for strict in [true, false] {
            let error = compile(&schema, strict).expect_err(&schema.to_string());
            let message = error.to_string();
            assert!(
                matches!(error, GrammarError::Invalid(_)),
                "{schema}: {message}"
            );
            assert!(message.contains(part), "{schema}: {message}");
            let is_plain =
                !message.contains("panic") && !message.contains('<') && message.len() < 400;
            assert!(is_plain && !message.is_empty(), "{schema}: {message}");
        }
    }
}

/// What others were told of by their users.
#[test]
fn numbers_and_white_space_end() {
    for schema in [
        json!({}),
        json!({"type": "number"}),
        json!({"type": "integer"}),
        json!({"type": "integer", "minimum": 3}),
    ] {
        let mut constraint = compile(&schema, true).unwrap();
        let digit = small().tokenizer.encode("7", false, false).unwrap()[0];
        let many = (0..100).take_while(|_| constraint.accept(digit)).count();
        assert_eq!(many, 19, "{schema}");
        assert!(small().may_end(&mut *constraint), "{schema}");
        // Tokens of several digits are bounded as well.
        constraint.rollback(1);
        let twelve = small().tokenizer.encode("12", false, false).unwrap()[0];
        assert!(
            !constraint.accept(twelve) && constraint.accept(digit),
            "{schema}"
        );
    }
    let mut constraint = compile(&json!({"type": "object"}), false).unwrap();
    for text in [" ", "\n", "\t", "\n\n"] {
        let id = small().tokenizer.encode(text, false, false).unwrap()[0];
        assert!(!constraint.accept(id), "{text:?}");
    }
    // A key ends, and an object may end behind each of its values.
    let schema = json!({"type": "object", "patternProperties": {"^a": {"type": "integer"}}, "additionalProperties": false});
    let grammar = Grammar::JsonSchema {
        schema,
        strict: true,
    };
    for text in ["{}", "{\"a\": 1}", "{\"a\": 1, \"ab\": 2, \"ac\": 3}"] {
        assert!(small().accepts(&grammar, text), "{text}");
    }
    assert!(!small().accepts(&grammar, "{\"b\": 1}"));
}

/// A bound on digits may not leave a text without an end.
#[test]
fn a_number_of_zeros_gets_the_digit_that_it_needs() {
    for (begin, schema) in [
        (
            "0.",
            json!({"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1}),
        ),
        ("-0.", json!({"type": "number", "exclusiveMaximum": 0})),
    ] {
        let mut constraint = compile(&schema, true).unwrap();
        let zeros = format!("{begin}{}", "0".repeat(19));
        for id in small().tokenizer.encode(&zeros, false, false).unwrap() {
            assert!(constraint.accept(id), "{schema}");
        }
        let mut mask = TokenMask::none(small().tokenizer.vocab_size());
        constraint.mask(&mut mask).unwrap();
        let allowed = (0..mask.vocab_size() as u32).filter(|id| mask.is_allowed(*id));
        let texts: Vec<_> = allowed.map(|id| small().tokenizer.token_text(id)).collect();
        let digits: Vec<_> = ('1'..='9').map(String::from).collect();
        assert_eq!(texts, digits, "{schema}");
        let one = small().tokenizer.encode("1", false, false).unwrap()[0];
        let zero = small().tokenizer.encode("0", false, false).unwrap()[0];
        assert!(!constraint.accept(zero) && constraint.accept(one));
        assert!(!constraint.accept(one) && small().may_end(&mut *constraint));
    }
}

#[test]
fn a_name_is_written_in_one_way() {
    let schema = json!({"type": "object", "properties": {"a": {"type": "integer"}}});
    let grammar = Grammar::JsonSchema {
        schema,
        strict: true,
    };
    assert!(small().accepts(&grammar, "{\"a\": 1, \"b\": \"x\"}"));
    // Both would be `a`, and the last one would count.
    assert!(!small().accepts(&grammar, "{\"a\": 1, \"\\u0061\": \"x\"}"));
    assert!(!small().accepts(&grammar, "{\"a\": 1, \"a\": \"x\"}"));
}

#[test]
fn patterns_and_lengths_hold_together() {
    let schema = json!({"type": "string", "pattern": "^[a-z]+$", "maxLength": 3});
    let grammar = Grammar::JsonSchema {
        schema,
        strict: true,
    };
    for (text, is_valid) in [
        ("\"abc\"", true),
        ("\"abcd\"", false),
        ("\"\"", false),
        ("\"A\"", false),
    ] {
        assert_eq!(small().accepts(&grammar, text), is_valid, "{text}");
    }
}
