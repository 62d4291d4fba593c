//! Strategies over a scripted model: what they sample, keep and return is known exactly.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use futures::FutureExt;
use futures::future::BoxFuture;
use ponder::reward::{
    BuildError, Candidate, Likelihood, Majority, RewardContext, RewardResources, RewardSpec,
    Scorer, ScorerError, Weighted, build,
};
use ponder::search::scripted::ScriptedPolicy;
use ponder::search::{
    BudgetSpec, End, OneOrMany, RecordedNode, Recording, ReplayPolicy, STRATEGIES, Search,
    SearchEvent, SearchOutcome, SearchRequest, SearchSpec, Stopped, Strategy, Tree,
};
use proptest::prelude::*;
use serde_json::json;

/// Scores by a function of the text.
pub struct ByText {
    score: fn(&str) -> f64,
    scores_steps: bool,
    is_decisive: bool,
    /// Candidates that were scored.
    pub calls: AtomicUsize,
}

impl ByText {
    pub fn value_model(score: fn(&str) -> f64) -> Self {
        Self {
            score,
            scores_steps: true,
            is_decisive: false,
            calls: AtomicUsize::new(0),
        }
    }

    pub fn verifier(score: fn(&str) -> f64) -> Self {
        Self {
            scores_steps: false,
            is_decisive: true,
            ..Self::value_model(score)
        }
    }
}

impl Scorer for ByText {
    fn kind(&self) -> &'static str {
        "verifier"
    }

    fn scores_steps(&self) -> bool {
        self.scores_steps
    }

    fn is_decisive(&self) -> bool {
        self.is_decisive
    }

    fn score<'a>(
        &'a self,
        candidates: &'a [Candidate],
        _: Option<Instant>,
    ) -> BoxFuture<'a, Result<Vec<f64>, ScorerError>> {
        self.calls.fetch_add(candidates.len(), Ordering::Relaxed);
        let scores = candidates.iter().map(|c| (self.score)(&c.text)).collect();
        async { Ok(scores) }.boxed()
    }
}

pub fn one(scorer: impl Scorer + 'static) -> Weighted {
    Weighted::new(vec![(1.0, std::sync::Arc::new(scorer))])
}

pub fn spec(request: serde_json::Value) -> SearchSpec {
    let request: SearchRequest = serde_json::from_value(request).unwrap();
    request.resolve(64, "likelihood").unwrap()
}

/// Whether a strategy searches only by rewards that score steps.
pub fn needs_steps(strategy: &'static dyn Strategy) -> bool {
    let spec = spec(json!({"strategy": strategy.name()}));
    strategy.check(&spec, Some(&one(Majority))).is_err()
}

/// Nothing here waits, so one poll is enough.
pub fn run(policy: &ScriptedPolicy, scorer: Option<&Weighted>, spec: &SearchSpec) -> SearchOutcome {
    run_with_events(policy, scorer, spec).0
}

pub fn run_with_events(
    policy: &ScriptedPolicy,
    scorer: Option<&Weighted>,
    spec: &SearchSpec,
) -> (SearchOutcome, Vec<SearchEvent>) {
    let (sender, mut receiver) = tokio::sync::mpsc::unbounded_channel();
    let search = Search::new(policy, scorer, spec, Some(sender));
    let outcome = futures::executor::block_on(search.run()).unwrap();
    outcome.tree.check_invariants();
    let events = std::iter::from_fn(|| receiver.try_recv().ok()).collect();
    (outcome, events)
}

pub fn texts(outcome: &SearchOutcome) -> Vec<&str> {
    outcome.answers.iter().map(|a| a.text.as_str()).collect()
}

/// Sample `i` of the first expansion is the `i`th text.
pub fn answers(texts: &'static [&'static str]) -> ScriptedPolicy {
    ScriptedPolicy::new(None, |_, path, _| {
        (texts[path[path.len() - 1] as usize].to_owned(), true)
    })
}

