//! Structured output under all of its names.

use serde_json::{Value, json};

use crate::api::openai::structured::{Structured, StructuredFields};
use crate::grammar::Grammar;

fn format(value: Value) -> StructuredFields {
    StructuredFields {
        response_format: Some(value),
        ..StructuredFields::default()
    }
}

fn outputs(value: Value) -> StructuredFields {
    StructuredFields {
        structured_outputs: Some(value),
        ..StructuredFields::default()
    }
}

fn grammar(fields: &StructuredFields) -> Option<Grammar> {
    let read = fields.read();
    read.unwrap_or_else(|error| panic!("{fields:?}: {}", error.message))
        .map(|structured| structured.grammar)
}

/// The field that is refused.
fn refused(fields: &StructuredFields) -> String {
    let error = fields.read().expect_err(&format!("{fields:?}"));
    assert_eq!(error.status.as_u16(), 400);
    let field = error.param.unwrap();
    assert!(error.message.contains(&field), "{field}: {}", error.message);
    field
}

fn schema(strict: bool) -> Grammar {
    Grammar::JsonSchema {
        schema: json!({"type": "object"}),
        strict,
    }
}

/// Each of the fields is that grammar.
fn check(cases: Vec<(StructuredFields, Option<Grammar>)>) {
    for (fields, expected) in cases {
        assert_eq!(grammar(&fields), expected, "{fields:?}");
    }
}

#[test]
fn openai_s_names_are_grammars() {
    let object = json!({"type": "object"});
    let openai = |strict: Value| {
        format(json!({"type": "json_schema", "json_schema":
            {"name": "it", "schema": object, "strict": strict}}))
    };
    let default = StructuredFields::default;
    check(vec![
        (default(), None),
        (format(json!(null)), None),
        (format(json!({"type": "text"})), None),
        (
            format(json!({"type": "json_object"})),
            Some(Grammar::JsonObject),
        ),
        (
            format(json!({"type": "json_object", "schema": object})),
            Some(schema(false)),
        ),
        (openai(json!(null)), Some(schema(false))),
        (openai(json!(true)), Some(schema(true))),
        (
            format(json!({"type": "json_schema", "json_schema": {"name": "it"}})),
            Some(Grammar::JsonObject),
        ),
    ]);
    let tag = json!({"type": "structural_tag", "format": {}});
    assert_eq!(
        grammar(&format(tag.clone())),
        Some(Grammar::StructuralTag(tag))
    );
}

#[test]
fn structured_outputs_are_grammars() {
    let object = json!({"type": "object"});
    check(vec![
        (outputs(json!({"json": object})), Some(schema(false))),
        (
            outputs(json!({"json": object.to_string()})),
            Some(schema(false)),
        ),
        (
            outputs(json!({"json": null, "regex": "a+"})),
            Some(Grammar::Regex("a+".to_owned())),
        ),
        (
            outputs(json!({"json_object": true})),
            Some(Grammar::JsonObject),
        ),
        (
            outputs(json!({"choice": ["a", "b"], "disable_any_whitespace": true})),
            Some(Grammar::Choice(vec!["a".to_owned(), "b".to_owned()])),
        ),
        (
            outputs(json!({"grammar": "g"})),
            Some(Grammar::Ebnf("g".to_owned())),
        ),
        (
            outputs(json!({"structural_tag": "{\"type\": \"structural_tag\"}"})),
            Some(Grammar::StructuralTag(json!({"type": "structural_tag"}))),
        ),
    ]);
}

#[test]
fn older_names_and_llama_cpp_s_are_grammars() {
    let object = json!({"type": "object"});
    let default = StructuredFields::default;
    check(vec![
        (
            StructuredFields {
                guided_json: Some(object.clone()),
                ..default()
            },
            Some(schema(false)),
        ),
        (
            StructuredFields {
                guided_regex: Some("a".to_owned()),
                ..default()
            },
            Some(Grammar::Regex("a".to_owned())),
        ),
        (
            StructuredFields {
                guided_choice: Some(vec!["a".to_owned()]),
                ..default()
            },
            Some(Grammar::Choice(vec!["a".to_owned()])),
        ),
        (
            StructuredFields {
                guided_grammar: Some("g".to_owned()),
                ..default()
            },
            Some(Grammar::Ebnf("g".to_owned())),
        ),
        (
            StructuredFields {
                guided_json_object: Some(true),
                ..default()
            },
            Some(Grammar::JsonObject),
        ),
        (
            StructuredFields {
                guided_json_object: Some(false),
                ..default()
            },
            None,
        ),
        (
            StructuredFields {
                grammar: Some("root ::= \"a\"".to_owned()),
                ..default()
            },
            Some(Grammar::Gbnf("root ::= \"a\"".to_owned())),
        ),
        (
            StructuredFields {
                grammar: Some(" ".to_owned()),
                ..default()
            },
            None,
        ),
        (
            StructuredFields {
                json_schema: Some(object.clone()),
                ..default()
            },
            Some(schema(false)),
        ),
    ]);
}

