//! Measures grammars over a model's tokenizer, and checks them against the standard test suite.
//!
//! `cargo run --release --example grammars -- MODEL [--suite FOLDER]`
//!
//! MODEL is a GGUF file or a folder with a `tokenizer.json`. The schemas are those of
//! `tests/schemas`. FOLDER is one draft of JSON-Schema-Test-Suite, which the Python package
//! `jsonschema` carries (`json/tests/draft2020-12` in its source archive).

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use ponder::engine::{TokenConstraint, TokenId, TokenMask};
use ponder::grammar::{Grammar, GrammarError, Grammars};
use ponder::model::ModelFiles;
use ponder::text::Tokenizer;
use ponder::work::Budget;
use serde_json::Value;

const MAX_TOKENS: usize = 300;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let model = arguments.first().context("which model?")?;
    let files = ModelFiles::open(Path::new(model))?;
    let tokenizer = Tokenizer::from_files(&files)?;
    let start = Instant::now();
    let grammars = Grammars::new(&tokenizer, tokenizer.vocab_size())?;
    println!(
        "{} tokens, set up in {:.0?}",
        tokenizer.vocab_size(),
        start.elapsed()
    );
    let bench = Bench {
        tokenizer,
        grammars,
    };
    match arguments.iter().position(|argument| argument == "--suite") {
        Some(at) => bench.suite(Path::new(arguments.get(at + 1).context("which suite?")?)),
        None => bench.schemas(),
    }
}

struct Bench {
    tokenizer: Tokenizer,
    grammars: Grammars,
}

/// Durations of one kind.
#[derive(Default)]
struct Times(Vec<Duration>);

impl Times {
    fn time<T>(&mut self, work: impl FnOnce() -> T) -> T {
        let start = Instant::now();
        let done = work();
        self.0.push(start.elapsed());
        done
    }

    fn print(&mut self, name: &str) {
        self.0.sort();
        let sum: Duration = self.0.iter().sum();
        let at = |percent: usize| self.0[(self.0.len() - 1) * percent / 100];
        println!(
            "{name:<14} {:>7} times, mean {:>8.1?}, median {:>8.1?}, 99 % {:>8.1?}, most {:>8.1?}",
            self.0.len(),
            sum / self.0.len() as u32,
            at(50),
            at(99),
            at(100)
        );
    }
}

struct Rng(u64);

impl Rng {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        ((self.0 >> 33) % n as u64) as usize
    }
}

impl Bench {
    fn compile(
        &self,
        schema: &Value,
        strict: bool,
    ) -> Result<Box<dyn TokenConstraint>, GrammarError> {
        let schema = schema.clone();
        let grammar = Grammar::JsonSchema { schema, strict };
        self.grammars.compile(&grammar, &Budget::default())
    }

    fn schemas(&self) -> Result<()> {
        let schemas = read(Path::new("tests/schemas"))?;
        let (mut cold, mut warm, mut fork) = (Times::default(), Times::default(), Times::default());
        let (mut masks, mut forced) = (Times::default(), Times::default());
        let (mut accepts, mut num_valid, mut num_texts) = (Times::default(), 0, 0);
        let mut rng = Rng(1);
        for group in &schemas {
            let schema = &group["schema"];
            cold.time(|| self.compile(schema, true))?;
            let constraint = warm.time(|| self.compile(schema, true))?;
            let validator = jsonschema::options()
                .should_validate_formats(true)
                .build(schema)?;
            for _ in 0..3 {
                let mut own = fork.time(|| constraint.fork());
                let mut mask = TokenMask::none(self.tokenizer.vocab_size());
                let mut token_ids = Vec::new();
                while token_ids.len() < MAX_TOKENS {
                    forced.time(|| own.forced(8));
                    mask.words_mut().fill(0);
                    masks.time(|| own.mask(&mut mask))?;
                    let next = self.pick(&mask, &mut rng);
                    accepts.time(|| own.accept(next));
                    if self.is_end(next) {
                        let text = self.tokenizer.decode(&token_ids, false);
                        let value: Option<Value> = serde_json::from_str(&text).ok();
                        num_texts += 1;
                        match value.is_some_and(|value| validator.is_valid(&value)) {
                            true => num_valid += 1,
                            false => println!("not valid for {}: {text}", group["name"]),
                        }
                        break;
                    }
                    token_ids.push(next);
                }
            }
        }
        println!(
            "{} schemas; {num_valid} of {num_texts} finished texts are valid",
            schemas.len()
        );
        cold.print("cold compile");
        warm.print("warm compile");
        fork.print("fork");
        masks.print("mask");
        forced.print("forced");
        accepts.print("accept");
        let sum: Duration = masks.0.iter().sum();
        println!(
            "{:.0} masks a second",
            masks.0.len() as f64 / sum.as_secs_f64()
        );
        Ok(())
    }

