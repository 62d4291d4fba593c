//! `ponder bench perplexity`: how well a model predicts a text, measured as llama-perplexity does
//! it: the text in chunks of `context` tokens, each scored from its middle on.

use std::path::PathBuf;

use anyhow::{Context, bail, ensure};
use clap::Args;
use serde_json::json;

use super::kl_divergence::Pair;
use crate::cli::engine_args::EngineArgs;
use crate::cli::progress::Counter;
use crate::cli::setup;
use crate::engine::{Backend, GenerateRequest, SamplingParams, StreamEvent};
use crate::model::ModelFiles;
use crate::text::Tokenizer;

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
    /// Compare next-token distributions with those of an f16 KV cache instead (--kv-cache-dtype
    /// q8_0)
    #[arg(long)]
    pub kl_divergence: bool,
    /// Most chunks to measure [default: all]
    #[arg(long)]
    pub chunks: Option<usize>,
    /// Print JSON instead of a line
    #[arg(long)]
    pub json: bool,
}

pub(in crate::cli) fn run(args: &BenchPerplexityArgs) -> anyhow::Result<()> {
    ensure!(args.context >= 8, "--context must be at least 8");
    ensure!(args.chunks != Some(0), "--chunks must be at least 1");
    let mut engine_args = args.engine.clone();
    engine_args.max_model_len = Some(args.context + 1);
    let text = std::fs::read_to_string(&args.file)
        .with_context(|| format!("--file {}", args.file.display()))?;
    if args.kl_divergence {
        return compare(args, &text);
    }
    let served = setup::start(&engine_args)?;
    let chunks = chunks(args, &served.tokenizer, &text)?;
    let counter = Counter::new("chunks", chunks.len() as u64);
    let (mut sum, mut sum_of_squares, mut count) = (0.0, 0.0, 0_usize);
    for chunk in &chunks {
        // Logits of position `p` score token `p + 1`; the first half is context only.
        let logprobs = prompt_logprobs(served.engine.as_ref(), chunk.clone())?;
        for logprob in &logprobs[args.context / 2 + 1..] {
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

/// The text in chunks, each of which begins as a text does.
fn chunks(
    args: &BenchPerplexityArgs,
    tokenizer: &Tokenizer,
    text: &str,
) -> anyhow::Result<Vec<Vec<u32>>> {
    let token_ids = tokenizer.encode(text, true, false)?;
    ensure!(
        token_ids.len() >= 2 * args.context,
        "the text has {} tokens; --context {} needs at least {}",
        token_ids.len(),
        args.context,
        2 * args.context
    );
    let bos = tokenizer.bos_token_id().filter(|_| tokenizer.adds_bos());
    let chunks = token_ids.chunks_exact(args.context).map(|chunk| {
        let mut chunk = chunk.to_vec();
        chunk[0] = bos.unwrap_or(chunk[0]);
        chunk
    });
    Ok(chunks.take(args.chunks.unwrap_or(usize::MAX)).collect())
}

/// `--kl-divergence`: the distributions after the second half of each chunk's tokens.
fn compare(args: &BenchPerplexityArgs, text: &str) -> anyhow::Result<()> {
    let files = ModelFiles::open(&setup::locate(&args.engine.model)?)?;
    let chunks = chunks(args, &Tokenizer::from_files(&files)?, text)?;
    let mut pair = Pair::load(&args.engine, &files, args.context)?;
    let counter = Counter::new("chunks", chunks.len() as u64);
    for chunk in &chunks {
        pair.compare(chunk, args.context / 2)?;
        counter.advance();
    }
    drop(counter);
    let mut result = pair.to_json();
    result["model"] = json!(args.engine.model);
    result["kv_cache_dtype"] = json!(args.engine.kv_cache_dtype.dtype().name());
    result["context"] = json!(args.context);
    println!("{}", serde_json::to_string_pretty(&result)?);
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
