//! Traces as training rows, in the shapes that trainers read.
//!
//! A row has the fields of its format first, then those that all rows share: where it comes from
//! and signals to select by. The shared signals are of the row's answer: of a pair that is the
//! chosen one, of a group its best, of a linearised walk the answer it arrives at, and a correction
//! has none of its own. Rows of one format have the same keys and types, but for the prompt and its
//! answers, which are messages for chats and text for completions.

mod groups;
mod linearised;
mod options;
mod preferences;
mod sft;
mod step_values;
#[cfg(test)]
mod tests;
mod tree;

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};

use serde_json::{Map, Value, json};
use xxhash_rust::xxh3::xxh3_64;

pub use options::{ExportOptions, Format, Level};
use tree::Tree;

use super::TraceRecord;

/// Words in a row that novelty compares.
const NGRAM_WORDS: usize = 4;
/// Most n-grams that are remembered; later ones are new every time they come.
const MAX_NGRAMS: usize = 1 << 20;
/// Most rows that are remembered; later ones may come twice.
const MAX_WRITTEN: usize = 1 << 20;
/// Most prompts whose rows are counted; those of later ones are not limited.
const MAX_PROMPTS: usize = 1 << 18;
/// Answers of one group, in bytes. Other rows have one answer or two, which is no more than their trace.
const MAX_ROW_BYTES: usize = 64 << 20;

/// One row before the fields that all formats share.
struct Row {
    /// The format's own fields; rows with the same ones are the same.
    shape: Map<String, Value>,
    /// The answer that the row is about, or the step; novelty is that of it.
    text: String,
    /// Where that answer ends; a correction is in no tree.
    node: Option<usize>,
}

/// The rows of one tree in one format, made one at a time: each holds whole answers, of which a deep tree has many that
/// share most of their text. A plan itself is no larger than its tree.
trait Plan {
    /// The next row; `Some(None)` where one would be that teaches nothing.
    fn next(&mut self, tree: &Tree) -> Option<Option<Row>>;
}

/// A row that nobody should have to hold.
struct TooLarge;

#[cfg(test)]
fn drain(mut plan: impl Plan, tree: &Tree) -> Vec<Row> {
    std::iter::from_fn(|| plan.next(tree)).flatten().collect()
}

/// What is still to come of one trace.
pub struct Pending(Source);

enum Source {
    Nothing,
    Record(Box<TraceRecord>),
    Planned {
        tree: Box<Tree<'static>>,
        plan: Box<dyn Plan + Send>,
        /// Hash of the prompt.
        prompt: u64,
    },
}

/// What came of one step through a trace.
#[derive(Debug, PartialEq)]
pub enum Made {
    Row(Map<String, Value>),
    /// One that was written before, or that a limit leaves out.
    LeftOut,
    End,
}

/// Turns traces into rows, one export or one stream: remembers what it has written, for de-duplication, the cap, and
/// novelty. The same traces in the same order give the same rows.
pub struct Exporter {
    format: Format,
    options: ExportOptions,
    /// Hashes of the shapes that were written.
    written: HashSet<u64>,
    /// Rows by the hash of their prompt.
    num_rows: HashMap<u64, usize>,
    ngrams: HashSet<u64>,
    num_too_large: u64,
}

impl Exporter {
    pub fn new(format: Format, options: ExportOptions) -> Self {
        Self {
            format,
            options,
            written: HashSet::new(),
            num_rows: HashMap::new(),
            ngrams: HashSet::new(),
            num_too_large: 0,
        }
    }

    /// Traces whose group was left out, because its answers are more than 64 MiB together.
    pub fn num_too_large(&self) -> u64 {
        self.num_too_large
    }

    /// The rows of one trace, without those that were written before, all at once.
    pub fn rows(&mut self, trace: &TraceRecord) -> Vec<Map<String, Value>> {
        let mut pending = self.begin(trace.clone());
        let mut rows = Vec::new();
        loop {
            match self.next(&mut pending) {
                Made::Row(row) => rows.push(row),
                Made::LeftOut => {}
                Made::End => return rows,
            }
        }
    }

    /// Begins a trace; [`Self::next`] gives its rows. The trace before it must be at its end.
    pub fn begin(&mut self, trace: TraceRecord) -> Pending {
        if self.format == Format::Tree {
            return Pending(Source::Record(Box::new(trace)));
        }
        if trace.is_redacted || !trace.is_tree() {
            return Pending(Source::Nothing);
        }
        let tree = Tree::of(Cow::Owned(settled(trace)));
        let plan: Box<dyn Plan + Send> = match self.format {
            Format::Tree => return Pending(Source::Nothing),
            Format::Sft => Box::new(sft::plan(&tree)),
            Format::StepValues => Box::new(step_values::plan(&tree)),
            Format::Preferences => Box::new(preferences::plan(&tree, &self.options)),
            Format::Linearised => Box::new(linearised::plan(&tree, &self.options)),
            Format::Groups => match groups::plan(&tree) {
                Ok(plan) => Box::new(plan),
                Err(TooLarge) => {
                    self.num_too_large += 1;
                    return Pending(Source::Nothing);
                }
            },
        };
        let prompt = prompt_hash(&tree.trace);
        Pending(Source::Planned {
            tree: Box::new(tree),
            plan,
            prompt,
        })
    }

    /// One step through a trace. Takes as long as its row is.
    pub fn next(&mut self, pending: &mut Pending) -> Made {
        let (tree, row, prompt) = match &mut pending.0 {
            Source::Nothing => return Made::End,
            Source::Record(trace) => {
                let row = serde_json::to_value(trace).map(object);
                pending.0 = Source::Nothing;
                return row.map_or(Made::LeftOut, Made::Row);
            }
            Source::Planned { tree, plan, prompt } => (&*tree, plan.next(tree), *prompt),
        };
        match row {
            Some(Some(row)) if self.admit(prompt, &row) => Made::Row(self.finish(tree, row)),
            Some(_) => Made::LeftOut,
            None => {
                pending.0 = Source::Nothing;
                Made::End
            }
        }
    }

    /// Whether a row is to be written; if so it counts as written.
    fn admit(&mut self, prompt: u64, row: &Row) -> bool {
        let most = self.options.max_per_prompt.unwrap_or(usize::MAX);
        if most != usize::MAX && self.num_rows.get(&prompt).copied().unwrap_or(0) >= most {
            return false;
        }
        if self.options.deduplicate {
            let hash = xxh3_64(&serde_json::to_vec(&row.shape).unwrap_or_default());
            if self.written.contains(&hash) {
                return false;
            }
            if self.written.len() < MAX_WRITTEN {
                self.written.insert(hash);
            }
        }
        let is_counted = self.num_rows.len() < MAX_PROMPTS || self.num_rows.contains_key(&prompt);
        if most != usize::MAX && is_counted {
            *self.num_rows.entry(prompt).or_default() += 1;
        }
        true
    }

    /// The row with the fields that all formats share.
    fn finish(&mut self, tree: &Tree, row: Row) -> Map<String, Value> {
        let trace = &tree.trace;
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
fn settled(mut trace: TraceRecord) -> TraceRecord {
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
