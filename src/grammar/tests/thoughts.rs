//! Thoughts: where they begin and end, their budget, and what follows.

use proptest::prelude::*;

use super::support::small;
use crate::engine::AllowedTokens;
use crate::engine::{TokenConstraint, TokenId, TokenMask};
use crate::grammar::{Grammar, Thought, after_thought, prefixed};

const VOCAB_SIZE: usize = 8;

fn allowed(constraint: &mut dyn TokenConstraint, vocab_size: usize) -> Vec<TokenId> {
    let mut mask = TokenMask::none(vocab_size);
    constraint.mask(&mut mask).unwrap();
    (0..vocab_size as u32)
        .filter(|id| mask.is_allowed(*id))
        .collect()
}

#[test]
fn the_end_is_forced_when_the_budget_is_spent() {
    let thought = Thought {
        start: vec![1],
        end: vec![2, 3],
        is_open: true,
        max_tokens: Some(2),
    };
    let mut constraint = after_thought(thought.clone(), None, VOCAB_SIZE);
    assert!(constraint.accept(7) && constraint.forced(9).is_empty());
    // The second token begins the end.
    let mut other = constraint.fork();
    assert!(other.accept(2));
    assert_eq!(other.forced(9), [3]);
    assert_eq!(allowed(&mut *other, VOCAB_SIZE), [3]);
    assert!(constraint.accept(7));
    assert_eq!(constraint.forced(9), [2, 3]);
    assert_eq!(constraint.forced(1), [2]);
    assert!(!constraint.accept(3) && constraint.accept(2) && constraint.accept(3));
    assert_eq!(allowed(&mut *constraint, VOCAB_SIZE).len(), VOCAB_SIZE);
    constraint.rollback(3);
    assert_eq!(allowed(&mut *constraint, VOCAB_SIZE).len(), VOCAB_SIZE);
    // No budget at all: the end comes first.
    let thought = Thought {
        max_tokens: Some(0),
        ..thought
    };
    assert_eq!(after_thought(thought, None, VOCAB_SIZE).forced(9), [2, 3]);
}

#[test]
fn a_prefix_comes_first() {
    let rest = Box::new(AllowedTokens::new(VOCAB_SIZE, [5, 6]));
    let mut constraint = prefixed(vec![1, 2], rest, VOCAB_SIZE);
    assert_eq!(allowed(&mut *constraint, VOCAB_SIZE), [1]);
    assert_eq!(constraint.forced(9), [1, 2]);
    assert_eq!(constraint.forced(1), [1]);
    assert!(!constraint.accept(5) && constraint.accept(1) && constraint.accept(2));
    assert_eq!(allowed(&mut *constraint, VOCAB_SIZE), [5, 6]);
    assert!(!constraint.accept(1) && constraint.accept(6) && constraint.accept(5));
    let mut fork = constraint.fork();
    fork.rollback(3);
    assert_eq!(allowed(&mut *fork, VOCAB_SIZE), [2]);
    constraint.rollback(1);
    assert_eq!(allowed(&mut *constraint, VOCAB_SIZE), [5, 6]);
    constraint.rollback(9);
    assert_eq!(allowed(&mut *constraint, VOCAB_SIZE), [1]);
}

#[test]
fn a_model_may_answer_without_a_thought() {
    let grammar = Grammar::Regex("<[0-9]+>".to_owned());
    let rest = || Some(small().compile(&grammar).unwrap());
    let ids = |text: &str| small().tokenizer.encode(text, false, false).unwrap();
    // A start of several tokens that begins as the answer does.
    let thought = Thought {
        start: ids("<x>"),
        end: ids("</x>"),
        is_open: false,
        max_tokens: None,
    };
    for text in ["<1>", "<x>no</x><12>", "<x></x><12>", "<x></x</x></x><12>"] {
        let is_answer = text != "<x></x</x></x><12>";
        let mut constraint = after_thought(thought.clone(), rest(), small().vocab_size);
        let mut masks = Vec::new();
        let ids = ids(text);
        let mut is_whole = true;
        for id in &ids {
            masks.push(small().mask(&mut *constraint));
            is_whole = constraint.accept(*id);
            if !is_whole {
                break;
            }
        }
        assert_eq!(
            is_whole && small().may_end(&mut *constraint),
            is_answer,
            "{text}"
        );
        if is_whole {
            // All ways back at once, over the thought's ends as well.
            for num_kept in 0..ids.len() {
                let mut back = constraint.fork();
                back.rollback(ids.len() - num_kept);
                let mask = small().mask(&mut *back);
                assert_eq!(mask, masks[num_kept], "{text} {num_kept}");
                let goes_on = ids[num_kept..].iter().all(|id| back.accept(*id));
                assert!(goes_on && small().may_end(&mut *back), "{text} {num_kept}");
            }
            for mask in masks.iter().rev() {
                constraint.rollback(1);
                assert_eq!(&small().mask(&mut *constraint), mask, "{text}");
            }
        }
    }
}

