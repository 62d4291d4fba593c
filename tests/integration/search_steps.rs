//! REBASE and particle filtering over a scripted model: who gets how many samples, and which answer
//! comes of them.

use ponder::reward::Majority;
use ponder::search::scripted::ScriptedPolicy;
use ponder::search::{NodeId, SearchEvent, SearchOutcome, Stopped, Tree};
use serde_json::json;

use crate::search::{ByText, one, run, run_with_events, spec, texts};

/// The node whose answer so far is this one.
fn node(tree: &Tree, text: &str) -> NodeId {
    let mut ids = 0..tree.nodes.len();
    ids.find(|id| tree.text(*id) == text)
        .unwrap_or_else(|| panic!("no node says {text:?}"))
}

/// Samples that continued a node.
fn num_samples(tree: &Tree, id: NodeId) -> usize {
    let children = tree.node(id).children.iter();
    children
        .map(|child| 1 + tree.node(*child).duplicate_paths.len())
        .sum()
}

/// Six first steps of which two get samples; then answers end in both layers.
fn balanced() -> ScriptedPolicy {
    ScriptedPolicy::new(None, |prefix, path, _| {
        let index = path[path.len() - 1] as usize;
        let (text, is_end) = match (prefix, index) {
            ("", _) => (
                ["a\n\n", "b\n\n", "c\n\n", "d\n\n", "e\n\n", "f\n\n"][index],
                false,
            ),
            ("a\n\n", 0 | 1) => ("The answer is 7", true),
            ("a\n\n", 2) => ("good\n\n", false),
            ("a\n\n", _) => ("weak\n\n", false),
            ("b\n\n", 0) => ("The answer is 8", true),
            ("b\n\n", _) => ("good\n\n", false),
            ("a\n\ngood\n\n", 1) => ("so it is 7", true),
            _ => ("so it is 8", true),
        };
        (text.to_owned(), is_end)
    })
}

fn balanced_value(text: &str) -> f64 {
    match text {
        "a\n\n" => 0.9,
        "b\n\n" => 0.8,
        "c\n\n" | "d\n\n" => 0.5,
        "e\n\n" => 0.3,
        "f\n\n" => 0.1,
        "a\n\nThe answer is 7" => 0.6,
        "a\n\ngood\n\n" | "b\n\ngood\n\n" => 0.7,
        "a\n\nweak\n\n" => 0.3,
        "b\n\nThe answer is 8" => 0.9,
        "a\n\ngood\n\nso it is 7" => 0.5,
        "a\n\ngood\n\nso it is 8" => 0.2,
        "b\n\ngood\n\nso it is 8" => 0.4,
        _ => panic!("nobody says {text:?}"),
    }
}

#[test]
fn rebase_shares_samples_out_by_value_and_lets_answers_vote() {
    let scorer = one(ByText::value_model(balanced_value));
    let rebase = spec(json!({"strategy": "rebase", "n": 6}));
    let (outcome, events) = run_with_events(&balanced(), Some(&scorer), &rebase);
    let tree = &outcome.tree;
    // Weights exp((V - 0.9) / 0.2): 1, 0.61, 0.14, 0.14, 0.05, 0.02 of 1.95. The first gets
    // 6 / 1.95 = 3.1, rounded up, the second 2 * 0.61 / 0.95 = 1.3, rounded up.
    assert_eq!(num_samples(tree, node(tree, "a\n\n")), 4);
    assert_eq!(num_samples(tree, node(tree, "b\n\n")), 2);
    for given_up in ["c\n\n", "d\n\n", "e\n\n", "f\n\n"] {
        let id = node(tree, given_up);
        assert!(tree.node(id).is_pruned, "{given_up}");
        assert!(events.contains(&SearchEvent::Prune { node: id }));
    }
    // Three samples have ended, of which two are one node. Three are left for the others, by
    // weights of 1, 1 and exp(-2): 3 / 2.14 = 1.4 and 1 / 1.14 = 0.9, both rounded up.
    assert_eq!(num_samples(tree, node(tree, "a\n\ngood\n\n")), 2);
    assert_eq!(num_samples(tree, node(tree, "b\n\ngood\n\n")), 1);
    assert!(tree.node(node(tree, "a\n\nweak\n\n")).is_pruned);
    // 7 has 2 * 0.6 + 0.5, and 8 has 0.9 + 0.2 + 0.4: the best single answer loses.
    let expected = [
        "a\n\nThe answer is 7",
        "a\n\ngood\n\nso it is 7",
        "b\n\nThe answer is 8",
    ];
    assert_eq!(texts(&outcome)[..3], expected);
    assert!((outcome.answers[0].value - 1.7 / 3.2).abs() < 1e-12);
    assert!((outcome.answers[2].value - 1.5 / 3.2).abs() < 1e-12);
    let vote = SearchEvent::Vote {
        answer: "7".to_owned(),
        votes: 3,
        total: 6,
    };
    assert!(events.contains(&vote));
    assert_eq!(outcome.stats.scorer_calls, 14);
    assert_eq!(outcome.stopped, None);
}