#[test]
fn best_of_n_ranks_by_score_and_merges_duplicates() {
    let policy = answers(&["bb", "a", "ccc", "bb"]);
    let scorer = one(ByText::value_model(|text| text.len() as f64 / 10.0));
    let outcome = run(
        &policy,
        Some(&scorer),
        &spec(json!({"strategy": "best_of_n", "n": 4})),
    );
    assert_eq!(texts(&outcome), ["ccc", "bb", "a"]);
    assert_eq!(outcome.tree.nodes.len(), 4);
    assert_eq!(outcome.stats.num_tokens, 8);
    assert_eq!(outcome.stats.scorer_calls, 3);
    assert_eq!(outcome.stopped, None);
}

#[test]
fn a_verified_answer_stops_its_siblings() {
    let policy = answers(&["right!!", "bad", "right", "worst"]);
    let scorer = one(ByText::verifier(|text| {
        f64::from(u8::from(text.starts_with("right")))
    }));
    let outcome = run(
        &policy,
        Some(&scorer),
        &spec(json!({"strategy": "best_of_n", "n": 4})),
    );
    // The shorter samples end first; the longest is never looked at.
    assert_eq!(outcome.answers[0].text, "right");
    assert_eq!(outcome.stopped, Some(Stopped::Decided));
    assert!(!texts(&outcome).contains(&"right!!"));
}

#[test]
fn a_token_budget_finishes_what_it_starts() {
    // Every answer has 20 tokens and says which sample it is; answers may have 64.
    let policy = || {
        ScriptedPolicy::new(Some(110), |_, path, _| {
            (format!("{:<20}", format!("{path:?}")), true)
        })
    };
    let scorer = one(ByText::verifier(|_| 0.5));
    for strategy in ["best_of_n", "self_consistency", "vm_mcts"] {
        let search =
            json!({"strategy": strategy, "n": 8, "budget": {"tokens": 110}, "threshold": 1.0});
        let outcome = run(&policy(), Some(&scorer), &spec(search));
        let whole = outcome
            .answers
            .iter()
            .filter(|answer| answer.end == End::Stop);
        assert_eq!(whole.count(), 5, "{strategy}");
        // One to learn how long answers are, then the four that fit.
        let waves = outcome
            .tree
            .nodes
            .iter()
            .filter(|node| node.end == Some(End::Stop));
        let waves: Vec<u32> = waves.map(|node| node.branch_path[0]).collect();
        assert_eq!(waves, [0, 1, 1, 1, 1], "{strategy}");
    }
}

#[test]
fn a_verified_answer_stops_the_answers_beside_it_in_a_tree() {
    let scorer = one(ByText::verifier(|text| {
        f64::from(u8::from(text.starts_with("b")))
    }));
    let (outcome, events) = run_with_events(
        &answers(&["b\nbbbb", "a", "b\nb", "a\naaaa"]),
        Some(&scorer),
        &spec(json!({"strategy": "vm_mcts", "n": 4})),
    );
    assert_eq!(outcome.answers[0].text, "b\nb");
    assert_eq!(outcome.stopped, Some(Stopped::Decided));
    // Both scored answers and nothing of the two longer ones.
    assert_eq!(outcome.stats.scorer_calls, 2);
    let is_score = |event: &&SearchEvent| matches!(event, SearchEvent::Score { .. });
    assert_eq!(events.iter().filter(is_score).count(), 2);
    let mut seen: Vec<&str> = outcome.answers.iter().map(|a| a.text.as_str()).collect();
    seen.sort_unstable();
    assert_eq!(seen, ["a", "b\nb"]);

    // Roll-outs: the children are "a" and "b"; the roll-out of "b" is the shorter one.
    let policy = ScriptedPolicy::new(None, |prefix, path, is_whole| match (prefix, is_whole) {
        ("", false) => (
            ["a\n\n", "b\n\n"][path[path.len() - 1] as usize].to_owned(),
            false,
        ),
        ("a\n\n", _) => ("aaaaaaaa".to_owned(), true),
        _ => ("b".to_owned(), true),
    });
    let mcts = spec(json!({"strategy": "mcts", "branch": 2}));
    let outcome = run(&policy, Some(&scorer), &mcts);
    assert_eq!(outcome.answers.len(), 1);
    assert_eq!(outcome.stats.scorer_calls, 1);
}

