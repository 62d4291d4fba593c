//! `ponder bench swift`: what a model's sub-layers are worth. For every way of choosing what a draft leaves out: how often it agrees
//! with the whole model, what it costs, and how much faster decoding could get.

mod bayes;
mod lab;
mod search;

use std::path::PathBuf;

use anyhow::Context;
use clap::Args;
use serde_json::{Value, json};

use crate::cli::args::EngineArgs;
use crate::cli::progress::Counter;
use crate::cli::setup;
use crate::model::{SkipSet, SubLayer};
use lab::Lab;

#[derive(Debug, Clone, Args)]
pub struct BenchSwiftArgs {
    #[command(flatten)]
    pub engine: EngineArgs,
    /// JSON lines of {"task", "messages"}; benches/speculative/prompts.py makes some
    #[arg(long, value_name = "FILE")]
    pub prompts: PathBuf,
    /// Texts that are generated: half of them to choose by, half to measure on
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u64).range(2..=64))]
    pub texts: u64,
    /// Sets that random and Bayesian search try
    #[arg(long, default_value_t = 60)]
    pub candidates: usize,
    /// Every how many of them Bayesian search proposes one (SWIFT: 25)
    #[arg(long, default_value_t = 5)]
    pub bayes_interval: usize,
    /// Shares of the sub-layers to leave out
    #[arg(long, value_delimiter = ',', default_values_t = [0.05, 0.1, 0.2, 0.3, 0.45])]
    pub ratios: Vec<f64>,
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Write the set that promises most as JSON, for `ponder serve --skip-set`
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
    #[arg(long)]
    pub json: bool,
}

/// A set and what it is worth.
struct Measured {
    method: &'static str,
    skip: SkipSet,
    /// On the texts that it was chosen by, and on the others.
    chosen_by: f64,
    agreement: f64,
    /// Of a draft step, relative to a step of the model.
    cost: f64,
    /// Draft tokens that promise most, and the tokens a second relative to no drafts.
    num_draft_tokens: usize,
    speedup: f64,
}

pub(in crate::cli) fn run(args: &BenchSwiftArgs) -> anyhow::Result<()> {
    let mut lab = Lab::new(args)?;
    let total = args.ratios.len() * (2 * args.candidates + 3);
    let bar = Counter::new("skip sets", total as u64);
    let mut measured = vec![lab.measure("none", SkipSet::default(), 1.0)?];
    let by_units = lab.knapsack()?;
    for ratio in &args.ratios {
        let num_candidates = SkipSet::candidates(lab.num_layers).len();
        let num_skipped = ((num_candidates as f64 * ratio) as usize).max(1);
        let odd = (1..lab.num_layers).step_by(2);
        let odd = odd.flat_map(|layer| [SubLayer::Attention(layer), SubLayer::Mlp(layer)]);
        let odd = SkipSet::new(lab.num_layers, odd.take(num_skipped));
        let score = lab.agreement(&odd, true)?;
        measured.push(lab.measure("every other", odd, score)?);
        for (method, interval) in [
            ("random", usize::MAX),
            ("bayes", args.bayes_interval.max(1)),
        ] {
            let (skip, score) = lab.search(num_skipped, args.candidates, interval, &bar)?;
            measured.push(lab.measure(method, skip, score)?);
        }
        // The same share of what the sub-layers cost, not of their number.
        let at = ((by_units.len() - 1) as f64 * ratio * 2.0).round() as usize;
        if let Some(skip) = by_units.get(at).cloned().flatten() {
            let score = lab.agreement(&skip, true)?;
            measured.push(lab.measure("knapsack", skip, score)?);
        }
        bar.advance();
    }
    drop(bar);
    let best = measured[1..]
        .iter()
        .max_by(|a, b| a.speedup.total_cmp(&b.speedup));
    if let (Some(path), Some(best)) = (&args.out, best) {
        let text = serde_json::to_string(&best.skip)?;
        std::fs::write(path, text).with_context(|| format!("--out {}", path.display()))?;
    }
    report(&lab, args, &measured)
}

fn report(lab: &Lab, args: &BenchSwiftArgs, measured: &[Measured]) -> anyhow::Result<()> {
    let num_sub_layers = SkipSet::candidates(lab.num_layers).len();
    let verify: Vec<f64> = lab
        .step_seconds
        .iter()
        .map(|t| t / lab.step_seconds[0])
        .collect();
    if args.json {
        let rows: Vec<Value> = measured
            .iter()
            .map(|row| {
                json!({
                    "method": row.method, "skipped": row.skip.len(), "of": num_sub_layers,
                    "skip": row.skip, "agreement_chosen_by": row.chosen_by,
                    "agreement": row.agreement, "draft_cost": row.cost,
                    "draft_tokens": row.num_draft_tokens, "predicted_speedup": row.speedup,
                })
            })
            .collect();
        let result = json!({
            "model": args.engine.model, "isa": ponder_kernels::isa(), "verify_cost": verify,
            "step_ms": lab.step_seconds[0] * 1e3, "sets": rows,
        });
        println!("{}", serde_json::to_string_pretty(&result)?);
        return Ok(());
    }
    println!(
        "{}: {} threads ({}), a step takes {:.1} ms; with 2, 4, 8 and 16 rows {:.2}, {:.2}, {:.2} and {:.2} times that",
        args.engine.model,
        setup::num_threads(&args.engine),
        ponder_kernels::isa(),
        lab.step_seconds[0] * 1e3,
        verify[1],
        verify[3],
        verify[7],
        verify[15]
    );
    println!(
        "{:<12} {:>10} {:>10} {:>10} {:>10} {:>8} {:>8}",
        "method", "left out", "chosen by", "agreement", "draft cost", "drafts", "speedup"
    );
    for row in measured {
        println!(
            "{:<12} {:>4} of {:<3} {:>9.1}% {:>9.1}% {:>10.2} {:>8} {:>8.2}",
            row.method,
            row.skip.len(),
            num_sub_layers,
            row.chosen_by * 100.0,
            row.agreement * 100.0,
            row.cost,
            row.num_draft_tokens,
            row.speedup
        );
    }
    Ok(())
}
