//! Grammars that want too much: each is an error or works, and the next grammar works.

use std::time::{Duration, Instant};

use llguidance::api::ParserLimits;
use serde_json::{Value, json};

use super::support::{Rng, draw, small};
use crate::engine::{TokenConstraint, TokenMask};
use crate::grammar::limits::parser_limits;
use crate::grammar::{Grammar, GrammarError, Grammars};
use crate::work::Budget;

fn schema(schema: Value) -> Grammar {
    Grammar::JsonSchema {
        schema,
        strict: false,
    }
}

/// Compiles, and draws a few tokens if that works. No panic, no message about one.
fn outcome(grammar: &Grammar) -> Result<Box<dyn TokenConstraint>, GrammarError> {
    let done = small().compile(grammar);
    match &done {
        Err(error) => {
            let message = error.to_string();
            assert!(
                message.len() < 1000 && !message.contains("panic"),
                "{message}"
            );
        }
        Ok(constraint) => {
            draw_some(constraint.fork());
        }
    }
    done
}

/// As many tokens as the constraint allows before it gives up, at most 30.
fn draw_some(mut constraint: Box<dyn TokenConstraint>) {
    let mut rng = Rng(9);
    for _ in 0..30 {
        let mut mask = TokenMask::none(small().vocab_size);
        if let Err(error) = constraint.mask(&mut mask) {
            assert!(!error.0.is_empty() && !error.0.contains("panic"), "{error}");
            return;
        }
        let allowed: Vec<u32> = (0..256).filter(|id| mask.is_allowed(*id)).collect();
        if allowed.is_empty() {
            return;
        }
        assert!(constraint.accept(allowed[rng.below(allowed.len())]));
    }
}

fn invalid(grammar: &Grammar, part: &str) {
    match outcome(grammar) {
        Err(GrammarError::Invalid(message)) => assert!(message.contains(part), "{message}"),
        other => panic!("{other:?} instead of an error with {part:?}"),
    }
}

fn too_much(grammar: &Grammar) {
    let done = outcome(grammar);
    assert!(
        matches!(done, Err(GrammarError::TooMuchWork(_))),
        "{done:?}"
    );
}

