//! Strategies over whole answers that decide for themselves how many they sample: what they sample,
//! when they stop and what they return, over a scripted model.

use std::sync::Arc;

use ponder::reward::{Calibration, Likelihood, Majority, Scorer, Weighted};
use ponder::search::scripted::ScriptedPolicy;
use ponder::search::{
    End, ReplayPolicy, Search, SearchEvent, SearchOutcome, SearchRequest, SearchSpec, Stopped,
};
use serde_json::{Value, json};

use crate::search::{ByText, one, outline, record, run, run_with_events, spec, texts};

/// The number that an answer ends with, in hundredths.
fn last_number(text: &str) -> f64 {
    let number = text.rsplit(' ').next().unwrap();
    // A budget may cut an answer before it.
    number.parse::<f64>().unwrap_or(0.0) / 100.0
}

/// Answers in the order in which they are started, wave by wave: the text says which wave.
fn in_order(values: &'static [u32]) -> ScriptedPolicy {
    let next = std::sync::atomic::AtomicUsize::new(0);
    ScriptedPolicy::new(None, move |_, path, _| {
        let at = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        (
            format!("wave {} answer {at:02} is {:02}", path[0], values[at]),
            true,
        )
    })
}

/// How many samples each wave had.
fn waves(outcome: &SearchOutcome) -> Vec<usize> {
    let mut waves = Vec::new();
    for node in &outcome.tree.nodes[1..] {
        for path in std::iter::once(&node.branch_path).chain(&node.duplicate_paths) {
            let wave = path[0] as usize;
            waves.resize(waves.len().max(wave + 1), 0);
            waves[wave] += 1;
        }
    }
    waves
}

fn wrong(request: Value, scorer: &Weighted) -> (String, String) {
    let request: SearchRequest = serde_json::from_value(request).unwrap();
    let error = match request.resolve(64, "likelihood") {
        Ok(spec) => spec.check_scorer(Some(scorer)).unwrap_err(),
        Err(error) => error,
    };
    (error.param, error.message)
}

#[test]
fn a_cost_ends_best_of_n_once_the_next_answer_is_worth_less() {
    let scorer = one(ByText::value_model(last_number));
    let search = |cost: f64| {
        spec(json!({"strategy": "best_of_n", "n": 16, "cost": cost,
            "reward": {"kind": "likelihood"}}))
    };
    // The first answer leaves little above it, but both were begun together.
    let outcome = run(&in_order(&[97, 50]), Some(&scorer), &search(0.01));
    assert_eq!(waves(&outcome), [1]);
    assert_eq!(outcome.stopped, Some(Stopped::Decided));
    assert_eq!(outcome.stats.scorer_calls, 1);
    // Waves of 2, 2 and 4; the next is worth 0.0101 after eight answers, and 0.0089 after nine.
    let values = &[
        60, 50, 80, 70, 62, 55, 70, 65, 60, 60, 60, 60, 60, 60, 60, 60,
    ];
    let outcome = run(&in_order(values), Some(&scorer), &search(0.01));
    assert_eq!(waves(&outcome), [2, 2, 4, 1]);
    assert_eq!(outcome.stopped, Some(Stopped::Decided));
    assert_eq!(outcome.answers[0].value, 0.8);
    // A high price buys fewer answers: 0.056 after two, 0.0135 after three.
    let dear = run(&in_order(values), Some(&scorer), &search(0.02));
    assert_eq!(waves(&dear), [2, 1]);
    // Almost for free, all are sampled.
    let free = run(&in_order(values), Some(&scorer), &search(1e-9));
    assert_eq!((waves(&free), free.stopped), (vec![2, 2, 4, 8], None));
}