    fn is_end(&self, token_id: TokenId) -> bool {
        self.tokenizer.end_of_generation_ids().contains(&token_id)
    }

    /// An allowed token: the end, or what closes something, more often than others.
    fn pick(&self, mask: &TokenMask, rng: &mut Rng) -> TokenId {
        let size = self.tokenizer.vocab_size() as u32;
        let allowed: Vec<TokenId> = (0..size).filter(|id| mask.is_allowed(*id)).collect();
        let closes = |id: &TokenId| {
            let first = self.tokenizer.token_bytes(*id).first();
            self.is_end(*id) || first.is_some_and(|byte| b"\"}],".contains(byte))
        };
        let closing: Vec<TokenId> = allowed.iter().copied().filter(closes).collect();
        let from = match !closing.is_empty() && rng.below(2) == 0 {
            true => closing,
            false => allowed,
        };
        from[rng.below(from.len())]
    }

    /// What the suite calls wrong must not be accepted; what it calls right should be.
    fn suite(&self, folder: &Path) -> Result<()> {
        let (mut num_groups, mut num_supported) = (0, 0);
        let (mut num_right, mut num_missed, mut num_wrong) = (0, 0, 0);
        for group in read(folder)? {
            num_groups += 1;
            let Ok(constraint) = self.compile(&group["schema"], true) else {
                continue;
            };
            num_supported += 1;
            for test in group["tests"].as_array().into_iter().flatten() {
                let is_accepted = self.accepts(constraint.fork(), &write(&test["data"]));
                match (test["valid"] == true, is_accepted) {
                    (true, false) => num_missed += 1,
                    (false, true) => {
                        num_wrong += 1;
                        println!(
                            "accepted: {} / {}",
                            group["description"], test["description"]
                        );
                    }
                    _ => num_right += 1,
                }
            }
        }
        println!("{num_supported} of {num_groups} groups are supported with strict");
        println!(
            "{num_right} tests agree, {num_missed} right values are refused, {num_wrong} wrong ones accepted"
        );
        Ok(())
    }

    fn accepts(&self, mut constraint: Box<dyn TokenConstraint>, text: &str) -> bool {
        let token_ids = self
            .tokenizer
            .encode(text, false, false)
            .unwrap_or_default();
        let end = self.tokenizer.end_of_generation_ids();
        token_ids
            .iter()
            .chain(end.first())
            .all(|id| constraint.accept(*id))
    }
}

/// JSON as grammars have it.
fn write(value: &Value) -> String {
    match value {
        Value::Array(items) => {
            let items: Vec<String> = items.iter().map(write).collect();
            format!("[{}]", items.join(", "))
        }
        Value::Object(map) => {
            let items = map
                .iter()
                .map(|(name, value)| format!("{}: {}", Value::from(name.as_str()), write(value)));
            format!("{{{}}}", items.collect::<Vec<_>>().join(", "))
        }
        other => other.to_string(),
    }
}

/// The lists in a folder's JSON files, one after the other.
fn read(folder: &Path) -> Result<Vec<Value>> {
    let mut paths: Vec<PathBuf> = std::fs::read_dir(folder)?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| {
            path.extension()
                .is_some_and(|extension| extension == "json")
        })
        .collect();
    paths.sort();
    let mut all = Vec::new();
    for path in paths {
        let items: Vec<Value> = serde_json::from_slice(&std::fs::read(&path)?)?;
        all.extend(items);
    }
    Ok(all)
}
