//! Where tree searches go on: not below what has ended or failed, to new children as visits grow,
//! and from where answers begin to differ.

use std::collections::HashSet;

use ponder::search::scripted::ScriptedPolicy;
use ponder::search::{End, NodeId, ReplayPolicy, Search, SearchEvent, Stopped, Tree};
use serde_json::json;

use crate::search::{ByText, one, outline, record, run, run_with_events, spec, texts};

/// The key of a node's first expansion by steps.
const STEPS: u32 = 1 << 31;

/// A node's children but for roll-outs.
fn steps(tree: &Tree, id: NodeId) -> Vec<NodeId> {
    let children = tree.node(id).children.iter().copied();
    children.filter(|id| !tree.node(*id).is_rollout).collect()
}

fn step_texts(tree: &Tree, id: NodeId) -> Vec<&str> {
    let steps = steps(tree, id).into_iter();
    steps.map(|id| tree.node(id).text.as_str()).collect()
}

#[test]
fn mcts_spends_no_round_on_an_answer_that_has_ended() {
    let policy = ScriptedPolicy::new(None, |prefix, path, _| {
        let index = path[path.len() - 1];
        match (prefix, index) {
            ("", 0) => ("done".to_owned(), true),
            _ => (format!("{index}\n\n"), false),
        }
    });
    // The answer has by far the highest bound.
    let scorer = one(ByText::value_model(
        |text| if text == "done" { 0.8 } else { 0.01 },
    ));
    let mcts = spec(json!({"strategy": "mcts", "branch": 2, "iterations": 4}));
    let outcome = run(&policy, Some(&scorer), &mcts);
    let tree = &outcome.tree;
    assert_eq!(outcome.answers[0].text, "done");
    // The roll-out's visit in round 1 is its only one; each round expands another node.
    assert_eq!(tree.node(steps(tree, Tree::ROOT)[0]).visit_count, 1);
    assert_eq!(tree.node(Tree::ROOT).visit_count, 4);
    let expanded = (0..tree.nodes.len()).filter(|id| !steps(tree, *id).is_empty());
    assert_eq!(expanded.count(), 4);
}

/// Both first steps of the first expansion lead nowhere; one of the second does not.
fn dead_ends() -> ScriptedPolicy {
    ScriptedPolicy::new(None, |prefix, path, is_whole| {
        let index = path[path.len() - 1] as usize;
        match (prefix, is_whole) {
            ("", false) => {
                let first = if path[0] == STEPS { 0 } else { 2 };
                let text = ["a\n\n", "b\n\n", "c\n\n", "d\n\n"][first + index];
                (text.to_owned(), false)
            }
            (_, false) => (format!("x{index}\n\n"), false),
            ("c\n\n", true) => ("right".to_owned(), true),
            (_, true) => ("wrong".to_owned(), true),
        }
    })
}

#[test]
fn mcts_leaves_what_has_failed_and_asks_the_root_again() {
    let scorer = one(ByText::verifier(|text| {
        f64::from(u8::from(text.ends_with("right")))
    }));
    let mcts = |iterations: usize| {
        spec(json!({"strategy": "mcts", "branch": 2, "iterations": iterations}))
    };
    let outcome = run(&dead_ends(), Some(&scorer), &mcts(3));
    let tree = &outcome.tree;
    // Round 1: a and b and a wrong answer of each. Rounds 2 and 3: two wrong answers below each.
    assert_eq!(step_texts(tree, Tree::ROOT), ["a\n\n", "b\n\n"]);
    for child in steps(tree, Tree::ROOT) {
        assert_eq!(steps(tree, child).len(), 2);
        assert_eq!(tree.node(child).visit_count, 2);
    }
    assert_eq!(outcome.stats.scorer_calls, 6);
    // Round 4: all is closed, so that the root has new children.
    let outcome = run(&dead_ends(), Some(&scorer), &mcts(4));
    let tree = &outcome.tree;
    assert_eq!(
        step_texts(tree, Tree::ROOT),
        ["a\n\n", "b\n\n", "c\n\n", "d\n\n"]
    );
    assert_eq!(outcome.answers[0].text, "c\n\nright");
    assert_eq!(outcome.stopped, Some(Stopped::Decided));
    // A reward that is no last word closes nothing: a step below a, b is next.
    let unsure = one(ByText::value_model(|_| 0.0));
    let outcome = run(&dead_ends(), Some(&unsure), &mcts(4));
    assert_eq!(steps(&outcome.tree, Tree::ROOT).len(), 2);
}