#[test]
fn answers_that_are_checked_are_hoped_for_by_laplaces_rule() {
    let is_right = |text: &str| f64::from(u8::from(text.ends_with("99")));
    let scorer = one(ByText::verifier(is_right));
    let search = |cost: f64| {
        spec(json!({"strategy": "best_of_n", "n": 16, "cost": cost,
            "reward": {"kind": "likelihood"}}))
    };
    // After eight wrong ones the next is right with 1 in 10.
    let outcome = run(&in_order(&[0; 16]), Some(&scorer), &search(0.1));
    assert_eq!(waves(&outcome), [2, 2, 4]);
    assert_eq!(outcome.stopped, Some(Stopped::Decided));
    // A right one ends it, whatever the next would cost.
    let outcome = run(&in_order(&[0, 0, 99, 0]), Some(&scorer), &search(0.01));
    assert_eq!(waves(&outcome), [2, 1]);
    assert_eq!(outcome.answers[0].value, 1.0);
}

#[test]
fn a_cost_is_refused_where_nothing_reads_it() {
    let majority = one(Majority);
    let likelihood = one(Likelihood);
    for (request, scorer, param, part) in [
        (
            json!({"strategy": "best_of_n", "cost": 0.01}),
            &majority,
            "cost",
            "majority",
        ),
        (
            json!({"strategy": "best_of_n", "cost": 0.0}),
            &likelihood,
            "cost",
            "above 0",
        ),
        (
            json!({"strategy": "best_of_n", "cost": 1.5}),
            &likelihood,
            "cost",
            "at most 1",
        ),
        (
            json!({"strategy": "mcts", "cost": 0.1}),
            &likelihood,
            "cost",
            "takes no cost",
        ),
    ] {
        let (at, message) = wrong(request.clone(), scorer);
        assert_eq!(at, param, "{request}");
        assert!(message.contains(part), "{request}: {message}");
    }
}

#[test]
fn an_adaptive_search_goes_on_from_its_record() {
    let values: &[u32] = &[
        30, 31, 29, 60, 31, 30, 29, 30, 61, 30, 30, 30, 30, 30, 30, 62,
    ];
    // By its place, so that a wave that is sampled again says the same.
    let policy = |limit| {
        ScriptedPolicy::new(limit, move |_, path, _| {
            let at = [0, 2, 4, 8, 0][path[0] as usize] + path[1] as usize;
            (
                format!("wave {} answer {at:02} is {:02}", path[0], values[at % 16]),
                true,
            )
        })
    };
    let scorer = || one(ByText::value_model(last_number));
    let request = |tokens: u64| {
        spec(json!({"strategy": "best_of_n", "n": 16, "cost": 0.01,
            "reward": {"kind": "likelihood"}, "budget": {"tokens": tokens}}))
    };
    let short = run(&policy(Some(100)), Some(&scorer()), &request(100));
    assert_eq!(short.stopped, Some(Stopped::Budget));
    let long = run(&policy(Some(400)), Some(&scorer()), &request(400));
    let recording = record(&short.tree);
    let model = policy(Some(400));
    let replay = ReplayPolicy {
        recording: &recording,
        policy: &model,
    };
    let (scorer, larger) = (scorer(), request(400));
    let search = Search::new(&replay, Some(&scorer), &larger, None);
    let resumed = futures::executor::block_on(search.with_recording(&recording).run()).unwrap();
    assert_eq!(outline(&resumed.tree), outline(&long.tree));
    assert!(resumed.stats.scorer_calls < long.stats.scorer_calls);
}

/// Four votes for 1, then two for 2.
fn four_to_two() -> ScriptedPolicy {
    in_order(&[1, 1, 1, 1, 2, 2])
}