#[test]
fn rebase_stops_at_its_depth_and_at_a_value_that_is_asked_for() {
    let scorer = one(ByText::value_model(balanced_value));
    let short = spec(json!({"strategy": "rebase", "n": 6, "max_depth": 2}));
    let outcome = run(&balanced(), Some(&scorer), &short);
    // 7 has 1.2 of the vote and 8 has 0.9.
    assert_eq!(
        outcome.tree.nodes.iter().map(|node| node.depth).max(),
        Some(2)
    );
    assert_eq!(
        texts(&outcome),
        ["a\n\nThe answer is 7", "b\n\nThe answer is 8"]
    );
    let enough = spec(json!({"strategy": "rebase", "n": 6, "threshold": 0.9}));
    let outcome = run(&balanced(), Some(&scorer), &enough);
    assert_eq!(outcome.stopped, Some(Stopped::Decided));
    assert_eq!(outcome.answers[0].text, "b\n\nThe answer is 8");
    assert_eq!(outcome.answers[0].value, 0.9);
}

#[test]
fn code_has_no_vote_in_rebase() {
    let script = |_: &str, path: &[u32], _: bool| {
        let blocks = ["x = 1", "x = 1", "z = 1"];
        let block = blocks[path[path.len() - 1] as usize];
        (format!("```python\n{block}\n```"), true)
    };
    let policy = ScriptedPolicy::new(None, script);
    let scorer = one(ByText::value_model(|text| {
        if text.contains('z') { 0.5 } else { 0.4 }
    }));
    let outcome = run(
        &policy,
        Some(&scorer),
        &spec(json!({"strategy": "rebase", "n": 3})),
    );
    assert_eq!(outcome.answers[0].text, "```python\nz = 1\n```");
    assert_eq!(outcome.answers[0].value, 0.5);
}

/// Steps and answers of which the scores leave no doubt: all particles go where they are 1.
fn certain() -> ScriptedPolicy {
    ScriptedPolicy::new(None, |prefix, path, _| {
        let index = path[path.len() - 1] as usize;
        match prefix {
            "" => (
                ["a\n\n", "b\n\n", "c\n\n", "d\n\n"][index].to_owned(),
                false,
            ),
            "b\n\n" if index == 1 => ("yes".to_owned(), true),
            _ => (format!("{index}\n\n"), false),
        }
    })
}

#[test]
fn particles_in_one_place_are_one_node_with_as_many_samples() {
    let scorer = one(ByText::value_model(|text| {
        f64::from(u8::from(matches!(text, "b\n\n" | "b\n\nyes")))
    }));
    let search = spec(json!({"strategy": "particle_filtering", "n": 4}));
    let (outcome, events) = run_with_events(&certain(), Some(&scorer), &search);
    let tree = &outcome.tree;
    // 4 first steps; all 4 particles go to b and are one expansion of it; then all go to the
    // answer that has ended, and nothing is left to do.
    let b = node(tree, "b\n\n");
    assert_eq!(tree.node(b).children.len(), 4);
    assert_eq!(tree.node(b).num_expansions, [1, 0]);
    assert_eq!(tree.nodes.len(), 1 + 4 + 4);
    assert_eq!(texts(&outcome), ["b\n\nyes"]);
    let pruned = tree.nodes.iter().filter(|node| node.is_pruned).count();
    assert_eq!(pruned, 3 + 3);
    let mut agreed = events.iter().filter_map(|event| match event {
        SearchEvent::Agreed { text, .. } => Some(text.as_str()),
        _ => None,
    });
    assert!(agreed.any(|text| text == "b\n\n"));
    assert_eq!(outcome.stats.scorer_calls, 8);
}

/// Half of the particles say a, half say b; then all end.
fn halves(seed: u64) -> SearchOutcome {
    let policy = ScriptedPolicy::new(None, |prefix, path, _| {
        let index = path[path.len() - 1] as usize;
        match prefix {
            "" => (["a\n\n", "b\n\n"][index % 2].to_owned(), false),
            _ => (format!("{path:?}"), true),
        }
    });
    let score = |text: &str| if text.starts_with('a') { 0.8 } else { 0.5 };
    let search = spec(json!({"strategy": "particle_filtering", "n": 16}));
    run(
        &policy.seeded(seed),
        Some(&one(ByText::value_model(score))),
        &search,
    )
}

