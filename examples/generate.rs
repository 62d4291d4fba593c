//! Generates text with the engine as a library: no server, no HTTP.
//!
//! `cargo run --release --example generate -- smollm2-135m "What is a monad?"`

use std::io::Write;

use anyhow::{Context, Result};
use ponder::engine::{
    Backend, EngineHandle, EngineOptions, GenerateRequest, SamplingParams, StreamEvent,
};
use ponder::model::catalogue::{Progress, pull, resolve};
use ponder::model::{LoadOptions, ModelFiles, load};
use ponder::text::{ChatTemplate, Detokenizer, Tokenizer};
use serde_json::{Map, json};

const MAX_MODEL_LEN: usize = 2048;

/// Fetches models without a word.
struct Silent;

impl Progress for Silent {
    fn report(&self, _: u64, _: u64, _: &str) {}
}

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let name = arguments.next().unwrap_or("smollm2-135m".to_owned());
    let question = arguments.next().unwrap_or("What is a monad?".to_owned());

    // A name of the catalogue (fetched when missing), a path, or hf:ORG/REPO/FILE.
    let path = pull(&resolve(&name)?, &Silent)?;
    let files = ModelFiles::open(&path)?;
    let tokenizer = Tokenizer::from_files(&files)?;
    let template = ChatTemplate::from_files(&files, &tokenizer, None)?;
    let template = template.context("the model has no chat template")?;

    // The engine owns the model, and runs on a thread of its own.
    let options = LoadOptions {
        num_threads: std::thread::available_parallelism()?.get(),
        max_model_len: Some(MAX_MODEL_LEN),
        ..LoadOptions::default()
    };
    let model = load(&files, options)?;
    let options = EngineOptions {
        kv_cache_bytes: 256 << 20,
        max_model_len: Some(MAX_MODEL_LEN),
        ..EngineOptions::default()
    };
    let config = options.resolve(model.info())?;
    let engine = EngineHandle::start(model, config)?;

    // The engine reads and writes token ids; text is made of them here.
    let messages = [json!({"role": "user", "content": question})];
    let prompt = template.render(&messages, None, true, &Map::new())?;
    let params = SamplingParams {
        max_tokens: 128,
        temperature: 0.0,
        eos_token_ids: tokenizer.end_of_generation_ids().to_vec(),
        ..SamplingParams::default()
    };
    let prompt_token_ids = tokenizer.encode(&prompt, false, true)?;
    let mut stream = engine.submit(GenerateRequest::new(prompt_token_ids, params))?;
    let mut detokenizer = Detokenizer::new(&tokenizer, true);
    while let Some(event) = stream.blocking_recv() {
        match event {
            StreamEvent::Token { token_id, .. } => {
                print!("{}", detokenizer.push(token_id));
                std::io::stdout().flush()?;
            }
            StreamEvent::Finished { reason, .. } => println!("\n[{reason:?}]"),
            StreamEvent::Error(error) => return Err(error.into()),
            _ => {}
        }
    }
    Ok(())
}