#[test]
fn self_consistency_takes_the_vote_and_stops_when_it_is_decided() {
    let policy = answers(&[
        "The answer is 4.",
        "so \\boxed{4}",
        "It is 5",
        "The answer is 4",
        "I think 4",
    ]);
    let votes = spec(json!({"strategy": "self_consistency", "n": 5, "threshold": 1.0}));
    let (outcome, events) = run_with_events(&policy, None, &votes);
    assert_eq!(outcome.stopped, Some(Stopped::Decided));
    let last = events.iter().rev().find_map(|event| match event {
        SearchEvent::Vote {
            answer,
            votes,
            total,
        } => Some((answer.as_str(), *votes, *total)),
        _ => None,
    });
    // 4 leads by 3 to 1 with one sample left: nobody can catch up.
    assert_eq!(last, Some(("4", 3, 4)));
    assert_eq!(outcome.answers[0].value, 0.75);
}

#[test]
fn weighted_votes_follow_the_reward() {
    let policy = answers(&["The answer is 1", "The answer is 1 ", "The answer is 22"]);
    let scorer = one(ByText::value_model(|text| {
        if text.contains("22") { 0.9 } else { 0.1 }
    }));
    let weighted = spec(
        json!({"strategy": "self_consistency", "n": 3, "threshold": 1.0,
        "reward": {"kind": "likelihood"}}),
    );
    let outcome = run(&policy, Some(&scorer), &weighted);
    assert_eq!(outcome.answers[0].text, "The answer is 22");
}

#[test]
fn majority_scores_need_all_samples() {
    let policy = answers(&["x 1", "xx 2", "xxx 1"]);
    let scorer = one(Majority);
    let outcome = run(
        &policy,
        Some(&scorer),
        &spec(json!({"strategy": "best_of_n", "n": 3})),
    );
    assert!((outcome.answers[0].value - 2.0 / 3.0).abs() < 1e-12);
}

/// Steps are single letters; an answer ends after `depth` of them.
fn letters(depth: usize) -> ScriptedPolicy {
    ScriptedPolicy::new(None, move |prefix, path, is_whole| {
        let index = path[path.len() - 1] as usize;
        let letter = ["a", "b", "c", "d"][index % 4];
        let left = depth - prefix.len();
        if is_whole {
            (letter.repeat(left), true)
        } else {
            (letter.to_owned(), left == 1)
        }
    })
}

/// Prefers `b`, then `a`.
fn taste(text: &str) -> f64 {
    let sum: f64 = text
        .chars()
        .map(|c| match c {
            'b' => 1.0,
            'a' => 0.5,
            _ => 0.1,
        })
        .sum();
    sum / 10.0
}

#[test]
fn beam_search_keeps_the_best_and_tells_what_they_share() {
    let scorer = one(ByText::value_model(taste));
    let beam = spec(json!({"strategy": "beam", "n": 4, "branch": 4}));
    let (outcome, events) = run_with_events(&letters(4), Some(&scorer), &beam);
    assert_eq!(outcome.answers[0].text, "bbbb");
    assert_eq!(outcome.answers[0].end, End::Stop);
    // One beam of four children: 4 rounds of 4 tokens.
    assert_eq!(outcome.stats.num_tokens, 16);
    let agreed: String = events
        .iter()
        .filter_map(|event| match event {
            SearchEvent::Agreed { text, .. } => Some(text.as_str()),
            _ => None,
        })
        .collect();
    assert_eq!(agreed, "bbb");
}

#[test]
fn dvts_keeps_one_beam_in_each_subtree() {
    let scorer = one(ByText::value_model(taste));
    let dvts = spec(json!({"strategy": "dvts", "n": 4, "branch": 2}));
    let outcome = run(&letters(2), Some(&scorer), &dvts);
    // The subtrees begin with {a, b} and {c, d}: b wins in the first, c in the second; each has two children.
    assert_eq!(texts(&outcome), ["bb", "ba", "cb", "ca"]);
}