#[test]
fn a_weighted_vote_ends_only_when_nobody_can_catch_up() {
    let vote = spec(json!({"strategy": "self_consistency", "n": 6,
        "reward": {"kind": "likelihood"}}));
    let last_vote = |events: &[SearchEvent]| {
        let votes = events.iter().rev().find_map(|event| match event {
            SearchEvent::Vote { answer, total, .. } => Some((answer.clone(), *total)),
            _ => None,
        });
        votes.unwrap()
    };
    // Four votes of six decide it; four of weight 0.3 may still be caught by two.
    let unweighted = spec(json!({"strategy": "self_consistency", "n": 6, "threshold": 1.0}));
    let (outcome, events) = run_with_events(&four_to_two(), None, &unweighted);
    assert_eq!(last_vote(&events), ("1".to_owned(), 4));
    assert_eq!(outcome.stopped, Some(Stopped::Decided));
    let light = one(ByText::value_model(|text| {
        if text.ends_with('1') { 0.3 } else { 0.7 }
    }));
    let (outcome, events) = run_with_events(&four_to_two(), Some(&light), &vote);
    assert_eq!(last_vote(&events), ("2".to_owned(), 6));
    assert_eq!(outcome.stopped, None);
    assert!(outcome.answers[0].text.ends_with('2'));
    assert!((outcome.answers[0].value - 1.4 / 2.6).abs() < 1e-12);
    // All have weight 1: as without a reward, but never by the posterior.
    let heavy = one(ByText::value_model(|_| 1.0));
    let (_, events) = run_with_events(&in_order(&[1; 6]), Some(&heavy), &vote);
    assert_eq!(last_vote(&events), ("1".to_owned(), 4));
    // Nothing has weight: the votes order the answers.
    let nothing = one(ByText::value_model(|_| 0.0));
    let outcome = run(&in_order(&[2, 1, 1, 3, 1, 2]), Some(&nothing), &vote);
    assert!(outcome.answers[0].text.ends_with('1'));
    assert!(outcome.answers[0].value < 1e-6);
}

#[test]
fn a_vote_is_weighed_by_rewards_of_steps_and_by_the_mean_of_several() {
    let vote = json!({"strategy": "self_consistency", "n": 4, "reward": {"kind": "likelihood"}});
    let steps: Arc<dyn Scorer> = Arc::new(ByText::value_model(|text| {
        if text.ends_with('2') { 0.8 } else { 0.2 }
    }));
    let check: Arc<dyn Scorer> = Arc::new(ByText::verifier(|text| {
        if text.ends_with('2') { 0.0 } else { 1.0 }
    }));
    let outcome =
        |scorer: &Weighted| run(&in_order(&[2, 1, 1, 1]), Some(scorer), &spec(vote.clone()));
    let of_steps = outcome(&Weighted::new(vec![(1.0, Arc::clone(&steps))]));
    assert!(
        of_steps.answers[0].text.ends_with('2'),
        "{:?}",
        texts(&of_steps)
    );
    assert!((of_steps.answers[0].value - 0.8 / 1.4).abs() < 1e-12);
    // (3 * 0.2 + 1) / 4 = 0.4 thrice against (3 * 0.8 + 0) / 4 = 0.6.
    let both = outcome(&Weighted::new(vec![(3.0, steps), (1.0, check)]));
    assert!(both.answers[0].text.ends_with('1'));
    assert!((both.answers[0].value - 1.2 / 1.8).abs() < 1e-12);
}

/// Answers of eight tokens, by wave and place: the number with which one ends, and how confident
/// its second half is. The first half is certain.
type Confident = &'static [&'static [(u32, f32)]];

fn confident(limit: Option<u64>, script: Confident) -> ScriptedPolicy {
    // Under a budget waves are smaller and more.
    let of = move |path: &[u32]| {
        let wave = script.get(path[0] as usize);
        let known = wave.and_then(|wave| wave.get(path[1] as usize));
        known
            .copied()
            .unwrap_or((path[0] % 3, 1.0 + path[0] as f32))
    };
    let policy = ScriptedPolicy::new(limit, move |_, path, _| {
        (format!("{}{}; is {}", path[0], path[1], of(path).0), true)
    });
    policy.with_confidence(move |path, at| if at < 4 { 8.0 } else { of(path).1 })
}

/// A limit of 3.5: a quarter of the way up from the warm-up's lowest.
const CONFIDENT: Confident = &[
    &[(1, 2.0), (1, 4.0), (2, 6.0), (3, 8.0)],
    &[(2, 6.0), (1, 1.0), (2, 4.0), (1, 2.0)],
];

fn deepconf(budget: Option<u64>) -> SearchSpec {
    spec(
        json!({"strategy": "deepconf", "n": 8, "budget": {"tokens": budget},
        "confidence": {"warm_up": 4, "keep": 0.75, "window": 4}}),
    )
}

