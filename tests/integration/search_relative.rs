//! Rewards that compare answers, under every strategy: what counts in the end is how all answers
//! compare.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use ponder::reward::{Majority, Weighted, answer_key};
use ponder::search::scripted::ScriptedPolicy;
use ponder::search::{End, STRATEGIES, SearchOutcome, find};
use serde_json::{Value, json};

use crate::search::{ByText, answers, needs_steps, one, run, spec, texts};

/// Longer texts are a little better.
fn length(text: &str) -> f64 {
    text.len() as f64 / 1000.0
}

/// Majority with three quarters of the weight, and a reward of its own.
fn weighted(scores_steps: bool) -> (Weighted, Arc<ByText>) {
    let own = Arc::new(if scores_steps {
        ByText::value_model(length)
    } else {
        ByText::verifier(length)
    });
    let parts: Vec<(f64, Arc<dyn ponder::reward::Scorer>)> =
        vec![(3.0, Arc::new(Majority)), (1.0, Arc::clone(&own) as _)];
    (Weighted::new(parts), own)
}

/// Whole answers say these numbers, in the order in which they are sampled, after a line that no other has.
fn numbers(numbers: &'static [u32]) -> ScriptedPolicy {
    let next = AtomicUsize::new(0);
    let num_steps = AtomicUsize::new(0);
    ScriptedPolicy::new(None, move |_, _, is_whole| {
        if !is_whole {
            let step = num_steps.fetch_add(1, Ordering::Relaxed);
            return (format!("step {step}\n\n"), false);
        }
        let at = next.fetch_add(1, Ordering::Relaxed);
        (format!("line {at}\nThe answer is {}", numbers[at]), true)
    })
}

/// Beams: the first ends with 5 in the second round, the others with 5 and 4 in the third.
fn beams() -> ScriptedPolicy {
    ScriptedPolicy::new(None, |prefix, path, _| {
        let first = ["a", "b", "c"][path[path.len() - 1] as usize % 3];
        match prefix {
            "" => (format!("{first}\n\n"), false),
            "a\n\n" => ("The answer is 5".to_owned(), true),
            "b\n\n" | "c\n\n" => ("more\n\n".to_owned(), false),
            _ if prefix.starts_with('b') => ("The answer is 5".to_owned(), true),
            _ => ("The answer is 4".to_owned(), true),
        }
    })
}

/// How many samples gave each answer.
fn votes(outcome: &SearchOutcome) -> HashMap<String, usize> {
    let mut votes = HashMap::new();
    for (id, node) in outcome.tree.nodes.iter().enumerate() {
        if matches!(node.end, Some(End::Stop | End::Length)) {
            let key = answer_key(&outcome.tree.text(id));
            *votes.entry(key).or_default() += 1 + node.duplicate_paths.len();
        }
    }
    votes
}