/// Where the samples of a node's children and of those that were merged into them come from.
fn expansions(tree: &Tree, id: NodeId) -> Vec<Vec<u32>> {
    let nodes = steps(tree, id).into_iter().map(|id| tree.node(id));
    let mut paths: Vec<Vec<u32>> = nodes
        .flat_map(|node| node.duplicate_paths.iter().chain([&node.branch_path]))
        .cloned()
        .collect();
    paths.sort();
    paths
}

#[test]
fn a_node_of_mcts_has_as_many_samples_as_the_root_of_its_visits() {
    let scorer = one(ByText::value_model(|_| 0.5));
    let mcts = spec(json!({"strategy": "mcts", "branch": 1, "iterations": 6}));
    let new = |_: &str, path: &[u32], _: bool| (format!("{}\n\n", path[0] - STEPS), false);
    let same = |_: &str, _: &[u32], _: bool| ("same\n\n".to_owned(), false);
    let distinct = run(&ScriptedPolicy::new(None, new), Some(&scorer), &mcts);
    let equal = run(&ScriptedPolicy::new(None, same), Some(&scorer), &mcts);
    // One in round 1; before round 3 the root has 2 visits, before round 6 it has 5.
    for outcome in [&distinct, &equal] {
        let expected = [[STEPS, 0], [STEPS + 1, 0], [STEPS + 2, 0]];
        assert_eq!(expansions(&outcome.tree, Tree::ROOT), expected);
    }
    assert_eq!(
        step_texts(&distinct.tree, Tree::ROOT),
        ["0\n\n", "1\n\n", "2\n\n"]
    );
    // Equal steps are one child: asking again did not make the root ask more often.
    assert_eq!(step_texts(&equal.tree, Tree::ROOT), ["same\n\n"]);
}

/// Answers of three lines. The first lines of an expansion differ, the others follow a hash.
fn three_lines() -> ScriptedPolicy {
    ScriptedPolicy::new(None, |prefix, path, _| {
        let index = path[path.len() - 1];
        let line = |at: usize| {
            let key = path.iter().fold(at as u32, |key, part| {
                (key.rotate_left(5) ^ part).wrapping_mul(0x9E37_79B1)
            });
            ["x\n", "y\n"][(key >> 13) as usize % 2]
        };
        let above = prefix.matches('\n').count();
        let first = ["x\n", "y\n"][index as usize % 2];
        let rest: String = (above + 1..3).map(line).collect();
        (format!("{first}{rest}"), true)
    })
}

#[test]
fn every_answer_counts_for_all_nodes_of_vm_mcts_that_it_passes() {
    // Never 0 and never 1: nothing fails, and nothing decides.
    let score = |text: &str| 0.2 + 0.1 * text.matches('x').count() as f64;
    let scorer = one(ByText::verifier(score));
    let search = json!({"strategy": "vm_mcts", "n": 2, "branch": 2, "iterations": 12});
    let outcome = run(&three_lines(), Some(&scorer), &spec(search));
    let tree = &outcome.tree;
    // Samples: whole answers below a first step, or equal to it, each as often as it came.
    let whole = (1..tree.nodes.len()).filter(|id| tree.node(*id).end == Some(End::Stop));
    let answers: Vec<String> = whole
        .flat_map(|id| vec![tree.text(id); 1 + tree.node(id).duplicate_paths.len()])
        .collect();
    assert_eq!(answers.len(), 2 * 12);
    let mut has_shared = false;
    for id in (0..tree.nodes.len()).filter(|id| !tree.node(*id).is_rollout) {
        let (node, text) = (tree.node(id), tree.text(id));
        let passing: Vec<&String> = match node.end {
            None => answers.iter().filter(|a| a.starts_with(&text)).collect(),
            Some(_) => answers.iter().filter(|a| **a == text).collect(),
        };
        assert_eq!(node.visit_count as usize, passing.len(), "{text:?}");
        let sum: f64 = passing.iter().map(|answer| score(answer)).sum();
        let mean = sum / passing.len() as f64;
        assert!((node.value - mean).abs() < 1e-9, "{text:?}");
        let own: usize = tree.node(id).num_expansions[1] as usize * 2;
        has_shared |= node.depth == 2 && node.end.is_none() && passing.len() > own + 1;
    }
    assert!(
        has_shared,
        "some answer came through a node that was none yet"
    );
}

