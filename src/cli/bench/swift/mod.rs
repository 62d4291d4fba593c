//! `ponder bench swift`: what a model's sub-layers are worth. For every way of choosing what a
//! draft leaves out: how often it agrees with the whole model, what it costs, and how much faster
//! decoding could get.

mod args;
mod bayes;
mod lab;
mod search;

use anyhow::Context;
use serde_json::{Value, json};

use crate::cli::progress::Counter;
use crate::model::{SkipSet, SubLayer};
use lab::{Lab, Measured};

pub use args::BenchSwiftArgs;

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
        args.engine.num_threads(),
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
