//! Tools, and the choice among them.

use serde_json::{Value, json};

use crate::api::openai::tools::{ToolFields, ToolPlan};
use crate::text::ToolFormat;

fn tool(name: &str) -> Value {
    json!({"type": "function", "function": {"name": name}})
}

fn fields(tools: Value, choice: Value) -> ToolFields {
    ToolFields {
        tools: serde_json::from_value(tools).unwrap(),
        tool_choice: Some(choice),
        ..ToolFields::default()
    }
}

fn plan(fields: ToolFields) -> ToolPlan {
    let plan = fields.clone().plan(Some(ToolFormat::Hermes));
    plan.unwrap_or_else(|error| panic!("{fields:?}: {}", error.message))
}

/// The field that is refused.
fn refused(fields: ToolFields) -> String {
    let error = fields.clone().plan(Some(ToolFormat::Hermes));
    let error = error.expect_err(&format!("{fields:?}"));
    assert_eq!(error.status.as_u16(), 400);
    let field = error.param.unwrap();
    assert!(error.message.contains(&field), "{field}: {}", error.message);
    field
}

/// Which tools may be called, and whether calls are required, enforced, named and parallel.
fn called(plan: &ToolPlan) -> Option<(Vec<&str>, [bool; 4])> {
    let calls = plan.calls.as_ref()?;
    let names = calls.grammar.tools.iter().map(|tool| tool.name.as_str());
    let is_required = calls.grammar.is_required;
    Some((
        names.collect(),
        [
            is_required,
            calls.is_enforced,
            calls.is_named,
            calls.grammar.is_parallel,
        ],
    ))
}

#[test]
fn choices() {
    let offered = json!([tool("a"), tool("b.c")]);
    let function = |name: &str| json!({"type": "function", "function": {"name": name}});
    let allowed = |mode: &str| {
        let tools = json!([function("b.c")]);
        json!({"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": tools}})
    };
    let both = || vec!["a", "b.c"];
    for (choice, expected) in [
        (json!(null), Some((both(), [false, false, false, true]))),
        (json!("auto"), Some((both(), [false, false, false, true]))),
        (json!("none"), None),
        (json!("required"), Some((both(), [true, true, false, true]))),
        (function("a"), Some((vec!["a"], [true, true, true, false]))),
        (
            allowed("auto"),
            Some((vec!["b.c"], [false, true, false, true])),
        ),
        (
            allowed("required"),
            Some((vec!["b.c"], [true, true, false, true])),
        ),
    ] {
        let plan = plan(fields(offered.clone(), choice.clone()));
        assert_eq!(called(&plan), expected, "{choice}");
        let is_shown = plan.shown.as_ref().is_some_and(|shown| shown.len() == 2);
        assert_eq!(is_shown, expected.is_some(), "all tools are shown or none");
    }
    // No tools, no calls.
    for choice in [json!("none"), json!("auto"), json!(null)] {
        assert_eq!(called(&plan(fields(json!([]), choice))), None);
    }
    // One call at a time is what is read; arguments that keep to their schema are enforced.
    let one = ToolFields {
        parallel_tool_calls: Some(false),
        ..fields(offered.clone(), json!("auto"))
    };
    assert_eq!(
        called(&plan(one)),
        Some((both(), [false, false, false, false]))
    );
    let strict = json!([{"type": "function", "function": {"name": "a", "strict": true,
        "description": "It.", "parameters": {"type": "object"}}}]);
    let plan = plan(fields(strict.clone(), json!("auto")));
    assert_eq!(called(&plan), Some((vec!["a"], [false, true, false, true])));
    assert_eq!(plan.shown, Some(strict.as_array().unwrap().clone()));
    assert_eq!(
        plan.calls.unwrap().grammar.tools[0].parameters,
        json!({"type": "object"})
    );
}

#[test]
fn templates_see_parameters_always() {
    let shown = plan(fields(json!([tool("a")]), json!("auto")))
        .shown
        .unwrap();
    let expected = json!({"type": "object", "properties": {}});
    assert_eq!(shown[0]["function"]["parameters"], expected);
}

/// Each is refused with the name of its field.
fn check_refused(cases: Vec<(ToolFields, &str)>) {
    for (fields, field) in cases {
        assert_eq!(refused(fields.clone()), field, "{fields:?}");
    }
}

