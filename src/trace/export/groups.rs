//! All answers of a prompt with their rewards, as ReST-GRPO filters and extends them (arXiv
//! 2508.19576 and its code).

use serde_json::json;
use xxhash_rust::xxh3::xxh3_64;

use super::tree::Tree;
use super::{MAX_ROW_BYTES, Plan, Row, TooLarge, object};

/// Groups whose rewards vary no more teach nothing.
const REST_GRPO_MIN_STD: f64 = 0.05;
/// Answers above this reward have beginnings worth to start from.
const REST_GRPO_MIN_REWARD: f64 = 0.9;
/// The longest such beginning, as a share of the answer's lines.
const REST_GRPO_MAX_SHARE: f64 = 0.5;
/// How much less likely each further line makes a beginning.
const REST_GRPO_DECAY: f64 = 0.95;

struct Rewarded {
    node: usize,
    text: String,
    /// What of it the model did not write.
    inserted: Vec<[usize; 2]>,
    reward: f64,
    /// Identical samples are one node.
    num_samples: usize,
}

/// The group of the prompt, and that of one partial answer.
struct Groups {
    is_whole_next: bool,
    /// `None` when all is said.
    answers: Option<Vec<Rewarded>>,
}

/// `Err` when the answers are too many bytes for a row.
pub(super) fn plan(tree: &Tree) -> Result<impl Plan + use<>, TooLarge> {
    Ok(Groups {
        is_whole_next: true,
        answers: Some(rewarded(tree)?),
    })
}

impl Plan for Groups {
    fn next(&mut self, tree: &Tree) -> Option<Option<Row>> {
        if self.is_whole_next {
            self.is_whole_next = false;
            let all: Vec<&Rewarded> = self.answers.iter().flatten().collect();
            let whole = group(tree, &all, "").filter(|(_, std)| *std > REST_GRPO_MIN_STD);
            return Some(whole.map(|(row, _)| row));
        }
        let answers = self.answers.take()?;
        let part = partial_answer(&answers, &tree.trace.id).and_then(|prefix| {
            let same = answers
                .iter()
                .filter(|answer| answer.text.starts_with(prefix));
            group(tree, &same.collect::<Vec<_>>(), prefix)
        });
        Some(part.map(|(row, _)| row))
    }
}

fn rewarded(tree: &Tree) -> Result<Vec<Rewarded>, TooLarge> {
    let reward = |id: usize| match tree.has_outcome {
        true => tree.node(id).outcome,
        false => tree.has_value(id).then(|| tree.node(id).value),
    };
    let num_samples = |id: usize| 1 + tree.node(id).duplicate_paths.len();
    let answers: Vec<(usize, f64)> = tree
        .answers()
        .filter_map(|id| Some((id, reward(id)?)))
        .collect();
    // A row holds whole answers, which share their beginnings in the tree: their bytes are added up first.
    let mut num_bytes = vec![0_usize; tree.children.len()];
    for id in 1..num_bytes.len() {
        let node = tree.node(id);
        num_bytes[id] = num_bytes[node.parent.unwrap_or_default()] + node.text.len();
    }
    let of_answer = |(id, _): &(usize, f64)| num_bytes[*id].saturating_mul(num_samples(*id));
    let sum = answers.iter().map(of_answer).fold(0, usize::saturating_add);
    if sum > MAX_ROW_BYTES {
        return Err(TooLarge);
    }
    let rewarded = answers.into_iter().map(|(id, reward)| Rewarded {
        node: id,
        text: tree.trace.answer_text(id),
        inserted: tree.trace.answer_inserted(id),
        reward,
        num_samples: num_samples(id),
    });
    Ok(rewarded.collect())
}

/// A row and its standard deviation. Completions are whole answers, `prefix` included.
fn group<'a>(tree: &Tree, answers: &[&'a Rewarded], prefix: &str) -> Option<(Row, f64)> {
    // The first of equals.
    let best = answers
        .iter()
        .rev()
        .max_by(|a, b| a.reward.total_cmp(&b.reward))?;
    let samples = || {
        let repeated = |answer: &'a Rewarded| std::iter::repeat_n(answer, answer.num_samples);
        answers.iter().copied().flat_map(repeated)
    };
    let rewards: Vec<f64> = samples().map(|answer| answer.reward).collect();
    let count = rewards.len() as f64;
    let mean = rewards.iter().sum::<f64>() / count;
    let variance = rewards
        .iter()
        .map(|reward| (reward - mean).powi(2))
        .sum::<f64>()
        / count;
    let std = variance.sqrt();
    let shape = json!({
        "prompt": tree.prompt.column(),
        "completions": samples().map(|answer| &answer.text).collect::<Vec<_>>(),
        "inserted": samples().map(|answer| &answer.inserted).collect::<Vec<_>>(),
        "rewards": rewards,
        "mean": mean,
        "std": std,
        "prefix": prefix,
    });
    let row = Row {
        shape: object(shape),
        text: best.text.clone(),
        node: Some(best.node),
    };
    Some((row, std))
}

