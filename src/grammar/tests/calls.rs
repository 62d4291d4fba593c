//! Calls of tools: the texts of each family, and texts drawn under their grammars.

use serde_json::{Value, json};

use super::support::{Drawn, Rng, Small, draw, plain, small};
use crate::grammar::{Grammar, GrammarError, ToolGrammar, ToolSpec};
use crate::text::{OutputFormat, OutputParser, OutputPiece, ToolFormat};

const FORMATS: [ToolFormat; 7] = [
    ToolFormat::Hermes,
    ToolFormat::Qwen3Coder,
    ToolFormat::Llama3Json,
    ToolFormat::Mistral,
    ToolFormat::Pythonic,
    ToolFormat::DeepSeek,
    ToolFormat::Harmony,
];

fn weather() -> ToolSpec {
    ToolSpec {
        name: "get_weather".to_owned(),
        parameters: json!({"type": "object", "properties": {
            "city": {"type": "string"},
            "unit": {"enum": ["C", "F"]},
            "days": {"type": "integer"},
        }, "required": ["city"], "additionalProperties": false}),
        strict: true,
    }
}

fn weather_now() -> ToolSpec {
    ToolSpec {
        name: "get_weather_now".to_owned(),
        parameters: json!({"type": "object", "properties": {
            "place": {"type": "object", "properties": {"lat": {"type": "number"}, "is_home": {"type": "boolean"}},
                "required": ["lat", "is_home"], "additionalProperties": false},
            "tags": {"type": "array", "items": {"type": "string"}, "maxItems": 2},
        }, "required": ["place"], "additionalProperties": false}),
        strict: true,
    }
}

fn tools(format: ToolFormat, is_required: bool, is_parallel: bool) -> ToolGrammar {
    ToolGrammar {
        format,
        tools: vec![weather(), weather_now()],
        is_required,
        is_parallel,
    }
}

fn check(small: &Small, tools: ToolGrammar, good: &[&str], bad: &[&str]) {
    let grammar = Grammar::Tools(tools);
    for text in good {
        assert!(small.accepts(&grammar, text), "{grammar:?} has {text:?}");
    }
    for text in bad {
        assert!(!small.accepts(&grammar, text), "{grammar:?} lacks {text:?}");
    }
}

const HERMES: &str = "<tool_call>\n{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Oslo\", \"days\": 3}}\n</tool_call>";
const HERMES_NOW: &str = "<tool_call>\n{\"name\": \"get_weather_now\", \"arguments\": {\"place\": {\"lat\": 1.5, \"is_home\": true}}}\n</tool_call>";

#[test]
fn hermes_writes_json_in_tags() {
    let both = format!("{HERMES}\n{HERMES_NOW}");
    let wrong_name = HERMES.replace("get_weather", "get_time");
    let wrong_type = HERMES.replace("3", "\"3\"");
    let with_text = format!("Let me see.{HERMES}");
    let behind = format!("{HERMES} Done.");
    let half = &HERMES[..HERMES.len() - 3];
    // Tags that are special tokens, tokens, and plain text.
    for small in [small(), plain()] {
        let of = |required, parallel| tools(ToolFormat::Hermes, required, parallel);
        let bad = [
            &*wrong_name,
            &wrong_type,
            half,
            "",
            "Hello",
            &with_text,
            &behind,
        ];
        check(small, of(true, true), &[HERMES, &both], &bad);
        check(small, of(true, false), &[HERMES, HERMES_NOW], &[&both]);
        let free = ["", "Hello <tool", HERMES, &with_text, &both];
        check(
            small,
            of(false, true),
            &free,
            &[&wrong_name, &wrong_type, half, &behind],
        );
        check(small, of(false, false), &["Hello", &with_text], &[&both]);
    }
}

#[test]
fn llama_writes_json_alone() {
    let call = "{\"name\": \"get_weather\", \"parameters\": {\"city\": \"Oslo\"}}";
    let tagged = format!("<|python_tag|>{call}");
    let both = format!("{call}; {call}");
    let of = |required, parallel| tools(ToolFormat::Llama3Json, required, parallel);
    check(
        small(),
        of(true, true),
        &[call, &tagged, &both],
        &["", "Hi", "{}", " {}"],
    );
    check(small(), of(true, false), &[call], &[&both]);
    check(
        small(),
        of(false, true),
        &["", "Hi {}", call, &tagged],
        &["{\"a\": 1}", " {}"],
    );
    // Without that token the tag is no part of a call.
    check(plain(), of(true, true), &[call, &both], &[&tagged]);
}

#[test]
fn mistral_writes_a_list_or_names_behind_a_token() {
    let call = "{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Oslo\"}}";
    let one = format!("[TOOL_CALLS][{call}]");
    let spaced = format!("[TOOL_CALLS] [{call}, {call}]");
    let of = |required, parallel| tools(ToolFormat::Mistral, required, parallel);
    check(
        plain(),
        of(true, true),
        &[&one, &spaced],
        &["", "Hi", "[TOOL_CALLS][]"],
    );
    check(plain(), of(true, false), &[&one], &[&spaced]);
    check(
        plain(),
        of(false, true),
        &["Hi", &format!("Hi{one}")],
        &["[TOOL_CALLS]x"],
    );
    let new = "[TOOL_CALLS]get_weather[ARGS]{\"city\": \"Oslo\"}";
    let now = "[TOOL_CALLS]get_weather_now[ARGS]{\"place\": {\"lat\": 1, \"is_home\": false}}";
    let both = format!("{new}{now}");
    check(
        small(),
        of(true, true),
        &[new, now, &both],
        &[&one, "[TOOL_CALLS]get[ARGS]{}"],
    );
    check(small(), of(true, false), &[new, now], &[&both]);
    check(
        small(),
        of(false, false),
        &["Hi", &format!("Hi{new}")],
        &[&both, "[ARGS]"],
    );
}