#[test]
fn mcts_follows_the_bound_exactly() {
    let scorer = one(ByText::value_model(taste));
    let mcts = spec(json!({"strategy": "mcts", "branch": 2, "iterations": 2}));
    let outcome = run(&letters(9), Some(&scorer), &mcts);
    let tree = &outcome.tree;
    // Round 1 expands the root into a and b; b is rolled out for three steps of a: 0.1 to 0.25.
    assert_eq!(tree.text(1), "a");
    assert_eq!(tree.text(2), "b");
    let rolled = 0.5 * 0.1 + 0.5 * taste("baaa");
    // Round 2: the unvisited a has 0.05 + 1.0; b has its value and 0.7 * sqrt(2 ln 1 / 1) = 0. So a is expanded.
    let children = &tree.node(1).children;
    assert_eq!(
        children.iter().map(|id| tree.text(*id)).collect::<Vec<_>>(),
        ["aa", "ab"]
    );
    assert!((tree.node(2).value - rolled).abs() < 1e-12);
    assert_eq!(tree.node(Tree::ROOT).visit_count, 2);
    // a has the value of its rolled-out child ab, and one visit; the root weighs both by their visits.
    let ab = 0.5 * taste("ab") + 0.5 * taste("abaaa");
    assert!((tree.node(1).value - ab).abs() < 1e-12);
    assert!((tree.node(Tree::ROOT).value - (ab + rolled) / 2.0).abs() < 1e-12);
}

#[test]
fn vm_mcts_counts_rewards_of_whole_answers() {
    let scorer = one(ByText::verifier(
        |text| if text == "b\nb\n" { 0.5 } else { 0.0 },
    ));
    let policy = ScriptedPolicy::new(None, |prefix, path, _| {
        let letter = ["a\n", "b\n"][path[path.len() - 1] as usize % 2];
        (letter.repeat(2 - prefix.len() / 2), true)
    });
    let search = spec(json!({"strategy": "vm_mcts", "n": 2, "branch": 2, "iterations": 2}));
    let outcome = run(&policy, Some(&scorer), &search);
    let tree = &outcome.tree;
    assert_eq!(outcome.answers[0].text, "b\nb\n");
    let b = tree.node(Tree::ROOT).children[1];
    assert_eq!(tree.text(b), "b\n");
    // First 1 of 1 with 0.5; then expanded: its children end the answer, one of them right.
    assert_eq!(tree.node(b).visit_count, 3);
    assert!((tree.node(b).value - 1.0 / 3.0).abs() < 1e-12);
    assert_eq!(tree.node(Tree::ROOT).visit_count, 4);
    assert!((tree.node(Tree::ROOT).value - 0.25).abs() < 1e-12);
}

#[test]
fn trees_with_a_verifier_roll_out_whole_answers() {
    let scorer = one(ByText::verifier(|text| f64::from(u8::from(text == "baaa"))));
    let mcts = spec(json!({"strategy": "mcts", "branch": 2, "iterations": 9}));
    let outcome = run(&letters(4), Some(&scorer), &mcts);
    assert_eq!(outcome.answers[0].text, "baaa");
    assert_eq!(outcome.stopped, Some(Stopped::Decided));
}

#[test]
fn beams_need_a_reward_for_steps() {
    let beam = spec(json!({"strategy": "beam"}));
    let error = beam.check_scorer(Some(&one(Majority))).unwrap_err();
    assert!(error.message.starts_with("beam compares"), "{error}");
    assert!(beam.check_scorer(None).is_err());
    assert!(beam.check_scorer(Some(&one(Likelihood))).is_ok());
}

#[test]
fn weights_and_parts_add_up() {
    let verifier = ByText::verifier(|text| f64::from(u8::from(text == "x")));
    let weighted = Weighted::new(vec![
        (3.0, std::sync::Arc::new(verifier)),
        (1.0, std::sync::Arc::new(Likelihood)),
    ]);
    let candidate = |text: &str, is_complete| Candidate {
        text: text.to_owned(),
        num_tokens: 1,
        logprob: 0.5_f64.ln(),
        is_complete,
        ..Candidate::default()
    };
    let candidates = [
        candidate("x", true),
        candidate("y", true),
        candidate("x", false),
    ];
    let scores = futures::executor::block_on(weighted.score(&candidates, None)).unwrap();
    let expected = [(3.0 + 0.5) / 4.0, 0.5 / 4.0, 0.5];
    for (score, expected) in scores.iter().zip(expected) {
        assert!((score - expected).abs() < 1e-12, "{scores:?}");
    }
}