#[test]
fn an_answer_counts_for_what_it_was_merged_into_and_below() {
    let policy = ScriptedPolicy::new(None, |prefix, path, _| {
        let index = path[path.len() - 1] as usize;
        let id: String = path.iter().map(|part| format!("{part}-")).collect();
        let lines = match (prefix, path[0]) {
            // The second line break has a space before it: the steps are one node.
            ("", 0) => ["a\nx\n", "a \ny\n", "b\nz\n"][index],
            ("", _) => ["a\nx\n", "a \nx\n", "b\nz\n"][index],
            ("a\n", _) => ["x\n", "y\n", "w\n"][index],
            _ => "",
        };
        (format!("{lines}{id}"), true)
    });
    let score = |text: &str| if text.starts_with('a') { 0.5 } else { 0.1 };
    let scorer = one(ByText::verifier(score));
    let search = json!({"strategy": "vm_mcts", "n": 3, "iterations": 5});
    let outcome = run(&policy, Some(&scorer), &spec(search));
    let tree = &outcome.tree;
    // Before round 5 the root has 12 answers and had 3 samples of its own: it gets more.
    assert_eq!(tree.node(Tree::ROOT).num_expansions, [0, 2]);
    assert_eq!(step_texts(tree, Tree::ROOT), ["a\n", "b\n"]);
    let whole = (1..tree.nodes.len()).filter(|id| tree.node(*id).end == Some(End::Stop));
    let answers: Vec<String> = whole.map(|id| tree.text(id).replace(' ', "")).collect();
    assert_eq!(answers.len(), 3 * 5);
    let visits = |text: &str| {
        let mut ids = (0..tree.nodes.len()).filter(|id| tree.text(*id) == text);
        tree.node(ids.next().unwrap()).visit_count as usize
    };
    for text in ["a\n", "b\n", "a\nx\n", "a\ny\n", "a\nw\n"] {
        let passing = answers.iter().filter(|answer| answer.starts_with(text));
        assert_eq!(visits(text), passing.count(), "{text:?}");
    }
}

/// Answers in a fence of which the first two lines are the same.
fn fenced() -> ScriptedPolicy {
    ScriptedPolicy::new(None, |prefix, path, _| {
        let index = path[path.len() - 1] as usize;
        match prefix {
            "" => {
                let name = ["f", "g", "f"][index];
                (
                    format!("```py\n\nimport a\ndef {name}():\n  {index}\n```"),
                    true,
                )
            }
            _ => (format!("  {path:?}\n```"), true),
        }
    })
}

#[test]
fn actions_of_vm_mcts_begin_where_answers_begin_to_differ() {
    let scorer = one(ByText::verifier(|text| {
        if text.contains("g()") { 0.5 } else { 0.25 }
    }));
    let search = json!({"strategy": "vm_mcts", "n": 3, "iterations": 2});
    let outcome = run(&fenced(), Some(&scorer), &spec(search.clone()));
    let tree = &outcome.tree;
    let expected = [
        "```py\n\nimport a\ndef f():\n",
        "```py\n\nimport a\ndef g():\n",
    ];
    let mut actions = step_texts(tree, Tree::ROOT);
    actions.sort_unstable();
    assert_eq!(actions, expected);
    // Two of three say f. Round 2 goes on from g, whose answers are better.
    let [f, g] = expected.map(|text| {
        let mut ids = steps(tree, Tree::ROOT).into_iter();
        ids.find(|id| tree.node(*id).text == text).unwrap()
    });
    assert_eq!(tree.node(f).visit_count, 2);
    assert_eq!(tree.node(g).visit_count, 1 + 3);
    // A record of it gives the same tree, and asks nobody.
    let recording = record(tree);
    let policy = fenced();
    let policy = ReplayPolicy {
        recording: &recording,
        policy: &policy,
    };
    let spec_again = spec(search);
    let again = Search::new(&policy, Some(&scorer), &spec_again, None);
    let again = futures::executor::block_on(again.with_recording(&recording).run()).unwrap();
    assert_eq!(outline(&again.tree), outline(tree));
    assert_eq!(again.stats.scorer_calls, 0);
}

