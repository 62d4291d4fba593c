//! Searches that go on from a tree which somebody made up: the work is linear in it.

use std::time::Duration;

use ponder::reward::Likelihood;
use ponder::search::scripted::ScriptedPolicy;
use ponder::search::{
    RecordedNode, Recording, ReplayPolicy, STRATEGIES, Search, SearchOutcome, SearchSpec, Tree,
};
use ponder::work::thread_time;
use serde_json::json;

use crate::search::{ByText, needs_steps, one, outline, record, spec};

const NUM_NODES: usize = 60_000;
const TEXT: &str = "a step of a hundred bytes, which is a little more than what most of the steps of an answer have .\n";

/// One branch; each node claims to be a sample that searches ask for.
fn chain(token_ids: &[u32]) -> Recording {
    let steps = 1_u32 << 31;
    let node = |id: usize| RecordedNode {
        parent: id.checked_sub(1),
        token_ids: if id == 0 {
            Vec::new()
        } else {
            token_ids.to_vec()
        },
        text: if id == 0 {
            String::new()
        } else {
            TEXT.to_owned()
        },
        inserted: Vec::new(),
        end: None,
        logprob: -0.5 * id as f64,
        score: Some(0.5),
        branch_path: match id {
            0 => Vec::new(),
            _ => vec![
                if id.is_multiple_of(2) { steps } else { 0 },
                (NUM_NODES - id) as u32,
            ],
        },
        duplicate_paths: Vec::new(),
        variant_paths: Vec::new(),
        confidence: Some(0.5),
    };
    Recording::new((0..NUM_NODES).map(node).collect())
}

fn script() -> ScriptedPolicy {
    ScriptedPolicy::new(None, |prefix, path, is_whole| match is_whole {
        true => (format!("{path:?}\nend"), true),
        false => (format!("{path:?}\n\n"), prefix.len() > 40),
    })
}

fn places(tree: &Tree) -> Vec<(Vec<u32>, String, usize)> {
    let nodes = tree.nodes.iter();
    let line = |node: &ponder::search::Node| {
        (node.branch_path.clone(), node.text.clone(), node.num_tokens)
    };
    nodes.map(line).collect()
}

#[test]
fn a_tree_of_one_long_branch_costs_what_it_is_long() {
    let started = thread_time();
    for strategy in STRATEGIES {
        let spec = spec(json!({"strategy": strategy.name(), "n": 8, "branch": 4,
            "iterations": 16, "reward": {"kind": "likelihood"}}));
        let scorer = one(Likelihood);
        let whole = script();
        let whole = Search::new(&whole, Some(&scorer), &spec, None).run();
        let whole = futures::executor::block_on(whole).unwrap();
        // With tokens and without: neither is what follows a prefix.
        for token_ids in [&[1_u32][..], &[]] {
            let recording = chain(token_ids);
            let policy = script();
            let policy = ReplayPolicy {
                recording: &recording,
                policy: &policy,
            };
            let search = Search::new(&policy, Some(&scorer), &spec, None);
            let search = search.with_recording(&recording).run();
            let resumed = futures::executor::block_on(search).unwrap();
            resumed.tree.check_invariants();
            if !token_ids.is_empty() {
                assert_eq!(places(&resumed.tree), places(&whole.tree), "{strategy:?}");
            }
        }
    }
    // Whole prefixes would be 180 GB.
    let took = thread_time() - started;
    assert!(took < Duration::from_secs(30), "{took:?}");
}

/// One of a few lines, by what it continues and its place among the samples; some end the answer, and some
/// differ from others in their last blank line alone.
fn lines(limit: Option<u64>) -> ScriptedPolicy {
    ScriptedPolicy::new(limit, |prefix, path, is_whole| {
        let seed = prefix.len() as u32 * 7;
        let key = path.iter().fold(seed, |key, part| {
            (key.rotate_left(5) ^ part).wrapping_mul(0x9E37_79B1)
        });
        let line = |key: u32| ["x = 1\n", "y\n", "y\n\n", "return\n"][(key >> 13) as usize % 4];
        match is_whole {
            true => ([line(key), line(key << 7)].concat(), true),
            false => (
                line(key).to_owned(),
                key.is_multiple_of(5) || prefix.len() > 40,
            ),
        }
    })
}

fn run(spec: &SearchSpec, limit: Option<u64>, known: Option<&Recording>) -> SearchOutcome {
    let policy = lines(limit);
    let score = |text: &str| (text.len() % 7) as f64 / 7.0;
    let scorer = one(match needs_steps(spec.strategy) {
        true => ByText::value_model(score),
        false => ByText::verifier(score),
    });
    let outcome = match known {
        None => futures::executor::block_on(Search::new(&policy, Some(&scorer), spec, None).run()),
        Some(recording) => {
            let policy = ReplayPolicy {
                recording,
                policy: &policy,
            };
            let search = Search::new(&policy, Some(&scorer), spec, None);
            futures::executor::block_on(search.with_recording(recording).run())
        }
    };
    outcome.unwrap()
}

/// An earlier run may have come to an expansion with more tokens left than the run that goes on from it, since a smaller
/// budget also leaves out what the larger one samples first. Here the record has all that there is.
#[test]
fn a_record_gives_no_more_than_the_budget_has() {
    for strategy in STRATEGIES {
        let of_limit = |limit: Option<u64>| {
            spec(
                json!({"strategy": strategy.name(), "n": 3, "branch": 3, "iterations": 6,
                "budget": {"tokens": limit}, "reward": {"kind": "likelihood"}}),
            )
        };
        let recording = record(&run(&of_limit(None), None, None).tree);
        for limit in (1..250).map(Some) {
            let spec = of_limit(limit);
            let (whole, resumed) = (run(&spec, limit, None), run(&spec, limit, Some(&recording)));
            let name = format!("{} with {limit:?} tokens", strategy.name());
            assert_eq!(outline(&resumed.tree), outline(&whole.tree), "{name}");
            assert_eq!(resumed.stats.num_tokens, whole.stats.num_tokens, "{name}");
        }
    }
}
