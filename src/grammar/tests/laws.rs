//! What holds of every constraint at every place: accept agrees with the mask and changes nothing
//! when it refuses, rollback restores, forks go their own ways, forced tokens are accepted.

use serde_json::json;

use super::super::{Thought, ToolGrammar, ToolSpec, prefixed};
use super::support::{Rng, Small, small};
use crate::engine::{TokenConstraint, TokenId};
use crate::grammar::Grammar;
use crate::text::ToolFormat;

fn grammars() -> Vec<Grammar> {
    let schema = json!({"type": "object", "properties": {
        "kind": {"enum": ["cat", "category", "dog"]},
        "count": {"type": "integer", "minimum": 3, "maximum": 120},
        "tags": {"type": "array", "items": {"type": "string", "maxLength": 5}, "maxItems": 3},
        "more": {"type": ["number", "null"]},
    }, "required": ["kind", "count"], "additionalProperties": false});
    let tool = ToolSpec {
        name: "find".to_owned(),
        parameters: schema.clone(),
        strict: false,
    };
    let tools = |format, is_required| {
        Grammar::Tools(ToolGrammar {
            format,
            tools: vec![tool.clone()],
            is_required,
            is_parallel: true,
        })
    };
    vec![
        Grammar::JsonObject,
        Grammar::JsonSchema {
            schema,
            strict: true,
        },
        Grammar::Regex("[a-c]{2,5}(é|🙂)*".to_owned()),
        Grammar::Choice(vec!["cat".to_owned(), "category".to_owned()]),
        Grammar::Gbnf("root ::= \"(\" (root | [0-9]+) \")\"".to_owned()),
        tools(ToolFormat::Hermes, true),
        tools(ToolFormat::Mistral, false),
        tools(ToolFormat::DeepSeek, true),
        tools(ToolFormat::Qwen3Coder, true),
        tools(ToolFormat::Pythonic, true),
        tools(ToolFormat::Llama3Json, false),
        tools(ToolFormat::Harmony, false),
    ]
}

/// Follows a constraint for some tokens, and looks at everything at each place.
fn follow(small: &Small, mut constraint: Box<dyn TokenConstraint>, rng: &mut Rng, steps: usize) {
    let end = small.id("<|im_end|>");
    let mut masks = Vec::new();
    for _ in 0..steps {
        let mask = small.mask(&mut *constraint);
        let allowed: Vec<TokenId> = (0..small.vocab_size as u32)
            .filter(|id| mask.is_allowed(*id))
            .collect();
        assert!(!allowed.is_empty());
        let ends = [end, small.id("<|eot_id|>")].map(|id| mask.is_allowed(id));
        assert_eq!(ends[0], ends[1], "every end token or none");
        // All of the vocabulary, and ids past it.
        for id in 0..small.vocab_size as u32 + 3 {
            let is_accepted = constraint.accept(id);
            assert_eq!(is_accepted, mask.is_allowed(id), "token {id}");
            if is_accepted {
                constraint.rollback(1);
            }
        }
        assert_eq!(small.mask(&mut *constraint), mask, "nothing has changed");
        let forced = constraint.forced(7);
        assert!(forced.len() <= 7);
        let mut other = constraint.fork();
        for (index, id) in forced.iter().enumerate() {
            assert!(other.accept(*id), "forced token {index}");
        }
        assert_eq!(small.mask(&mut *constraint), mask, "forks are on their own");
        let next = allowed[rng.below(allowed.len())];
        if next == end || next == small.id("<|eot_id|>") {
            break;
        }
        masks.push(mask);
        assert!(constraint.accept(next));
    }
    // Back to each place.
    for (back, mask) in masks.iter().rev().enumerate() {
        let mut other = constraint.fork();
        other.rollback(back + 1);
        assert_eq!(&small.mask(&mut *other), mask, "{back} tokens back");
    }
    let len = masks.len();
    constraint.rollback(len);
    if let Some(first) = masks.first() {
        assert_eq!(&small.mask(&mut *constraint), first);
    }
}

#[test]
fn constraints_keep_their_laws() {
    let mut rng = Rng(1);
    for grammar in grammars() {
        for _ in 0..2 {
            let constraint = small().compile(&grammar).unwrap();
            follow(small(), constraint, &mut rng, 25);
        }
    }
}