#[test]
fn answers_end_where_their_confidence_does() {
    let (outcome, events) = run_with_events(&confident(None, CONFIDENT), None, &deepconf(None));
    let nodes = outcome.tree.nodes[1..].iter();
    let ends: Vec<(&str, End, f64)> = nodes
        .map(|node| {
            (
                node.text.as_str(),
                node.end.unwrap(),
                node.confidence.unwrap(),
            )
        })
        .collect();
    let expected = [
        ("00; is 1", End::Stop, 2.0),
        ("01; is 1", End::Stop, 4.0),
        ("02; is 2", End::Stop, 6.0),
        ("03; is 3", End::Stop, 8.0),
        // Groups of (8, 8, 8, 1), (8, 8, 1, 1), and (8, 1, 1, 1): the first below 3.5.
        ("11; is ", End::Unsure, 2.75),
        ("10; is 2", End::Stop, 6.0),
        ("12; is 2", End::Stop, 4.0),
        // Its last token was its last anyway.
        ("13; is 1", End::Stop, 2.0),
    ];
    assert_eq!(ends, expected);
    assert_eq!(outcome.stats.num_tokens, 63);
    assert_eq!(outcome.stopped, None);
    let pruned = events
        .iter()
        .filter(|event| matches!(event, SearchEvent::Prune { node: 5 }));
    assert_eq!(pruned.count(), 1);
    // 4 for 1; 6, 6 and 4 for 2; 8 for 3. What lacks confidence has no vote.
    let values: Vec<(f64, &str)> = outcome
        .answers
        .iter()
        .map(|answer| (answer.value, answer.text.as_str()))
        .collect();
    assert_eq!(values[0], (16.0 / 28.0, "02; is 2"));
    assert_eq!(values[3], (8.0 / 28.0, "03; is 3"));
    assert_eq!(values[4], (4.0 / 28.0, "01; is 1"));
    assert_eq!((values[5].0, values[6].0, values.len()), (0.0, 0.0, 7));
}

#[test]
fn a_reward_weighs_confident_votes_too() {
    let scorer = one(ByText::value_model(|text| {
        if text.ends_with('3') { 1.0 } else { 0.25 }
    }));
    let outcome = run(&confident(None, CONFIDENT), Some(&scorer), &deepconf(None));
    // 16 / 4 and 4 / 4 against 8.
    assert_eq!(outcome.answers[0].text, "03; is 3");
    assert_eq!(outcome.answers[0].value, 8.0 / 13.0);
}

#[test]
fn confident_votes_end_with_a_consensus() {
    let search = |threshold: f64| {
        spec(
            json!({"strategy": "deepconf", "n": 8, "threshold": threshold,
            "confidence": {"warm_up": 4, "keep": 0.75, "window": 4}}),
        )
    };
    const AGREED: Confident = &[
        &[(1, 8.0), (1, 8.0), (2, 8.0), (2, 2.0)],
        &[(1, 8.0), (2, 8.0), (2, 8.0), (2, 8.0)],
    ];
    // 16 of 26 in the warm-up, 16 of 24 of those that may vote, 24 of 32 with the next.
    for (threshold, tokens, kept) in [(0.6, 32, 4), (0.7, 64, 5), (0.95, 64, 8)] {
        let outcome = run(&confident(None, AGREED), None, &search(threshold));
        assert_eq!(outcome.stats.num_tokens, tokens, "{threshold}");
        assert_eq!(outcome.tree.nodes.len() - 1, kept, "{threshold}");
        let is_decided = outcome.stopped == Some(Stopped::Decided);
        assert_eq!(is_decided, threshold < 0.9, "{threshold}");
    }
}