#[test]
fn reward_mistakes_are_named() {
    let build_one = |value: serde_json::Value| {
        let spec: RewardSpec = serde_json::from_value(value).unwrap();
        let (resources, context) = (RewardResources::default(), RewardContext::default());
        let built = futures::executor::block_on(build(&[spec], &resources, &context, None));
        built.map(|_| ()).map_err(|error| match error {
            BuildError::Spec(error) => error.param,
            BuildError::Scorer(error) => error.to_string(),
        })
    };
    let cases = [
        (json!({"kind": "likelihood"}), None),
        (
            json!({"kind": "verifier", "type": "math", "answer": "4"}),
            None,
        ),
        (
            // Nothing here checks schemas.
            json!({"kind": "verifier", "type": "json_schema", "schema": {"type": "object"}}),
            Some("[0].type"),
        ),
        (json!({"kind": "verifier"}), Some("[0].type")),
        (
            json!({"kind": "verifier", "type": "math"}),
            Some("[0].answer"),
        ),
        (
            json!({"kind": "verifier", "type": "regex", "pattern": "("}),
            Some("[0].pattern"),
        ),
        (
            json!({"kind": "verifier", "type": "regex", "pattern": "a", "answer": "b"}),
            Some("[0].answer"),
        ),
        (
            json!({"kind": "verifier", "type": "python", "tests": ["1"]}),
            Some("[0].type"),
        ),
        (
            json!({"kind": "likelihood", "tests": ["1"]}),
            Some("[0].tests"),
        ),
        (json!({"kind": "nonsense"}), Some("[0].kind")),
        (
            json!({"kind": "majority", "weight": -1.0}),
            Some("[0].weight"),
        ),
    ];
    for (value, expected) in cases {
        let result = build_one(value.clone());
        assert_eq!(result.err().as_deref(), expected, "{value}");
    }
}

/// A tree as a trace keeps it.
pub fn record(tree: &Tree) -> Recording {
    let nodes = tree.nodes.iter().map(|node| RecordedNode {
        parent: node.parent,
        token_ids: node.token_ids.clone(),
        text: node.text.clone(),
        inserted: node.inserted.clone(),
        end: node.end,
        logprob: node.logprob,
        score: node.score,
        branch_path: node.branch_path.clone(),
        duplicate_paths: node.duplicate_paths.clone(),
        variant_paths: node.variant_paths.clone(),
        confidence: node.confidence,
    });
    Recording::new(nodes.collect())
}

