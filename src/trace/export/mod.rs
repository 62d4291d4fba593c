//! Traces as training rows, in the shapes that trainers read.
//!
//! A row has the fields of its format first, then those that all rows share: where it comes from and signals to
//! select by. The shared signals are of the row's answer: of a pair that is the chosen one, of a group its best, of
//! a linearised walk the answer it arrives at, and a correction has none of its own. Rows of one format have the
//! same keys and types, but for the prompt and its answers, which are messages for chats and text for completions.

mod groups;
mod linearised;
mod options;
mod preferences;
mod sft;
mod step_values;
mod tree;

use std::collections::{HashMap, HashSet};

use serde_json::{Map, Value, json};
use xxhash_rust::xxh3::{xxh3_64, xxh3_128};

pub use options::{ExportOptions, Format, Level};
use tree::Tree;

use super::TraceRecord;

/// Words in a row that novelty compares.
const NGRAM_WORDS: usize = 4;
/// Most n-grams that are remembered; later ones are new every time they come.
const MAX_NGRAMS: usize = 1 << 20;

/// One row before the fields that all formats share.
struct Row {
    /// The format's own fields; rows with the same ones are the same.
    shape: Map<String, Value>,
    /// The answer that the row is about, or the step; novelty is that of it.
    text: String,
    /// Where that answer ends; a correction is in no tree.
    node: Option<usize>,
}

/// Turns traces into rows, one export or one stream: remembers what it has written, for de-duplication, the cap, and
/// novelty. The same traces in the same order give the same rows.
pub struct Exporter {
    format: Format,
    options: ExportOptions,
    /// Hashes of the shapes that were written.
    written: HashSet<u128>,
    /// Rows by the hash of their prompt.
    num_rows: HashMap<u64, usize>,
    ngrams: HashSet<u64>,
}

impl Exporter {
    pub fn new(format: Format, options: ExportOptions) -> Self {
        Self {
            format,
            options,
            written: HashSet::new(),
            num_rows: HashMap::new(),
            ngrams: HashSet::new(),
        }
    }

    /// The rows of one trace, without those that were written before.
    pub fn rows(&mut self, trace: &TraceRecord) -> Vec<Map<String, Value>> {
        if self.format == Format::Tree {
            let whole = serde_json::to_value(trace).map(object);
            return whole.into_iter().collect();
        }
        if trace.is_redacted || !trace.is_tree() {
            return Vec::new();
        }
        let trace = settled(trace);
        let tree = Tree::new(&trace);
        let rows = match self.format {
            Format::Tree => Vec::new(),
            Format::Sft => sft::rows(&tree),
            Format::StepValues => step_values::rows(&tree),
            Format::Preferences => preferences::rows(&tree, &self.options),
            Format::Linearised => linearised::rows(&tree, &self.options),
            Format::Groups => groups::rows(&tree),
        };
        let prompt = prompt_hash(&trace);
        let mut finished = Vec::new();
        for row in rows {
            if self.admit(prompt, &row) {
                finished.push(self.finish(&tree, row));
            }
        }
        finished
    }

    /// Whether a row is to be written; if so it counts as written.
    fn admit(&mut self, prompt: u64, row: &Row) -> bool {
        let most = self.options.max_per_prompt.unwrap_or(usize::MAX);
        let num_rows = self.num_rows.entry(prompt).or_default();
        if *num_rows >= most {
            return false;
        }
        if self.options.deduplicate {
            let shape = serde_json::to_vec(&row.shape).unwrap_or_default();
            if !self.written.insert(xxh3_128(&shape)) {
                return false;
            }
        }
        *num_rows += 1;
        true
    }

    /// The row with the fields that all formats share.
    fn finish(&mut self, tree: &Tree, row: Row) -> Map<String, Value> {
        let trace = tree.trace;
        let node = row.node.and_then(|id| trace.nodes.get(id));
        let num_tokens = row.node.and_then(|id| tree.num_tokens.get(id).copied());
        let mean_logprob = match (node, num_tokens) {
            (Some(node), Some(1..)) => num_tokens.map(|count| node.logprob / count as f64),
            _ => None,
        };
        // A correction is right by definition.
        let (outcome, value) = node.map_or((Some(1.0), 1.0), |node| (node.outcome, node.value));
        let shared = json!({
            "trace_id": trace.id,
            "revision": trace.revision,
            "model": trace.model,
            "created": trace.created,
            "tags": trace.tags,
            "strategy": trace.strategy,
            "outcome": outcome,
            "value": value,
            "visits": node.map(|node| node.visit_count),
            "mean_logprob": mean_logprob,
            "num_tokens": num_tokens,
            "novelty": self.novelty(&row.text),
        });
        let mut fields = row.shape;
        fields.extend(object(shared));
        fields
    }

