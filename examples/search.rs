//! A search with a reward of your own, over the engine as a library.
//!
//! `cargo run --release --example search -- smollm2-135m "Why is the sky blue?"`

use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result};
use futures::FutureExt;
use futures::future::BoxFuture;
use ponder::engine::{Engine, EngineHandle, EngineOptions, SamplingParams, TokenBudget};
use ponder::model::catalogue::{Progress, pull, resolve};
use ponder::model::{LoadOptions, ModelFiles, load};
use ponder::reward::{Candidate, Scorer, ScorerError, Weighted};
use ponder::search::{EnginePolicy, Search, SearchRequest};
use ponder::text::{ChatTemplate, Tokenizer};
use serde_json::{Map, json};

const MAX_MODEL_LEN: usize = 2048;
const MAX_TOKENS: usize = 96;
/// Tokens of all branches together.
const BUDGET: u64 = 1024;

/// The reward: answers are better the fewer words they have, and half as good where they are cut.
struct Brevity;

impl Scorer for Brevity {
    fn kind(&self) -> &'static str {
        "brevity"
    }

    /// A beginning is always short: only whole answers are compared.
    fn scores_steps(&self) -> bool {
        false
    }

    fn score<'a>(
        &'a self,
        candidates: &'a [Candidate],
        _: Option<Instant>,
    ) -> BoxFuture<'a, Result<Vec<f64>, ScorerError>> {
        let score = |candidate: &Candidate| {
            let num_words = candidate.text.split_whitespace().count();
            let whole = if candidate.is_complete { 1.0 } else { 0.5 };
            whole / (1.0 + num_words as f64 / 20.0)
        };
        let scores = candidates.iter().map(score).collect();
        async { Ok(scores) }.boxed()
    }
}

/// Fetches models without a word.
struct Silent;

impl Progress for Silent {
    fn report(&self, _: u64, _: u64, _: &str) {}
}

/// An engine that owns the model.
fn start(files: &ModelFiles) -> Result<Engine> {
    let options = LoadOptions {
        num_threads: std::thread::available_parallelism()?.get(),
        max_model_len: Some(MAX_MODEL_LEN),
        ..LoadOptions::default()
    };
    let model = load(files, options)?;
    let options = EngineOptions {
        kv_cache_bytes: 256 << 20,
        max_model_len: Some(MAX_MODEL_LEN),
        ..EngineOptions::default()
    };
    let config = options.resolve(model.info())?;
    Ok(Arc::new(EngineHandle::start(model, config)?))
}

/// What continues answers to the prompt: the engine.
fn policy(engine: Engine, tokenizer: Tokenizer, prompt: &str) -> Result<EnginePolicy> {
    let prompt_token_ids = tokenizer.encode(prompt, false, true)?;
    let params = SamplingParams {
        max_tokens: MAX_TOKENS,
        temperature: 0.8,
        seed: 1,
        eos_token_ids: tokenizer.end_of_generation_ids().to_vec(),
        ..SamplingParams::default()
    };
    let budget = Arc::new(TokenBudget::new(BUDGET));
    Ok(EnginePolicy {
        budget,
        ..EnginePolicy::new(engine, tokenizer, prompt_token_ids, params)
    })
}

#[tokio::main]
async fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let name = arguments.next().unwrap_or("smollm2-135m".to_owned());
    let question = arguments
        .next()
        .unwrap_or("Why is the sky blue?".to_owned());

    let path = pull(&resolve(&name)?, &Silent)?;
    let files = ModelFiles::open(&path)?;
    let tokenizer = Tokenizer::from_files(&files)?;
    let template = ChatTemplate::from_files(&files, &tokenizer, None)?;
    let template = template.context("the model has no chat template")?;
    let messages = [json!({"role": "user", "content": question})];
    let prompt = template.render(&messages, None, true, &Map::new())?;
    let policy = policy(start(&files)?, tokenizer, &prompt)?;

    // The request is as in the API. The reward is `Brevity`, whatever the request names.
    let request = json!({"strategy": "best_of_n", "n": 6});
    let request: SearchRequest = serde_json::from_value(request)?;
    let spec = request.resolve(64, "likelihood")?;
    let scorer = Weighted::new(vec![(1.0, Arc::new(Brevity))]);
    let outcome = Search::new(&policy, Some(&scorer), &spec, None)
        .run()
        .await?;

    for answer in &outcome.answers {
        println!("{:.2}  {:?}", answer.value, answer.text);
    }
    println!(
        "{} tokens in {} nodes",
        outcome.stats.num_tokens, outcome.stats.num_nodes
    );
    Ok(())
}