/// A search, its script, and the votes that it gets.
type Case = (Value, fn() -> ScriptedPolicy, Vec<(&'static str, usize)>);

/// One of each strategy.
fn cases() -> Vec<Case> {
    vec![
        (
            json!({"strategy": "auto", "n": 6, "threshold": 1.0, "cost": 1e-9}),
            || numbers(&[5, 5, 4, 4, 5, 6]),
            vec![("5", 3), ("4", 2), ("6", 1)],
        ),
        (
            json!({"strategy": "self_consistency", "n": 6, "threshold": 1.0}),
            || numbers(&[5, 5, 4, 4, 5, 6]),
            vec![("5", 3), ("4", 2), ("6", 1)],
        ),
        (
            json!({"strategy": "deepconf", "n": 6, "threshold": 1.0}),
            || numbers(&[5, 5, 4, 4, 5, 6]),
            vec![("5", 3), ("4", 2), ("6", 1)],
        ),
        (
            json!({"strategy": "best_of_n", "n": 6}),
            || numbers(&[5, 5, 4, 4, 5, 6]),
            vec![("5", 3), ("4", 2), ("6", 1)],
        ),
        (
            json!({"strategy": "beam", "n": 3, "branch": 1}),
            beams,
            vec![("5", 2), ("4", 1)],
        ),
        (
            json!({"strategy": "dvts", "n": 3, "branch": 1}),
            beams,
            vec![("5", 2), ("4", 1)],
        ),
        (
            json!({"strategy": "rebase", "n": 3}),
            beams,
            vec![("5", 2), ("4", 1)],
        ),
        // All particles end with their first step: none is drawn anew.
        (
            json!({"strategy": "particle_filtering", "n": 3}),
            || answers(&["The answer is 5", "So it is 5", "The answer is 4"]),
            vec![("5", 2), ("4", 1)],
        ),
        // Each expansion's two answers agree, or do not: beside each other 4 would be as good as 5.
        (
            json!({"strategy": "mcts", "branch": 2, "iterations": 3}),
            || numbers(&[5, 5, 4, 4, 5, 6]),
            vec![("5", 3), ("4", 2), ("6", 1)],
        ),
        (
            json!({"strategy": "vm_mcts", "n": 2, "branch": 2, "iterations": 3}),
            || numbers(&[5, 5, 4, 4, 5, 6]),
            vec![("5", 3), ("4", 2), ("6", 1)],
        ),
    ]
}

#[test]
fn every_strategy_weighs_an_answer_by_all_answers() {
    let cases = cases();
    let covered: Vec<&str> = cases
        .iter()
        .map(|(s, ..)| s["strategy"].as_str().unwrap())
        .collect();
    let all: Vec<&str> = STRATEGIES.iter().map(|strategy| strategy.name()).collect();
    assert_eq!(covered, all, "a new strategy needs a case here");
    for (search, policy, expected) in cases {
        let name = search["strategy"].as_str().unwrap();
        let by_steps = needs_steps(find(name).unwrap());
        let (scorer, own) = weighted(by_steps);
        let mut scorers = vec![(scorer, 0.75, Some(own))];
        if !by_steps {
            scorers.push((one(Majority), 1.0, None));
        }
        for (scorer, weight, own) in scorers {
            let outcome = run(&policy(), Some(&scorer), &spec(search.clone()));
            let votes = votes(&outcome);
            let expected: HashMap<String, usize> = expected
                .iter()
                .map(|(answer, votes)| ((*answer).to_owned(), *votes))
                .collect();
            assert_eq!(votes, expected, "{name}");
            let total: usize = votes.values().sum();
            let mut whole = Vec::new();
            for (id, node) in outcome.tree.nodes.iter().enumerate() {
                if matches!(node.end, Some(End::Stop)) {
                    let text = outcome.tree.text(id);
                    let share = votes[&answer_key(&text)] as f64 / total as f64;
                    let score = weight * share + (1.0 - weight) * length(&text);
                    assert!(
                        (node.score.unwrap() - score).abs() < 1e-12,
                        "{name}: {text}"
                    );
                    let is_vote = find(name).unwrap().defaults().is_vote;
                    // REBASE puts its answers to a vote at the end.
                    if !is_vote && name != "rebase" {
                        assert!((node.value - score).abs() < 1e-12, "{name}: {text}");
                    }
                    whole.push(text);
                }
            }
            assert!(outcome.answers[0].text.ends_with('5'), "{name}");
            // Comparing again asks nobody again.
            if let Some(own) = own {
                let num_steps = if by_steps {
                    outcome.tree.nodes.len() - 1 - whole.len()
                } else {
                    0
                };
                let calls = own.calls.load(Ordering::Relaxed);
                assert_eq!(calls, whole.len() + num_steps, "{name}");
                assert_eq!(outcome.stats.scorer_calls, calls as u64, "{name}");
            }
        }
    }
}

#[test]
fn votes_for_the_same_text_count_as_often_as_they_came() {
    let policy = || answers(&["The answer is 4", "The answer is 5", "The answer is 5"]);
    let votes = json!({"strategy": "self_consistency", "n": 3, "threshold": 1.0});
    let outcome = run(&policy(), Some(&one(Majority)), &spec(votes.clone()));
    assert_eq!(texts(&outcome), ["The answer is 5", "The answer is 4"]);
    // Two votes of 2/3 against one of 1/3.
    assert!((outcome.answers[0].value - 0.8).abs() < 1e-12);
    assert!((outcome.answers[1].value - 0.2).abs() < 1e-12);
    // The other reward turns it: (3 * 2/3 + 0) / 4 twice against (3 * 1/3 + 1) / 4.
    let four = |text: &str| f64::from(u8::from(text.ends_with('4')));
    let parts: Vec<(f64, Arc<dyn ponder::reward::Scorer>)> = vec![
        (3.0, Arc::new(Majority)),
        (1.0, Arc::new(ByText::verifier(four))),
    ];
    let outcome = run(&policy(), Some(&Weighted::new(parts)), &spec(votes));
    assert_eq!(texts(&outcome), ["The answer is 5", "The answer is 4"]);
    assert!((outcome.answers[0].value - 1.0 / 1.5).abs() < 1e-12);

    let outcome = run(
        &policy(),
        Some(&one(Majority)),
        &spec(json!({"strategy": "best_of_n", "n": 3})),
    );
    assert_eq!(texts(&outcome), ["The answer is 5", "The answer is 4"]);
    assert!((outcome.answers[0].value - 2.0 / 3.0).abs() < 1e-12);
}