    /// The share of the text's n-grams that no text before had; a shorter text is one n-gram, an empty one none.
    fn novelty(&mut self, text: &str) -> f64 {
        let words: Vec<&str> = text.split_whitespace().collect();
        if words.is_empty() {
            return 0.0;
        }
        let ngrams = words.windows(NGRAM_WORDS.min(words.len()));
        let mut ngrams: Vec<u64> = ngrams
            .map(|ngram| xxh3_64(ngram.join(" ").as_bytes()))
            .collect();
        // Sorted rather than a set, so that a full memory takes the same ones each time.
        ngrams.sort_unstable();
        ngrams.dedup();
        let num_all = ngrams.len();
        ngrams.retain(|ngram| !self.ngrams.contains(ngram));
        let num_new = ngrams.len();
        ngrams.truncate(MAX_NGRAMS.saturating_sub(self.ngrams.len()));
        self.ngrams.extend(ngrams);
        num_new as f64 / num_all as f64
    }
}

/// The trace with the oracle's word also at the answer that it is about, where values are inferred from.
fn settled(trace: &TraceRecord) -> TraceRecord {
    let mut trace = trace.clone();
    if let Some(node) = trace.best().and_then(|best| trace.nodes.get_mut(best)) {
        node.outcome = node.outcome.or(trace.outcome);
    }
    trace
}

/// Traces with the same one are of the same prompt.
fn prompt_hash(trace: &TraceRecord) -> u64 {
    if trace.request.is_null() {
        xxh3_64(trace.prompt_text.as_bytes())
    } else {
        xxh3_64(trace.request.to_string().as_bytes())
    }
}

fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(fields) => fields,
        _ => Map::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trace::NodeRecord;
    use crate::trace::testing::{chain, node, trace_of};

    /// Two right answers.
    fn trace() -> TraceRecord {
        let answer = |text, value| NodeRecord {
            outcome: Some(1.0),
            token_ids: vec![1, 2],
            logprob: -1.0,
            value,
            visit_count: 3,
            ..node(Some(0), text, Some("stop"))
        };
        trace_of(vec![
            node(None, "", None),
            answer("one two three four five", 0.5),
            answer("one two three four six", 0.25),
        ])
    }

    fn exporter(options: ExportOptions) -> Exporter {
        Exporter::new(Format::Sft, options)
    }

    #[test]
    fn rows_end_with_the_shared_fields() {
        let rows = exporter(ExportOptions::default()).rows(&trace());
        assert_eq!(rows.len(), 2);
        let expected = concat!(
            r#"{"messages":[{"role":"user","content":"question"},"#,
            r#"{"role":"assistant","content":"one two three four six"}],"#,
            r#""trace_id":"trace-1","revision":1,"model":"model","created":0,"tags":[],"#,
            r#""strategy":"best_of_n","outcome":1.0,"value":0.25,"visits":3,"#,
            r#""mean_logprob":-0.5,"num_tokens":2,"novelty":0.5}"#
        );
        assert_eq!(serde_json::to_string(&rows[1]).unwrap(), expected);
        assert_eq!(rows[0]["novelty"], 1.0);
    }

    #[test]
    fn no_row_comes_twice_unless_asked_for() {
        let mut exporter = exporter(ExportOptions::default());
        assert_eq!(exporter.rows(&trace()).len(), 2);
        let again = TraceRecord {
            id: "trace-2".to_owned(),
            revision: 2,
            correction: Some("seven".to_owned()),
            ..trace()
        };
        let rows = exporter.rows(&again);
        assert_eq!(rows.len(), 1);
        assert_eq!(rows[0]["messages"][1]["content"], "seven");
        for (field, expected) in [
            ("outcome", json!(1.0)),
            ("value", json!(1.0)),
            ("visits", json!(null)),
            ("mean_logprob", json!(null)),
            ("num_tokens", json!(null)),
        ] {
            assert_eq!(rows[0][field], expected, "{field}");
        }
        let mut exporter = self::exporter(ExportOptions {
            deduplicate: false,
            ..ExportOptions::default()
        });
        exporter.rows(&trace());
        let rows = exporter.rows(&trace());
        assert_eq!(rows.len(), 2);
        assert_eq!(rows[0]["novelty"], 0.0);
    }

    #[test]
    fn a_prompt_has_no_more_rows_than_asked_for() {
        let mut exporter = exporter(ExportOptions {
            max_per_prompt: Some(1),
            deduplicate: false,
            ..ExportOptions::default()
        });
        assert_eq!(exporter.rows(&trace()).len(), 1);
        assert_eq!(exporter.rows(&trace()).len(), 0);
        let other = TraceRecord {
            request: json!({"prompt": "other"}),
            ..trace()
        };
        assert_eq!(exporter.rows(&other).len(), 1);
        let unknown = TraceRecord {
            request: Value::Null,
            ..trace()
        };
        assert_eq!(exporter.rows(&unknown).len(), 1);
    }

    #[test]
    fn the_oracle_speaks_of_the_chosen_answer() {
        let mut trace = trace();
        trace.outcome = Some(1.0);
        trace.nodes[1].outcome = None;
        trace.nodes[2].outcome = Some(0.0);
        let rows = exporter(ExportOptions::default()).rows(&trace);
        assert_eq!(rows.len(), 1);
        assert_eq!(rows[0]["outcome"], 1.0);
        // Of nothing when there is no such node.
        trace.chosen = vec![9];
        assert!(exporter(ExportOptions::default()).rows(&trace).is_empty());
    }

    #[test]
    fn redacted_traces_are_only_trees() {
        let mut trace = trace();
        trace.redact();
        for format in Format::ALL {
            let rows = Exporter::new(format, ExportOptions::default()).rows(&trace);
            assert_eq!(
                rows.len(),
                usize::from(format == Format::Tree),
                "{format:?}"
            );
        }
    }

    #[test]
    fn trees_are_the_records() {
        let mut exporter = Exporter::new(Format::Tree, ExportOptions::default());
        for _ in 0..2 {
            let rows = exporter.rows(&trace());
            let read: TraceRecord = serde_json::from_value(json!(rows[0])).unwrap();
            assert_eq!(read, trace());
        }
    }

    /// A chain of many steps, with a wrong answer beside each: what is written once is linear in it.
    #[test]
    fn deep_trees_are_walked_in_linear_time() {
        const NUM_STEPS: usize = 60_000;
        let mut trace = chain(NUM_STEPS, "step\n");
        trace.nodes[NUM_STEPS].outcome = Some(1.0);
        trace.chosen = vec![NUM_STEPS];
        let started = std::time::Instant::now();
        for (format, num_rows) in [
            (Format::Tree, 1),
            (Format::Sft, 1),
            (Format::StepValues, 1),
            (Format::Preferences, 0),
            (Format::Linearised, 1),
            // One group, without variance.
            (Format::Groups, 1),
        ] {
            let rows = Exporter::new(format, ExportOptions::default()).rows(&trace);
            assert_eq!(rows.len(), num_rows, "{format:?}");
            let bytes = serde_json::to_vec(&rows).unwrap().len();
            assert!(bytes < NUM_STEPS * 400, "{format:?}: {bytes}");
        }
        for id in 0..NUM_STEPS - 1 {
            trace.nodes.push(NodeRecord {
                outcome: Some(0.0),
                ..node(Some(id), "wrong", Some("stop"))
            });
        }
        let rows = Exporter::new(Format::Linearised, ExportOptions::default()).rows(&trace);
        assert_eq!(rows.len(), 2);
        let rows = Exporter::new(Format::Sft, ExportOptions::default()).rows(&trace);
        assert_eq!(rows.len(), 1);
        // Seconds where the square of the steps would be hours.
        assert!(started.elapsed().as_secs() < 30, "{:?}", started.elapsed());
    }

    #[test]
    fn short_texts_are_one_ngram() {
        let mut exporter = exporter(ExportOptions::default());
        assert_eq!(exporter.novelty(" \n"), 0.0);
        assert_eq!(exporter.novelty("a b"), 1.0);
        assert_eq!(exporter.novelty("a  b"), 0.0);
        assert_eq!(exporter.novelty("a b c d e f"), 1.0);
        assert_eq!(exporter.novelty("b c d e g"), 0.5);
    }
}