#[test]
fn thoughts_before_a_constraint_keep_them_too() {
    let mut rng = Rng(2);
    for is_open in [true, false] {
        for max_tokens in [None, Some(0), Some(4)] {
            let thought = Thought {
                start: vec![small().id("<think>")],
                end: vec![small().id("</think>"), 10],
                is_open,
                max_tokens,
            };
            let rest = small()
                .compile(&Grammar::Regex("[0-9]+".to_owned()))
                .unwrap();
            let constraint = small().grammars.after_thought(thought.clone(), Some(rest));
            follow(small(), constraint.fork(), &mut rng, 20);
            // An answer that begins as a thought does.
            let rest = prefixed(
                vec![small().id("<think>"), 12],
                constraint,
                small().vocab_size,
            );
            let thought = Thought {
                start: vec![small().id("<think>"), 11],
                ..thought
            };
            let constraint = small().grammars.after_thought(thought, Some(rest));
            follow(small(), constraint, &mut rng, 20);
        }
    }
}

#[test]
fn the_end_is_taken_back_like_a_token() {
    let end = small().id("<|eot_id|>");
    for text in ["cat", "category"] {
        let grammar = Grammar::Choice(vec!["cat".to_owned(), "category".to_owned()]);
        let mut constraint = small().compile(&grammar).unwrap();
        let token_ids = small().tokenizer.encode(text, false, false).unwrap();
        assert!(token_ids.iter().all(|id| constraint.accept(*id)));
        let mask = small().mask(&mut *constraint);
        assert!(constraint.accept(end));
        assert!((0..small().vocab_size as u32).all(|id| !constraint.accept(id)));
        assert_eq!(
            small().mask(&mut *constraint).words().iter().max(),
            Some(&0)
        );
        assert!(constraint.forced(4).is_empty());
        constraint.rollback(1);
        assert_eq!(small().mask(&mut *constraint), mask);
        // The end with a token before it.
        assert!(constraint.accept(end));
        constraint.rollback(2);
        assert!(constraint.accept(*token_ids.last().unwrap()));
        assert_eq!(small().mask(&mut *constraint), mask);
    }
}

#[test]
fn ids_that_are_no_tokens_are_never_allowed() {
    for grammar in grammars() {
        let mask = small().mask(&mut *small().compile(&grammar).unwrap());
        let mut padding = small().tokenizer.vocab_size() as u32..small().vocab_size as u32;
        assert!(padding.all(|id| !mask.is_allowed(id)));
    }
}

#[test]
fn only_ends_follow_a_grammar_that_cannot_go_on() {
    let grammar = Grammar::Choice(vec!["cat".to_owned()]);
    let mut constraint = small().compile(&grammar).unwrap();
    assert!(constraint.accept(small().id("cat")));
    let mask = small().mask(&mut *constraint);
    let allowed: Vec<u32> = (0..small().vocab_size as u32)
        .filter(|id| mask.is_allowed(*id))
        .collect();
    assert_eq!(
        allowed,
        [small().id("<|im_end|>"), small().id("<|eot_id|>")]
    );
}

#[test]
fn forced_texts_may_be_tokenized_in_any_way() {
    let schema = json!({"type": "object", "properties": {"cat": {"const": true}}, "required": ["cat"],
        "additionalProperties": false});
    let grammar = Grammar::JsonSchema {
        schema,
        strict: true,
    };
    let mut constraint = small().compile(&grammar).unwrap();
    let forced = constraint.forced(64);
    let text = small().tokenizer.decode(&forced, false);
    assert_eq!(text, "{\"cat\": true}", "the whole text is forced");
    assert_eq!(constraint.forced(2), forced[..2]);
    // Byte by byte it is allowed as well, also after the forced text was looked at.
    let mask = small().mask(&mut *constraint);
    let first = small().tokenizer.encode("{", false, false).unwrap()[0];
    assert!(mask.is_allowed(first) && mask.is_allowed(forced[0]) && forced[0] != first);
    for byte in text.bytes() {
        let id = (0..256)
            .find(|id| small().tokenizer.token_bytes(*id) == [byte])
            .unwrap();
        assert!(constraint.accept(id), "{}", byte as char);
    }
    assert!(small().may_end(&mut *constraint));
}