#[test]
fn deep_seek_writes_both_of_its_forms() {
    let call = |text: &str| format!("<｜tool▁call▁begin｜>{text}<｜tool▁call▁end｜>");
    let all = |calls: &str| format!("<｜tool▁calls▁begin｜>{calls}<｜tool▁calls▁end｜>");
    let fenced = call("function<｜tool▁sep｜>get_weather\n```json\n{\"city\": \"Oslo\"}\n```");
    let bare = call("get_weather<｜tool▁sep｜>{\"city\": \"Oslo\"}");
    let both = all(&format!("{fenced}\n{bare}"));
    let of = |required, parallel| tools(ToolFormat::DeepSeek, required, parallel);
    for small in [small(), plain()] {
        let bad = [&*fenced, "", &all("")];
        check(
            small,
            of(true, true),
            &[&all(&fenced), &all(&bare), &both],
            &bad,
        );
        check(small, of(true, false), &[&all(&bare)], &[&both]);
        check(
            small,
            of(false, true),
            &["Hi", &format!("Hi{both}")],
            &[&all("x")],
        );
    }
}

#[test]
fn gpt_oss_writes_messages() {
    let inside = "<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>{\"city\": \"Oslo\"}";
    let before =
        " to=functions.get_weather<|channel|>commentary json<|message|>{\"city\": \"Oslo\"}";
    let unknown = inside.replace("get_weather", "get_time");
    let wrong = inside.replace("\"Oslo\"", "5");
    let said =
        |text: &str| format!("<|channel|>commentary<|message|>{text}<|end|><|start|>assistant");
    let of = |required| tools(ToolFormat::Harmony, required, false);
    let last = "<|channel|>final<|message|>Hi. It is <b>10</b>";
    let late = format!("{}{last}", said("Hm."));
    for small in [small(), plain()] {
        let bad = [
            &*unknown,
            &wrong,
            "",
            "Hi",
            last,
            &inside[..inside.len() - 1],
        ];
        check(small, of(true), &[inside, before], &bad);
        let behind_text = format!("{}{inside}", said("I look."));
        let good = [inside, before, last, &behind_text];
        check(small, of(false), &good, &[&unknown, &wrong, "Hi", &late]);
    }
}

#[test]
fn qwen_coder_writes_values_in_tags() {
    let call = |name: &str, values: &[(&str, &str)]| {
        let value =
            |(name, value): &(&str, &str)| format!("<parameter={name}>\n{value}\n</parameter>\n");
        let values: String = values.iter().map(value).collect();
        format!("<tool_call>\n<function={name}>\n{values}</function>\n</tool_call>")
    };
    let full = call(
        "get_weather",
        &[
            ("city", "New\nYork </p> \"12345678901234567890123\""),
            ("unit", "C"),
            ("days", "3"),
        ],
    );
    let least = call("get_weather", &[("city", "")]);
    let now = call(
        "get_weather_now",
        &[
            ("place", "{\"lat\": 1, \"is_home\": true}"),
            ("tags", "[\"a\"]"),
        ],
    );
    let bad = [
        call("get_weather", &[]),
        call("get_weather", &[("unit", "C")]),
        call("get_weather", &[("city", "x"), ("unit", "K")]),
        call("get_weather", &[("city", "x"), ("days", "three")]),
        call(
            "get_weather",
            &[("city", "x"), ("days", "12345678901234567890")],
        ),
        call("get_weather_now", &[("place", "home")]),
    ];
    let bad: Vec<&str> = bad.iter().map(String::as_str).collect();
    let of = |required, parallel| tools(ToolFormat::Qwen3Coder, required, parallel);
    check(
        small(),
        of(true, true),
        &[&full, &least, &now, &format!("{least}\n{now}")],
        &bad,
    );
    check(
        small(),
        of(false, false),
        &["Hi", &format!("Hi{full}")],
        &bad,
    );
}

#[test]
fn pythonic_calls_are_python() {
    let full = "[get_weather(city=\"Oslo\", unit=\"F\", days=-3)]";
    let least = "[get_weather(city=\"\\\"\")]";
    let both = "[get_weather(city=\"a\"), get_weather_now(place={\"lat\": 1.5, \"is_home\": True}, tags=[\"a\", \"b\"])]";
    let bad = [
        "[]",
        "[get_weather()]",
        "[get_weather(unit=\"F\")]",
        "[get_weather(city=\"a\", days=1.5)]",
        "[get_weather_now(place={\"lat\": 1, \"is_home\": true})]",
        "get_weather(city=\"a\")",
    ];
    let of = |required, parallel| tools(ToolFormat::Pythonic, required, parallel);
    check(small(), of(true, true), &[full, least, both], &bad);
    check(small(), of(true, false), &[full], &[both]);
    check(small(), of(false, true), &["Hi [1]", both], &["[1]"]);
}

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