#[test]
fn answers_that_do_not_differ_have_their_first_step_as_action() {
    let scorer = one(ByText::verifier(|_| 0.25));
    let same = |_: &str, _: &[u32], _: bool| ("```py\nx\n```".to_owned(), true);
    for n in [1, 3] {
        let search = json!({"strategy": "vm_mcts", "n": n, "branch": 1, "iterations": 1});
        let outcome = run(
            &ScriptedPolicy::new(None, same),
            Some(&scorer),
            &spec(search),
        );
        assert_eq!(step_texts(&outcome.tree, Tree::ROOT), ["```py\n"], "{n}");
        assert_eq!(texts(&outcome)[0], "```py\nx\n```");
    }
    // Steps that are shared are noted as far as 16: the last of them is the action.
    let long = |_: &str, path: &[u32], _: bool| {
        let lines: String = ('a'..='r').map(|letter| format!("{letter}\n")).collect();
        (format!("{lines}{}", path[path.len() - 1]), true)
    };
    let search = json!({"strategy": "vm_mcts", "n": 2, "iterations": 1});
    let outcome = run(
        &ScriptedPolicy::new(None, long),
        Some(&scorer),
        &spec(search),
    );
    let actions = step_texts(&outcome.tree, Tree::ROOT);
    assert_eq!(actions.len(), 1);
    assert!(actions[0].ends_with("o\np\n"), "{actions:?}");
}

#[test]
fn vm_mcts_samples_again_where_all_answers_have_ended() {
    let scorer = one(ByText::verifier(|_| 0.25));
    let lines = |_: &str, path: &[u32], _: bool| (format!("{path:?}"), true);
    let search = json!({"strategy": "vm_mcts", "n": 2, "iterations": 4});
    let outcome = run(
        &ScriptedPolicy::new(None, lines),
        Some(&scorer),
        &spec(search),
    );
    assert_eq!(outcome.tree.node(Tree::ROOT).num_expansions, [0, 4]);
    assert_eq!(outcome.stats.scorer_calls, 8);
    assert_eq!(outcome.tree.node(Tree::ROOT).visit_count, 8);
}

#[test]
fn more_children_of_vm_mcts_are_shown_as_visits_grow() {
    let letters = ["a\n", "b\n", "c\n", "d\n", "e\n"];
    let policy = || {
        ScriptedPolicy::new(None, move |_, path, _| {
            let index = path[path.len() - 1] as usize;
            (format!("{}{path:?}\n.", letters[index]), true)
        })
    };
    // The first letters are better, whatever follows.
    let scorer = one(ByText::verifier(|text| {
        0.9 - 0.1 * f64::from(text.as_bytes()[0] - b'a')
    }));
    let shown = |iterations: usize| -> (String, usize) {
        let search = json!({"strategy": "vm_mcts", "branch": 1, "iterations": iterations});
        let (outcome, events) = run_with_events(&policy(), Some(&scorer), &spec(search));
        let tree = &outcome.tree;
        let shown = tree.selectable(Tree::ROOT);
        let shown = shown.filter_map(|id| tree.node(id).text.chars().next());
        let pruned = events.iter().filter_map(|event| match event {
            SearchEvent::Prune { node } => Some(*node),
            _ => None,
        });
        let pruned: Vec<NodeId> = pruned.collect();
        let distinct: HashSet<NodeId> = pruned.iter().copied().collect();
        assert_eq!(distinct.len(), pruned.len(), "a node is given up once");
        let at_root = |id: &&NodeId| tree.node(**id).parent == Some(Tree::ROOT);
        (shown.collect(), pruned.iter().filter(at_root).count())
    };
    // The roots of 5, 10 and 20 answers are 2.2, 3.2 and 4.5.
    assert_eq!(shown(1), ("abc".to_owned(), 2));
    assert_eq!(shown(2), ("abcd".to_owned(), 2));
    assert_eq!(shown(4), ("abcde".to_owned(), 2));
}