#[test]
fn particles_are_drawn_by_the_odds_of_their_scores() {
    let of_a = |outcome: &SearchOutcome| {
        let tree = &outcome.tree;
        num_samples(tree, node(tree, "a\n\n"))
    };
    let counts: Vec<usize> = (0..100).map(|seed| of_a(&halves(seed))).collect();
    // Odds of 4 against 1: 1280 of 1600 draws, four standard deviations of 16.
    let sum: usize = counts.iter().sum();
    assert!(sum.abs_diff(1280) <= 64, "{sum}");
    // Seeds differ, and one seed draws the same.
    assert!(counts.iter().any(|count| *count != counts[0]));
    let tree = |seed| format!("{:?}", halves(seed).tree);
    assert_eq!(tree(3), tree(3));
}

#[test]
fn particle_gibbs_draws_later_passes_to_where_the_reference_was() {
    let second_pass = (1_u32 << 31) + 1;
    let policy = ScriptedPolicy::new(None, move |prefix, path, _| {
        let index = path[path.len() - 1] as usize;
        let is_again = path[path.len() - 2] == second_pass;
        match (prefix, is_again) {
            ("", false) => (["a\n\n", "b\n\n"][index].to_owned(), false),
            ("", true) => ("c\n\n".to_owned(), false),
            (_, false) => (["yes", "no"][index].to_owned(), true),
            (_, true) => ("new".to_owned(), true),
        }
    });
    let scorer = one(ByText::value_model(|text| match text {
        "a\n\n" | "a\n\nyes" => 1.0,
        "a\n\nnew" => 0.5,
        _ => 0.0,
    }));
    let search = json!({"strategy": "particle_filtering", "n": 2, "iterations": 2});
    let outcome = run(&policy, Some(&scorer), &spec(search));
    let tree = &outcome.tree;
    // Pass 1: both particles go to a, and end there; "yes" is kept. Pass 2: the one free particle
    // says c, is drawn to a, where the reference was then, and ends with an answer of its own.
    let a = node(tree, "a\n\n");
    assert_eq!(tree.node(a).num_expansions, [2, 0]);
    assert_eq!(tree.node(Tree::ROOT).num_expansions, [2, 0]);
    assert_eq!(tree.node(Tree::ROOT).children.len(), 3);
    assert!(tree.node(node(tree, "c\n\n")).is_pruned);
    assert!(!tree.node(a).is_pruned);
    assert_eq!(texts(&outcome), ["a\n\nyes", "a\n\nnew"]);
    assert_eq!(outcome.stats.scorer_calls, 6);
}

#[test]
fn a_node_that_was_given_up_may_be_taken_up_again_by_a_later_pass() {
    let search = json!({"strategy": "particle_filtering", "n": 3, "iterations": 3});
    let search = spec(search);
    let mut num_taken_up = 0;
    for seed in 0..30 {
        let policy = ScriptedPolicy::new(None, |prefix, path, _| match prefix {
            "" => {
                let index = path[path.len() - 1] as usize;
                (["a\n\n", "b\n\n", "c\n\n"][index].to_owned(), false)
            }
            _ => (format!("{path:?}"), true),
        });
        let scorer = one(ByText::value_model(|_| 0.5));
        let (outcome, events) = run_with_events(&policy.seeded(seed), Some(&scorer), &search);
        let tree = &outcome.tree;
        for id in tree.node(Tree::ROOT).children.iter().copied() {
            let last = |is_it: &dyn Fn(&SearchEvent) -> bool| events.iter().rposition(is_it);
            let given_up =
                last(&|event| matches!(event, SearchEvent::Prune { node } if *node == id));
            let expanded =
                last(&|event| matches!(event, SearchEvent::Spawn { parent, .. } if *parent == id));
            if given_up.is_some() && expanded > given_up {
                num_taken_up += 1;
                assert!(!tree.node(id).is_pruned, "seed {seed}");
            }
        }
    }
    assert!(num_taken_up > 0);
}

#[test]
fn both_need_scores_of_steps_and_gibbs_needs_two_particles() {
    let steps = one(ByText::value_model(|_| 0.5));
    for strategy in ["rebase", "particle_filtering"] {
        let search = spec(json!({"strategy": strategy}));
        let error = search.check_scorer(Some(&one(Majority))).unwrap_err();
        assert_eq!(error.param, "reward");
        let expected = format!("{strategy} compares");
        assert!(error.message.starts_with(&expected), "{error}");
        assert!(search.check_scorer(Some(&steps)).is_ok());
    }
    let search = json!({"strategy": "particle_filtering", "n": 1, "iterations": 2});
    let error = spec(search).check_scorer(Some(&steps)).unwrap_err();
    assert_eq!(error.param, "n");
    assert!(error.message.contains("at least 2"), "{error}");
}
