//! What a grammar costs: `ponder bench engine --constrained`.

use std::time::{Duration, Instant};

use anyhow::ensure;
use serde_json::{Value, json};

use super::statistics::{percentile, sorted};
use crate::engine::{TokenConstraint, TokenMask};
use crate::grammar::{Grammar, Grammars};
use crate::text::Tokenizer;
use crate::work::Budget;

/// A text that the schema accepts the beginning of: masks are timed along it.
const SAMPLE: &str = r#"[{"name": "The quick brown fox", "age": 41, "is_active": true, "tags": ["jumps", "over the"], "address": {"street": "12 Main Street", "city": "Springfield", "zip": "12345"}}, {"name": "A lazy dog", "age": 7, "is_active": false, "tags": [], "address": {"street": "", "city": "Shelbyville", "zip": "54321"}}, "#;

/// A grammar whose texts are longer than any measurement.
pub(super) struct Constrained {
    pub constraint: Box<dyn TokenConstraint>,
    /// Until the grammar's first constraint, with the tables of the vocabulary and without.
    vocabulary: Duration,
    cold: Duration,
    warm: Duration,
    masks_per_second: f64,
}

fn schema() -> Value {
    json!({
        "type": "array",
        "minItems": 1_000,
        "items": {
            "type": "object",
            "properties": {
                "name": {"type": "string"},
                "age": {"type": "integer"},
                "is_active": {"type": "boolean"},
                "tags": {"type": "array", "items": {"type": "string"}},
                "address": {
                    "type": "object",
                    "properties": {
                        "street": {"type": "string"},
                        "city": {"type": "string"},
                        "zip": {"type": "string", "pattern": "^[0-9]{5}$"},
                    },
                    "required": ["street", "city", "zip"],
                    "additionalProperties": false,
                },
            },
            "required": ["name", "age", "is_active", "tags", "address"],
            "additionalProperties": false,
        },
    })
}

impl Constrained {
    pub fn new(tokenizer: &Tokenizer, vocab_size: usize) -> anyhow::Result<Self> {
        let grammar = Grammar::JsonSchema {
            schema: schema(),
            strict: true,
        };
        let started = Instant::now();
        let grammars = Grammars::new(tokenizer, vocab_size)?;
        let vocabulary = started.elapsed();
        let timed = || {
            let started = Instant::now();
            let compiled = grammars.compile(&grammar, &Budget::until(None));
            compiled.map(|constraint| (constraint, started.elapsed()))
        };
        let (constraint, cold) = timed()?;
        let (_, warm) = timed()?;
        Ok(Self {
            masks_per_second: masks_per_second(&*constraint, tokenizer, vocab_size)?,
            constraint,
            vocabulary,
            cold,
            warm,
        })
    }

    pub fn to_json(&self) -> Value {
        json!({
            "vocabulary_ms": milliseconds(self.vocabulary),
            "compile_cold_ms": milliseconds(self.cold),
            "compile_warm_ms": milliseconds(self.warm),
            "masks_per_second": self.masks_per_second,
        })
    }

    pub fn print(&self) {
        println!(
            "grammar: {:.0} masks/s on one thread; vocabulary {:.1} ms once, compiled in {:.1} ms, again in {:.3} ms",
            self.masks_per_second,
            milliseconds(self.vocabulary),
            milliseconds(self.cold),
            milliseconds(self.warm),
        );
    }
}

fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

fn masks_per_second(
    constraint: &dyn TokenConstraint,
    tokenizer: &Tokenizer,
    vocab_size: usize,
) -> anyhow::Result<f64> {
    let token_ids = tokenizer.encode(SAMPLE, false, false)?;
    let mut mask = TokenMask::none(vocab_size);
    let (mut num_masks, started) = (0_u32, Instant::now());
    while num_masks < 1_000 {
        let mut constraint = constraint.fork();
        for token_id in &token_ids {
            mask.clear();
            constraint.mask(&mut mask)?;
            num_masks += 1;
            ensure!(
                constraint.accept(*token_id),
                "the schema refuses its sample"
            );
        }
    }
    Ok(f64::from(num_masks) / started.elapsed().as_secs_f64())
}

/// Rates and times to the first token, with the grammar and without, measured in turns.
#[derive(Default)]
pub(super) struct Comparison {
    pub plain: Arm,
    pub constrained: Arm,
}

#[derive(Default)]
pub(super) struct Arm {
    /// Tokens a second.
    pub rates: Vec<f64>,
    /// Milliseconds until the first token of all sequences.
    pub first_token_ms: Vec<f64>,
}

impl Arm {
    fn medians(&self) -> (f64, f64) {
        let median = |values: &[f64]| percentile(&sorted(values.to_vec()), 0.5);
        (median(&self.rates), median(&self.first_token_ms))
    }
}

impl Comparison {
    pub fn to_json(&self, batch: usize) -> Value {
        let arm = |arm: &Arm| {
            let (rate, first) = arm.medians();
            json!({"median": rate, "first_token_ms": first})
        };
        json!({"batch": batch, "plain": arm(&self.plain), "constrained": arm(&self.constrained)})
    }

    pub fn print(&self, batch: usize) {
        let (plain, plain_first) = self.plain.medians();
        let (constrained, first) = self.constrained.medians();
        println!(
            "constrained x{batch:<4} {constrained:>8.1}, without {plain:.1} ({:+.1} %); first token {first:.1} ms, \
             without {plain_first:.1}",
            100.0 * (constrained / plain - 1.0),
        );
    }
}