#[test]
fn an_unsure_search_goes_on_from_its_record() {
    let long = run(&confident(Some(100), CONFIDENT), None, &deepconf(Some(100)));
    for budget in [20, 32, 45, 60, 100] {
        let short = run(
            &confident(Some(budget), CONFIDENT),
            None,
            &deepconf(Some(budget)),
        );
        let recording = record(&short.tree);
        let model = confident(Some(100), CONFIDENT);
        let replay = ReplayPolicy {
            recording: &recording,
            policy: &model,
        };
        let spec = deepconf(Some(100));
        let search = Search::new(&replay, None, &spec, None).with_recording(&recording);
        let resumed = futures::executor::block_on(search.run()).unwrap();
        assert_eq!(outline(&resumed.tree), outline(&long.tree), "{budget}");
    }
}

#[test]
fn a_confidence_is_checked() {
    let likelihood = one(Likelihood);
    for (request, param) in [
        (json!({"warm_up": 9}), "confidence.warm_up"),
        (json!({"warm_up": 0}), "confidence.warm_up"),
        (json!({"keep": 0.0}), "confidence.keep"),
        (json!({"keep": 1.5}), "confidence.keep"),
        (json!({"window": 0}), "confidence.window"),
    ] {
        let request = json!({"strategy": "deepconf", "n": 8, "confidence": request});
        assert_eq!(wrong(request, &likelihood).0, param);
    }
    let request = json!({"strategy": "self_consistency", "confidence": {}});
    assert_eq!(wrong(request, &likelihood).0, "confidence");
    // A small `n` leaves some answers to what the warm-up taught.
    let confidence = |n: usize| {
        let spec = spec(json!({"strategy": "deepconf", "n": n}));
        spec.confidence.unwrap().warm_up
    };
    assert_eq!([1, 8, 31, 64].map(confidence), [1, 4, 16, 16]);
}

fn auto(more: Value) -> SearchSpec {
    let mut search = json!({"strategy": "auto", "n": 16, "reward": {"kind": "likelihood"}});
    for (name, value) in more.as_object().unwrap() {
        search[name] = value.clone();
    }
    spec(search)
}

/// Values by the answer: the first digit of a two-digit number is its value in tenths.
fn first_digit(text: &str) -> f64 {
    (last_number(text) * 10.0).floor() / 10.0
}

#[test]
fn an_easy_prompt_costs_one_answer() {
    let scorer = one(ByText::value_model(last_number));
    let outcome = run(&in_order(&[96]), Some(&scorer), &auto(json!({})));
    assert_eq!(waves(&outcome), [1]);
    assert_eq!(outcome.stopped, Some(Stopped::Decided));
    assert_eq!(outcome.answers[0].value, 0.96);
    // Three that agree: 0.9375 is below the threshold, but nothing more is to be gained.
    let outcome = run(&in_order(&[50; 3]), Some(&scorer), &auto(json!({})));
    assert_eq!(waves(&outcome), [1, 2]);
    assert_eq!(outcome.stopped, Some(Stopped::Decided));
    assert_eq!(outcome.answers[0].value, 0.9375);
}

#[test]
fn a_hard_prompt_gets_waves_of_a_weighted_vote() {
    let scorer = || one(ByText::value_model(first_digit));
    // 1: 50; 2: 40; all three differ, and so do the next four but one.
    let values = &[
        50, 40, 30, 41, 50, 20, 31, 50, 50, 42, 50, 50, 50, 50, 50, 50,
    ];
    let outcome = run(&in_order(values), Some(&scorer()), &auto(json!({})));
    // After seven, two of 50 lead: worth more. After fifteen, nine: nobody can catch up.
    assert_eq!(waves(&outcome), [1, 2, 4, 8]);
    assert_eq!(outcome.stopped, Some(Stopped::Decided));
    assert!(outcome.answers[0].text.ends_with("50"));
    // A price that no wave is worth.
    let dear = run(
        &in_order(values),
        Some(&scorer()),
        &auto(json!({"cost": 0.2})),
    );
    assert_eq!(waves(&dear), [1]);
    assert_eq!(dear.answers[0].value, 0.5);
    // A budget ends it where it must.
    let limit = 4 * "wave 0 answer 00 is 50".len() as u64;
    let spec = auto(json!({"budget": {"tokens": limit}}));
    let next = std::sync::atomic::AtomicUsize::new(0);
    let policy = ScriptedPolicy::new(Some(limit), move |_, path, _| {
        let at = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        (
            format!("wave {} answer {at:02} is {}", path[0], values[at]),
            true,
        )
    });
    let outcome = run(&policy, Some(&scorer()), &spec);
    assert_eq!(
        (waves(&outcome), outcome.stopped),
        (vec![1, 2, 1], Some(Stopped::Budget))
    );
}