/// The first lines of one of the good answers, drawn by the trace's id; few lines are more likely than many.
fn partial_answer<'a>(answers: &'a [Rewarded], id: &str) -> Option<&'a str> {
    let mut prefixes: Vec<(&str, f64)> = Vec::new();
    for answer in answers {
        if answer.reward <= REST_GRPO_MIN_REWARD {
            continue;
        }
        let num_lines = answer.text.split_inclusive('\n').count() as f64;
        let most = (num_lines * REST_GRPO_MAX_SHARE) as usize;
        let (mut end, mut weight) = (0, 1.0);
        let mut says_something = false;
        for line in answer.text.split_inclusive('\n').take(most) {
            end += line.len();
            says_something |= !line.trim().is_empty();
            if says_something {
                prefixes.push((&answer.text[..end], weight));
            }
            weight *= REST_GRPO_DECAY;
        }
    }
    let total: f64 = prefixes.iter().map(|(_, weight)| weight).sum();
    // The hash's upper bits as a number in 0..1.
    let mut left = (xxh3_64(id.as_bytes()) >> 11) as f64 / (1_u64 << 53) as f64 * total;
    let drawn = prefixes.iter().find(|(_, weight)| {
        left -= weight;
        left < 0.0
    });
    // Rounding may leave a little after the last one.
    drawn.or(prefixes.last()).map(|(prefix, _)| *prefix)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trace::export::drain;
    use crate::trace::testing::{node, trace_of};
    use crate::trace::{NodeRecord, TraceRecord};
    use serde_json::Value;

    fn trace(answers: &[(&str, Option<f64>, f64)]) -> TraceRecord {
        let answers = answers.iter().map(|(text, outcome, value)| NodeRecord {
            outcome: *outcome,
            value: *value,
            ..node(Some(0), text, Some("stop"))
        });
        trace_of([node(None, "", None)].into_iter().chain(answers).collect())
    }

    fn rows(tree: &Tree) -> Vec<Row> {
        drain(plan(tree).ok().unwrap(), tree)
    }

    fn shapes(trace: &TraceRecord) -> Vec<Value> {
        let rows = rows(&Tree::new(trace)).into_iter();
        rows.map(|row| Value::Object(row.shape)).collect()
    }

    fn row(texts: Value, rewards: Value, mean: f64, std: f64, prefix: &str) -> Value {
        let inserted = vec![json!([]); texts.as_array().map_or(0, Vec::len)];
        json!({
            "inserted": inserted,
            "prompt": [{"role": "user", "content": "question"}],
            "completions": texts,
            "rewards": rewards,
            "mean": mean,
            "std": std,
            "prefix": prefix,
        })
    }

    #[test]
    fn identical_samples_count_as_often_as_they_came() {
        let mut trace = trace(&[
            ("a", Some(1.0), 0.0),
            ("b", Some(0.0), 0.0),
            ("c", None, 0.5),
        ]);
        trace.nodes[2].duplicate_paths = vec![vec![1], vec![2]];
        let rewards = json!([1.0, 0.0, 0.0, 0.0]);
        let expected = row(
            json!(["a", "b", "b", "b"]),
            rewards,
            0.25,
            0.1875_f64.sqrt(),
            "",
        );
        assert_eq!(shapes(&trace), [expected]);
        assert_eq!(rows(&Tree::new(&trace))[0].node, Some(1));
    }

    #[test]
    fn rewards_must_vary() {
        let expected = row(json!(["a", "b"]), json!([0.5, 0.75]), 0.625, 0.125, "");
        assert_eq!(
            shapes(&trace(&[("a", None, 0.5), ("b", None, 0.75)])),
            [expected]
        );
        assert!(shapes(&trace(&[("a", None, 0.5), ("b", None, 0.59)])).is_empty());
        assert!(shapes(&trace(&[])).is_empty());
    }

    #[test]
    fn good_answers_have_a_beginning_to_start_from() {
        let trace = trace(&[
            ("\na\nb\nc\nd", Some(1.0), 0.0),
            ("\na\nx", Some(1.0), 0.0),
            ("y\nz", Some(0.0), 0.0),
        ]);
        let rows = shapes(&trace);
        assert_eq!(rows.len(), 2);
        // Of five lines two may be taken, of three one; a blank line is nothing.
        let texts = json!(["\na\nb\nc\nd", "\na\nx"]);
        assert_eq!(rows[1], row(texts, json!([1.0, 1.0]), 1.0, 0.0, "\na\n"));
    }

    #[test]
    fn short_beginnings_are_drawn_more_often() {
        let answers = [Rewarded {
            node: 1,
            text: "a\nb\nc\nd".to_owned(),
            inserted: Vec::new(),
            reward: 1.0,
            num_samples: 1,
        }];
        let draw = |id: usize| partial_answer(&answers, &id.to_string());
        let num_short = (0..10_000).filter(|id| draw(*id) == Some("a\n")).count();
        let num_long = (0..10_000).filter(|id| draw(*id) == Some("a\nb\n")).count();
        assert_eq!(num_short + num_long, 10_000);
        // 1 / 1.95 of them, within three standard deviations.
        assert!((4_978..=5_278).contains(&num_short), "{num_short}");
    }
}
