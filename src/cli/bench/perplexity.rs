//! `ponder bench perplexity`: how well a model predicts a text, measured as llama-perplexity does it:
//! the text in chunks of `context` tokens, each scored from its middle on.

use std::path::PathBuf;

use anyhow::{Context, bail, ensure};
use clap::Args;
use serde_json::json;

use crate::cli::engine_args::EngineArgs;
use crate::cli::progress::Counter;
use crate::cli::setup;
use crate::engine::{Backend, GenerateRequest, SamplingParams, StreamEvent};

#[derive(Debug, Clone, Args)]
pub struct BenchPerplexityArgs {
    #[command(flatten)]
    pub engine: EngineArgs,
    /// The text (UTF-8)
    #[arg(long, short)]
    pub file: PathBuf,
    /// Tokens of a chunk; the second half of each is scored
    #[arg(long, default_value_t = 512)]
    pub context: usize,
    /// Print JSON instead of a line
    #[arg(long)]
    pub json: bool,
}

pub(in crate::cli) fn run(args: &BenchPerplexityArgs) -> anyhow::Result<()> {
    ensure!(args.context >= 8, "--context must be at least 8");
    let mut engine_args = args.engine.clone();
    engine_args.max_model_len = Some(args.context + 1);
    let text = std::fs::read_to_string(&args.file)
        .with_context(|| format!("--file {}", args.file.display()))?;
    let served = setup::start(&engine_args)?;
    let token_ids = served.tokenizer.encode(&text, true, false)?;
    let bos = served
        .tokenizer
        .adds_bos()
        .then(|| served.tokenizer.bos_token_id())
        .flatten();
    ensure!(
        token_ids.len() >= 2 * args.context,
        "the text has {} tokens; --context {} needs at least {}",
        token_ids.len(),
        args.context,
        2 * args.context
    );
    let chunks: Vec<&[u32]> = token_ids.chunks_exact(args.context).collect();
    let counter = Counter::new("chunks", chunks.len() as u64);
    let (mut sum, mut sum_of_squares, mut count) = (0.0, 0.0, 0_usize);
    for chunk in &chunks {
        let mut prompt = chunk.to_vec();
        if let Some(bos) = bos {
            prompt[0] = bos;
        }
        // Logits of position `p` score token `p + 1`; the first half is context only.
        for logprob in &prompt_logprobs(served.engine.as_ref(), prompt)?[args.context / 2 + 1..] {
            let loss = -f64::from(*logprob);
            sum += loss;
            sum_of_squares += loss * loss;
            count += 1;
        }
        counter.advance();
    }
    drop(counter);
    let mean = sum / count as f64;
    let variance = (sum_of_squares / count as f64 - mean * mean).max(0.0);
    let standard_error = mean.exp() * (variance / count as f64).sqrt();
    if args.json {
        let result = json!({
            "model": args.engine.model, "context": args.context, "chunks": chunks.len(),
            "scored_tokens": count, "perplexity": mean.exp(), "standard_error": standard_error,
        });
        println!("{}", serde_json::to_string_pretty(&result)?);
    } else {
        println!(
            "{}: perplexity {:.4} ± {standard_error:.4} over {count} tokens in {} chunks of {}",
            args.engine.model,
            mean.exp(),
            chunks.len(),
            args.context
        );
    }
    Ok(())
}

/// The logprob of each prompt token after the first, which gets 0.
fn prompt_logprobs(engine: &dyn Backend, prompt: Vec<u32>) -> anyhow::Result<Vec<f32>> {
    let params = SamplingParams {
        temperature: 0.0,
        max_tokens: 1,
        prompt_logprobs: Some(0),
        ..SamplingParams::default()
    };
    let mut stream = engine.submit(GenerateRequest::new(prompt, params))?;
    while let Some(event) = stream.blocking_recv() {
        match event {
            StreamEvent::PromptDone {
                prompt_logprobs: Some(logprobs),
                ..
            } => {
                let logprob = |token: &Option<crate::engine::TokenLogprobs>| {
                    token.as_ref().map_or(0.0, |token| token.logprob)
                };
                return Ok(logprobs.iter().map(logprob).collect());
            }
            StreamEvent::Error(error) => return Err(error.into()),
            _ => {}
        }
    }
    bail!("the engine ended without an answer")
}