#[test]
fn a_calibration_says_what_values_and_votes_mean() {
    let scorer = one(Likelihood);
    let with = |calibration: &Calibration, values: &'static [u32]| {
        let (policy, spec) = (in_order(values), auto(json!({})));
        let search = Search::new(&policy, Some(&scorer), &spec, None);
        let search = search.with_calibration(Some(calibration));
        futures::executor::block_on(search.run()).unwrap()
    };
    // Every answer of this server is right, says the first; agreement is all that counts, the
    // second; and nothing can be told, the third: then more answers are worth nothing.
    let sure = Calibration::new("likelihood", 9.0, [0.0; 5]);
    let outcome = with(&sure, &[10]);
    assert_eq!(waves(&outcome), [1]);
    assert!(outcome.answers[0].value > 0.999);
    let agreement = Calibration::new("likelihood", 0.0, [0.0, 0.0, 2.0, 0.0, 0.0]);
    let outcome = with(&agreement, &[10, 20, 10, 10, 10, 10, 10]);
    assert_eq!(waves(&outcome), [1, 2, 4]);
    // Six of seven: odds of 7 to 2, squared.
    assert!((outcome.answers[0].value - 49.0 / 53.0).abs() < 1e-12);
    let blind = Calibration::new("likelihood", -3.0, [0.0; 5]);
    assert_eq!(waves(&with(&blind, &[10])), [1]);
    // Of another reward it says nothing: likelihood 0.6065, and three answers that agree.
    let other = Calibration::new("prm", 9.0, [0.0; 5]);
    assert_eq!(waves(&with(&other, &[10; 3])), [1, 2]);
}

#[test]
fn programs_are_chosen_by_value() {
    let program = |numbers: &'static [u32]| {
        let next = std::sync::atomic::AtomicUsize::new(0);
        ScriptedPolicy::new(None, move |_, _, _| {
            let at = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            // The last number is the same in all of them.
            (
                format!("```python\nv = {} # {at:02}, of 7\n```", numbers[at]),
                true,
            )
        })
    };
    let value = |text: &str| {
        let number = text
            .split("v = ")
            .nth(1)
            .unwrap()
            .split(' ')
            .next()
            .unwrap();
        number.parse::<f64>().unwrap() / 100.0
    };
    let model = one(ByText::value_model(value));
    let outcome = run(&program(&[30, 31, 92]), Some(&model), &auto(json!({})));
    assert_eq!(waves(&outcome), [1, 2]);
    assert!(outcome.answers[0].text.contains("v = 92"));
    assert!((outcome.answers[0].value - 0.92).abs() < 1e-12);
    // A verifier's word is final, also in the middle of a wave.
    let check = one(ByText::verifier(|text| {
        f64::from(u8::from(text.contains("v = 99")))
    }));
    let numbers = &[10, 11, 12, 13, 99, 14, 15];
    let outcome = run(
        &program(numbers),
        Some(&check),
        &auto(json!({"cost": 0.01})),
    );
    assert_eq!(waves(&outcome), [1, 2, 2]);
    assert_eq!(outcome.answers[0].value, 1.0);
    assert!(outcome.answers[0].text.contains("v = 99"));
    // What is never right costs until hope is gone: 1 / (n + 2) is below 0.1 after 15.
    let none = one(ByText::verifier(|_| 0.0));
    let outcome = run(
        &program(&[10; 15]),
        Some(&none),
        &auto(json!({"cost": 0.1})),
    );
    assert_eq!(waves(&outcome), [1, 2, 4, 8]);
    assert_eq!(outcome.stopped, Some(Stopped::Decided));
}