/// Each is refused with the name of its field.
fn check_refused(cases: Vec<(StructuredFields, &str)>) {
    for (fields, field) in cases {
        assert_eq!(refused(&fields), field, "{fields:?}");
    }
}

#[test]
fn bad_formats_are_named() {
    let named = |more: Value| {
        let mut schema = json!({"name": "it", "schema": {}});
        for (name, value) in more.as_object().unwrap() {
            schema[name] = value.clone();
        }
        format(json!({"type": "json_schema", "json_schema": schema}))
    };
    check_refused(vec![
        (format(json!("json")), "response_format"),
        (format(json!({})), "response_format.type"),
        (format(json!({"type": "yaml"})), "response_format.type"),
        (
            format(json!({"type": "json_schema"})),
            "response_format.json_schema",
        ),
        (
            named(json!({"name": "a b"})),
            "response_format.json_schema.name",
        ),
        (
            named(json!({"name": null})),
            "response_format.json_schema.name",
        ),
        (
            named(json!({"strict": 1})),
            "response_format.json_schema.strict",
        ),
        (
            named(json!({"schema": []})),
            "response_format.json_schema.schema",
        ),
        (
            named(json!({"description": 1})),
            "response_format.json_schema.description",
        ),
    ]);
}

#[test]
fn bad_structured_outputs_are_named() {
    check_refused(vec![
        (outputs(json!("json")), "structured_outputs"),
        (outputs(json!({})), "structured_outputs"),
        (outputs(json!({"json_object": false})), "structured_outputs"),
        (
            outputs(json!({"json": {}, "regex": "a"})),
            "structured_outputs.regex",
        ),
        (outputs(json!({"json": "{"})), "structured_outputs.json"),
        (outputs(json!({"choice": []})), "structured_outputs.choice"),
        (
            outputs(json!({"choice": ["a", ""]})),
            "structured_outputs.choice[1]",
        ),
        (outputs(json!({"choice": "a"})), "structured_outputs.choice"),
        (outputs(json!({"regex": 1})), "structured_outputs.regex"),
        (
            outputs(json!({"structural_tag": "x"})),
            "structured_outputs.structural_tag",
        ),
        (
            outputs(json!({"whitespace_pattern": "", "json": {}})),
            "structured_outputs.whitespace_pattern",
        ),
        (outputs(json!({"yaml": 1})), "structured_outputs.yaml"),
    ]);
}

#[test]
fn bad_fields_of_other_names_are_named() {
    let default = StructuredFields::default;
    check_refused(vec![
        (
            StructuredFields {
                guided_json: Some(json!(1)),
                ..default()
            },
            "guided_json",
        ),
        (
            StructuredFields {
                guided_regex: Some(String::new()),
                ..default()
            },
            "guided_regex",
        ),
        (
            StructuredFields {
                guided_choice: Some(vec!["a".to_owned(); 1025]),
                ..default()
            },
            "guided_choice",
        ),
        (
            StructuredFields {
                guided_decoding_backend: Some("outlines".to_owned()),
                ..default()
            },
            "guided_decoding_backend",
        ),
        (
            StructuredFields {
                guided_whitespace_pattern: Some(" ".to_owned()),
                ..default()
            },
            "guided_whitespace_pattern",
        ),
        (
            StructuredFields {
                response_format: Some(json!({"type": "json_object"})),
                guided_regex: Some("a".to_owned()),
                ..default()
            },
            "guided_regex",
        ),
    ]);
}

#[test]
fn additional_properties_can_be_forbidden() {
    let schema = json!({"properties": {"a": {"properties": {}, "additionalProperties": true},
        "b": {"items": {"patternProperties": {}}}, "c": {"type": "string"}}});
    let asked = json!({"json": schema, "disable_additional_properties": true});
    let Some(Grammar::JsonSchema { schema, .. }) = grammar(&outputs(asked.clone())) else {
        panic!("a schema");
    };
    let expected = json!({"additionalProperties": false, "properties": {
        "a": {"properties": {}, "additionalProperties": true},
        "b": {"items": {"patternProperties": {}, "additionalProperties": false}},
        "c": {"type": "string"}}});
    assert_eq!(schema, expected);
    let read = outputs(asked.clone()).read().unwrap();
    let told = read.map(|Structured { field, asked, .. }| (field, asked));
    let expected = (
        "structured_outputs".to_owned(),
        json!({"structured_outputs": asked}),
    );
    assert_eq!(told, Some(expected), "traces have what was sent");
}
