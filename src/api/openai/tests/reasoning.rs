//! What a request says of thoughts.

use serde_json::{Map, Value, json};

use crate::api::openai::reasoning::{ReasoningFields, ReasoningPlan};

fn of(reasoning: Value) -> ReasoningFields {
    ReasoningFields {
        reasoning: Some(reasoning),
        ..ReasoningFields::default()
    }
}

fn budget(tokens: i64) -> ReasoningFields {
    ReasoningFields {
        thinking_token_budget: Some(tokens),
        ..ReasoningFields::default()
    }
}

#[test]
fn all_names_mean_the_same() {
    let shown = ReasoningPlan {
        is_shown: true,
        ..ReasoningPlan::default()
    };
    let limited = |tokens, field| ReasoningPlan {
        budget: Some((tokens, field)),
        ..shown.clone()
    };
    let hidden = ReasoningPlan::default();
    for (fields, expected) in [
        (ReasoningFields::default(), shown.clone()),
        (of(json!(null)), shown.clone()),
        (
            of(json!({"enabled": true, "exclude": false, "effort": null})),
            shown.clone(),
        ),
        (budget(-1), shown.clone()),
        (budget(0), limited(0, "thinking_token_budget")),
        (
            of(json!({"max_tokens": 9})),
            limited(9, "reasoning.max_tokens"),
        ),
        (of(json!({"exclude": true})), hidden.clone()),
        (
            ReasoningFields {
                include_reasoning: Some(false),
                ..ReasoningFields::default()
            },
            hidden,
        ),
        (
            of(json!({"enabled": false})),
            ReasoningPlan {
                is_off: true,
                ..shown.clone()
            },
        ),
        (
            of(json!({"effort": "high"})),
            ReasoningPlan {
                effort: Some("high".to_owned()),
                ..shown.clone()
            },
        ),
        (
            ReasoningFields {
                reasoning_effort: Some("none".to_owned()),
                ..ReasoningFields::default()
            },
            ReasoningPlan {
                effort: Some("none".to_owned()),
                is_off: true,
                ..shown
            },
        ),
    ] {
        assert_eq!(fields.clone().plan().unwrap(), expected, "{fields:?}");
    }
}

#[test]
fn bad_fields_are_named() {
    for (fields, field) in [
        (budget(-2), "thinking_token_budget"),
        (of(json!("high")), "reasoning"),
        (of(json!({"max_tokens": -1})), "reasoning.max_tokens"),
        (of(json!({"max_tokens": "9"})), "reasoning.max_tokens"),
        (of(json!({"effort": 1})), "reasoning.effort"),
        (of(json!({"enabled": 1})), "reasoning.enabled"),
        (of(json!({"exclude": "no"})), "reasoning.exclude"),
        (of(json!({"summary": "auto"})), "reasoning.summary"),
        (
            ReasoningFields {
                thinking_token_budget: Some(3),
                ..of(json!({"max_tokens": 3}))
            },
            "reasoning.max_tokens",
        ),
        (
            ReasoningFields {
                reasoning_effort: Some("low".to_owned()),
                ..of(json!({"effort": "high"}))
            },
            "reasoning.effort",
        ),
    ] {
        let error = fields.clone().plan().expect_err(&format!("{fields:?}"));
        assert_eq!(error.param.as_deref(), Some(field), "{}", error.message);
        assert!(error.message.contains(field), "{}", error.message);
    }
}

#[test]
fn templates_are_told_not_to_think() {
    let plan = of(json!({"enabled": false})).plan().unwrap();
    let mut variables = Map::new();
    plan.tell(&mut variables);
    assert_eq!(Value::Object(variables), json!({"enable_thinking": false}));
    let mut own = Map::from_iter([("enable_thinking".to_owned(), json!(true))]);
    plan.tell(&mut own);
    assert_eq!(
        Value::Object(own),
        json!({"enable_thinking": true}),
        "the request's own word"
    );
    let mut untouched = Map::new();
    ReasoningFields::default()
        .plan()
        .unwrap()
        .tell(&mut untouched);
    assert!(untouched.is_empty());
    // gpt-oss has three efforts.
    for (effort, told) in [
        ("low", json!({"reasoning_effort": "low"})),
        ("max", json!({})),
    ] {
        let fields = of(json!({"effort": effort}));
        let mut variables = Map::new();
        fields.plan().unwrap().tell(&mut variables);
        assert_eq!(Value::Object(variables), told);
    }
}
