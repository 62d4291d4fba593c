//! `ponder bench context`: prefill and decode behind a long context, as `llama-bench -d` measures
//! them, without computing the context.
//!
//! A short piece of a text is computed, and its keys and values are copied until the context is
//! full. They are then those of other tokens at other positions, but lie in memory of their own,
//! and what a row costs does not depend on what they are.

use std::time::Instant;

use anyhow::ensure;
use clap::Args;
use ponder_kernels::Roofline;
use serde_json::{Value, json};

use super::lone_sequence::{LoneSequence, Sizes};
use super::statistics::{percentile, sorted};
use crate::cli::device::cpu_pool;
use crate::cli::engine_args::EngineArgs;
use crate::cli::setup;
use crate::model::ModelFiles;

/// Tokens that are computed.
const PIECE: usize = 512;
const MIB: f64 = (1 << 20) as f64;

#[derive(Debug, Clone, Args)]
pub struct BenchContextArgs {
    #[command(flatten)]
    pub engine: EngineArgs,
    /// Tokens of the context before those that are measured; may exceed the model's own context
    #[arg(long, value_delimiter = ',', default_value = "0,8192,32768")]
    pub depths: Vec<usize>,
    /// Tokens of the prefill measurement, in one step
    #[arg(long, default_value_t = 256)]
    pub prefill: usize,
    /// Tokens decoded behind them
    #[arg(long, default_value_t = 32)]
    pub output_len: usize,
    #[arg(long, default_value_t = 3)]
    pub repeats: usize,
    /// Print JSON instead of a table
    #[arg(long)]
    pub json: bool,
}

pub(in crate::cli) fn run(args: &BenchContextArgs) -> anyhow::Result<()> {
    ensure!(args.prefill > 0, "--prefill must be at least 1");
    let pool = cpu_pool(&args.engine)?;
    let deepest = args.depths.iter().copied().max().unwrap_or(0);
    let kv_cache_dtype = args.engine.kv_cache_dtype.dtype();
    let sizes = Sizes {
        max_tokens: deepest.max(PIECE) + args.prefill + args.output_len,
        max_rows: args.prefill.max(PIECE),
        kv_cache_dtype,
    };
    let files = ModelFiles::open(&setup::locate(&args.engine.model)?)?;
    let mut sequence = LoneSequence::load(&args.engine, &files, &pool, sizes)?;
    sequence.forward(&tokens(&sequence, PIECE), 0, PIECE - 1..PIECE)?;
    sequence.repeat(PIECE, deepest)?;
    let measured = args.depths.iter();
    let depths = measured.map(|depth| measure(args, &mut sequence, *depth));
    let depths = depths.collect::<anyhow::Result<_>>()?;
    let report = Report {
        model: args.engine.model.clone(),
        threads: pool.num_threads(),
        kv_cache_dtype: kv_cache_dtype.name(),
        kv_bytes_per_token: sequence.info().kv_bytes_per_token,
        weight_bytes: sequence.info().weight_bytes,
        prefill: args.prefill,
        depths,
        read_gb_s: Roofline::measure(&pool).read_gb_s,
    };
    match args.json {
        true => println!("{}", serde_json::to_string_pretty(&report.to_json())?),
        false => report.print(),
    }
    Ok(())
}

/// Made-up tokens.
fn tokens(sequence: &LoneSequence, count: usize) -> Vec<u32> {
    let vocab_size = sequence.info().vocab_size;
    (0..count).map(|i| (i * 7919 % vocab_size) as u32).collect()
}

fn measure(
    args: &BenchContextArgs,
    sequence: &mut LoneSequence,
    depth: usize,
) -> anyhow::Result<Depth> {
    let (mut prefill, mut decode) = (Vec::new(), Vec::new());
    let token_ids = tokens(sequence, args.prefill);
    let behind = depth + args.prefill;
    for _ in 0..args.repeats.max(1) {
        let started = Instant::now();
        sequence.forward(&token_ids, depth, args.prefill - 1..args.prefill)?;
        prefill.push(args.prefill as f64 / started.elapsed().as_secs_f64());
        let started = Instant::now();
        for i in 0..args.output_len {
            let token = token_ids[i % token_ids.len()];
            sequence.forward(&[token], behind + i, 0..1)?;
        }
        decode.push(args.output_len as f64 / started.elapsed().as_secs_f64());
    }
    Ok(Depth {
        tokens: depth,
        kv_bytes: sequence.kv_bytes(depth),
        prefill: sorted(prefill),
        decode: sorted(decode),
    })
}

/// What was measured behind a context; tokens a second, ascending.
struct Depth {
    tokens: usize,
    /// Bytes of keys and values of the tokens.
    kv_bytes: usize,
    prefill: Vec<f64>,
    decode: Vec<f64>,
}

struct Report {
    model: String,
    threads: usize,
    kv_cache_dtype: &'static str,
    kv_bytes_per_token: usize,
    weight_bytes: usize,
    prefill: usize,
    depths: Vec<Depth>,
    /// What the machine reads from memory.
    read_gb_s: f64,
}

impl Report {
    fn to_json(&self) -> Value {
        let depths = self.depths.iter().map(|depth| {
            json!({
                "tokens": depth.tokens,
                "kv_bytes": depth.kv_bytes,
                "prefill": percentile(&depth.prefill, 0.5),
                "prefill_min": depth.prefill[0],
                "decode": percentile(&depth.decode, 0.5),
                "decode_min": depth.decode[0],
            })
        });
        json!({
            "model": self.model,
            "threads": self.threads,
            "isa": ponder_kernels::isa(),
            "kv_cache_dtype": self.kv_cache_dtype,
            "kv_bytes_per_token": self.kv_bytes_per_token,
            "weight_bytes": self.weight_bytes,
            "prefill_tokens": self.prefill,
            "read_gb_s": self.read_gb_s,
            "depths": depths.collect::<Vec<_>>(),
        })
    }

    fn print(&self) {
        println!(
            "{}: {} threads ({}), KV cache {}, tok/s median (min); memory reads {:.1} GB/s",
            self.model,
            self.threads,
            ponder_kernels::isa(),
            self.kv_cache_dtype,
            self.read_gb_s,
        );
        for depth in &self.depths {
            println!(
                "behind {:>7} tokens ({:.0} MiB of KV): prefill of {} {:.1} ({:.1}), \
                 decode {:.2} ({:.2})",
                depth.tokens,
                depth.kv_bytes as f64 / MIB,
                self.prefill,
                percentile(&depth.prefill, 0.5),
                depth.prefill[0],
                percentile(&depth.decode, 0.5),
                depth.decode[0],
            );
        }
    }
}