#[test]
fn the_end_is_found_in_other_tokens() {
    let rest = small()
        .compile(&Grammar::Regex("[0-9]+".to_owned()))
        .unwrap();
    let thought = Thought {
        start: Vec::new(),
        end: vec![small().id("</think>")],
        is_open: true,
        max_tokens: None,
    };
    let mut constraint = small().grammars.after_thought(thought, Some(rest));
    for byte in "a <</think>12".bytes() {
        let id = (0..256).find(|id| small().tokenizer.token_bytes(*id) == [byte]);
        assert!(constraint.accept(id.unwrap()), "{}", byte as char);
    }
    assert!(!constraint.accept(u32::from(b'x')));
    assert!(small().may_end(&mut *constraint));
    constraint.rollback(3);
    assert!(
        !small().may_end(&mut *constraint),
        "no end inside of a thought"
    );
}

#[test]
fn without_marks_there_is_no_thought() {
    for (start, end, is_open) in [(vec![1], vec![], true), (vec![], vec![2], false)] {
        let thought = Thought {
            start,
            end,
            is_open,
            max_tokens: Some(0),
        };
        let mut constraint = after_thought(thought, None, VOCAB_SIZE);
        assert_eq!(allowed(&mut *constraint, VOCAB_SIZE).len(), VOCAB_SIZE);
        assert!(!constraint.accept(VOCAB_SIZE as u32));
    }
}

/// Where a thought ends, found by looking at the whole text.
fn end_of(token_ids: &[TokenId], end: &[TokenId]) -> Option<usize> {
    let mut windows = token_ids.windows(end.len());
    windows
        .position(|window| window == end)
        .map(|at| at + end.len())
}

proptest! {
    #[test]
    fn ends_are_found_where_they_are(
        end in prop::collection::vec(0u32..3, 1..5),
        token_ids in prop::collection::vec(0u32..3, 0..40),
        back in 0usize..40,
    ) {
        let thought = Thought { start: vec![7], end: end.clone(), is_open: true, max_tokens: None };
        // Behind the thought nothing but 6 may come.
        let rest = crate::engine::AllowedTokens::new(VOCAB_SIZE, [6]);
        let mut constraint = after_thought(thought, Some(Box::new(rest)), VOCAB_SIZE);
        let place = end_of(&token_ids, &end);
        for (index, id) in token_ids.iter().enumerate() {
            let is_thought = place.is_none_or(|place| index < place);
            prop_assert_eq!(constraint.accept(*id), is_thought, "token {}", index);
        }
        let num_accepted = place.unwrap_or(token_ids.len());
        let back = back.min(num_accepted);
        constraint.rollback(back);
        for id in &token_ids[num_accepted - back..num_accepted] {
            prop_assert!(constraint.accept(*id));
        }
        let is_free = place.is_none();
        prop_assert_eq!(allowed(&mut *constraint, VOCAB_SIZE).len(), if is_free { VOCAB_SIZE } else { 1 });
    }

    #[test]
    fn budgets_are_kept(
        end in prop::collection::vec(0u32..3, 1..4),
        max_tokens in 0usize..12,
        seed in 0u64..1000,
    ) {
        let thought = Thought { start: vec![7], end: end.clone(), is_open: true, max_tokens: Some(max_tokens) };
        let rest = crate::engine::AllowedTokens::new(VOCAB_SIZE, [6]);
        let mut constraint = after_thought(thought, Some(Box::new(rest)), VOCAB_SIZE);
        let mut rng = super::support::Rng(seed);
        let mut token_ids = Vec::new();
        loop {
            let allowed = allowed(&mut *constraint, VOCAB_SIZE);
            if allowed == [6] && end_of(&token_ids, &end) == Some(token_ids.len()) {
                break;
            }
            let next = match constraint.forced(1).first() {
                Some(forced) => *forced,
                None => allowed[rng.below(allowed.len())],
            };
            prop_assert!(constraint.accept(next));
            token_ids.push(next);
            prop_assert!(token_ids.len() <= max_tokens + end.len());
        }
    }
}
