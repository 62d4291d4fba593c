//! Calls drawn under their grammars, and tools that make none.

use serde_json::{Value, json};

use super::calls::{FORMATS, tools, weather};
use super::support::{Drawn, Rng, draw, plain, small};
use crate::grammar::{Grammar, GrammarError, ToolGrammar, ToolSpec};
use crate::text::{OutputFormat, OutputParser, OutputPiece, ToolFormat};

/// What the parser of answers reads: names, and arguments as JSON.
fn read(format: ToolFormat, tools: &[ToolSpec], text: &str) -> Vec<(String, Value)> {
    let format = OutputFormat {
        tools: Some(format),
        ..OutputFormat::default()
    };
    let schemas: Vec<Value> = tools
        .iter()
        .map(|tool| json!({"type": "function", "function": {"name": tool.name, "parameters": tool.parameters}}))
        .collect();
    let parser = OutputParser::new(format, false);
    let mut parser = parser
        .with_tools(tools.iter().map(|tool| tool.name.clone()))
        .with_schemas(&schemas);
    let mut pieces = parser.push(text);
    pieces.extend(parser.finish());
    let mut calls: Vec<(String, String)> = Vec::new();
    for piece in pieces {
        match piece {
            OutputPiece::Call { name, .. } => calls.push((name, String::new())),
            OutputPiece::Arguments { text, .. } => calls.last_mut().unwrap().1.push_str(&text),
            OutputPiece::Content(text) => panic!("{text:?} is no call"),
            OutputPiece::Reasoning(text) => panic!("{text:?} is no call"),
        }
    }
    let value = |(name, text): (String, String)| {
        let value = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{text}: {error}"));
        (name, value)
    };
    calls.into_iter().map(value).collect()
}

#[test]
fn drawn_calls_are_read_as_calls_with_valid_arguments() {
    let mut rng = Rng(3);
    for format in FORMATS {
        for (small, is_parallel) in [(small(), false), (plain(), true)] {
            // gpt-oss makes one call at a time.
            let is_parallel = is_parallel && format != ToolFormat::Harmony;
            let tools = tools(format, true, is_parallel);
            let grammar = Grammar::Tools(tools.clone());
            let mut num_whole = 0;
            for _ in 0..10 {
                let constraint = small.compile(&grammar).unwrap();
                let Drawn::Whole(text) = draw(small, constraint, &mut rng, 600) else {
                    continue;
                };
                num_whole += 1;
                let calls = read(format, &tools.tools, &text);
                assert!(
                    !calls.is_empty() && (is_parallel || calls.len() == 1),
                    "{text}"
                );
                for (name, arguments) in calls {
                    let tool = tools.tools.iter().find(|tool| tool.name == name).unwrap();
                    let validator = jsonschema::validator_for(&tool.parameters).unwrap();
                    assert!(validator.is_valid(&arguments), "{text:?}: {arguments}");
                }
            }
            // Values in tags end with a long mark, which is seldom drawn.
            let least = if format == ToolFormat::Qwen3Coder {
                1
            } else {
                3
            };
            assert!(num_whole >= least, "{format:?}: {num_whole}");
        }
    }
}

#[test]
fn tools_may_have_any_parameters() {
    let loose = json!({"type": "object", "properties": {
        "any": {}, "one": {"anyOf": [{"type": "string"}, {"type": "null"}]}, "map": {"type": "object"},
        "many": {"type": ["integer", "boolean"]}, "self": {"$ref": "#/$defs/leaf"},
        "list": {"type": "array", "items": {"type": "integer"}, "minItems": 1, "maxItems": 3},
    }, "$defs": {"leaf": {"type": "string", "maxLength": 3}}});
    let mut rng = Rng(4);
    for format in FORMATS {
        for parameters in [
            Value::Null,
            json!({}),
            json!({"properties": {}}),
            loose.clone(),
        ] {
            let tool = ToolSpec {
                name: "f".to_owned(),
                parameters,
                strict: false,
            };
            let grammar = Grammar::Tools(ToolGrammar {
                tools: vec![tool],
                ..tools(format, true, false)
            });
            let constraint = small()
                .compile(&grammar)
                .unwrap_or_else(|e| panic!("{format:?}: {e}"));
            draw(small(), constraint, &mut rng, 100);
        }
    }
}

#[test]
fn wrong_tools_are_refused() {
    let of = |tools: Vec<ToolSpec>| {
        small().compile(&Grammar::Tools(ToolGrammar {
            format: ToolFormat::Hermes,
            tools,
            is_required: true,
            is_parallel: false,
        }))
    };
    let named = |name: &str| ToolSpec {
        name: name.to_owned(),
        ..weather()
    };
    let message = |tools| of(tools).unwrap_err().to_string();
    assert!(message(vec![]).contains("no tools"));
    assert!(message(vec![named("a"), named("b"), named("a")]).contains("\"a\""));
    assert!(message(vec![named("a b\"")]).contains("name"));
    let strict = ToolSpec {
        parameters: json!({"type": "object", "properties": {"x": {"not": {}}}}),
        ..weather()
    };
    let error = message(vec![strict.clone()]);
    assert!(
        error.contains("get_weather")
            && error.contains("\"not\"")
            && error.contains("/properties/x"),
        "{error}"
    );
    assert!(
        of(vec![ToolSpec {
            strict: false,
            ..strict
        }])
        .is_ok()
    );
    let many: Vec<ToolSpec> = (0..129).map(|index| named(&format!("f{index}"))).collect();
    assert!(matches!(of(many), Err(GrammarError::TooMuchWork(_))));
    let large = ToolSpec {
        parameters: json!({"description": "x".repeat(10 << 20)}),
        ..weather()
    };
    assert!(matches!(of(vec![large]), Err(GrammarError::TooMuchWork(_))));
    let many: Vec<ToolSpec> = (0..128).map(|index| named(&format!("f{index}"))).collect();
    assert!(of(many).is_ok());
}
