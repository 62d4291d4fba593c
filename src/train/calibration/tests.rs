use std::io::Write;

use serde_json::json;

use super::*;
use crate::trace::testing::{node, trace_of};

/// An answer of two tokens with the probability one half each.
fn answer(text: &str, path: &[u32], score: f64, outcome: f64) -> NodeRecord {
    NodeRecord {
        token_ids: vec![1, 2],
        logprob: 2.0 * 0.5_f64.ln(),
        score: Some(score),
        outcome: Some(outcome),
        branch_path: path.to_vec(),
        ..node(Some(0), text, Some("stop"))
    }
}

fn trace(prompt: u32, reward: Value, answers: Vec<NodeRecord>) -> TraceRecord {
    let root = node(None, "", None);
    TraceRecord {
        prompt_token_ids: vec![prompt],
        search: json!({"reward": reward}),
        ..trace_of(std::iter::once(root).chain(answers).collect())
    }
}

fn file(traces: &[TraceRecord]) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    for trace in traces {
        writeln!(file, "{}", json!(trace)).unwrap();
    }
    file
}

fn fitted(traces: &[TraceRecord], reward: Option<&str>) -> Result<CalibrationReport, String> {
    let file = file(traces);
    let report = calibrate(&[file.path().to_owned()], reward, 0.25, 0);
    report.map_err(|error| error.to_string())
}

#[test]
fn waves_are_played_again_in_the_order_of_the_samples() {
    let mut twice = answer("The answer is 1", &[0, 2], 0.5, 1.0);
    twice.duplicate_paths.push(vec![0, 0]);
    let answers = vec![twice, answer("The answer is 2", &[0, 1], 0.75, 0.0)];
    let trace = trace(7, json!({"kind": "prm"}), answers);
    let moments = replay(&trace, 3, "prm");
    let shown: Vec<(usize, f64, f64)> = moments
        .iter()
        .map(|it| (it.num_samples, it.row.outcome, it.row.weight))
        .collect();
    let third = 1.0 / 3.0;
    // Each alone; then all three, of which two agree with 0.5 each against one with 0.75.
    assert_eq!(
        shown,
        [
            (1, 1.0, third),
            (1, 0.0, third),
            (1, 1.0, third),
            (3, 1.0, 1.0)
        ]
    );
    assert!(moments.iter().all(|it| it.group == 3));
    let expected = Evidence {
        value: Some(0.5),
        logprob: 0.5_f64.ln(),
        num_tokens: 2.0,
        num_votes: 2,
        num_second: 1,
        num_samples: 3,
    };
    assert_eq!(moments[3].row.features, expected.features());
}

#[test]
fn values_are_those_of_the_reward_that_auto_will_use() {
    let kind = |reward: Value| value_kind(&trace(0, reward, Vec::new()));
    assert_eq!(kind(json!(null)), Ok("likelihood".to_owned()));
    assert_eq!(kind(json!({"kind": "prm"})), Ok("prm".to_owned()));
    // What a verifier says is the outcome, and no value.
    assert_eq!(
        kind(json!([{"kind": "verifier"}])),
        Ok("likelihood".to_owned())
    );
    let both = json!([{"kind": "verifier"}, {"kind": "prm"}]);
    assert_eq!(kind(both), Ok("prm".to_owned()));
    assert!(kind(json!([{"kind": "judge"}, {"kind": "prm"}])).is_err());
    assert!(kind(json!({"kind": "majority"})).is_err());
    let mut node = answer("1", &[0], 0.3, 1.0);
    assert_eq!(value(&node, "prm"), Some(0.3));
    assert!((value(&node, "likelihood").unwrap() - 0.5).abs() < 1e-12);
    node.reward_parts = [("verifier".to_owned(), 1.0), ("prm".to_owned(), 0.9)].into();
    node.outcome = None;
    assert_eq!(value(&node, "prm"), Some(0.9));
    assert_eq!(moment(&[&node], "prm").unwrap().1, 1.0);
}

/// One answer a prompt, right as often as its value says.
fn honest(num_prompts: u32) -> Vec<TraceRecord> {
    let mut random = Random(5);
    let one = |prompt: u32| {
        let value = (random.uniform() * 0.98 + 0.01).clamp(0.01, 0.99);
        let outcome = f64::from(u8::from(random.uniform() < value));
        let text = format!("The answer is {prompt}");
        trace(
            prompt,
            json!({"kind": "prm"}),
            vec![answer(&text, &[0, 0], value, outcome)],
        )
    };
    (0..num_prompts).map(one).collect()
}

#[test]
fn honest_values_are_left_as_they_are() {
    let report = fitted(&honest(800), None).unwrap();
    assert_eq!(report.calibration.reward, "prm");
    assert_eq!((report.num_prompts, report.num_held_out), (800, 200));
    let weight = report.calibration.weights["value_logit"];
    assert!((weight - 1.0).abs() < 0.2, "{:?}", report.calibration);
    for (value, tolerance) in [(0.1, 0.05), (0.5, 0.05), (0.9, 0.05)] {
        let evidence = Evidence {
            value: Some(value),
            logprob: 0.5_f64.ln(),
            num_tokens: 2.0,
            num_votes: 1,
            num_second: 0,
            num_samples: 1,
        };
        let probability = report.calibration.probability(&evidence);
        assert!(
            (probability - value).abs() < tolerance,
            "{value}: {probability}"
        );
    }
    assert!(report.all.auc > 0.75 && report.all.brier < report.all.brier_of_mean);
    assert!(report.all.ece < 0.15, "{:?}", report.all);
    assert_eq!(report.all, report.first);
    let again = fitted(&honest(800), Some("prm")).unwrap();
    assert_eq!(again.calibration, report.calibration);
}

#[test]
fn what_cannot_be_fitted_is_told() {
    let likely = trace(1, json!(null), vec![answer("1", &[0], 0.5, 1.0)]);
    let mut mixed = honest(9);
    mixed.push(likely.clone());
    let error = fitted(&mixed, None).unwrap_err();
    assert!(
        error.contains("likelihood, prm") && error.contains("--reward"),
        "{error}"
    );
    assert!(fitted(&mixed, Some("prm")).is_ok());
    assert!(fitted(&honest(4), None).unwrap_err().contains("it takes 5"));
    assert!(
        fitted(&honest(9), Some("judge"))
            .unwrap_err()
            .contains("no trace")
    );
    let mut unknown = honest(1);
    unknown[0].nodes[1].outcome = None;
    assert!(fitted(&unknown, None).unwrap_err().contains("no trace"));
    let weighed = json!([{"kind": "judge"}, {"kind": "prm"}]);
    let error = fitted(&[trace(1, weighed, Vec::new())], None).unwrap_err();
    assert!(error.contains("line 1: several rewards"), "{error}");
}
