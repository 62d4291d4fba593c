//! `ponder bench engine`: prefill and decode without HTTP, as llama-bench and llama-batched-bench
//! measure them.

use std::time::Instant;

use anyhow::bail;
use serde_json::json;

use super::{percentile, sorted};
use crate::cli::args::BenchEngineArgs;
use crate::cli::setup;
use crate::engine::{EngineHandle, GenerateRequest, SamplingParams, StreamEvent};

pub(in crate::cli) fn run(args: &BenchEngineArgs) -> anyhow::Result<()> {
    let mut engine_args = args.engine.clone();
    // Every prompt differs, and a cached one would measure nothing.
    engine_args.no_enable_prefix_caching = true;
    let started = Instant::now();
    let served = setup::start(&engine_args)?;
    let load_seconds = started.elapsed().as_secs_f64();
    let engine = &served.engine;
    let mut prefill = Vec::new();
    for repeat in 0..args.repeats.max(1) {
        let started = Instant::now();
        let first = step_times(engine, 1, args.prefill, 1, repeat)?;
        prefill.push(args.prefill as f64 / (first.first_token - started).as_secs_f64());
    }
    let prefill = sorted(prefill);
    let mut rows = Vec::new();
    for batch in &args.batch {
        let mut rates = Vec::new();
        for repeat in 0..args.repeats.max(1) {
            let times = step_times(engine, *batch, args.prompt_len, args.output_len, repeat)?;
            let seconds = (times.last_token - times.all_started).as_secs_f64();
            rates.push(times.num_decoded as f64 / seconds.max(1e-9));
        }
        rows.push((*batch, sorted(rates)));
    }
    if args.json {
        let decode: Vec<_> = rows
            .iter()
            .map(|(batch, rates)| json!({"batch": batch, "median": percentile(rates, 0.5), "min": rates[0]}))
            .collect();
        let result = json!({
            "model": args.engine.model,
            "threads": setup::num_threads(&args.engine),
            "isa": ponder_kernels::isa(),
            "load_seconds": load_seconds,
            "prefill": {"tokens": args.prefill, "median": percentile(&prefill, 0.5), "min": prefill[0]},
            "decode": decode,
        });
        println!("{}", serde_json::to_string_pretty(&result)?);
        return Ok(());
    }
    println!(
        "{}: {} threads ({}), loaded in {load_seconds:.1} s, tok/s median (min)",
        args.engine.model,
        setup::num_threads(&args.engine),
        ponder_kernels::isa()
    );
    println!(
        "prefill {:>4}   {:>8.1} ({:.1})",
        args.prefill,
        percentile(&prefill, 0.5),
        prefill[0]
    );
    for (batch, rates) in &rows {
        println!(
            "decode x{batch:<4}  {:>8.1} ({:.1})",
            percentile(rates, 0.5),
            rates[0]
        );
    }
    Ok(())
}

struct Times {
    first_token: Instant,
    /// When every sequence had its first token: prefill is over.
    all_started: Instant,
    last_token: Instant,
    /// Tokens generated after `all_started`.
    num_decoded: usize,
}

fn step_times(
    engine: &EngineHandle,
    batch: usize,
    prompt_len: usize,
    output_len: usize,
    repeat: usize,
) -> anyhow::Result<Times> {
    let vocab_size = engine.model_info().vocab_size as u64;
    let mut streams = Vec::new();
    for sequence in 0..batch as u64 {
        let token =
            |i: u64| ((i * 7919 + sequence * 104_729 + repeat as u64 * 31) % vocab_size) as u32;
        streams.push(engine.submit(GenerateRequest {
            prompt_token_ids: (0..prompt_len as u64).map(token).collect(),
            params: SamplingParams {
                temperature: 0.0,
                max_tokens: output_len,
                ignore_eos: true,
                ..SamplingParams::default()
            },
            n: 1,
            cache_salt: 0,
            deadline: None,
        })?);
    }
    // Readers only wait; they stamp tokens as they arrive.
    let (sender, receiver) = std::sync::mpsc::channel();
    for (index, mut stream) in streams.into_iter().enumerate() {
        let sender = sender.clone();
        std::thread::spawn(move || {
            while let Some(event) = stream.blocking_recv() {
                let is_error = matches!(event, StreamEvent::Error(_));
                let is_token = matches!(event, StreamEvent::Token { .. });
                if (is_token || is_error) && sender.send((index, is_error, Instant::now())).is_err()
                {
                    return;
                }
            }
        });
    }
    drop(sender);
    let mut tokens = Vec::new();
    let mut firsts = vec![None; batch];
    for (index, is_error, at) in receiver {
        if is_error {
            bail!("the engine failed");
        }
        firsts[index].get_or_insert(at);
        tokens.push(at);
    }
    let firsts: Vec<Instant> = firsts.into_iter().flatten().collect();
    let (Some(first_token), Some(all_started)) = (firsts.iter().min(), firsts.iter().max()) else {
        bail!("nothing was generated");
    };
    Ok(Times {
        first_token: *first_token,
        all_started: *all_started,
        last_token: tokens.iter().max().copied().unwrap_or(*all_started),
        num_decoded: tokens.iter().filter(|at| **at > *all_started).count(),
    })
}