#[test]
fn bad_tools_are_named() {
    let auto = |tools: Value| fields(tools, json!("auto"));
    let with = |more: Value| {
        let mut tool = tool("a");
        for (name, value) in more.as_object().unwrap() {
            tool["function"][name] = value.clone();
        }
        auto(json!([tool]))
    };
    check_refused(vec![
        (auto(json!([1])), "tools[0]"),
        (auto(json!([{}])), "tools[0].type"),
        (auto(json!([{"type": "web_search"}])), "tools[0].type"),
        (auto(json!([{"type": "function"}])), "tools[0].function"),
        (
            auto(json!([tool("a"), tool("a")])),
            "tools[1].function.name",
        ),
        (auto(json!([tool("")])), "tools[0].function.name"),
        (auto(json!([tool("a b")])), "tools[0].function.name"),
        (auto(json!([tool("ü")])), "tools[0].function.name"),
        (
            auto(json!([tool(&"a".repeat(65))])),
            "tools[0].function.name",
        ),
        (
            with(json!({"description": 1})),
            "tools[0].function.description",
        ),
        (
            with(json!({"parameters": []})),
            "tools[0].function.parameters",
        ),
        (with(json!({"strict": "yes"})), "tools[0].function.strict"),
        (with(json!({"description": "a".repeat(1 << 20)})), "tools"),
        (
            auto((0..129).map(|it| tool(&format!("t{it}"))).collect()),
            "tools",
        ),
    ]);
    // A model whose calls nobody can read.
    let error = auto(json!([tool("a")])).plan(None).unwrap_err();
    assert_eq!(error.param.as_deref(), Some("tools"));
    assert!(error.message.contains("--tool-call-parser"));
    assert!(
        fields(json!([tool("a")]), json!("none"))
            .plan(None)
            .unwrap()
            .calls
            .is_none()
    );
}

#[test]
fn bad_choices_are_named() {
    let chosen = |choice: Value| fields(json!([tool("a")]), choice);
    let function = |name: &str| json!({"type": "function", "function": {"name": name}});
    let allowed = |inner: Value| chosen(json!({"type": "allowed_tools", "allowed_tools": inner}));
    check_refused(vec![
        (chosen(json!("any")), "tool_choice"),
        (chosen(json!(1)), "tool_choice"),
        (chosen(json!({})), "tool_choice.type"),
        (
            chosen(json!({"type": "function"})),
            "tool_choice.function.name",
        ),
        (chosen(function("b")), "tool_choice"),
        (allowed(json!(1)), "tool_choice.allowed_tools"),
        (
            allowed(json!({"mode": "x", "tools": []})),
            "tool_choice.allowed_tools.mode",
        ),
        (
            allowed(json!({"mode": "auto", "tools": []})),
            "tool_choice.allowed_tools.tools",
        ),
        (
            allowed(json!({"mode": "auto", "tools": ["a"]})),
            "tool_choice.allowed_tools.tools[0]",
        ),
        (
            allowed(json!({"mode": "auto", "tools": [function("b")]})),
            "tool_choice",
        ),
        (fields(json!([]), json!("required")), "tool_choice"),
    ]);
}

#[test]
fn functions_are_tools() {
    let legacy = |choice: Value| ToolFields {
        functions: Some(vec![
            json!({"name": "a", "parameters": {}}),
            json!({"name": "b"}),
        ]),
        function_call: Some(choice),
        ..ToolFields::default()
    };
    for (choice, expected) in [
        (
            json!(null),
            Some((vec!["a", "b"], [false, false, false, false])),
        ),
        (
            json!("auto"),
            Some((vec!["a", "b"], [false, false, false, false])),
        ),
        (json!("none"), None),
        (
            json!({"name": "b"}),
            Some((vec!["b"], [true, true, true, false])),
        ),
    ] {
        let plan = plan(legacy(choice.clone()));
        assert!(plan.is_legacy);
        assert_eq!(called(&plan), expected, "{choice}");
    }
    let named = |name: &str| ToolFields {
        functions: Some(vec![json!({"name": name})]),
        ..ToolFields::default()
    };
    for (fields, field) in [
        (legacy(json!("required")), "function_call"),
        (legacy(json!({"name": "c"})), "function_call"),
        (named("a b"), "functions[0].name"),
        (
            ToolFields {
                functions: Some(vec![json!(1)]),
                ..ToolFields::default()
            },
            "functions[0]",
        ),
        (
            ToolFields {
                tools: Some(vec![tool("a")]),
                ..named("a")
            },
            "functions",
        ),
        (
            ToolFields {
                function_call: Some(json!({"name": "a"})),
                ..ToolFields::default()
            },
            "function_call",
        ),
    ] {
        assert_eq!(refused(fields.clone()), field, "{fields:?}");
    }
}