/// Everything of a tree but the log-probabilities of single tokens, of which a trace has the sum.
pub fn outline(tree: &Tree) -> Vec<String> {
    let line = |node: &ponder::search::Node| {
        let ponder::search::Node {
            parent,
            text,
            end,
            score,
            value,
            visit_count,
            duplicate_paths,
            is_pruned,
            is_rollout,
            branch_path,
            logprob,
            confidence,
            ..
        } = node;
        format!(
            "{parent:?} {text:?} {end:?} {score:?} {value:.9} {visit_count} {duplicate_paths:?} {is_pruned} \
             {is_rollout} {branch_path:?} {logprob:.6} {confidence:?}"
        )
    };
    tree.nodes.iter().map(line).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    /// Budgets hold, values stay in range, the same seed gives the same tree, and some answer comes.
    #[test]
    fn every_strategy_keeps_its_promises(
        strategy in 0..STRATEGIES.len(),
        n in 1_usize..7,
        branch in 1_usize..7,
        iterations in 1_usize..12,
        tokens in prop::option::of(1_u64..200),
        calls in prop::option::of(1_u64..20),
        scores_steps in any::<bool>(),
        seed in any::<u64>(),
    ) {
        let strategy = STRATEGIES[strategy];
        let needs_steps = needs_steps(strategy);
        let request = SearchRequest {
            n: Some(n),
            branch: Some(branch.min(n)),
            iterations: Some(iterations),
            budget: Some(BudgetSpec { tokens, ms: None, scorer_calls: calls }),
            reward: Some(OneOrMany::Many(vec![RewardSpec::of_kind("likelihood")])),
            ..SearchRequest::of(strategy)
        };
        let spec = request.resolve(64, "likelihood").unwrap();
        let hash = move |text: &str| {
            text.bytes().fold(seed, |h, b| {
                (h ^ u64::from(b)).wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(23)
            })
        };
        let script = move |prefix: &str, path: &[u32], is_whole: bool| {
            let key = path.iter().fold(hash(prefix), |h, p| {
                h.rotate_left(7).wrapping_mul(0x100_0000_01B3) ^ u64::from(*p)
            });
            let line = |k: u64| format!("{}\n", ["x = 1", "y", "", "return"][(k % 4) as usize]);
            if is_whole {
                (0..1 + key % 4).map(|i| line(key >> (i * 3))).fold(
                    (String::new(), true), |(all, end), l| (all + &l, end))
            } else {
                (line(key), key % 5 == 0 || prefix.len() > 40)
            }
        };
        let make_scorer = || {
            let score = |text: &str| (text.len() % 7) as f64 / 7.0;
            one(if scores_steps || needs_steps {
                ByText::value_model(score)
            } else {
                ByText::verifier(score)
            })
        };
        let runs: Vec<_> = (0..2).map(|_| {
            let policy = ScriptedPolicy::new(tokens, script).seeded(seed);
            let scorer = make_scorer();
            let search = Search::new(&policy, Some(&scorer), &spec, None);
            futures::executor::block_on(search.run())
        }).collect();
        let [Ok(first), Ok(second)] = runs.as_slice() else {
            prop_assert!(false, "a search failed: {:?}", runs);
            return Ok(());
        };
        first.tree.check_invariants();
        if let Some(limit) = tokens {
            prop_assert!(first.stats.num_tokens <= limit);
        }
        if let Some(limit) = calls {
            prop_assert!(first.stats.scorer_calls <= limit);
        }
        prop_assert!(!first.answers.is_empty());
        let values: Vec<f64> = first.answers.iter().map(|a| a.value).collect();
        if first.answers[0].end != End::Cut {
            prop_assert!(values.windows(2).all(|pair| pair[0] >= pair[1]));
        }
        prop_assert_eq!(format!("{:?}", first.tree), format!("{:?}", second.tree));
        // A search that goes on from this one with a larger budget ends with the tree of one run.
        let larger = SearchRequest {
            budget: Some(BudgetSpec { tokens: tokens.map(|t| t * 3), ..BudgetSpec::default() }),
            ..request.clone()
        };
        let larger = larger.resolve(64, "likelihood").unwrap();
        let recording = record(&first.tree);
        let longer: Vec<_> = [None, Some(&recording)].into_iter().map(|recording| {
            let policy = ScriptedPolicy::new(tokens.map(|t| t * 3), script).seeded(seed);
            let scorer = make_scorer();
            let Some(recording) = recording else {
                let search = Search::new(&policy, Some(&scorer), &larger, None);
                return futures::executor::block_on(search.run()).unwrap();
            };
            let policy = ReplayPolicy { recording, policy: &policy };
            let search = Search::new(&policy, Some(&scorer), &larger, None);
            futures::executor::block_on(search.with_recording(recording).run()).unwrap()
        }).collect();
        prop_assert_eq!(outline(&longer[0].tree), outline(&longer[1].tree));
        prop_assert_eq!(longer[0].stats.num_tokens, longer[1].stats.num_tokens);
        prop_assert!(longer[0].stats.scorer_calls >= longer[1].stats.scorer_calls);
        let visits = |id: usize| first.tree.node(id).visit_count;
        if strategy.name() == "mcts" {
            prop_assert!(visits(Tree::ROOT) <= iterations as u64);
        }
    }
}