#[test]
fn recursion_without_end_is_an_error() {
    let endless = "recursive without end";
    let itself = json!({"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]});
    invalid(&schema(json!({"$ref": "#"})), endless);
    invalid(&schema(itself.clone()), endless);
    invalid(
        &schema(json!({"type": "array", "items": itself, "minItems": 1})),
        endless,
    );
    invalid(
        &schema(
            json!({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}}),
        ),
        endless,
    );
    invalid(
        &schema(json!({"$ref": "#/$defs/a", "$defs": {
            "a": {"type": "object", "properties": {"b": {"$ref": "#/$defs/b"}}, "required": ["b"]},
            "b": {"type": "array", "prefixItems": [{"anyOf": [{"$ref": "#/$defs/a"}, {"$ref": "#/$defs/b"}]}], "minItems": 1}}})),
        endless,
    );
    for text in [
        "root ::= root",
        "root ::= \"a\" root",
        "root ::= a\na ::= b\nb ::= a",
    ] {
        let done = outcome(&Grammar::Gbnf(text.to_owned()));
        // A text without end is the model's to write; a grammar without texts is an error.
        assert!(done.is_err() || text.contains("\"a\""), "{text}");
    }
}

#[test]
fn bombs_of_expressions_cost_little() {
    let start = Instant::now();
    for pattern in [
        "(a{1000}){1000}",
        "((((a{100}){100}){100}){100}){100}",
        "(a|b|ab)*c(a|b|ab)*d(a|b|ab)*e",
        "(.*a.*b.*c.*d.*e.*f.*g.*h.*){50}",
        "(a?){500}a{500}",
        "(\\w{1,100}\\W{1,100}){1,100}",
        "[a-z]*[a-y]{200}[a-x]*",
        "(((.{1,50}){1,50}){1,50}x)*y",
    ] {
        let _ = outcome(&Grammar::Regex(pattern.to_owned()));
        let _ = outcome(&schema(
            json!({"type": "string", "pattern": pattern, "maxLength": 500}),
        ));
        let _ = outcome(&schema(
            json!({"type": "string", "pattern": pattern, "minLength": 200, "format": "email"}),
        ));
        let _ = outcome(&schema(
            json!({"type": "object", "patternProperties": {pattern: {}, "x": {}}}),
        ));
    }
    assert!(
        start.elapsed() < Duration::from_secs(120),
        "{:?}",
        start.elapsed()
    );
    too_much(&Grammar::Regex("a".repeat(17 << 10)));
    let long = "(abc|abd)".repeat(1500);
    let _ = outcome(&Grammar::Regex(long));
}

#[test]
fn large_and_deep_grammars_are_refused() {
    let mut deep = json!({"type": "boolean"});
    for _ in 0..100 {
        deep = json!({"type": "array", "items": deep});
    }
    too_much(&schema(deep));
    too_much(&schema(json!({"description": "x".repeat(300 << 10)})));
    too_much(&Grammar::Lark("x".repeat(300 << 10)));
    too_much(&Grammar::Choice(vec!["a".to_owned(); 5000]));
    let patterns: serde_json::Map<String, Value> =
        (0..40).map(|n| (format!("^a{n}$"), json!({}))).collect();
    too_much(&schema(
        json!({"type": "object", "patternProperties": patterns}),
    ));
    let properties: serde_json::Map<String, Value> =
        (0..3000).map(|n| (format!("a{n}"), json!({}))).collect();
    too_much(&schema(json!({"type": "object", "properties": properties})));
    // Each definition refers to the next one.
    let chain: serde_json::Map<String, Value> = (0..3000)
        .map(|n| {
            (
                format!("d{n}"),
                json!({"$ref": format!("#/$defs/d{}", n + 1)}),
            )
        })
        .collect();
    too_much(&schema(json!({"$ref": "#/$defs/d0", "$defs": chain})));
    invalid(
        &schema(json!({"type": "array", "minItems": 1_000_000_000})),
        "minItems",
    );
    invalid(
        &schema(json!({"type": "string", "minLength": 1_000_000_000})),
        "minLength",
    );
    // Most lengths are far away: that is no harm.
    for most in [70_000_u64, 1 << 31, 1 << 40] {
        assert!(outcome(&schema(json!({"type": "string", "maxLength": most}))).is_ok());
        assert!(
            outcome(&schema(
                json!({"type": "array", "items": {"type": "null"}, "maxItems": most})
            ))
            .is_ok()
        );
    }
}

#[test]
fn schemas_that_multiply_are_bounded() {
    let start = Instant::now();
    let option =
        |n: usize| json!({"properties": {format!("p{n}"): {"type": "integer", "minimum": n}}});
    let options: Vec<Value> = (0..30).map(option).collect();
    let product = json!({"type": "object", "allOf": vec![json!({"anyOf": options}); 5]});
    let done = outcome(&schema(product));
    assert!(done.is_err(), "{done:?}");
    // A doubling at each level of references.
    let doubled: serde_json::Map<String, Value> = (0..40)
        .map(|n| {
            let next = json!({"$ref": format!("#/$defs/d{}", n + 1)});
            (format!("d{n}"), json!({"type": "object", "properties": {"a": next, "b": next}, "required": ["a", "b"]}))
        })
        .chain([("d40".to_owned(), json!({"type": "null"}))])
        .collect();
    assert!(outcome(&schema(json!({"$ref": "#/$defs/d0", "$defs": doubled}))).is_ok());
    let wide: Vec<Value> = (0..2000)
        .map(|n| json!({"const": format!("word {n}")}))
        .collect();
    assert!(outcome(&schema(json!({"anyOf": wide}))).is_ok());
    let many: serde_json::Map<String, Value> = (0..1500)
        .map(|n| (format!("a{n}"), json!({"type": "boolean"})))
        .collect();
    let _ = outcome(&schema(json!({"type": "object", "properties": many})));
    assert!(
        start.elapsed() < Duration::from_secs(120),
        "{:?}",
        start.elapsed()
    );
}

#[test]
fn ambiguous_grammars_end_their_own_text() {
    for text in [
        "start: a\na: a a | \"x\" | \"\"",
        "start: s\ns: s s s | s s | \"a\"",
        "start: (\"a\"? ){1000} \"b\"",
        "start: (a | b | c)*\na: \"x\"+\nb: \"x\"+\nc: \"x\"+",
        "start: x{10000}\nx: (\"a\" | \"b\" x)",
    ] {
        let Ok(mut constraint) = outcome(&Grammar::Lark(text.to_owned())) else {
            continue;
        };
        let x = u32::from(b'x');
        for _ in 0..30 {
            let mut mask = TokenMask::none(small().vocab_size);
            if constraint.mask(&mut mask).is_err() || !constraint.accept(x) {
                break;
            }
        }
    }
    // The others go on.
    assert!(small().accepts(&Grammar::JsonObject, "{\"a\": 1}"));
}

/// The limits of one text: its own constraint fails, in words, and forks of it do.
#[test]
fn a_text_that_needs_too_much_fails_alone() {
    let limits = ParserLimits {
        max_lexer_states: 300,
        ..parser_limits()
    };
    let grammars = Grammars::within(&small().tokenizer, small().vocab_size, limits).unwrap();
    let grammar = Grammar::Regex("(?:(?:x|y|z|.)*[a-f].{30})+".to_owned());
    let compile = || grammars.compile(&grammar, &Budget::default()).unwrap();
    let mut constraint = compile();
    let mut rng = Rng(11);
    let letters: Vec<u32> = "bbbbbx".bytes().map(u32::from).collect();
    let failure = (0..2000).find_map(|_| {
        let mut mask = TokenMask::none(small().vocab_size);
        let error = constraint.mask(&mut mask).err();
        error.or_else(|| {
            assert!(constraint.accept(letters[rng.below(letters.len())]));
            None
        })
    });
    let failure = failure.expect("states are limited");
    assert!(failure.0.contains("too much work"), "{failure}");
    assert!(!constraint.accept(letters[0]) && constraint.forced(3).is_empty());
    constraint.rollback(5);
    let mut fork = constraint.fork();
    let mut mask = TokenMask::none(small().vocab_size);
    assert_eq!(fork.mask(&mut mask), Err(failure));
    // The same grammar begins anew.
    let mut other = compile();
    assert!(other.mask(&mut mask).is_ok());
}

#[test]
fn a_spent_budget_stops_the_wait() {
    let slow = schema(
        json!({"type": "string", "pattern": "^(a{5}|b){3}$", "description": "of this test alone"}),
    );
    let over = Budget::until(Some(Instant::now()));
    let done = small().grammars.compile(&slow, &over);
    assert!(
        matches!(done, Err(GrammarError::TooMuchWork(_))),
        "{done:?}"
    );
    // A grammar that is there costs no budget.
    assert!(small().compile(&slow).is_ok());
    assert!(small().grammars.compile(&slow, &over).is_ok());
}

#[test]
fn many_compile_at_once() {
    std::thread::scope(|scope| {
        let work = |thread: usize| {
            move || {
                for n in 0..6 {
                    let grammar = schema(
                        json!({"type": "integer", "minimum": n, "maximum": n + thread % 2, "title": "at once"}),
                    );
                    let constraint = small().compile(&grammar).unwrap();
                    draw(small(), constraint, &mut Rng(n as u64), 50);
                }
            }
        };
        for thread in 0..8 {
            scope.spawn(work(thread));
        }
    });
}

/// Masks are made on threads with ordinary stacks.
#[test]
fn masks_need_no_large_stack() {
    let pattern = format!("({})*", "(abc|abd)".repeat(1200));
    for grammar in [Grammar::Regex(pattern), schema(json!({}))] {
        let Ok(constraint) = small().compile(&grammar) else {
            continue;
        };
        let thread = std::thread::Builder::new().stack_size(512 << 10);
        thread
            .spawn(move || draw_some(constraint))
            .unwrap()
            .join()
            .unwrap();
    }
}
