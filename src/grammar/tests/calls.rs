//! Calls of tools: the texts of each family.

use serde_json::json;

use super::support::{Small, plain, small};
use crate::grammar::{Grammar, ToolGrammar, ToolSpec};
use crate::text::ToolFormat;

pub(super) const FORMATS: [ToolFormat; 7] = [
    ToolFormat::Hermes,
    ToolFormat::Qwen3Coder,
    ToolFormat::Llama3Json,
    ToolFormat::Mistral,
    ToolFormat::Pythonic,
    ToolFormat::DeepSeek,
    ToolFormat::Harmony,
];

pub(super) fn weather() -> ToolSpec {
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

pub(super) fn tools(format: ToolFormat, is_required: bool, is_parallel: bool) -> ToolGrammar {
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
